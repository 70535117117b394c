"""Counters and sketches of a run, by (stage, phase): what a worker sends each second, and how the master sums it.

A snapshot is cumulative and numbered. The master's `Inbox` keeps the newest block of each (worker, stage, phase), so a
lost, repeated or late report changes nothing; blocks are summed only on demand. Summing is by field: numbers, dicts
and sketches add, except the fields in `_EXTENT`. Times are ns since the start of the recorder of that worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec

from tokenswarm.measure.budget import Budget, Fine
from tokenswarm.measure.conventions import Conventions
from tokenswarm.measure.held import Held
from tokenswarm.measure.periods import Periods
from tokenswarm.measure.share import Share, fill
from tokenswarm.measure.sketch import Sketch, SketchWire
from tokenswarm.measure.watched import Instrument as Instrument

MISSING_MAX = 1_000  # numbers of lost reports kept a worker: a quarter of an hour
SCHEMA_VERSION = 2
BYTES_MAX = 16 * 1024 * 1024  # a run of 40 stages with full sketches is below 2 MiB; more than this is damage

LATENCIES = ("ttft", "ttft_intended", "ttfat", "itl", "tpot", "e2e", "e2e_intended", "stall", "connect")
"""The sketches of a block that users call latencies: rows of the result table, keys of summary.json (with `_s`)."""

BETWEEN_READS = ("itl", "tpot", "stall")
"""The latencies that lie between two reads of an answer: they need each token in a read of its own."""

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0)]
Sentence = Annotated[str, msgspec.Meta(max_length=400)]


class SnapshotError(ValueError):
    """A report that can't be used; str() says why in one sentence."""


def _sketch() -> Any:
    return msgspec.field(default_factory=Sketch)


