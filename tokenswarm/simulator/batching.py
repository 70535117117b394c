"""A batching inference engine as a pure model: sequences and the time go in, tokens come out. No clock, no IO.

`BatchingEngine` schedules as vLLM v1 does (continuous batching, chunked prefill under a token budget, a KV-cache of
blocks, FCFS admission, preemption of the newest by recompute) and times each step by a roofline. `PacedEngine` sends
each sequence's tokens at fixed intervals whatever the batch is: the reference signal for measuring instruments. Both
have the methods `submit`, `abort`, `advance` and the value `next_ns` (when `advance` is due; None: idle). Times are ns
of one clock.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

NS_PER_S = 1_000_000_000

WAITING, RUNNING, FINISHED = 0, 1, 2


@dataclass(slots=True, eq=False)
class Sequence:
    """One output being generated. `output_tokens` is how many it will have; its text is nobody's business here."""

    prompt_tokens: int
    output_tokens: int
    owner: object = None
    index: int = 0  # the choice that it is
    arrived_ns: int = 0
    scheduled_ns: int = 0  # first entered a batch; 0: not yet
    due_ns: int = 0  # when its newest token was ready
    first_due_ns: int = 0
    produced: int = 0
    computed: int = 0  # tokens whose keys and values are in the cache
    blocks: int = 0
    preemptions: int = 0
    cached: int = 0  # tokens of the prompt whose keys and values a prefix cache has
    state: int = WAITING
    deliver: Callable[[Sequence, int], bool] | None = None  # takes its tokens; `Answer.token`, and its like


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a step costs. Bandwidth and peak are the achieved ones, not the data sheet's."""

    bytes_per_s: float
    flops_per_s: float
    step_overhead_ns: int
    params: float
    bytes_per_param: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_dtype_bytes: float

    @property
    def kv_bytes_per_token(self) -> float:
        """2 (keys and values) × layers × kv_heads × head_dim × bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_dtype_bytes

    def step_ns(self, new_tokens: int, kv_tokens: int, attended: int) -> int:
        """Roofline: max(bytes / bandwidth, FLOPs / peak) + overhead.

        new_tokens: computed in this step; kv_tokens: in the cache of all the batch's sequences, read once each;
        attended: Σ new × context, at 4 · layers · heads · head_dim FLOPs each (QKᵀ and AV, 2 FLOPs a multiply-add).
        """
        moved = self.params * self.bytes_per_param + kv_tokens * self.kv_bytes_per_token
        flops = 2 * self.params * new_tokens + 4 * self.layers * self.heads * self.head_dim * attended
        busy_s = max(moved / self.bytes_per_s, flops / self.flops_per_s)
        return int(busy_s * NS_PER_S) + self.step_overhead_ns


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler's bounds. `max_queued` None: the queue has no bound."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_batched_tokens: int
    max_queued: int | None = None


@dataclass(slots=True)
class Advance:
    """What became ready: the sequences with a new token, in batch order, and each finished step's size in tokens."""

    produced: list[Sequence]
    step_tokens: int  # 0: no step ended (a paced engine has none)


class Cold:
    """What the first batch of each size costs on top, sizes to a power of two: graphs are captured, kernels built."""

    def __init__(self, extra_ns: int = 0) -> None:
        self.extra_ns = extra_ns
        self._sizes: set[int] = set()

    def forget(self) -> None:
        """All sizes are new again: a model that was unloaded, other kernels."""
        self._sizes.clear()

    def of(self, sequences: int) -> int:
        """ns on top for a batch of so many."""
        size = (sequences - 1).bit_length()
        if not self.extra_ns or size in self._sizes:
            return 0
        self._sizes.add(size)
        return self.extra_ns


class Engine(Protocol):
    """What the server needs of a model."""

    preemptions: int
    slips: int
    cold: Cold

    def slow_down(self, factor: float) -> None:
        """From now on all takes so many times as long as it did at first."""

    @property
    def next_ns(self) -> int | None: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def kv_usage(self) -> float: ...
    def has_room(self, sequences: int) -> bool: ...
    def submit(self, seq: Sequence, now_ns: int) -> None: ...
    def abort(self, seq: Sequence) -> None: ...
    def advance(self, now_ns: int) -> Advance: ...


