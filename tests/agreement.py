"""Do Prometheus and summary.json say the same of a run? Counters exactly, gauges to the digit, buckets within 3 %."""

from __future__ import annotations

import pytest
from prometheus_server import Prometheus

from exporters.load.table import QUANTILES
from tokenswarm.measure.snapshot import LATENCIES
from tokenswarm.result.summary import Summary

HISTOGRAMS = {
    "ttft": 'tokenswarm_time_to_first_token_seconds_bucket{phase="steady"}',
    "itl": 'tokenswarm_inter_token_latency_seconds_bucket{phase="steady"}',
    "tpot": 'tokenswarm_time_per_output_token_seconds_bucket{phase="steady"}',
    "e2e": 'tokenswarm_request_duration_seconds_bucket{phase="steady",outcome="ok"}',
}
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


def assert_percentiles_agree(
    prometheus: Prometheus, summary: Summary, histograms: dict[str, str] = HISTOGRAMS, at_least: int = 14
) -> None:
    """`histogram_quantile` over the whole run, within 3 % of the summary: 2.2 % by the bucket, 0.55 % by the sketch."""
    compared = 0
    for metric, series in histograms.items():
        by_le = "sum by (le)" if "_bucket" in series else "sum"
        for name, p in {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}.items():
            exact = getattr(getattr(summary.latency, f"{metric}_s"), name)
            if exact is not None:
                asked = series.replace("}", f',run_id="{summary.run_id}"}}')
                found = prometheus.value(f"histogram_quantile({p}, {by_le} ({asked}))")
                assert found == pytest.approx(exact, rel=0.03), f"{metric} {name}"
                compared += 1
    assert compared >= at_least


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
