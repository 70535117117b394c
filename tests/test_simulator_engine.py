"""The engine's model under a clock that the test moves: no sockets, no real time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.errors import ConfigError
from tokenswarm.simulator import presets
from tokenswarm.simulator.batching import FINISHED, NS_PER_S, BatchingEngine, Limits, PacedEngine, Sequence
from tokenswarm.simulator.presets import PRESETS, hardware, limits

SMALL = PRESETS["small-gpu"]


def run(engine, now_ns: int = 0) -> list[tuple[int, Sequence, int]]:
    """Advance to the end: (time, sequence, number of its token) of each token."""
    tokens = []
    while engine.next_ns is not None:
        now_ns = max(now_ns, engine.next_ns)
        tokens += [(now_ns, seq, seq.produced) for seq in engine.advance(now_ns).produced]
    return tokens


def throughput(batch: int, preset=SMALL, prompt: int = 32, output: int = 64) -> float:
    """Output tokens a second with `batch` sequences at once."""
    engine = BatchingEngine(hardware(preset), replace(limits(preset), max_num_seqs=batch))
    for _ in range(batch):
        engine.submit(Sequence(prompt, output), 0)
    tokens = run(engine)
    assert len(tokens) == batch * output
    return len(tokens) / (tokens[-1][0] / NS_PER_S)


def test_the_roofline_is_the_formula():
    small = hardware(SMALL)
    assert small.kv_bytes_per_token == 2 * 28 * 8 * 128 * 2
    # One token alone: the weights must be read once, whatever is computed.
    read_s = 3.21e9 * 2 / 290e9
    assert small.step_ns(1, 0, 0) == pytest.approx(read_s * NS_PER_S + 1.5e6, rel=1e-6)
    # 2 048 prompt tokens: arithmetic takes longer than reading.
    compute_s = (2 * 3.21e9 * 2048 + 4 * 28 * 24 * 128 * 2048 * 2048) / 30e12
    assert small.step_ns(2048, 2048, 2048 * 2048) == pytest.approx(compute_s * NS_PER_S + 1.5e6, rel=1e-6)


def test_throughput_over_batch_rises_bends_and_saturates():
    curve = {batch: throughput(batch) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)}
    assert curve[1] == pytest.approx(42, rel=0.05)  # 22.1 ms of reading and 1.5 ms of overhead
    assert 1.8 < curve[2] / curve[1] <= 2  # memory-bound: the second sequence is nearly free
    assert all(larger > smaller for smaller, larger in itertools.pairwise(list(curve.values())[:8]))
    gains = [larger / smaller for smaller, larger in itertools.pairwise(curve.values())]
    assert gains[0] > 1.8 > gains[5] > 1.2 > 1.1 > gains[8]  # rises, bends, saturates
    # The ceiling of arithmetic, prefill included: 2 · params FLOPs for each of 32 + 64 tokens.
    ceiling = 30e12 / (2 * 3.21e9) * 64 / 96
    assert 0.7 * ceiling < curve[1024] < ceiling


def test_a_longer_context_makes_a_step_slower():
    assert throughput(16, prompt=32) > 1.3 * throughput(16, prompt=1500)


def test_prefill_time_follows_the_prompt():
    def ttft(prompt: int) -> int:
        engine = BatchingEngine(hardware(SMALL), limits(SMALL))
        engine.submit(Sequence(prompt, 1), 0)
        return run(engine)[0][0]

    assert ttft(4000) / ttft(2000) == pytest.approx(2, rel=0.1)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode():
    engine = BatchingEngine(hardware(SMALL), replace(limits(SMALL), max_batched_tokens=256))
    first, long = Sequence(16, 50), Sequence(2000, 1)
    engine.submit(first, 0)
    engine.advance(engine.next_ns)
    engine.submit(long, engine.next_ns)
    sizes = []
    while long.produced == 0:
        sizes.append(engine.advance(engine.next_ns).step_tokens)
    assert max(sizes) == 256  # the budget, decode included
    assert first.produced >= 2000 // 255  # it went on meanwhile
    run(engine)


def test_more_sequences_than_seats_wait_in_order_of_arrival():
    engine = BatchingEngine(hardware(SMALL), replace(limits(SMALL), max_num_seqs=2))
    seqs = [Sequence(16, 8, index=i) for i in range(5)]
    for seq in seqs:
        engine.submit(seq, 0)
    engine.advance(engine.next_ns)
    assert (engine.num_running, engine.num_waiting) == (2, 3)
    firsts = [seq.index for _, seq, number in run(engine) if number == 1]
    assert firsts == [1, 2, 3, 4] or firsts == [2, 3, 4]
    assert [seq.scheduled_ns for seq in seqs] == sorted(seq.scheduled_ns for seq in seqs)
    assert seqs[4].scheduled_ns > seqs[0].first_due_ns


def test_the_queue_bound_is_the_queue_only():
    engine = BatchingEngine(hardware(SMALL), replace(limits(SMALL), max_num_seqs=1, max_queued=2))
    engine.submit(Sequence(16, 8), 0)  # it runs at once
    assert engine.has_room(2)
    engine.submit(Sequence(16, 8), 0)
    engine.submit(Sequence(16, 8), 0)
    assert not engine.has_room(1)


def test_preemption_takes_the_newest_and_recomputes_it():
    tight = Limits(num_blocks=8, block_size=16, max_num_seqs=4, max_batched_tokens=512)
    engine = BatchingEngine(hardware(SMALL), tight)
    old, new = Sequence(60, 40, index=0), Sequence(60, 40, index=1)
    engine.submit(old, 0)
    engine.submit(new, 0)
    tokens, sizes = [], []
    while engine.next_ns is not None:
        at = engine.next_ns
        advance = engine.advance(at)
        tokens += [(at, seq, seq.produced) for seq in advance.produced]
        sizes.append(advance.step_tokens)
    assert (old.preemptions, new.preemptions) == (0, engine.preemptions)
    assert engine.preemptions >= 1
    # Each time that it comes back, its prompt and all that it had said is computed again, in one step.
    assert sizes[:2] == [60, 61]  # the first arrived at an idle engine and started alone
    assert sum(size > 60 for size in sizes[2:]) == engine.preemptions
    assert [number for _, seq, number in tokens if seq is new] == list(range(1, 41))  # none twice, none lost
    assert max(at for at, seq, _ in tokens if seq is old) < max(at for at, seq, _ in tokens if seq is new)
    assert engine.free_blocks == 8


def test_an_aborted_sequence_frees_its_blocks_at_once_and_says_nothing_more():
    engine = BatchingEngine(hardware(SMALL), limits(SMALL))
    gone, stays = Sequence(100, 50), Sequence(100, 5)
    engine.submit(gone, 0)
    engine.submit(stays, 0)
    engine.advance(engine.next_ns)
    engine.advance(engine.next_ns)
    used = limits(SMALL).num_blocks - engine.free_blocks
    engine.abort(gone)
    assert limits(SMALL).num_blocks - engine.free_blocks == used - 7  # 100 tokens are 7 blocks of 16
    said = gone.produced
    assert all(seq is stays for _, seq, _ in run(engine))
    assert gone.produced == said
    assert engine.free_blocks == limits(SMALL).num_blocks


def test_a_late_call_does_not_slow_the_engine_down_unless_it_is_a_whole_step_late():
    engine = BatchingEngine(hardware(SMALL), limits(SMALL))
    seq = Sequence(16, 10)
    engine.submit(seq, 0)
    engine.advance(engine.next_ns)
    due_ns = engine.next_ns
    engine.advance(due_ns + 1_000_000)
    step_ns = engine.next_ns - due_ns
    assert step_ns == pytest.approx(23.6e6, rel=0.01)
    late_ns = engine.next_ns + 2 * step_ns
    engine.advance(late_ns)
    assert engine.slips == 1
    assert engine.next_ns == pytest.approx(late_ns + step_ns, abs=100_000)


def test_speed_divides_every_step():
    def duration(speed: float) -> int:
        engine = BatchingEngine(hardware(SMALL), limits(SMALL), speed)
        engine.submit(Sequence(16, 10), 0)
        return run(engine)[-1][0]

    assert duration(1) / duration(10) == pytest.approx(10, rel=1e-3)


def test_a_sequence_that_can_never_fit_is_an_error_not_a_hang():
    engine = BatchingEngine(hardware(SMALL), Limits(4, 16, 4, 512))
    with pytest.raises(ValueError):
        engine.submit(Sequence(60, 10), 0)


class Accounts(BatchingEngine):
    """Checks the block accounts at each schedule."""

    def check(self) -> None:
        held = sum(seq.blocks for seq in self.running)
        assert 0 <= self.free_blocks <= self.limits.num_blocks
        assert self.free_blocks + held == self.limits.num_blocks
        assert all(seq.blocks * self.limits.block_size >= seq.computed for seq in self.running)
        assert all(seq.blocks == 0 and seq.computed == 0 for seq in self.waiting)
        assert len(self.running) <= self.limits.max_num_seqs


arrivals = st.lists(
    st.tuples(st.integers(1, 100), st.integers(1, 60), st.integers(0, 40), st.booleans()), min_size=1, max_size=20
)


@settings(max_examples=60)
@given(arrivals, st.integers(10, 20), st.integers(1, 8), st.integers(8, 200))
def test_blocks_are_never_lost_and_every_sequence_ends(asked, num_blocks, seats, budget):
    """Prompt, output, time of arrival (ms), whether its client leaves after its first token."""
    engine = Accounts(hardware(SMALL), Limits(num_blocks, 16, seats, budget), speed=10)
    pending = sorted(((at * 1_000_000, p, o, leaves) for p, o, at, leaves in asked), key=lambda ask: ask[0])
    pending = [ask for ask in pending if ask[1] + ask[2] <= num_blocks * 16]
    admitted, numbers = [], {}
    now_ns = 0
    while pending or engine.next_ns is not None:
        if pending and (engine.next_ns is None or pending[0][0] < engine.next_ns):
            now_ns, prompt, output, leaves = pending.pop(0)
            seq = Sequence(prompt, output, owner=leaves, arrived_ns=now_ns)
            admitted.append(seq)
            engine.submit(seq, now_ns)
        else:
            assert engine.next_ns >= now_ns
            now_ns = engine.next_ns
            advance = engine.advance(now_ns)
            assert advance.step_tokens <= budget
            for seq in advance.produced:
                numbers.setdefault(id(seq), []).append(seq.produced)
                if seq.owner and seq.state != FINISHED:
                    engine.abort(seq)
        engine.check()
    assert engine.free_blocks == num_blocks
    assert engine.num_running == engine.num_waiting == 0
    for seq in admitted:
        wanted = 1 if seq.owner else seq.output_tokens
        assert numbers[id(seq)] == list(range(1, wanted + 1))
        assert seq.arrived_ns <= seq.scheduled_ns < seq.first_due_ns <= seq.due_ns


def test_paced_tokens_come_at_fixed_times_whatever_the_load():
    engine = PacedEngine(100_000_000, 20_000_000)
    seqs = [Sequence(10, 5, arrived_ns=i * 7_000_000) for i in range(300)]
    for seq in seqs:
        engine.submit(seq, seq.arrived_ns)
    due: dict[int, list[int]] = {}
    while engine.next_ns is not None:
        for seq in engine.advance(engine.next_ns).produced:
            due.setdefault(seq.arrived_ns, []).append(seq.due_ns - seq.arrived_ns)
    assert set(map(tuple, due.values())) == {tuple(100_000_000 + i * 20_000_000 for i in range(5))}
    assert engine.num_running == 0


def test_an_instant_engine_takes_breath_between_bursts():
    engine = PacedEngine(0, 0)
    seqs = [Sequence(1, 1000) for _ in range(3)]
    for seq in seqs:
        engine.submit(seq, 0)
    sizes = []
    while engine.next_ns is not None:
        sizes.append(len(engine.advance(0).produced))
        engine.abort(seqs[2])
    assert max(sizes) <= PacedEngine.BURST
    assert (seqs[0].produced, seqs[1].produced) == (1000, 1000)
    assert engine.num_running == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_a_full_context(name):
    presets.build(PRESETS[name])


def test_a_cache_smaller_than_the_context_is_refused():
    with pytest.raises(ConfigError) as caught:
        presets.build(replace(SMALL, kv_cache_bytes=1e8))
    assert str(caught.value).startswith("the KV-cache holds 864 tokens, fewer than --max-model-len 8192")
