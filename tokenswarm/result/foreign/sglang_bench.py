"""SGLang's `bench_serving --output-file`, Python and Rust: a line a run; most of its keys have vLLM's names.

Its first token is the first that has text, and its TPOT runs to the last byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign.found import Format, Found, number

NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2e_latency"}
MS = 1e-3


def _read(part: Mapping[str, Any], _: Mapping[str, Any]) -> Found:
    values = {
        f"{field}.{ours}": number(part.get(f"{theirs}_{name}_ms"), MS)
        for field, name in NAMES.items()
        for ours, theirs in (("p50", "median"), ("p99", "p99"))
    }
    values["requests_per_s"] = number(part.get("request_throughput"))
    values["output_tokens_per_s"] = number(part.get("output_throughput"))
    load = {name: part[name] for name in ("request_rate", "max_concurrency") if part.get(name) is not None}
    return Found(values=values, completed=number(part.get("completed")), load=load)


FORMAT = Format(
    tool="sglang_bench",
    matches=lambda whole: "request_throughput" in whole and "mean_e2e_latency_ms" in whole,
    parts=lambda whole: [whole],
    read=_read,
    ours={
        "ttft_s": (("conventions", "sglang", "ttft_ms"), MS),
        "tpot_s": (("conventions", "sglang", "tpot_ms"), MS),
        "itl_s": (("conventions", "sglang", "itl_ms"), MS),
        "e2e_s": (("conventions", "sglang", "e2e_latency_ms"), MS),
        "requests_per_s": (("conventions", "sglang", "request_throughput"), 1.0),
        "output_tokens_per_s": (("conventions", "sglang", "output_throughput"), 1.0),
    },
    apart="without usage, its tokens are those that it asked for, not those that came; connecting is in its TTFT: hold "
    "it against a run with `connections: fresh`; a request that is truncated is a success there; it names no model",
)
