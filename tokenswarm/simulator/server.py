"""The server: aiohttp's routes in front of one engine, and what is done when its tokens are due.

Everything runs in one thread. `Simulator.pump` is the only place where the model meets the clock; an `Answer` writes
what the model produced. Requests that are refused never reach the engine.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.typedefs import LooseHeaders

from tokenswarm.errors import ConfigError
from tokenswarm.simulator import asks, asks_typed, conditions, faults
from tokenswarm.simulator.answer import Answer, Arrival
from tokenswarm.simulator.asks import ApiError, Ask, Target
from tokenswarm.simulator.batching import Engine, Sequence
from tokenswarm.simulator.conditions import Leak, Seen, Tenant
from tokenswarm.simulator.faults import Fault, Lottery
from tokenswarm.simulator.holding import Holding
from tokenswarm.simulator.metrics import Metrics
from tokenswarm.simulator.pacer import Pacer
from tokenswarm.simulator.presets import Preset, build
from tokenswarm.simulator.truth import Truth
from tokenswarm.simulator.wire import Wire
from tokenswarm.simulator.wire_ollama import OllamaWire
from tokenswarm.simulator.wire_openai import OpenAIWire
from tokenswarm.simulator.wire_typed import MessagesWire, ResponsesWire

BODY_BYTES_MAX = 64 * 2**20
PING_S = 0.1
SETTLE_TOKENS = 256  # counted at a time: about 0.1 ms, in which no token leaves

OVERLOADED = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
OLLAMA_OVERLOADED = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line sets beside the preset."""

    model: str
    preset: Preset
    seed: int = 0
    reasoning_tokens: int = 0
    faults: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    allow_fault_header: bool = False
    allow_fault_prompt: bool = False
    tls: ssl.SSLContext | None = None


class Written(web.StreamResponse):
    """For aiohttp: an answer that is on the wire already."""

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._stays_open = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._stays_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:  # noqa: ARG002 # aiohttp's signature
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        assert not data


