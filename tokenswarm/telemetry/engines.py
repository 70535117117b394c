"""Engines' metric names -> ours, a table an engine, newest name first: vLLM renames metrics about twice a year.

vLLM's policy: deprecated in X.Y, hidden in X.Y+1, gone in X.Y+2. Names that a page lacks are absent from the reading;
old names that were used are told in `facts["old_names"]`. The embedded engine speaks vLLM's names.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from tokenswarm.telemetry import exposition, histogram
from tokenswarm.telemetry.exposition import Labels, PageError, Samples, label
from tokenswarm.telemetry.histogram import Histogram
from tokenswarm.telemetry.reading import Reading


class Row(NamedTuple):
    """One quantity: our name, how values of several label sets (engines, models) combine, the page's names."""

    ours: str
    kind: Literal["level", "mean_level", "counter", "counter_by_label", "histogram"]
    names: tuple[str, ...]
    by: str = ""  # for counter_by_label
    needed: bool = False  # a page without it is not whole; a counter may be missing where `# EOF` proves that it is


VLLM = (
    Row("running", "level", ("vllm:num_requests_running",), needed=True),
    Row("waiting", "level", ("vllm:num_requests_waiting",), needed=True),
    Row("kv_cache_usage", "mean_level", ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")),  # 0.10
    Row("preemptions", "counter", ("vllm:num_preemptions_total",)),
    Row("prompt_tokens", "counter", ("vllm:prompt_tokens_total",), needed=True),
    Row("prompt_tokens_cached", "counter", ("vllm:prompt_tokens_cached_total",)),
    Row("generation_tokens", "counter", ("vllm:generation_tokens_total",), needed=True),
    Row("cache_queries", "counter", ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")),  # 0.10
    Row("cache_hits", "counter", ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")),
    Row("finished", "counter_by_label", ("vllm:request_success_total",), by="finished_reason"),
    Row("rejected", "counter_by_label", ("vllm:admission_rejections_total",), by="reason"),
    Row("ttft_s", "histogram", ("vllm:time_to_first_token_seconds",)),
    Row("itl_s", "histogram", ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")),  # 0.11
    Row("tpot_s", "histogram", ("vllm:request_time_per_output_token_seconds",)),
    Row("e2e_s", "histogram", ("vllm:e2e_request_latency_seconds",)),
    Row("queue_s", "histogram", ("vllm:request_queue_time_seconds",)),
    Row("prefill_s", "histogram", ("vllm:request_prefill_time_seconds",)),
    Row("decode_s", "histogram", ("vllm:request_decode_time_seconds",)),
    Row("step_tokens", "histogram", ("vllm:iteration_tokens_total",)),
)

LLAMACPP = (
    Row("running", "level", ("llamacpp:requests_processing",), needed=True),
    Row("waiting", "level", ("llamacpp:requests_deferred",), needed=True),
    Row("kv_cache_usage", "mean_level", ("llamacpp:kv_cache_usage_ratio",)),  # gone since mid-2025
    Row("prompt_tokens_computed", "counter", ("llamacpp:prompt_tokens_total",), needed=True),  # without cached ones
    Row("prompt_tokens_cached", "counter", ("llamacpp:prompt_tokens_cached_total",)),
    Row("prompt_seconds", "counter", ("llamacpp:prompt_seconds_total",)),
    Row("generation_tokens", "counter", ("llamacpp:tokens_predicted_total",), needed=True),
    Row("generation_seconds", "counter", ("llamacpp:tokens_predicted_seconds_total",)),
    Row("decode_steps", "counter", ("llamacpp:n_decode_total",)),
)

ENGINES = {"vllm": VLLM, "llamacpp": LLAMACPP}

COUNTED_AT_THE_END = frozenset({"llamacpp"})
"""Engines that add a request's tokens to their counters when it ends, not while it streams."""

CACHE_INFO = "vllm:cache_config_info"
CACHE_FACTS = ("num_gpu_blocks", "block_size", "cache_dtype", "kv_cache_size_tokens", "kv_cache_memory_bytes")
STARTED = "process_start_time_seconds"


def _parts(row: Row) -> list[str]:
    suffixes = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
    return [name + suffix for name in row.names for suffix in suffixes]


WANTED = frozenset(part for rows in ENGINES.values() for row in rows for part in _parts(row)) | {CACHE_INFO, STARTED}


def read(page: bytes) -> Reading:
    """The reading of an engine's /metrics. Raises PageError where it is none, or not whole."""
    samples = exposition.read(page, WANTED)
    for kind, rows in ENGINES.items():
        present = {row.ours for row in rows if _name(row, samples)}
        if present:
            whole = page.rstrip().endswith(exposition.END)
            # vLLM's Rust front end tells some counters with the first request only.
            required = [row for row in rows if row.needed and not (whole and row.kind == "counter")]
            missing = sorted(row.names[0] for row in required if row.ours not in present)
            if missing:
                raise PageError("incomplete", f"the page lacks {missing[0]}")
            return _reading(kind, rows, samples)
    raise PageError("not_metrics", "the page has no metrics of an engine that is known here (vLLM, llama.cpp)")


def _name(row: Row, samples: Samples) -> str:
    """The newest of the row's names that the page has; "" where it has none."""
    suffix = "_bucket" if row.kind == "histogram" else ""
    return next((name for name in row.names if name + suffix in samples), "")


def _reading(kind: str, rows: tuple[Row, ...], samples: Samples) -> Reading:
    levels: dict[str, float] = {}
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    unknown, old = set(), []
    for row in rows:
        name = _name(row, samples)
        if not name:
            if row.needed and row.kind == "counter":
                counters[row.ours] = 0.0
            continue
        if name != row.names[0]:
            old.append(name)
        if _has_no_value(row, name, samples):  # a sum over the others would look like all
            unknown.add(row.ours)
            continue
        if row.kind == "histogram":
            found = histogram.read(samples, name)
            if found is not None:
                histograms[row.ours] = found
            continue
        values = samples[name]
        if min(values.values()) < 0:
            raise PageError("malformed", f"{name} is below 0")
        if row.kind == "counter_by_label":
            for labels, value in values.items():
                key = f"{row.ours}.{label(labels, row.by)}"
                counters[key] = counters.get(key, 0.0) + value
        elif row.kind == "counter":
            counters[row.ours] = sum(values.values())
        else:
            levels[row.ours] = sum(values.values()) / (len(values) if row.kind == "mean_level" else 1)
    facts = {"old_names": ", ".join(old)} if old else {}
    return Reading(
        kind=kind,
        levels=levels,
        counters=counters,
        histograms=histograms,
        started_s=max((at for at in samples.get(STARTED, {}).values() if not math.isnan(at)), default=None),
        facts=facts | _cache_facts(samples),
        shape=frozenset((name, labels) for name, family in samples.items() if name != CACHE_INFO for labels in family),
        unknown=frozenset(unknown),
        counts=_counts(rows, samples),
        born_at_0=True,
    )


def _has_no_value(row: Row, name: str, samples: Samples) -> bool:
    suffixes = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
    return any(math.isnan(value) for suffix in suffixes for value in samples.get(name + suffix, {}).values())


def _counts(rows: tuple[Row, ...], samples: Samples) -> dict[tuple[str, Labels], float]:
    """Every series that can't fall while its process lives."""
    found = {}
    for row in rows:
        if row.kind in ("level", "mean_level"):
            continue
        for name in row.names:
            series = name + "_bucket" if row.kind == "histogram" else name
            for labels, value in samples.get(series, {}).items():
                if not math.isnan(value):
                    found[series, labels] = value
    return found


def _cache_facts(samples: Samples) -> dict[str, str]:
    """What the engine says about its KV-cache; `engines`: how many caches of this size there are (data parallel)."""
    series = samples.get(CACHE_INFO, {})
    facts: dict[str, str] = {}
    for labels in series:
        for name in CACHE_FACTS:
            value = label(labels, name)
            if value not in ("", "None"):
                facts.setdefault(name, value[:40])
    return facts | ({"engines": str(len(series))} if series else {})
