"""metrics.txt: GitLab's metrics report, which a merge request shows beside the values of its target branch.

One `name{label="value"} number` a line, as Prometheus writes it; a number that is not known has no line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tokenswarm.result.summary import PERCENTILES, Part, Summary

LATENCIES = ("ttft_s", "itl_s", "tpot_s", "e2e_s")
RATES = ("requests_per_s", "output_tokens_per_s", "goodput_ratio")


def render(summary: Summary) -> str:
    """metrics.txt: the run, and each stage of a sweep by its load."""
    lines = list(_lines(summary, {}))
    for stage in summary.stages if len(summary.stages) > 1 else ():
        load = {"users": stage.concurrency, "rate": stage.rate, "rate_end": stage.rate_end}
        told = {name: f"{value:g}" for name, value in load.items() if value is not None}
        lines += _lines(stage, {"stage": f"{stage.stage}", **told})
    return "\n".join(lines) + "\n"


def _lines(part: Part, labels: dict[str, str]) -> Iterator[str]:
    inner = ",".join(f'{name}="{value}"' for name, value in labels.items())
    where = f"{{{inner}}}" if inner else ""
    counts = part.requests_steady
    ended = counts.ok + counts.failed + counts.censored
    values: dict[str, float | None] = {name: getattr(part.throughput, name) for name in RATES}
    values["failed_ratio"] = counts.failed / ended if ended else None
    for name in LATENCIES:
        values |= {f"{name}_{which}": getattr(getattr(part.latency, name), which) for which in PERCENTILES}
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield f"tokenswarm_{name}{where} {value:.6g}"
