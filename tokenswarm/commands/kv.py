"""`tokenswarm kv CONFIG_JSON`: how many bytes a token takes in the KV-cache, and which batch fills a memory."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from tokenswarm import kv_cache
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.kv_cache import KvShape
from tokenswarm.profile import options
from tokenswarm.reports.numbers import harmless

if TYPE_CHECKING:
    from rich.table import Table

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
UNIT_FROM = 1 << 20  # a plain number below it is no memory that anybody means
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def main(words: list[str]) -> int:
    """Run `kv …`; raises ConfigError."""
    parser = options.parser_of("kv")
    parser.add_argument("config", metavar="CONFIG_JSON", help="the model's config.json, or the folder that has it")
    parser.add_argument("--batch", metavar="N", help="requests at the same time")
    parser.add_argument("--context", metavar="N", help="tokens that each of them holds (default: the model's maximum)")
    parser.add_argument("--memory", metavar="SIZE", help="memory for the KV-cache: 40GiB, 40e9; of all GPUs together")
    parser.add_argument("--dtype", metavar="NAME", help="of the KV-cache, where it is not the model's: fp8, int8, q8_0")
    given = parser.parse_args(words)
    from tokenswarm.telemetry.kv import read_shape  # after the words: it takes the half of a help's time

    shape = read_shape(given.config, given.dtype)
    assert shape is not None  # a path was given
    batch = _count("--batch", given.batch)
    context = _count("--context", given.context) or shape.context_max
    memory = None if given.memory is None else size("--memory", given.memory)
    if context is None and (batch or memory):
        raise ConfigError(f"{given.config}: names no `max_position_embeddings`; say --context")
    from rich.console import Console

    Console(soft_wrap=True).print(_table(shape, batch, context, memory))
    return int(ExitCode.OK)


def _count(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.replace("_", "")
    if not digits.isascii() or not digits.isdigit() or int(digits) < 1:
        raise ConfigError(f"{option} {text}: write a whole number of 1 or more")
    return int(digits)


def size(option: str, text: str) -> float:
    """Bytes of `40GiB`, `40GB`, `40G` (decimal), `4e10`. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match:
        unit = (match[2] or "").lower()
        base = 1024.0 if unit.endswith("i") else 1000.0
        value = float(match[1]) * math.pow(base, _POWERS[unit.removesuffix("i")])
    else:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
    if text.strip().isdigit() and value < UNIT_FROM:
        raise ConfigError(f"{option} {text}: {text} bytes? Write the unit, such as {text}GiB")
    if not math.isfinite(value) or value < 1:
        raise ConfigError(f"{option} {text}: write a size such as 40GiB, 40GB or 40e9")
    return value


def _table(shape: KvShape, batch: int | None, context: int | None, memory: float | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    rows: list[tuple[str, str]] = [("model", harmless(shape.model_type) or "–"), ("attention", _attention(shape))]
    rows.append(("layers", _layers(shape)))
    rows.append(("dtype", f"{shape.dtype}, {shape.dtype_bytes:g} bytes"))
    rows.append(("a token", bytes_text(shape.bytes_per_token)))
    if context is not None:
        rows.append((f"a request of {context:,} tokens", bytes_text(kv_cache.request_bytes(shape, context))))
        if batch:
            rows.append((f"a batch of {batch:,} of them", bytes_text(kv_cache.batch_bytes(shape, batch, context))))
        if memory:
            fits = kv_cache.capacity(shape, memory, context)
            rows.append((f"{bytes_text(memory)} hold", f"{fits.tokens:,} tokens"))
            rows.append(("full at a batch of", f"{math.floor(fits.batch):,}"))
    rows += [("note", harmless(note)) for note in shape.notes]
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _attention(shape: KvShape) -> str:
    if shape.kind == "latent":
        return f"latent (MLA), {shape.values_per_layer} values a token and layer"
    return f"{shape.kv_heads} key/value heads of {shape.head_dim}"


def _layers(shape: KvShape) -> str:
    held = shape.full_layers + shape.sliding_layers
    return f"{shape.layers}" if held == shape.layers else f"{shape.layers}, {held} of them with attention"


def bytes_text(value: float) -> str:
    """131,072 bytes (128 KiB)"""
    exact = f"{value:,.0f} bytes"
    power = min(4, int(math.log(value, 1024))) if value >= 1 else 0
    return exact if not power else f"{exact} ({value / 1024**power:.4g} {'KMGT'[power - 1]}iB)"
