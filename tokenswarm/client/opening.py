"""Opening a connection: the addresses of a name in turn, TLS, and why it did not come about, each in one sentence."""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
import ssl
from typing import Any

import gevent
from gevent import socket

from tokenswarm import descriptors
from tokenswarm.client.broken import no_hands_shaken
from tokenswarm.client.resolving import resolve
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import NO_DESCRIPTORS, READ_BYTES, Address, Connection, Target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.record import Outcome

SPARE = 16  # descriptors that connections leave to the rest of the process: probes, logs, the way to the master
AVOID_S = 10.0  # an address that failed gets no connection for so long, if the name has others
_OURS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL)  # the fault lies with this machine, not with the address
_TLS_RECORDS = range(0x14, 0x18)  # first byte of what a peer says that speaks TLS


def open_connection(target: Target, timeout_s: float) -> Connection:
    """Connect (each address of the name in turn) and shake hands. Raises TransportError, at the latest in time."""
    if not target.addresses:
        resolve(target)
    began_ns = monotonic_ns()
    failure: OSError | None = None
    trying: Address | None = None
    deadline = gevent.Timeout(timeout_s)
    deadline.start()
    try:
        for trying in target.in_turn(began_ns):
            try:
                connection = _connect(target, trying, began_ns)
            except OSError as error:
                if isinstance(error, ssl.SSLError):
                    raise
                failure = error
                _avoid(target, trying, error)
            else:
                _prefer(target, trying)
                return connection
    except gevent.Timeout as expired:
        if expired is not deadline:
            raise
        _avoid(target, trying)
        sentence = f"no connection to {target.host_header} within {timeout_s:g} s"
        raise TransportError(Outcome.CONNECT, sentence, "connect timeout") from None
    except ssl.SSLError as error:
        raise no_hands_shaken(error, target.host_header) from None
    finally:
        deadline.close()
    if failure is None or failure.errno not in _OURS:
        target.addresses = []  # the name may have moved: look it up again next time
        target.avoided.clear()
    raise _refused(failure, target)


def _connect(target: Target, to: Address, began_ns: int) -> Connection:
    family, kind, protocol, _, address = to
    sock = socket.socket(family, kind, protocol)
    try:
        if sock.fileno() >= descriptors.limit() - SPARE:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock.connect(address)
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)
        tls, bio = _shake_hands(sock, target)
        return Connection(sock, tls, bio, monotonic_ns() - began_ns)
    except BaseException:
        sock.close()
        raise


def _avoid(target: Target, address: Address | None, error: OSError | None = None) -> None:
    if address is not None and len(target.addresses) > 1 and (error is None or error.errno not in _OURS):
        target.avoided[address[4]] = monotonic_ns() + int(AVOID_S * NS_PER_S)


def _prefer(target: Target, address: Address) -> None:
    """Its family answers: from now on it is tried first (a server may listen on one loopback address of two)."""
    if target.addresses and address[0] != target.addresses[0][0]:  # else: another user found them all dead meanwhile
        target.addresses.sort(key=lambda other: other[0] != address[0])


def _refused(error: OSError | None, target: Target) -> TransportError:
    if error is not None and error.errno in (errno.EMFILE, errno.ENFILE):
        return TransportError(Outcome.CONNECT, NO_DESCRIPTORS, "no descriptors")
    if error is not None and error.errno == errno.EADDRNOTAVAIL:
        sentence = "this machine has no local ports left; keep connections pooled"
        return TransportError(Outcome.CONNECT, sentence, "no local ports")
    what = error.strerror if error is not None and error.strerror else str(error or "it has no address")
    return TransportError(Outcome.CONNECT, f"can't connect to {target.host_header}: {what}", type(error).__name__)


def _shake_hands(sock: Any, target: Target) -> tuple[ssl.SSLObject | None, tuple[Any, Any]]:
    if target.tls is None:
        return None, (None, None)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = target.tls.wrap_bio(incoming, outgoing, server_hostname=target.host)
    heard = False
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            data = sock.recv(READ_BYTES)
            if not data:
                sentence = f"{target.host_header} closed the connection during the TLS handshake"
                raise TransportError(Outcome.TLS, sentence, "tls") from None
            if not heard and data[0] not in _TLS_RECORDS:
                raise TransportError(Outcome.TLS, _no_tls(target, data), "tls") from None
            heard = True
            incoming.write(data)
        else:
            sock.sendall(outgoing.read())
            return tls, (incoming, outgoing)


def _no_tls(target: Target, data: bytes) -> str:
    if data.startswith(b"HTTP/"):
        return f"{target.host_header} speaks plain HTTP on this port, no TLS: write http:// instead of https://"
    return f"{target.host_header} does not speak TLS on this port"
