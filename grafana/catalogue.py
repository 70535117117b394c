"""Every metric name that dashboards may ask for: ours from the exporters' tables, rules from their files, and others'.

Names of engines and of other GPU exporters are kept here with the versions they were read in, since no import has them.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from exporters import ollama, serving
from exporters.gpu import command as gpu
from exporters.load import table

RULES = Path(__file__).resolve().parent.parent / "configs" / "prometheus" / "rules"

VLLM_COUNTERS = {
    "num_preemptions_total": "0.6-0.33",
    "prompt_tokens_total": "0.6-0.33",
    "prompt_tokens_cached_total": "0.16-0.33",
    "generation_tokens_total": "0.6-0.33",
    "spec_decode_num_draft_tokens_total": "0.6-0.33",
    "spec_decode_num_accepted_tokens_total": "0.6-0.33",
    "request_success_total": "0.6-0.33",
    "admission_rejections_total": "0.33",
    "prefix_cache_queries_total": "0.9-0.33",
    "prefix_cache_hits_total": "0.9-0.33",
    "gpu_prefix_cache_queries_total": "0.8-0.9, then renamed prefix_cache_queries_total",
    "gpu_prefix_cache_hits_total": "0.8-0.9, then renamed prefix_cache_hits_total",
}
VLLM_GAUGES = {
    "num_requests_running": "0.6-0.33",
    "num_requests_waiting": "0.6-0.33",
    "num_requests_waiting_by_reason": "0.33",
    "kv_cache_usage_perc": "0.9-0.33",
    "gpu_cache_usage_perc": "0.6-0.9, then renamed kv_cache_usage_perc",
}
VLLM_HISTOGRAMS = {
    "time_to_first_token_seconds": "0.6-0.33",
    "inter_token_latency_seconds": "0.11-0.33; before: time_per_output_token_seconds",
    "e2e_request_latency_seconds": "0.6-0.33",
    "request_queue_time_seconds": "0.7-0.33",
    "request_prefill_time_seconds": "0.7-0.33",
    "request_decode_time_seconds": "0.7-0.33",
    "iteration_tokens_total": "0.6-0.33",
}
"""Name after `vllm:` → versions that have it (0.33 is the newest read, 0.26 the one in docker-compose.yml)."""

PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes"}
"""What prometheus_client tells of the process that serves a page: vLLM's, and the simulator's."""

PROMETHEUS = {"up", "ALERTS"}
"""What Prometheus makes itself."""


def _parts(histogram: str) -> set[str]:
    """Its series: classic ones, and under its own name the native one."""
    return {histogram, *(f"{histogram}_{part}" for part in ("bucket", "sum", "count"))}


def ours() -> set[str]:
    """Every series name of our exporters."""
    names = {*table.FAMILIES, *table.OWN_FAMILIES, *gpu.FAMILIES, *ollama.FAMILIES, *serving.FAMILIES}
    for histogram in table.HISTOGRAM_HELP:
        names |= _parts(histogram)
    for summary in table.SUMMARIES:
        names |= {summary, f"{summary}_sum", f"{summary}_count"}
    return names


def recorded() -> set[str]:
    """The names of the recording rules."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))]
    return {rule["record"] for file in files for group in file["groups"] for rule in group["rules"] if "record" in rule}


def engines() -> set[str]:
    """vLLM's names."""
    names = {f"vllm:{name}" for name in (*VLLM_COUNTERS, *VLLM_GAUGES)}
    return names.union(*(_parts(f"vllm:{name}") for name in VLLM_HISTOGRAMS))


def names() -> set[str]:
    """All of them."""
    return ours() | recorded() | engines() | PROCESS | PROMETHEUS


_WORDS = frozenset(
    re.split(
        r"\s+",
        "and or unless by on ignoring without group_left group_right bool offset sum max min count avg vector scalar "
        "rate increase deriv delta changes absent time timestamp bottomk topk count_values histogram_quantile "
        "label_replace "
        "histogram_sum histogram_count histogram_fraction "
        "clamp_min avg_over_time max_over_time min_over_time last_over_time count_over_time predict_linear start end",
    )
)
"""PromQL's own words, as far as they are used here."""


def used(expr: str) -> set[str]:
    """The metric names in a PromQL expression."""
    named = set(re.findall(r'__name__=~"([^"]*)"', expr))
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\[[^\]]*\]|\$\w+", "", bare)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = set(re.findall(r"(?<![\w:])[a-zA-Z_][\w:]*", bare)) - _WORDS
    return words.union(*(set(one.split("|")) for one in named))