class Simulator:
    """An engine, its truth and its metrics, driven by the event loop's clock."""

    def __init__(self, settings: Settings, pacer: Pacer) -> None:
        self.settings = settings
        self.conditions = conditions.parse(settings.conditions)
        self.engine: Engine = build(settings.preset, self.conditions.get("cold", 0.0))
        self.seen = Seen() if "prefix_cache" in self.conditions else None
        self.target = Target(settings.model, settings.preset.max_model_len)
        self.metrics = Metrics()
        self.truth = Truth()
        self.lottery = Lottery(list(settings.faults), settings.seed)
        self.in_flight = 0
        self.started_s = int(time.time())
        self.born_s, self._born_ns = time.time(), time.monotonic_ns()
        self._ageing = self.conditions.get("ageing", 0.0)
        share = self.conditions.get("fallback", 0.0)
        self._fallback = conditions.Fallback(share) if share else None
        self._leak = Leak(self.conditions.get("leak", 0.0))
        self._ages = bool(self._ageing or self.conditions.get("leak"))
        self._pacer = pacer
        pacer.pump = self.pump
        self._serial = itertools.count(1)
        self._start = secrets.token_bytes(8)  # no engine's ids are another's, or its own of before: gateways store them
        self._submitted = itertools.count(1)
        for _ in range(int(self.conditions.get("tenant", 0))):
            self._serve(Tenant())

    def pump(self, now_ns: int) -> bool:
        """Send what is due now, and tell the pacer when to come again. True: the event loop may have something to
        do."""
        woke = False
        if self._ages:
            self._age(now_ns)
        wall_ns = time.time_ns() - time.monotonic_ns()
        advance = self.engine.advance(now_ns)
        for seq in advance.produced:
            if seq.deliver is not None and seq.deliver(seq, wall_ns):
                woke = True
        if advance.step_tokens:
            self.metrics.observe("iteration_tokens_total", advance.step_tokens)
        if len(self.truth.late_ns) >= SETTLE_TOKENS:
            self.truth.settle()
            self.metrics.settle()
        self._pacer.due_ns = self.engine.next_ns
        return woke

    def _age(self, now_ns: int) -> None:
        age_s = (now_ns - self._born_ns) / 1e9
        if self._ageing:
            self.engine.slow_down(1 + self._ageing * age_s / 3600)
        self._leak.grow(age_s)

    def _serve(self, tenant: Tenant) -> None:
        """A request of somebody else."""
        now_ns = time.monotonic_ns()
        seq = tenant.ask(now_ns)
        seq.deliver = functools.partial(self._foreign, tenant)
        self.engine.submit(seq, now_ns)
        self._pacer.due_ns = self.engine.next_ns

    def _foreign(self, tenant: Tenant, seq: Sequence, _wall_ns: int) -> bool:
        """A token for somebody else, who asks again when the answer is whole."""
        self.metrics.generation_tokens += 1
        if seq.produced == 1:
            self.metrics.prompt_tokens += seq.prompt_tokens
        if seq.produced >= seq.output_tokens:
            self.metrics.finished["length"] += 1
            self._serve(tenant)
        return False

    def submit(self, answer: Answer) -> None:
        """Give an answer's sequences to the engine."""
        now_ns = time.monotonic_ns()
        due_ns = self.engine.next_ns
        if due_ns is not None and due_ns <= now_ns:
            self.pump(now_ns)  # a step that is due ends before somebody joins: it could not have held them
        if next(self._submitted) == conditions.COLD_AGAIN:
            self.engine.cold.forget()
        for seq in answer.sequences:
            if self.seen is not None:
                seq.cached = self.seen.cached(answer.ask.prompts[seq.index // answer.ask.n][0], seq.prompt_tokens)
                self.metrics.cache_queries += seq.prompt_tokens
                self.metrics.cache_hits += seq.cached
            self.engine.submit(seq, now_ns)
        self._pacer.due_ns = self.engine.next_ns

    def withdraw(self, answer: Answer) -> None:
        """Abort what is left of an answer; its blocks are free at once."""
        for seq in answer.sequences:
            self.engine.abort(seq)
        self._pacer.due_ns = self.engine.next_ns

    def wire(self, ask: Ask, real_ns: int) -> tuple[str, Wire]:
        """The id of an answer and its wire format."""
        chat = ask.api in asks.CHATS
        digest = hashlib.blake2b(b"%d %b" % (next(self._serial), self._start), digest_size=8).hexdigest()
        ident = f"chatcmpl-{digest}" if chat else f"cmpl-{digest}"
        model = ask.model if self._fallback is None else self._fallback.model(ask.model)
        if ask.api.startswith("ollama"):
            return ident, OllamaWire(model, chat, ask.prompt_tokens, time.time_ns)
        created_s = real_ns // 1_000_000_000
        if ask.api == "responses":
            return f"resp_{digest}", ResponsesWire(
                f"resp_{digest}", created_s, model, ask.prompt_tokens, ask.max_tokens
            )
        if ask.api == "messages":
            return f"msg_{digest}", MessagesWire(f"msg_{digest}", model, ask.prompt_tokens)
        usage = ask.include_usage, ask.continuous_usage
        return ident, OpenAIWire(ident, created_s, model, chat, ask.prompt_tokens, *usage)

    def fault_of(self, request: web.Request, wanted: str | None) -> Fault | None:
        """The prompt's or the header's fault if they may ask, else the lottery's. ConfigError for a wrong one."""
        if wanted:
            return faults.parse(wanted)
        asked = request.headers.get("x-sim-fault")
        if asked and self.settings.allow_fault_header:
            return faults.parse(asked)
        return self.lottery.draw()

    def room_for(self, ask: Ask) -> None:
        """ApiError 503 where the queue is full."""
        if not self.engine.has_room(len(ask.prompts) * ask.n):
            self.metrics.rejections += 1
            raise _status_error(ask.api, 503)


Parser = Callable[[str, bytes, Target], Ask]


def _status_error(api: str, status: int, retry_after_s: float = 0) -> ApiError:
    """A failure of the server in the dialect's words."""
    headers = {"Retry-After": f"{retry_after_s:g}"} if status == 429 else {}
    if api.startswith("ollama"):
        text = {429: "too many requests", 503: OLLAMA_OVERLOADED}.get(status, "internal server error")
        return ApiError(status, {"error": text}, headers)
    text, kind = {
        429: ("Too many requests.", "Too Many Requests"),
        503: (OVERLOADED, "Service Unavailable"),
    }.get(status, (faults.MESSAGE, "InternalServerError"))
    if api == "messages":
        return asks_typed.anthropic_error(status, text, headers)
    error = asks.openai_error(status, text, kind)
    return ApiError(status, error.body, headers)


def generate(sim: Simulator, api: str, parse: Parser) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler of one of the APIs."""

    async def handle(request: web.Request) -> web.StreamResponse:
        real_ns, mono_ns = time.time_ns(), time.monotonic_ns()
        sim.in_flight += 1
        sim.truth.arrive(sim.in_flight)
        try:
            return await _answer(sim, api, parse, request, real_ns, mono_ns)
        finally:
            sim.in_flight -= 1

    return handle


async def _answer(
    sim: Simulator, api: str, parse: Parser, request: web.Request, real_ns: int, mono_ns: int
) -> web.StreamResponse:
    try:
        raw = await request.read()
    except web.HTTPException:  # larger than BODY_BYTES_MAX
        sim.truth.outcomes["refused"] += 1
        raise
    except (asyncio.CancelledError, OSError):  # the client left while it sent its body
        sim.truth.outcomes["disconnected"] += 1
        raise
    try:
        ask = parse(api, raw, sim.target)
        if ask.load_only is not None:
            sim.truth.outcomes["completed"] += 1
            return _loaded(ask)
        words = faults.in_prompt(ask) if sim.settings.allow_fault_prompt else {}
        fault = sim.fault_of(request, words.get("fault"))
        if fault is not None and fault.kind == "prompt_cut":
            ask = faults.cut_prompt(ask, int(fault.param))
        if fault is None or faults.FAULTS[fault.kind].stage != "status":
            sim.room_for(ask)
    except ApiError as error:
        sim.truth.outcomes["rejected" if error.status == 503 else "refused"] += 1
        return _error(error)
    except ConfigError as error:
        sim.truth.outcomes["refused"] += 1
        return _error(asks.openai_error(400, str(error)))
    ident, wire = sim.wire(ask, real_ns)
    http_1_1 = request.version >= (1, 1)
    name = words.get("id") or request.headers.get("x-request-id") or ident
    arrival = Arrival(name, real_ns, mono_ns, request.keep_alive, http_1_1, _asked(request, ask))
    transport = request.transport
    if transport is None:
        sim.truth.outcomes["disconnected"] += 1
        return Written(keep_alive=False)
    outputs = asks.outputs(ask, sim.settings.seed)
    thought = sim.settings.reasoning_tokens if ask.think and api != "completions" else 0
    answer = Answer(arrival, ask, wire, outputs, transport, thought, sim.metrics, sim.truth)
    return await _conduct(sim, answer, fault)


def _asked(request: web.Request, ask: Ask) -> str:
    """What came through to here of what a client may ask for, in words: for who stands behind a proxy or a gateway."""
    found = {
        f"HTTP/{request.version.major}.{request.version.minor}": True,
        "x-request-id": "x-request-id" in request.headers,
        "gzip": "gzip" in request.headers.get("accept-encoding", ""),
        "stream": ask.stream,
        "usage": ask.include_usage,
        "ignore_eos": ask.ignore_eos,
    }
    return " ".join(word for word, holds in found.items() if holds)


async def _conduct(sim: Simulator, answer: Answer, fault: Fault | None) -> web.StreamResponse:
    """Run one answer to its end, whatever that is; its outcome is reported exactly once."""
    kind = fault.kind if fault else None
    outcome = "disconnected"
    try:
        if fault is not None and await _faulted_at_once(answer, fault):
            outcome = "faulted"
            if faults.FAULTS[fault.kind].stage == "status":
                return _error(_status_error(answer.ask.api, int(fault.kind[-3:]), fault.param))
            return Written(answer.keep_alive)
        if answer.ask.stream and not answer.wire.headers_wait:
            answer.send_head()
        sim.submit(answer)
        verdict = await answer.done
        if isinstance(answer.transport, Holding):
            await answer.transport.over()
        if verdict == "sent":
            outcome = "completed"
        else:
            outcome = "faulted"
            sim.withdraw(answer)
            await _hold(answer, verdict)
        return Written(answer.keep_alive)
    finally:
        sim.withdraw(answer)
        answer.report(outcome, kind)


async def _faulted_at_once(answer: Answer, fault: Fault) -> bool:
    """Do what the fault does before the engine hears of the request. True: that was all."""
    stage = faults.FAULTS[fault.kind].stage
    if stage == "raw":
        faults.answer_raw(answer, fault.kind)
    if stage in ("raw", "status"):
        return True
    faults.prepare(answer, fault)
    if stage == "delay":
        if answer.ask.stream and fault.kind == "role_only_first":
            _announce(answer)
        elif answer.ask.stream and not answer.wire.headers_wait:
            answer.send_head()
        await asyncio.sleep(fault.param)
    return False


def _announce(answer: Answer) -> None:
    """An event without content: the role event where the format has one."""
    answer.start()
    if isinstance(answer.wire, OllamaWire):
        answer.send(answer.wire.empty())
    elif answer.ask.api == "completions":
        answer.send(answer.wire.token(0, "", False, 0, None, None))


async def _hold(answer: Answer, verdict: str) -> None:
    """Keep a stalled connection open, until the client or the server ends it; `ping` sends comments meanwhile."""
    while verdict in ("stall", "ping"):
        await asyncio.sleep(PING_S)
        if verdict == "ping":
            answer.send(b"\n" if answer.wire.headers_wait else b": ping\n\n")


def _loaded(ask: Ask) -> web.Response:
    wire = OllamaWire(ask.model, ask.api == "ollama_chat", 0, time.time_ns)
    return web.Response(body=wire.loaded(ask.load_only or "load"), content_type="application/json", charset="utf-8")


def _error(error: ApiError) -> web.Response:
    headers: LooseHeaders = error.headers
    body = json.dumps(error.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)
