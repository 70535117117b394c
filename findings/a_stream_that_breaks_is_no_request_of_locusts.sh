#!/usr/bin/env bash
# A stream that breaks off is either a success of Locust's or no request at all, but never a failure.
#
# locust 2.47.0 with both of its HTTP users, Python 3.11. A server sends the head and five bytes of a chunked answer, then
# closes the connection, as an engine does that dies. The task reads the stream, once from the call alone and once, as the
# documentation has it for answers to judge, in `with ...post(..., stream=True, catch_response=True)`.
# A good guess is a failed request in all four: the client raises, and the with block sees it go by. Seen: without the block
# a success of a few ms, told before the body was read; with it no event, so the request is in no count and no ratio.
# An engine that dies in every second answer keeps its failures at 0 %, and loses requests a second instead.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check locust==2.47.0
cat >"$work/try.py" <<'PY'
from locust import FastHttpUser, HttpUser  # first: it patches the sockets
from locust.env import Environment

import gevent
from gevent.server import StreamServer


def dies(connection, _):
    while not connection.recv(65536).endswith(b"}"):
        pass
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    connection.sendall(b"5\r\ndata:\r\n")
    gevent.sleep(0.05)
    connection.close()


server = StreamServer(("127.0.0.1", 0), dies)
server.start()
for base in (HttpUser, FastHttpUser):
    class Chat(base):
        host = f"http://127.0.0.1:{server.server_port}"

    for block in (False, True):
        environment, told, raised = Environment(user_classes=[Chat]), [], "nothing"
        environment.events.request.add_listener(lambda exception, told=told, **_: told.append(exception or "success"))
        client = Chat(environment).client
        try:
            if block:
                with client.post("/v1/chat/completions", json={}, stream=True, catch_response=True) as response:
                    for _ in response.iter_content(1):
                        pass
                    response.success()
            else:
                for _ in client.post("/v1/chat/completions", json={}, stream=True).iter_content(1):
                    pass
        except Exception as error:
            raised = type(error).__name__
        print(f"{base.__name__}, {'with block' if block else 'call alone'}: raised {raised}, requests told: {told}")
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="HttpUser, call alone: raised ChunkedEncodingError, requests told: ['success']
HttpUser, with block: raised ChunkedEncodingError, requests told: []
FastHttpUser, call alone: raised HTTPParseError, requests told: ['success']
FastHttpUser, with block: raised HTTPParseError, requests told: []"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
