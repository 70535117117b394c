"""Rows of panels about the engine: what vLLM's /metrics (or the simulator's) and Ollama say of themselves.

vLLM's names as of 0.33; where a name has changed the old one stands after `or`, so that older servers fill the panel.
"""

from __future__ import annotations

from grafana.panels import RED, About, Builder, lines, timeseries
from grafana.queries import ENGINE, RATE, RUN, TTFT, mean, rate, server

NO_CONFIG = "no run is chosen, or it has neither telemetry.model_config nor an engine that tells its cache in bytes"

NO_VLLM = "no vLLM server is scraped (job vllm), or by another name than the run's (telemetry.engine_instances)"
NO_ENGINE = (
    "no engine with /metrics is scraped (jobs vllm, llama-cpp), or by another name than the run's "
    "(telemetry.engine_instances)"
)
OLLAMA = ' and on (instance) tokenswarm_ollama_target_info{target=~"$engine"}'
"""Of the exporter that polls an engine of the run."""

NO_OLLAMA = "the run is not against Ollama, or its exporter is not scraped"

CACHED = f"{rate('vllm:prompt_tokens_cached_total', ENGINE)} / ({rate('vllm:prompt_tokens_total', ENGINE)} > 0)"
PREFIX_HITS = (
    f"{rate('vllm:prefix_cache_hits_total', ENGINE)} / ({rate('vllm:prefix_cache_queries_total', ENGINE)} > 0)"
)
OLD_PREFIX_HITS = (
    f"{rate('vllm:gpu_prefix_cache_hits_total', ENGINE)} / ({rate('vllm:gpu_prefix_cache_queries_total', ENGINE)} > 0)"
)


def _batch() -> list[Builder]:
    """What is in the batch."""
    return [
        timeseries(
            "Running and waiting",
            "short",
            About(
                "Requests in the engine's batch, and those it has queued.",
                "tokenswarm:server_requests_running:sum, …_waiting:sum (vLLM and llama.cpp by one name)",
                "waiting grows: the offered load is above capacity.",
                NO_ENGINE,
            ),
            lines(
                (server("running"), "running"),
                (server("waiting"), "waiting"),
                (
                    f"sum by (reason) (max without (job) (vllm:num_requests_waiting_by_reason{{{ENGINE}}})) > 0",
                    "waiting: {{reason}}",
                ),
            ),
            width=6,
        ),
    ]


def _cache() -> list[Builder]:
    """How full the cache is, and what comes of a full one."""
    return [
        timeseries(
            "KV cache in use",
            "percentunit",
            About(
                "Share of the KV-cache blocks in use, the fullest engine.",
                "tokenswarm:server_kv_cache:ratio",
                "at 100 %: preemptions follow, and their tokens are computed twice.",
                NO_ENGINE,
            ),
            lines((f"max(tokenswarm:server_kv_cache:ratio{{{ENGINE}}})", "KV cache")),
            thresholds=((0.95, RED),),
            high=1,
            width=6,
        ),
        timeseries(
            "KV cache: predicted and in use",
            "bytes",
            About(
                "What the batch should hold by the model's config.json, what the engine has in use, and in all.",
                "2 · layers · batch · kv_heads · mean context · head_dim · bytes; use · capacity",
                "in use far above predicted: another's requests, or half-empty blocks. Far below: prefix caching.",
                NO_CONFIG,
            ),
            lines(
                (f"max(tokenswarm_kv_cache_predicted_bytes{{{RUN}}})", "predicted"),
                (f"max(tokenswarm_kv_cache_used_bytes{{{RUN}}})", "in use"),
                (f"max(tokenswarm_kv_cache_capacity_bytes{{{RUN}}})", "capacity"),
            ),
            width=6,
        ),
        timeseries(
            "Preemptions and refusals",
            "ops",
            About(
                "Requests thrown out of the batch for want of cache, and requests refused (HTTP 503).",
                "rate of vllm:num_preemptions_total and vllm:admission_rejections_total",
                "anything above 0 for long.",
                NO_VLLM,
            ),
            lines(
                (rate("vllm:num_preemptions_total", ENGINE), "preemptions"),
                (rate("vllm:admission_rejections_total", ENGINE), "refused"),
            ),
            width=6,
        ),
    ]


def _work() -> list[Builder]:
    """What a step and a request are made of."""
    return [
        timeseries(
            "Prompt tokens from the prefix cache",
            "percentunit",
            About(
                "Share of the prompt tokens that needed no prefill.",
                "prompt_tokens_cached / prompt_tokens; else prefix_cache_hits / prefix_cache_queries, "
                "which counts a waiting request at each look",
                "differs between two runs: they can't be compared.",
                NO_VLLM + ", or no prompt was read",
            ),
            lines((f"({CACHED}) or ({PREFIX_HITS}) or ({OLD_PREFIX_HITS})", "cached")),
            high=1,
        ),
        timeseries(
            "Tokens per engine step",
            "short",
            About(
                "Mean number of tokens (prefill and decode) in one step: the batch that the GPU sees.",
                "rate(vllm:iteration_tokens_total_sum) / rate(…_count)",
                "stays low while requests wait: max_num_batched_tokens or max_num_seqs limits the batch.",
                NO_VLLM,
            ),
            lines((mean("vllm:iteration_tokens_total", ENGINE), "tokens per step")),
        ),
        timeseries(
            "Where a request's time goes",
            "s",
            About(
                "Mean time in the queue, in prefill and in decode of requests that ended.",
                "rate(sum) / rate(count) of vllm:request_queue/prefill/decode_time_seconds: means, so they add up",
                "queue is the largest part: overload.",
                NO_VLLM + ", or no request ended in the window",
            ),
            lines(
                *((mean(f"vllm:request_{part}_time_seconds", ENGINE), part) for part in ("queue", "prefill", "decode"))
            ),
            stacked=True,
        ),
    ]


