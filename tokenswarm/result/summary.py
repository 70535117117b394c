"""Merged counts in, every number of a run out: the formulas on one page, the structs of summary.json.

A number that can't be known is None (null), never 0 and never NaN: no window, no SLO, too few samples. Latency blocks
hold requests whose intended start lies in a steady window; where a run has several stages, the run's own latency block
pools them (a sweep: read the stages). docs/metrics.md explains each field and is tested against this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure import conventions
from tokenswarm.measure.instrument import InstrumentReport, instrument
from tokenswarm.measure.snapshot import LATENCIES, Block, Merged, total
from tokenswarm.profile import load
from tokenswarm.profile.bars import Bars
from tokenswarm.result.soak import Soak
from tokenswarm.result.stat import PERCENTILES as PERCENTILES
from tokenswarm.result.stat import RHO_OF as RHO_OF
from tokenswarm.result.stat import Finite, Stat, latency, stamp_error_s, stat

SCHEMA_VERSION = 2
NAMES_MAX = 8  # models of one block that are told by name; the others together are OTHER
OTHER = "other"
VERSIONS_READ = (1, 2)  # 1 had no `low`, `high`, `sample_low`, `sample_high`, `withheld`

TokenLabel = Literal["server", "events", "mixed"]


class Requests(msgspec.Struct, kw_only=True):
    """intended = sent + dropped; sent = ok + failed + cancelled + censored, once nothing is in flight."""

    intended: int = 0
    sent: int = 0
    ok: int = 0
    failed: int = 0
    dropped: int = 0
    cancelled: int = 0
    censored: int = 0
    by_outcome: dict[str, int] = {}
    by_error: dict[str, int] = {}
    error_says: dict[str, str] = {}  # an example of each kind: what the server, or the client, said
    by_model: dict[str, int] = {}  # successes by the model that they say they are from; some name none
    reconnects: int = 0

    @property
    def ok_ratio(self) -> float | None:
        """The share that succeeded, of those that ended or hung on to the drain bound; None where there are none."""
        ended = self.ok + self.failed + self.censored
        return self.ok / ended if ended else None


class SteadyWindow(msgspec.Struct, kw_only=True):
    """Seconds since the start of the run. `length_s` is the sum of the windows: a sweep has a warm-up between two."""

    start_s: float | None = None
    end_s: float | None = None
    length_s: float = 0.0


class Throughput(msgspec.Struct, kw_only=True):
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    input_tokens_per_s: float | None = None
    goodput_ratio: float | None = None
    goodput_requests_per_s: float | None = None


class Latency(msgspec.Struct, kw_only=True):
    ttft_s: Stat
    ttft_intended_s: Stat
    ttfat_s: Stat
    itl_s: Stat
    tpot_s: Stat
    e2e_s: Stat
    e2e_intended_s: Stat
    stall_s: Stat
    connect_s: Stat


class FailedLatency(msgspec.Struct, kw_only=True):
    """What failed requests had seen until then. In no other latency."""

    ttft_s: Stat
    e2e_s: Stat


class Tokens(msgspec.Struct, kw_only=True):
    input: int = 0
    output: int = 0
    source: TokenLabel | None = None  # of the output count
    per_event: float | None = None
    output_by_source: dict[str, int] = {}
    reasoning: int = 0
    reasoning_events: int = 0  # content-bearing events before the first word of the answer
    cached: int = 0
    drafted: int = 0  # tokens that a speculative decoder proposed
    accepted: int = 0  # of these, those that the model took
    one_read: int = 0  # answers of several tokens that came in one read: they have no TPOT and no gap
    input_length: Stat
    output_length: Stat


class SloCount(msgspec.Struct, kw_only=True):
    judged: int = 0  # ok, failed and censored requests; 0 where the run has no SLO
    met: int = 0
    missed_by: dict[str, int] = {}  # limit -> successful requests beyond it


class Steadiness(msgspec.Struct, kw_only=True):
    """Was the window steady? Medians of its two halves (by intended start), and MSER-5's transient share."""

    n: int = 0
    first_half_p50: float | None = None
    second_half_p50: float | None = None
    change: float | None = None  # second / first − 1
    transient_ratio: float | None = None  # 1/3 or more: never steady
    rho: float = 0.0  # lag-1 rank correlation in arrival order


