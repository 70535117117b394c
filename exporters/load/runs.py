"""The runs that are served: each push replaces what was known of its run, and is worked out into readings at once.

Bounds: 16 runs, 5 000 series a run, label values of 128 characters. A run is served until it has been silent for the
keep time, so the result of a short CI run can still be scraped; one that is not over loses its live gauges after 30 s
of silence, since a frozen gauge looks healthy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from exporters.families import LABEL_CHARS_MAX
from exporters.load.sums import Recent, SettledSum
from exporters.load.table import (
    COUNTERS_OF_BLOCK,
    DROPPED,
    ERROR_TYPES,
    HISTOGRAMS,
    KV_CACHE,
    METRICS,
    OUTCOMES,
    QUANTILES,
    SELDOM,
    STAGE_METRICS,
    TOKEN_SOURCES,
    Histogram,
)
from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.slo import Slo
from tokenswarm.measure.snapshot import Block, Merged, WorkerState
from tokenswarm.profile.bars import Bars
from tokenswarm.result import envelope as envelopes
from tokenswarm.result.envelope import Envelope, RunState
from tokenswarm.result.stat import Stat, latency, stamp_error_s, stat
from tokenswarm.result.summary import StagePlan, per_window, throughput

RUNS_MAX = 16
SERIES_MAX = 5_000
TARGETS_MAX = 64  # of a role
SILENT_S = 30.0
RECENT_S = 10.0
"""The window of the quantile gauges `window="10s"`."""

Labels = tuple[str, ...]
_QUANTILES = "tokenswarm_latency_quantile_seconds"
_BARS = "tokenswarm_latency_quantile_bound_seconds"
_LIVE = {
    "tokenswarm_requests_in_flight",
    "tokenswarm_streams_decoding",
    "tokenswarm_requests_queued",
    "tokenswarm_users",
    "tokenswarm_target_users",
    "tokenswarm_workers",
    "tokenswarm_worker_cpu_ratio",
    "tokenswarm_worker_resident_memory_bytes",
    "tokenswarm_kv_cache_predicted_bytes",
    "tokenswarm_kv_cache_used_bytes",
}


class TooManyRunsError(Exception):
    """There is no room for one more run."""


@dataclass
class Readings:
    """Values of one run by family. Labels are values only, in the order of the family's names."""

    values: dict[str, list[tuple[Labels, float]]] = field(default_factory=dict)
    histograms: list[tuple[str, Histogram, Sketch]] = field(default_factory=list)
    series: int = 0

    def add(self, family: str, value: float | None, *labels: str) -> None:
        if value is not None and math.isfinite(value):
            self.values.setdefault(family, []).append((labels, value))
            self.series += 1

    def add_summary(self, family: str, one: Stat, *labels: str) -> None:
        """Percentiles that have enough samples behind them, and always the sum and the count."""
        for quantile, name in QUANTILES.items():
            self.add(family, getattr(one, name), *labels, quantile)
        self.add(f"{family}_sum", one.n * (one.mean or 0.0), *labels)
        self.add(f"{family}_count", one.n, *labels)

    def add_bars(self, family: str, one: Stat, *labels: str) -> None:
        """Between what each percentile lies; only the lower end where nothing bounds it."""
        for quantile, name in QUANTILES.items():
            if getattr(one, name) is not None or name in one.withheld:
                self.add(family, one.low.get(name), *labels, quantile, "low")
                self.add(family, one.high.get(name), *labels, quantile, "high")

    def add_histogram(self, family: str, histogram: Histogram, sketch: Sketch) -> None:
        self.histograms.append((family, histogram, sketch))
        self.series += len(histogram.keys) + 3

    def extend(self, other: Readings) -> bool:
        """Take all of `other`, or nothing if the budget has no room for it."""
        if self.series + other.series > SERIES_MAX:
            return False
        for family, rows in other.values.items():
            self.values.setdefault(family, []).extend(rows)
        self.series += other.series
        return True


