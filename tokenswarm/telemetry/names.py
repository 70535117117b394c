"""Engines' and routers' metric names -> ours: one entry an engine, newest name of a quantity first.

vLLM renames metrics about twice a year: deprecated in X.Y, hidden in X.Y+1, gone in X.Y+2. Names that a page lacks are
absent from the reading. A name with a colon is found with an underscore, too: so prometheus_client 0.23 and newer
spells it for whoever doesn't ask for UTF-8 names (SGLang, LMDeploy). docs/engines.md has the same table for readers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Row(NamedTuple):
    """One quantity: our name, how values of several label sets (engines, models) combine, the page's names."""

    ours: str
    kind: Literal["level", "mean_level", "counter", "counter_by_label", "histogram"]
    names: tuple[str, ...]
    by: str = ""  # for counter_by_label
    needed: bool = False  # a page without it is not whole


class Engine(NamedTuple):
    """What one program tells. `at_the_end`: a request's tokens are added when it ends, not while it streams."""

    title: str
    rows: tuple[Row, ...]
    role: Literal["engine", "router"] = "engine"  # a router's numbers are no engine's: they are never added to those
    at_the_end: bool = False


def _level(ours: str, *names: str, needed: bool = False) -> Row:
    return Row(ours, "level", names, needed=needed)


def _share(ours: str, *names: str) -> Row:
    return Row(ours, "mean_level", names)


def _count(ours: str, *names: str, needed: bool = False) -> Row:
    return Row(ours, "counter", names, needed=needed)


def _by(ours: str, label: str, *names: str) -> Row:
    return Row(ours, "counter_by_label", names, by=label)


def _times(ours: str, *names: str) -> Row:
    return Row(ours, "histogram", names)


