"""Reports add up to the same totals whatever the network does to them, and damaged ones are named, never believed."""

from __future__ import annotations

import math
import random
from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.measure import snapshot as snapshots
from tokenswarm.measure.periods import Periods
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.sketch import RELATIVE_ERROR, Sketch
from tokenswarm.measure.slo import Slo
from tokenswarm.measure.snapshot import Block, Inbox, Instrument, Merged, Snapshot, SnapshotError, total
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource

MS = 1_000_000
START_NS = 10**15


def record(rng: random.Random, at_ns: int, *, stage: int = 0, phase: str = "steady") -> RequestRecord:
    events = rng.randrange(1, 12)
    stamps = [at_ns + 50 * MS]
    for _ in range(events - 1):
        stamps.append(stamps[-1] + rng.randrange(1, 40) * MS)
    return RequestRecord(
        id="r",
        outcome=rng.choice([Outcome.OK, Outcome.OK, Outcome.OK, Outcome.RESET, Outcome.CENSORED, Outcome.CANCELLED]),
        stage=stage,
        phase=phase,
        intended_ns=at_ns - 1000,
        sent_ns=at_ns,
        first_ns=stamps[0],
        first_answer_ns=stamps[0],
        last_ns=stamps[-1],
        done_ns=stamps[-1] + MS,
        connect_ns=MS,
        prompt_tokens=rng.randrange(5, 50),
        output_tokens=events,
        token_source=rng.choice(list(TokenSource)),
        events=events,
        reads=events,
        bytes_received=events * 100,
        gaps_ns=tuple(b - a for a, b in pairwise(stamps)),
        token_stamps_ns=tuple(stamps),
        engine=EngineTimes(total_ns=100 * MS, decode_ns=50 * MS) if rng.random() < 0.3 else None,
    )


def reports_of(worker: int, rng: random.Random, seconds: int = 6) -> list[Snapshot]:
    """What one worker sends in a run of two stages, the final report last."""
    recorder = Recorder("run", worker, Slo(ttft_s=0.1), start_ns=START_NS, host="h", pid=100 + worker)
    reports = []
    for second in range(seconds):
        now_ns = START_NS + second * 1000 * MS
        stage, phase = divmod(second, 3)
        if phase == 1:
            recorder.open_window(stage, now_ns)
        for _ in range(rng.randrange(4)):
            kind = ("warmup", "steady", "drain")[phase]
            recorder.intended(stage, kind)
            recorder.started(stage, kind)
            recorder.ended(decoding=False)
            recorder.add(record(rng, now_ns + rng.randrange(900) * MS, stage=stage, phase=kind))
        if phase == 1:
            recorder.close_window(stage, now_ns + 1000 * MS)
        reports.append(recorder.snapshot(now_ns + 1000 * MS, final=second == seconds - 1))
    return reports


def through_the_wire(report: Snapshot) -> Snapshot:
    return snapshots.decode(snapshots.encode(report))


def test_a_snapshot_survives_the_wire() -> None:
    for report in reports_of(0, random.Random(1)):
        assert through_the_wire(report) == report


def test_the_sum_survives_the_wire() -> None:
    inbox = Inbox("run")
    inbox.put(reports_of(0, random.Random(1))[-1])
    merged = inbox.merged()
    assert snapshots.decode_merged(snapshots.encode(merged)) == merged


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_order_repetition_and_loss_gives_the_same_totals(seed: int, data: st.DataObject) -> None:
    rng = random.Random(seed)
    sent = [reports_of(worker, rng) for worker in range(3)]
    finals = [reports[-1] for reports in sent]
    others = [report for reports in sent for report in reports[:-1]]
    truth = Inbox("run")
    for report in finals:
        truth.put(report)

    arriving = finals + data.draw(st.lists(st.sampled_from(others + finals), max_size=30))
    inbox = Inbox("run")
    for index, report in enumerate(data.draw(st.permutations(arriving))):
        inbox.put(through_the_wire(report))
        if index % 7 == 3:
            inbox.merged()  # looking at the sum on the way must not change it
    assert inbox.merged().blocks == truth.merged().blocks
    assert inbox.merged().final


def test_two_lost_reports_in_a_row_delay_nothing() -> None:
    sent = reports_of(0, random.Random(8))
    everything, lossy = Inbox("run"), Inbox("run")
    for index, report in enumerate(sent[:-1]):
        everything.put(report)
        if index % 3 == 1:
            lossy.put(report)
    assert sent[-2].seq % 3 == 2
    assert lossy.merged().blocks == everything.merged().blocks


def test_repeats_and_overtaken_reports_say_so_and_lost_ones_are_listed() -> None:
    sent = reports_of(4, random.Random(2))
    inbox = Inbox("run")
    assert inbox.put(sent[1])
    assert not inbox.put(sent[1])
    assert inbox.put(sent[4])
    assert inbox.merged().workers[0].missing == [1, 3, 4]
    assert not inbox.put(sent[2])
    assert inbox.merged().workers[0].missing == [1, 4]
    assert not inbox.merged().final
    assert inbox.put(sent[5])
    assert inbox.merged().final


