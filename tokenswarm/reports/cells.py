"""The tables that every report shows, as plain cells: stages, latencies, gates. Renderers only draw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tokenswarm.measure.statistics import samples_needed
from tokenswarm.reports.numbers import MISSING, duration, of_limit, of_metric, quantity
from tokenswarm.result.stat import Stat
from tokenswarm.result.summary import PERCENTILES, Gate, Requests, Stage, Summary


def per_user(stage: Stage) -> float | None:
    """Output tokens a second that one user got, waiting included; in an open loop, one request in flight."""
    tokens_per_s, shared_by = stage.throughput.output_tokens_per_s, stage.concurrency or stage.batch_mean
    return tokens_per_s / shared_by if tokens_per_s is not None and shared_by else None


def load_cell(stage: Stage) -> str:
    """What a stage asked for: its users, 20/s, or 5→80/s."""
    if stage.rate is None:
        return str(stage.concurrency or MISSING)
    end = f"→{quantity(stage.rate_end)}" if stage.rate_end is not None else ""
    return f"{quantity(stage.rate)}{end}/s"


STAGE_COLUMNS: dict[str, Callable[[Stage], str]] = {
    "users": lambda stage: load_cell(stage),
    "req/s": lambda stage: quantity(stage.throughput.requests_per_s),
    "tok/s": lambda stage: quantity(stage.throughput.output_tokens_per_s),
    "tok/s user": lambda stage: quantity(per_user(stage)),
    "TTFT p50": lambda stage: with_bar(stage.latency.ttft_s, "p50"),
    "TTFT p99": lambda stage: with_bar(stage.latency.ttft_s, "p99"),
    "ITL p50": lambda stage: with_bar(stage.latency.itl_s, "p50"),
    "ITL p99": lambda stage: with_bar(stage.latency.itl_s, "p99"),
    "TPOT p50": lambda stage: with_bar(stage.latency.tpot_s, "p50"),
    "E2E p50": lambda stage: with_bar(stage.latency.e2e_s, "p50"),
    "failed": lambda stage: str(stage.requests_steady.failed),
}
"""A row a column of the table of stages: its head, and the cell of a stage. The first is the users, or the rate."""

STAGE_HEAD = tuple(STAGE_COLUMNS)

LATENCY_HEAD = ("", "n", "mean", "p50", "p90", "p95", "p99", "p99.9", "max")

LATENCY_NAMES = {
    "ttft_s": "TTFT",
    "ttft_intended_s": "TTFT, as due",
    "ttfat_s": "first answer",
    "itl_s": "ITL",
    "tpot_s": "TPOT",
    "e2e_s": "E2E",
    "e2e_intended_s": "E2E, as due",
    "stall_s": "worst gap",
    "connect_s": "connect",
}

BAR_FROM = 0.01  # of the value: a smaller error is not shown

ENGINE_NAMES = {
    "queue_s": "engine: queue",
    "prefill_s": "engine: prefill",
    "ttft_s": "engine: TTFT − queue",
}
"""Of `server`: the parts of a TTFT that the engine told with each answer; rows below the client's own."""

GATE_HEAD = ("gate", "limit", "value", "result", "why")


def stage_rows(summary: Summary) -> list[list[str]]:
    """A row a stage: users (or the rate), throughput, latencies, failures."""
    return [[cell(stage) for cell in STAGE_COLUMNS.values()] for stage in summary.stages]


def latency_rows(summary: Summary) -> list[list[str]]:
    """A row a latency that was seen. Time to first answer only where it differs: a model that thinks first."""
    rows = []
    for field, name in LATENCY_NAMES.items():
        stat: Stat = getattr(summary.latency, field)
        if not stat.n or (field == "ttfat_s" and _alike(stat, summary.latency.ttft_s)):
            continue
        rows.append(_latency_row(name, stat))
        if field == "ttft_s":
            found = ((shown, summary.server.get(key)) for key, shown in ENGINE_NAMES.items())
            told = ((shown, msgspec.convert(value, Stat)) for shown, value in found if value is not None)
            rows += [_latency_row(shown, stat) for shown, stat in told if stat.n]
    return rows


def _latency_row(name: str, stat: Stat) -> list[str]:
    cells = [duration(stat.mean), *(with_bar(stat, which) for which in PERCENTILES), duration(stat.max)]
    return [name, quantity(stat.n) if stat.n >= 10_000 else str(stat.n), *cells]


def with_bar(stat: Stat, which: str) -> str:
    """A percentile, and ± half of its interval where that is more than BAR_FROM of it."""
    value, low, high = getattr(stat, which), stat.low.get(which), stat.high.get(which)
    if value is None or low is None or high is None or (half_s := (high - low) / 2) <= BAR_FROM * value:
        return duration(value)
    return f"{duration(value)} ±{duration(half_s)}"


def _alike(first: Stat, second: Stat) -> bool:
    return (first.n, first.mean, first.max) == (second.n, second.mean, second.max)


def gate_row(gate: Gate) -> list[str]:
    op = {"<=": "≤", ">=": "≥"}.get(gate.op, gate.op)
    return [
        gate.metric, f"{op} {of_limit(gate.metric, gate.limit)}", of_metric(gate.metric, gate.value), gate.result,
        gate.reason,
    ]  # fmt: skip