def vllm() -> list[Builder]:
    """Batch and queue, cache, preemptions, tokens a step, where the time goes."""
    return [*_batch(), *_cache(), *_work()]


NOT_TOLD = "the engine tells no durations with its answers (vLLM: --enable-per-request-metrics), or no request ended"
NO_DRAFTS = "the engine drafts no tokens, or does not say so"


def with_answers() -> list[Builder]:
    """What came with each answer: where its time went, and how many drafted tokens were taken."""
    return [
        timeseries(
            "Where a request's time goes, told with each answer",
            "s",
            About(
                "Means of what the engine said with its answers, of the requests of the steady windows.",
                "rate(sum) / rate(count) of tokenswarm_server_*_seconds; first token: from the end of vLLM's queue",
                "queue is the largest part: overload, or more users than slots (Ollama). Load: no model in memory.",
                NOT_TOLD,
            ),
            lines(
                *(
                    (
                        mean(f"tokenswarm_server_{part}_seconds", RUN, RATE),
                        part.replace("_", " "),
                    )
                    for part in ("load", "queue", "prefill", "first_token", "decode")
                )
            ),
            stacked=True,
            width=12,
        ),
        timeseries(
            "Drafted tokens that were taken",
            "percentunit",
            About(
                "Speculative decoding: the share of the drafted tokens that the model took.",
                "accepted / drafted of tokenswarm_…draft_tokens_total and of vllm:spec_decode_num_…_tokens_total",
                "few are taken: drafting costs more than it saves. It falls when the prompts change.",
                NO_DRAFTS,
            ),
            lines(
                (
                    f"{rate('tokenswarm_accepted_draft_tokens_total')} / ({rate('tokenswarm_draft_tokens_total')} > 0)",
                    "told with the answers",
                ),
                (
                    f"{rate('vllm:spec_decode_num_accepted_tokens_total', ENGINE)} / "
                    f"({rate('vllm:spec_decode_num_draft_tokens_total', ENGINE)} > 0)",
                    "all of the engine's",
                ),
            ),
            high=1,
            width=12,
        ),
    ]


def ollama() -> list[Builder]:
    """What is loaded, how much of it on the GPU, and the durations that come with each answer."""
    return [
        timeseries(
            "Models in memory",
            "short",
            About(
                "Models that Ollama has loaded, and whether it answers.",
                "tokenswarm_ollama_models_loaded, tokenswarm_ollama_up",
                "falls to 0 in a run: it was unloaded, and the next request waits for the load.",
                NO_OLLAMA,
            ),
            lines(
                (f"max(tokenswarm_ollama_models_loaded{OLLAMA})", "models loaded"),
                (f"max(tokenswarm_ollama_up{OLLAMA})", "up"),
            ),
        ),
        timeseries(
            "Model on the GPU",
            "percentunit",
            About(
                "Share of the loaded model that is in GPU memory.",
                "tokenswarm_ollama_model_vram_ratio (size_vram / size of /api/ps)",
                "below 100 %: the CPU computes the rest, many times slower.",
                "no model is loaded, or the Ollama exporter is not scraped",
            ),
            lines((f"max by (model) (tokenswarm_ollama_model_vram_ratio{OLLAMA})", "{{model}}")),
            high=1,
        ),
        *_ollama_times(),
    ]


def _ollama_times() -> list[Builder]:
    """The durations that come with each answer, beside the client's TTFT."""
    return [
        timeseries(
            "TTFT, and Ollama's own account of it",
            "s",
            About(
                "The client's mean TTFT beside the mean queue for a slot, and beside all that Ollama says of it.",
                "rate(sum) / rate(count) of tokenswarm_time_to_first_token_seconds and tokenswarm_server_*_seconds",
                "the queue is most of the TTFT: it measures the slots. Client far above the sum: a proxy, the network.",
                NO_OLLAMA,
            ),
            lines(
                (mean(TTFT, RUN, RATE), "TTFT of the client"),
                (mean("tokenswarm_server_queue_seconds", RUN, RATE), "queue for a slot"),
                (
                    " + ".join(
                        f"({mean(f'tokenswarm_server_{part}_seconds', RUN, RATE)})"
                        for part in ("load", "queue", "prefill")
                    ),
                    "load + queue + prefill",
                ),
            ),
        ),
    ]
