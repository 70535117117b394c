"""genai-bench. It connects for each request, inside TTFT, and has a mean of each request (TPOT), but no gaps."""

from __future__ import annotations

import json

from bench.loadgens.peer import Job, Peer, Told, install_pip, options, program, tokenizer


def _command(job: Job) -> list[str]:
    words = {
        "api-backend": "vllm",
        "api-base": job.url,
        "api-key": "none",
        "task": "text-to-text",
        "api-model-name": "sim",
        "model": "sim",
        "model-tokenizer": tokenizer(job),
        "num-concurrency": job.streams,
        "traffic-scenario": f"D(8,{job.tokens})",
        "max-time-per-run": 1,  # minutes
        "max-requests-per-run": job.requests,
        "metrics-refresh-interval": 1,
        "experiment-base-dir": job.folder,
        "experiment-folder-name": "told",
        "log-dir": job.folder,
    }
    return [str(program(job.home, "genai-bench")), "benchmark", *options(words)]


def _read(job: Job, _: str) -> Told:
    (found,) = (job.folder / "told").glob("D*.json")
    told = json.loads(found.read_text(encoding="utf-8"))["aggregated_metrics"]

    def both(name: str) -> tuple[float, float] | None:
        spread = told["stats"][name]
        return (spread["p50"] * 1000, spread["p99"] * 1000) if spread["p50"] is not None else None

    ok = told["num_completed_requests"]
    tokens = round(told["stats"]["num_output_tokens"]["sum"] or 0) if ok else 0
    return Told(ok, told["num_error_requests"], tokens, both("ttft"), both("tpot"), True)


PEER = Peer(
    "genai-bench",
    "0.0.5",
    install_pip("genai-bench"),
    _command,
    _read,
    "it sends more than it is asked for; it draws plots in the end, inside its CPU",
)
