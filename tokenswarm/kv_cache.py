"""How many bytes a token holds in the KV-cache, from a Hugging Face config.json, and when a cache of a size is full.

Grouped-query: 2 · layers · kv_heads · head_dim · bytes (keys and values). Multi-head latent attention (DeepSeek):
layers · (kv_lora_rank + qk_rope_head_dim) · bytes, one latent vector for both. A layer with a sliding window holds no
more than it; linear-attention and state-space layers hold no token at all. Engines round up: vLLM to a block of 16
tokens or more a request.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tokenswarm.errors import MALFORMED, ConfigError

DTYPE_BYTES = {
    "float32": 4.0, "fp32": 4.0, "f32": 4.0,
    "bfloat16": 2.0, "bf16": 2.0, "float16": 2.0, "fp16": 2.0, "f16": 2.0, "half": 2.0,
    "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "float8_e4m3fn": 1.0, "int8": 1.0,
    "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
}  # fmt: skip
"""Bytes an element. The q* are llama.cpp's `--cache-type-k/v`: blocks of 32 elements with their scales."""

DEFAULT_DTYPE = "bfloat16"  # of a config.json that names none; what vLLM then serves in

_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
}
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_HOLDS = {
    "full_attention": "full", "attention": "full", "hybrid": "full", "global_attention": "full",
    "sliding_attention": "sliding", "chunked_attention": "sliding", "local_attention": "sliding",
    "linear_attention": "none", "mamba": "none", "mamba2": "none", "recurrent": "none", "conv": "none",
}  # fmt: skip
_UNKNOWN_HYBRIDS = ("hybrid_override_pattern", "attn_layer_period", "ssm_cfg", "attn_type_list", "attn_layer_indices")


