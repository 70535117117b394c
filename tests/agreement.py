"""Do Prometheus and summary.json say the same of a run? Counters exactly, gauges to the digit, percentiles by rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from prometheus_server import Prometheus

from exporters.load.table import QUANTILES
from tokenswarm.measure.snapshot import LATENCIES, Merged, total
from tokenswarm.result.summary import Summary

HISTOGRAMS = {
    "ttft": 'tokenswarm_time_to_first_token_seconds_bucket{phase="steady"}',
    "itl": 'tokenswarm_inter_token_latency_seconds_bucket{phase="steady"}',
    "tpot": 'tokenswarm_time_per_output_token_seconds_bucket{phase="steady"}',
    "e2e": 'tokenswarm_request_duration_seconds_bucket{phase="steady",outcome="ok"}',
}
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
NATIVE_SCHEMA = 5
NATIVE = {metric: name.replace("_bucket{", "{") for metric, name in HISTOGRAMS.items()}


def assert_counters_are_exact(prometheus: Prometheus, summary: Summary) -> None:
    run_id, requests = summary.run_id, summary.requests
    for outcome, count in {
        "ok": requests.ok,
        "error": requests.failed,
        "cancelled": requests.cancelled,
        "censored": requests.censored,
    }.items():
        assert prometheus.value(f'tokenswarm_requests_total{{run_id="{run_id}",outcome="{outcome}"}}') == count
    for error, count in requests.by_outcome.items():
        if error not in ("ok", "cancelled", "censored"):
            asked = f'tokenswarm_request_errors_total{{run_id="{run_id}",error_type="{error}"}}'
            assert prometheus.value(asked) == count
    for name, count in (("intended", requests.intended), ("started", requests.sent), ("dropped", requests.dropped)):
        assert prometheus.value(f'tokenswarm_requests_{name}_total{{run_id="{run_id}"}}') == count
    for met, count in (("yes", summary.slo.met), ("no", summary.slo.judged - summary.slo.met)):
        assert prometheus.value(f'tokenswarm_slo_requests_total{{run_id="{run_id}",met="{met}"}}') == count


@dataclass(frozen=True)
class Buckets:
    """The buckets of a histogram as Prometheus has them: upper edges, ascending, and counts up to each."""

    edges: list[float]
    cumulative: list[float]

    def of_rank(self, rank: int) -> tuple[float, float]:
        """(lower, upper) edge of the bucket that holds the value of this rank, 1 to n."""
        rank = min(max(rank, 1), int(self.cumulative[-1]))
        index = next(i for i, seen in enumerate(self.cumulative) if seen >= rank)
        return (self.edges[index - 1] if index else 0.0), self.edges[index]

    def around(self, p: float) -> list[tuple[float, float]]:
        """The buckets of the nearest rank of p, ⌈p·n⌉, and of the ranks beside it."""
        nearest = math.ceil(p * self.cumulative[-1] - 1e-9)
        return [self.of_rank(nearest + step) for step in (0, -1, 1)]


def _of_run(series: str, run_id: str) -> str:
    return series.replace("}", f',run_id="{run_id}"}}')


def buckets_of(prometheus: Prometheus, metric: str, run_id: str) -> Buckets:
    """The classic buckets of a run that Prometheus holds now."""
    found = prometheus.query(f"sum by (le) ({_of_run(HISTOGRAMS[metric], run_id)})")
    counts = {float(dict(labels)["le"]): count for labels, count in found.items()}
    return Buckets(sorted(counts), [counts[edge] for edge in sorted(counts)])


LE_DIGITS = 2e-6
"""`le` is written with 6 digits, so an edge is known to half a unit of the last."""


def within(value: float, bucket: tuple[float, float]) -> bool:
    return bucket[0] * (1 - LE_DIGITS) <= value <= bucket[1] * (1 + LE_DIGITS)


def assert_percentiles_agree(prometheus: Prometheus, summary: Summary, at_least: int = 14) -> None:
    """Of the whole run: the percentile and `histogram_quantile` lie in the bucket that holds the nearest rank.

    No bound in percent: buckets are wide outside of the dense octaves, and that is where a quick machine's TTFT lies.
    """
    compared = 0
    for metric, series in HISTOGRAMS.items():
        asked, buckets = _of_run(series, summary.run_id), buckets_of(prometheus, metric, summary.run_id)
        for name, p in PERCENTILES.items():
            exact = getattr(getattr(summary.latency, f"{metric}_s"), name)
            if exact is not None:
                found = prometheus.value(f"histogram_quantile({p}, sum by (le) ({asked}))")
                assert found is not None
                bucket = buckets.around(p)[0]
                assert within(exact, bucket), f"the report's {metric} {name} is {exact}, its rank in {bucket}"
                assert within(found, bucket), f"Prometheus' {metric} {name} is {found}, its rank in {bucket}"
                compared += 1
    assert compared >= at_least


def assert_native_percentiles_agree(prometheus: Prometheus, summary: Summary, merged: Merged) -> None:
    """A native histogram answers from the bucket of the nearest rank or, where that rounds, of one beside it."""
    steady = total(block for block in merged.blocks if block.phase == "steady")
    compared = 0
    for metric, series in NATIVE.items():
        keys = getattr(steady, metric).fold(NATIVE_SCHEMA)
        buckets = Buckets([2 ** (key / 2**NATIVE_SCHEMA) for key in keys], list(accumulate(keys.values())))
        for name, p in PERCENTILES.items():
            if getattr(getattr(summary.latency, f"{metric}_s"), name) is not None:
                found = prometheus.value(f"histogram_quantile({p}, sum ({_of_run(series, summary.run_id)}))")
                assert found is not None
                upper = [edge for _, edge in buckets.around(p)]  # each is 2.2 % wide, whatever the one before it
                places = [(edge / 2 ** (1 / 2**NATIVE_SCHEMA), edge) for edge in upper]
                assert any(within(found, place) for place in places), f"{metric} {name}: {found} is in none of {places}"
                compared += 1
    assert compared >= 14


def assert_gauges_are_equal(prometheus: Prometheus, summary: Summary, at_least: int = 25) -> None:
    """The quantile gauges, to the digit that Prometheus' API prints."""
    found = prometheus.query(f'tokenswarm_latency_quantile_seconds{{run_id="{summary.run_id}",window="run"}}')
    shown = {(dict(labels)["metric"], f"{float(dict(labels)['quantile']):g}"): value for labels, value in found.items()}
    expected = {
        (metric, quantile): value
        for metric in LATENCIES
        for quantile, name in QUANTILES.items()
        if (value := getattr(getattr(summary.latency, f"{metric}_s"), name)) is not None
    }
    assert shown == expected
    assert len(expected) > at_least


def broken_rules(prometheus: Prometheus) -> list[str]:
    """Rules that could not be evaluated."""
    return [
        f"{rule['name']}: {rule.get('lastError')}"
        for group in prometheus.api("rules")["groups"]
        for rule in group["rules"]
        if rule["health"] == "err" or rule.get("lastError")
    ]
