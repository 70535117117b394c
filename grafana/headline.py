"""The first row of the live dashboard: the run in a dozen numbers, and whether to believe them."""

from __future__ import annotations

from grafana.panels import GREEN, RED, YELLOW, About, Builder, now, rows, stat, table
from grafana.queries import (
    ENERGY_PER_TOKEN,
    GOES_ON,
    IN_FLIGHT,
    LOOP_LAG,
    PUSH_AGE,
    RUN,
    SEND_LAG,
    STREAMED,
    doubts,
    quantile,
    rate,
    since_start,
)

NO_RUN = "no run is chosen, or its exporter is not scraped"
FEW = "too few requests in 10 s for this percentile, or the run is over"
UNJUDGED = "no request was judged: the run has no SLO, or no steady window yet"


def _is_late(lag: str, limit_s: float, also: str = "") -> str:
    """1 if the p99 of a lag is above its limit, 0 if not; no value where the lag itself is not there."""
    there = f"({lag}_count{{{RUN}}} or {lag}{{{RUN}}})"
    return f"(count({since_start(0.99, lag)} > {limit_s}{also}) or 0 * count({there}))"


def _wide() -> str:
    """Percentiles up to p99 that the instrument leaves open by more than 2 %, as the verdict asks."""
    name, up_to = "tokenswarm_latency_quantile_bound_seconds", 'rank!~"0.999|1"'
    high, low = (f'max by (metric, rank) ({name}{{{RUN},{up_to},side="{side}"}})' for side in ("high", "low"))
    return f"(({high} - {low}) / ({high} + {low}) > 0.02 or {low} unless {high})"


LATE = (_is_late(LOOP_LAG, 0.01, f" and on () {_wide()}"), _is_late(SEND_LAG, 0.005))
DOUBTS = (
    f"max(tokenswarm_worker_cpu_ratio{{{RUN}}} {GOES_ON}) > 0.7",
    f'max(tokenswarm_workers{{{RUN},state="missing"}}) > 0',
    f"{PUSH_AGE} > 10",
)
SIGNS = " + ".join((*LATE, *(f"(count({doubt}) or vector(0))" for doubt in DOUBTS)))
JUDGED = (
    f'(1 - max(tokenswarm_run_verdict{{{RUN},status="VALID"}})) and on () (max(tokenswarm_run_verdict{{{RUN}}}) == 1)'
)
"""1 where a run that is over has doubts of its own, 0 where it has none."""
BELIEVABLE = f"({JUDGED}) or ({SIGNS}) * max(tokenswarm_run_info{{{RUN}}})"
SLO_MET = rate("tokenswarm_slo_requests_total", f'{RUN},met="yes"')
FAILED = rate("tokenswarm_requests_total", f'{RUN},outcome="error"')
ENDED = rate("tokenswarm_requests_total", f'{RUN},outcome=~"ok|error"')


def _state() -> list[Builder]:
    """Where the run stands, and whether to believe it."""
    return [
        stat(
            "Phase",
            "short",
            About(
                "The phase that the run is in.",
                "the one tokenswarm_run_phase that is 1",
                "warmup for longer than the profile says: the target does not answer.",
                "not begun, or over",
            ),
            now(f"max by (phase) (tokenswarm_run_phase{{{RUN}}}) == 1", "{{phase}}"),
            names=True,
            width=3,
        ),
        stat(
            "Can it be believed?",
            "short",
            About(
                "How many signs there are that the load generator, not the server, made the numbers.",
                "1 for each: event-loop lag p99 above 10 ms that leaves a percentile open by 2 %, send lag p99 above "
                "5 ms, a worker above 70 % of a core, a worker missing, no push for 10 s; once it is over: its verdict "
                "is not VALID",
                "anything but yes: latencies are too high or the load is not the one intended; see the last row.",
                NO_RUN,
            ),
            now(BELIEVABLE),
            thresholds=((1, RED),),
            words=((0, 0, "yes", GREEN), (1, 99, "doubtful", RED)),
            width=3,
        ),
        stat(
            "Verdict",
            "short",
            About(
                "What the run itself concluded.",
                "the one tokenswarm_run_verdict that is 1",
                "INVALID: do not quote the numbers. The report names the reasons.",
                "still running",
            ),
            now(f"max by (status) (tokenswarm_run_verdict{{{RUN}}}) == 1", "{{status}}"),
            names=True,
            width=2,
        ),
    ]


