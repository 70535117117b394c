"""SGLang's `bench_serving --output-file`, Python and Rust: a line a run; most of its keys have vLLM's names.

Its first token is the first that has text, and its TPOT runs to the last byte.
"""

from __future__ import annotations

from tokenswarm.result.foreign import serving
from tokenswarm.result.foreign.found import Format

NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "itl_s": "itl", "e2e_s": "e2e_latency"}
LOAD = ("request_rate", "max_concurrency")

FORMAT = Format(
    tool="sglang_bench",
    matches=lambda whole: "request_throughput" in whole and "mean_e2e_latency_ms" in whole,
    parts=lambda whole: [whole],
    read=lambda part, _: serving.found(part, NAMES, LOAD),
    ours=serving.ours("sglang", NAMES),
    tells_failed=False,
    apart="without usage, its tokens are those that it asked for, not those that came; connecting is in its TTFT: hold "
    "it against a run with `connections: fresh`; a request that is truncated is a success there; it "
    "names no model, and not how many requests failed",
)
