"""Dashboard D, Client and server: do both sides tell the same story, and if not, who is right?"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from grafana import generator
from grafana.engine import NO_ENGINE, NO_VLLM
from grafana.frame import Rows, against, assemble, run, run_annotations, started
from grafana.panels import YELLOW, About, Builder, lines, now, rows, stat, table, timeseries
from grafana.queries import (
    DECODING,
    E2E,
    ENGINE,
    HOST,
    IN_FLIGHT,
    ITL,
    RATE,
    RUN,
    TTFT,
    count_rate,
    mean,
    once,
    rate,
    recent,
    recorded,
    server,
    sum_rate,
)

QUIET = f"{NO_VLLM}; or it has served nothing in the window"
NO_RUN = "no run is chosen, or its exporter is not scraped"

EXPECTED = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:iteration_tokens_total_count",
)


def _since_start(counter: str) -> str:
    """What a server's counter has gained since the run began (it may be older than the run, or begin within it)."""
    own = f"{counter}{{{ENGINE}}}"
    return f"{once(counter, own)} - ({once(counter, own + ' @ $started')} or vector(0))"


def _pair(title: str, metric: str, ours: str, theirs: str, what: str, bad: str) -> Builder:
    return timeseries(
        title,
        "s",
        About(
            f"{what} as the client sees it and as the engine says.",
            "percentiles of a minute of the client, over the rate interval of the engine; means from sum / count",
            bad,
            QUIET,
        ),
        lines(
            (recorded(metric, "0.5"), "client p50"),
            (recorded(metric, "0.99"), "client p99"),
            (recent(0.5, theirs, selector=ENGINE), "engine p50"),
            (recent(0.99, theirs, selector=ENGINE), "engine p99"),
            (mean(ours, RUN), "client mean"),
            (mean(theirs, ENGINE), "engine mean"),
        ),
        log=True,
    )


def _latency() -> list[Builder]:
    ttft, itl = "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"
    lowest = f'sum(rate({itl}_bucket{{le="0.01",{ENGINE}}}[{RATE}]))'
    native = f"histogram_fraction(0, 0.01, sum(rate({itl}{{{ENGINE}}}[{RATE}])))"
    return [
        _pair(
            "TTFT",
            "ttft",
            TTFT,
            ttft,
            "Time to the first token",
            "the client far above the engine: network, a proxy, or a queue that the engine does not count.",
        ),
        _pair(
            "ITL",
            "itl",
            ITL,
            itl,
            "Gap between tokens",
            "the engine's p50 just at a bucket edge (10 ms): its buckets are too coarse; believe its mean.",
        ),
        _pair(
            "E2E",
            "e2e",
            E2E,
            "vllm:e2e_request_latency_seconds",
            "The whole request",
            "the difference grows with the load: connections or the client are the limit.",
        ),
        timeseries(
            "TTFT: client − engine",
            "s",
            About(
                "What network and client add to the mean time to the first token.",
                "mean TTFT of the client − mean TTFT of the engine",
                "above 50 ms on one network; negative for long: another client uses the server, too.",
                QUIET,
            ),
            lines((f"({mean(TTFT, RUN)}) - ({mean(ttft, ENGINE)})", "added")),
            low=None,
            width=12,
        ),
        timeseries(
            "Samples in the engine's lowest ITL bucket",
            "percentunit",
            About(
                "Share of the engine's gaps that are below its smallest bucket edge of 10 ms.",
                "rate(bucket{le=0.01}) / rate(count)",
                "above 50 %: the engine's median is a guess below 10 ms (start vLLM with finer buckets).",
                QUIET,
            ),
            lines((f"{lowest} / {count_rate(itl, ENGINE)} or {native}", "below 10 ms")),
            thresholds=((0.5, YELLOW),),
            high=1,
            width=12,
        ),
    ]


def _tokens() -> list[Builder]:
    """What was generated."""
    return [
        timeseries(
            "Output tokens",
            "cps",
            About(
                "Output as the client counts events, as the server states in its answers, and as its metrics say.",
                "rates of output_tokens_streamed_total, output_tokens_total, vllm:generation_tokens_total",
                "engine above client for long: somebody else uses the server, or streams are lost.",
                QUIET,
            ),
            lines(
                (rate("tokenswarm_output_tokens_streamed_total"), "client, streamed events"),
                (rate("tokenswarm_output_tokens_total"), "client, usage of finished requests"),
                (rate("vllm:generation_tokens_total", ENGINE), "engine"),
            ),
        ),
        timeseries(
            "Output tokens since the start",
            "short",
            About(
                "The same as totals: what the client has been told, and what the engine says it made.",
                "output_tokens_total; vllm:generation_tokens_total − its value at the start of the run",
                "apart at the end of the run by more than the failed requests' share.",
                QUIET,
            ),
            lines(
                (once("tokenswarm_output_tokens_total", f"tokenswarm_output_tokens_total{{{RUN}}}"), "client"),
                (_since_start("vllm:generation_tokens_total"), "engine"),
            ),
        ),
    ]


