"""The KV-cache: what the engine says of it, beside what the model's config.json predicts. Over a window, or now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenswarm import kv_cache
from tokenswarm.kv_cache import KvShape
from tokenswarm.profile import profile as profiles
from tokenswarm.telemetry.server import LevelBlock
from tokenswarm.telemetry.watch import EngineWatch

CLIENTS_BATCH = "the engine does not tell its batch: the client's streams are taken for it"


class KvBlock(msgspec.Struct, kw_only=True):
    """Bytes are of all replicas. A number that nobody tells is null."""

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


class Seen(msgspec.Struct, kw_only=True):
    """What was measured, over a window or at a moment. Lengths are means of requests, in tokens."""

    use: LevelBlock  # share of the cache, mean over the replicas
    running: float | None  # the engine's batch, of all replicas
    decoding: float | None  # the client's view of it
    prompt: float | None
    answer: float | None


def block(engines: Sequence[EngineWatch], seen: Seen, shape: KvShape | None) -> KvBlock:
    """The two sides. Without a shape nothing is predicted, without an engine's word nothing is reported."""
    found = KvBlock(notes=list(shape.notes) if shape is not None else [])
    _reported(found, engines)
    if found.capacity_tokens and seen.use.mean is not None and seen.use.max is not None:
        found.used_tokens_mean = seen.use.mean * found.capacity_tokens
        found.used_tokens_max = seen.use.max * found.capacity_tokens
    if seen.prompt is not None and seen.answer is not None:
        found.context_tokens_mean = kv_cache.mean_context(seen.prompt, seen.answer)
        found.context_tokens_end = seen.prompt + seen.answer
    if shape is not None:
        _predict(found, seen, shape)
    size = found.bytes_per_token or found.predicted_bytes_per_token
    if size is not None and found.used_tokens_mean is not None:
        found.used_bytes_mean = found.used_tokens_mean * size
    return found


def now(
    engines: Sequence[EngineWatch],
    shape: KvShape | None,
    *,
    decoding: float,
    prompt: float | None,
    answer: float | None,
) -> KvBlock:
    """By the newest reading of each engine; `decoding`: the client's streams past their first token."""
    newest = [watch.newest.levels for watch in engines if watch.newest is not None]
    whole = len(newest) == len(engines) > 0
    uses = [levels["kv_cache_usage"] for levels in newest if "kv_cache_usage" in levels]
    use = sum(uses) / len(uses) if whole and len(uses) == len(engines) else None
    running = [levels["running"] for levels in newest if "running" in levels]
    seen = Seen(
        use=LevelBlock(mean=use, max=use),
        running=sum(running) if whole and len(running) == len(engines) else None,
        decoding=decoding,
        prompt=prompt,
        answer=answer,
    )
    return block(engines, seen, shape)


def _reported(found: KvBlock, engines: Sequence[EngineWatch]) -> None:
    """Capacity from vLLM's cache_config_info: tokens where it says them, else blocks · block size."""
    tokens, size = 0, 0.0
    for watch in engines:
        facts = {} if watch.newest is None else watch.newest.facts
        caches = _number(facts, "engines") or 1
        blocks, block_size = _number(facts, "num_gpu_blocks"), _number(facts, "block_size")
        one = _number(facts, "kv_cache_size_tokens") or (blocks * block_size if blocks and block_size else None)
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


def _predict(found: KvBlock, seen: Seen, shape: KvShape) -> None:
    found.predicted_bytes_per_token = shape.bytes_per_token
    if found.capacity_bytes is None and found.capacity_tokens is not None:
        found.capacity_bytes = found.capacity_tokens * shape.bytes_per_token
    mean, end = found.context_tokens_mean, found.context_tokens_end
    batch = seen.running
    if batch is None and seen.decoding is not None:
        batch = seen.decoding
        found.notes.append(CLIENTS_BATCH)
    if mean and batch is not None:
        found.predicted_bytes_mean = kv_cache.batch_bytes(shape, batch, mean)
    if mean and end and found.capacity_bytes:
        found.batch_at_full = kv_cache.capacity(shape, found.capacity_bytes, mean).batch
        found.batch_at_full_end = kv_cache.capacity(shape, found.capacity_bytes, end).batch


def read_shape(path: str | None, kv_dtype: str | None, option: str = "--dtype") -> KvShape | None:
    """The KV shape of a config.json, or of the folder that has one; None without a path. Raises ConfigError."""
    if path is None:
        return None
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    return kv_cache.read_config(profiles.read_text(file), str(file), kv_dtype, option)
