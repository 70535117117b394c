"""Dashboard C, Soak: is hour ten as good as hour one, and what grows?

The baseline is the hour that ends `settle` after the start of the run; before that, what there is of it.
"""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from grafana.frame import Rows, against, assemble, choice, run, run_annotations, started
from grafana.panels import GREEN, RED, YELLOW, About, Builder, lines, now, rows, stat, states, table, timeseries
from grafana.queries import ENGINE, GPU, HOST, RUN, alerts, rate, recorded

NO_RUN = "no run is chosen, or its exporter is not scraped"
QUIET = "no steady requests in the window"
YOUNG = "the run has no steady requests yet"
PROCESS = "the GPU exporter is not scraped, or was started without --engine-pid or --engine-name"
NO_GPU = "no GPU exporter is scraped"

ALERTS = alerts("$run_id")
OUTPUT_5M = rate("tokenswarm_output_tokens_streamed_total", RUN, "5m")


def baseline(expr: str) -> str:
    """The mean of an expression over the baseline hour: `@` takes the start as a number, the offset goes on from it.

    `>= 0` leaves NaN out (a quantile while nothing happened): one would make the whole mean NaN.
    """
    return f"avg_over_time((({expr}) >= 0)[1h:1m] @ $started offset -$settle)"


def ratio(expr: str) -> str:
    """An expression / its mean over the baseline hour."""
    return f"({expr}) / ({baseline(expr)} > 0)"


def _signals() -> list[tuple[str, str]]:
    return [
        (OUTPUT_5M, "output tokens/s"),
        (recorded("ttft", "0.95", "5m"), "TTFT p95"),
        (recorded("tpot", "0.95", "5m"), "TPOT p95"),
        (recorded("itl", "0.99", "5m"), "ITL p99"),
        (recorded("e2e", "0.95", "5m"), "E2E p95"),
    ]


def _drift_now() -> list[Builder]:
    """Each signal now against the first hour."""
    tiles = [
        stat(
            f"{name} against the first hour",
            "percentunit",
            About(
                f"{name} of the last 5 minutes as a share of the first steady hour.",
                "x / avg_over_time(x[1h:1m]) of the hour after settling; x over 5 minutes",
                "below 95 % (throughput)." if "tokens" in name else "above 110 % (latency).",
                YOUNG,
            ),
            now(ratio(expr)),
            thresholds=((1.1, YELLOW), (1.3, RED)) if "tokens" not in name else (),
            decimals=1,
            width=4,
        )
        for expr, name in _signals()
    ]
    alerts = stat(
        "Alerts that fire",
        "short",
        About(
            "Alerts of this run, and of what it is against, that fire now.",
            "count of ALERTS{alertname=~LLM.*, alertstate=firing}",
            "any; the table below names them.",
            "no alert",
        ),
        now(f"count({ALERTS}) or vector(0)"),
        thresholds=((1, RED),),
        words=((0, 0, "none", GREEN),),
        width=4,
    )
    return [*tiles, alerts]


def _over_time() -> list[Builder]:
    """The same as lines."""
    return [
        timeseries(
            "Everything against the first hour",
            "percentunit",
            About(
                "Each signal over 5 minutes, divided by its mean over the first steady hour: 100 % is as good as new.",
                "x / avg_over_time(x[1h:1m]) of the hour after settling",
                "any line that leaves 90-110 % and does not come back.",
                YOUNG,
            ),
            lines(*((ratio(expr), name) for expr, name in _signals())),
            thresholds=((1.1, YELLOW), (1.3, RED)),
            width=12,
            height=10,
        ),
        timeseries(
            "Latency",
            "s",
            About(
                "p95 and p99 over 5 minutes, and p95 over 30 minutes, which shows a slow drift.",
                "tokenswarm:latency_seconds:window5m and :window30m",
                "the 30-minute line climbs.",
                QUIET,
            ),
            lines(
                (recorded("ttft", "0.95", "5m"), "TTFT p95"),
                (recorded("ttft", "0.99", "5m"), "TTFT p99"),
                (recorded("itl", "0.99", "5m"), "ITL p99"),
                (f"max by (metric) (tokenswarm:latency_seconds:window30m{{{RUN}}})", "{{metric}} p95 of 30 min"),
            ),
            log=True,
            width=12,
            height=10,
        ),
    ]


