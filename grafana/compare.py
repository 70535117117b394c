"""Dashboard E, Compare runs: run A against run B, by whole-run numbers, distributions and stage curves.

All numbers are the last of each run within the time range, so finished runs can be compared; widen it to reach back.
"""

from __future__ import annotations

from collections.abc import Callable

from grafana_foundation_sdk.models import dashboard

from grafana.frame import Rows, assemble, run, run_annotations
from grafana.headline import verdicts
from grafana.panels import About, Builder, joined, rows, table, transformation, xy
from grafana.queries import STALL, TPOT, TTFT, load_of_stage, of_run, once, shares, stage, whole

A, B = 'run_id="$run_a"', 'run_id="$run_b"'
GONE = "one of the runs has no numbers in the time range: widen it, or choose another run"
SHORT = "no stage of either run is over in the time range"


def _named(name: str, expr: str) -> str:
    return f'label_replace({expr}, "what", "{name}", "", "")'


def _last(name: str, run_: str, more: str = "") -> str:
    return once(name, f"last_over_time({name}{{{run_}{more}}}[$__range])")


def _seconds(run_: str) -> str:
    """How long the run took, or has taken so far within the time range."""
    end = f"max(last_over_time(tokenswarm_run_end_timestamp_seconds{{{run_}}}[$__range]))"
    begin = f"max(last_over_time(tokenswarm_run_start_timestamp_seconds{{{run_}}}[$__range]))"
    newest = f"max(max_over_time(timestamp(tokenswarm_run_info{{{run_}}})[$__range:10s]))"
    return f"(({end} or {newest}) - {begin})"


def _latencies(run_: str) -> str:
    kinds = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2e"))
    percentiles = (0.5, 0.95, 0.99)
    rows = [(name, q, of_run(metric, q, run_)) for name, metric in kinds for q in percentiles]
    rows += [("Worst stall", q, whole(q, STALL, run_)) for q in percentiles]
    return " or ".join(_named(f"{name} p{q * 100:g}", expr) for name, q, expr in rows)


def _rates(run_: str) -> str:
    seconds = _seconds(run_)
    yes, met = _last("tokenswarm_slo_requests_total", run_, ',met="yes"'), _last("tokenswarm_slo_requests_total", run_)
    errors = _last("tokenswarm_requests_total", run_, ',outcome="error"')
    ok = _last("tokenswarm_requests_total", run_, ',outcome="ok"')
    ended = _last("tokenswarm_requests_total", run_, ',outcome=~"ok|error"')
    numbers = {
        "Output tokens/s (whole run)": f"{_last('tokenswarm_output_tokens_total', run_)} / {seconds}",
        "Requests/s (whole run)": f"{ok} / {seconds}",
        "Best stage, output tokens/s": f"max({stage('tokenswarm_stage_output_tokens_per_second', run_)})",
        "Failed, share of requests": f"{errors} / ({ended} > 0)",
        "Goodput, share of judged": f"{yes} / ({met} > 0)",
        "Output tokens": _last("tokenswarm_output_tokens_total", run_),
        "Prompt tokens": _last("tokenswarm_prompt_tokens_total", run_),
        "Cached prompt tokens": _last("tokenswarm_cached_prompt_tokens_total", run_),
        "Requests ok": ok,
        "Seconds": seconds,
    }
    return " or ".join(_named(name, expr) for name, expr in numbers.items())


def _delta(of: Callable[[str], str], title: str, unit: str, about: About) -> Builder:
    """A row a number: run A, run B, B / A − 1."""
    a, b = of(A), of(B)
    change = f"sum by (what) ({b}) / (sum by (what) ({a}) != 0) - 1"
    columns = (
        ("what", "Number", "short"),
        ("Value #A", "Run A", unit),
        ("Value #B", "Run B", unit),
        ("Value #C", "B against A", "percentunit"),
    )
    answers = [rows(a, "A"), rows(b, "B"), rows(change, "C")]
    return table(title, about, answers, columns, joined("what"), width=12, height=12)


