"""docs/mlperf.md and the profiles like MLPerf's: the numbers are those of its load generator, run for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_docs_tables import page, rows

from tokenswarm.measure.statistics import samples_needed
from tokenswarm.profile import profile
from tokenswarm.profile.slo import Percentiles, Slo

REPO = Path(__file__).resolve().parent.parent
CELLS = [row for row in rows(page("mlperf")) if row[0] in ("0.9", "0.99", "0.999")]


@pytest.mark.parametrize("cells", CELLS, ids=lambda cells: cells[0])
def test_early_stopping_takes_as_many_queries_as_loadgen_says(cells: list[str]) -> None:
    for t, n in zip((0, 1, 2, 3, 4, 5, 10), cells[1:], strict=True):
        assert not n or samples_needed(float(cells[0]), t) == int(n)


def test_the_table_is_there() -> None:
    assert len(CELLS) == 3


def test_the_server_profile_is_poisson_from_the_schedule_on_for_ten_minutes() -> None:
    path = REPO / "configs/profiles/mlperf-server.yaml"
    read = profile.load(path.read_text("utf-8"), str(path))
    assert (read.load.kind, read.load.stages[0].duration, read.phases.warmup) == ("poisson", 600.0, 0.0)
    limits = Slo(ttft_intended_s=Percentiles(p99=2.0), tpot_s=Percentiles(p99=0.2))
    assert read.slo == limits
    slo = REPO / "configs/slo/mlperf-llama2-70b-server.yaml"
    assert (
        profile.load("{target: http://a, dataset: {path: x}}", "p", (), (slo.read_text("utf-8"), str(slo))).slo
        == limits
    )
