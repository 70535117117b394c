"""`server` and `gpu` of the summary as typed blocks, of the run and of each stage, and what of them is not shown.

A summary.json may be of another version, or damaged: a block that can't be read is None, names that are not known here
are listed. Nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from tokenswarm.reports.html.figure import load_name
from tokenswarm.result.stat import Stat
from tokenswarm.result.summary import Stage, Summary
from tokenswarm.telemetry.gpu import GpuBlock
from tokenswarm.telemetry.join import Source
from tokenswarm.telemetry.kv import KvBlock
from tokenswarm.telemetry.server import ServerBlock

REPLAY = "replay"
"""The backend of a GPU exporter that plays recorded values: they are not of this run."""


class Engine(ServerBlock, kw_only=True):
    """`server.metrics`; `sources` only of the run."""

    kv_cache: KvBlock | None = None
    sources: list[Source] = msgspec.field(default_factory=list)


class Gpus(GpuBlock, kw_only=True):
    """`gpu`; `sources` only of the run."""

    sources: list[Source] = msgspec.field(default_factory=list)


Told = Summary | Stage
B = TypeVar("B", Engine, Gpus)


def engine(part: Told) -> Engine | None:
    """What the engine's metrics say; None where they were not watched."""
    block = part.server.get("metrics")
    return _typed(block, Engine) if block else None


def gpus(part: Told) -> Gpus | None:
    """What the GPU exporters say, and what a token costs; None where neither is known."""
    return _typed(part.gpu, Gpus) if part.gpu else None


def _typed(block: Any, kind: type[B]) -> B | None:
    try:
        return msgspec.convert(block, kind)
    except (msgspec.ValidationError, UnicodeError):  # a lone surrogate in a name is no text
        return None


def durations(summary: Summary) -> dict[str, Stat]:
    """What the engine said with each answer (Ollama): distributions by their name."""
    found: dict[str, Stat] = {}
    for name, value in summary.server.items():
        if name != "metrics" and isinstance(value, Mapping) and value.get("n"):
            try:
                found[name] = msgspec.convert(value, Stat)
            except msgspec.ValidationError:
                continue
    return found


def by_stage(summary: Summary, read: Callable[[Told], B | None]) -> list[tuple[str, Told, B]]:
    """(name, part, block) of each stage that has the block, and then of the run, where that is not the same."""
    found: list[tuple[str, Told, B]] = []
    for stage in summary.stages:
        if (block := read(stage)) is not None:
            found.append((load_name(stage), stage, block))
    whole = read(summary)
    if whole is not None and not (len(summary.stages) == 1 and found):
        found.append(("all stages" if summary.stages else "run", summary, whole))
    return found


def answered(block: Engine | Gpus) -> bool:
    """Whether there was any reading in the steady windows."""
    return block.coverage.samples > 0


def replayed(block: Gpus | None) -> bool:
    return block is not None and any(gpu.backend == REPLAY for gpu in block.gpus)


def batch_of(stages: Sequence[Stage]) -> dict[int, float] | None:
    """The engine's batch by stage, where all of these stages have one."""
    found = {stage.stage: block.running.mean for stage in stages if (block := engine(stage)) is not None}
    known = {number: mean for number, mean in found.items() if mean}
    return known if stages and len(known) == len(stages) else None


def why_no_engine(summary: Summary, what: str) -> str:
    """Why a chart of the engine's numbers has no data: a clause."""
    block = engine(summary)
    if block is None:
        return "the engine's metrics were not read"
    return f"the engine's metrics told nothing of the {what}" if answered(block) else "the engine gave no metrics"


def why_no_gpu(summary: Summary) -> str:
    """The same for numbers of the GPUs."""
    block = gpus(summary)
    if block is None or not block.sources:
        return "no GPU exporter was read"
    return "the GPU exporters told no power of all GPUs" if block.count else "the GPU exporters showed no GPU"


def left_out(summary: Summary) -> list[str]:
    """Names in summary.json that this page does not know or can't read."""
    shown = durations(summary)
    names = [f"server.{name}" for name in summary.server if name != "metrics" and name not in shown]
    names += _unknown("server.metrics", summary.server.get("metrics"), engine(summary))
    names += _unknown("gpu", summary.gpu, gpus(summary))
    for stage in summary.stages:
        names += [f"stages[].server.{name}" for name in stage.server if name not in ("metrics", *shown)]
        names += _unknown("stages[].server.metrics", stage.server.get("metrics"), engine(stage))
        names += _unknown("stages[].gpu", stage.gpu, gpus(stage))
    return list(dict.fromkeys(names))


def _unknown(path: str, given: Any, block: Engine | Gpus | None) -> list[str]:
    if not given:
        return []
    return [path] if block is None else list(_beyond(given, msgspec.to_builtins(block), path))


def _beyond(given: Any, known: Any, path: str) -> Iterator[str]:
    """The paths in `given` that `known` lacks."""
    if isinstance(given, Mapping) and isinstance(known, Mapping):
        for name, value in given.items():
            if name in known:
                yield from _beyond(value, known[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif isinstance(given, list) and isinstance(known, list):
        for value, other in zip(given, known, strict=False):
            yield from _beyond(value, other, f"{path}[]")
