"""What measuring dashboards rests on: half an hour that goes on as the run did, and queries as Grafana asks them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bench import panels
from bench.panel_series import AGAIN_S, RANGE_S, Page, Told, levels, parsed, played
from bench.panels import FLOOR, Compared, Cost, Query, selectors, step_s
from bench.results import OWN

TEXT = """\
# HELP a_total counts
# TYPE a_total counter
a_total 3
# TYPE b_seconds histogram
b_seconds_bucket{le="+Inf",run_id="x"} 2
b_seconds_sum{run_id="x"} 0.5
# TYPE c gauge
c{of="a, \\"b\\"",} 1e3
# TYPE d_seconds summary
d_seconds{quantile="0.5"} 7
d_seconds_count 9
"""
HERE = 'job="load",instance="i:1"'


def test_a_page_is_kept_as_prometheus_does() -> None:
    page, grows = parsed(TEXT, "load", "i:1")
    assert page == {
        f"a_total{{{HERE}}}": 3,
        f'b_seconds_bucket{{le="+Inf",run_id="x",{HERE}}}': 2,
        f'b_seconds_sum{{run_id="x",{HERE}}}': 0.5,
        f'c{{of="a, \\"b\\"",{HERE}}}': 1000,
        f'd_seconds{{quantile="0.5",{HERE}}}': 7,
        f"d_seconds_count{{{HERE}}}": 9,
    }
    assert {series.partition("{")[0] for series in grows} == {"a_total", "b_seconds_bucket", "b_seconds_sum"}


def test_the_end_of_a_run_is_played_again_and_again() -> None:
    scrapes, late = AGAIN_S + 10, 5
    pages: list[Page] = [
        {"count": 4.0 * n, "level": float(n % 7), "began": 1000.0} | ({"late": 1.0} if n >= late else {})
        for n in range(scrapes)
    ]
    told = Told(pages, frozenset({"count"}), frozenset({"began"}), 1000.0 + scrapes - 1, ("a", "b"), {})
    rows = [(second, dict(page)) for second, page in played(told, end_s=500_000)]
    assert [second for second, _ in rows] == list(range(500_000 - RANGE_S, 500_001))
    assert {b["count"] - a["count"] for (_, a), (_, b) in pairwise(rows)} == {4.0}, "at the pace of the run"
    assert [page["level"] for _, page in rows[scrapes : scrapes + AGAIN_S]] == [
        page["level"] for page in pages[-AGAIN_S:]
    ]
    assert {page["began"] for _, page in rows} == {500_000.0 - RANGE_S}, "it began with the first scrape here, too"
    assert ["late" in page for _, page in rows] == [n >= late for n in range(RANGE_S + 1)]


@pytest.mark.parametrize(
    ("columns", "scrape_s", "expected"), [(24, 1, 1), (8, 1, 5), (8, 5, 5), (6, 5, 5), (4, 5, 10), (2, 5, 15)]
)
def test_a_step_is_the_one_that_grafana_takes(columns: int, scrape_s: int, expected: int) -> None:
    assert step_s(columns, scrape_s) == expected


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ('sum by (le) (rate(a_bucket{run="x",le=~"1|2"}[20s]))', ['a_bucket{run="x",le=~"1|2"}[20s]']),
        ('max(a) / on (gpu) group_left (b) c:d:e{x="}"} or a', ["a", 'c:d:e{x="}"}']),
        ('label_replace({__name__=~"a|b"}, "to", "$1", "of", "(.+)") * 0 + 1e3', ['{__name__=~"a|b"}']),
        ("time() - a > bool 5 and a[5m] offset 1h unless b", ["a", "a[5m]", "b"]),
    ],
)
def test_what_a_query_selects(expr: str, expected: list[str]) -> None:
    assert selectors(expr) == expected


def _rules(folder: Path, name: str, **records: str) -> Path:
    path = folder / name
    path.mkdir()
    rules = [{"record": record, "expr": expr} for record, expr in records.items()]
    (path / "r.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "interval": "5s", "rules": rules}]}))
    return path


def test_a_rule_comes_after_those_that_it_asks_and_the_first_folders_wins(tmp_path: Path) -> None:
    now = _rules(tmp_path, "now", third="second + 1", second="first * 2", first="rate(a[1m])")
    before = _rules(tmp_path, "before", first="a", gone="b")
    found = [[rule for group in groups for rule in group["rules"]] for groups in levels([now, before])]
    assert [{rule["record"] for rule in rules} for rules in found] == [{"first", "gone"}, {"second"}, {"third"}]
    assert [rule["expr"] for rule in found[0]] == ["rate(a[1m])", "b"]


@pytest.mark.parametrize(
    ("now", "floor", "verdict"),
    [
        (Cost(5.0, 90), Cost(1.0, 9), "yes"),
        (Cost(5.1, 90), Cost(1.0, 9), "**no**"),
        (Cost(9.0, 9), Cost(8.0, 9), "at its floor"),
        (Cost(2.0, 9), Cost(1.0, 9), "yes; at its floor"),
    ],
)
def test_a_dashboard_is_cheap_enough_or_at_its_floor(now: Cost, floor: Cost, verdict: str) -> None:
    query = Query("a-live", "TTFT", "A", "x", 5)
    one = Compared(
        {"now": query, "before": query},
        {"now": [now], "before": [Cost(10.0, 90)], FLOOR: [floor]},
        {"now": 50.0, "before": 60.0},
    )
    assert one.verdict[1] == verdict
    text = panels.section([one], {"now": 1.0}, "abc", 3, (10, 100), 5.0)
    assert text.startswith(OWN), "it is kept where the other sections are written anew"
    assert ("**not** a-live" in text) == (verdict == "**no**")
