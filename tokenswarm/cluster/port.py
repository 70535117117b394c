"""The port between master and workers: sockets with bounds. Locust takes its own from here (`runners.py`)."""

from __future__ import annotations

import socket

from locust.exception import RPCError
from locust.rpc.zmqrpc import BaseSocket, zmq, zmqerr

from tokenswarm.cluster.entrance import cannot_listen

FRAME_BYTES_MAX = 17 * 1024 * 1024
"""A connection that sends more in one frame is closed before it is read. A report may have 16 MiB."""


class Server(BaseSocket):  # type: ignore[misc]  # Locust is untyped for us, see pyproject.toml
    """The master's end. RPCError, in a sentence, where the address can't be had."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(zmq.ROUTER, _ipv4_only(host))
        self.socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        try:
            if port == 0:
                self.port = self.socket.bind_to_random_port(f"tcp://{host}")
            else:
                self.socket.bind(f"tcp://{host}:{port}")
                self.port = port
        except zmqerr.ZMQError as error:
            self.close(linger=0)
            raise RPCError(cannot_listen(host, port, error.errno)) from None


def _ipv4_only(host: str) -> bool:
    """Whether ZeroMQ should leave IPv6 alone. A name without an address may have one later, on a worker. Of an
    interface it takes one address, if it may that of IPv6, and workers are told the other."""
    try:
        name = host.encode("idna")  # not by whoever resolves it: gevent shows what that one raises
        return host != "*" and all(info[0] is socket.AF_INET for info in socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return host in {name for _, name in socket.if_nameindex()}


class Client(BaseSocket):  # type: ignore[misc]  # as above
    """A worker's end."""

    def __init__(self, host: str, port: int, identity: str) -> None:
        super().__init__(zmq.DEALER, _ipv4_only(host))
        self.socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)  # counts for connections made after it
        self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        self.socket.connect(f"tcp://{host}:{port}")
