"""Dashboard B, Throughput vs batch: the curve of the stages that are over, live scatter, the knee."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from grafana.engine import NO_CONFIG, NO_ENGINE
from grafana.frame import Rows, against, assemble, choice, run, run_annotations
from grafana.panels import About, Builder, joined, now, query, rows, stat, table, xy
from grafana.queries import ENERGY_PER_TOKEN, ENGINE, RUN, load_of_stage, stage

CONCURRENCY = load_of_stage()
BATCH = stage("tokenswarm_stage_batch")
ENGINE_BATCH = stage("tokenswarm_stage_engine_batch")
WAITING = stage("tokenswarm_stage_engine_waiting")
ENERGY = stage("tokenswarm_stage_joules_per_output_token")
TOKENS = stage("tokenswarm_stage_output_tokens_per_second")
REQUESTS = stage("tokenswarm_stage_requests_per_second")
GOODPUT = stage("tokenswarm_stage_goodput_ratio")
KNEE = stage("tokenswarm:stage:knee")
NO_STAGE = "no stage is over yet; the first point comes with the end of the first stage"
UNJUDGED = "the run has no SLO, or no stage is over yet"
LIVE = "nothing is in flight in the time range"


def latency(metric: str, quantile: str) -> str:
    """A percentile of each stage; `$quantile` is chosen on the page."""
    return (
        f"max by (stage) (last_over_time(tokenswarm_stage_latency_seconds"
        f'{{{RUN},metric="{metric}",quantile="{quantile}"}}[$__range]))'
    )


def _curve(
    title: str, units: tuple[str, str], labels: tuple[str, str], about: About, x: str, y: str, log: bool
) -> Builder:
    """A point a stage, joined by the label `stage` (a label is text and can't be an axis itself)."""
    return xy(
        title,
        units,
        labels,
        about,
        [rows(x, "X"), rows(y, "Y")],
        [(labels[1], "Value #X", "Value #Y")],
        joined("stage", sort="Value #X"),
        log=log,
    )


def _throughput_curves() -> list[Builder]:
    """What the server does."""
    return [
        _curve(
            "Throughput over concurrency",
            ("short", "cps"),
            ("users, or offered requests/s", "output tokens/s"),
            About(
                "Output tokens a second of each stage against the users, or the rate, that it asked for.",
                "tokenswarm_stage_output_tokens_per_second over _stage_concurrency, or the rate asked for",
                "flat or falling to the right: saturated; more users only wait longer.",
                NO_STAGE,
            ),
            CONCURRENCY,
            TOKENS,
            True,
        ),
        _curve(
            "Throughput over requests in flight",
            ("short", "cps"),
            ("requests in flight (mean)", "output tokens/s"),
            About(
                "The same against the batch as the client sees it: the mean number of requests in flight.",
                "tokenswarm_stage_output_tokens_per_second over tokenswarm_stage_batch",
                "points stop moving to the right although users grow: the client or a queue in front is the limit.",
                NO_STAGE,
            ),
            BATCH,
            TOKENS,
            True,
        ),
        _curve(
            "Throughput over the engine's batch",
            ("short", "cps"),
            ("requests in the engine's batch (mean)", "output tokens/s"),
            About(
                "The same against the batch that the engine says it runs, its queue left out.",
                "tokenswarm_stage_output_tokens_per_second over tokenswarm_stage_engine_batch",
                "points fall together although users grow: the batch is full, and whoever comes on top waits.",
                NO_STAGE + "; or the engine tells no batch (telemetry.engine_metrics)",
            ),
            ENGINE_BATCH,
            TOKENS,
            True,
        ),
        _curve(
            "TTFT over throughput",
            ("cps", "s"),
            ("output tokens/s", "TTFT, the percentile chosen"),
            About(
                "What throughput costs in latency: the chosen percentile of TTFT of each stage.",
                "tokenswarm_stage_latency_seconds{metric=ttft} over tokenswarm_stage_output_tokens_per_second",
                "the vertical part: latency without throughput. Work left of it.",
                NO_STAGE + "; or the stages have too few requests for this percentile: choose a lower one above",
            ),
            TOKENS,
            latency("ttft", "$quantile"),
            False,
        ),
    ]


def _user_curves() -> list[Builder]:
    """What a user gets."""
    return [
        _curve(
            "Speed of each user over concurrency",
            ("short", "cps"),
            ("users, or offered requests/s", "tokens/s of a user"),
            About(
                "Output tokens a second that one user gets while his answer streams.",
                "1 / median TPOT of the stage",
                "below about 10 tokens/s: slower than people read.",
                NO_STAGE,
            ),
            CONCURRENCY,
            f"1 / ({latency('tpot', '0.5')} > 0)",
            True,
        ),
        _curve(
            "Goodput over concurrency",
            ("short", "percentunit"),
            ("users, or offered requests/s", "requests that met the SLO"),
            About(
                "Share of the requests of each stage that met every limit of the SLO.",
                "tokenswarm_stage_goodput_ratio over _stage_concurrency, or the rate asked for",
                "falls below 95 %: past the useful load, whatever the throughput.",
                UNJUDGED,
            ),
            CONCURRENCY,
            GOODPUT,
            True,
        ),
    ]


def _energy_curves() -> list[Builder]:
    """What a token costs."""
    return [
        _curve(
            "Energy per token over concurrency",
            ("short", "joule"),
            ("users, or offered requests/s", "J/token"),
            About(
                "Energy of all GPUs for an output token, of each stage.",
                "tokenswarm_stage_joules_per_output_token over _stage_concurrency, or the rate asked for",
                "stops falling: more users do not fill the GPU better. Rises: preemption or throttling.",
                NO_STAGE + "; or the run watches no GPU (telemetry.gpu_exporters)",
            ),
            CONCURRENCY,
            ENERGY,
            True,
        ),
        xy(
            "Energy per token over batch, live",
            ("short", "joule"),
            ("requests in flight (mean of 30 s)", "J/token"),
            About(
                "Energy of all GPUs for an output token, against the batch; a point for each step of time.",
                "1 / tokenswarm:tokens_per_joule:rate1m over avg_over_time(requests_in_flight[30s])",
                "does not fall to the right: the batch does not fill the GPU better.",
                "no GPU exporter, or nothing is generated in the time range",
            ),
            [
                query(f"max(avg_over_time(tokenswarm_requests_in_flight{{{RUN}}}[30s]))", "batch", "X"),
                query(ENERGY_PER_TOKEN, "J/token", "Y"),
            ],
            [("J/token", "batch", "J/token")],
            joined("Time"),
            connected=False,
        ),
    ]


def _curves() -> list[Builder]:
    return [*_throughput_curves(), *_user_curves(), *_energy_curves()]


def _live() -> list[Builder]:
    return [
        xy(
            "Throughput over batch, live",
            ("short", "cps"),
            ("requests in flight (mean of 30 s)", "output tokens/s"),
            About(
                "Output against the batch while the run goes on: a point for each step of time, stages or not.",
                "tokenswarm:output_tokens:rate30s over avg_over_time(requests_in_flight[30s])",
                "a cloud that is flat to the right: saturated. Two clouds: something else changed in between.",
                LIVE,
            ),
            [
                query(f"max(avg_over_time(tokenswarm_requests_in_flight{{{RUN}}}[30s]))", "batch", "X"),
                query(f"max(tokenswarm:output_tokens:rate30s{{{RUN}}})", "output", "Y"),
            ],
            [("output", "batch", "output")],
            joined("Time"),
            connected=False,
        ),
        xy(
            "TTFT over batch, live",
            ("short", "s"),
            ("requests in flight", "TTFT p90 of 10 s"),
            About(
                "Time to the first token against the batch while the run goes on.",
                "latency_quantile_seconds{metric=ttft, quantile=0.9, window=10s} over requests_in_flight",
                "rises steeply from some batch on: there requests begin to queue.",
                LIVE,
            ),
            [
                query(f"max(avg_over_time(tokenswarm_requests_in_flight{{{RUN}}}[10s]))", "batch", "X"),
                query(
                    f'max(tokenswarm_latency_quantile_seconds{{{RUN},metric="ttft",quantile="0.9",window="10s"}})',
                    "TTFT p90",
                    "Y",
                ),
            ],
            [("TTFT p90", "batch", "TTFT p90")],
            joined("Time"),
            connected=False,
        ),
    ]


def _stages() -> list[Builder]:
    columns = (
        ("stage", "Stage", "short", None),
        ("Value #A", "Users", "short", CONCURRENCY),
        ("Value #B", "In flight (mean)", "short", BATCH),
        ("Value #K", "Batch (engine)", "short", ENGINE_BATCH),
        ("Value #M", "Waiting (engine)", "short", WAITING),
        ("Value #C", "Output tokens/s", "cps", TOKENS),
        ("Value #D", "Requests/s", "reqps", REQUESTS),
        ("Value #E", "TTFT p50", "s", latency("ttft", "0.5")),
        ("Value #F", "TTFT p$quantile", "s", latency("ttft", "$quantile")),
        ("Value #G", "TPOT p50", "s", latency("tpot", "0.5")),
        ("Value #H", "ITL p$quantile", "s", latency("itl", "$quantile")),
        ("Value #I", "Goodput", "percentunit", GOODPUT),
        ("Value #L", "J/token", "joule", ENERGY),
        ("Value #J", "Knee", "short", KNEE),
    )
    about = About(
        "The stages that are over, as in the report.",
        "tokenswarm_stage_*; knee: the fewest users with at least 90 % of the best throughput",
        "the knee is the last stage: where next to nothing waits in the engine, more users may give more.",
        NO_STAGE
        + ". A column that is missing: no stage has enough requests for it, no SLO, or engine and GPU tell nothing",
    )
    targets = [rows(expr, field[-1]) for field, _, _, expr in columns if expr]
    steps = joined("stage", sort="Value #A")
    return [table("Stages", about, targets, [column[:3] for column in columns], steps)]


def _cache() -> list[Builder]:
    """What bounds the batch from above."""

    def last(name: str, more: str = "") -> str:
        return f"max(last_over_time({name}{{{RUN}{more}}}[$__range]))"

    return [
        stat(
            "KV-cache full at a batch of",
            "short",
            About(
                "Requests of the run's mean context that fill the KV-cache.",
                "capacity / (bytes a token · (prompt + half of the answer)); also: tokenswarm kv",
                "below the users of a stage: that stage preempts, and its throughput falls.",
                NO_CONFIG,
            ),
            now(last("tokenswarm_kv_cache_batch_at_full")),
            decimals=0,
            width=6,
        ),
        stat(
            "KV-cache of a token",
            "bytes",
            About(
                "What one token takes in the KV-cache.",
                "predicted: 2 · layers · kv_heads · head_dim · bytes of the model's config.json",
                "not what the engine tells: the cache has another dtype than the model (--kv-cache-dtype).",
                NO_CONFIG,
            ),
            now(last("tokenswarm_kv_cache_bytes_per_token", ',source="predicted"')),
            width=6,
        ),
        stat(
            "KV-cache of the engine",
            "bytes",
            About(
                "The KV-cache that the engine has, all replicas.",
                "tokenswarm_kv_cache_capacity_bytes: as the engine tells it, else its tokens · predicted bytes",
                "far below the free memory of the GPU: gpu_memory_utilization leaves some of it unused.",
                NO_CONFIG,
            ),
            now(last("tokenswarm_kv_cache_capacity_bytes")),
            width=6,
        ),
        stat(
            "KV-cache in use, most",
            "percentunit",
            About(
                "The largest share of the KV-cache that was in use.",
                "max over the time range of tokenswarm:server_kv_cache:ratio",
                "100 %: the cache, not the GPU, ended the growth of the batch.",
                NO_ENGINE,
            ),
            now(f"max(max_over_time(tokenswarm:server_kv_cache:ratio{{{ENGINE}}}[$__range]))"),
            thresholds=((0.95, "red"),),
            width=6,
        ),
    ]


def build() -> dashboard.Dashboard:
    content: Rows = [
        ("The curve: one point a stage", _curves()),
        ("Live: one point a moment", _live()),
        ("Numbers", [*_cache(), *_stages()]),
    ]
    text = "The percentile of the panels that say so. High ones need many requests a stage: 0.99 needs 1000 or more."
    return assemble(
        "tokenswarm-capacity",
        "B · Throughput vs batch",
        "How much the server does at which batch, what latency it costs, and where more users stop to help.",
        [run(), *against(), choice("quantile", "Percentile", text, ("0.5", "0.9", "0.95", "0.99"), "0.9")],
        run_annotations("$run_id"),
        content,
        refresh="10s",
        since="now-1h",
    )
