"""Every metric of the load exporter: name, type, help, labels; for histograms the sketch and the buckets. Data only.

All series of a run carry `run_id, engine, model, scenario` before the labels given here. The latency histograms hold
the requests of the steady windows, as `latency` of summary.json does; the counters hold all requests, as `requests`
does. Buckets are 2^(k/2^schema) from `first` to `last` (octaves): counted on the sketch's integer keys, exactly. The
latencies have 32 an octave where percentiles of language models lie, and 4 elsewhere: where all values are much alike,
as in a paced decode, a percentile may lie anywhere in its bucket, and 8 an octave would be up to 9 % off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from exporters.families import Family
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import LATENCIES
from tokenswarm.record import FAILED_OUTCOMES, TokenSource

COARSE = 2
"""The schema outside of the dense octaves: buckets of 19 %."""

CONSTANT_LABELS = ("run_id", "engine", "model", "scenario")

ERROR_TYPES = tuple(sorted(outcome.value for outcome in FAILED_OUTCOMES))
TOKEN_SOURCES = tuple(source.value for source in TokenSource)
OUTCOMES = {"ok": "ok", "error": "failed", "cancelled": "cancelled", "censored": "censored"}
"""Label value → field of a block (and of `requests` in summary.json)."""

METRICS = LATENCIES
QUANTILES = {"0.5": "p50", "0.9": "p90", "0.95": "p95", "0.99": "p99", "0.999": "p999", "1": "max"}
STAGE_METRICS = ("ttft", "itl", "tpot", "e2e", "stall")


@dataclass(frozen=True, slots=True)
class Histogram:
    """`source`: the field of a block (`instrument.x`: of the workers' own); `labels`: names and values of its own.

    `dense`: the octaves that have 2^schema buckets each; outside of them there are 2^COARSE. None: all have.
    `engines`: runs against these engines have it, others where there is a value; () is all.
    """

    source: str
    schema: int
    first: int
    last: int
    labels: tuple[tuple[str, str], ...] = (("phase", "steady"),)
    dense: tuple[int, int] | None = None
    engines: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys of the finite buckets, in the schema."""
        return _keys(self.schema, self.first, self.last, self.dense)

    def cumulative(self, sketch: Sketch) -> list[int]:
        """Values up to the edge of each finite bucket."""
        keys = self.keys
        sums = sketch.cumulative(self.schema, keys[0], keys[-1])
        return [sums[key - keys[0]] for key in keys]


@lru_cache
def _keys(schema: int, first: int, last: int, dense: tuple[int, int] | None) -> tuple[int, ...]:
    octave = 1 << schema
    low, high = (edge * octave for edge in dense or (first, last))
    step = 1 << schema - COARSE if dense else 1
    every = range(first * octave, last * octave + 1)
    return tuple(key for key in every if low <= key <= high or key % step == 0)


HISTOGRAM_HELP = {
    "tokenswarm_time_to_first_token_seconds": "From sending the request to its first token, reasoning included.",
    "tokenswarm_time_to_first_token_as_due_seconds": "The same from when the request was due: what a user waits.",
    "tokenswarm_inter_token_latency_seconds": "Time between successive tokens of a stream.",
    "tokenswarm_time_per_output_token_seconds": "Mean time between tokens of a request, after its first token.",
    "tokenswarm_request_duration_seconds": "From sending the request to its last byte, or to its failure.",
    "tokenswarm_request_duration_as_due_seconds": "From when the request was due to the last byte of its answer.",
    "tokenswarm_max_inter_token_gap_seconds": "The worst gap between tokens of a request: the stutter that users see.",
    "tokenswarm_schedule_lag_seconds": "From the intended start of a request to its sending.",
    "tokenswarm_event_loop_lag_seconds": "How late timers of the load generator's event loop came.",
    "tokenswarm_receive_lag_seconds": "From the kernel's stamp of a read to the load generator's look at it.",
    "tokenswarm_prompt_tokens": "Prompt tokens of a request.",
    "tokenswarm_output_tokens": "Output tokens of a request.",
    "tokenswarm_server_queue_seconds": "Time in the engine's queue, as the engine says with the answer.",
    "tokenswarm_server_first_token_seconds": "From the end of the queue to the first token, as vLLM says.",
    "tokenswarm_server_load_seconds": "Time to load the model, as the engine says.",
    "tokenswarm_server_prefill_seconds": "Time to evaluate the prompt, as the engine says.",
    "tokenswarm_server_decode_seconds": "Time to generate the answer, as the engine says.",
}

_OLLAMA = ("ollama",)
_NOBODY = ("",)  # is known to tell it always

# Token counts have octave buckets: a sketch can tell 64 from 65 tokens but not 1000 from 1005, and octaves are exact.
HISTOGRAMS: dict[str, tuple[Histogram, ...]] = {
    "tokenswarm_time_to_first_token_seconds": (Histogram("ttft", 5, -10, 9, dense=(-8, 5)),),
    "tokenswarm_time_to_first_token_as_due_seconds": (Histogram("ttft_intended", 3, -10, 9),),
    "tokenswarm_inter_token_latency_seconds": (Histogram("itl", 5, -13, 5, dense=(-10, -1)),),
    "tokenswarm_time_per_output_token_seconds": (Histogram("tpot", 5, -13, 5, dense=(-10, -1)),),
    "tokenswarm_request_duration_seconds": (
        Histogram("e2e", 5, -7, 12, (("phase", "steady"), ("outcome", "ok")), dense=(-4, 7)),
        # The same buckets: a sum over outcomes of different ones would be no histogram.
        Histogram("failed_e2e", 5, -7, 12, (("phase", "steady"), ("outcome", "error")), dense=(-4, 7)),
    ),
    "tokenswarm_request_duration_as_due_seconds": (Histogram("e2e_intended", 3, -7, 12),),
    "tokenswarm_max_inter_token_gap_seconds": (Histogram("stall", 2, -10, 6),),
    "tokenswarm_schedule_lag_seconds": (Histogram("send_lag", 1, -13, 7),),
    "tokenswarm_event_loop_lag_seconds": (Histogram("instrument.loop_lag", 1, -13, 3, ()),),
    "tokenswarm_receive_lag_seconds": (Histogram("instrument.rx_lag", 1, -20, 3, ()),),
    "tokenswarm_prompt_tokens": (Histogram("prompt_len", 0, 0, 18),),
    "tokenswarm_output_tokens": (Histogram("output_len", 0, 0, 18),),
    "tokenswarm_server_queue_seconds": (Histogram("engine_queue", 2, -10, 12, engines=_OLLAMA),),
    "tokenswarm_server_first_token_seconds": (Histogram("engine_ttft", 2, -10, 12, engines=_NOBODY),),
    "tokenswarm_server_load_seconds": (Histogram("engine_load", 2, -10, 12, engines=_OLLAMA),),
    "tokenswarm_server_prefill_seconds": (Histogram("engine_prefill", 2, -10, 12, engines=_OLLAMA),),
    "tokenswarm_server_decode_seconds": (Histogram("engine_decode", 2, -10, 12, engines=_OLLAMA),),
}

SELDOM = {
    "tokenswarm_draft_tokens_total": ("drafted", "Tokens that a speculative decoder proposed, as the engine says."),
    "tokenswarm_accepted_draft_tokens_total": ("accepted", "Of these, tokens that the model took."),
}
"""Name → (key of a block's `seldom`, help)."""

COUNTERS_OF_BLOCK = {
    "tokenswarm_requests_intended_total": ("intended", "Requests that became due."),
    "tokenswarm_requests_started_total": ("sent", "Requests that were begun, connection set-up included."),
    "tokenswarm_requests_dropped_total": ("dropped", "Requests that were due and are never sent."),
    "tokenswarm_reconnects_total": ("reconnects", "Kept connections that had died and were replaced."),
    "tokenswarm_prompt_tokens_total": ("prompt_tokens", "Prompt tokens of successful requests."),
    "tokenswarm_cached_prompt_tokens_total": ("cached_tokens", "Of these, tokens that the engine had cached."),
    "tokenswarm_reasoning_chunks_total": (
        "reasoning_events",
        "Content-bearing events before the first word of the answer: thoughts.",
    ),
    "tokenswarm_reasoning_tokens_total": ("reasoning_tokens", "Reasoning tokens of successful requests."),
    "tokenswarm_chunks_total": ("events", "Content-bearing events of successful requests; one may hold many tokens."),
    "tokenswarm_merged_chunks_total": ("merged_events", "Of these, events that shared a read with an earlier one."),
    "tokenswarm_response_bytes_total": ("bytes_received", "Bytes of answers, HTTP framing included."),
}
"""Name → (field of the sum over all stages and phases, help)."""

FAMILIES: dict[str, Family] = {
    **{name: Family("counter", text) for name, (_, text) in (*COUNTERS_OF_BLOCK.items(), *SELDOM.items())},
    "tokenswarm_requests_total": Family("counter", "Requests that ended, by how.", ("outcome",)),
    "tokenswarm_request_errors_total": Family("counter", "Requests that failed, by how.", ("error_type",)),
    "tokenswarm_output_tokens_total": Family(
        "counter", "Output tokens of successful requests that ended, by who counted them.", ("token_source",)
    ),
    "tokenswarm_output_tokens_streamed_total": Family(
        "counter", "Content-bearing events as they arrive, of all requests: for live rates. No exact token count."
    ),
    "tokenswarm_slo_requests_total": Family(
        "counter", "Requests of the steady windows that were judged by the SLO, by whether they met it.", ("met",)
    ),
    "tokenswarm_slo_missed_total": Family(
        "counter", "Successful requests of the steady windows beyond a limit of the SLO.", ("limit",)
    ),
    "tokenswarm_requests_in_flight": Family("gauge", "Requests that wait for an answer or read one."),
    "tokenswarm_streams_decoding": Family("gauge", "Of these, past the first token: the client's view of the batch."),
    "tokenswarm_requests_queued": Family("gauge", "Requests that are due and not sent yet."),
    "tokenswarm_users": Family(
        "gauge", "Users by state: those there (running), still missing (spawning), too many (stopping).", ("state",)
    ),
    "tokenswarm_target_users": Family("gauge", "Users that the current stage asks for; 0 in an open loop."),
    "tokenswarm_target_requests_per_second": Family(
        "gauge", "Requests a second that are due now; absent in a closed loop."
    ),
    "tokenswarm_run_info": Family("gauge", "What was run, always 1.", ()),  # labels: envelope.INFO_LABELS
    "tokenswarm_run_target_info": Family(
        "gauge",
        "What the run is against, always 1: label instance of its engines and GPU exporters, UUIDs of its GPUs.",
        ("role", "target"),
    ),
    "tokenswarm_run_start_timestamp_seconds": Family("gauge", "When the run began."),
    "tokenswarm_run_end_timestamp_seconds": Family("gauge", "When the run ended; absent while it goes on."),
    "tokenswarm_run_phase": Family("gauge", "1 for the phase that the run is in.", ("phase",)),
    "tokenswarm_run_stage": Family("gauge", "The number of the current stage."),
    "tokenswarm_run_verdict": Family("gauge", "1 for the verdict of a run that ended.", ("status",)),
    "tokenswarm_run_doubt": Family("gauge", "A doubt of the verdict, always 1.", ("code", "severity")),
    "tokenswarm_run_last_push_age_seconds": Family("gauge", "Time since the run last pushed."),
    "tokenswarm_run_pushes_dropped_total": Family("counter", "Pushes that did not reach an exporter."),
    "tokenswarm_workers": Family("gauge", "Workers by state.", ("state",)),
    "tokenswarm_worker_report_age_seconds": Family(
        "gauge", "Time since a new report of the worker came; absent once the run has ended.", ("worker",)
    ),
    "tokenswarm_worker_cpu_ratio": Family("gauge", "CPU use of a worker, of one core.", ("worker",)),
    "tokenswarm_worker_resident_memory_bytes": Family("gauge", "Resident memory of a worker.", ("worker",)),
    "tokenswarm_kv_cache_bytes_per_token": Family(
        "gauge", "KV-cache that a token takes, predicted from config.json and as the engine tells it.", ("source",)
    ),
    "tokenswarm_kv_cache_predicted_bytes": Family(
        "gauge", "KV-cache that the batch should hold now: batch, mean context, bytes a token."
    ),
    "tokenswarm_kv_cache_used_bytes": Family("gauge", "KV-cache in use, as the engine tells it, all replicas."),
    "tokenswarm_kv_cache_capacity_bytes": Family("gauge", "KV-cache that the engine has, all replicas."),
    "tokenswarm_kv_cache_batch_at_full": Family(
        "gauge", "Requests of the run's mean context that fill the KV-cache: a larger batch is preempted."
    ),
    "tokenswarm_stage_info": Family(
        "gauge", "A stage that has begun, always 1.", ("stage", "target_concurrency", "load")
    ),
    "tokenswarm_stage_start_timestamp_seconds": Family("gauge", "When the stage began, its warm-up.", ("stage",)),
    "tokenswarm_stage_concurrency": Family("gauge", "Users that the stage asked for.", ("stage",)),
    "tokenswarm_stage_target_requests_per_second": Family(
        "gauge", "Requests a second that the stage asked for, of a ramp the mean.", ("stage",)
    ),
    "tokenswarm_stage_batch": Family("gauge", "Requests in flight, mean over the stage's window.", ("stage",)),
    "tokenswarm_stage_engine_batch": Family(
        "gauge", "Requests that the engine says it ran, mean over the stage's window.", ("stage",)
    ),
    "tokenswarm_stage_engine_waiting": Family(
        "gauge", "Requests in the engine's queue, mean over the stage's window.", ("stage",)
    ),
    "tokenswarm_stage_joules_per_output_token": Family(
        "gauge", "Energy of all GPUs for an output token in the stage's window.", ("stage",)
    ),
    "tokenswarm_stage_output_tokens_per_second": Family("gauge", "Output tokens in the stage's window.", ("stage",)),
    "tokenswarm_stage_requests_per_second": Family("gauge", "Requests that ended in the stage's window.", ("stage",)),
    "tokenswarm_stage_goodput_ratio": Family("gauge", "Share of the stage's requests that met the SLO.", ("stage",)),
    "tokenswarm_latency_quantile_bound_seconds": Family(
        "gauge",
        "What a percentile of the run is at least and at most: the load generator's own error. No high: no bound.",
        ("metric", "rank", "side"),
    ),
}

KV_CACHE = {
    "tokenswarm_kv_cache_predicted_bytes": "predicted_bytes",
    "tokenswarm_kv_cache_used_bytes": "used_bytes",
    "tokenswarm_kv_cache_capacity_bytes": "capacity_bytes",
    "tokenswarm_kv_cache_batch_at_full": "batch_at_full",
}
"""Name → field of the pushed state."""

SUMMARIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokenswarm_latency_quantile_seconds": (
        "Percentiles, window=run: as in the report; window=10s: of the last 10 s. Absent if there are too few samples.",
        ("metric", "window"),
    ),
    "tokenswarm_stage_latency_seconds": ("Percentiles of a stage that is over, as in the report.", ("stage", "metric")),
}
"""Name → (help, labels). A summary is a gauge by quantile with a sum and a count, and may have the label `quantile`."""

REASONS = (
    "unauthorized",
    "content_type",
    "oversized",
    "malformed",
    "schema_version",
    "too_many_runs",
    "busy",
    "slow",
    "broken",
)
"""Why a push was refused. Closed, so that every one is there with 0 from the start."""

DROPPED = ("info", "budget", "value")
"""Why a label set was dropped: a label that is not allowed, more series than the budget, a value outside its set."""

OWN_FAMILIES = {
    "tokenswarm_exporter_pushes_total": Family("counter", "Pushes that were taken in."),
    "tokenswarm_exporter_push_errors_total": Family("counter", "Pushes that were refused, by reason.", ("reason",)),
    "tokenswarm_exporter_runs": Family("gauge", "Runs that are served."),
    "tokenswarm_exporter_runs_expired_total": Family("counter", "Runs that are no longer served."),
    "tokenswarm_dropped_label_sets_total": Family(
        "counter", "Label sets that were refused, by reason, once a run each.", ("reason",)
    ),
}