VLLM = Engine("vLLM", (
    _level("running", "vllm:num_requests_running", needed=True),
    _level("waiting", "vllm:num_requests_waiting", needed=True),
    _share("kv_cache_usage", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # 0.10
    _count("preemptions", "vllm:num_preemptions_total"),
    _count("prompt_tokens", "vllm:prompt_tokens_total", needed=True),
    _count("prompt_tokens_cached", "vllm:prompt_tokens_cached_total"),
    _count("generation_tokens", "vllm:generation_tokens_total", needed=True),
    _count("cache_queries", "vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),  # 0.10
    _count("cache_hits", "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    _by("finished", "finished_reason", "vllm:request_success_total"),
    _by("rejected", "reason", "vllm:admission_rejections_total"),
    _times("ttft_s", "vllm:time_to_first_token_seconds"),
    _times("itl_s", "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),  # 0.11
    _times("tpot_s", "vllm:request_time_per_output_token_seconds"),
    _times("e2e_s", "vllm:e2e_request_latency_seconds"),
    _times("queue_s", "vllm:request_queue_time_seconds"),
    _times("prefill_s", "vllm:request_prefill_time_seconds"),
    _times("decode_s", "vllm:request_decode_time_seconds"),
    _times("step_tokens", "vllm:iteration_tokens_total"),
))  # fmt: skip

LLAMACPP = Engine("llama.cpp", (
    _level("running", "llamacpp:requests_processing", needed=True),
    _level("waiting", "llamacpp:requests_deferred", needed=True),
    _share("kv_cache_usage", "llamacpp:kv_cache_usage_ratio"),  # gone since mid-2025
    _count("prompt_tokens_computed", "llamacpp:prompt_tokens_total", needed=True),  # without cached ones
    _count("prompt_tokens_cached", "llamacpp:prompt_tokens_cached_total"),
    _count("prompt_seconds", "llamacpp:prompt_seconds_total"),
    _count("generation_tokens", "llamacpp:tokens_predicted_total", needed=True),
    _count("generation_seconds", "llamacpp:tokens_predicted_seconds_total"),
    _count("decode_steps", "llamacpp:n_decode_total"),
), at_the_end=True)  # fmt: skip

SGLANG = Engine("SGLang", (
    _level("running", "sglang:num_running_reqs", needed=True),
    _level("waiting", "sglang:num_queue_reqs", needed=True),
    _share("kv_cache_usage", "sglang:token_usage"),
    _count("preemptions", "sglang:num_retracted_requests_total"),
    _count("prompt_tokens", "sglang:prompt_tokens_total"),
    _count("prompt_tokens_cached", "sglang:cached_tokens_total"),
    _count("generation_tokens", "sglang:generation_tokens_total"),
    _count("finished.all", "sglang:num_requests_total"),
    _count("finished.abort", "sglang:num_aborted_requests_total"),
    _times("ttft_s", "sglang:time_to_first_token_seconds"),
    _times("itl_s", "sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
    _times("e2e_s", "sglang:e2e_request_latency_seconds"),
    _times("queue_s", "sglang:queue_time_seconds"),
), at_the_end=True)  # fmt: skip

TENSORRT_LLM = Engine("TensorRT-LLM", (  # of trtllm-serve, at /prometheus/metrics; its /metrics is JSON
    _level("running", "trtllm_num_requests_running"),
    _level("waiting", "trtllm_num_requests_waiting"),
    _share("kv_cache_usage", "trtllm_kv_cache_utilization"),
    _count("prompt_tokens", "trtllm_prompt_tokens_total"),
    _count("prompt_tokens_cached", "trtllm_prompt_cached_tokens_total"),
    _count("generation_tokens", "trtllm_generation_tokens_total"),
    _by("finished", "finished_reason", "trtllm_request_success_total"),
    _count("finished.error", "trtllm_request_error_total"),
    _times("ttft_s", "trtllm_time_to_first_token_seconds"),
    _times("tpot_s", "trtllm_time_per_output_token_seconds"),
    _times("e2e_s", "trtllm_e2e_request_latency_seconds"),
    _times("queue_s", "trtllm_request_queue_time_seconds"),
    _times("prefill_s", "trtllm_request_prefill_time_seconds"),
    _times("decode_s", "trtllm_request_decode_time_seconds"),
), at_the_end=True)  # fmt: skip

LMDEPLOY = Engine("LMDeploy", (
    _level("running", "lmdeploy:num_requests_running", needed=True),
    _level("waiting", "lmdeploy:num_requests_waiting", needed=True),
    _share("kv_cache_usage", "lmdeploy:gpu_cache_usage_perc"),
    _count("prompt_tokens", "lmdeploy:prompt_tokens_total"),
    _count("generation_tokens", "lmdeploy:generation_tokens_total"),
    _by("finished", "finished_reason", "lmdeploy:request_success_total"),
    _times("ttft_s", "lmdeploy:time_to_first_token_seconds"),
    _times("itl_s", "lmdeploy:inter_token_latency_seconds", "lmdeploy:time_per_output_token_seconds"),
    _times("e2e_s", "lmdeploy:e2e_request_latency_seconds"),
    _times("queue_s", "lmdeploy:request_queue_time_seconds"),
    _times("prefill_s", "lmdeploy:request_prefill_time_seconds"),
    _times("decode_s", "lmdeploy:request_decode_time_seconds"),
    _times("step_tokens", "lmdeploy:iteration_tokens_total"),
))  # fmt: skip

TGI = Engine("TGI", (
    _level("running", "tgi_batch_current_size"),
    _level("waiting", "tgi_queue_size"),
    _count("prompt_tokens", "tgi_request_input_length_sum"),  # of valid requests, before they run
    _count("generation_tokens", "tgi_request_generated_tokens_sum"),
    _count("finished.all", "tgi_request_success"),
    _by("finished", "err", "tgi_request_failure"),
    _times("tpot_s", "tgi_request_mean_time_per_token_duration"),
    _times("e2e_s", "tgi_request_duration"),
    _times("queue_s", "tgi_request_queue_duration"),
), at_the_end=True)  # fmt: skip

DYNAMO = Engine("Dynamo's frontend", (
    _level("held", "dynamo_frontend_inflight_requests"),
    _level("before_first_token", "dynamo_frontend_queued_requests"),  # prefill included: no queue
    _count("prompt_tokens", "dynamo_frontend_input_sequence_tokens_sum"),
    _count("prompt_tokens_cached", "dynamo_frontend_cached_tokens_sum"),
    _count("generation_tokens", "dynamo_frontend_output_tokens_total", "dynamo_frontend_output_sequence_tokens_sum"),
    _by("finished", "status", "dynamo_frontend_requests_total"),
    _count("retries", "dynamo_frontend_model_migration_total"),
    _times("ttft_s", "dynamo_frontend_time_to_first_token_seconds"),
    _times("itl_s", "dynamo_frontend_inter_token_latency_seconds"),
    _times("e2e_s", "dynamo_frontend_request_duration_seconds"),
), role="router")  # fmt: skip

VLLM_ROUTER = Engine("vllm-router", (
    _level("held", "vllm_router_running_requests"),
    _count("requests", "vllm_router_requests_total"),
    _count("retries", "vllm_router_retries_total"),
    _count("retries_exhausted", "vllm_router_retries_exhausted_total"),
    _by("errors", "error_type", "vllm_router_request_errors_total"),
    _times("e2e_s", "vllm_router_request_duration_seconds"),
), role="router")  # fmt: skip

SGLANG_ROUTER = Engine("sglang-router", (
    _level("held", "smg_worker_requests_active", "sgl_router_running_requests"),
    _count("requests", "smg_router_requests_total", "sgl_router_requests_total"),
    _count("retries", "smg_worker_retries_total", "sgl_router_retries_total"),
    _count("retries_exhausted", "smg_worker_retries_exhausted_total", "sgl_router_retries_exhausted_total"),
    _by("errors", "error_type", "smg_router_request_errors_total", "sgl_router_request_errors_total"),
    _times("ttft_s", "smg_router_ttft_seconds"),  # over gRPC only
    _times("tpot_s", "smg_router_tpot_seconds"),
    _times("e2e_s", "smg_router_request_duration_seconds", "sgl_router_request_duration_seconds"),
), role="router")  # fmt: skip

LITELLM = Engine("LiteLLM", (
    _level("held", "litellm_in_flight_requests"),
    _count("requests", "litellm_proxy_total_requests_metric_total"),
    _count("attempts", "litellm_deployment_total_requests_total"),
    _by("errors", "exception_status", "litellm_proxy_failed_requests_metric_total"),
    _by("attempts_failed", "exception_status", "litellm_deployment_failure_responses_total"),
    _count("prompt_tokens", "litellm_input_tokens_metric_total"),
    _count("generation_tokens", "litellm_output_tokens_metric_total"),
    _times("ttft_s", "litellm_llm_api_time_to_first_token_metric"),
    _times("e2e_s", "litellm_request_total_latency_metric"),
), role="router", at_the_end=True)  # fmt: skip

ENGINES: dict[str, Engine] = {
    "vllm": VLLM,
    "llamacpp": LLAMACPP,
    "sglang": SGLANG,
    "tensorrt_llm": TENSORRT_LLM,
    "lmdeploy": LMDEPLOY,
    "tgi": TGI,
    "dynamo": DYNAMO,
    "vllm_router": VLLM_ROUTER,
    "sglang_router": SGLANG_ROUTER,
    "litellm": LITELLM,
}
"""By the `kind` of a reading. The first whose names stand on a page is what the page is of: a Dynamo worker's page has
its engine's names, too."""


def is_router(kind: str) -> bool:
    """True for what passes requests on; an unknown kind is taken for an engine."""
    return kind in ENGINES and ENGINES[kind].role == "router"


def spellings(name: str) -> tuple[str, ...]:
    """The name as it may stand on a page."""
    return (name, name.replace(":", "_")) if ":" in name else (name,)


def parts(row: Row) -> list[str]:
    """Every sample name of the row."""
    suffixes = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
    return [one + suffix for name in row.names for one in spellings(name) for suffix in suffixes]


def shows(row: Row) -> list[str]:
    """The sample names of which one says that the page has the row."""
    suffix = "_bucket" if row.kind == "histogram" else ""
    return [one + suffix for name in row.names for one in spellings(name)]
