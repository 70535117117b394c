"""genai-bench: a file a scenario and concurrency, with `aggregated_metrics`; seconds, or as `_time_unit` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign.found import Format, Found, at, number

NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_s": "e2e_latency"}


def _read(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Found:
    factor = {"s": 1.0, "ms": 1e-3}.get(str(whole.get("_time_unit", "s")))
    values: dict[str, float | None] = {}
    for field, name in NAMES.items():
        for p in ("p50", "p99"):
            values[f"{field}.{p}"] = None if factor is None else number(at(part, "stats", name, p), factor)
    values["requests_per_s"] = number(part.get("requests_per_second"))
    values["output_tokens_per_s"] = number(part.get("mean_output_throughput_tokens_per_s"))
    load = {
        name: part[name] for name in ("scenario", "num_concurrency", "iteration_type") if part.get(name) is not None
    }
    failed = number(part.get("num_error_requests"))
    return Found(values=values, completed=number(part.get("num_completed_requests")), failed=failed, load=load)


FORMAT = Format(
    tool="genai_bench",
    matches=lambda whole: isinstance(at(whole, "aggregated_metrics", "stats"), Mapping),
    parts=lambda whole: [whole["aggregated_metrics"]],
    read=_read,
    ours={
        "ttft_s": (("conventions", "sglang", "ttft_ms"), 1e-3),
        "tpot_s": (("conventions", "sglang", "tpot_ms"), 1e-3),
        "e2e_s": (("conventions", "sglang", "e2e_latency_ms"), 1e-3),
        "requests_per_s": (("conventions", "sglang", "request_throughput"), 1.0),
        "output_tokens_per_s": (("conventions", "sglang", "output_throughput"), 1.0),
    },
    apart="it opens a connection for each request, and connecting is in its TTFT: hold it against a run with "
    "`connections: fresh`; it has no ITL, and names no model",
)