def footnote(summary: Summary, *tables: list[list[str]]) -> str | None:
    """What – means, where one is shown: what the samples are worth, and which percentiles have too wide a bar."""
    if not any(MISSING in row for table in tables for row in table):
        return None
    parts = [*summary.stages, summary] if len(summary.stages) > 1 else [summary]
    stats = [(name, getattr(part.latency, field)) for part in parts for field, name in LATENCY_NAMES.items()]
    few = {name: stat for name, stat in stats if stat.n and _lacks(stat)}
    unsure = {name: stat.withheld for name, stat in stats if stat.withheld}
    worth = ", ".join(f"{name} {stat.n} worth {stat.n_effective:.0f}" for name, stat in few.items()
                      if stat.n_effective < 0.95 * stat.n)  # fmt: skip
    said = []
    if few or not unsure:
        said.append(
            f"too few samples for this percentile: a p99 takes {samples_needed(0.99)} requests, "
            f"a p99.9 {samples_needed(0.999)}, more where they depend on each other" + (f" ({worth})" if worth else "")
        )
    if unsure:
        names = ", ".join(f"{name} {' '.join(withheld)}" for name, withheld in unsure.items())
        said.append(f"{names}: withheld, the instrument's own error is too large a part of it (summary.json has it)")
    return f"{MISSING} {'; '.join(said)}."


def _lacks(stat: Stat) -> bool:
    """Whether a percentile is not told because of too few samples."""
    return any(stat.n_effective < samples_needed(p) for p in PERCENTILES.values())


SEARCH_HEAD = ("try", "load", "result", "window", "requests", "why")


def search_rows(summary: Summary) -> list[list[str]]:
    """A row a try of a search, in order."""
    unit = "/s" if summary.search.get("of") == "rate" else ""
    return [
        [
            str(number), f"{quantity(probe['load'])}{unit}", _result(probe), duration(probe["seconds"]),
            str(probe["requests"]), probe["reason"].partition(":")[0],
        ]
        for number, probe in enumerate(summary.search.get("probes", ()), 1)
    ]  # fmt: skip


def _result(probe: dict[str, Any]) -> str:
    """An undecided try counts as what its numbers were: within the limits, or over one."""
    if probe["result"] != "undecided":
        return str(probe["result"])
    return "undecided, within" if probe["within"] else "undecided, over"


def search_line(summary: Summary) -> str:
    """The answer in one line, which a script can read too; "" where there was no search."""
    if not summary.search:
        return ""
    found = summary.search
    told = [f"{name}={'none' if found[name] is None else f'{found[name]:.6g}'}" for name in ("passed", "failed")]
    return f"search: {found['of']} {' '.join(told)} probes={len(found['probes'])}"


def facts(summary: Summary) -> str:
    """One line on how much there was."""
    counts, rates = summary.requests_steady, summary.throughput
    parts = [
        f"{counts.ok} of {counts.ok + counts.failed + counts.censored} requests ok",
        f"{quantity(rates.requests_per_s)} req/s",
        f"{quantity(rates.output_tokens_per_s)} tok/s",
        f"{quantity(summary.steady_window.length_s)} s steady",
    ]
    if rates.goodput_ratio is not None:
        parts.append(f"goodput {of_metric('goodput_ratio', rates.goodput_ratio)}")
    return ", ".join(parts)


def errors(counts: Requests) -> list[tuple[int, str]]:
    """(how many, what) of each kind of failure, the most frequent first: the kind, and what was said of one of them."""
    found = []
    for kind, n in counts.by_error.items():
        said = counts.error_says.get(kind, "")
        plain = said.lower().startswith(kind.lower())  # "http 422" and "HTTP 422: …" need not both be told
        found.append((n, kind if not said else said if plain else f"{kind}: {said}"))
    return found


def errors_of(summary: Summary) -> str:
    """Which requests the errors are of, where not only of those that the tables are about."""
    elsewhere = summary.requests.failed - summary.requests_steady.failed
    return f"errors, {elsewhere} of them of warm-up and drain" if elsewhere > 0 else "errors"


def soak_lines(summary: Summary) -> list[str]:
    """What a long run says in a line or two: its windows, what drifts or grows, restarts. [] of a short run."""
    soak = summary.soak
    if soak is None:
        return []
    drifts = [f"{one.metric}{soak.where(one)} {one.change:+.1%}" for one in soak.drift if one.drifts]
    grows = [f"{one.what}{soak.where(one)} {one.change / 2**20:+.0f} MiB" for one in soak.memory if one.grows]
    untested = "not tested for a drift" if not soak.drift else "no drift found"
    parts = [
        f"{len(soak.windows)} windows of {duration(soak.window_s)}",
        f"drift: {', '.join(drifts)}" if drifts else untested,
        f"memory grows: {', '.join(grows)}" if grows else "memory does not grow" if soak.memory else "memory untested",
    ]
    lines = [f"soak: {'; '.join(parts)}"]
    if soak.restarts:
        times = f"{len(soak.restarts)} restart{'s' * (len(soak.restarts) != 1)} of the engine"
        lines.append(f"{times}, {soak.failed_in_restarts} requests failed in it")
    return lines
