"""GuideLLM's `benchmarks.json`: a benchmark a strategy of its sweep; TPOT includes the time to the first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign.found import Format, Found, at, first, number

NAMES = {
    "ttft_s": ("time_to_first_token_ms", 1e-3),
    "tpot_s": ("time_per_output_token_ms", 1e-3),
    "itl_s": ("inter_token_latency_ms", 1e-3),
    "e2e_s": ("request_latency", 1.0),
}


def _read(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Found:
    values: dict[str, float | None] = {}
    for field, (name, factor) in NAMES.items():
        spread = at(part, "metrics", name, "successful")
        values |= {f"{field}.{p}": number(at(spread, "percentiles", p), factor) for p in ("p50", "p99")}
    for field, name in (("requests_per_s", "requests_per_second"), ("output_tokens_per_s", "output_tokens_per_second")):
        values[field] = number(at(part, "metrics", name, "successful", "mean"))
    places = (
        ("args", "model"),
        ("config", "spec", "backend", "model"),
        ("config", "backend", "model"),
        ("config", "model"),
        ("args", "backend_args", "model"),
    )
    strategy = at(part, "config", "strategy") or at(part, "scheduler", "strategy")
    known = strategy if isinstance(strategy, Mapping) else {}
    return Found(
        values=values,
        completed=number(at(part, "metrics", "request_totals", "successful")),
        failed=number(at(part, "metrics", "request_totals", "errored")),
        model=first(whole, *places),
        load={name: known[name] for name in ("type_", "kind", "streams", "rate", "max_concurrency") if name in known},
    )


FORMAT = Format(
    tool="guidellm",
    matches=lambda whole: isinstance(whole.get("benchmarks"), list),
    parts=lambda whole: list(whole["benchmarks"]),
    read=_read,
    ours={
        "ttft_s": (("conventions", "guidellm", "time_to_first_token_ms"), 1e-3),
        "tpot_s": (("conventions", "guidellm", "time_per_output_token_ms"), 1e-3),
        "itl_s": (("conventions", "guidellm", "inter_token_latency_ms"), 1e-3),
        "e2e_s": (("conventions", "guidellm", "request_latency"), 1.0),
    },
    apart="its rates are means of momentary rates, which nobody else has, so they are not held against ours; its clock "
    "is the wall clock, which may step",
)