class Block(msgspec.Struct, kw_only=True):
    """Everything counted for the requests whose intended start lies in one (stage, phase)."""

    stage: int
    phase: str  # "warmup" | "steady" | "drain"

    # Accounting: intended = sent + dropped; sent = ok + failed + cancelled + censored (+ those still in flight).
    intended: Count = 0
    sent: Count = 0  # attempts begun, connection set-up included
    dropped: Count = 0
    ok: Count = 0
    failed: Count = 0
    cancelled: Count = 0
    censored: Count = 0
    by_outcome: dict[str, Count] = {}
    by_error: dict[str, Count] = {}  # at most KINDS_MAX kinds a worker, then "other"
    error_says: dict[str, Sentence] = {}  # by kind: the first in the alphabet of the sentences that told of it
    by_model: dict[str, Count] = {}  # successes by the model that they name, as many at most
    reconnects: Count = 0

    # Tokens, events, bytes. Tokens of requests that failed are in none of them.
    prompt_tokens: Count = 0
    prompt_tokens_max: Count | None = None  # the most that the server said it read
    output_tokens: Count = 0
    output_tokens_by_source: dict[str, Count] = {}
    reasoning_tokens: Count = 0
    cached_tokens: Count = 0
    first_prompt_tokens: Count = 0  # of first turns, which have no history
    first_cached_tokens: Count = 0
    seldom: dict[str, Count] = {}  # what few engines tell: "drafted", "accepted" tokens, answers "at once"; loads.py
    over_limit: Count = 0  # answers with more output tokens than were asked for; of each, an example:
    over_limit_says: dict[str, Sentence] = {}
    other_ends: dict[str, Count] = {}  # choices that neither model nor limit ended, by reason
    short: Count = 0  # answers with fewer, that were to have them all
    short_says: dict[str, Sentence] = {}
    length_kept: Count = 0  # answers that have all tokens that `ignore_eos` asked for
    length_halved: Count = 0  # ... and that ended by themselves at three quarters of them, or earlier
    reasoning_added: Count = 0  # answers whose reasoning tokens the server had left out of its count
    tokens_told: Count = 0  # answers of several events, each of which said how many tokens it holds
    tokens_untold: Count = 0  # ... where they did not
    events: Count = 0
    reasoning_events: Count = 0  # of these, before the first word of the answer
    merged_events: Count = 0
    one_read: Count = 0  # successes whose tokens all came in one read: no TPOT, no gap
    reads: Count = 0
    bytes_received: Count = 0

    # SLO, judged on every request that ended ok, failed or censored; 0 judged where the run has no SLO.
    slo_judged: Count = 0
    slo_met: Count = 0
    slo_missed_by: dict[str, Count] = {}  # limit -> successful requests beyond it, exactly
    slo_unsure: dict[str, Count] = {}  # limit, or `all` -> of these, answers in one read, which may be within it

    # What fell into this stage's steady window (stands in the block of phase "steady"), whatever phase a request is of.
    window_start_ns: int | None = None
    window_end_ns: int | None = None  # so far, while the window is open
    window_ns: Count = 0
    window_tokens: Count = 0
    window_prompt_tokens: Count = 0  # of requests whose first token lies in the window
    window_requests: Count = 0  # successful, last byte in the window
    window_slo_met: Count = 0
    window_in_flight_ns: Count = 0  # sum over requests of the time in flight inside the window
    window_decoding_ns: Count = 0  # the same between first and last token

    first_sent_ns: int | None = None
    last_done_ns: int | None = None

    ttft: Sketch = _sketch()  # seconds, as are all that follow, but for the *_len (tokens)
    ttft_intended: Sketch = _sketch()
    ttfat: Sketch = _sketch()
    itl: Sketch = _sketch()
    tpot: Sketch = _sketch()
    e2e: Sketch = _sketch()
    e2e_intended: Sketch = _sketch()
    stall: Sketch = _sketch()
    connect: Sketch = _sketch()
    send_lag: Sketch = _sketch()
    rx_lag: Sketch = _sketch()  # the largest receive lag of each request
    output_len: Sketch = _sketch()
    prompt_len: Sketch = _sketch()
    prompt_cut: Sketch = _sketch()  # tokens that prompts need of which the server read clearly fewer
    failed_ttft: Sketch = _sketch()
    failed_e2e: Sketch = _sketch()
    broken_e2e: Sketch = _sketch()  # of these: broken off or given up by somebody else than this client
    broken_silence: Sketch = _sketch()  # of these: how long nothing had come of them before
    periods: Periods = msgspec.field(default_factory=Periods)  # of the requests that ended ok or failed

    held: Held = msgspec.field(default_factory=Held)  # signs that something on the way kept tokens back
    retried: Count = 0  # answers for which a gateway says it asked more than once
    engine_total: Sketch = _sketch()  # durations that the engine reported, seconds
    engine_load: Sketch = _sketch()
    engine_prefill: Sketch = _sketch()
    engine_decode: Sketch = _sketch()
    engine_queue: Sketch = _sketch()
    engine_ttft: Sketch = _sketch()
    engine_tokens_per_s: Sketch = _sketch()  # output tokens / the engine's decode time

    conventions: Conventions = msgspec.field(default_factory=Conventions)

    budget: Budget = msgspec.field(default_factory=Budget)  # what the latencies could be at least and at most

    # In the final report only: order statistics of the requests, by intended start.
    rho_n: dict[str, Count] = {}  # pairs behind the lag-1 correlation, by metric
    rho_weighted: dict[str, float] = {}  # Σ n·ρ over workers, so that it adds
    fine: Fine = msgspec.field(default_factory=Fine)
    first_half: dict[str, Sketch] = {}  # by metric: requests of the window's first half
    second_half: dict[str, Sketch] = {}
    mser_n: dict[str, Count] = {}  # requests looked at by MSER-5
    mser_cut: dict[str, Count] = {}  # of these, requests it calls transient
    slow_first: Sketch = _sketch()  # TTFT of the first requests, where far beyond all others

    @property
    def under_way(self) -> int:
        """Requests that were sent and have not ended."""
        return self.sent - self.ok - self.failed - self.cancelled - self.censored

    def merged_share(self, metric: str) -> float:
        """Of a metric that lies between reads: the share of events, or of whole answers, that shared one."""
        if metric not in BETWEEN_READS:
            return 0.0
        paced = self.one_read + self.tpot.n
        return max(self.merged_events / self.events if self.events else 0.0, self.one_read / paced if paced else 0.0)

    def rho(self, metric: str) -> float:
        """Lag-1 rank correlation in arrival order, the n-weighted mean over workers, never below 0."""
        n = self.rho_n.get(metric, 0)
        return max(0.0, self.rho_weighted.get(metric, 0.0) / n) if n else 0.0


