"""The port between master and workers: sockets with bounds. Locust takes its own from here (`runners.py`)."""

from __future__ import annotations

import socket

import gevent
from locust.exception import RPCError
from locust.rpc.zmqrpc import BaseSocket, zmq, zmqerr

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.entrance import cannot_listen, taken

FRAME_BYTES_MAX = 17 * 1024 * 1024
"""A connection that sends more in one frame is closed before it is read. A report may have 16 MiB."""

ANSWER_S, LOOK_S = 1.0, 0.25  # for one address of a name to accept a connection; between two looks at all of them


class Server(BaseSocket):  # type: ignore[misc]  # Locust is untyped for us, see pyproject.toml
    """The master's end. RPCError, in a sentence, where the address can't be had."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(zmq.ROUTER, _ipv4_only(host))
        self.socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        if port == 0:
            self.port = self.socket.bind_to_random_port(f"tcp://{host}")
            return
        self.port, failures, places = port, [], _places(host)
        for place in places:
            try:
                self.socket.bind(f"tcp://{place}:{port}")
            except zmqerr.ZMQError as error:
                failures.append(error.errno)
        if taken(failures, places):
            self.close(linger=0)
            raise RPCError(cannot_listen(host, port, failures))


def _addresses(host: str) -> list[str]:
    """Those of a name; none of an interface, of what is everywhere, and of a name that has none yet."""
    try:
        name = host.strip("[]").encode("idna")  # not by whoever resolves it: gevent shows what that one raises
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM) if host != "*" else []
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _ipv4_only(host: str) -> bool:
    """Whether ZeroMQ should leave IPv6 alone. A name without an address may have one later, on a worker. Of an
    interface it takes one address, if it may that of IPv6, and workers are told the other."""
    if found := _addresses(host):
        return all(":" not in each for each in found)
    return host in {name for _, name in socket.if_nameindex()}


def _places(host: str) -> list[str]:
    """Each address of a name, as ZeroMQ writes it, which takes one of them: if it may, that of IPv6."""
    found = _addresses(host)
    return [f"[{each}]" if ":" in each else each for each in found] if len(found) > 1 else [host]


class Client(BaseSocket):  # type: ignore[misc]  # as above
    """A worker's end. It says nothing before `connect`."""

    def __init__(self, host: str, port: int, identity: str) -> None:
        super().__init__(zmq.DEALER, _ipv4_only(host))
        self.socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)  # counts for connections made after it
        self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._host, self._port, self._connected = host, port, False

    def connect(self, wait_s: float) -> bool:
        """Connect, of a name with several addresses to one that listens. False: none did for `wait_s`."""
        by_ns = monotonic_ns() + int(wait_s * NS_PER_S)
        while not self._connected:
            places = _places(self._host)
            place = places[0] if len(places) == 1 else next((p for p in places if _listens(p, self._port)), None)
            if place is not None:
                self.socket.connect(f"tcp://{place}:{self._port}")
                self._connected = True
            elif monotonic_ns() > by_ns:
                return False
            else:
                gevent.sleep(LOOK_S)
        return True


def _listens(place: str, port: int) -> bool:
    try:
        socket.create_connection((place.strip("[]"), port), ANSWER_S).close()
    except OSError:
        return False
    return True
