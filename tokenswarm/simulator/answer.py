"""One request being answered: from an engine's tokens to events on a transport, each stamped just before it is written.

The transport is aiohttp's own for this request; chunked framing is done here because StreamResponse.write costs as much
again as everything else that a token needs. One write an event.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from tokenswarm.simulator.asks import Ask, Output
from tokenswarm.simulator.batching import Sequence
from tokenswarm.simulator.holding import Holding
from tokenswarm.simulator.metrics import Metrics
from tokenswarm.simulator.stream import Stream
from tokenswarm.simulator.truth import Truth
from tokenswarm.simulator.wire import Wire, chunk, plain
from tokenswarm.simulator.wire_openai import Durations, Said, piece_text

SERVER = b"tokenswarm-simulate"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request came in, and what of its head the framing depends on."""

    ident: str
    real_ns: int
    mono_ns: int
    keep_alive: bool
    http_1_1: bool
    asked: str = ""  # what of the request came through to here, in words


class Answer:
    """Mutable while its tokens come. `done` gets "sent", or the name of a fault left to the server."""

    def __init__(
        self,
        arrival: Arrival,
        ask: Ask,
        wire: Wire,
        outputs: list[Output],
        transport: asyncio.Transport | Holding,
        reasoning_tokens: int,
        metrics: Metrics,
        truth: Truth,
    ) -> None:
        self.arrival = arrival
        self.ask = ask
        self.wire = wire
        self.outputs = outputs
        self.transport = transport
        self.metrics = metrics
        self.truth = truth
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.reasoning_tokens = reasoning_tokens
        self.frame: Callable[[bytes], bytes] = chunk if arrival.http_1_1 else plain
        self.head = head
        self.extra_head = b""
        self.ending = LAST_CHUNK if arrival.http_1_1 else b""
        self.keep_alive = arrival.keep_alive and arrival.http_1_1
        self.sequences = [
            Sequence(ask.prompts[i // ask.n][1], out.tokens, self, i, arrived_ns=arrival.mono_ns, deliver=self.token)
            for i, out in enumerate(outputs)
        ]
        self.to_finish = len(outputs)
        self.strike_at = -1  # the number of sent tokens at which `strike` happens
        self.strike: Callable[[Answer], bool] | None = None
        self.sends_done = True
        self.real_ns: array[int] = array("q")
        self.mono_ns: array[int] = array("q")
        self.last_mono_ns = [0] * len(outputs)
        self._head_sent = False
        self._started = False

    def write(self, data: bytes) -> None:
        """To the client, if it is still there: asyncio counts writes to one that is gone, and logs them."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def send(self, event: bytes) -> None:
        """Write one event, in this answer's framing."""
        self.write(self.frame(event))

    def send_head(self) -> None:
        """The response's status line and headers, once."""
        if self._head_sent:
            return
        self._head_sent = True
        self.write(self.head(200, self.wire.media, self.frame is not plain, self.keep_alive, self.extra_head))

    def start(self) -> None:
        """The head, if it is still to go, and the events before the first token."""
        if self._started:
            return
        self._started = True
        self.send_head()
        for event in self.wire.start(len(self.outputs)):
            self.send(event)

    def token(self, seq: Sequence, wall_ns: int) -> bool:
        """A token is ready: send it, stamp it, count it. `wall_ns`: CLOCK_REALTIME − CLOCK_MONOTONIC. Returns True:
        the event loop may have something to do."""
        if self.done.done():
            return True
        if not self.ask.stream:
            self._token_kept(seq)
            return True
        if len(self.mono_ns) == self.strike_at and self.strike is not None and self.strike(self):
            return True
        if not self._started:
            self.start()
        index, count = seq.index, seq.produced
        output = self.outputs[index]
        piece = output.pieces.next_index() if output.cut is None else output.cut[count - 1]
        finish = output.finish if count == output.tokens else None
        event = self.wire.token(
            index, piece, count <= self.reasoning_tokens, count, finish, output.stop_reason if finish else None
        )
        data = self.frame(event) if event else b""
        if self.transport.get_write_buffer_size():
            self.truth.blocked_writes += 1
        mono_ns = time.monotonic_ns()
        if data:
            self.transport.write(data)
        self._mark(seq, mono_ns + wall_ns, mono_ns)
        if finish is not None:
            self._choice_finished()
        else:
            seq.deliver = self._next(seq)
        return True

    def _next(self, seq: Sequence) -> Callable[[Sequence, int], bool]:
        """What takes the next token: a `Stream` where nothing but tokens is to come for a while."""
        if len(self.outputs) > 1 or self.outputs[0].cut is not None or isinstance(self.transport, Holding):
            return self.token
        reasoning = seq.produced < self.reasoning_tokens
        ends = [self.outputs[0].tokens]
        if reasoning:
            ends.append(self.reasoning_tokens + 1)
        if self.strike_at >= seq.produced:
            ends.append(self.strike_at + 1)
        sock = self.transport.get_extra_info("socket")
        if sock is None or self.transport.get_extra_info("ssl_object") is not None or min(ends) <= seq.produced + 1:
            return self.token
        return Stream(self, self.transport, sock.fileno(), min(ends), reasoning).token

    def _token_kept(self, seq: Sequence) -> None:
        """A token of an answer that is not streamed: nothing leaves before the last."""
        if seq.produced == seq.output_tokens:
            self._choice_finished()

    def _mark(self, seq: Sequence, real_ns: int, mono_ns: int) -> None:
        self.real_ns.append(real_ns)
        self.mono_ns.append(mono_ns)
        before_ns = self.last_mono_ns[seq.index]
        self.last_mono_ns[seq.index] = mono_ns
        if before_ns:
            self.metrics.gaps_ns.append(mono_ns - before_ns)
        else:
            self.metrics.observe("time_to_first_token_seconds", (mono_ns - self.arrival.mono_ns) / 1e9)
            self.metrics.prompt_tokens += seq.prompt_tokens
            self.metrics.generation_tokens += 1
        self.truth.late_ns.append(mono_ns - seq.due_ns)

    def _choice_finished(self) -> None:
        self.to_finish -= 1
        if self.to_finish:
            return
        tokens = sum(output.tokens for output in self.outputs)
        thought = sum(min(self.reasoning_tokens, output.tokens) for output in self.outputs)
        if self.ask.stream:
            for event in self.wire.end(tokens, thought, self.durations(), self.outputs[0].finish):
                if self.sends_done or event != b"data: [DONE]\n\n":
                    self.send(event)
            self.end_body()
        else:
            self._send_whole()
        self.done.set_result("sent")

    def end_body(self) -> None:
        """The end of the body in this answer's framing."""
        if self.ending:
            self.write(self.ending)

    def _send_whole(self) -> None:
        body = self.wire.whole([self._said(i, output) for i, output in enumerate(self.outputs)], self.durations())
        length = b"content-length: %d\r\n" % len(body)
        real_ns, mono_ns = time.time_ns(), time.monotonic_ns()
        self.transport.write(self.head(200, b"application/json", False, self.keep_alive, length) + body)
        for seq in self.sequences:
            # They all left together. Lateness is that of the last token, the only one that had a moment to leave at.
            self.truth.lateness.add((mono_ns - seq.due_ns) / 1e9)
            self.metrics.observe("time_to_first_token_seconds", (seq.first_due_ns - seq.arrived_ns) / 1e9)
            self.metrics.prompt_tokens += seq.prompt_tokens
            self.metrics.generation_tokens += seq.produced
            self.truth.tokens_sent += seq.produced
            self.real_ns.extend([real_ns] * seq.produced)
            self.mono_ns.extend([mono_ns] * seq.produced)

    def _said(self, index: int, output: Output) -> Said:
        if output.cut is None:
            pieces: list[int] | list[str] = [output.pieces.next_index() for _ in range(output.tokens)]
        else:
            pieces = output.cut
        texts = [piece_text(piece) for piece in pieces]
        thought = min(self.reasoning_tokens, output.tokens)
        content, reasoning = "".join(texts[thought:]), "".join(texts[:thought])
        return Said(content, reasoning, self.sequences[index].produced, thought, output.finish, output.stop_reason)

    def durations(self) -> Durations:
        if self.to_finish and not self.mono_ns:
            return Durations(total=time.monotonic_ns() - self.arrival.mono_ns, load=1, prompt_eval=1, eval=1)
        first = min(seq.first_due_ns for seq in self.sequences)
        scheduled = min(seq.scheduled_ns for seq in self.sequences)
        last = max(seq.due_ns for seq in self.sequences)
        return Durations(
            total=time.monotonic_ns() - self.arrival.mono_ns,
            load=1,  # the model is loaded; a real server never reports a zero
            prompt_eval=max(1, first - scheduled),
            eval=max(1, last - first),
        )

    def report(self, outcome: str, fault: str | None) -> None:
        """The request is over: its row of the truth, and what vLLM observes once a request."""
        seqs = self.sequences
        scheduled = min((seq.scheduled_ns for seq in seqs if seq.scheduled_ns), default=None)
        first = min((seq.first_due_ns for seq in seqs if seq.first_due_ns), default=None)
        received = self.arrival.mono_ns
        self.truth.finish(
            (
                self.arrival.ident,
                self.ask.api,
                outcome,
                fault,
                self.arrival.real_ns,
                received,
                None if scheduled is None else scheduled - received,
                None if scheduled is None or first is None else first - scheduled,
                *self._ends(self.real_ns, self.mono_ns),
                self.ask.prompt_tokens,
                len(self.mono_ns),
                sum(seq.preemptions for seq in seqs),
                self.arrival.asked,
            ),
            self.real_ns,
            self.mono_ns,
        )
        reasons = {"disconnected": "abort", "faulted": "error"}
        for seq, output in zip(seqs, self.outputs, strict=True):
            self.metrics.finished[reasons.get(outcome, output.finish)] += 1
            if outcome == "completed":
                self._observe_request(seq)

    @staticmethod
    def _ends(real_ns: array[int], mono_ns: array[int]) -> tuple[int | None, ...]:
        if not mono_ns:
            return (None, None, None, None)
        return (real_ns[0], mono_ns[0], real_ns[-1], mono_ns[-1])

    def _observe_request(self, seq: Sequence) -> None:
        observe = self.metrics.observe
        observe("e2e_request_latency_seconds", (time.monotonic_ns() - seq.arrived_ns) / 1e9)
        observe("request_queue_time_seconds", (seq.scheduled_ns - seq.arrived_ns) / 1e9)
        observe("request_prefill_time_seconds", (seq.first_due_ns - seq.scheduled_ns) / 1e9)
        observe("request_decode_time_seconds", (seq.due_ns - seq.first_due_ns) / 1e9)
        observe("request_inference_time_seconds", (seq.due_ns - seq.scheduled_ns) / 1e9)
        observe("request_prompt_tokens", seq.prompt_tokens)
        observe("request_generation_tokens", seq.produced)
        if seq.produced > 1:
            per_token = (seq.due_ns - seq.first_due_ns) / (seq.produced - 1) / 1e9
            observe("request_time_per_output_token_seconds", per_token)


_REASONS = {200: b"OK", 429: b"Too Many Requests", 500: b"Internal Server Error", 503: b"Service Unavailable"}
_date_cache: tuple[int, bytes] = (0, b"")


def head(status: int, media: bytes, chunked: bool, keep_alive: bool, extra: bytes) -> bytes:
    """The head of a response in uvicorn's order and case. `extra`: further lines, each with its CRLF."""
    coding = b"transfer-encoding: chunked\r\n" if chunked else b""
    closing = b"" if keep_alive else b"connection: close\r\n"
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: %b\r\ncontent-type: %b\r\n%b%b%b\r\n" % (
        status,
        _REASONS[status],
        _date(),
        SERVER,
        media,
        extra,
        coding,
        closing,
    )


def hyper_head(status: int, media: bytes, chunked: bool, keep_alive: bool, extra: bytes) -> bytes:
    """The same as hyper writes it for axum: no server, the date last."""
    coding = b"transfer-encoding: chunked\r\n" if chunked else b""
    closing = b"" if keep_alive else b"connection: close\r\n"
    kind = media.partition(b";")[0]
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncache-control: no-cache\r\n%b%b%bdate: %b\r\n\r\n" % (
        status,
        _REASONS[status],
        kind,
        extra,
        coding,
        closing,
        _date(),
    )


def _date() -> bytes:
    global _date_cache  # one string a second, for a header that each response has
    now_s = int(time.time())
    if _date_cache[0] != now_s:
        _date_cache = (now_s, email.utils.formatdate(now_s, usegmt=True).encode())
    return _date_cache[1]
