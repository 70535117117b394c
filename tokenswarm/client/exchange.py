"""One answer from its first byte to its outcome: the only place where sockets meet the pure core.

The connection fills the response; `Exchange` frames and decodes it in slices, keeps the time-outs, and concludes what
the answer was: (outcome, sentence, kind). Who sends the request and waits: sending.py.
"""

from __future__ import annotations

import contextlib
from array import array
from typing import Protocol

from gevent.hub import Waiter, get_hub

from tokenswarm.client import silent_end
from tokenswarm.client.body import Document, Encoding, Opening, judge_document, judge_refusal, words_of
from tokenswarm.client.decoding import Decoder
from tokenswarm.client.native import NativeReader
from tokenswarm.client.reading import NOTHING, Pieces, PythonReading, Reading, Reads
from tokenswarm.client.response import Response, TransportError
from tokenswarm.client.shape import Shape, Shapes
from tokenswarm.client.transport import Connection
from tokenswarm.clock import NS_PER_S
from tokenswarm.engines import Delta, Dialect, NotAnEvent
from tokenswarm.engines.failure import clean_line
from tokenswarm.engines.framing import Framer, Oversize, ndjson
from tokenswarm.engines.model_names import model_of, name_field, then
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.timeline import Timeline
from tokenswarm.profile.phases import Timeouts
from tokenswarm.record import OK, Outcome

NAMELESS_MAX = 4  # events without a model, until nobody looks for one any more
HUNG_UP = (Outcome.RESET, Outcome.TIMEOUT)  # ways to end; a refusal is one, however its body ends
LEFT_OPEN_S = 1.0  # after the protocol's own end: what the end of the body may take before we leave without it
MADE_UP = (
    "[DONE] without a finish reason, after {} content events: a gateway ended it (see its log); where the server never "
    "tells one: `engine.done_ends: true`"
)
NO_BODY = (
    "HTTP {}, and the connection closed without a byte: a gateway that says so before it asks the engine hides the "
    "engine's status; see the engine's counters, and both logs"
)


class Sender(Protocol):
    """What an exchange needs to know of the client that it belongs to."""

    dialect: Dialect
    timeouts: Timeouts
    recorder: Recorder
    native: NativeReader | None
    shapes: Shapes | None
    event_bytes_max: int


