"""A server that answers with a script: each connection reads one request and plays the steps of the next script.

Steps: bytes (send them), a float (wait so many seconds), CLOSE (FIN), HANG_UP (FIN, then close), RESET (RST),
AGAIN (read the next request), UNREAD (wait for the next request, and leave it unread),
Farewell (send these bytes and the end of the connection in one segment), Broken (these bytes and, in the same segment,
a TLS record that is none).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

CLOSE, HANG_UP, RESET, AGAIN, UNREAD = "close", "hang up", "reset", "again", "unread"
Step = bytes | float | str


class Farewell(bytes):
    """The last bytes, with close_notify (TLS) or FIN in the segment that carries them."""


class Broken(bytes):
    """Bytes behind which a TLS record with a wrong checksum follows in the same segment."""


class TlsSocket:
    """The server's side of TLS over buffers: it decides itself which records share a segment."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._until_done(self._tls.do_handshake)

    def _until_done(self, step: Callable[[], bytes | None]) -> bytes | None:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._sock.recv(65_536)
                if not data:
                    raise OSError("closed") from None
                self._in.write(data)
            else:
                self._flush()
                return result

    def _flush(self, more: bytes = b"") -> None:
        self._sock.sendall(self._out.read() + more)

    def recv(self, size: int) -> bytes:
        return self._until_done(lambda: self._tls.read(size)) or b""

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        if isinstance(data, Farewell):
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        self._flush(b"\x17\x03\x03\x00\x40" + b"x" * 64 if isinstance(data, Broken) else b"")


class RawServer:
    """Listens on 127.0.0.1 (or ::1); `requests` holds what came, `connections` how many there were."""

    def __init__(
        self, scripts: Sequence[Sequence[Step]], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.connections = 0
        self._scripts = list(scripts)
        self._tls = tls
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else Nagle holds small steps back 40 ms
            number = self.connections
            self.connections += 1
            script = self._scripts[min(number, len(self._scripts) - 1)]
            self._open.append(sock)
            threading.Thread(target=self._play, args=(sock, script), daemon=True).start()

    def _play(self, sock: socket.socket, script: Sequence[Step]) -> None:
        with contextlib.suppress(OSError):
            peer = sock if self._tls is None else TlsSocket(sock, self._tls)
            self.requests.append(read_request(peer))
            for step in script:
                if isinstance(step, Farewell):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # the FIN goes with the data
                    peer.sendall(step)
                    sock.close()
                    return
                if isinstance(step, bytes):
                    peer.sendall(step)
                elif isinstance(step, float):
                    time.sleep(step)
                elif step == AGAIN:
                    self.requests.append(read_request(peer))
                elif step == UNREAD:
                    sock.recv(1, socket.MSG_PEEK)
                elif step == RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                    return
                else:
                    if step == HANG_UP:
                        sock.shutdown(socket.SHUT_RDWR)
                    sock.close()
                    return
            with contextlib.suppress(OSError):
                sock.recv(1)  # hold the connection until the client leaves

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.close()


def read_request(sock: socket.socket | TlsSocket) -> bytes:
    """One whole request: the head and content-length bytes of body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65_536)
        if not piece:
            raise OSError("closed")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < wanted:
        body += sock.recv(65_536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def raw_server(
    *scripts: Sequence[Step], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Iterator[RawServer]:
    server = RawServer(scripts, tls, host)
    try:
        yield server
    finally:
        server.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def head(content_type: str = "text/event-stream", *more: str, status: str = "200 OK", chunked: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", *more]
    if chunked:
        lines.append("transfer-encoding: chunked")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def content(text: str, finish: str | None = None) -> bytes:
    """One event of an OpenAI chat stream."""
    reason = "null" if finish is None else f'"{finish}"'
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}\n\n' % (
        text.encode(),
        reason.encode(),
    )


def usage(prompt: int, completion: int) -> bytes:
    return b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\n' % (
        prompt,
        completion,
        prompt + completion,
    )


DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"
