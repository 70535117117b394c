"""Ends without a word: how Ollama leaves an answer whose error it hides, told from the last bytes of the stream.

Whoever speaks with Ollama keeps these bytes: of every dialect of its kind, and where a stream of OpenAI's API bears its
fingerprint. A clean end of the body proves nothing there, and no proxy is to blame for it.
"""

from __future__ import annotations

import contextlib

from tokenswarm.client.reading import TAIL_BYTES
from tokenswarm.engines import Dialect, NotAnEvent
from tokenswarm.engines.framing import Oversize, ndjson, sse
from tokenswarm.measure.timeline import Timeline

EQUAL_MAX = 30  # it ends an answer after more pieces than this that are all the same
_FINGERPRINT = b'"fp_ollama"'


def may_come(dialect: Dialect, first: bytes = b"") -> bool:
    """Whether a stream that begins so is Ollama's."""
    return dialect.kind == "ollama" or _FINGERPRINT in first


def sentence(dialect: Dialect, tail: bytes | None, timeline: Timeline) -> str:
    """Why an answer ended without its end; "" where nothing tells. `tail`: its last bytes, perhaps cut in front."""
    events = timeline.events
    if timeline.hides_error:
        return f"the server ended the answer and hid an error, after {events} content events: its last names no model"
    if tail is None:
        return ""
    pieces = _pieces(dialect, tail)
    if events == 1 and len(pieces) == 1:
        pieces = pieces[0].split()  # the whole answer in one event: `stream: false`
    lacking = f"the server ended the answer without {dialect.end}, after {events} content events"
    if len(pieces) > EQUAL_MAX and len(set(pieces[-EQUAL_MAX - 1 :])) == 1:
        return f"{lacking}: more than {EQUAL_MAX} equal pieces in a row, where Ollama stops without a word"
    return f"{lacking}, and hid why: so Ollama ends when its engine fails"


def _pieces(dialect: Dialect, tail: bytes) -> list[str]:
    framer = (sse if dialect.framing == "sse" else ndjson)(TAIL_BYTES)
    found: list[str] = []
    with contextlib.suppress(Oversize):
        for event in [*framer.feed(tail), *framer.finish()]:
            with contextlib.suppress(NotAnEvent):  # the first may be cut
                delta = dialect.decode(event)
                if delta.content or delta.reasoning:
                    found.append(delta.content or delta.reasoning)
    return found