class Run:
    """One run: its newest state, and the readings that follow from it."""

    def __init__(self, now_ns: int) -> None:
        self.version = 0
        self.pushed_ns = now_ns
        self.info: dict[str, str] = {}
        self.labels: Labels = ()
        self.readings = Readings()
        self.dropped: set[tuple[str, str]] = set()  # (reason, what), so that each counts once
        self._seq = 0
        self._parts: dict[bytes, Merged] = {}
        self._everything, self._steady, self._recent = SettledSum(), SettledSum(), Recent(RECENT_S)
        self._reports: dict[int, tuple[int, int]] = {}  # worker -> (seq, when it first came)
        self._stages: dict[int, tuple[Block, Readings]] = {}  # of stages that are over
        self.state: RunState

    def push(self, push: Envelope, now_ns: int) -> bool:
        """Take a push in; False if it was overtaken. Raises EnvelopeError, and is then as it was before."""
        merged, parts = envelopes.join(push, self._parts)
        if push.seq <= self._seq:
            return False
        self._seq, self._parts, self.state, self.pushed_ns = push.seq, parts, push.run, now_ns
        state = push.run
        self.labels = tuple(
            text[:LABEL_CHARS_MAX] for text in (state.run_id, state.engine, state.model, state.scenario)
        )
        self.info = {name: state.info.get(name, "")[:LABEL_CHARS_MAX] for name in envelopes.INFO_LABELS}
        self.dropped |= {("info", name) for name in state.info if name not in envelopes.INFO_LABELS}
        for worker in merged.workers:
            if worker.seq > self._reports.get(worker.worker, (-1, 0))[0]:
                self._reports[worker.worker] = (worker.seq, now_ns)
        self.readings = self._work_out(merged, now_ns)
        self.version += 1
        return True

    def silent(self, now_ns: int) -> bool:
        """True when the run should still push and does not: what it said of the moment is of the past."""
        return self.state.end_timestamp_s is None and now_ns - self.pushed_ns > SILENT_S * NS_PER_S

    def current(self, now_ns: int) -> Mapping[str, list[tuple[Labels, float]]]:
        """The values to serve now."""
        values = dict(self.readings.values)
        values["tokenswarm_run_last_push_age_seconds"] = [((), (now_ns - self.pushed_ns) / NS_PER_S)]
        if self.state.end_timestamp_s is None:
            shown = self.readings.values.get("tokenswarm_worker_resident_memory_bytes", ())
            values["tokenswarm_worker_report_age_seconds"] = [
                (labels, (now_ns - self._reports[int(labels[0])][1]) / NS_PER_S) for labels, _ in shown
            ]
        if self.silent(now_ns):
            values = {name: rows for name, rows in values.items() if name not in _LIVE}
            for name in (_QUANTILES, f"{_QUANTILES}_sum", f"{_QUANTILES}_count"):
                values[name] = [row for row in values.get(name, ()) if row[0][1] == "run"]
        return values

    # From counts to readings.

    def _work_out(self, merged: Merged, now_ns: int) -> Readings:
        stage = self.state.stage
        everything = self._everything.of(merged.blocks, stage)
        steady = self._steady.of([block for block in merged.blocks if block.phase == "steady"], stage)
        readings = Readings()
        self._add_run(readings)
        self._add_counters(readings, everything, steady, merged.workers)
        elapsed_ns = max((worker.elapsed_ns for worker in merged.workers), default=0)
        recent = self._recent.since(everything, elapsed_ns, now_ns)
        error_s = stamp_error_s(merged.workers)
        for metric in METRICS:
            whole = latency(steady, metric, error_s, self.state.bars)
            readings.add_summary(_QUANTILES, whole, metric, "run")
            readings.add_bars(_BARS, whole, metric)
            newest = stat(recent.get(metric) or Sketch())
            for name in whole.withheld:  # what the reads don't carry over the run they don't for ten seconds
                setattr(newest, name, None)
            readings.add_summary(_QUANTILES, newest, metric, "10s")
        for family, histograms in HISTOGRAMS.items():
            for histogram in histograms:
                sketch = _sketch(histogram.source, steady, merged.workers)
                if not histogram.engines or self.state.engine in histogram.engines or sketch.n:
                    readings.add_histogram(family, histogram, sketch)
        self._add_bounded(readings, "stage", [self._stage(merged, plan, error_s) for plan in self.state.stages])
        self._add_bounded(readings, "worker", [self._worker(worker) for worker in merged.workers])
        return readings

    def _add_bounded(self, readings: Readings, kind: str, groups: Iterable[Readings]) -> None:
        for number, group in enumerate(groups):
            if not readings.extend(group):
                self.dropped.add(("budget", f"{kind} {number}"))

    def _add_run(self, readings: Readings) -> None:
        state = self.state
        readings.add("tokenswarm_run_info", 1, *self.info.values())
        targets = Readings()
        for role in envelopes.TARGET_ROLES:
            for target in dict.fromkeys(name[:LABEL_CHARS_MAX] for name in state.targets.get(role, ())[:TARGETS_MAX]):
                targets.add("tokenswarm_run_target_info", 1, role, target)
        self._add_bounded(readings, "targets", [targets])
        readings.add("tokenswarm_run_start_timestamp_seconds", state.start_timestamp_s)
        readings.add("tokenswarm_run_end_timestamp_seconds", state.end_timestamp_s)
        readings.add("tokenswarm_run_stage", max(0, state.stage))
        readings.add("tokenswarm_run_pushes_dropped_total", state.pushes_dropped)
        for phase in envelopes.PHASES:
            readings.add("tokenswarm_run_phase", int(phase == state.phase), phase)
        for worker_state in envelopes.WORKER_STATES:
            readings.add("tokenswarm_workers", state.workers.get(worker_state, 0), worker_state)
        status = state.verdict.status if state.verdict else None
        for each in envelopes.STATUSES:
            readings.add("tokenswarm_run_verdict", int(each == status), each)
        if state.kv_cache is not None:
            for family, name in KV_CACHE.items():
                readings.add(family, getattr(state.kv_cache, name))
            for source in ("predicted", "engine"):
                size = getattr(state.kv_cache, f"{source}_bytes_per_token")
                readings.add("tokenswarm_kv_cache_bytes_per_token", size, source)
        doubts = Readings()
        for code, severity in state.verdict.doubts.items() if state.verdict else ():
            doubts.add("tokenswarm_run_doubt", 1, code, severity)
        self._add_bounded(readings, "doubts", [doubts])

    def _add_counters(self, readings: Readings, all_: Block, steady: Block, workers: list[WorkerState]) -> None:
        for family, (name, _) in COUNTERS_OF_BLOCK.items():
            readings.add(family, getattr(all_, name))
        for family, (name, _) in SELDOM.items():
            readings.add(family, all_.seldom.get(name, 0))
        for outcome, name in OUTCOMES.items():
            readings.add("tokenswarm_requests_total", getattr(all_, name), outcome)
        for error in ERROR_TYPES:
            readings.add("tokenswarm_request_errors_total", all_.by_outcome.get(error, 0), error)
        for source in TOKEN_SOURCES:
            readings.add("tokenswarm_output_tokens_total", all_.output_tokens_by_source.get(source, 0), source)
        strangers = set(all_.output_tokens_by_source) - set(TOKEN_SOURCES)
        self.dropped |= {("value", f"token_source {name}"[:LABEL_CHARS_MAX]) for name in sorted(strangers)[:100]}
        readings.add("tokenswarm_slo_requests_total", steady.slo_met, "yes")
        readings.add("tokenswarm_slo_requests_total", steady.slo_judged - steady.slo_met, "no")
        for limit in Slo.__struct_fields__:
            readings.add("tokenswarm_slo_missed_total", steady.slo_missed_by.get(limit, 0), limit)
        users, target = sum(worker.users for worker in workers), self.state.target_users
        readings.add("tokenswarm_output_tokens_streamed_total", sum(worker.live_output_tokens for worker in workers))
        readings.add("tokenswarm_requests_in_flight", sum(worker.in_flight for worker in workers))
        readings.add("tokenswarm_streams_decoding", sum(worker.decoding for worker in workers))
        readings.add("tokenswarm_requests_queued", max(0, all_.intended - all_.sent - all_.dropped))
        if self.state.target_rate is None:  # an open loop has no users
            readings.add("tokenswarm_users", min(users, target), "running")
            readings.add("tokenswarm_users", max(0, target - users), "spawning")
            readings.add("tokenswarm_users", max(0, users - target), "stopping")
        readings.add("tokenswarm_target_users", target)
        readings.add("tokenswarm_target_requests_per_second", self.state.target_rate)

    def _stage(self, merged: Merged, plan: StagePlan, error_s: float) -> Readings:
        """A stage: what was meant from its begin on, what came of it once its window is closed."""
        readings, name, state = Readings(), str(plan.stage), self.state
        if plan.stage > state.stage:
            return readings
        concurrency = "" if plan.concurrency is None else str(plan.concurrency)
        readings.add("tokenswarm_stage_info", 1, name, concurrency, plan.told)
        readings.add("tokenswarm_stage_start_timestamp_seconds", state.stage_starts.get(plan.stage), name)
        readings.add("tokenswarm_stage_concurrency", plan.concurrency, name)
        readings.add("tokenswarm_stage_target_requests_per_second", plan.rate_mean, name)
        if plan.stage < state.stage or state.phase in ("drain", "ended"):
            block = next((b for b in merged.blocks if (b.stage, b.phase) == (plan.stage, "steady")), None)
            known = self._stages.get(plan.stage)
            if block is not None and (known is None or known[0] is not block):
                known = self._stages[plan.stage] = (block, _results(block, name, error_s, state.bars))
            if block is not None and known is not None:
                readings.extend(known[1])
            told = state.stage_telemetry.get(plan.stage)
            if told is not None:
                readings.add("tokenswarm_stage_engine_batch", told.engine_batch, name)
                readings.add("tokenswarm_stage_engine_waiting", told.engine_waiting, name)
                tokens_per_s = None if block is None else throughput(block).output_tokens_per_s
                if told.power_watts is not None and tokens_per_s:
                    readings.add("tokenswarm_stage_joules_per_output_token", told.power_watts / tokens_per_s, name)
        return readings

    def _worker(self, worker: WorkerState) -> Readings:
        readings, name = Readings(), str(worker.worker)
        readings.add("tokenswarm_worker_cpu_ratio", worker.instrument.cpu_ratio_last, name)
        readings.add("tokenswarm_worker_resident_memory_bytes", worker.instrument.rss_bytes, name)
        return readings


