"""The tables of the KV-cache: what the engine says of it beside what the model's configuration predicts."""

from __future__ import annotations

from tokenswarm.reports.html.engine import level
from tokenswarm.reports.html.reported import Engine, answered, by_stage, engine
from tokenswarm.reports.html.svg import escape
from tokenswarm.reports.html.tables import Cell, count, filled, joined, table
from tokenswarm.reports.html.units import exact, size
from tokenswarm.reports.numbers import MISSING, quantity, ratio
from tokenswarm.result.summary import Summary

_PREDICTION = (
    "telemetry.model_config (the model's config.json) predicts the bytes of a token, and the batch that fills it."
)

_KV_HEAD: tuple[Cell, ...] = (
    "", ("in use", "mean"), ("in use", "fullest"), ("bytes in use", "mean"),
    ("predicted", "for the mean batch"), ("context", "mean, tokens"), ("in the batch", "mean"),
    ("full at a batch of", "predicted"), "preemptions",
)  # fmt: skip


def kv_tables(summary: Summary) -> str:
    """The cache, and its use by stage; "" without engine metrics, a sentence where they tell nothing of it."""
    block = engine(summary)
    kv = None if block is None else block.kv_cache
    if block is None or kv is None or not answered(block):
        return ""
    parts = []
    if kv.capacity_tokens is None and kv.predicted_bytes_per_token is None and block.kv_cache_usage.mean is None:
        return f"<p>The engine says nothing of its KV-cache. {escape(_PREDICTION)}</p>"
    if kv.capacity_tokens is not None or kv.predicted_bytes_per_token is not None:
        own = kv.bytes_per_token is not None
        sizes = (size(kv.capacity_bytes), MISSING) if own else (MISSING, size(kv.capacity_bytes))
        cache = [
            ["holds, tokens", exact(kv.capacity_tokens), MISSING],
            ["its size", *sizes],
            ["bytes a token", exact(kv.bytes_per_token), exact(kv.predicted_bytes_per_token)],
        ]
        told = [row for row in cache if row[1:] != [MISSING, MISSING]]
        parts.append(f'<div class="narrow">{table(("the cache", "reported", "predicted"), told)}</div>')
    lines = [_kv_line(name, found) for name, _, found in by_stage(summary, engine)]
    parts.append(joined(filled(_KV_HEAD, lines), missing="Not known"))
    notes = [note for _, _, found in by_stage(summary, engine) if found.kv_cache for note in found.kv_cache.notes]
    parts += [f"<p>Note: {escape(note)}.</p>" for note in dict.fromkeys(notes)]
    if kv.predicted_bytes_per_token is None:
        parts.append(f"<p>{escape(_PREDICTION)}</p>")
    if kv.capacity_tokens is None:
        parts.append(
            "<p>The engine does not say how large its cache is (vLLM does), so when it is full is not known.</p>"
        )
    return "".join(parts)


def _kv_line(name: str, block: Engine) -> list[Cell]:
    kv = block.kv_cache
    if kv is None:
        return [name, *[MISSING] * (len(_KV_HEAD) - 1)]
    use = block.kv_cache_usage
    return [
        name,
        _in_use(use.mean, kv.used_tokens_mean),
        _in_use(use.max, kv.used_tokens_max),
        size(kv.used_bytes_mean),
        size(kv.predicted_bytes_mean),
        _with_end(kv.context_tokens_mean, kv.context_tokens_end, "when it ends"),
        level(block.running),
        _with_end(kv.batch_at_full, kv.batch_at_full_end, "if all are about to end"),
        MISSING if block.preemptions is None else count(block.preemptions),
    ]


def _in_use(share: float | None, tokens: float | None) -> Cell:
    return ratio(share), "" if tokens is None else f"{exact(tokens)} tokens"


def _with_end(mean: float | None, end: float | None, what: str) -> Cell:
    return quantity(mean), "" if end is None else f"{quantity(end)} {what}"
