"""RequestRecords in, cumulative Snapshots out: the one place in a worker where requests are counted.

A request belongs to the (stage, phase) of its intended start. Tokens belong to the steady window in which they came,
whatever phase their request is of. One recorder a worker process; not thread-safe.
"""

from __future__ import annotations

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure import budget, conventions
from tokenswarm.measure.ending import count_others
from tokenswarm.measure.loads import Loads
from tokenswarm.measure.series import Series
from tokenswarm.measure.slo import Limits, Slo
from tokenswarm.measure.snapshot import Block, Instrument, Snapshot, add_into
from tokenswarm.measure.steady import Window
from tokenswarm.measure.waiting import Waiting
from tokenswarm.record import BROKEN_OUTCOMES, FAILED_OUTCOMES, OK, USUAL_ENDS, EngineTimes, Outcome, RequestRecord

SENTENCE_CHARS_MAX = 200
KINDS_MAX = 32  # then "other": error texts and models of a target must not grow the reports
HALVED = 0.75  # of the tokens asked for: an answer that ends by itself here was cut
DIRTY_REPORTS = 3  # a changed block is in this many reports, so that two lost ones in a row delay nothing

VALUES = (
    *("send_lag", "rx_lag", "connect", "ttft", "ttft_intended", "ttfat", "tpot", "e2e", "e2e_intended", "stall"),
    *("output_len", "prompt_len"),
)
"""The sketches of a block of which a request has one value, or none."""

NO_LATENCIES = (None,) * (len(VALUES) - 3)