def _numbers() -> list[Builder]:
    return [
        _delta(
            _latencies,
            "Latency of the whole run",
            "s",
            About(
                "Percentiles over all steady requests of each run.",
                "histogram_quantile over all buckets since the start, no rate; in the bucket of the report's",
                "differences below 5 % are noise unless repeated; a p99 needs 1000 requests.",
                GONE,
            ),
        ),
        _delta(
            _rates,
            "Throughput and outcomes",
            "short",
            About(
                "Totals of each run (exact), and the same divided by its length, warm-up and drain included.",
                "counters at the end of the run; the report's throughput is of the steady window",
                "other prompts or cached tokens: the runs can't be compared.",
                GONE,
            ),
        ),
    ]


def _cdf(title: str, histogram: str, what: str) -> Builder:
    def share(run_: str) -> str:
        buckets = f'max by (le) (last_over_time({histogram}_bucket{{{run_},le!="+Inf"}}[$__range]))'
        share = f"{buckets} / scalar(max(last_over_time({histogram}_count{{{run_}}}[$__range])))"
        native = f"sum(last_over_time({histogram}{{{run_}}}[$__range]))"
        kept = f"last_over_time({histogram}_count{{{run_}}}[$__range])"
        return f"{share} or ({shares(native, -10, 9)}) unless on () {kept}"

    steps = joined("le")
    numeric = [{"targetField": "le", "destinationType": "number"}]
    steps += [transformation("convertFieldType", fields={}, conversions=numeric)]
    steps += [transformation("sortBy", fields={}, sort=[{"field": "le"}])]
    return xy(
        title,
        ("s", "percentunit"),
        (what, "share of requests"),
        About(
            f"Share of the steady requests up to each {what}: left and up is better.",
            "bucket / count over the whole run, buckets of 2 % width where most lie",
            "curves that cross: better for most, worse for the rest, or the other way round.",
            GONE,
        ),
        [rows(share(A), "A"), rows(share(B), "B")],
        [("A", "le", "Value #A"), ("B", "le", "Value #B")],
        steps,
        log=True,
    )


def _curve(title: str, unit: str, label: str, about: About, of: str, **labels: str) -> Builder:
    targets = [rows(load_of_stage(A), "A"), rows(stage(of, A, **labels), "B")]
    targets += [rows(load_of_stage(B), "C"), rows(stage(of, B, **labels), "D")]
    drawn = [("A", "Value #A", "Value #B"), ("B", "Value #C", "Value #D")]
    return xy(
        title,
        ("short", unit),
        ("users, or offered requests/s", label),
        about,
        targets,
        drawn,
        joined("stage"),
        log=True,
    )


def _curves() -> list[Builder]:
    return [
        _curve(
            "Throughput over concurrency",
            "cps",
            "output tokens/s",
            About(
                "The stage curves of both runs.",
                "tokenswarm_stage_output_tokens_per_second over tokenswarm_stage_concurrency",
                "B below A at the same users.",
                SHORT,
            ),
            "tokenswarm_stage_output_tokens_per_second",
        ),
        _curve(
            "TTFT p90 over concurrency",
            "s",
            "TTFT p90",
            About(
                "What latency costs at the same users.",
                "tokenswarm_stage_latency_seconds{metric=ttft, quantile=0.9} over tokenswarm_stage_concurrency",
                "B above A at the same users.",
                SHORT + ", or too few requests a stage for p90",
            ),
            "tokenswarm_stage_latency_seconds",
            metric="ttft",
            quantile="0.9",
        ),
    ]


def build() -> dashboard.Dashboard:
    content: Rows = [
        ("Numbers", [verdicts("$run_a", "$run_b"), *_numbers()]),
        ("Distributions", [_cdf("TTFT", TTFT, "TTFT"), _cdf("TPOT", TPOT, "TPOT")]),
        ("Stages", _curves()),
    ]
    return assemble(
        "tokenswarm-compare",
        "E · Compare runs",
        "Two runs side by side: percentiles, totals, distributions, stage curves.",
        [run("run_a", "Run A"), run("run_b", "Run B")],
        run_annotations("$run_a", "$run_b", places=False),
        content,
        refresh="1m",
        since="now-24h",
    )
