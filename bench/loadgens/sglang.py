"""SGLang: its client in Rust, an extension in the wheel that needs nothing else. The one in Python imports torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.loadgens.peer import Job, Peer, Told, from_wheel, options, tokenizer
from bench.sender import BenchError


def _install(home: Path, version: str) -> None:
    from_wheel(home, "sglang", version, lambda name: "/rust_extensions/_bench." in name)


def _command(job: Job) -> list[str]:
    words = {
        "backend": "vllm-chat",
        "base-url": job.url,
        "model": "sim",
        "tokenizer": tokenizer(job),
        "dataset-name": "random-ids",
        "random-input-len": 8,
        "random-output-len": job.tokens,
        "random-range-ratio": 1,
        "num-prompts": job.requests,
        "max-concurrency": job.streams,
        "warmup-requests": 0,
        "ready-check-timeout-sec": 0,
        "output-file": job.folder / "told.json",
    }
    start = f"import sys; sys.path.insert(0, {str(job.home)!r}); import _bench; _bench.run_argv(sys.argv)"
    return [sys.executable, "-c", start, *options(words), "--disable-tqdm"]


def _read(job: Job, _: str) -> Told:
    told = json.loads((job.folder / "told.json").read_text(encoding="utf-8"))
    ttft, itl = ((told[f"median_{name}_ms"], told[f"p99_{name}_ms"]) for name in ("ttft", "itl"))
    ok = told["completed"]
    return Told(ok, job.requests - ok, told["total_output_tokens"], ttft, itl)


def _refuse(_home: Path, _version: str) -> None:
    raise BenchError("`sglang.benchmark.serving` imports torch, some gigabytes that are not fetched here")


PEER = Peer(
    "sglang-bench (Rust)",
    "0.5.23",
    _install,
    _command,
    _read,
    "it does not ask for usage: its tokens are those that it asked for, not those that came",
)
PYTHON = Peer("sglang bench_serving (Python)", "0.5.23", _refuse, _command, _read)