def test_a_jump_of_numbers_costs_no_memory() -> None:
    inbox = Inbox("run")
    inbox.put(Snapshot(run_id="run", worker=0, seq=1, sent_ns=0, elapsed_ns=0))
    inbox.put(Snapshot(run_id="run", worker=0, seq=2**62, sent_ns=0, elapsed_ns=0))
    assert len(inbox.merged().workers[0].missing) == snapshots.MISSING_MAX


def test_reports_of_another_run_or_a_restarted_worker_are_not_counted() -> None:
    report = reports_of(0, random.Random(3))[-1]
    with pytest.raises(SnapshotError, match="a report of run 'run' came to run 'other'"):
        Inbox("other").put(report)
    inbox = Inbox("run")
    inbox.put(report)
    before = inbox.merged().blocks
    with pytest.raises(SnapshotError, match="worker 0 was process 100 on 'h' and now reports as process 7"):
        inbox.put(msgspec.structs.replace(report, pid=7, seq=99))
    assert inbox.merged().blocks == before


def test_seven_skewed_workers_merge_to_the_pooled_quantiles() -> None:
    rng, pooled, inbox = random.Random(6), [], Inbox("run")
    for worker in range(7):
        values = [rng.lognormvariate(-3 + worker / 2, 0.2 + worker / 10) for _ in range(50 * 3**worker // 9 + 20)]
        pooled += values
        block = Block(stage=0, phase="steady", e2e=Sketch(values), ok=len(values))
        inbox.put(Snapshot(run_id="run", worker=worker, seq=1, final=True, sent_ns=0, elapsed_ns=0, blocks=[block]))
    merged = inbox.merged().block(0)
    assert merged.ok == merged.e2e.n == len(pooled)
    for q in (0.5, 0.9, 0.99, 0.999):
        exact = sorted(pooled)[math.ceil(q * len(pooled)) - 1]
        assert merged.e2e.quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR)


def test_windows_of_workers_overlap_and_windows_of_stages_follow_each_other() -> None:
    def block(stage: int, start_ns: int, end_ns: int) -> Block:
        return Block(
            stage=stage,
            phase="steady",
            window_start_ns=start_ns,
            window_end_ns=end_ns,
            window_ns=end_ns - start_ns,
            window_tokens=10,
            first_sent_ns=start_ns,
            last_done_ns=end_ns,
        )

    inbox = Inbox("run")
    for worker, blocks in enumerate(([block(0, 10, 110), block(1, 200, 300)], [block(0, 12, 110)])):
        inbox.put(Snapshot(run_id="run", worker=worker, seq=1, sent_ns=0, elapsed_ns=0, blocks=blocks))
    merged = inbox.merged()
    first = merged.block(0)
    assert (first.window_start_ns, first.window_end_ns, first.window_ns, first.window_tokens) == (10, 110, 100, 20)
    whole = total(merged.blocks)
    assert (whole.window_start_ns, whole.window_end_ns, whole.window_ns, whole.window_tokens) == (10, 300, 200, 30)
    assert (whole.first_sent_ns, whole.last_done_ns) == (10, 300)
    assert merged.block(9) == Block(stage=9, phase="steady")


def test_every_field_of_a_block_is_summed() -> None:
    def filled(value: int) -> Block:
        block = Block(stage=0, phase="steady")
        _fill(block, value)
        return block

    def _fill(struct: msgspec.Struct, value: int) -> None:
        for name in struct.__struct_fields__:
            old = getattr(struct, name)
            if isinstance(old, Sketch):
                old.add(value)
            elif isinstance(old, Periods):
                old.add(value, failed=True)
            elif isinstance(old, dict):
                old["key"] = Sketch([value]) if name.endswith("_half") else value
            elif isinstance(old, msgspec.Struct):
                _fill(old, value)
            elif name not in ("stage", "phase"):
                setattr(struct, name, value)

    blocks = [filled(3), filled(5)]
    summed = total(blocks)
    for struct, parts in ((summed, blocks), (summed.conventions, [b.conventions for b in blocks])):
        for name in struct.__struct_fields__:
            values = [getattr(part, name) for part in parts]
            match getattr(struct, name):
                case Sketch() as sketch:
                    assert (sketch.n, sketch.sum) == (2, 8.0), name
                case Periods() as periods:
                    assert periods == Periods(ended={3: 1, 5: 1}, failed={3: 1, 5: 1})
                case dict() as counts:
                    assert counts["key"] in (8, Sketch([3, 5])), name
                case int(number) if name not in ("stage", "phase"):
                    assert number == (8 if name not in snapshots._EXTENT or name == "window_ns" else number), name
                    assert number in (8, *values), name
    assert blocks[0] == filled(3), "summing must not change what is summed"


def test_rho_is_the_weighted_mean_and_never_negative() -> None:
    block = Block(stage=0, phase="steady", rho_n={"ttft": 40, "e2e": 10}, rho_weighted={"ttft": 10.0, "e2e": -3.0})
    assert (block.rho("ttft"), block.rho("e2e"), block.rho("tpot")) == (0.25, 0.0, 0.0)


GOOD = snapshots.encode(reports_of(0, random.Random(9))[-1])


def broken(**fields: object) -> bytes:
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(GOOD), **fields})


