"""Answers that waited for a model that had answered before: which count, and who overtook them."""

from __future__ import annotations

import sample_runs

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.loads import KEPT, Loads
from tokenswarm.measure.snapshot import Block
from tokenswarm.record import EngineTimes, RequestRecord

MS = NS_PER_S // 1000


def answer(sent_s: float, load_ms: int | None, done_s: float | None = None) -> RequestRecord:
    engine = None if load_ms is None else EngineTimes(load_ns=load_ms * MS)
    changes = {} if done_s is None else {"done_ns": int(done_s * NS_PER_S)}
    return sample_runs.request(1, int(sent_s * NS_PER_S), engine=engine, **changes)


def counted(*answers: RequestRecord) -> dict[str, int]:
    loads, block = Loads(), Block(stage=0, phase="steady")
    for one in answers:
        loads.count(block, one)
    return block.seldom


def test_a_cold_start_is_no_reload() -> None:
    assert counted(answer(1, 900), answer(1, 950), answer(2, 3)) == {}


def test_who_waits_after_the_model_had_answered_was_overtaken() -> None:
    warm = [answer(second, 5, second + 0.2) for second in (1, 2, 4, 5)]
    assert counted(*warm, answer(3, 3000, 6)) == {"again": 1, "overtaken by": 2}
    assert counted(*warm, answer(3, 249, 6)) == {}
    assert counted(answer(1, 900, 2), answer(3, 5, 3.2), answer(4, 700, 5)) == {"again": 1, "overtaken by": 0}


def test_engines_without_a_load_count_for_nothing() -> None:
    assert counted(answer(1, None), answer(2, None)) == {}


def test_only_so_many_are_kept() -> None:
    warm = [answer(1, 5, 1.5), *(answer(10 + i, 5) for i in range(2 * KEPT))]
    assert counted(*warm, answer(5, 900, 9999)) == {"again": 1, "overtaken by": KEPT}
