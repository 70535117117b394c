"""Scrapers good and rude against one exporter, as a process of its own: `python tests/rude_scrapers.py PORT SECONDS`.

50 good ones scrape once a second; 20 ask and never read; 20 connect and never ask. Who is cut comes back. At the end a
line of JSON tells what became of the good ones. It ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time

GOOD, STUCK, HALF_OPEN = 50, 20, 20
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: identity\r\n\r\n"


async def good(port: int, until: float, number: int, found: dict[str, int]) -> None:
    await asyncio.sleep(number / GOOD)  # scrapers are spread over their interval
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(REQUEST)
                page = await reader.read(-1)
                writer.close()
        except (OSError, TimeoutError):
            page = b""
        found["ok" if page.startswith(b"HTTP/1.1 200") and page.endswith(b"\n") else "failed"] += 1
        await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))


async def rude(port: int, until: float, said: bytes) -> None:
    """A small window, so that the exporter can't get rid of its page."""
    loop = asyncio.get_running_loop()
    while time.monotonic() < until:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, said)
            await asyncio.sleep(min(3.0, max(0.0, until - time.monotonic())))


async def main(port: int, seconds: float) -> None:
    found = {"ok": 0, "failed": 0}
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for number in range(GOOD):
            tasks.create_task(good(port, until, number, found))
        for _ in range(STUCK):
            tasks.create_task(rude(port, until, REQUEST))
        for _ in range(HALF_OPEN):
            tasks.create_task(rude(port, until, b""))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
