"""Dashboard A, Live run: what is offered, what comes back, how quickly, on what; is it believable?"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana import engine, generator, gpu, headline
from grafana.frame import Rows, against, assemble, choice, run, run_annotations
from grafana.headline import FEW, NO_RUN
from grafana.panels import RED, About, Builder, heatmap, lines, query, timeseries
from grafana.queries import (
    DECODING,
    IN_FLIGHT,
    ITL,
    RATE,
    RUN,
    STALL,
    STREAMED,
    TTFT,
    octaves,
    quantile,
    rate,
    recent,
    recorded,
)


def _offered() -> list[Builder]:
    """What is asked of the server."""
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
                (f"max by (state) (tokenswarm_users{{{RUN}}})", "{{state}}"),
            ),
            width=4,
        ),
        timeseries(
            "Arrivals",
            "reqps",
            About(
                "Of an open loop: requests that are due a second, sent, and dropped.",
                "tokenswarm_target_requests_per_second; rates of requests_intended, _started, _dropped",
                "sent below due: the client falls behind. Any that is dropped: too many were under way.",
                "a closed loop has no rate",
            ),
            lines(
                (f"max(tokenswarm_target_requests_per_second{{{RUN}}})", "target"),
                (rate("tokenswarm_requests_intended_total"), "due"),
                (rate("tokenswarm_requests_started_total"), "sent"),
                (rate("tokenswarm_requests_dropped_total"), "dropped"),
            ),
            width=4,
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
                (IN_FLIGHT, "in flight"),
                (DECODING, "decoding"),
                (f"max(tokenswarm_requests_queued{{{RUN}}})", "queued in the client"),
            ),
            width=4,
        ),
    ]


def _returned() -> list[Builder]:
    """What comes back."""
    return [
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
                (f"max by (outcome) (rate(tokenswarm_requests_total{{{RUN}}}[{RATE}]))", "{{outcome}}"),
                (
                    f"max by (error_type) (rate(tokenswarm_request_errors_total{{{RUN}}}[{RATE}])) > 0",
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
                    f"max by (token_source) (rate(tokenswarm_output_tokens_total{{{RUN}}}[{RATE}]))",
                    "output, counted by {{token_source}}",
                ),
                (rate("tokenswarm_prompt_tokens_total"), "prompt"),
                (rate("tokenswarm_cached_prompt_tokens_total"), "prompt from the cache"),
            ),
            width=6,
        ),
    ]


def _load() -> list[Builder]:
    return [*_offered(), *_returned()]


def _latency_of(title: str, metric: str, what: str, bad: str, slo: str = "") -> Builder:
    limit = ((f"vector(${slo})", "SLO limit"),) if slo else ()
    return timeseries(
        title,
        "s",
        About(
            f"{what} Percentiles of the last 10 s (all requests), and p99 of a minute (steady windows only).",
            "tokenswarm_latency_quantile_seconds{window=10s}; tokenswarm:latency_seconds:window1m",
            bad,
            FEW,
        ),
        lines(
            *((quantile(metric, q), f"p{float(q) * 100:g}") for q in ("0.5", "0.9", "0.99", "0.999")),
            (recorded(metric, "0.99"), "p99 of 1 min, steady"),
            *limit,
        ),
        log=True,
        width=6,
    )


def _heatmap_of(title: str, histogram: str, edges: str, what: str, bad: str) -> Builder:
    about = About(
        f"How many {what}; a row is a factor of 2.",
        "increase of the buckets at whole powers of 2",
        bad,
        "no steady window yet",
    )
    expr = f"sum by (le) (increase({histogram}_bucket{{{RUN},{edges}}}[{RATE}]))"
    # Grafana draws a native histogram itself; where buckets are kept, too, it must not get both.
    expr += f" or sum(increase({histogram}{{{RUN}}}[{RATE}])) unless on () rate({histogram}_count{{{RUN}}}[{RATE}])"
    return heatmap(title, "s", about, query(expr, "{{le}}").format(PromQueryFormat.HEATMAP), width=8)


def _latency() -> list[Builder]:
    below = "p99 rises while p50 stays: queueing or preemption. All rise: the batch is too large."
    return [
        _latency_of("TTFT", "ttft", "From sending to the first token.", below, "slo_ttft"),
        _latency_of(
            "ITL",
            "itl",
            "Between successive tokens.",
            "above the SLO limit; p99.9 far from p99: stalls.",
            "slo_itl",
        ),
        _latency_of("TPOT", "tpot", "Mean time per token of a request, after its first.", below, "slo_itl"),
        _latency_of("E2E", "e2e", "From sending to the last byte.", "grows without longer answers."),
        _heatmap_of(
            "TTFT",
            TTFT,
            octaves(-10, 9),
            "requests of the steady windows had which TTFT",
            "two bands: two kinds of requests (cached, not cached; queued, not queued) that a percentile mixes.",
        ),
        _heatmap_of(
            "ITL",
            ITL,
            octaves(-13, 5),
            "gaps between tokens had which length",
            "a second band far above the first: prefills of others interrupt decoding.",
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
        ("Verdict", headline.panels()),
        ("Load and response", _load()),
        ("Latency", _latency()),
        ("Engine: vLLM and the simulator", engine.vllm()),
        ("Engine: told with each answer", engine.with_answers()),
        ("Engine: Ollama", engine.ollama()),
        ("GPU and its machine", gpu.panels()),
        ("Load generator: should the numbers be believed?", generator.panels()),
    ]
    limits = ("0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10")
    return assemble(
        "tokenswarm-live",
        "A · Live run",
        "A run while it goes on: load, latency, engine, GPU, and whether to believe it.",
        [
            run(),
            *against(),
            choice("slo_ttft", "TTFT limit (s)", "The line in the TTFT panel.", limits, "2"),
            choice("slo_itl", "ITL limit (s)", "The line in the panels of ITL and TPOT.", limits, "0.2"),
        ],
        run_annotations("$run_id"),
        content,
        refresh="5s",
        since="now-15m",
    )