class BatchingEngine:
    """vLLM v1's scheduler over a roofline. One step is in flight at a time; `speed` divides every duration."""

    def __init__(self, hardware: Hardware, limits: Limits, speed: float = 1.0, cold: Cold | None = None) -> None:
        self.hardware = hardware
        self.cold = cold or Cold()
        self.limits = limits
        self.speed = speed
        self._first_speed = speed
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.free_blocks = limits.num_blocks
        self.preemptions = 0
        self.slips = 0  # steps that ended later than their own length: the machine can't keep up with the model
        self._batch: list[tuple[Sequence, int]] = []
        self._step_end_ns: int | None = None
        self._step_ns = 0

    @property
    def next_ns(self) -> int | None:
        return self._step_end_ns

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return 1 - self.free_blocks / self.limits.num_blocks

    def has_room(self, sequences: int) -> bool:
        """Whether the waiting queue takes that many more."""
        bound = self.limits.max_queued
        return bound is None or len(self.waiting) + sequences <= bound

    def submit(self, seq: Sequence, now_ns: int) -> None:
        """Queue a sequence. It must fit the cache alone (prompt + output), which the caller's context limit assures."""
        if -(-(seq.prompt_tokens + seq.output_tokens) // self.limits.block_size) > self.limits.num_blocks:
            raise ValueError("a sequence larger than the whole KV-cache would wait for ever")
        self.waiting.append(seq)
        if self._step_end_ns is None:
            self._start_step(now_ns)

    def abort(self, seq: Sequence) -> None:
        """Drop a sequence, submitted or not, and free its blocks at once; a step in flight ends when it would have."""
        if seq.state == WAITING:
            with contextlib.suppress(ValueError):  # its client left before it was submitted
                self.waiting.remove(seq)
        elif seq.state == RUNNING:
            self.running.remove(seq)
            self._free(seq)
        seq.state = FINISHED

    def advance(self, now_ns: int) -> Advance:
        """End the step if it is due and start the next one.

        The next step starts when this one *should* have ended, so that a late call doesn't slow the engine down, unless
        the call is later than a whole step: then the backlog is forgotten and counted as a slip.
        """
        end_ns = self._step_end_ns
        if end_ns is None or now_ns < end_ns:
            return Advance([], 0)
        produced = self._end_step(end_ns)
        size = sum(new for _, new in self._batch)
        if now_ns - end_ns > self._step_ns:
            self.slips += 1
            end_ns = now_ns
        self._start_step(end_ns)
        return Advance(produced, size)

    def slow_down(self, factor: float) -> None:
        self.speed = self._first_speed / factor

    def _start_step(self, start_ns: int) -> None:
        self._batch = batch = self._schedule(start_ns)
        if not batch:
            self._step_end_ns = None
            return
        new_tokens = kv_tokens = attended = 0
        for seq, new in batch:
            context = seq.computed + new
            new_tokens += new
            kv_tokens += context
            attended += new * context
        self._step_ns = max(1, int(self.hardware.step_ns(new_tokens, kv_tokens, attended) / self.speed))
        self._step_ns += self.cold.of(len(batch))
        self._step_end_ns = start_ns + self._step_ns

    def _schedule(self, start_ns: int) -> list[tuple[Sequence, int]]:
        """Running sequences first, in order of admission; then the queue, unless somebody had to be preempted."""
        budget = self.limits.max_batched_tokens
        before = self.preemptions
        batch: list[tuple[Sequence, int]] = []
        running = self.running
        i = 0
        while i < len(running) and budget > 0:
            seq = running[i]
            new = min(seq.prompt_tokens + seq.produced - seq.computed, budget)
            if not self._make_room(seq, new):
                break  # it was the newest itself and is back in the queue
            budget -= new
            batch.append((seq, new))
            i += 1
        if self.preemptions != before:
            return batch
        while self.waiting and budget > 0 and len(running) < self.limits.max_num_seqs:
            seq = self.waiting[0]
            new = min(seq.prompt_tokens + seq.produced - seq.cached, budget)
            needed = -(-(seq.cached + new) // self.limits.block_size)
            if needed > self.free_blocks:
                break
            self.waiting.popleft()
            self.free_blocks -= needed
            seq.blocks = needed
            seq.computed = seq.cached
            seq.state = RUNNING
            seq.scheduled_ns = seq.scheduled_ns or max(start_ns, seq.arrived_ns)
            running.append(seq)
            budget -= new
            batch.append((seq, new))
        return batch

    def _make_room(self, seq: Sequence, new: int) -> bool:
        """Give `seq` the blocks of `new` more tokens; with none free, preempt the newest. False: it was `seq`."""
        needed = -(-(seq.computed + new) // self.limits.block_size) - seq.blocks
        while needed > self.free_blocks:
            victim = self.running.pop()  # never in the batch yet: the batch is filled from the other end
            self._free(victim)
            victim.computed = 0
            victim.state = WAITING
            victim.preemptions += 1
            self.preemptions += 1
            self.waiting.appendleft(victim)
            if victim is seq:
                return False
        self.free_blocks -= needed
        seq.blocks += needed
        return True

    def _end_step(self, end_ns: int) -> list[Sequence]:
        produced: list[Sequence] = []
        finished = False
        for seq, new in self._batch:
            if seq.state != RUNNING:
                continue  # aborted while the step was in flight
            seq.computed += new
            if seq.computed < seq.prompt_tokens + seq.produced:
                continue  # a chunk of a prefill
            seq.produced += 1
            seq.due_ns = end_ns
            seq.first_due_ns = seq.first_due_ns or end_ns
            produced.append(seq)
            if seq.produced >= seq.output_tokens:
                seq.state = FINISHED
                self._free(seq)
                finished = True
        if finished:
            self.running = [seq for seq in self.running if seq.state == RUNNING]
        return produced

    def _free(self, seq: Sequence) -> None:
        self.free_blocks += seq.blocks
        seq.blocks = 0


class PacedEngine:
    """Fixed TTFT (from the arrival) and fixed gaps for any number of sequences; both 0: as fast as possible."""

    # Tokens of one `advance`: about 1 ms of writing, after which the event loop may read its sockets again.
    BURST = 256

    def __init__(self, ttft_ns: int, itl_ns: int, cold: Cold | None = None) -> None:
        self.cold = cold or Cold()
        self.ttft_ns = ttft_ns
        self.itl_ns = itl_ns
        self._first = (ttft_ns, itl_ns)
        self.preemptions = 0
        self.slips = 0
        # All gaps are alike, so sequences come up again in the order in which they came up: a line costs less than a
        # heap. The heap has first tokens, and who would have to stand further ahead in the line.
        self._line: deque[tuple[int, Sequence]] = deque()
        self._due: list[tuple[int, int, Sequence]] = []
        self._serial = 0  # ties go to whoever waited longer
        self._live = 0

    def slow_down(self, factor: float) -> None:
        self.ttft_ns, self.itl_ns = (int(first * factor) for first in self._first)

    @property
    def next_ns(self) -> int | None:
        first_ns = self._line[0][0] if self._line else None
        if self._due and (first_ns is None or self._due[0][0] < first_ns):
            return self._due[0][0]
        return first_ns

    @property
    def num_running(self) -> int:
        return self._live

    @property
    def num_waiting(self) -> int:
        return 0

    @property
    def kv_usage(self) -> float:
        return 0.0

    def has_room(self, sequences: int) -> bool:
        return sequences >= 0

    def submit(self, seq: Sequence, now_ns: int) -> None:
        seq.state = RUNNING
        seq.scheduled_ns = now_ns
        self._live += 1
        ttft_ns = self.ttft_ns * (seq.prompt_tokens - seq.cached) // max(1, seq.prompt_tokens)
        self._push(seq.arrived_ns + ttft_ns + self.cold.of(self._live), seq)

    def abort(self, seq: Sequence) -> None:
        if seq.state == RUNNING:
            self._live -= 1
        seq.state = FINISHED  # its entry leaves when it comes up

    def advance(self, now_ns: int) -> Advance:
        produced: list[Sequence] = []
        line, heap = self._line, self._due
        while len(produced) < self.BURST:
            if line and line[0][0] <= now_ns and not (heap and heap[0][0] < line[0][0]):
                due_ns, seq = line.popleft()
            elif heap and heap[0][0] <= now_ns:
                due_ns, _, seq = heapq.heappop(heap)
            else:
                break
            if seq.state != RUNNING:
                continue
            seq.produced += 1
            seq.due_ns = due_ns
            if seq.produced >= seq.output_tokens:
                seq.state = FINISHED
                self._live -= 1
            seq.first_due_ns = seq.first_due_ns or due_ns
            produced.append(seq)
        # Lined up after the burst: a sequence has one token in it, so its owner can read `produced` as its number.
        for seq in produced:
            if seq.state == RUNNING:
                due_ns = seq.due_ns + self.itl_ns
                if not line or line[-1][0] <= due_ns:
                    line.append((due_ns, seq))
                else:
                    self._push(due_ns, seq)
        return Advance(produced, 0)

    def _push(self, due_ns: int, seq: Sequence) -> None:
        self._serial += 1
        heapq.heappush(self._due, (due_ns, self._serial, seq))