class Exchange:
    """One answer while it arrives: reads wait in `reading`, `decode` moves them into the timeline in slices."""

    __slots__ = (
        "_decoder",
        "_dialect",
        "_encoding",
        "_framer",
        "_met",
        "_named",
        "_next_piece",
        "_next_read",
        "_pieces",
        "_reads",
        "_recorder",
        "_seen",
        "_shapes",
        "_tail_matters",
        "_timeouts",
        "_unnamed",
        "_waiter",
        "_words",
        "due_ns",
        "ended",
        "failure",
        "left_ns",
        "queued",
        "reading",
        "response",
        "timeline",
    )

    def __init__(self, client: Sender, connection: Connection, timeline: Timeline) -> None:
        self._dialect = client.dialect
        self._timeouts = client.timeouts
        self._recorder = client.recorder
        self._words = ""  # what the server wrote where an event was due
        self._tail_matters = False  # known to be a stream that may end without a word; an event tells, as a whole
        self._reads: Reads
        self._pieces: Pieces
        self._reads, self._pieces = NOTHING
        self._next_read = self._next_piece = 0
        self._waiter = Waiter(get_hub())
        self.response = Response()
        self._encoding: Encoding | None = None  # of a body that has one
        self._unnamed = NAMELESS_MAX  # events that may yet name the model
        self._named = b""  # the field that does, as long as none names another
        self._met: Shape | None = None  # the newest shape of events of this answer
        self._shapes = client.shapes if timeline.plain else None
        self._seen: tuple[bytes, bytes, Delta] | None = None  # the newest event that was decoded, and its piece
        self.reading: Reading
        if client.native is not None and not connection.encrypted:
            expected = self._shapes.newest if self._shapes is not None else None
            self.reading = client.native.reading(connection, self.response, client.event_bytes_max, expected)
        else:
            self.reading = PythonReading(connection, self.response, client.recorder.instrument)
        self._framer: Framer = Opening(client.dialect, self.response, client.event_bytes_max, self._settle)
        self.timeline = timeline
        self.failure: TransportError | None = None
        self.left_ns = 0  # the end of an answer that was whole although its body had no end
        self.ended = False
        self.queued = False
        self.due_ns = 0

    def start(self, decoder: Decoder) -> None:
        """Read from now on; `decoder` decodes what comes."""
        self._decoder = decoder
        self.reading.start(self._on_end, self._on_full)

    def _on_end(self) -> None:
        self.ended = True
        self._decoder.queue(self)

    def _on_full(self) -> None:
        self._decoder.queue(self)

    def wait(self) -> None:
        """Block this greenlet until the answer has ended and is decoded."""
        self._waiter.get()

    def wake(self) -> None:
        self._waiter.switch(None)

    def fail(self, outcome: Outcome, sentence: str, kind: str) -> None:
        """End the stream from our side, unless it has ended by itself."""
        if not self.ended:
            self._spoil(outcome, sentence, kind)

    def _spoil(self, outcome: Outcome, sentence: str, kind: str) -> None:
        """What arrived can't be an answer, whether or not the body has ended meanwhile."""
        if self.failure is None:
            self.failure = TransportError(outcome, sentence, kind)
        self.ended = True
        self.reading.stop()

    def check_time(self, now_ns: int, rest_ns: int = 0) -> None:
        """Time-outs count tokens, not bytes: pings don't reset them. Call it when nothing is left to decode.

        Until `due_ns` none can be over, whatever comes; `rest_ns`: how long to leave it alone at most, where what waits
        to be decoded are stamps.
        """
        if self.ended:
            return
        limits, sent_ns, token_ns = self._timeouts, self.timeline.sent_ns, self.timeline.last_token_ns
        over_ns = self._over_ns
        quiet_ns = token_ns + limits.idle_token * NS_PER_S if token_ns else sent_ns + limits.first_token * NS_PER_S
        up_ns = min(quiet_ns, sent_ns + limits.total * NS_PER_S)
        if not over_ns and now_ns <= up_ns:
            self.due_ns = int(min(now_ns + rest_ns, up_ns)) if self.reading.splitting else now_ns
            return
        self.due_ns = now_ns
        if over_ns and now_ns - over_ns > LEFT_OPEN_S * NS_PER_S:
            self._leave(over_ns)
        elif now_ns - sent_ns > limits.total * NS_PER_S:
            self._give_up(Outcome.TIMEOUT, f"no end of the answer within {limits.total:g} s", "total timeout")
        elif not token_ns and now_ns - sent_ns > limits.first_token * NS_PER_S:
            self._give_up(Outcome.TIMEOUT, f"no token within {limits.first_token:g} s", "first token timeout")
        elif token_ns and now_ns - token_ns > limits.idle_token * NS_PER_S:
            self._give_up(Outcome.STALLED, f"no further token for {limits.idle_token:g} s", "idle timeout")

    @property
    def _over_ns(self) -> int:
        """When the protocol's own end came ([DONE], Ollama's `done`), whatever becomes of the body; 0: not yet."""
        timeline = self.timeline
        if self._dialect.ends_with_finish and timeline.complete:
            return timeline.last_event_ns
        return timeline.over_ns

    def _give_up(self, outcome: Outcome, sentence: str, kind: str) -> None:
        """Time is up: a failure, unless all choices have ended and only what comes behind them is missing."""
        self._flush(whole=True)
        if self.timeline.complete:
            self._leave(self.timeline.last_event_ns)
        else:
            self.fail(outcome, sentence, kind)

    def _leave(self, over_ns: int) -> None:
        """Go on without the end of the body. The connection can't be used again."""
        self.left_ns = over_ns
        self.ended = True
        self.reading.stop()

    def decode(self, reads_max: int) -> bool:
        """Move up to `reads_max` reads into the timeline. True when nothing is left to decode now."""
        timeline, fresh = self.timeline, self._next_read >= len(self._reads)
        if fresh:
            self._reads, self._pieces = self.reading.drain()
            self._next_read = self._next_piece = 0
            timeline.reads, timeline.rx_lag_ns_max = self.reading.reads, self.reading.lag_ns_max
        events_before = timeline.events
        end = min(self._next_read + reads_max, len(self._reads))
        for recv_ns, _, upto in self._reads[self._next_read : end]:
            for piece in self._pieces[self._next_piece : upto]:
                if self.failure is None:
                    self._take(piece, recv_ns)
            self._next_piece = upto
        if self.reading.tail is not None and not self._tail_matters:
            self._look_at_tail(timeline.events > 0)
        self._next_read = end
        if timeline.events != events_before:
            if not events_before:
                self._recorder.first_token()
            self._recorder.live_tokens(timeline.events - events_before)
        if end < len(self._reads):
            return False
        self._reads, self._pieces, self._next_read, self._next_piece = *NOTHING, 0, 0
        if fresh and self.reading.can_split:
            self._teach()
        return fresh  # else more may have come while it was decoded in slices

    def _teach(self) -> None:
        """Tell the reader what the events of this stream look like, once it is known and where it makes sense."""
        if self._seen is None and self.reading.splitting:
            return
        shapes, seen, breaks = self._shapes, self._seen, self._framer.between
        if shapes is None or not breaks or self.ended or self.response.content_encoding:
            return
        self._seen = None
        shape = (
            (shapes.learn(*seen, breaks, self._tail_matters) if seen is not None else None)
            or self.reading.shape
            or shapes.newest
        )
        known = self.reading.splitting and shape is self.reading.shape
        if shape is not None and not known and shape.breaks == breaks:
            self.reading.split(shape)

    def _settle(self, framer: Framer) -> None:
        self._framer = framer

    def _look_at_tail(self, enough: bool) -> None:
        """Does it matter? `enough`: what came holds an event, or the answer is over."""
        reading = self.reading
        if silent_end.may_come(self._dialect, reading.tail or b""):
            self._tail_matters = True
        elif enough:
            reading.tail = None

    def _take(self, piece: bytes | array[int], recv_ns: int) -> None:
        # The dense path: framing, JSON, mark. No allocation that outlives the event but the stamp.
        if piece.__class__ is not bytes:
            shape = self.reading.shape
            assert shape is not None
            if not self._framer.between:  # nothing came before them
                self._framer.feed(shape.example)
            if shape is not self._met:
                self._meet(shape)
            self.timeline.extend(piece, shape.like)  # type: ignore[arg-type]  # a class is compared faster
            return
        if not len(piece) & 4095:
            self.timeline.blocks += 1  # nobody writes an event of just that length: a block buffer does
        if self.response.content_encoding:
            piece = self._plain(piece)
        delta = None
        try:
            decode, mark = self._dialect.decode, self.timeline.mark
            events = self._framer.feed(piece)
            if self._unnamed:
                self._name(events)
            for event in events:
                delta = decode(event)
                mark(recv_ns, delta)
                if self._named not in event and b'"model"' in event and (delta.content or delta.reasoning):
                    self._call_also(model_of(event))
        except Oversize as error:
            with contextlib.suppress(NotAnEvent):
                for event in error.events:
                    mark(recv_ns, decode(event))
            self._spoil(Outcome.OVERSIZE, str(error), "oversize")
        except NotAnEvent as error:
            self._words = words_of(event)
            self._framer = ndjson(0)  # what stands behind it says nothing: how much of it came is chance
            self._spoil(Outcome.PROTOCOL, str(error), "not an event")
        if delta is not None and (delta.content or delta.reasoning):
            self._seen = piece, event, delta

    def _name(self, events: list[bytes]) -> None:
        """Take the model from the first events: some dialects name it once, and some gateways send others before."""
        for event in events[: self._unnamed]:
            self._unnamed -= 1
            if name := model_of(event):
                self._call(name, event)
                return

    def _meet(self, shape: Shape) -> None:
        """Events of a shape that none had before, here: the reader may know it from another answer."""
        self._met = shape
        if self._unnamed:
            self._call(shape.model, shape.example)
        elif self._named and shape.model != self.timeline.model:
            self._call_also(shape.model)

    def _call(self, name: str, event: bytes) -> None:
        self.timeline.model, self._unnamed, self._named = name, 0, name_field(event)

    def _call_also(self, name: str) -> None:
        """Words of another model in the same answer: a gateway fell back, and went on with it."""
        first = self.timeline.model
        if name and then(first, name) != first:
            self.timeline.model, self._named = then(first, name), b""

    def _plain(self, piece: bytes) -> bytes:
        if self._encoding is None:
            self._encoding = Encoding(self.response)
        try:
            return self._encoding.plain(piece)
        except TransportError as error:
            self._spoil(error.outcome, error.sentence, error.kind)
            return b""

    def conclude(self) -> tuple[Outcome, str, str]:
        """(outcome, sentence, kind) of an answer that has ended and is decoded."""
        response = self.response
        untouched = isinstance(self._framer, Opening) and self._framer.untouched
        self._finish_stream()
        broken = response.error
        if broken is not None and broken.outcome is Outcome.RESET and self.timeline.complete and self._over_ns:
            self.left_ns, broken = self._over_ns, None  # it broke off behind the protocol's own end: nothing is missing
        failure = self.failure or broken
        outcome, sentence = self.timeline.judge(self._dialect.end)
        document = self._framer if isinstance(self._framer, Document) else None
        if outcome is OK and failure is None and document is None and 200 <= response.status < 300:
            return OK, "", ""  # most of them
        if outcome is Outcome.ERROR_OBJECT:  # what the server said beats how it then hung up
            return outcome, sentence, "error object"
        if untouched and failure is not None and failure.kind == "closed early" and 200 <= response.status < 300:
            return Outcome.RESET, NO_BODY.format(response.status), "no body"
        if response.status >= 300 and (failure is None or failure.outcome in HUNG_UP):
            return judge_refusal(document, response, failure)
        if failure is not None and (document is None or not document.text or failure.outcome is Outcome.PROTOCOL):
            return failure.outcome, self._with_words(failure.sentence), failure.kind
        if document is not None:
            judged = judge_document(document, response, self._dialect)
            if failure is None or judged[0] is Outcome.ERROR_OBJECT:
                return judged
            return failure.outcome, failure.sentence, failure.kind
        if outcome is Outcome.TRUNCATED and self.timeline.choices_missing:
            return outcome, sentence, "choices missing"
        if outcome is Outcome.TRUNCATED and (
            silent := silent_end.sentence(self._dialect, self.reading.tail, self.timeline)
        ):
            return outcome, self._with_words(silent), "silent end"
        if outcome is Outcome.TRUNCATED and self.timeline.over_ns and self.timeline.events:
            if self._dialect.done_ends:
                return Outcome.OK, "", ""
            return outcome, MADE_UP.format(self.timeline.events), "made-up end"
        return outcome, self._with_words(sentence), outcome.value

    def _finish_stream(self) -> None:
        """The end of the body, or of what came of it."""
        if self.reading.tail is not None and not self._tail_matters:
            self._look_at_tail(enough=True)
        whole = self.failure is None and self.response.complete
        if whole and self._encoding is not None and self._encoding.cut:
            self.failure = TransportError(Outcome.TRUNCATED, "the gzip encoding of the answer has no end", "gzip")
            return
        self._flush(whole)

    def _flush(self, whole: bool) -> None:
        """Read what a missing last line end held back; of a body that is not whole only what went wrong."""
        event = b""
        try:
            events = self._framer.finish()
            self._name(events)
            for event in events:
                delta = self._dialect.decode(event)
                if whole or delta.error:
                    self.timeline.mark(self.response.last_read_ns, delta)
        except NotAnEvent as error:
            # The body was cut inside its last event, unless all of it came: without a finish, judge calls it truncated.
            self._words = self._words or words_of(event)
            if whole and self.response.framed and not self.timeline.events:
                self.failure = self.failure or TransportError(Outcome.PROTOCOL, str(error), "not an event")
        except Oversize:
            pass  # the limit has ended this stream already

    def _with_words(self, sentence: str) -> str:
        """Add what the server or a proxy wrote outside of the events of its stream."""
        words = self._words or words_of(self._framer.stray)
        return clean_line(f"{sentence}; the server says: {words}") if words else sentence
