"""What was watched -> `server.metrics` and `gpu` of the summary and of each of its stages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenswarm import kv_cache
from tokenswarm.kv_cache import KvShape
from tokenswarm.summary import Part, Summary
from tokenswarm.telemetry import gpu, server
from tokenswarm.telemetry.gpu import Price
from tokenswarm.telemetry.reading import Reading
from tokenswarm.telemetry.watch import EngineWatch, GpuWatch, Watch
from tokenswarm.telemetry.window import Totals, one_after_another, side_by_side


class Source(msgspec.Struct, kw_only=True):
    """One page that was asked for, over the whole run."""

    url: str
    kind: str | None = None  # vllm, llamacpp, ollama, gpu; null: it never answered with metrics
    version: str = ""
    looks: int
    good: int
    gaps: dict[str, int]
    problem: str  # the newest, in a sentence
    facts: dict[str, str] = {}


class KvBlock(msgspec.Struct, kw_only=True):
    """The KV-cache: what the engine says, and what the model's config.json predicts. Bytes are of all replicas."""

    capacity_tokens: int | None = None  # said by the engine
    capacity_bytes: float | None = None  # said by the engine; where it does not, tokens · predicted bytes
    bytes_per_token: float | None = None  # said by the engine
    used_tokens_mean: float | None = None  # use · capacity
    used_tokens_max: float | None = None
    used_bytes_mean: float | None = None
    predicted_bytes_per_token: float | None = None
    predicted_bytes_mean: float | None = None  # the measured batch at its mean context
    context_tokens_mean: float | None = None  # prompt + half of the answer, as the client counted
    context_tokens_end: float | None = None  # prompt + answer
    batch_at_full: float | None = None  # requests of the mean context that fill the cache
    batch_at_full_end: float | None = None  # the same if all are about to end at once
    notes: list[str] = []


def fill(
    summary: Summary,
    engines: Sequence[EngineWatch],
    gpus: Sequence[GpuWatch],
    *,
    now_ns: int,
    price: Price | None = None,
    shape: KvShape | None = None,
) -> None:
    """Put the blocks where summary.json has them. Without a source there is none."""
    numbers = [stage.stage for stage in summary.stages]
    if engines:
        sources = server.to_dict([_source(watch, watch.newest) for watch in engines])
        summary.server["metrics"] = {"sources": sources, **_server(engines, numbers, now_ns, summary, shape)}
        for stage in summary.stages:
            stage.server["metrics"] = _server(engines, [stage.stage], now_ns, stage, shape)
    if gpus or price is not None:
        whole = gpu.block(gpus, numbers, now_ns, summary.throughput.output_tokens_per_s, price)
        summary.gpu.update({"sources": server.to_dict([_source(watch, None) for watch in gpus])})
        summary.gpu.update(server.to_dict(whole))
        for stage in summary.stages:
            one = gpu.block(gpus, [stage.stage], now_ns, stage.throughput.output_tokens_per_s, price)
            stage.gpu.update(server.to_dict(one))


def _source(watch: Watch, reading: Reading | None) -> Source:
    found = Source(
        url=watch.url, looks=watch.looks, good=watch.good, gaps=dict(sorted(watch.gaps.items())), problem=watch.problem
    )
    if isinstance(watch, EngineWatch):
        found.version = watch.version
        if reading is not None:
            found.kind, found.facts = reading.kind, reading.facts
    elif watch.good:
        found.kind = "gpu"
    return found


def _server(
    engines: Sequence[EngineWatch], stages: Sequence[int], now_ns: int, client: Part, shape: KvShape | None
) -> dict[str, object]:
    by_stage = []
    for stage in stages:
        parts = [watch.by_stage[stage].totals(now_ns) for watch in engines if stage in watch.by_stage]
        if parts:
            by_stage.append(parts[0] if len(parts) == len(engines) == 1 else side_by_side(_all(parts, len(engines))))
    total = one_after_another(by_stage)
    kinds = {watch.newest.kind for watch in engines if watch.newest is not None}
    kind = kinds.pop() if len(kinds) == 1 else ""
    found = server.to_dict(server.block(total, kind, len(engines), client))
    found["kv_cache"] = server.to_dict(_kv(engines, total, client, shape))
    return found


def _all(parts: list[Totals], n: int) -> list[Totals]:
    """A replica that has no window of this stage is an empty one."""
    return parts + [Totals(empty=1)] * (n - len(parts))


def _kv(engines: Sequence[EngineWatch], total: Totals, client: Part, shape: KvShape | None) -> KvBlock:
    found = KvBlock(notes=list(shape.notes) if shape is not None else [])
    _reported(found, engines)
    use = server.level(total, "kv_cache_usage", len(engines))
    if found.capacity_tokens and use.mean is not None and use.max is not None:
        found.used_tokens_mean = use.mean * found.capacity_tokens
        found.used_tokens_max = use.max * found.capacity_tokens
    prompt, answer = client.tokens.input_length.mean, client.tokens.output_length.mean
    if prompt is not None and answer is not None:
        found.context_tokens_mean = kv_cache.mean_context(prompt, answer)
        found.context_tokens_end = prompt + answer
    if shape is not None:
        _predict(found, total, shape)
    size = found.bytes_per_token or found.predicted_bytes_per_token
    if size is not None and found.used_tokens_mean is not None:
        found.used_bytes_mean = found.used_tokens_mean * size
    return found


def _reported(found: KvBlock, engines: Sequence[EngineWatch]) -> None:
    """Capacity from vLLM's cache_config_info: tokens where it says them, else blocks · block size."""
    tokens, size = 0, 0.0
    for watch in engines:
        facts = {} if watch.newest is None else watch.newest.facts
        caches = _number(facts, "engines") or 1
        blocks, block = _number(facts, "num_gpu_blocks"), _number(facts, "block_size")
        one = _number(facts, "kv_cache_size_tokens") or (blocks * block if blocks and block else None)
        if not one:
            return
        tokens += int(one * caches)
        size += (_number(facts, "kv_cache_memory_bytes") or 0.0) * caches
    found.capacity_tokens = tokens or None
    if tokens and size:
        found.capacity_bytes, found.bytes_per_token = size, size / tokens


def _number(facts: dict[str, str], name: str) -> float | None:
    text = facts.get(name, "")
    return float(text) if text.isdecimal() else None


def _predict(found: KvBlock, total: Totals, shape: KvShape) -> None:
    found.predicted_bytes_per_token = shape.bytes_per_token
    if found.capacity_bytes is None and found.capacity_tokens is not None:
        found.capacity_bytes = found.capacity_tokens * shape.bytes_per_token
    mean, end = found.context_tokens_mean, found.context_tokens_end
    running = server.level(total, "running").mean
    if mean and running is not None:
        found.predicted_bytes_mean = kv_cache.batch_bytes(shape, running, mean)
    if mean and end and found.capacity_bytes:
        found.batch_at_full = kv_cache.capacity(shape, found.capacity_bytes, mean).batch
        found.batch_at_full_end = kv_cache.capacity(shape, found.capacity_bytes, end).batch