def _by_the_hour() -> list[Builder]:
    """Output by the hour, errors, goodput."""
    return [
        timeseries(
            "Output by the hour",
            "cps",
            About(
                "Output tokens a second, means of an hour.",
                "rate of output_tokens_streamed_total over 1h",
                "each bar lower than the one before.",
                NO_RUN,
            ),
            lines((rate("tokenswarm_output_tokens_streamed_total", RUN, "1h"), "output tokens/s")),
            bars=True,
            width=12,
        ),
        timeseries(
            "Errors and goodput",
            "percentunit",
            About(
                "Share of requests that failed, and that met the SLO, over 5 minutes.",
                "tokenswarm:request_errors:ratio5m, tokenswarm:goodput:ratio5m",
                "errors above 1 %, goodput below 95 %.",
                QUIET,
            ),
            lines(
                (f"max(tokenswarm:request_errors:ratio5m{{{RUN}}})", "failed"),
                (f"min(tokenswarm:goodput:ratio5m{{{RUN}}})", "met the SLO"),
            ),
            high=1,
            width=12,
        ),
    ]


def _drift() -> list[Builder]:
    return [*_drift_now(), *_over_time(), *_by_the_hour()]


def _memory_growth() -> list[Builder]:
    """What grows, how fast, and until when."""
    engine = f'tokenswarm_process_resident_memory_bytes{{role="engine",{HOST}}}'
    worker = f"tokenswarm_worker_resident_memory_bytes{{{RUN}}}"
    total, used = (f"tokenswarm:gpu_memory_{what}:bytes{{{GPU}}}" for what in ("total", "used"))
    left = f"clamp_min({total} - {used}, 0)"
    grows = f"(deriv({used}[30m]) > 0)"
    return [
        timeseries(
            "Growth of memory",
            "binBps",
            About(
                "How fast resident memory of the engine and the workers, and GPU memory, grow: bytes a second.",
                "deriv over 30 minutes",
                "stays above 0 for hours: a leak. 30 kB/s is 100 MB an hour.",
                NO_RUN,
            ),
            lines(
                (f"deriv({engine}[30m])", "engine"),
                (f"max by (worker) (deriv({worker}[30m]))", "worker {{worker}}"),
                (f"deriv({used}[30m])", "GPU {{gpu}}"),
            ),
            low=None,
            width=12,
        ),
        timeseries(
            "Time until GPU memory is full",
            "s",
            About(
                "How long GPU memory lasts if it goes on growing as in the last half hour.",
                "(total − used) / deriv(used[30m]), where it grows",
                "below an hour.",
                "GPU memory does not grow (good), or no GPU exporter is scraped",
            ),
            lines((f"{left} / {grows}", "{{gpu}}")),
            thresholds=((3600, RED),),
            log=True,
            width=12,
        ),
    ]


def _resources() -> list[Builder]:
    """What the engine and the workers hold."""
    engine = f'tokenswarm_process_resident_memory_bytes{{role="engine",{HOST}}}'
    worker = f"tokenswarm_worker_resident_memory_bytes{{{RUN}}}"
    began = f"process_start_time_seconds{{{ENGINE}}}[1h]"
    restarted = f"(max_over_time({began}) - min_over_time({began}) > bool 1.5)"  # some engines' own wobbles by a second
    return [
        timeseries(
            "Memory",
            "bytes",
            About(
                "Resident memory of the engine (all its processes, and what its own page tells) and of the workers.",
                "tokenswarm_process_resident_memory_bytes, tokenswarm_worker_resident_memory_bytes, "
                "process_resident_memory_bytes",
                "a saw-tooth: restarts. A ramp: a leak.",
                NO_RUN,
            ),
            lines(
                (f"sum(max without (job) ({engine}))", "engine"),
                (f"max by (instance) (process_resident_memory_bytes{{{ENGINE}}})", "{{instance}} of itself"),
                (f"max by (worker) ({worker})", "worker {{worker}}"),
            ),
        ),
        timeseries(
            "Open files and threads of the engine",
            "short",
            About(
                "File descriptors and threads of the engine's process tree.",
                "tokenswarm_process_open_fds, tokenswarm_process_threads",
                "grows with the number of requests served: connections are not closed.",
                PROCESS,
            ),
            lines(
                (f'sum(max without (job) (tokenswarm_process_open_fds{{role="engine",{HOST}}}))', "open files"),
                (f'sum(max without (job) (tokenswarm_process_threads{{role="engine",{HOST}}}))', "threads"),
            ),
        ),
        timeseries(
            "Restarts and reconnects",
            "short",
            About(
                "Times the engine came back as another process, connections that died, preemptions in the last hour.",
                "tokenswarm_process_restarts_total, changes of process_start_time_seconds, "
                "tokenswarm_reconnects_total, vllm:num_preemptions_total, over 1h",
                "any restart. Many reconnects: the server closes idle connections.",
                PROCESS,
            ),
            lines(
                (
                    f'sum(max without (job) (increase(tokenswarm_process_restarts_total{{role="engine",{HOST}}}[1h])))',
                    "restarts",
                ),
                (f"max by (instance) (changes({began}) * {restarted})", "restarts of {{instance}}"),
                (f"max(increase(tokenswarm_reconnects_total{{{RUN}}}[1h]))", "reconnects"),
                (f"sum(max without (job) (increase(vllm:num_preemptions_total{{{ENGINE}}}[1h])))", "preemptions"),
            ),
        ),
    ]