class Snapshot(msgspec.Struct, kw_only=True):
    """One report of one worker: cumulative, and numbered from 1."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    worker: Count
    host: str = ""
    pid: Count = 0
    seq: Annotated[int, msgspec.Meta(ge=1)]
    final: bool = False
    sent_ns: int  # this worker's monotonic clock
    elapsed_ns: int  # since the recorder began
    in_flight: int = 0
    decoding: int = 0  # in flight and past the first token
    users: Count = 0
    live_output_tokens: Count = 0  # counts while streams run; failed ones too
    wraps: Count = 0  # how often the data set began again
    first_failed: Count = 0  # requests from the first sent on that all failed, as far as the profile asks
    spent: bool = False  # its share of a number of requests has ended
    blocks: list[Block] = []  # those that changed lately; all of them where final
    instrument: Instrument = msgspec.field(default_factory=Instrument)


class WorkerState(msgspec.Struct, kw_only=True):
    """The last that a worker said about itself."""

    worker: int
    host: str
    pid: int
    seq: int
    final: bool
    missing: list[int]  # reports that never came; harmless, since reports are cumulative
    sent_ns: int
    elapsed_ns: int
    in_flight: int
    decoding: int
    users: int
    live_output_tokens: int
    wraps: int
    first_failed: int = 0
    instrument: Instrument
    share: Share = msgspec.field(default_factory=Share)  # once all have sent their final report


class Merged(msgspec.Struct, kw_only=True):
    """The sum of all workers, by (stage, phase), and each worker's own data."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    blocks: list[Block] = []  # ascending by stage, then warmup, steady, drain
    workers: list[WorkerState] = []

    @property
    def final(self) -> bool:
        """True when every worker that ever reported has sent its final report."""
        return bool(self.workers) and all(worker.final for worker in self.workers)

    def block(self, stage: int, phase: str = "steady") -> Block:
        """The block of (stage, phase); an empty one where nothing was counted."""
        return next((b for b in self.blocks if (b.stage, b.phase) == (stage, phase)), Block(stage=stage, phase=phase))


_PHASES = ("warmup", "steady", "drain")

_EXTENT: dict[str, Callable[[list[int]], int]] = {
    "window_start_ns": min,
    "window_end_ns": max,
    "window_ns": max,  # workers measure the same window side by side; stages, one after the other (see `total`)
    "first_sent_ns": min,
    "last_done_ns": max,
    "prompt_tokens_max": max,
}


def add_into(into: Any, other: Any) -> None:
    """Add every field of `other`, a struct of the same type, into `into`: two workers' shares of one (stage, phase)."""
    for name in into.__struct_fields__:
        mine, theirs = getattr(into, name), getattr(other, name)
        if isinstance(mine, Sketch | Periods):
            mine.merge(theirs)
        elif isinstance(mine, dict):
            _add_dict(mine, theirs)
        elif isinstance(mine, msgspec.Struct):
            add_into(mine, theirs)
        elif name in _EXTENT:
            known = [value for value in (mine, theirs) if value is not None]
            setattr(into, name, _EXTENT[name](known) if known else None)
        elif name not in ("stage", "phase"):
            setattr(into, name, mine + theirs)