def _requests() -> list[Builder]:
    """What was asked."""
    return [
        timeseries(
            "Requests in the system",
            "short",
            About(
                "In flight at the client; running and waiting at the engine.",
                "requests_in_flight; tokenswarm:server_requests_running:sum + …_waiting:sum",
                "the client far above: requests wait in front of the engine. Below: another client.",
                NO_ENGINE,
            ),
            lines(
                (IN_FLIGHT, "client: in flight"),
                (DECODING, "client: decoding"),
                (f"{server('running')} + {server('waiting')}", "engine: running + waiting"),
                (server("running"), "engine: running"),
            ),
        ),
        timeseries(
            "Requests that ended",
            "reqps",
            About(
                "By outcome at the client, by finish reason at the engine.",
                "rates of tokenswarm_requests_total and vllm:request_success_total",
                "aborts at the engine: the client gave up (time-outs). Errors on one side only.",
                QUIET,
            ),
            lines(
                (f"max by (outcome) (rate(tokenswarm_requests_total{{{RUN}}}[{RATE}]))", "client: {{outcome}}"),
                (
                    "sum by (finished_reason) (max without (job) "
                    f"(rate(vllm:request_success_total{{{ENGINE}}}[{RATE}])))",
                    "engine: {{finished_reason}}",
                ),
            ),
            width=12,
        ),
        timeseries(
            "Little's law",
            "short",
            About(
                "Requests in flight, against arrival rate × mean duration: the client's own numbers must agree.",
                "requests_in_flight; rate(duration_count) × mean(duration) = rate(request_duration_seconds_sum)",
                "apart while the load is steady: requests are lost or counted twice.",
                NO_RUN,
            ),
            lines(
                (f"max(avg_over_time(tokenswarm_requests_in_flight{{{RUN}}}[1m]))", "in flight"),
                (sum_rate(E2E, RUN, "1m"), "rate × duration"),
            ),
            width=12,
        ),
    ]


def _counts() -> list[Builder]:
    return [*_tokens(), *_requests()]


def _absent(name: str) -> str:
    """1 where no engine of the run tells it; without the labels that absent() takes from a matcher."""
    return f"absent(count({name}{{{ENGINE}}}))"


def _missing() -> list[Builder]:
    native = {name: name.removesuffix("_count") for name in EXPECTED}  # the name of one that is kept as a native one
    missing = " or ".join(
        f'label_replace({_absent(name)}{f" and {_absent(other)}" if other != name else ""}, "metric", "{name}", "", "")'
        for name, other in native.items()
    )
    any_of_them = "|".join(dict.fromkeys((*EXPECTED, *native.values())))
    found = f'{len(EXPECTED)} - (count({missing}) or vector(0)) and on () {{__name__=~"{any_of_them}",{ENGINE}}}'
    return [
        stat(
            "Engine metrics found",
            "short",
            About(
                f"How many of the {len(EXPECTED)} vLLM metrics that these dashboards need are there.",
                "all of them − those that absent(name) finds",
                f"below {len(EXPECTED)}: an older or newer vLLM has other names; the table says which.",
                "no vLLM server is scraped (job vllm)",
            ),
            now(found),
            height=6,
        ),
        table(
            "Engine metrics that are missing",
            About(
                "vLLM's metrics that these dashboards need and this Prometheus does not have now.",
                "absent(name) for each",
                "any, while vLLM is under test: a panel that needs it is empty for that reason.",
                "all are there (good)",
            ),
            [rows(missing, "A")],
            [("metric", "Metric", "short")],
            width=10,
            height=6,
        ),
        timeseries(
            "Scrapes",
            "short",
            About(
                "Which of the run's engines and exporters answer this Prometheus.",
                "up by job",
                "0: the panels of that job are empty or old.",
                "no target at all",
            ),
            lines((f'min by (job) (up{{{ENGINE}}} or up{{{HOST}}} or up{{job=~"tokenswarm-.+"}})', "{{job}}")),
            high=1,
            width=10,
            height=6,
        ),
    ]


def build() -> dashboard.Dashboard:
    content: Rows = [
        ("Latency: client against engine", _latency()),
        ("Counts: client against engine", _counts()),
        ("Quality of the measurement", generator.panels()),
        ("What is scraped", _missing()),
    ]
    return assemble(
        "tokenswarm-reconcile",
        "D · Client and server",
        "What the client measured beside what the engine says, and how good the measurement itself is.",
        [run(), *against(), started()],
        run_annotations("$run_id"),
        content,
        refresh="10s",
        since="now-15m",
    )