def _growth() -> list[Builder]:
    return [*_memory_growth(), *_resources()]


def _hardware() -> list[Builder]:
    return [
        timeseries(
            "SM clock against the first hour",
            "percentunit",
            About(
                "The SM clock, mean of 5 minutes, as a share of the first hour.",
                "avg_over_time(tokenswarm:gpu_sm_clock:hertz[5m]) / its mean in the baseline hour",
                "below 97 %: the card has slowed down, so latency may be its fault.",
                NO_GPU,
            ),
            lines(
                (
                    f"max by (gpu) (avg_over_time(tokenswarm:gpu_sm_clock:hertz{{{GPU}}}[5m])) / max by (gpu) "
                    f"(avg_over_time(tokenswarm:gpu_sm_clock:hertz{{{GPU}}}[1h] @ $started offset -$settle))",
                    "{{gpu}}",
                )
            ),
            low=None,
        ),
        timeseries(
            "Temperature and power",
            "short",
            About(
                "GPU temperature (°C) and power (W), means of 5 minutes.",
                "avg_over_time of tokenswarm:gpu_temperature:celsius and tokenswarm:gpu_power:watts over 5m",
                "temperature climbs for hours: cooling.",
                NO_GPU,
            ),
            lines(
                (f"avg_over_time(tokenswarm:gpu_temperature:celsius{{{GPU}}}[5m])", "°C {{gpu}}"),
                (f"avg_over_time(tokenswarm:gpu_power:watts{{{GPU}}}[5m])", "W {{gpu}}"),
            ),
        ),
        timeseries(
            "Throttled",
            "percentunit",
            About(
                "Share of the last hour in which clocks were held down, by reason.",
                "avg_over_time(tokenswarm:gpu_throttled:ratio1m[1h])",
                "any thermal or brake reason.",
                NO_GPU,
            ),
            lines(
                (
                    f"max by (gpu, reason) (avg_over_time(tokenswarm:gpu_throttled:ratio1m{{{GPU}}}[1h]))",
                    "{{reason}} {{gpu}}",
                )
            ),
            high=1,
        ),
    ]


def _alerts() -> list[Builder]:
    about = About(
        "Alerts of this run, its engines, machines and GPUs (configs/prometheus/rules), and lost exporters.",
        "ALERTS, state firing",
        "any.",
        "no alert fires in the time range (good)",
    )
    columns = (
        ("alertname", "Alert", "short"),
        ("severity", "Severity", "short"),
        ("why", "Why", "short"),
        ("run_id", "Run", "short"),
        ("gpu", "GPU", "short"),
        ("instance", "Where", "short"),
    )
    return [
        states(
            "Alerts over time", "short", about, lines((f"max by (alertname) ({ALERTS})", "{{alertname}}")), width=12
        ),
        table("Firing now", about, [rows(ALERTS, "A")], columns, width=12, height=6),
    ]


def build() -> dashboard.Dashboard:
    content: Rows = [
        ("Drift", _drift()),
        ("Growth", _growth()),
        ("Hardware", _hardware()),
        ("Alerts", _alerts()),
    ]
    settle = "The baseline hour ends so long after the start of the run: its warm-up and an hour."
    return assemble(
        "tokenswarm-soak",
        "C · Soak",
        "A long run: every signal against its first steady hour, what grows, what throttles, what alarms.",
        [
            run(),
            *against(),
            started(),
            choice("settle", "Baseline ends after", settle, ("1h", "65m", "90m", "2h"), "65m"),
        ],
        run_annotations("$run_id"),
        content,
        refresh="30s",
        since="now-24h",
    )
