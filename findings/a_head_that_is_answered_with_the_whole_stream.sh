#!/usr/bin/env bash
# A HEAD of a route that streams: aiohttp's server sends the whole stream behind the head, and its own client breaks on it.
#
# aiohttp 3.14.5, server and client. `web.get` takes HEAD as well, for which health checks (`wget --spider`, `curl -I`, load
# balancers) ask. A handler that returns `web.Response` is answered by its head alone. A good guess is that a handler that writes
# to a `web.StreamResponse` (server-sent events, NDJSON, a page of metrics) is, too: the framework knows the method.
# Seen: every event of the stream is written behind the head, without chunks, since a HEAD has none. On a kept connection the
# next answer then begins with `data: 0`: aiohttp's own client ends with "Bad status line" in the HEAD or in the request after
# it, which did nothing wrong. A stream that goes on for minutes keeps the probe's connection as long.
# So a handler that streams looks at `request.method`, or its route says `allow_head=False`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5
cat >"$work/try.py" <<'PY'
import asyncio
import sys

import aiohttp
from aiohttp import web


async def stream(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b"data: %d\n\n" % number)
    return response


async def whole(_):
    return web.Response(text="data: 0\n\ndata: 1\n\ndata: 2\n\n", content_type="text/event-stream")


async def body_of_head(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"HEAD {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head.split(b" ")[1].decode(), body.count(b"data: ")


async def twice(port, path):
    async with aiohttp.ClientSession() as client:
        try:
            for ask in (client.head, client.get):
                async with ask(f"http://127.0.0.1:{port}{path}") as answer:
                    await answer.read()
        except aiohttp.ClientResponseError as error:
            print(error, file=sys.stderr)
            return str(error.message).splitlines()[0]
        return "fine"


async def main():
    app = web.Application()
    app.add_routes([web.get("/stream", stream), web.get("/whole", whole)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    print("aiohttp", aiohttp.__version__)
    for path in ("/whole", "/stream"):
        status, events = await body_of_head(port, path)
        print(f"HEAD {path}: {status}, {events} events behind the head; a HEAD, then a GET: {await twice(port, path)}")
    await runner.cleanup()


asyncio.run(main())
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="aiohttp 3.14.5
HEAD /whole: 200, 0 events behind the head; a HEAD, then a GET: fine
HEAD /stream: 200, 3 events behind the head; a HEAD, then a GET: Bad status line:"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
