"""inference-perf. Where a server says no usage, and unless it is told to take it, its own tokenizer counts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from bench.loadgens.peer import Job, Peer, Told, pip, program, tokenizer
from bench.sender import BenchError


def _install(home: Path, version: str) -> None:
    newer = [sys.executable] if sys.version_info >= (3, 12) else []
    found = newer or [path for name in ("python3.12", "python3.13") if (path := _works(name))]
    if not found:
        raise BenchError("it needs Python 3.12 or newer, and there is none on the PATH")
    pip(home, "install", "--no-compile", f"inference-perf=={version}", python=found[0])


def _works(name: str) -> str | None:
    """The interpreter itself: what stands on the PATH may be a shim, which does not have to have one behind it."""
    for path in [shutil.which(name), *map(str, Path.home().glob(f".pyenv/versions/{name[6:]}*/bin/{name}"))]:
        if path and "/shims/" not in path:
            return path
    return None


def _command(job: Job) -> list[str]:
    shared = {
        "num_groups": 1,
        "num_prompts_per_group": job.requests,
        "system_prompt_len": 4,
        "question_len": 4,
        "output_len": job.tokens,
    }
    config = {
        "api": {"type": "chat", "streaming": True},
        "data": {"type": "shared_prefix", "shared_prefix": shared},
        "load": {
            "type": "concurrent",
            "num_workers": 1,
            "worker_max_concurrency": job.streams,
            "stages": [{"num_requests": job.requests, "concurrency_level": job.streams}],
        },
        "server": {"type": "vllm", "model_name": "sim", "base_url": job.url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(tokenizer(job))},
        "storage": {"local_storage": {"path": str(job.folder / "told")}},
        "report": {"request_lifecycle": {"summary": True, "per_stage": False, "per_request": False}},
    }
    at = job.folder / "config.yml"
    at.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return [str(program(job.home, "inference-perf")), "--config_file", str(at)]


def _read(job: Job, _: str) -> Told:
    told = json.loads((job.folder / "told" / "summary_lifecycle_metrics.json").read_text(encoding="utf-8"))
    good, failed = told["successes"], told["failures"]["count"]

    def both(name: str) -> tuple[float, float] | None:
        spread = good["latency"].get(name)
        return (spread["median"] * 1000, spread["p99"] * 1000) if spread else None

    tokens = good.get("output_len") or {"mean": 0}
    return Told(
        good["count"],
        failed,
        round(tokens["mean"] * good["count"]),
        both("time_to_first_token"),
        both("inter_token_latency"),
    )


PEER = Peer("inference-perf", "0.7.0", _install, _command, _read, "one worker process, as it has one core")
