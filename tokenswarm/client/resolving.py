"""The addresses of a target's name."""

from __future__ import annotations

import _socket
import contextlib
import errno
import socket as stdlib_socket

from gevent import socket

from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import NO_DESCRIPTORS, Target
from tokenswarm.record import Outcome


def resolve(target: Target) -> None:
    """Look the name up once, outside of every measured time. Raises TransportError (DNS, or CONNECT)."""
    with contextlib.suppress(OSError, ValueError):  # an address is no name: no thread has to wait for its answer
        host, flag = target.host.encode("ascii"), stdlib_socket.AI_NUMERICHOST  # bytes: text loads the tables of IDNA
        target.addresses = [*_socket.getaddrinfo(host, target.port, 0, stdlib_socket.SOCK_STREAM, 0, flag)]
        return
    try:
        target.addresses = socket.getaddrinfo(target.host, target.port, 0, stdlib_socket.SOCK_STREAM)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TransportError(Outcome.CONNECT, NO_DESCRIPTORS, "no descriptors") from None
        sentence = f"the host name {target.host} has no address ({error.strerror or error})"
        raise TransportError(Outcome.DNS, sentence, "dns") from None
