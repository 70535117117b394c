"""One request from start to end: `Client.send` writes it, waits in the hub until its answer has ended and is decoded
(exchange.py), and turns what came back into one RequestRecord, whatever happened.

Nothing is retried, with one counted exception: a kept connection that its server closed before it read the request is
replaced once (llama.cpp closes after each stream and advertises keep-alive).
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
import msgspec

from tokenswarm.client.broken import crossed
from tokenswarm.client.decoding import Decoder
from tokenswarm.client.exchange import Exchange
from tokenswarm.client.head import request_head
from tokenswarm.client.moments import settle
from tokenswarm.client.pool import Pool
from tokenswarm.client.response import TransportError
from tokenswarm.client.shape import Shapes
from tokenswarm.client.transport import Connection
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines import Dialect, Sampling
from tokenswarm.engines.failure import hide
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.timeline import Timeline
from tokenswarm.profile.phases import Timeouts
from tokenswarm.prompts import Prompt
from tokenswarm.record import Outcome, RequestRecord


class Request(msgspec.Struct, frozen=True):
    """One intended request: what, when, and on whose account."""

    id: str
    prompt: Prompt
    stage: int
    phase: str
    intended_ns: int
    prompt_bytes: int = 0  # of the text that is sent, without the dialect's own; 0: not noted


class Client:
    """Sends requests of one worker to one target; holds what all of them share."""

    def __init__(
        self,
        dialect: Dialect,
        pool: Pool,
        decoder: Decoder,
        recorder: Recorder,
        *,
        timeouts: Timeouts,
        headers: dict[str, str],
        event_bytes_max: int,
        keep_text: bool,
        on_record: Callable[[RequestRecord], None],
        secrets: tuple[str, ...] = (),
    ) -> None:
        self.dialect = dialect
        self.pool = pool
        self.decoder = decoder
        self.recorder = recorder
        self.timeouts = timeouts
        self.event_bytes_max = event_bytes_max
        self.keep_text = keep_text
        self.native = decoder.native
        self.shapes = Shapes(dialect) if decoder.native is not None else None
        self._on_record = on_record
        self._secrets = secrets
        self.marks: dict[str, str] = {}  # of the newest answer: headers of what stands between
        self._head = request_head(pool.target, "POST", dialect.path, self._lines(headers))

    def _lines(self, headers: dict[str, str]) -> dict[str, str]:
        return {
            "accept": f"{self.dialect.content_types[0]}, application/json",
            "content-type": "application/json",
            "connection": "close" if self.pool.fresh else "keep-alive",
            **self.dialect.headers,
            **{name.lower(): value for name, value in headers.items()},
        }

    def send(self, request: Request, sampling: Sampling) -> RequestRecord:
        """Send one request and wait for its end; `on_record` gets the record of every way it can end, exactly once.

        A greenlet that is killed meanwhile leaves a `cancelled` record behind. Everything else that is raised is a bug.
        """
        timeline = Timeline(
            choices=sampling.choices_asked,
            keep_text=self.keep_text,
            tokens_max=sampling.tokens_max(request.prompt),
            ignore_eos=sampling.ignore_eos and self.dialect.knows_ignore_eos,
        )
        timeline.intended_ns = request.intended_ns
        outcome, sentence, kind = Outcome.CANCELLED, "the run was stopped", "cancelled"
        self.recorder.started(request.stage, request.phase)
        try:
            outcome, sentence, kind = self._attempt(request, sampling, timeline)
        finally:
            if not timeline.done_ns:
                timeline.done_ns = monotonic_ns()
            record = timeline.finish(
                outcome,
                id=request.id,
                stage=request.stage,
                phase=request.phase,
                conversation=request.prompt.conversation,
                turn=request.prompt.turn,
                error=hide(sentence, self._secrets),
                error_kind=kind,
                prompt_bytes=request.prompt_bytes,
            )
            self.recorder.ended(decoding=timeline.events > 0)
            self._on_record(record)
        return record

    def _wire(self, request: Request, sampling: Sampling) -> bytes:
        body = self.dialect.encode(request.prompt, sampling)
        lengths = b"x-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (request.id.encode("ascii"), len(body))
        return self._head + lengths + body

    def _attempt(self, request: Request, sampling: Sampling, timeline: Timeline) -> tuple[Outcome, str, str]:
        try:
            connection = self.pool.take()
        except TransportError as error:
            return error.outcome, error.sentence, error.kind
        result, unread = self._run(connection, self._wire(request, sampling), timeline)
        if not unread:
            return result
        timeline.reconnected = True
        try:
            connection = self.pool.open()
        except TransportError as error:
            return error.outcome, error.sentence, error.kind
        return self._run(connection, self._wire(request, sampling), timeline)[0]

    def _run(self, connection: Connection, data: bytes, timeline: Timeline) -> tuple[tuple[Outcome, str, str], bool]:
        """What became of the request, and whether its connection was a kept one and had died before it was read."""
        exchange, kept = Exchange(self, connection, timeline), connection.used
        timeline.stamp = connection.stamp
        timeline.connect_ns = 0 if connection.used else connection.connect_ns
        try:
            timeline.sent_ns = exchange.response.last_read_ns = monotonic_ns()
            connection.send(data, self.timeouts.first_token)
            del data  # a long prompt is not kept while its answer streams
            self.decoder.open(exchange)
            timeline.sent_ns = connection.sent.at_ns
            exchange.start(self.decoder)
            exchange.wait()
        except TransportError as error:
            exchange.failure = error
        except gevent.GreenletExit:
            exchange.ended = True
            self.decoder.forget(exchange)
            exchange.reading.stop()
            connection.close()
            raise
        exchange.reading.stop()
        response = exchange.response
        settle(connection, response, timeline, self.recorder.instrument)
        timeline.status = response.status
        timeline.retry_after = response.retry_after
        timeline.packed = bool(response.content_encoding)
        timeline.announced = response.announced
        timeline.retries = response.retries if response.marks else 0
        self.marks = response.marks
        timeline.headers_ns = response.headers_ns
        timeline.bytes_received = exchange.reading.bytes_received
        result = exchange.conclude()
        timeline.done_ns = exchange.left_ns or (response.last_read_ns if response.complete else monotonic_ns())
        unread = kept and result[0] is Outcome.RESET and not timeline.bytes_received
        unread = unread and crossed(connection.sock, result[2], timeline.done_ns - timeline.sent_ns)
        if exchange.failure is not None:
            connection.close()
        else:
            self.pool.give_back(connection, response)
        return result, unread
