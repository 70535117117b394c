"""Ollama's /api/ps -> a `Reading`. It has no counters and no queue: only which models are loaded, and where."""

from __future__ import annotations

import msgspec

from tokenswarm.engines.ollama_ps import loaded
from tokenswarm.errors import MALFORMED
from tokenswarm.telemetry.exposition import PageError
from tokenswarm.telemetry.reading import Reading

MODELS_MAX = 32


def read(page: bytes) -> Reading:
    """Raises PageError where the page is not /api/ps's. Sums are of the models whose sizes are told."""
    if page[:1] == b"<":
        raise PageError("not_metrics", "the page is HTML, not the answer of /api/ps")
    if not page.strip():
        raise PageError("empty", "the answer of /api/ps is empty")
    try:
        answer = msgspec.json.decode(page)
    except MALFORMED:
        raise PageError("truncated", "the page is no JSON, or not all of it") from None
    try:
        models = loaded(answer)[:MODELS_MAX]
    except ValueError:
        raise PageError("not_metrics", "the page is JSON, but not the answer of /api/ps") from None
    levels = {"models_loaded": float(len(models))}
    told = [model.vram_bytes for model in models if model.vram_bytes is not None]
    if told or not models:
        levels["vram_bytes"] = sum(told, 0.0)
    split = [model for model in models if model.vram_ratio is not None]
    if split:
        levels["vram_ratio"] = sum(m.vram_bytes or 0.0 for m in split) / sum(m.size_bytes or 0.0 for m in split)
    facts = {f"model.{model.name[:128]}": f"context {model.context}" for model in models}
    return Reading(kind="ollama", levels=levels, facts=facts)