class KvShape(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the size of a model's cache."""

    kind: Literal["grouped_query", "latent"]
    layers: int  # all; `full_layers` + `sliding_layers` hold tokens
    full_layers: int
    sliding_layers: int = 0
    sliding_window: int | None = None  # tokens that a sliding layer holds at most
    values_per_layer: int  # elements that one token holds in one layer, keys and values
    kv_heads: int | None = None
    head_dim: int | None = None
    dtype: str
    dtype_bytes: float
    context_max: int | None = None
    model_type: str = ""
    notes: tuple[str, ...] = ()

    @property
    def bytes_per_token(self) -> float:
        """Of a token that every layer with attention still holds."""
        return (self.full_layers + self.sliding_layers) * self.values_per_layer * self.dtype_bytes


class KvCapacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a cache of a size takes."""

    bytes: float
    tokens: int  # held by all layers at once
    context_tokens: float  # of the requests that were asked about
    batch: float  # requests of that context that fit at the same time


def read_config(
    text: bytes | str, origin: str = "config.json", kv_dtype: str | None = None, option: str = "--dtype"
) -> KvShape:
    """The shape that a config.json tells; `kv_dtype` (fp8, int8 …), which `option` says, replaces the model's. Raises
    ConfigError.
    """
    try:
        root = msgspec.json.decode(text)
    except MALFORMED as error:
        raise ConfigError(f"{origin}: not valid JSON: {error}") from None
    if not isinstance(root, dict):
        raise ConfigError(f"{origin}: is no config.json of a model (it holds no object)")
    return shape_of(root, origin, kv_dtype, option)


def shape_of(
    root: dict[str, Any], origin: str = "config.json", kv_dtype: str | None = None, option: str = "--dtype"
) -> KvShape:
    """As `read_config`, of the decoded object."""
    config = _text_config(root)
    notes: list[str] = []
    layers = _whole(config, "layers", origin)
    full, sliding, window = _layers(config, layers, origin, notes)
    dtype, size = _dtype(config, root, kv_dtype, option, origin, notes)
    rank = config.get("kv_lora_rank")
    kv_heads = head_dim = None
    if isinstance(rank, int) and rank > 0:
        rope = config.get("qk_rope_head_dim", 0)
        if not isinstance(rope, int) or rope < 0:
            raise ConfigError(f"{origin}: `qk_rope_head_dim` must be a whole number of 0 or more")
        values = rank + rope
    else:
        kv_heads, head_dim = _heads(config, origin, notes)
        values = 2 * kv_heads * head_dim
    context_max = config.get("max_position_embeddings", config.get("n_positions"))
    return KvShape(
        kind="latent" if kv_heads is None else "grouped_query",
        layers=layers,
        full_layers=full,
        sliding_layers=sliding,
        sliding_window=window,
        values_per_layer=values,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        dtype_bytes=size,
        context_max=context_max if isinstance(context_max, int) else None,
        model_type=str(config.get("model_type", ""))[:64],
        notes=tuple(notes),
    )


def request_bytes(shape: KvShape, context: float) -> float:
    """Bytes of one request that holds `context` tokens."""
    held = shape.full_layers * context
    if shape.sliding_layers:
        window = shape.sliding_window
        held += shape.sliding_layers * (context if window is None else min(context, window))
    return held * shape.values_per_layer * shape.dtype_bytes


def batch_bytes(shape: KvShape, batch: float, context: float) -> float:
    """2 · layers · batch · kv_heads · context · head_dim · bytes, for requests of the same length."""
    return batch * request_bytes(shape, context)


def mean_context(input_tokens: float, output_tokens: float) -> float:
    """Tokens that a request holds on average while it decodes: its prompt, and half of its answer."""
    return input_tokens + output_tokens / 2


def capacity(shape: KvShape, budget_bytes: float, context: float) -> KvCapacity:
    """What fits into `budget_bytes`, for requests that hold `context` tokens each."""
    one = request_bytes(shape, context)
    tokens = int(budget_bytes // shape.bytes_per_token) if shape.bytes_per_token else 0
    return KvCapacity(
        bytes=budget_bytes, tokens=tokens, context_tokens=context, batch=budget_bytes / one if one else 0.0
    )


def dtype_bytes(name: str, origin: str) -> float:
    """Bytes an element of this dtype. Raises ConfigError."""
    size = DTYPE_BYTES.get(name.removeprefix("torch.").lower())
    if size is None:
        raise ConfigError(f"{origin}: the dtype `{name}` is not known; known: {', '.join(DTYPE_BYTES)}")
    return size


def _text_config(root: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a multi-modal config."""
    for name in _TEXT_CONFIGS:
        inner = root.get(name)
        if isinstance(inner, dict) and not any(key in root for key in _NAMES["layers"]):
            return _text_config(inner)
    return root


def _find(config: dict[str, Any], what: str) -> tuple[str, Any]:
    return next(((name, config[name]) for name in _NAMES[what] if config.get(name) is not None), ("", None))


def _whole(config: dict[str, Any], what: str, origin: str) -> int:
    name, value = _find(config, what)
    if value is None:
        raise ConfigError(f"{origin}: has no `{_NAMES[what][0]}`: is this the config.json of a language model?")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{origin}: `{name}` must be a whole number of 1 or more")
    return value


def _heads(config: dict[str, Any], origin: str, notes: list[str]) -> tuple[int, int]:
    heads = _whole(config, "heads", origin)
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        kv_heads = _whole(config, "kv_heads", origin) if "multi_query_group_num" in config else 1
    elif _find(config, "kv_heads")[1] is None:
        kv_heads = heads
        notes.append("no num_key_value_heads: every attention head has keys and values of its own")
    else:
        kv_heads = _whole(config, "kv_heads", origin)
    head_dim = config.get("head_dim", config.get("kv_channels"))
    if head_dim is None:
        hidden = _whole(config, "hidden", origin)
        if hidden % heads:
            raise ConfigError(f"{origin}: hidden size {hidden} is no multiple of {heads} heads; give `head_dim`")
        head_dim = hidden // heads
    if not isinstance(head_dim, int) or head_dim < 1:
        raise ConfigError(f"{origin}: `head_dim` must be a whole number of 1 or more")
    return kv_heads, head_dim


def _layers(config: dict[str, Any], layers: int, origin: str, notes: list[str]) -> tuple[int, int, int | None]:
    """(layers that hold all tokens, layers that hold a window, the window)."""
    kinds = config.get("layer_types", config.get("layers_block_type"))
    window = config.get("sliding_window")
    if not isinstance(window, int) or window < 1 or config.get("use_sliding_window") is False:
        window = None
    if isinstance(kinds, list):
        unknown = sorted({str(kind) for kind in kinds} - _HOLDS.keys())
        if unknown or len(kinds) != layers:
            what = f"has layers of kind `{unknown[0]}`, which is not known here" if unknown else "has another number"
            raise ConfigError(f"{origin}: `layer_types` {what} (of {layers} layers)")
        held = [_HOLDS[str(kind)] for kind in kinds]
        sliding = held.count("sliding") if window else 0
        full = layers - held.count("none") - sliding
        if held.count("none"):
            notes.append(f"{held.count('none')} of {layers} layers keep a state of fixed size and no tokens")
    else:
        for name in _UNKNOWN_HYBRIDS:
            if config.get(name):
                raise ConfigError(f"{origin}: `{name}`: how many layers have attention is not known for this model")
        sliding = _sliding(config, layers) if window else 0
        full = layers - sliding
    if sliding:
        notes.append(f"{sliding} of {layers} layers hold a window of {window} tokens at most")
    return full, sliding, window if sliding else None


def _sliding(config: dict[str, Any], layers: int) -> int:
    """Layers with a window where no list names them: all, those from a layer on (Qwen2), all but each n-th (Gemma)."""
    pattern = config.get("sliding_window_pattern", 2 if config.get("model_type") == "gemma2" else None)
    if isinstance(pattern, int) and pattern > 1:
        return layers - layers // pattern
    first = config.get("max_window_layers")
    return max(0, layers - first) if config.get("use_sliding_window") and isinstance(first, int) else layers


def _dtype(
    config: dict[str, Any], root: dict[str, Any], kv_dtype: str | None, option: str, origin: str, notes: list[str]
) -> tuple[str, float]:
    if kv_dtype is not None and kv_dtype != "auto":
        return kv_dtype, dtype_bytes(kv_dtype, option)
    for source in (config, root):
        for key in ("dtype", "torch_dtype"):
            name = source.get(key)
            if isinstance(name, str) and name != "auto":
                if dtype_bytes(name, origin) == 4.0:
                    notes.append("float32: vLLM serves such a model in 16 bit by default (--dtype float16)")
                return name, dtype_bytes(name, origin)
    notes.append(f"no dtype in the file: {DEFAULT_DTYPE} is assumed")
    return DEFAULT_DTYPE, DTYPE_BYTES[DEFAULT_DTYPE]
