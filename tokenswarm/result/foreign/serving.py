"""Keys that vLLM's `benchmark_serving.py` gave to all that descend from it: `median_ttft_ms`, `request_throughput`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenswarm.result.foreign.found import Found, Path, first, number

MS = 1e-3
RATES = {"requests_per_s": "request_throughput", "output_tokens_per_s": "output_throughput"}


def found(part: Mapping[str, Any], names: Mapping[str, str], load: Sequence[str]) -> Found:
    """`names`: field -> what it is called there, between `median_` and `_ms`; `load`: keys that say what was asked."""
    values = {
        f"{field}.{ours}": number(part.get(f"{theirs}_{name}_ms"), MS)
        for field, name in names.items()
        for ours, theirs in (("p50", "median"), ("p99", "p99"))
    }
    values |= {field: number(part.get(name)) for field, name in RATES.items()}
    asked = {name: part[name] for name in load if part.get(name) is not None}
    completed, failed, prompts = (number(part.get(name)) for name in ("completed", "failed", "num_prompts"))
    if failed is None and completed is not None and prompts is not None:  # versions before `failed`
        failed = prompts - completed
    return Found(values=values, completed=completed, failed=failed, model=first(part, ("model_id",)), load=asked)


def ours(convention: str, names: Mapping[str, str]) -> dict[str, tuple[Path, float]]:
    """Where summary.json has the same, under `conventions.<convention>`."""
    places: dict[str, tuple[Path, float]] = {}
    for field, name in names.items():
        places[field] = (("conventions", convention, f"{name}_ms"), MS)
    for field, name in RATES.items():
        places[field] = (("conventions", convention, name), 1.0)
    return places
