"""Ollama's /api/ps -> a `Reading`. It has no counters and no queue: only which models are loaded, and where."""

from __future__ import annotations

import msgspec

from tokenswarm.telemetry.exposition import PageError
from tokenswarm.telemetry.reading import Reading

MODELS_MAX = 32


class _Model(msgspec.Struct):
    name: str
    size: int
    size_vram: int = 0
    context_length: int | None = None


class _Loaded(msgspec.Struct):
    models: list[_Model] | None


def read(page: bytes) -> Reading:
    """Raises PageError where the page is not /api/ps's."""
    if page[:1] == b"<":
        raise PageError("not_metrics", "the page is HTML, not the answer of /api/ps")
    try:
        models = (msgspec.json.decode(page, type=_Loaded).models or [])[:MODELS_MAX]
    except msgspec.ValidationError:
        raise PageError("not_metrics", "the page is JSON, but not the answer of /api/ps") from None
    except msgspec.DecodeError:
        raise PageError("truncated", "the page is no JSON, or not all of it") from None
    size = sum(model.size for model in models)
    levels = {"models_loaded": float(len(models)), "vram_bytes": float(sum(model.size_vram for model in models))}
    if size > 0:
        levels["vram_ratio"] = levels["vram_bytes"] / size
    facts = {f"model.{model.name[:128]}": f"context {model.context_length}" for model in models}
    return Reading(kind="ollama", levels=levels, facts=facts)
