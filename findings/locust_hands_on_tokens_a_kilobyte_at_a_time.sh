#!/usr/bin/env bash
# FastHttpUser's iter_lines, made for streams, hands on no line before a kilobyte of them is there.
#
# locust 2.47.0, geventhttpclient 2.6.1, Python 3.11. A server sends 40 events of 150 bytes, one each 20 ms, in chunks and
# without (as to HTTP/1.0). FastHttpUser's iter_lines, HttpUser's (that of requests) and geventhttpclient's readline read them.
# A good guess is each line as it comes, in all: both users have the method for it, and a socket's read gives what is there.
# Seen: FastHttpUser waits for 1024 bytes, so six or seven events come at once. HttpUser does as guessed with chunks, and
# without them waits for 512 bytes, so three or four. readline, below FastHttpUser, does as guessed.
# Most gaps between tokens are 0 then, the first token comes with the seventh, and an average of the gaps shows nothing of it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check locust==2.47.0 geventhttpclient==2.6.1
cat >"$work/try.py" <<'PY'
from locust import FastHttpUser, HttpUser  # first: it patches the sockets
from locust.env import Environment

import time

import gevent
from gevent.server import StreamServer
from geventhttpclient import HTTPClient

EVENT = b"data: " + b"x" * 142 + b"\n\n"


def stream(connection, _):
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    chunked = b"/chunks" in head
    how = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % how)
    for _ in range(40):
        gevent.sleep(0.02)
        connection.sendall(b"%x\r\n%b\r\n" % (len(EVENT), EVENT) if chunked else EVENT)
    connection.sendall(b"0\r\n\r\n" if chunked else b"")
    connection.close()


def readline(_, path):
    response = HTTPClient("127.0.0.1", server.server_port).get(path)
    return iter(lambda: response.readline(b"\n"), b"")


READERS = {"FastHttpUser.iter_lines": (FastHttpUser, lambda client, path: client.iter_lines(path)),
           "HttpUser.iter_lines": (HttpUser, lambda client, path: client.get(path, stream=True).iter_lines()),
           "geventhttpclient readline": (FastHttpUser, readline)}
server = StreamServer(("127.0.0.1", 0), stream)
server.start()
for name, (base, read) in READERS.items():
    class Chat(base):
        host = f"http://127.0.0.1:{server.server_port}"

    for path in ("/chunks", "/plain"):
        client = Chat(Environment(user_classes=[Chat])).client
        times = [time.monotonic() for line in read(client, path) if line.strip()]
        together = sum(b - a < 0.005 for a, b in zip(times, times[1:]))
        word = "one by one" if together < 5 else "in bunches" if together > 20 else f"{together} with the one before"
        print(f"{name} {path}: {len(times)} events, {word}")
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="FastHttpUser.iter_lines /chunks: 40 events, in bunches
FastHttpUser.iter_lines /plain: 40 events, in bunches
HttpUser.iter_lines /chunks: 40 events, one by one
HttpUser.iter_lines /plain: 40 events, in bunches
geventhttpclient readline /chunks: 40 events, one by one
geventhttpclient readline /plain: 40 events, one by one"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
