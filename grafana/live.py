"""Dashboard A, Live run: what is offered, what comes back, how quickly, on what; is it believable?"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana import engine, generator, gpu
from grafana.frame import Rows, annotations, assemble, choice, run
from grafana.panels import GREEN, RED, YELLOW, About, heatmap, lines, now, query, stat, timeseries
from grafana.queries import (
    E2E,
    ENERGY_PER_TOKEN,
    ITL,
    LOOP_LAG,
    RATE,
    RUN,
    SEND_LAG,
    STALL,
    STREAMED,
    TPOT,
    TTFT,
    octaves,
    quantile,
    rate,
    recent,
)

NO_RUN = "no run is chosen, or its exporter is not scraped"
FEW = "too few requests in 10 s for this percentile, or the run is over"
UNJUDGED = "no request was judged: the run has no SLO, or no steady window yet"

DOUBTS = (
    f"histogram_quantile(0.99, sum by (le) ({LOOP_LAG}_bucket{{{RUN}}})) > 0.01",
    f"histogram_quantile(0.99, sum by (le) ({SEND_LAG}_bucket{{{RUN}}})) > 0.005",
    f"max(tokenswarm_worker_cpu_ratio{{{RUN}}}) > 0.7",
    f'sum(tokenswarm_workers{{{RUN},state="missing"}}) > 0',
    f"max(tokenswarm_run_last_push_age_seconds{{{RUN}}} unless on (run_id) tokenswarm_run_end_timestamp_seconds) > 10",
)
BELIEVABLE = (
    "(" + " + ".join(f"(count({doubt}) or vector(0))" for doubt in DOUBTS) + f") * max(tokenswarm_run_info{{{RUN}}})"
)
SLO_MET = rate("tokenswarm_slo_requests_total", f'{RUN},met="yes"')
FAILED = rate("tokenswarm_requests_total", f'{RUN},outcome="error"')
ENDED = rate("tokenswarm_requests_total", f'{RUN},outcome=~"ok|error"')


def _verdict() -> list[object]:
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
                "1 for each: event-loop lag p99 above 10 ms, send lag p99 above 5 ms, a worker above 70 % of a core, a "
                "worker missing, no push for 10 s",
                "anything but yes: latencies are too high or the load is not the one intended; see the last row.",
                NO_RUN,
            ),
            now(BELIEVABLE),
            thresholds=((1, RED),),
            words=((0, 0, "yes", GREEN), (1, 99, "doubtful", RED)),
            width=3,
        ),
        stat(
            "In flight",
            "short",
            About(
                "Requests that wait for an answer or read one.",
                "sum of tokenswarm_requests_in_flight",
                "below the target users in a closed loop without think time: the client lags.",
                NO_RUN,
            ),
            now(f"sum(tokenswarm_requests_in_flight{{{RUN}}})"),
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


def _load() -> list[object]:
    return [
        timeseries(
            "Users",
            "short",
            About(
                "Users the stage asks for, and users by state.",
                "tokenswarm_target_users; tokenswarm_users by state",
                "running stays below target: workers can't spawn them.",
                NO_RUN,
            ),
            lines(
                (f"max(tokenswarm_target_users{{{RUN}}})", "target"),
                (f"sum by (state) (tokenswarm_users{{{RUN}}})", "{{state}}"),
            ),
            width=6,
        ),
        timeseries(
            "Requests in flight",
            "short",
            About(
                "The client's view of the engine's batch: in flight, of these past the first token, and not sent yet.",
                "tokenswarm_requests_in_flight, tokenswarm_streams_decoding, tokenswarm_requests_queued",
                "decoding far below in flight: requests queue in the engine. Queued: an open loop falls behind.",
                NO_RUN,
            ),
            lines(
                (f"sum(tokenswarm_requests_in_flight{{{RUN}}})", "in flight"),
                (f"sum(tokenswarm_streams_decoding{{{RUN}}})", "decoding"),
                (f"sum(tokenswarm_requests_queued{{{RUN}}})", "queued in the client"),
            ),
            width=6,
        ),
        timeseries(
            "Requests by outcome",
            "reqps",
            About(
                "Requests that ended, by how; and failures by kind.",
                "rate of tokenswarm_requests_total and tokenswarm_request_errors_total",
                "any line but ok.",
                NO_RUN,
            ),
            lines(
                (f"sum by (outcome) (rate(tokenswarm_requests_total{{{RUN}}}[{RATE}]))", "{{outcome}}"),
                (
                    f"sum by (error_type) (rate(tokenswarm_request_errors_total{{{RUN}}}[{RATE}])) > 0",
                    "error {{error_type}}",
                ),
            ),
            stacked=True,
            width=6,
        ),
        timeseries(
            "Tokens",
            "cps",
            About(
                "Output as it streams (events), output and prompt tokens as requests end (the server's count).",
                "rates of output_tokens_streamed_total, output_tokens_total, prompt_tokens_total",
                "streamed and counted differ for long: the server joins tokens in one event, or sends no usage.",
                NO_RUN,
            ),
            lines(
                (STREAMED, "output, streamed events"),
                (
                    f"sum by (token_source) (rate(tokenswarm_output_tokens_total{{{RUN}}}[{RATE}]))",
                    "output, counted by {{token_source}}",
                ),
                (rate("tokenswarm_prompt_tokens_total"), "prompt"),
                (rate("tokenswarm_cached_prompt_tokens_total"), "prompt from the cache"),
            ),
            width=6,
        ),
    ]


def _latency_of(title: str, metric: str, histogram: str, what: str, bad: str, slo: str = "") -> object:
    limit = ((f"vector(${slo})", "SLO limit"),) if slo else ()
    return timeseries(
        title,
        "s",
        About(
            f"{what} Percentiles of the last 10 s (all requests), and p99 from the buckets (steady windows only).",
            "tokenswarm_latency_quantile_seconds{window=10s}; histogram_quantile over the rate interval",
            bad,
            FEW,
        ),
        lines(
            *((quantile(metric, q), f"p{float(q) * 100:g}") for q in ("0.5", "0.9", "0.99", "0.999")),
            (recent(0.99, histogram), "p99 steady, buckets"),
            *limit,
        ),
        log=True,
        width=6,
    )


def _latency() -> list[object]:
    below = "p99 rises while p50 stays: queueing or preemption. All rise: the batch is too large."
    return [
        _latency_of("TTFT", "ttft", TTFT, "From sending to the first token.", below, "slo_ttft"),
        _latency_of(
            "ITL",
            "itl",
            ITL,
            "Between successive tokens.",
            "above the SLO limit; p99.9 far from p99: stalls.",
            "slo_itl",
        ),
        _latency_of("TPOT", "tpot", TPOT, "Mean time per token of a request, after its first.", below, "slo_itl"),
        _latency_of("E2E", "e2e", E2E, "From sending to the last byte.", "grows without longer answers."),
        heatmap(
            "TTFT",
            "s",
            About(
                "How many requests of the steady windows had which TTFT; a row is a factor of 2.",
                "increase of the buckets at whole powers of 2",
                "two bands: two kinds of requests (cached, not cached; queued, not queued) that a percentile mixes.",
                "no steady window yet",
            ),
            query(f"sum by (le) (increase({TTFT}_bucket{{{RUN},{octaves(-10, 9)}}}[{RATE}]))", "{{le}}").format(
                PromQueryFormat.HEATMAP
            ),
            width=8,
        ),
        heatmap(
            "ITL",
            "s",
            About(
                "How many gaps between tokens had which length; a row is a factor of 2.",
                "increase of the buckets at whole powers of 2",
                "a second band far above the first: prefills of others interrupt decoding.",
                "no steady window yet",
            ),
            query(f"sum by (le) (increase({ITL}_bucket{{{RUN},{octaves(-13, 5)}}}[{RATE}]))", "{{le}}").format(
                PromQueryFormat.HEATMAP
            ),
            width=8,
        ),
        timeseries(
            "Worst stall",
            "s",
            About(
                "The longest gap inside a request: the stutter that a user sees.",
                "exporter's quantile of stall over 10 s; p99 from the buckets",
                "above 1 s: a reader notices.",
                FEW,
            ),
            lines(
                (quantile("stall", "0.5"), "median request"),
                (quantile("stall", "0.99"), "p99 request"),
                (quantile("stall", "1|1[.]0"), "worst request"),
                (recent(0.99, STALL), "p99 steady, buckets"),
            ),
            thresholds=((1, RED),),
            log=True,
        ),
    ]


def build() -> dashboard.Dashboard:
    content: Rows = [
        ("Verdict", _verdict()),
        ("Load and response", _load()),
        ("Latency", _latency()),
        ("Engine: vLLM and the simulator", engine.vllm()),
        ("Engine: Ollama", engine.ollama()),
        ("GPU", gpu.panels()),
        ("Load generator: should the numbers be believed?", generator.panels()),
    ]
    limits = ("0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10")
    return assemble(
        "tokenswarm-live",
        "A · Live run",
        "A run while it goes on: load, latency, engine, GPU, and whether to believe it.",
        [
            run(),
            choice("slo_ttft", "TTFT limit (s)", "The line in the TTFT panel.", limits, "2"),
            choice("slo_itl", "ITL limit (s)", "The line in the panels of ITL and TPOT.", limits, "0.2"),
        ],
        annotations("$run_id"),
        content,
        refresh="5s",
        since="now-15m",
    )
