"""`vllm bench serve --save-result`, of the Python and of the Rust client: both write the same keys.

They count any event with choices as the first token: where a server sends its role first, their TTFT ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign import serving
from tokenswarm.result.foreign.found import Format

NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2el"}
LOAD = ("request_rate", "burstiness", "max_concurrency")


def _matches(whole: Mapping[str, Any]) -> bool:
    own = "mean_ttft_ms" in whole or "num_prompts" in whole
    return "request_throughput" in whole and own and "mean_e2e_latency_ms" not in whole  # that is SGLang's


FORMAT = Format(
    tool="vllm_bench",
    matches=_matches,
    parts=lambda whole: [whole],
    read=lambda part, _: serving.found(part, NAMES, LOAD),
    ours=serving.ours("vllm_bench", NAMES),
    apart="tokens of a server that sends no usage are counted by a tokenizer there and by events here; a request that "
    "is truncated may be a success there and is a failure here",
)