def _output_now() -> list[Builder]:
    """How much comes back."""
    return [
        stat(
            "In flight",
            "short",
            About(
                "Requests that wait for an answer or read one.",
                "sum of tokenswarm_requests_in_flight",
                "below the target users in a closed loop without think time: the client lags.",
                NO_RUN,
            ),
            now(IN_FLIGHT),
            width=2,
        ),
        stat(
            "Requests",
            "reqps",
            About(
                "Successful requests a second.",
                "rate of tokenswarm_requests_total{outcome=ok}",
                "below the offered rate: the server does not keep up.",
                NO_RUN,
            ),
            now(rate("tokenswarm_requests_total", f'{RUN},outcome="ok"')),
            decimals=1,
            width=2,
        ),
        stat(
            "Output",
            "cps",
            About(
                "Content events a second, counted while streams run; one is a token unless the server joins tokens.",
                "rate of tokenswarm_output_tokens_streamed_total",
                "flat while the batch grows: saturated.",
                NO_RUN,
            ),
            now(STREAMED),
            decimals=0,
            width=2,
        ),
    ]


def _quality_now() -> list[Builder]:
    """How quickly."""
    return [
        stat(
            "TTFT p99",
            "s",
            About(
                "Time to the first token, 99th percentile of the last 10 s.",
                "the exporter's quantile (at most 0.55 % off)",
                "above the SLO limit: users wait.",
                FEW,
            ),
            now(quantile("ttft", "0.99")),
            thresholds=((1, YELLOW), (2, RED)),
            width=2,
        ),
        stat(
            "ITL p99",
            "s",
            About(
                "Gap between tokens, 99th percentile of the last 10 s.",
                "the exporter's quantile (at most 0.55 % off)",
                "above 0.2 s: the text stutters.",
                FEW,
            ),
            now(quantile("itl", "0.99")),
            thresholds=((0.1, YELLOW), (0.2, RED)),
            width=2,
        ),
    ]


def _outcome_now() -> list[Builder]:
    """How well, and at what cost."""
    return [
        stat(
            "Goodput",
            "percentunit",
            About(
                "Share of judged requests that met every limit of the SLO.",
                "rate of slo_requests_total{met=yes} / rate of all",
                "below 95 %, whatever the medians say.",
                UNJUDGED,
            ),
            now(f"{SLO_MET} / {rate('tokenswarm_slo_requests_total')}"),
            decimals=1,
            width=2,
        ),
        stat(
            "Errors",
            "percentunit",
            About(
                "Share of the requests that ended in an error.",
                "rate of requests_total{outcome=error} / rate of those that ended ok or in an error",
                "above 1 %.",
                "no request ended in the last minute",
            ),
            now(f"{FAILED} / {ENDED}"),
            thresholds=((0.001, YELLOW), (0.01, RED)),
            decimals=2,
            width=2,
        ),
        stat(
            "Energy per token",
            "joule",
            About(
                "Energy of all GPUs for one output token.",
                "power of the GPUs / output tokens a second",
                "rises while the load does not: throttling, or a batch too small.",
                "no GPU exporter, or nothing is generated",
            ),
            now(ENERGY_PER_TOKEN),
            decimals=2,
            width=2,
        ),
    ]


def verdicts(*runs: str, width: int = 24) -> Builder:
    """The verdicts of runs ($NAME) that are over, with their doubts."""
    return table(
        "Verdict and doubts",
        About(
            "What a run that is over concluded of itself, and why. The report has the sentences.",
            "tokenswarm_run_verdict, tokenswarm_run_doubt",
            "INVALID, or a doubt of that severity: do not quote the numbers.",
            "no run is over in the time range",
        ),
        [rows(doubts(*runs), "A")],
        [
            ("run_id", "Run", "short"),
            ("status", "Verdict", "short"),
            ("code", "Doubt", "short"),
            ("severity", "Severity", "short"),
        ],
        width=width,
        height=6,
    )


def panels() -> list[Builder]:
    """The row."""
    return [*_state(), *_output_now(), *_quality_now(), *_outcome_now(), verdicts("$run_id")]
