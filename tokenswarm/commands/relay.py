"""`python -m tokenswarm.commands.relay HOST PORT`: bytes to there and back, at once, as a path that does nothing.

A process more in the way has to wait for its core on a busy machine. This one shows what that costs here and now.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys

READ_BYTES = 65_536


class Relay:
    """Pairs of sockets; what comes in at one goes out at the other."""

    def __init__(self, server: socket.socket, upstream: tuple[str, int]) -> None:
        self._server, self._upstream = server, upstream
        self._ready = selectors.DefaultSelector()
        self._ready.register(server, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self._ready.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._server:
                    self._accept()
                elif sock in self._other:  # its pair may have been closed a moment ago
                    self._pass_on(sock)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        try:
            engine = socket.create_connection(self._upstream)
        except OSError:
            client.close()
            return
        for sock, other in ((client, engine), (engine, client)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._other[sock] = other
            self._ready.register(sock, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if data := sock.recv(READ_BYTES):
                self._other[sock].sendall(data)
                return
        for one in (sock, self._other[sock]):
            del self._other[one]
            self._ready.unregister(one)
            one.close()


def main() -> None:
    """Say where it listens, and serve until it is ended."""
    host, port = sys.argv[1], int(sys.argv[2])
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        print(f"relaying on http://127.0.0.1:{server.getsockname()[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            Relay(server, (host, port)).serve()


if __name__ == "__main__":
    main()
