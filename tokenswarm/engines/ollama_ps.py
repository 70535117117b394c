"""Ollama's /api/ps: which models are loaded, and where. The run and the exporter read it here, with one answer."""

from __future__ import annotations

from typing import Any

import msgspec


def tagged(name: str) -> str:
    """A model's name as Ollama itself writes it: without a tag it means `:latest`. A host's port is no tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class Loaded(msgspec.Struct, frozen=True):
    """A model in memory. None: not told, or told as what can't be (a loaded model has no size of 0)."""

    name: str
    size_bytes: float | None  # on GPU and host
    vram_bytes: float | None  # the part of it on the GPU
    context: int | None
    told: dict[str, Any]  # the whole entry

    @property
    def vram_ratio(self) -> float | None:
        if self.size_bytes is None or self.vram_bytes is None or self.vram_bytes > self.size_bytes:
            return None
        return self.vram_bytes / self.size_bytes


def loaded(answer: object) -> list[Loaded]:
    """The models of an answer of /api/ps, as JSON. Raises ValueError where it is another's."""
    models = answer.get("models", answer) if isinstance(answer, dict) else answer
    if models is None:
        return []
    if not isinstance(models, list) or models is answer:
        raise ValueError("not the answer of /api/ps")
    return [_loaded(model) for model in models]


def _loaded(model: object) -> Loaded:
    name = (model.get("name") or model.get("model")) if isinstance(model, dict) else None
    if not isinstance(name, str) or not isinstance(model, dict):
        raise ValueError("not the answer of /api/ps")
    size = number(model.get("size")) or None
    vram = number(model.get("size_vram"))
    if model.get("size_vram") is None and size is not None:
        vram = 0.0  # left out where it is 0: all of the model is on the CPU
    if size is None and not vram:
        vram = None
    context = number(model.get("context_length"))  # absent before Ollama 0.11
    return Loaded(tagged(name), size, vram, None if context is None else int(context), model)


def number(value: object) -> float | None:
    """A number that a size or a length can be; None for any other value."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63  # false for NaN, too
    return float(value) if real else None  # type: ignore[arg-type]
