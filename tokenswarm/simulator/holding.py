"""What proxies do to a stream, done by the engine itself: transports that keep an answer's bytes back.

An answer's truth says when its tokens were written; what holds them comes behind that, as on a real path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

CHUNKED = b"transfer-encoding: chunked\r\n"


class Holding:
    """In place of an answer's transport. `write` gets what was framed, `finish` the end of that framing."""

    def __init__(self, inner: asyncio.Transport | Holding) -> None:
        self.inner = inner
        self.held = bytearray()

    def write(self, data: bytes) -> None:
        self.held += data

    def finish(self, ending: bytes) -> None:
        """The answer is over: let go of the rest."""
        self.held += ending
        self._let_go()

    async def over(self) -> None:
        """Wait until everything has left."""

    def _let_go(self) -> None:
        data, self.held = bytes(self.held), bytearray()
        self._out(data)

    def _out(self, data: bytes) -> None:
        """To who asked, if he is still there."""
        if data and not self.inner.is_closing():
            self.inner.write(data)

    def get_write_buffer_size(self) -> int:
        return self.inner.get_write_buffer_size()

    def get_extra_info(self, name: str) -> Any:
        return self.inner.get_extra_info(name)

    def is_closing(self) -> bool:
        return self.inner.is_closing()

    def abort(self) -> None:
        self.held.clear()
        self.inner.abort()

    def close(self) -> None:
        self._let_go()
        self.inner.close()


class Blocks(Holding):
    """Full blocks of the body leave, each as one chunk, the head with the first. As nginx's buffers."""

    def __init__(self, inner: asyncio.Transport | Holding, size: int, frame: Callable[[bytes], bytes]) -> None:
        super().__init__(inner)
        self._size, self._frame = size, frame
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
            return
        self.held += data
        while len(self.held) >= self._size:
            piece = bytes(self.held[: self._size])
            del self.held[: self._size]
            self._send(self._frame(piece))

    def _send(self, data: bytes) -> None:
        self._out((self._head or b"") + data)
        self._head = b""

    def finish(self, ending: bytes) -> None:
        rest, self.held = bytes(self.held), bytearray()
        self._send((self._frame(rest) if rest else b"") + ending)


class Stored(Holding):
    """Everything leaves at the end, with a head that says how long it is. As lighttpd."""

    def finish(self, _ending: bytes) -> None:
        head, found, body = bytes(self.held).partition(b"\r\n\r\n")
        lines = (head + b"\r\n").replace(CHUNKED, b"") + b"content-length: %d\r\n\r\n" % len(body)
        self.held = bytearray(lines + body if found else b"")
        self._let_go()


class Corked(Holding):
    """What is written waits for `seconds` from the first of it on. As a corked socket, which Linux lets go at 200 ms.

    `once`: and what comes later does not.
    """

    def __init__(self, inner: asyncio.Transport | Holding, seconds: float, *, once: bool = False) -> None:
        super().__init__(inner)
        self._seconds, self._once = seconds, once
        self._timer: asyncio.TimerHandle | None = None
        self._open = asyncio.Event()

    def write(self, data: bytes) -> None:
        if self._once and self._open.is_set():
            self._out(data)
            return
        self.held += data
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._uncork)

    def _uncork(self) -> None:
        self._timer = None
        self._open.set()
        self._let_go()

    def finish(self, ending: bytes) -> None:
        if self._once:
            self.write(ending)
            return
        if self._timer is not None:
            self._timer.cancel()
        super().finish(ending)

    async def over(self) -> None:
        if self._once:
            await self._open.wait()
