"""One answer as bytes on a clock, and what it says: for those who ask what a path did to it, not how quick it was.

`Captured` is what came, whatever it was; `seen` reads it with a dialect. Stamps are ns of one monotonic clock.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import Any, Literal

import msgspec

from tokenswarm.engines import Dialect, NotAnEvent, Usage
from tokenswarm.engines.failure import clean_line, error_message
from tokenswarm.engines.framing import Framer, Oversize, ndjson, sse
from tokenswarm.errors import MALFORMED
from tokenswarm.measure.timeline import Timeline
from tokenswarm.record import Outcome

EVENT_BYTES_MAX = 1 << 20

End = Literal["whole", "broken", "silent", "left", "none"]
"""By HTTP's own framing; the client's patience ended; the client left on purpose; no connection."""


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one request."""

    end: End
    said: str = ""  # why it is not whole, in a sentence
    status: int = 0
    content_type: str = ""
    headers: dict[str, str] = {}
    sent_ns: int = 0
    head_ns: int = 0
    done_ns: int = 0
    reads: tuple[tuple[int, bytes], ...] = ()  # stamp, bytes of the body

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.reads)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a captured answer says, event by event."""

    outcome: Outcome
    sentence: str  # of a failure: what the answer, or HTTP, says of it
    stamps_ns: tuple[int, ...]  # of events with content
    first_event_ns: int
    text: str
    finish: str
    usage: Usage | None
    done: bool  # [DONE], or Ollama's `done`
    ids: tuple[str, ...]
    models: tuple[str, ...]
    keys: frozenset[str]  # of the objects of its events
    packed: bool

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def merged_ratio(self) -> float:
        """Of the events with content: those that share a read with an earlier one."""
        n = len(self.stamps_ns)
        return (n - len(set(self.stamps_ns))) / (n - 1) if n > 1 else 0.0


def seen(captured: Captured, dialect: Dialect) -> Seen:
    """Read the answer as the load's client would."""
    timeline, framer = Timeline(keep_text=True), _framer(dialect)
    ids: dict[str, None] = {}
    models: dict[str, None] = {}
    keys: set[str] = set()
    usage, done, broken = None, False, ""
    good = 200 <= captured.status < 300
    for stamp_ns, payload in _events(captured, framer) if good else ():
        try:
            delta = dialect.decode(payload)
        except NotAnEvent as error:
            broken = broken or str(error)
            continue
        timeline.mark(stamp_ns, delta)
        usage = delta.usage or usage
        done = done or delta.sentinel or (dialect.ends_with_finish and bool(delta.finished))
        for name, found in (("id", ids), ("model", models)):
            if said := _field(payload, keys, name):
                found[said] = None
    outcome, sentence = _judged(captured, timeline, broken, dialect.done_ends)
    record = timeline.finish(Outcome.OK, id="", stage=0, phase="steady", conversation="", turn=0)
    return Seen(
        outcome=outcome,
        sentence=sentence,
        stamps_ns=record.token_stamps_ns,
        first_event_ns=timeline.first_event_ns,
        text=timeline.text(),
        finish=record.finish_reason,
        usage=usage,
        done=done,
        ids=tuple(ids),
        models=tuple(models),
        keys=frozenset(keys),
        packed="content-encoding" in captured.headers,
    )


def _framer(dialect: Dialect) -> Framer:
    return sse(EVENT_BYTES_MAX) if dialect.framing == "sse" else ndjson(EVENT_BYTES_MAX)


def _events(captured: Captured, framer: Framer) -> list[tuple[int, bytes]]:
    packed = captured.headers.get("content-encoding", "") in ("gzip", "x-gzip")
    inflate = zlib.decompressobj(wbits=31) if packed else None
    found: list[tuple[int, bytes]] = []
    with contextlib.suppress(Oversize, zlib.error):
        for stamp_ns, data in captured.reads:
            found += [(stamp_ns, payload) for payload in framer.feed(inflate.decompress(data) if inflate else data)]
        last_ns = captured.reads[-1][0] if captured.reads else 0
        found += [(last_ns, payload) for payload in framer.finish()]
    return found


def _field(payload: bytes, keys: set[str], name: str) -> str:
    try:
        value: Any = msgspec.json.decode(payload)
    except MALFORMED:
        return ""
    if not isinstance(value, dict):
        return ""
    keys.update(value)
    said = value.get(name)
    return said[:200] if isinstance(said, str) else ""


def _judged(captured: Captured, timeline: Timeline, broken: str, done_ends: bool) -> tuple[Outcome, str]:
    """The outcome of the whole, by the strongest word: a status, an error object, the framing, the answer's end."""
    if captured.end == "none":
        return Outcome.CONNECT, captured.said
    if captured.status and not 200 <= captured.status < 300:
        text = error_message(captured.body[:65_536], captured.content_type)
        outcome = Outcome.RATE_LIMITED if captured.status == 429 else Outcome.HTTP_5XX
        return outcome if captured.status >= 429 else Outcome.HTTP_4XX, f"HTTP {captured.status}: {text}"
    outcome, sentence = timeline.judge()
    if done_ends and outcome is Outcome.TRUNCATED and timeline.over_ns and timeline.events:
        outcome, sentence = Outcome.OK, ""
    if outcome is Outcome.ERROR_OBJECT:
        return outcome, sentence
    if captured.end == "silent":
        return Outcome.STALLED, captured.said
    if captured.end != "whole" and not (outcome is Outcome.OK and timeline.over_ns):
        return Outcome.RESET, captured.said
    if broken:
        return Outcome.PROTOCOL, clean_line(broken)
    return outcome, sentence