DAMAGED = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "a list": b"\x90",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "cut short": GOOD[:-1],
    "more behind": GOOD + b"\x00",
    "no fields": msgspec.msgpack.encode({"schema_version": snapshots.SCHEMA_VERSION}),
    "no version": msgspec.msgpack.encode({"run_id": "run"}),
    "seq 0": broken(seq=0),
    "a negative count": broken(blocks=[{"stage": 0, "phase": "steady", "ok": -1}]),
    "a huge number": broken(elapsed_ns=2**64 - 1, seq="1"),
    "a sketch that is none": broken(blocks=[{"stage": 0, "phase": "steady", "e2e": 7}]),
    "a sketch that can't be": broken(
        blocks=[{"stage": 0, "phase": "steady", "e2e": [1.0, 1.0, 1.0, 0, 0, 0, 0, [1], [1]]}]
    ),
    "nested too deep": b"\x81\xa1x" + b"\x91" * 100_000 + b"\x90",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_reports_are_named(data: bytes) -> None:
    with pytest.raises(SnapshotError, match="a report could not be read: "):
        snapshots.decode(data)


def test_other_versions_and_giants_are_named() -> None:
    with pytest.raises(
        SnapshotError, match="a report has schema version 99, this program reads 2: run the same version"
    ):
        snapshots.decode(broken(schema_version=99))
    with pytest.raises(SnapshotError, match="bytes, more than the"):
        snapshots.decode(b"\x00" * (snapshots.BYTES_MAX + 1))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_garbage_raises_snapshot_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        snapshots.decode(data)


@settings(max_examples=200)
@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_one_flipped_byte_raises_snapshot_error_or_is_read(at: int, byte: int) -> None:
    with suppress(SnapshotError):
        snapshots.decode(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])


def test_unknown_fields_are_skipped_so_that_a_schema_can_grow() -> None:
    assert snapshots.decode(broken(new_field=[1, 2])) == snapshots.decode(GOOD)


def test_a_full_report_is_far_below_the_limit() -> None:
    rng = random.Random(12)
    wide = [rng.lognormvariate(0, 1.2) for _ in range(3000)]
    blocks = []
    for stage in range(40):
        block = Block(stage=stage, phase="steady")
        for name in block.__struct_fields__:
            if isinstance(getattr(block, name), Sketch):
                setattr(block, name, Sketch(wide))
        blocks.append(block)
    report = Snapshot(run_id="run", worker=0, seq=1, final=True, sent_ns=0, elapsed_ns=0, blocks=blocks)
    assert len(snapshots.encode(report)) < snapshots.BYTES_MAX / 4


def test_kernel_stamp_ratio() -> None:
    assert Instrument().kernel_stamp_ratio is None
    assert Instrument(kernel_stamped=3, user_stamped=1).kernel_stamp_ratio == 0.75


def test_an_empty_sum_is_not_final() -> None:
    assert not Inbox("run").merged().final
    assert Merged(run_id="run").blocks == []


@pytest.mark.parametrize("seconds", [10, 511, 4000, 90_000])
def test_periods_are_bounded_and_add_up_in_any_order(seconds: int) -> None:
    """An outage of a tenth of the run keeps its place, to the width of a bin, however long the run is."""
    workers = [Periods(), Periods(), Periods()]
    for second in range(seconds):
        failed = 0.4 * seconds <= second < 0.5 * seconds
        for worker in workers[: 1 + second % 3]:
            worker.add(second, failed=failed)
    sums = []
    for order in (workers, workers[::-1]):
        whole = Periods()
        for worker in order:
            whole.merge(worker)
        sums.append(whole)
    assert sums[0] == sums[1]
    assert len(sums[0].ended) <= 512
    assert sum(sums[0].ended.values()) == sum(1 + second % 3 for second in range(seconds))
    found = sums[0].worst()
    assert found is not None
    assert abs(found.start_s - 0.4 * seconds) <= sums[0].width_s
    assert abs(found.end_s - 0.5 * seconds) <= sums[0].width_s


def test_periods_without_a_failure_have_no_outage() -> None:
    periods = Periods(ended={1: 4, 2: 2}, failed={1: 2})
    assert periods.worst() is None  # half is not most
    periods.failed[1] = 3
    outage = periods.worst()
    assert outage is not None
    assert (outage.start_s, outage.end_s, outage.failed, outage.ended) == (1, 2, 3, 4)
