"""What the engine pretends to be: named presets, every value of which the command line can override.

A roofline preset holds achieved rates (about 0.8 of the data sheet's bandwidth, 0.6 of its FLOP/s), because those are
what a step time follows. Sources: model cards' config.json for the shapes, vendors' data sheets for the rates.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenswarm.errors import ConfigError
from tokenswarm.simulator.batching import NS_PER_S, BatchingEngine, Cold, Engine, Hardware, Limits, PacedEngine


@dataclass(frozen=True, slots=True)
class Preset:
    """One engine. Paced presets (`ttft_ms` is set) have no batch: only their context limit counts beside the pace."""

    about: str
    ttft_ms: float | None = None
    itl_ms: float | None = None
    params: float = 3.21e9
    bytes_per_param: float = 2.0
    layers: int = 28
    heads: int = 24
    kv_heads: int = 8
    head_dim: int = 128
    kv_dtype_bytes: float = 2.0
    bytes_per_s: float = 290e9
    flops_per_s: float = 30e12
    step_overhead_ms: float = 1.5
    kv_cache_bytes: float = 4e9
    block_size: int = 16
    max_num_seqs: int = 64
    max_batched_tokens: int = 2048
    max_model_len: int = 8192
    max_queued: int | None = None
    speed: float = 1.0


MEANS = {
    "ttft_ms": "TTFT, of `instant` and `paced`",
    "itl_ms": "time between two tokens, of these",
    "params": "parameters of the model; each step reads them once",
    "bytes_per_param": "bytes of a parameter",
    "layers": "layers of the model",
    "heads": "attention heads of a layer",
    "kv_heads": "of these, heads that have keys and values in the KV-cache",
    "head_dim": "dimension of a head",
    "kv_dtype_bytes": "bytes of a number in the KV-cache",
    "bytes_per_s": "memory bandwidth: a step takes max(bytes / bandwidth, FLOPs / peak) + overhead",
    "flops_per_s": "the peak of FLOPs a second",
    "step_overhead_ms": "the overhead of a step",
    "kv_cache_bytes": "size of the KV-cache; when it is full, the newest request is preempted and computed again",
    "block_size": "tokens in a block of the KV-cache",
    "max_num_seqs": "requests in a batch",
    "max_batched_tokens": "tokens in a step",
    "max_model_len": "the context; longer prompts get a 400",
    "max_queued": "requests that may wait; one more gets a 503; without it there is no bound",
    "speed": "divides every duration: 10 is ten times as fast",
}
"""What each value of a preset is, for --help."""

PRESETS = {
    "laptop": Preset(
        "a 1 B model in 4 bits on a laptop's CPU: 60 tokens/s alone, 4 at a time",
        params=1.24e9,
        bytes_per_param=0.56,
        layers=16,
        heads=32,
        head_dim=64,
        bytes_per_s=50e9,
        flops_per_s=0.5e12,
        step_overhead_ms=2.0,
        kv_cache_bytes=1e9,
        max_num_seqs=4,
        max_batched_tokens=512,
    ),
    "small-gpu": Preset("a 3 B model on a 12 GB card (360 GB/s): 42 tokens/s alone, 64 at a time, preempts early"),
    "h200-8b": Preset(
        "an 8 B model on an H200 (4.8 TB/s): 190 tokens/s alone, 256 at a time",
        params=8.03e9,
        layers=32,
        heads=32,
        bytes_per_s=3.9e12,
        flops_per_s=590e12,
        step_overhead_ms=1.0,
        kv_cache_bytes=105e9,
        max_num_seqs=256,
        max_batched_tokens=8192,
        max_model_len=32768,
    ),
    "instant": Preset(
        "no latency at all: as fast as this machine writes", ttft_ms=0.0, itl_ms=0.0, max_model_len=131072
    ),
    # 100 and 20 ms: a first token and 50 tokens/s that a reader would call fluent, and easy to recognise in a plot.
    "paced": Preset(
        "TTFT 100 ms and a token every 20 ms, whatever the load", ttft_ms=100.0, itl_ms=20.0, max_model_len=131072
    ),
}


def hardware(preset: Preset) -> Hardware:
    """The roofline of a preset."""
    return Hardware(
        bytes_per_s=preset.bytes_per_s,
        flops_per_s=preset.flops_per_s,
        step_overhead_ns=int(preset.step_overhead_ms * 1e6),
        params=preset.params,
        bytes_per_param=preset.bytes_per_param,
        layers=preset.layers,
        heads=preset.heads,
        kv_heads=preset.kv_heads,
        head_dim=preset.head_dim,
        kv_dtype_bytes=preset.kv_dtype_bytes,
    )


def limits(preset: Preset) -> Limits:
    """The scheduler's bounds of a preset. ConfigError if one request of the full context would not fit the cache."""
    num_blocks = int(preset.kv_cache_bytes // (hardware(preset).kv_bytes_per_token * preset.block_size))
    if num_blocks * preset.block_size < preset.max_model_len:
        raise ConfigError(
            f"the KV-cache holds {num_blocks * preset.block_size} tokens, fewer than --max-model-len "
            f"{preset.max_model_len}: lower that or raise --kv-cache-bytes"
        )
    return Limits(
        num_blocks=num_blocks,
        block_size=preset.block_size,
        max_num_seqs=preset.max_num_seqs,
        max_batched_tokens=preset.max_batched_tokens,
        max_queued=preset.max_queued,
    )


def build(preset: Preset, cold_s: float = 0.0) -> Engine:
    """The model that a preset describes; `cold_s`: what the first batch of each size takes longer."""
    cold = Cold(int(cold_s * NS_PER_S))
    if preset.ttft_ms is None or preset.itl_ms is None:
        return BatchingEngine(hardware(preset), limits(preset), preset.speed, cold)
    ns_per_ms = NS_PER_S / 1000 / preset.speed
    return PacedEngine(int(preset.ttft_ms * ns_per_ms), int(preset.itl_ms * ns_per_ms), cold)