class Part(msgspec.Struct, kw_only=True):
    """The blocks that a run and each of its stages have alike."""

    steady_window: SteadyWindow
    batch_mean: float | None
    decoding_mean: float | None
    requests: Requests  # warm-up and drain included
    requests_steady: Requests  # intended in a steady window: the ones behind `latency`
    throughput: Throughput
    latency: Latency
    failed_latency: FailedLatency
    tokens: Tokens  # of requests_steady
    slo: SloCount
    steadiness: dict[str, Steadiness]  # by metric: ttft_s, tpot_s, e2e_s


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage was meant to be: concurrent users, or requests per second, which may change to `rate_end`."""

    stage: int
    concurrency: int | None = None
    rate: float | None = None
    rate_end: float | None = None
    arrivals: int | None = None  # that the schedule has in the window, where it is known before

    @property
    def rate_mean(self) -> float | None:
        return self.rate if self.rate is None or self.rate_end is None else (self.rate + self.rate_end) / 2

    @property
    def told(self) -> str:
        """What is asked for, in words: `8 users`, `20/s`, `5 to 80/s`."""
        rates = [rate for rate in (self.rate, self.rate_end) if rate is not None]
        return load.Stage(users=self.concurrency, rate=tuple(rates) or None).told if rates or self.concurrency else ""


def plan_of(number: int, stage: load.Stage) -> StagePlan:
    """The plan of a profile's stage."""
    rate = stage.rate or (None,)
    ramp = rate[-1] if len(rate) > 1 else None
    return StagePlan(stage=number, concurrency=stage.users, rate=rate[0], rate_end=ramp)


class Stage(Part, kw_only=True):
    stage: int
    concurrency: int | None = None
    rate: float | None = None
    rate_end: float | None = None  # of a ramp
    arrivals: int | None = None  # that the schedule has in the window, where it is known before
    server: dict[str, Any] = {}  # what the engine and the GPUs said about themselves in this stage (telemetry/)
    gpu: dict[str, Any] = {}


def changing(summary: Summary) -> frozenset[int]:
    """Stages whose load is not meant to be even: ramps, and traces, which have neither users nor a rate."""
    return frozenset(
        one.stage for one in summary.stages if one.rate_end is not None or one.rate is one.concurrency is None
    )


class Doubt(msgspec.Struct, kw_only=True):
    """A reason not to believe the run, and what to do about it. A note alone leaves the run VALID."""

    code: str
    severity: Literal["note", "degraded", "invalid"]
    message: str
    evidence: dict[str, Any] = {}


class Verdict(msgspec.Struct, kw_only=True):
    status: Literal["VALID", "DEGRADED", "INVALID"] | None = None  # None: not judged
    doubts: list[Doubt] = []


class Gate(msgspec.Struct, kw_only=True):
    metric: str
    op: str
    limit: float
    value: float | None
    result: Literal["pass", "fail", "inconclusive"]
    reason: str = ""


