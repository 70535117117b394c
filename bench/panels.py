"""The dearest query of each dashboard, half an hour of a run with eight workers, against the dashboards before.

`python -m bench --panels ROUNDS`, before: BENCH_AGAINST=REVISION. Both are asked in turn, of one Prometheus that holds
the run scraped each second and what the rules of both record (panel_series.py), with the steps of a screen 1 280 pixels
wide. What counts is Prometheus's own time of evaluation; the samples it counts do not depend on the machine.

The floor of a query is what selecting its series takes, without a function over them: fewer series alone are cheaper.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bench import panel_series
from bench.goals import met, spread
from bench.panel_series import BLOCK_S, RANGE_S, WORKERS, Prometheus
from bench.results import table
from bench.runs import REPO, at_revision
from bench.sender import BenchError

Say = Callable[[str], None]

RATIO = 0.5
AGAIN = 4  # times as often as all others, the dearest ones are asked
WIDTH_PX, COLUMNS = 1280, 24
DASHBOARDS, RULES = Path("grafana", "dashboards"), Path("configs", "prometheus", "rules")
STEPS_MS = (
    (1500, 1000), (3500, 2000), (7500, 5000), (12_500, 10_000), (17_500, 15_000), (25_000, 20_000), (45_000, 30_000),
    (90_000, 60_000),
)  # fmt: skip
"""Of Grafana: up to so many milliseconds a pixel, this step."""
WORDS = frozenset(("and", "or", "unless", "bool", "offset", "inf", "nan"))


class Query(NamedTuple):
    """One target of a panel, as Grafana asks it."""

    dashboard: str
    panel: str
    ref: str
    expr: str
    step_s: int  # 0: one moment

    @property
    def where(self) -> str:
        return f"{self.panel} {self.ref}"


class Cost(NamedTuple):
    """What Prometheus tells of an answer."""

    ms: float
    samples: int


Costs = dict[Query, list[Cost]]
FLOOR = "floor"


class Compared(NamedTuple):
    """A dashboard: its dearest query now and before; what both took in turn, and the floor of the one now."""

    queries: dict[str, Query]
    costs: dict[str, list[Cost]]
    all_ms: dict[str, float]  # of all its queries, once each, in the least of the rounds

    @property
    def verdict(self) -> tuple[str, str]:
        """The ratio, and whether it is kept."""
        if "before" not in self.costs:
            return "–", "–"
        pairs = zip(self.costs["now"], self.costs["before"], strict=True)
        ratios = spread([now.ms / before.ms for now, before in pairs])
        assert ratios is not None
        kept = met(ratios, RATIO)
        if self.costs["now"][0].samples <= self.costs[FLOOR][0].samples:
            kept = "at its floor" if kept == "**no**" else f"{kept}; at its floor"
        return ratios.show(2), kept


def measured(rounds: int, say: Say) -> str:
    """The section on the dearest panel queries."""
    against = os.environ.get("BENCH_AGAINST")
    began_s = time.monotonic()
    with at_revision(against, str(DASHBOARDS), str(RULES)) as other, tempfile.TemporaryDirectory() as name:
        sides = {"now": REPO} | ({"before": other} if other is not None else {})
        folder = Path(name)
        told = panel_series.scraped(folder, say)
        end_s = int(told.end_s) // BLOCK_S * BLOCK_S - 600  # within one block of Prometheus
        counts = panel_series.load(told, end_s, folder, say)
        panel_series.record([side / RULES for side in sides.values()], end_s, folder, say)
        with panel_series.serving(folder) as prometheus:
            panel_series.merged(folder)
            queries = {
                side: [one for path in sorted((where / DASHBOARDS).glob("*.json"))
                       for one in asked(path, prometheus, told.runs, end_s)]
                for side, where in sides.items()
            }  # fmt: skip
            costs = measure(prometheus, queries, end_s, rounds, say)
            boards = dict.fromkeys(one.dashboard for one in queries["now"])
            found = [compared(prometheus, queries, costs, board, end_s, rounds) for board in boards]
            rules = {side: rules_ms(prometheus, where / RULES, end_s, rounds) for side, where in sides.items()}
    return section(found, rules, against, rounds, counts, time.monotonic() - began_s)


def step_s(columns: int, scrape_s: int) -> int:
    """Between two points of a panel so wide: a point a pixel, rounded as Grafana does, and the data source's at least.

    `scrape_s` is the data source's timeInterval.
    """
    pixel_ms = 1000 * RANGE_S / (WIDTH_PX * columns / COLUMNS)
    rounded_ms = next(step for below, step in STEPS_MS if pixel_ms <= below)
    return max(rounded_ms // 1000, scrape_s)


def asked(path: Path, prometheus: Prometheus, runs: tuple[str, str], end_s: int) -> list[Query]:
    """Every target of a dashboard with its variables filled in."""
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    source = yaml.safe_load((REPO / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    scrape_s = int(source["datasources"][0]["jsonData"]["timeInterval"].removesuffix("s"))
    values = {"__range": f"{RANGE_S}s", "run_id": runs[1], "run_a": runs[1], "run_b": runs[0]}
    for variable in dashboard["templating"]["list"]:
        if variable["name"] in values or variable["type"] == "datasource":
            continue
        values[variable["name"]] = _value(variable, values, prometheus, end_s)
    queries = []
    for panel in dashboard["panels"]:
        for one in [panel, *(panel.get("panels") or [])]:
            step = step_s(one["gridPos"]["w"], scrape_s)
            rate_s = max(step + scrape_s, 4 * scrape_s)
            for target in one.get("targets") or []:
                expr = _filled(target["expr"], values | {"__rate_interval": f"{rate_s}s", "__interval": f"{step}s"})
                where = (path.stem, one["title"], target["refId"])
                queries.append(Query(*where, expr, 0 if target.get("instant") else step))
    return queries


def _value(variable: dict[str, Any], values: dict[str, str], prometheus: Prometheus, end_s: int) -> str:
    """All that the query of a variable finds; its default where it has none."""
    if variable["type"] != "query":
        return str(variable["current"]["value"])
    expr = variable["query"]["query"].removeprefix("query_result(").removesuffix(")")
    answer = prometheus.ask("query", query=_filled(expr, {**values, "1": "$1"}), time=str(end_s))["result"]
    regex = re.compile(variable["regex"].strip("/"))
    found = []
    for one in answer:  # as Grafana writes a series
        labels = ",".join(f'{key}="{value}"' for key, value in one["metric"].items())
        match = regex.search(f"{{{labels}}} {one['value'][1]} {one['value'][0] * 1000:.0f}")
        found += [match[1]] if match else []
    if not found:
        raise BenchError(f"the variable {variable['name']} finds nothing: {expr}")
    if not variable.get("multi"):
        return found[0]
    return "(" + "|".join(map(re.escape, sorted(set(found)))).replace("\\", "\\\\") + ")"


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda match: values[match[1] or match[2]], text)


def selectors(expr: str) -> list[str]:
    """The series that a query reads, each once: NAME{MATCHERS}, with [RANGE] where it is over one."""
    texts: list[str] = []

    def hide(match: re.Match[str]) -> str:
        texts.append(match[0])
        return f'"{len(texts) - 1}"'

    bare = re.sub(r'"(?:[^"\\]|\\.)*"', hide, expr)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found: dict[str, None] = {}
    pattern = r"(?<![\w:.\"$])([a-zA-Z_:][\w:]*)?(\{[^}]*\})?(\[\w+\])?"
    for match in re.finditer(pattern, bare):
        name, labels, over = match[1] or "", match[2] or "", match[3] or ""
        call = bare[match.end() :].lstrip().startswith("(") and not labels
        if not (name or labels) or call or (name.lower() in WORDS and not labels):
            continue
        text = re.sub(r'"(\d+)"', lambda hidden: texts[int(hidden[1])], name + labels)
        found[text + over] = None
    return list(found)


def ask(prometheus: Prometheus, expr: str, step: int, end_s: int) -> Cost:
    if step:
        moments = {"start": str(end_s - RANGE_S), "end": str(end_s), "step": str(step)}
        stats = prometheus.account("query_range", query=expr, **moments)
    else:
        stats = prometheus.account("query", query=expr, time=str(end_s))
    return Cost(1000 * stats["timings"]["evalTotalTime"], stats["samples"]["totalQueryableSamples"])


def floor(prometheus: Prometheus, query: Query, end_s: int) -> Cost:
    """Selecting its series: their points at the steps, or at one moment all of a range."""
    series = dict.fromkeys(re.sub(r"\[\w+\]$", "", one) if query.step_s else one for one in selectors(query.expr))
    costs = [ask(prometheus, one, query.step_s, end_s) for one in series]
    return Cost(sum(one.ms for one in costs), sum(one.samples for one in costs))


def measure(prometheus: Prometheus, queries: dict[str, list[Query]], end_s: int, rounds: int, say: Say) -> Costs:
    """Each query once a round, dashboard by dashboard, the two sides in turn."""
    found: Costs = {}
    order = sorted((one.dashboard, side, one) for side, some in queries.items() for one in some)
    for number in range(rounds):
        for *_, one in order:
            found.setdefault(one, []).append(ask(prometheus, one.expr, one.step_s, end_s))
        say(f"round {number + 1} of {rounds}: {len(order)} queries")
    return found


def compared(
    prometheus: Prometheus, queries: dict[str, list[Query]], costs: Costs, dashboard: str, end_s: int, rounds: int
) -> Compared:
    """The dearest query of a dashboard, of each side, once more and in turn, with the floor of the one now.

    Which is the dearest, the least of the rounds says: what else the machine does only adds.
    """
    dearest, all_ms = {}, {}
    for side, some in queries.items():
        least = {one: min(cost.ms for cost in costs[one]) for one in some if one.dashboard == dashboard}
        dearest[side], all_ms[side] = max(least, key=least.__getitem__), sum(least.values())
    found: dict[str, list[Cost]] = {side: [] for side in dearest}
    for _ in range(rounds * AGAIN):
        for side, query in dearest.items():
            found[side].append(ask(prometheus, query.expr, query.step_s, end_s))
    found[FLOOR] = [floor(prometheus, dearest["now"], end_s) for _ in range(rounds)]
    return Compared(dearest, found, all_ms)


def rules_ms(prometheus: Prometheus, folder: Path, end_s: int, rounds: int) -> float:
    """What Prometheus takes for recording rules, ms a second: each as often as its group says."""
    taken = 0.0
    for groups in panel_series.levels([folder]):
        for group in groups:
            for rule in group["rules"]:
                costs = [ask(prometheus, rule["expr"], 0, end_s).ms for _ in range(rounds)]
                taken += min(costs) / int(group["interval"].removesuffix("s"))
    return taken


def section(
    found: list[Compared],
    rules: dict[str, float],
    against: str | None,
    rounds: int,
    counts: tuple[int, int],
    took_s: float,
) -> str:
    """What stands in RESULTS.md."""
    rows = []
    for one in found:
        for side in [*one.queries, FLOOR]:
            ms, query = spread([cost.ms for cost in one.costs[side]]), one.queries.get(side)
            row = [one.queries["now"].dashboard, side, ms.show(2) if ms else "–", f"{one.costs[side][0].samples:,}"]
            row += [*(one.verdict if side == "now" else ("", "")), query.where if query else ""]
            rows.append([*row, f"{one.all_ms[side]:.0f}" if query else ""])
    head = ("dashboard", "", "ms", "samples", "now / before", "met", "its dearest query", "all its queries, ms")
    command = (f"BENCH_AGAINST={against} " if against else "") + f"python -m bench --panels {rounds}"
    told = ", ".join(f"{side} {ms:.1f} ms" for side, ms in rules.items())
    text = (
        f"{RANGE_S // 60} minutes of a run with {WORKERS} workers and of a shorter one, scraped each second: "
        f"{counts[0]:,} series, {counts[1]:,} samples, in one Prometheus with what the rules record. Each query of "
        f"each panel, {rounds} times, of which the least tells the dearest and all sums; the dearest of each "
        f"dashboard {rounds * AGAIN} times more, in turn with that of the dashboards before. Prometheus's own time of "
        "evaluation, ms: median (min..max); the samples that it counts, a range at each step anew. Floor: selecting "
        "the series of the query now, without a function."
    )
    return (
        f"## What a dashboard's dearest query takes\n\n`{command}`, {took_s:.0f} s, load average "
        f"{os.getloadavg()[1]:.1f}. {text}\n\n"
        f"* At most {RATIO:g} of the dearest before, or no sample beyond those of its series: {_kept(found)}.\n"
        f"* What that costs while nobody looks: recording rules take of each second {told}.\n\n" + table(head, rows)
    )


def _kept(found: list[Compared]) -> str:
    missed = [one.queries["now"].dashboard for one in found if one.verdict[1] in ("**no**", "–")]
    return f"**not** {', '.join(missed)}" if missed else "each dashboard"
