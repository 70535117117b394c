"""What the events of a stream look like, so that most of them need no parser: bytes that stand still, and slots.

A shape is learnt from one content event that the dialect has decoded, and proven: with other words in its slots the
dialect must find the same event with other words. So an event that has the same bytes around its slots, and JSON
strings (or whole numbers) in them, says the same but for its words; all others are decoded as ever. Which fields beside
the words may be slots, the dialect says: those that vary and that its decoder does not know.
"""

from __future__ import annotations

import re

import msgspec

from tokenswarm.engines import Delta, Dialect, NotAnEvent
from tokenswarm.engines.model_names import model_of
from tokenswarm.errors import MALFORMED

SHAPES_MAX = 64  # of one client; a server whose every event has another one is decoded event by event
TRIES_MAX = 4  # strings of an event that are its words
SEGMENT_BYTES_MAX = 65_535
SLOTS_MAX = 16

_OTHER_TEXT = "other words \u00e9"
_OTHER = {b"t": _OTHER_TEXT.encode(), b"s": b"another", b"d": b"1234567890"}
_STRING = re.compile(rb'"((?:[^"\\\x00-\x1f]|\\.)*)"')
_NUMBER = re.compile(rb"(?:0|[1-9][0-9]*)(?=[,}])")

_FRONT = re.compile(rb"(?:event: [\w.]{1,60}\n)?data: ?")

Slot = tuple[int, int, bytes]
"""(from, to, kind) in the event; kinds as in _reader.c."""


class Shape(msgspec.Struct, frozen=True):
    pattern: bytes  # as _reader.c wants it
    breaks: int
    like: Delta  # what its events say, but for the words
    example: bytes
    keeps_tail: bool  # its words are gone, but the last bytes of such a stream are looked at
    model: str  # that its events name; "": none


class Shapes:
    """What one client has learnt of its server."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        names = b"|".join(re.escape(name.encode()) for name in dialect.unread)
        self._unread = re.compile(rb'"(?:%s)"[ ]?:[ ]?' % names) if names else None
        self._known: dict[bytes, Shape] = {}
        self.newest: Shape | None = None

    def learn(self, piece: bytes, event: bytes, delta: Delta, breaks: int, keeps_tail: bool) -> Shape | None:
        """The shape of an event that was decoded to `delta` and that came in `piece`; None where it has none."""
        text = delta.content or delta.reasoning
        if (
            not text
            or delta != Delta(delta.content, delta.reasoning, delta.tool)
            or (delta.content and delta.reasoning)
        ):
            return None
        front = _front(piece, event, breaks)
        if front is None or len(self._known) >= SHAPES_MAX:
            return None
        unread = self._slots(event)
        for slot in _places(event, text):
            slots = sorted([slot, *(other for other in unread if other[1] < slot[0] or other[0] > slot[1])])
            if self._proven(event, slots, delta):
                pattern = _pattern(front, event, slots, breaks)
                if pattern is None:
                    return None
                example = front + event + b"\n" * breaks
                fresh = Shape(pattern, breaks, delta, example, keeps_tail, model_of(event))
                shape = self._known.setdefault(pattern, fresh)
                self.newest = shape
                return shape
        return None

    def _slots(self, event: bytes) -> list[Slot]:
        """The values of fields that nobody reads."""
        found: list[Slot] = []
        for field in self._unread.finditer(event) if self._unread else ():
            if string := _STRING.match(event, field.end()):
                found.append((*string.span(1), b"s"))
            elif number := _NUMBER.match(event, field.end()):
                found.append((*number.span(), b"d"))
        return found

    def _proven(self, event: bytes, slots: list[Slot], delta: Delta) -> bool:
        other, at = bytearray(), 0
        for begin, end, kind in slots:
            other += event[at:begin] + _OTHER[kind]
            at = end
        other += event[at:]
        name = "content" if delta.content else "reasoning"
        try:
            return self._dialect.decode(bytes(other)) == msgspec.structs.replace(delta, **{name: _OTHER_TEXT})
        except NotAnEvent:
            return False


def _front(piece: bytes, event: bytes, breaks: int) -> bytes | None:
    """What stands before the payload, from the blank line on; None where it is not what servers usually write."""
    at = piece.find(event + b"\n" * breaks)
    if breaks == 1 or at < 0:
        return b"" if at >= 0 else None
    front = piece[:at].rpartition(b"\n\n")[2]
    return front if _FRONT.fullmatch(front) else None


def _places(event: bytes, text: str) -> list[Slot]:
    """Where the text may stand."""
    found: list[Slot] = []
    for string in _STRING.finditer(event):
        try:
            value = msgspec.json.decode(string[0])
        except MALFORMED:
            continue
        if value == text:
            found.append((*string.span(1), b"t"))
    return found[:TRIES_MAX]


def _pattern(front: bytes, event: bytes, slots: list[Slot], breaks: int) -> bytes | None:
    kinds = [b"=", *(kind for _, _, kind in slots)]
    edges = [0, *(edge for begin, end, _ in slots for edge in (begin, end)), len(event)]
    segments = [event[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    segments[0] = front + segments[0]
    segments[-1] += b"\n" * breaks
    if len(slots) > SLOTS_MAX or max(map(len, segments)) > SEGMENT_BYTES_MAX or b"\r" in event or b"\n" in event:
        return None
    return b"".join(
        kind + len(segment).to_bytes(2, "little") + segment for kind, segment in zip(kinds, segments, strict=True)
    )