def _add_dict(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        if isinstance(value, Sketch):
            mine.setdefault(key, Sketch()).merge(value)
        elif isinstance(value, str):
            mine[key] = min(mine.get(key, value), value)
        else:
            mine[key] = mine.get(key, 0) + value


def total(blocks: Iterable[Block]) -> Block:
    """The sum over stages and phases of one run: as `add_into`, but windows follow each other, so their lengths add."""
    result, window_ns = Block(stage=-1, phase="all"), 0
    for block in blocks:
        add_into(result, block)
        window_ns += block.window_ns
    result.window_ns = window_ns
    return result


class Inbox:
    """The master's memory of reports: the newest block by (worker, stage, phase), the newest state by worker."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._states: dict[int, Snapshot] = {}
        self._blocks: dict[tuple[int, str], dict[int, tuple[int, Block]]] = {}  # (stage, phase) -> worker -> (seq, ..)
        self._missing: dict[int, set[int]] = {}
        self._sums: dict[tuple[int, str], Block] = {}  # of blocks that have not changed since the last sum

    def put(self, snapshot: Snapshot) -> bool:
        """Take a report in. False where it is a repeat or was overtaken.

        Raises SnapshotError where it is another run's, or another process says that it is this worker.
        """
        worker, seq = snapshot.worker, snapshot.seq
        if snapshot.run_id != self.run_id:
            raise SnapshotError(f"a report of run {snapshot.run_id!r} came to run {self.run_id!r}; it is not counted")
        last = self._states.get(worker)
        if last is not None and (last.host, last.pid) != (snapshot.host, snapshot.pid):
            raise SnapshotError(
                f"worker {worker} was process {last.pid} on {last.host!r} and now reports as process {snapshot.pid} on "
                f"{snapshot.host!r}; a worker that restarts within a run is not counted"
            )
        newest = last.seq if last is not None else 0
        missing = self._missing.setdefault(worker, set())
        missing.discard(seq)
        for block in snapshot.blocks:
            self._keep(worker, seq, block)
        if seq <= newest:
            return False
        missing.update(range(max(newest + 1, seq - MISSING_MAX), seq))
        while len(missing) > MISSING_MAX:
            missing.remove(min(missing))
        self._states[worker] = snapshot
        return True

    def _keep(self, worker: int, seq: int, block: Block) -> None:
        key = (block.stage, block.phase)
        by_worker = self._blocks.setdefault(key, {})
        if worker not in by_worker or by_worker[worker][0] < seq:
            by_worker[worker] = (seq, block)
            self._sums.pop(key, None)

    def merged(self) -> Merged:
        """The sum of what came so far. Always in order of worker, so that the order of arrival changes no digit."""
        for key, by_worker in self._blocks.items():
            if key not in self._sums:
                self._sums[key] = result = Block(stage=key[0], phase=key[1])
                for worker in sorted(by_worker):
                    add_into(result, by_worker[worker][1])
        keys = sorted(self._sums, key=lambda key: (key[0], _PHASES.index(key[1]) if key[1] in _PHASES else 9, key[1]))
        workers = [_state(self._states[w], sorted(self._missing[w])) for w in sorted(self._states)]
        if all(one.final for one in workers):  # not each second: nobody asks for it while the run goes on
            fill(workers, [by_worker for (_, phase), by_worker in self._blocks.items() if phase == "steady"])
        return Merged(run_id=self.run_id, blocks=[self._sums[key] for key in keys], workers=workers)


def _state(last: Snapshot, missing: list[int]) -> WorkerState:
    shared = [name for name in WorkerState.__struct_fields__ if name not in ("missing", "share")]
    return WorkerState(missing=missing, **{name: getattr(last, name) for name in shared})


def _enc_hook(value: object) -> object:
    if isinstance(value, Sketch):
        return value.to_wire()
    raise NotImplementedError(f"{type(value).__name__} has no wire form")


def _dec_hook(type_: type, value: object) -> object:
    if type_ is Sketch:
        return Sketch.from_wire(None if value is None else msgspec.convert(value, SketchWire))
    raise NotImplementedError(f"{type_.__name__} has no wire form")


class _Header(msgspec.Struct):
    schema_version: int


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_enc_hook)
_HEADER = msgspec.msgpack.Decoder(_Header)
_SNAPSHOT = msgspec.msgpack.Decoder(Snapshot, dec_hook=_dec_hook)
_MERGED = msgspec.msgpack.Decoder(Merged, dec_hook=_dec_hook)


def encode(report: Snapshot | Merged) -> bytes:
    """The report as msgpack."""
    return _ENCODER.encode(report)


def decode(data: bytes) -> Snapshot:
    """The snapshot in `data`. Raises SnapshotError, and nothing else, where it is none or of another version."""
    return _decode(_SNAPSHOT, data)


def decode_merged(data: bytes) -> Merged:
    """The sum of a run in `data`; errors as `decode`."""
    return _decode(_MERGED, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    if len(data) > BYTES_MAX:
        raise SnapshotError(f"a report has {len(data)} bytes, more than the {BYTES_MAX} that are read")
    try:
        version = _HEADER.decode(data).schema_version
        if version != SCHEMA_VERSION:
            raise SnapshotError(
                f"a report has schema version {version}, this program reads {SCHEMA_VERSION}: run the same version of "
                f"tokenswarm everywhere"
            )
        return decoder.decode(data)
    except SnapshotError:
        raise
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise SnapshotError(f"a report could not be read: {error}") from error
