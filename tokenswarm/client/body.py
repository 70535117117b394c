"""How the body of an answer is read: as the stream that it is, whatever its content type says, or as a document.

Gateways put streams under other types, and error objects and login pages under a stream's. So the first bytes decide:
`data:` and its like begin an event stream, `{` a line of JSON or an object, `<` a page. What they leave open, the
content type decides.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from typing import Literal

import msgspec

from tokenswarm.client.response import Response, TransportError
from tokenswarm.engines import Dialect
from tokenswarm.engines.failure import clean_line, error_message, error_text
from tokenswarm.engines.framing import BOM, Framer, ndjson, sse
from tokenswarm.errors import MALFORMED
from tokenswarm.record import Outcome

GZIP = 31  # zlib's wbits
ERROR_BODY_BYTES = 65_536  # an error page longer than this is not read to its end for our sake

_OF_WHOLE_ANSWERS = frozenset(("choices", "message", "response", "output", "content"))
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"error:")


class Document:
    """The body of an answer that is no stream, as far as it is needed. A framer without events."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.stray = b""
        self.between = 0  # no events, so no place between two

    def feed(self, data: bytes) -> list[bytes]:
        self.text += data[: ERROR_BODY_BYTES - len(self.text)]
        return []

    def finish(self) -> list[bytes]:
        return []


class Opening:
    """The framer of an answer's first bytes: it calls `settle` with the one that reads the rest, once it knows."""

    def __init__(
        self, dialect: Dialect, response: Response, event_bytes_max: int, settle: Callable[[Framer], None]
    ) -> None:
        self._dialect = dialect
        self._response = response
        self._event_bytes_max = event_bytes_max
        self._settle = settle
        self._held = b""
        self.stray = b""
        self.between = 0

    @property
    def untouched(self) -> bool:
        """Whether not a byte of the body has come."""
        return not self._held

    def feed(self, data: bytes) -> list[bytes]:
        self._held += data
        framer = self._choose(ended=False)
        if framer is None:
            return []
        self._settle(framer)
        return framer.feed(self._held)

    def finish(self) -> list[bytes]:
        framer = self._choose(ended=True) or Document()
        self._settle(framer)
        return [*framer.feed(self._held), *framer.finish()]

    def _choose(self, ended: bool) -> Framer | None:
        if not 200 <= self._response.status < 300:
            return Document()
        kind = begins_as(self._held)
        usual = self._dialect.accepts(self._response.content_type)
        if kind == "events":
            return sse(self._event_bytes_max)
        if kind == "object":
            return self._lines_or_object(ended)
        if kind == "open":
            return self._usual() if ended and usual else None
        return self._usual() if usual and kind != "page" else Document()

    def _lines_or_object(self, ended: bool) -> Framer | None:
        """The first line is whole where lines are; an object over several lines, or alone, is a document."""
        if self._dialect.framing == "sse":
            return Document()
        line, end, _ = self._held.removeprefix(BOM).lstrip().partition(b"\n")
        if not end and not ended:
            return None if len(line) <= self._event_bytes_max else self._usual()
        with contextlib.suppress(*MALFORMED):
            msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            return self._usual()
        return Document() if end else self._usual()

    def _usual(self) -> Framer:
        return (sse if self._dialect.framing == "sse" else ndjson)(self._event_bytes_max)


