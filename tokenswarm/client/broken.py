"""What a call that failed means for the request, in a sentence: the kernel's words, TLS's, or a bug of ours."""

from __future__ import annotations

import fcntl
import re
import socket
import ssl
import termios
import traceback
from pathlib import PurePath
from typing import Any

import gevent

from tokenswarm.client.response import TransportError
from tokenswarm.record import Outcome

WANTS_CERTIFICATE = "the server wants a client certificate, and tokenswarm has none to show"
CROSSED_NS = 1_000_000_000  # from a request to the reset of a server that closed without having read it, at most
LINGER_NS = 100_000_000  # so soon a server can have ended the stream before it read, and thrown away what came then
RESET_FOLLOWS_S = 0.02  # behind the end of a stream, where the server closed with a request unread
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}[ -~]{0,60})")
_MENDED_BY_CA = frozenset({2, 18, 19, 20, 21})  # X509_V_ERR_*: an issuer, or the certificate itself, is not known here


def client_bug(error: Exception) -> TransportError:
    """What a request fails of where it is our fault; with the place, since a traceback a request would be a flood."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{PurePath(place.filename).name}:{place.lineno}"
    sentence = f"a bug of this client, please report it: {type(error).__name__} at {where}: {error}"
    return TransportError(Outcome.PROTOCOL, sentence[:200], "client bug")


def broken(error: OSError, doing: str, said: str = "") -> TransportError:
    """What a failed call to the kernel means for the request. `said`: what the server told of it."""
    if isinstance(error, TimeoutError):
        return TransportError(Outcome.TIMEOUT, f"time is up while {doing}", "send timeout")
    sentence = said or f"the connection broke while {doing}: {error.strerror or error}"
    return TransportError(Outcome.RESET, sentence, type(error).__name__)


def crossed(sock: Any, kind: str, since_ns: int) -> bool:
    """Whether a kept connection that died without a byte of the answer did so before its server read the request.

    It closed between two answers, and the request was on its way: then the kernel of the server acknowledges not all
    of it, or resets the connection with the request unread. One that has read it and hangs up ends the stream and
    resets nothing: that is an answer that failed. So does one that lingers, as llama.cpp and nginx do: it ends the
    stream, then reads and drops what was on its way; that it ended at once tells. `kind`: of its TransportError;
    `since_ns`: since it was sent.
    """
    try:
        if any(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))):
            return True
    except OSError:
        return True  # no Linux: nobody knows
    if kind == "closed early" and since_ns >= LINGER_NS:
        gevent.sleep(RESET_FOLLOWS_S)
        return since_ns < CROSSED_NS and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    return since_ns < CROSSED_NS and kind != "tls read"


def refused_early(answer: bytes) -> str:
    """What a server said that hung up before it had the whole request; "" where it is no answer."""
    status = _STATUS.match(answer)
    return f"the server hung up inside the request; it says: HTTP {status[1].decode()}" if status else ""


def over_tls(error: ssl.SSLError) -> str:
    """Why TLS broke after the hand-shake, at whose end the server of TLS 1.3 has not yet seen the client's part."""
    if "CERTIFICATE_REQUIRED" in (error.reason or ""):
        return WANTS_CERTIFICATE
    return f"TLS broke while reading the answer: {error.reason or error}"


def no_hands_shaken(error: ssl.SSLError, server: str) -> TransportError:
    """Why there is no connection over TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        mend = "; if it should be, name its CA: --set tls.ca_file=FILE" if error.verify_code in _MENDED_BY_CA else ""
        sentence = f"the certificate of {server} is not trusted: {error.verify_message}{mend}"
        return TransportError(Outcome.TLS, sentence, "certificate")
    reason = (error.reason or "the peer speaks no TLS").replace("_", " ").lower()
    if reason.endswith("alert handshake failure"):
        reason += f" (no cipher in common, or {WANTS_CERTIFICATE})"
    return TransportError(Outcome.TLS, f"TLS with {server} failed: {reason}", "tls")
