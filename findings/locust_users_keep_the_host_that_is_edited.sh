#!/usr/bin/env bash
# A host that is edited while Locust runs holds for users that start later; the others keep the old one.
#
# locust 2.47.0, Python 3.11, web UI. Four users of FastHttpUser run against server A. The form of a run that goes on is sent
# with server B as host, once with as many users and once with eight, as when an engine is swapped under a soak test.
# A good guess is that the load moves to B: the page answers "Swarming started" with B as host, and shows B from then on.
# Seen: with as many users none moves; with eight the four new ones ask B and the four old ones go on at A. Statistics have one
# row for both, so percentiles are those of two servers at once, under the name of the second.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check locust==2.47.0
cat >"$work/try.py" <<'PY'
from locust import FastHttpUser, constant, task  # first: it patches the sockets
from locust.env import Environment

import json
import urllib.parse
import urllib.request

import gevent
from gevent.pywsgi import WSGIServer

asked: dict[str, set[str]] = {}


def server(name):
    def answer(environ, start_response):
        asked[name].add(environ["HTTP_X_USER"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    found = WSGIServer(("127.0.0.1", 0), answer, log=None)
    found.start()
    return f"http://127.0.0.1:{found.server_port}"


A, B = server("A"), server("B")


class Chat(FastHttpUser):
    wait_time = constant(0.05)

    @task
    def ask(self):
        self.client.get("/", headers={"X-User": str(id(self))})


environment = Environment(user_classes=[Chat])
environment.create_local_runner()
web = environment.create_web_ui("127.0.0.1", 0, delayed_start=True)
listening = WSGIServer(("127.0.0.1", 0), web.app, log=None)
listening.start()


def swarm(host, users):
    form = urllib.parse.urlencode({"user_count": users, "spawn_rate": 100, "host": host}).encode()
    said = json.load(urllib.request.urlopen(f"http://127.0.0.1:{listening.server_port}/swarm", form))
    while environment.runner.user_count != users:
        gevent.sleep(0.05)
    gevent.sleep(0.3)
    asked.update(A=set(), B=set())
    gevent.sleep(1)
    where = {A: "A", B: "B"}[said["host"]]
    print(f"{users} users, host {where} ({said['message']}): {len(asked['A'])} ask A, {len(asked['B'])} ask B")


asked.update(A=set(), B=set())
for host, users in ((A, 4), (B, 4), (B, 8)):
    swarm(host, users)
print("rows of statistics:", len(environment.stats.entries))
environment.runner.quit()
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="4 users, host A (Swarming started): 4 ask A, 0 ask B
4 users, host B (Swarming started): 4 ask A, 0 ask B
8 users, host B (Swarming started): 4 ask A, 4 ask B
rows of statistics: 1"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