class Encoding:
    """The content encoding of a body: taken off piece by piece."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._inflate: zlib._Decompress | None = None

    @property
    def cut(self) -> bool:
        """The body has ended inside it."""
        return self._inflate is not None and not self._inflate.eof and self._response.status < 300

    def plain(self, piece: bytes, bytes_max: int = 0) -> bytes:
        """What a piece says, of `bytes_max` at most (0: any). Raises TransportError, unless the status says it all."""
        name = self._response.content_encoding
        try:
            if self._inflate is None:
                if name not in ("gzip", "x-gzip"):
                    sentence = f"the answer has the content encoding {name[:20]!r}; identity was asked"
                    raise TransportError(Outcome.PROTOCOL, sentence, "content encoding")
                self._inflate = zlib.decompressobj(wbits=GZIP)
            try:
                return self._inflated(self._inflate, piece, bytes_max)
            except zlib.error:
                sentence = "the gzip encoding of the answer is broken"
                raise TransportError(Outcome.PROTOCOL, sentence, "gzip") from None
        except TransportError:
            if 200 <= self._response.status < 300:
                raise
            return b""

    def _inflated(self, inflate: zlib._Decompress, piece: bytes, bytes_max: int) -> bytes:
        """Of all members (RFC 1952, 2.2): some servers pack each event by itself. What is none is padding."""
        plain = b""
        while piece and not (inflate.eof and piece[:1] != b"\x1f"):
            if inflate.eof:
                self._inflate = inflate = zlib.decompressobj(wbits=GZIP)
            plain += inflate.decompress(piece, bytes_max)
            piece = inflate.unused_data
            if bytes_max and (inflate.unconsumed_tail or len(plain) > bytes_max):
                raise TransportError(Outcome.OVERSIZE, f"the answer has more than {bytes_max} bytes", "too large")
        return plain


def begins_as(data: bytes) -> Literal["events", "object", "page", "other", "open"]:
    """Tell what a body is by its first bytes; "open" where more of them are needed."""
    head = data.removeprefix(BOM).lstrip()[:8].lower()
    if head[:1] == b"{":
        return "object"
    if head[:1] == b"<":
        return "page"
    if head[:1] == b":" or head.startswith(_FIELDS):
        return "events"
    return "open" if any(field.startswith(head) for field in (*_FIELDS, BOM)) else "other"


def words_of(text: bytes) -> str:
    """Return what a text that is no event says, in one line; "" for JSON, which may be a piece of an answer."""
    text = text.strip()
    return "" if text[:1] in (b"{", b"[", b'"') else clean_line(error_message(text, ""))


def judge_document(document: Document, response: Response, dialect: Dialect) -> tuple[Outcome, str, str]:
    """(outcome, sentence, kind) of a 2xx answer that is no stream: nothing, an error object, a page, a whole answer."""
    body = bytes(document.text)
    if not body.strip():
        return Outcome.EMPTY, f"HTTP {response.status} without a body", Outcome.EMPTY.value
    got, wanted = response.content_type.split(";")[0][:40] or "none", dialect.content_types[0]
    sentence = f"the answer's content type is {got}, not {wanted}"
    if dialect.accepts(response.content_type):
        sentence = f"the answer is no stream of this API, although its content type is {got}"
    with contextlib.suppress(*MALFORMED):
        value = msgspec.json.decode(body)
        if message := error_text(value):
            return Outcome.ERROR_OBJECT, message, "error object"
        if isinstance(value, dict) and not _OF_WHOLE_ANSWERS.isdisjoint(value):
            sentence = f"the answer is one piece of {got}, not a stream: the server ignores `stream: true`"
        return Outcome.PROTOCOL, sentence, "content type"
    words = words_of(body)
    if begins_as(body) == "page":
        sentence = f"the answer is an HTML page (type {got}), not a stream: look at the address, at a proxy or a login"
    return Outcome.PROTOCOL, clean_line(sentence + (f"; it says: {words}" if words else "")), "content type"


def judge_refusal(
    document: Document | None, response: Response, broken: TransportError | None
) -> tuple[Outcome, str, str]:
    """(outcome, sentence, kind) of an answer whose status is none of success. `broken`: how its body broke off."""
    status = response.status
    text = error_message(bytes(document.text if document else b""), response.content_type)
    sentence = f"HTTP {status}" + (f": {text}" if text else "")
    outcome = Outcome.PROTOCOL
    if status == 429:
        outcome = Outcome.RATE_LIMITED
        if response.retry_after:
            sentence += f" (Retry-After: {response.retry_after})"
    elif status >= 500:
        outcome = Outcome.HTTP_5XX
    elif status >= 400:
        outcome = Outcome.HTTP_4XX
    elif status >= 300:
        sentence = f"HTTP {status}: redirects are not followed; give the final address as target"
    if broken is not None:
        sentence = clean_line(f"{sentence}; then {broken.sentence}")
    return outcome, sentence, f"http {status}"
