"""`vllm bench serve --save-result`, of the Python and of the Rust client: both write the same keys.

They count any event with choices as the first token: where a server sends its role first, their TTFT ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign.found import Format, Found, first, number

NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2el"}
MS = 1e-3


def _read(part: Mapping[str, Any], _: Mapping[str, Any]) -> Found:
    values = {
        f"{field}.{ours}": number(part.get(f"{theirs}_{name}_ms"), MS)
        for field, name in NAMES.items()
        for ours, theirs in (("p50", "median"), ("p99", "p99"))
    }
    values["requests_per_s"] = number(part.get("request_throughput"))
    values["output_tokens_per_s"] = number(part.get("output_throughput"))
    load = {
        name: part[name] for name in ("request_rate", "burstiness", "max_concurrency") if part.get(name) is not None
    }
    return Found(values=values, completed=number(part.get("completed")), model=first(part, ("model_id",)), load=load)


def _matches(whole: Mapping[str, Any]) -> bool:
    own = "mean_ttft_ms" in whole or "num_prompts" in whole
    return "request_throughput" in whole and own and "mean_e2e_latency_ms" not in whole  # that is SGLang's


FORMAT = Format(
    tool="vllm_bench",
    matches=_matches,
    parts=lambda whole: [whole],
    read=_read,
    ours={
        "ttft_s": (("conventions", "vllm_bench", "ttft_ms"), MS),
        "tpot_s": (("conventions", "vllm_bench", "tpot_ms"), MS),
        "itl_s": (("conventions", "vllm_bench", "itl_ms"), MS),
        "e2e_s": (("conventions", "vllm_bench", "e2el_ms"), MS),
        "requests_per_s": (("conventions", "vllm_bench", "request_throughput"), 1.0),
        "output_tokens_per_s": (("conventions", "vllm_bench", "output_throughput"), 1.0),
    },
    apart="tokens of a server that sends no usage are counted by a tokenizer there and by events here; a request that "
    "is truncated may be a success there and is a failure here",
)
