"""vLLM: `bench serve` of its program in Rust, which the wheel has. The one in Python imports torch first of all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.loadgens.peer import Job, Peer, Told, from_wheel, options, prompts, tokenizer
from bench.sender import BenchError


def _install(home: Path, version: str) -> None:
    """The program alone, out of the wheel; the one on the PATH where there is one."""
    if found := shutil.which("vllm-rs"):
        (home / "vllm-rs").symlink_to(found)
    else:
        from_wheel(home, "vllm", version, lambda name: name == "vllm/vllm-rs")


def _command(job: Job) -> list[str]:
    words = {
        "backend": "openai-chat",
        "base-url": job.url,
        "endpoint": "/v1/chat/completions",
        "model": "sim",
        "tokenizer": tokenizer(job),
        "dataset-name": "custom",
        "dataset-path": prompts(job),
        "custom-output-len": job.tokens,
        "num-prompts": job.requests,
        "max-concurrency": job.streams,
        "percentile-metrics": "ttft,itl",
        "metric-percentiles": "50,99",
        "result-dir": job.folder,
        "result-filename": "told.json",
    }
    return [str(job.home / "vllm-rs"), "bench", "serve", *options(words), "--save-result", "--disable-tqdm"]


def _read(job: Job, _: str) -> Told:
    told = json.loads((job.folder / "told.json").read_text(encoding="utf-8"))
    ttft, itl = ((told[f"p50_{name}_ms"], told[f"p99_{name}_ms"]) for name in ("ttft", "itl"))
    return Told(told["completed"], told["failed"], told["total_output_tokens"], ttft, itl)


def _refuse(_home: Path, _version: str) -> None:
    raise BenchError("`import vllm` imports torch, some gigabytes that are not fetched here")


PEER = Peer(
    "vllm-rs bench serve",
    "0.33.0",
    _install,
    _command,
    _read,
    "without usage it counts events, the one of the role and the last one, too",
)
PYTHON = Peer("vllm bench serve (Python)", "0.33.0", _refuse, _command, _read)
