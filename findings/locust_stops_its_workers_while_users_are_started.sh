#!/usr/bin/env bash
# Each second in which users are started, all that runs in each of Locust's workers stands still for a while.
#
# locust 2.47.0, Python 3.11. A master starts 5 users, one a second, on one worker, then lets them run for 5 s. In the worker
# a greenlet sleeps 5 ms at a time and notes how long it really was.
# A good guess is that a new user costs a worker what its constructor does, here nothing. Seen: a pause for each message of the
# master's, 60 to 200 ms where it was tried, and none afterwards. To see which options to take over from the message, the
# worker builds the whole parser of its command line anew for each single option, more than 50 times (counted below).
# Streams that run meanwhile get a gap of that length each second of the ramp, in all workers at once, as if the server had
# stalled. Figures of a ramp, and of a load shape with many steps, are those of the load generator.
set -euo pipefail
work=$(mktemp -d)
workers=()
trap 'kill "${workers[@]}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check locust==2.47.0
cat >"$work/locustfile.py" <<'PY'
import time

import gevent
from locust import User, argument_parser, events, task
from locust.runners import WorkerRunner

built, pauses, build = [], [], argument_parser.setup_parser_arguments


def counted(*args, **kwargs):
    built.append(time.monotonic())
    return build(*args, **kwargs)


argument_parser.setup_parser_arguments = counted


def watch():
    while True:
        began = time.monotonic()
        gevent.sleep(0.005)
        pauses.append((began, time.monotonic() - began))


@events.test_start.add_listener
def started(environment, **_):
    if isinstance(environment.runner, WorkerRunner):
        gevent.spawn(watch)


class Chat(User):
    @task
    def stream(self):
        gevent.sleep(1)


@events.quitting.add_listener
def quitting(environment, **_):
    if isinstance(environment.runner, WorkerRunner):
        first = next(pause for pause in pauses)[0]
        ramp = max(length for at, length in pauses if first + 0.5 < at < first + 4.5)
        later = sorted(length for at, length in pauses if first + 6 < at < first + 9)
        print("parsers built:", "more than 50 a user" if len(built) > 250 else len(built))
        print("longest pause in the ramp: over 4 times that of 99 % after it:", ramp > 4 * later[int(0.99 * len(later))])
        print(f"{ramp * 1000:.0f} ms", [round(length * 1000) for length in later[-5:]], file=open("pauses", "w"))
PY
cd "$work"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/locust --worker --master-host 127.0.0.1 --master-port "$port" >seen 2>worker.log &
workers+=($!)
venv/bin/locust --headless --master --expect-workers 1 --master-bind-host 127.0.0.1 --master-bind-port "$port" \
  --users 5 --spawn-rate 1 --run-time 10s >master.log 2>&1
wait "${workers[0]}" || true
seen=$(cat seen)
expected="parsers built: more than 50 a user
longest pause in the ramp: over 4 times that of 99 % after it: True"
printf '%s\n' "$seen"
cat pauses >&2
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