class Recorder:
    """Counts for one worker. The worker may set `users`, `wraps`, `first_failed` and write into `instrument`."""

    def __init__(
        self, run_id: str, worker: int, slo: Slo | None = None, *, start_ns: int, host: str = "", pid: int = 0
    ) -> None:
        self.run_id, self.worker, self.host, self.pid, self.start_ns = run_id, worker, host, pid, start_ns
        self.in_flight = self.decoding = self.users = self.live_output_tokens = self.wraps = self.first_failed = 0
        self.instrument = Instrument()
        self.spent = False  # all requests of this worker's share were sent and have ended; it sends no more
        self.describes_closed = False  # tell the order of requests where a window is over, not only at the end
        self._limits = Limits(slo)
        self._blocks: dict[tuple[int, str], Block] = {}
        self._changed: dict[tuple[int, str], int] = {}  # the report in which a block's last change is first told
        self._series: dict[tuple[int, str], Series] = {}
        self._waiting: dict[tuple[int, str], Waiting] = {}
        self._windows: list[Window] = []
        self._loads = Loads()
        self._seq = 0

    def _block(self, stage: int, phase: str) -> Block:
        key = (stage, phase)
        self._changed[key] = self._seq + 1
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = Block(stage=stage, phase=phase)
            own, told = [getattr(block, name) for name in VALUES], conventions.VALUES
            sketches = [*own, *(getattr(block.conventions, name) for name in told)]
            self._waiting[key] = Waiting(sketches, (block.itl, block.conventions.event_gap))
            self._series[key] = Series()
        return block

    def intended(self, stage: int, phase: str, n: int = 1) -> None:
        """`n` requests became due."""
        self._block(stage, phase).intended += n

    def dropped(self, stage: int, phase: str, n: int = 1) -> None:
        """`n` requests that were due are never sent (they count as intended by `intended`)."""
        self._block(stage, phase).dropped += n

    def started(self, stage: int, phase: str) -> None:
        """A request is attempted: before its connection is set up. Each ends in one `ended` and one `add`."""
        self._block(stage, phase).sent += 1
        self.in_flight += 1

    def first_token(self) -> None:
        """A request in flight got its first token."""
        self.decoding += 1

    def ended(self, *, decoding: bool) -> None:
        """A request is no longer in flight; `decoding` says whether `first_token` was called for it."""
        self.in_flight -= 1
        self.decoding -= decoding

    def live_tokens(self, n: int) -> None:
        """`n` tokens arrived, of streams that still run."""
        self.live_output_tokens += n

    def open_window(self, stage: int, open_ns: int, close_ns: int | None = None) -> None:
        """The steady window of `stage` begins at `open_ns`; it ends at `close_ns`, where that is known.

        Call it on time, or ahead: what was added before is not looked at again.
        """
        self._windows.append(Window(stage, open_ns, close_ns))

    def close_window(self, stage: int, now_ns: int) -> None:
        """The steady window of `stage` is over, or does not come. Closing one that is not open changes nothing."""
        self._touch_windows(now_ns)
        self._windows = [one for one in self._windows if one.closed or one.stage != stage or one.open_ns <= now_ns]
        for window in self._windows:
            if window.stage == stage and not window.closed:
                window.closed, window.close_ns = True, window.until(now_ns)

    def _touch_windows(self, now_ns: int) -> None:
        for window in self._windows:
            if not window.closed and window.open_ns <= now_ns:
                block = self._block(window.stage, "steady")
                block.window_start_ns = window.open_ns - self.start_ns
                block.window_end_ns = window.until(now_ns) - self.start_ns
                block.window_ns = block.window_end_ns - block.window_start_ns

    def _is_closed(self, stage: int) -> bool:
        return any(window.stage == stage and window.closed for window in self._windows)

    def add(self, record: RequestRecord) -> None:
        """Count one request that ended, whatever its outcome. At most 120 µs for an answer of 128 tokens."""
        block = self._block(record.stage, record.phase)
        met = self._count(block, record)
        _mark_extent(block, record, self.start_ns)
        if record.reads:  # else nothing was stamped
            self.instrument.kernel_stamped += record.stamp == "kernel"
            self.instrument.user_stamped += record.stamp != "kernel"
        waiting = self._waiting[record.stage, record.phase]
        waiting.add(_values(record))
        if record.ok:
            if record.gap_tokens:
                block.itl.add_gaps(record.gaps_ns, record.gap_tokens)
                block.conventions.event_gap.add_gaps(record.gaps_ns)
            else:
                waiting.gaps.add(record.gaps_ns)
            _add_latencies(block, record)
            if record.first_ns:
                conventions.accumulate(block.conventions, record)
            self._series[record.stage, record.phase].add(record)
        elif record.outcome in FAILED_OUTCOMES:
            for sketch, value_ns in ((block.failed_ttft, record.ttft_ns), (block.failed_e2e, record.e2e_ns)):
                if value_ns is not None:
                    sketch.add(value_ns / NS_PER_S)
            if record.outcome in BROKEN_OUTCOMES and record.e2e_ns is not None:
                block.broken_e2e.add(record.e2e_ns / NS_PER_S)
                block.broken_silence.add((record.silent_ns or 0) / NS_PER_S)
        self._attribute(record, met)

    def _count(self, block: Block, record: RequestRecord) -> bool:
        outcome, ok = record.outcome, record.outcome is OK
        _count_one(block.by_outcome, outcome.value)
        block.reconnects += record.reconnected
        block.retried += record.retries > 0
        block.reads += record.reads
        block.bytes_received += record.bytes_received
        if not ok and outcome is Outcome.CANCELLED:
            block.cancelled += 1
            return False
        if ok or outcome is not Outcome.CENSORED:
            block.periods.add((record.done_ns - self.start_ns) // NS_PER_S, failed=not ok)
        met = False
        if ok:
            block.ok += 1
            if record.model:
                _count_one(block.by_model, record.model)
            block.events += record.events
            block.merged_events += record.merged_events
            block.one_read += record.one_read
            self._loads.count(block, record)
            block.held.add(record)
            met = self._limits.met(block, record)
        elif outcome is Outcome.CENSORED:
            block.censored += 1
        else:
            block.failed += 1
            kind = _count_one(block.by_error, record.error_kind or outcome.value)
            if record.error:
                said = record.error[:SENTENCE_CHARS_MAX]
                block.error_says[kind] = min(block.error_says.get(kind, said), said)
        block.slo_judged += self._limits.any
        block.slo_met += met
        return met

    def _attribute(self, record: RequestRecord, met: bool) -> None:
        """Give each window its share of the request: what happened inside it."""
        for window in reversed(self._windows):
            if window.close_ns is not None and window.close_ns <= (record.sent_ns or record.intended_ns):
                return  # windows follow each other: the earlier ones ended before this request began
            if not record.sent_ns or record.done_ns < window.open_ns:
                continue
            block = self._block(window.stage, "steady")
            in_order = window.open_ns <= record.sent_ns <= record.first_ns <= record.done_ns
            if record.ok and in_order and window.holds(record.done_ns):
                _attribute_all(block, record, met)
                continue
            block.window_in_flight_ns += window.overlap_ns(record.sent_ns, record.done_ns)
            if record.first_ns:
                block.window_decoding_ns += window.overlap_ns(record.first_ns, record.last_ns)
            if record.ok:
                block.window_tokens += window.tokens_of(record)
                if window.holds(record.first_ns):
                    block.window_prompt_tokens += record.prompt_tokens or 0
                if window.holds(record.done_ns):
                    block.window_requests += 1
                    block.window_slo_met += met

    def snapshot(self, now_ns: int, final: bool = False) -> Snapshot:
        """The next report, a copy: the blocks that changed lately; if final, all of them, and what needs the order."""
        self._touch_windows(now_ns)
        self._seq += 1
        chosen = [key for key, changed in self._changed.items() if final or changed > self._seq - DIRTY_REPORTS]
        blocks = []
        for stage, phase in sorted(chosen):
            self._waiting[stage, phase].count()
            block = Block(stage=stage, phase=phase)
            add_into(block, self._blocks[stage, phase])
            if final or (self.describes_closed and phase == "steady" and self._is_closed(stage)):
                self._series[stage, phase].describe(block)
            blocks.append(block)
        instrument = msgspec.structs.replace(
            self.instrument, loop_lag=self.instrument.loop_lag.copy(), rx_lag=self.instrument.rx_lag.copy()
        )
        return Snapshot(
            run_id=self.run_id,
            worker=self.worker,
            host=self.host,
            pid=self.pid,
            seq=self._seq,
            final=final,
            sent_ns=now_ns,
            elapsed_ns=now_ns - self.start_ns,
            in_flight=self.in_flight,
            decoding=self.decoding,
            users=self.users,
            live_output_tokens=self.live_output_tokens,
            wraps=self.wraps,
            first_failed=self.first_failed,
            spent=self.spent,
            blocks=blocks,
            instrument=instrument,
        )


def _count_one(counts: dict[str, int], key: str) -> str:
    key = key if key in counts or len(counts) < KINDS_MAX else "other"
    counts[key] = counts.get(key, 0) + 1
    return key


def _mark_extent(block: Block, record: RequestRecord, start_ns: int) -> None:
    if record.sent_ns:
        sent_ns = record.sent_ns - start_ns
        block.first_sent_ns = sent_ns if block.first_sent_ns is None else min(block.first_sent_ns, sent_ns)
    if record.ok:
        done_ns = record.done_ns - start_ns
        block.last_done_ns = done_ns if block.last_done_ns is None else max(block.last_done_ns, done_ns)


def _values(record: RequestRecord) -> tuple[float | None, ...]:
    """What a request says to each of VALUES and of the conventions' values, s."""
    sent = (
        _seconds(record.send_lag_ns),
        record.rx_lag_max_ns / NS_PER_S if record.reads else None,
        record.connect_ns / NS_PER_S if record.connect_ns else None,
    )
    if not record.ok:
        return *sent, *NO_LATENCIES, *conventions.NO_VALUES
    return (
        *sent,
        _seconds(record.ttft_ns),
        _seconds(record.ttft_intended_ns),
        _seconds(record.ttfat_ns),
        _seconds(record.tpot_ns),
        _seconds(record.e2e_ns),
        _seconds(record.e2e_intended_ns),
        _seconds(record.stall_ns),
        record.output_tokens,
        record.prompt_tokens,
        *(conventions.values(record) if record.first_ns else conventions.NO_VALUES),
    )


def _seconds(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / NS_PER_S


def _add_latencies(block: Block, record: RequestRecord) -> None:
    """What could be otherwise, and the token counts, of a successful request."""
    budget.add(block.budget, record)
    tokens = record.output_tokens
    block.output_tokens += tokens
    sources, source = block.output_tokens_by_source, record.token_source.value
    sources[source] = sources.get(source, 0) + tokens
    _hold_against_asked(block, record)
    if record.finish_reason and record.finish_reason not in USUAL_ENDS:
        count_others(block.other_ends, record.finish_reason)
    block.reasoning_tokens += record.reasoning_tokens or 0
    block.reasoning_events += record.reasoning_events
    block.cached_tokens += record.cached_tokens or 0
    if not record.turn:
        block.first_prompt_tokens += record.prompt_tokens or 0
        block.first_cached_tokens += record.cached_tokens or 0  # vLLM and SGLang have no word for none
    untold = "end untold", not record.finish_reason
    few = ("drafted", record.draft_tokens), ("accepted", record.accepted_tokens), ("at once", record.at_once)
    for kind, n in (*few, ("count of a part", record.counts_part), ("count beyond", record.counts_beyond), untold):
        if n:
            block.seldom[kind] = block.seldom.get(kind, 0) + n
    if record.prompt_tokens is not None:
        block.prompt_tokens += record.prompt_tokens
        block.prompt_tokens_max = max(block.prompt_tokens_max or 0, record.prompt_tokens)
        if record.prompt_needed:
            block.prompt_cut.add(record.prompt_needed)
    if record.engine is not None:
        _add_engine(block, record.engine, tokens)


def _hold_against_asked(block: Block, record: RequestRecord) -> None:
    """Count what can't be read off the sums: counts beyond or below what was asked for, and who told them."""
    asked = record.tokens_max
    if asked is not None:
        if asked == record.stated_tokens == record.output_tokens != 0:
            pass  # most of them: neither over nor short
        elif record.over_limit:
            block.over_limit += 1
            _example(block.over_limit_says, record)
        elif record.short:
            block.short += 1
            _example(block.short_says, record)
        if record.ignore_eos and asked:
            if record.output_tokens >= asked:
                block.length_kept += 1
            elif record.finish_reason == "stop" and record.output_tokens <= HALVED * asked:
                block.length_halved += 1
    if record.reasoning_added:
        block.reasoning_added += 1
    if record.events > 1:
        block.tokens_told += record.tokens_told
        block.tokens_untold += not record.tokens_told


def _example(says: dict[str, str], record: RequestRecord) -> None:
    """Keep the first in the alphabet, as for errors: it does not depend on the order in which workers report."""
    said = (
        f"{record.tokens_max} tokens asked for, {record.stated_tokens or 'none'} stated, {record.events} events, "
        f"finish reason {record.finish_reason!r}"
    )
    says["example"] = min(says.get("example", said), said)


def _add_engine(block: Block, engine: EngineTimes, tokens: int) -> None:
    for sketch, value_ns in (
        (block.engine_total, engine.total_ns),
        (block.engine_load, engine.load_ns),
        (block.engine_prefill, engine.prefill_ns),
        (block.engine_decode, engine.decode_ns),
        (block.engine_queue, engine.queue_ns),
        (block.engine_ttft, engine.ttft_ns),
    ):
        if value_ns is not None:
            sketch.add(value_ns / NS_PER_S)
    if engine.decode_ns and tokens > 1:  # one token is the prefill's: no time passes in its decode
        block.engine_tokens_per_s.add(tokens * NS_PER_S / engine.decode_ns)


def _attribute_all(block: Block, record: RequestRecord, met: bool) -> None:
    """What `_attribute` counts of a success that lies inside a window from its beginning to its end."""
    block.window_in_flight_ns += record.done_ns - record.sent_ns
    block.window_decoding_ns += max(0, record.last_ns - record.first_ns)
    block.window_tokens += record.output_tokens
    block.window_prompt_tokens += record.prompt_tokens or 0
    block.window_requests += 1
    block.window_slo_met += met
