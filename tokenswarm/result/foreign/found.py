"""What a reader of another tool's file returns, and how values are taken out of JSON that may be newer or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

FIELDS = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
RATES = ("requests_per_s", "output_tokens_per_s")
Path = tuple[str, ...]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One run of another tool. `values`: `ttft_s.p50` and the like in seconds, rates in 1/s, None where it has none."""

    values: dict[str, float | None]
    completed: float | None
    failed: float | None = None  # None where the file does not tell
    model: str | None = None
    load: dict[str, Any] = {}  # rate, concurrency: as the tool calls them
    unfinished: str = ""  # why it is no whole run


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A row: how a file is known, what runs it holds, and where summary.json has the same by the same definition."""

    tool: str
    matches: Callable[[Mapping[str, Any]], bool]
    parts: Callable[[Mapping[str, Any]], list[Any]]
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], Found]  # (the part, the whole file)
    ours: dict[str, tuple[Path, float]]  # field: path in summary.json, factor to seconds; percentiles stand below it
    tells_failed: bool = True  # how many requests failed
    apart: str  # what is not the same, and stays so


def at(tree: Any, *path: str) -> Any:
    """The value at a path of keys; None where there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def number(value: Any, factor: float = 1.0) -> float | None:
    """A finite number that is no truth value, scaled; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        return None
    return float(value) * factor


def text(value: Any) -> str | None:
    """A text, or the only one of a list, or its name."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        value = value.get("name")
    return value if isinstance(value, str) and value else None


def first(tree: Any, *paths: Path) -> str | None:
    """The first of several places where a text stands: tools move things between versions."""
    return next((found for path in paths if (found := text(at(tree, *path))) is not None), None)
