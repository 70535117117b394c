"""http:// for a port that speaks TLS, or https:// for one that does not: found by speaking the other one, once."""

from __future__ import annotations

import ssl

import msgspec

from tokenswarm.client.opening import open_connection
from tokenswarm.client.page import request
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import Target
from tokenswarm.record import Outcome

PROBE_S = 2.0
_SILENT = (Outcome.CONNECT, Outcome.DNS)  # nobody listens: there is nothing to ask


def mistaken(target: Target, error: TransportError | None = None) -> str:
    """A sentence with the mend where the port speaks the other scheme, else "". `error`: how the first look failed."""
    if error is not None and (error.outcome in _SILENT or error.kind == "certificate"):
        return ""
    if target.tls is not None:
        return _plain(target)
    other = msgspec.structs.replace(target, tls=_any_certificate(), avoided={})
    try:
        open_connection(other, PROBE_S).close()
    except TransportError:
        return ""
    return f"{target.host}:{target.port} speaks TLS: write https:// instead of http://"


def _plain(target: Target) -> str:
    """A port with TLS may answer 400 to a request without it; one without TLS answers a plain GET in some other way."""
    other = msgspec.structs.replace(target, tls=None, avoided={})
    try:
        page = request(other, "GET", "/", {}, timeout_s=PROBE_S)
    except TransportError:
        return ""
    if page.status == 400:
        return ""
    return f"{target.host}:{target.port} speaks plain HTTP, no TLS: write http:// instead of https://"


def _any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