def _sketch(source: str, steady: Block, workers: list[WorkerState]) -> Sketch:
    if not source.startswith("instrument."):
        found: Sketch = getattr(steady, source)
        return found
    merged = Sketch()
    for worker in workers:
        merged.merge(getattr(worker.instrument, source.removeprefix("instrument.")))
    return merged


def _results(block: Block, name: str, error_s: float, bars: Bars) -> Readings:
    """What came of a stage, from its steady block: as `stages` of summary.json."""
    readings, got = Readings(), throughput(block)
    readings.add("tokenswarm_stage_batch", per_window(block, block.window_in_flight_ns / NS_PER_S), name)
    readings.add("tokenswarm_stage_output_tokens_per_second", got.output_tokens_per_s, name)
    readings.add("tokenswarm_stage_requests_per_second", got.requests_per_s, name)
    readings.add("tokenswarm_stage_goodput_ratio", got.goodput_ratio, name)
    for metric in STAGE_METRICS:
        readings.add_summary("tokenswarm_stage_latency_seconds", latency(block, metric, error_s, bars), name, metric)
    return readings


class Runs:
    """All runs, by id. `put` takes a push in, `expire` lets go of what has been silent for `keep_s`."""

    def __init__(self, keep_s: float, clock: Clock = monotonic_ns) -> None:
        self.runs: dict[str, Run] = {}
        self.expired = 0
        self._keep_ns = int(keep_s * NS_PER_S)
        self._clock = clock
        self._dropped: Counter[str] = Counter(dict.fromkeys(DROPPED, 0))

    def put(self, push: Envelope) -> None:
        """Take a push in. Raises EnvelopeError or TooManyRunsError; then nothing has changed."""
        now_ns = self._clock()
        self.expire()
        run = self.runs.get(push.run.run_id)
        if run is not None:
            self._push(run, push, now_ns)
            return
        run = Run(now_ns)
        room = len(self.runs) < RUNS_MAX
        gone = [
            (one.pushed_ns, name)
            for name, one in self.runs.items()
            if one.silent(now_ns) or one.state.end_timestamp_s is not None
        ]
        if not room and not gone:
            raise TooManyRunsError(f"{RUNS_MAX} runs push to this exporter already; it has no room for another")
        self._push(run, push, now_ns)
        if not room:
            self._drop(min(gone)[1])
        self.runs[push.run.run_id] = run

    def _push(self, run: Run, push: Envelope, now_ns: int) -> None:
        before = set(run.dropped)
        run.push(push, now_ns)
        self._dropped.update(reason for reason, _ in run.dropped - before)

    def _drop(self, run_id: str) -> None:
        del self.runs[run_id]
        self.expired += 1

    def expire(self) -> None:
        """Let go of runs that have been silent for the keep time."""
        now_ns = self._clock()
        for run_id, run in list(self.runs.items()):
            if now_ns - run.pushed_ns > self._keep_ns:
                self._drop(run_id)

    @property
    def dropped(self) -> dict[str, int]:
        """Label sets that were refused, by reason."""
        return dict(self._dropped)

    @property
    def version(self) -> object:
        """Changes with every push, and when a run goes silent or expires."""
        now_ns = self._clock()
        self.expire()
        return tuple((run_id, run.version, run.silent(now_ns)) for run_id, run in self.runs.items())
