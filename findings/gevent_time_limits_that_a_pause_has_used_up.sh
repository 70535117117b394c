#!/usr/bin/env bash
# Of gevent's time limits some begin when they are set, and some when its loop last turned.
#
# gevent 26.9.0, Python 3.11, Linux. A greenlet computes for 1.5 s without giving way, as a Locust task does that parses
# a large file, and then sets a limit of 1 s in five ways.
# A good guess is that each lasts 1 s. Seen: sleep, Timeout, Event.wait and Queue.get do; spawn_later runs its function
# and joinall(timeout=) gives up at once, since they count from the loop's own time, which the pause has left behind.
# Who waits so for greenlets to end after a pause takes all of them for late; loop.update_now() before it helps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gevent==26.9.0
cat >"$work/try.py" <<'PY'
import time

import gevent
from gevent.event import Event
from gevent.queue import Empty, Queue


def timeout():
    try:
        with gevent.Timeout(1):
            gevent.sleep(5)
    except gevent.Timeout:
        pass


def queue():
    try:
        Queue().get(timeout=1)
    except Empty:
        pass


def later():
    ran = Event()
    gevent.spawn_later(1, ran.set)
    ran.wait()


def joined():
    gevent.joinall([gevent.spawn(gevent.sleep, 5)], timeout=1)


def updated():
    gevent.get_hub().loop.update_now()
    joined()


print("gevent", gevent.__version__)
for name, limit in {
    "sleep": lambda: gevent.sleep(1), "Timeout": timeout, "Event.wait": lambda: Event().wait(1), "Queue.get": queue,
    "spawn_later": later, "joinall": joined, "joinall after update_now": updated,
}.items():
    gevent.sleep(0.01)  # the loop turns
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        pass
    began = time.monotonic()
    limit()
    print(f"{name}:", "at once" if time.monotonic() - began < 0.5 else "after its second")
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="gevent 26.9.0
sleep: after its second
Timeout: after its second
Event.wait: after its second
Queue.get: after its second
spawn_later: at once
joinall: at once
joinall after update_now: after its second"
echo "$seen"
[ "$seen" = "$expected" ] || { echo "gevent behaves otherwise now" >&2; exit 1; }
