"""The row of panels about the load generator itself: may the numbers be believed?"""

from __future__ import annotations

from grafana.panels import RED, YELLOW, About, Builder, lines, timeseries
from grafana.queries import LOOP_LAG, PUSH_AGE, RECEIVE_LAG, RUN, SEND_LAG, rate, recent

NO_RUN = "no run is chosen, or its exporter is not scraped"
QUIET = "nothing was measured in the window, or the run is over"


def _lags() -> list[Builder]:
    """How late it is."""
    return [
        timeseries(
            "Event-loop lag",
            "s",
            About(
                "How late a 10 ms timer of the workers' event loops came.",
                "histogram_quantile over the rate interval, all workers",
                "p99 above 10 ms: the workers are overloaded, and so are the latencies they tell.",
                QUIET,
            ),
            lines((recent(0.5, LOOP_LAG), "p50"), (recent(0.99, LOOP_LAG), "p99")),
            thresholds=((0.01, RED),),
            log=True,
        ),
        timeseries(
            "Send lag",
            "s",
            About(
                "From the intended start of a request to its sending (steady windows).",
                "histogram_quantile over the rate interval",
                "p99 above 5 ms: the load was not the one intended (coordinated omission).",
                QUIET,
            ),
            lines((recent(0.5, SEND_LAG), "p50"), (recent(0.99, SEND_LAG), "p99")),
            thresholds=((0.005, RED),),
            log=True,
        ),
        timeseries(
            "Receive lag",
            "s",
            About(
                "From the kernel's stamp of a read to our look at it.",
                "histogram_quantile over the rate interval",
                "p99 above 1 ms: the client was late; with kernel stamps the times are right all the same.",
                QUIET,
            ),
            lines((recent(0.5, RECEIVE_LAG), "p50"), (recent(0.99, RECEIVE_LAG), "p99")),
            thresholds=((0.001, YELLOW),),
            log=True,
        ),
    ]


def _processes() -> list[Builder]:
    """CPU and memory of the workers."""
    return [
        timeseries(
            "CPU of the workers",
            "percentunit",
            About(
                "CPU use of each worker, of one core.",
                "tokenswarm_worker_cpu_ratio",
                "above 70 %: start more workers.",
                NO_RUN,
            ),
            lines((f"max by (worker) (tokenswarm_worker_cpu_ratio{{{RUN}}})", "worker {{worker}}")),
            thresholds=((0.7, RED),),
            width=6,
        ),
        timeseries(
            "Memory of the workers",
            "bytes",
            About(
                "Resident memory of each worker.",
                "tokenswarm_worker_resident_memory_bytes",
                "grows without end: it is bounded by design, so that is a bug.",
                NO_RUN,
            ),
            lines((f"max by (worker) (tokenswarm_worker_resident_memory_bytes{{{RUN}}})", "worker {{worker}}")),
            width=6,
        ),
    ]


def _losses() -> list[Builder]:
    """Reports that are late, and what was lost."""
    return [
        timeseries(
            "Age of the newest report",
            "s",
            About(
                "Time since each worker reported, and since the run pushed to the exporter.",
                "tokenswarm_worker_report_age_seconds, tokenswarm_run_last_push_age_seconds",
                "above 10 s: a worker hangs, or the network between them does.",
                "the run is over, or its exporter is not scraped",
            ),
            lines(
                (f"max by (worker) (tokenswarm_worker_report_age_seconds{{{RUN}}})", "worker {{worker}}"),
                (PUSH_AGE, "push"),
            ),
            thresholds=((10, RED),),
            width=6,
        ),
        timeseries(
            "Merged events and lost requests",
            "ops",
            About(
                "Content events that shared a read with an earlier one, requests never sent, connections replaced.",
                "rates of merged_chunks_total, requests_dropped_total, reconnects_total",
                "merged above a few percent of all events: gaps are missing. Dropped above 0: the client is the limit.",
                NO_RUN,
            ),
            lines(
                (rate("tokenswarm_merged_chunks_total"), "merged events"),
                (rate("tokenswarm_requests_dropped_total"), "dropped requests"),
                (rate("tokenswarm_reconnects_total"), "reconnects"),
            ),
            width=6,
        ),
    ]


def panels() -> list[Builder]:
    """Lags, CPU, memory, reports, merged reads."""
    return [*_lags(), *_processes(), *_losses()]
