"""AIPerf's `profile_export_aiperf.json`: each metric says its unit. Its inter-token latency is our TPOT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign.found import Format, Found, at, first, number

NAMES = {
    "ttft_s": "time_to_first_token",
    "tpot_s": "inter_token_latency",
    "itl_s": "inter_chunk_latency",
    "e2e_s": "request_latency",
}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0, "seconds": 1.0}
LOAD = ("type", "concurrency", "prefill_concurrency", "rate", "smoothness")


def _load(part: Mapping[str, Any]) -> dict[str, Any]:
    """What it says of the phases that were measured: from 0.13 on."""
    phases = at(part, "input_config", "phases")
    known = [
        {name: phase[name] for name in LOAD if phase.get(name) is not None}
        for phase in (phases if isinstance(phases, list) else [])
        if isinstance(phase, Mapping) and phase.get("kind") == "profiling"
    ]
    return known[0] if len(known) == 1 else {"phases": known} if known else {}


def _read(part: Mapping[str, Any], _: Mapping[str, Any]) -> Found:
    values: dict[str, float | None] = {}
    for field, name in NAMES.items():
        factor = SECONDS.get(str(at(part, name, "unit")))
        for which in ("p50", "p99"):
            values[f"{field}.{which}"] = None if factor is None else number(at(part, name, which), factor)
    values["requests_per_s"] = number(at(part, "request_throughput", "avg"))
    values["output_tokens_per_s"] = number(at(part, "output_token_throughput", "avg"))
    places = (
        ("input_config", "endpoint", "model_names"),
        ("input_config", "models", "items"),
        ("input_config", "model"),
    )
    cut = part.get("was_cancelled") is True or part.get("is_complete") is False
    return Found(
        values=values,
        completed=number(at(part, "request_count", "avg")),
        failed=number(at(part, "error_request_count", "avg")) or 0.0,  # left out where there are none
        model=first(part, *places),
        load=_load(part),
        unfinished=str(part.get("incomplete_reason") or "it was cancelled") if cut else "",
    )


FORMAT = Format(
    tool="aiperf",
    matches=lambda whole: isinstance(at(whole, "request_latency"), Mapping) and "unit" in whole["request_latency"],
    parts=lambda whole: [whole],
    read=_read,
    ours={
        "ttft_s": (("conventions", "aiperf", "time_to_first_token_ms"), 1e-3),
        "tpot_s": (("conventions", "aiperf", "inter_token_latency_ms"), 1e-3),
        "itl_s": (("conventions", "aiperf", "inter_chunk_latency_ms"), 1e-3),
        "e2e_s": (("conventions", "aiperf", "request_latency_ms"), 1e-3),
        "requests_per_s": (("conventions", "aiperf", "request_throughput"), 1.0),
        "output_tokens_per_s": (("conventions", "aiperf", "output_token_throughput"), 1.0),
    },
    apart="tokens are counted by its own tokenizer there, unless it was told to take the server's",
)
