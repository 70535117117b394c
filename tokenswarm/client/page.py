"""One small request and its whole answer, over the same connections as the load: model lists, metrics pages, pushes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import gevent
import msgspec
from gevent.event import Event

from tokenswarm.client.body import Encoding
from tokenswarm.client.head import request_head
from tokenswarm.client.opening import open_connection
from tokenswarm.client.response import Response, TransportError
from tokenswarm.client.transport import PAUSE_BYTES, Target
from tokenswarm.record import Outcome

HIT = re.compile(r"(?:^|[\s,;_])hit(?:$|[\s,;])", re.IGNORECASE)
"""What caches say in `X-Cache` (Squid, CDNs), `Cache-Status` (RFC 9211) and others' like them: HIT, TCP_HIT, c; hit."""


class Page(msgspec.Struct, frozen=True):
    status: int
    content_type: str
    body: bytes
    location: str = ""  # of a redirect
    framed: bool = True  # content-length or chunks say that the body is whole; else only the close does
    cached: bool = False  # a cache on the path says that it had it already, or since when (RFC 9111, 5.1)


class _Answer(Response):
    """A response that keeps where a redirect points, and what caches say. The load's own has no use for either."""

    __slots__ = ("cached", "location")

    def __init__(self) -> None:
        super().__init__()
        self.location = ""
        self.cached = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"location":
            self.location = value.decode("latin-1")[:2000]
        self.cached = self.cached or _is_kept(name.lower().decode("latin-1"), value.decode("latin-1").strip())
        super().on_header(name, value)


def _is_kept(name: str, value: str) -> bool:
    """Whether a header says that a cache had the answer. Varnish names two requests then: this one, and the first.
    Squid's X-Cache-Lookup says that there was a page, though it may have been too old and fetched anew."""
    if name == "age":
        return value.isdecimal() and int(value) > 0
    if name == "x-varnish":
        return len(value.split()) > 1
    return "cache" in name and name != "x-cache-lookup" and HIT.search(value) is not None


def request(
    target: Target, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, timeout_s: float
) -> Page:
    """The answer, whole. Raises TransportError: after `timeout_s` at the latest, or for more than 4 MiB."""
    lines = {"connection": "close", **headers}
    if method == "POST":
        lines["content-length"] = str(len(body))
    head = request_head(target, method, path, lines)
    late = TransportError(Outcome.TIMEOUT, f"no answer within {timeout_s:g} s", "timeout")
    response, done = _Answer(), Event()
    with gevent.Timeout(timeout_s, late):
        connection = open_connection(target, timeout_s)
        try:
            connection.send(head + b"\r\n" + body, timeout_s)
            connection.receive(response, done.set, done.set)  # `full`: more than anybody asks for here
            done.wait()
        finally:
            connection.close()
    if response.error is not None:
        raise response.error
    if not response.complete:
        raise TransportError(Outcome.OVERSIZE, f"the answer has more than {PAUSE_BYTES >> 20} MiB", "too large")
    body = b"".join(response.drain()[1])
    if response.content_encoding:  # `engine.headers` may ask for it, and some servers don't ask
        encoding = Encoding(response)
        body = encoding.plain(body, PAUSE_BYTES)
        if encoding.cut:
            raise TransportError(Outcome.RESET, "the gzip encoding of the answer has no end", "gzip")
    return Page(response.status, response.content_type, body, response.location, response.framed, response.cached)