class Summary(Part, kw_only=True):
    """summary.json. `verdict`, `gates`, `gpu` and further keys of `server` are filled in by their own files."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    partial: bool
    verdict: Verdict = msgspec.field(default_factory=Verdict)
    gates: list[Gate] = []
    duration_s: Finite
    stages: list[Stage] = []
    search: dict[str, Any] = {}  # of `tokenswarm search`: the interval, and every try
    soak: Soak | None = None  # of a run of two windows (`soak.window`) or more, or in which an engine restarted
    server: dict[str, Any] = {}
    gpu: dict[str, Any] = {}
    instrument: InstrumentReport
    conventions: dict[str, dict[str, conventions.Spread | int | float | None]] = {}


FIRST_KEYS = ("schema_version", "run_id", "partial", "verdict", "gates", "duration_s")


def summarize(
    merged: Merged, *, plan: Sequence[StagePlan] = (), partial: bool = False, bars: Bars | None = None
) -> Summary:
    """All numbers of a run. `partial` marks one that was cut short; a worker without its final report does, too."""
    error_s = stamp_error_s(merged.workers)
    planned = {stage.stage: stage for stage in plan}
    stages = []
    for number in sorted({block.stage for block in merged.blocks} | set(planned)):
        meant = planned.get(number, StagePlan(stage=number))
        blocks = [block for block in merged.blocks if block.stage == number]
        part = _part(blocks, error_s, bars)
        told = server_times(total(_steady(blocks)))
        stages.append(Stage(**msgspec.structs.asdict(meant), server=told, **part))
    everything, steady = total(merged.blocks), total(_steady(merged.blocks))
    return Summary(
        run_id=merged.run_id,
        partial=partial or not merged.final,
        duration_s=max((worker.elapsed_ns for worker in merged.workers), default=0) / NS_PER_S,
        stages=stages,
        server=server_times(steady),
        instrument=instrument(merged.workers, steady, everything),
        conventions=conventions.sections(everything),
        **_part(merged.blocks, error_s, bars),
    )


def to_json(summary: Summary) -> bytes:
    """summary.json: indented, the verdict first, numbers finite (msgspec writes NaN and infinities as null)."""
    fields = msgspec.to_builtins(summary)
    ordered = {name: fields.pop(name) for name in FIRST_KEYS} | fields
    return msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n"


def from_json(data: bytes) -> Summary:
    """Read summary.json. Raises msgspec.ValidationError or msgspec.DecodeError where it is none."""
    return msgspec.json.decode(data, type=Summary)


def _steady(blocks: Iterable[Block]) -> list[Block]:
    return [block for block in blocks if block.phase == "steady"]


def _part(blocks: Sequence[Block], error_s: float, bars: Bars | None) -> dict[str, Any]:
    everything, steady = total(blocks), total(_steady(blocks))
    return {
        "steady_window": steady_window(steady),
        "batch_mean": per_window(steady, steady.window_in_flight_ns / NS_PER_S),
        "decoding_mean": per_window(steady, steady.window_decoding_ns / NS_PER_S),
        "requests": requests(everything),
        "requests_steady": requests(steady),
        "throughput": throughput(steady),
        "latency": Latency(**{f"{name}_s": latency(steady, name, error_s, bars) for name in LATENCIES}),
        "failed_latency": FailedLatency(ttft_s=stat(everything.failed_ttft), e2e_s=stat(everything.failed_e2e)),
        "tokens": tokens(steady),
        "slo": SloCount(
            judged=steady.slo_judged, met=steady.slo_met, missed_by=dict(sorted(steady.slo_missed_by.items()))
        ),
        "steadiness": {f"{metric}_s": steadiness(steady, metric) for metric in sorted(steady.first_half)},
    }


def per_window(steady: Block, quantity: float) -> float | None:
    """quantity / length of the steady windows (s); None without a window."""
    return quantity * NS_PER_S / steady.window_ns if steady.window_ns else None


def steady_window(steady: Block) -> SteadyWindow:
    """First opening, last closing, and Σ (closing − opening)."""
    start_ns, end_ns = steady.window_start_ns, steady.window_end_ns
    return SteadyWindow(
        start_s=None if start_ns is None else start_ns / NS_PER_S,
        end_s=None if end_ns is None else end_ns / NS_PER_S,
        length_s=steady.window_ns / NS_PER_S,
    )


def throughput(steady: Block) -> Throughput:
    """What fell into the steady windows / their length; goodput_ratio = met / (ok + failed + censored)."""
    judged = steady.slo_judged
    return Throughput(
        requests_per_s=per_window(steady, steady.window_requests),
        output_tokens_per_s=per_window(steady, steady.window_tokens),
        input_tokens_per_s=per_window(steady, steady.window_prompt_tokens),
        goodput_ratio=steady.slo_met / judged if judged else None,
        goodput_requests_per_s=per_window(steady, steady.window_slo_met) if judged else None,
    )


def requests(block: Block) -> Requests:
    """Counts; the most frequent errors first."""
    errors = sorted(block.by_error.items(), key=lambda item: (-item[1], item[0]))
    tables = ("by_outcome", "by_error", "error_says", "by_model")
    counts = {name: getattr(block, name) for name in Requests.__struct_fields__ if name not in tables}
    return Requests(
        by_outcome=dict(sorted(block.by_outcome.items())),
        by_error=dict(errors),
        error_says=dict(sorted(block.error_says.items())),
        by_model=_by_model(block),
        **counts,
    )


def _by_model(block: Block) -> dict[str, int]:
    """The most frequent names first; what is beyond NAMES_MAX of them in one count."""
    named = sorted(block.by_model.items(), key=lambda item: (item[0] == OTHER, -item[1], item[0]))
    kept, rest = dict(named[:NAMES_MAX]), sum(n for _, n in named[NAMES_MAX:])
    return kept | {OTHER: kept.get(OTHER, 0) + rest} if rest else kept


def tokens(block: Block) -> Tokens:
    """Σ prompt and output tokens of successful requests; per_event = output / content-bearing events."""
    by_source = dict(sorted(block.output_tokens_by_source.items()))
    used = {source for source, n in by_source.items() if n}
    label: TokenLabel = "mixed" if len(used) > 1 else "server" if "server" in used else "events"
    return Tokens(
        input=block.prompt_tokens,
        output=block.output_tokens,
        source=label if used else None,
        per_event=block.output_tokens / block.events if block.events else None,
        output_by_source=by_source,
        reasoning=block.reasoning_tokens,
        reasoning_events=block.reasoning_events,
        cached=block.cached_tokens,
        drafted=block.seldom.get("drafted", 0),
        accepted=block.seldom.get("accepted", 0),
        one_read=block.one_read,
        input_length=stat(block.prompt_len),
        output_length=stat(block.output_len),
    )


def steadiness(steady: Block, metric: str) -> Steadiness:
    """change = p50(second half)/p50(first half) − 1; transient_ratio = requests cut by MSER-5 / requests."""
    first = steady.first_half[metric].quantile(0.5)
    second = steady.second_half[metric].quantile(0.5)
    n = steady.mser_n.get(metric, 0)
    return Steadiness(
        n=n,
        first_half_p50=first,
        second_half_p50=second,
        change=second / first - 1.0 if first and second is not None else None,
        transient_ratio=steady.mser_cut.get(metric, 0) / n if n else None,
        rho=steady.rho(metric),
    )


def server_times(steady: Block) -> dict[str, Any]:
    """Durations (s) that the engine reported per request, and its own tokens/s = output tokens / decode time."""
    names = {
        name: f"{name.removeprefix('engine_')}_s" for name in Block.__struct_fields__ if name.startswith("engine_")
    }
    names["engine_tokens_per_s"] = "tokens_per_s"
    return {shown: stat(sketch) for name, shown in names.items() if (sketch := getattr(steady, name)).n}
