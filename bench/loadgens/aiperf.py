"""AIPerf. Its inter-chunk latency is a gap between two events; its inter-token latency is a mean of a request."""

from __future__ import annotations

import json

from bench.loadgens.peer import Job, Peer, Told, install_pip, options, program, tokenizer


def _command(job: Job) -> list[str]:
    words = {
        "model": "sim",
        "url": job.url,
        "endpoint-type": "chat",
        "concurrency": job.streams,
        "request-count": job.requests,
        "tokenizer": tokenizer(job),
        "synthetic-input-tokens-mean": 8,
        "output-tokens-mean": job.tokens,
        "output-artifact-dir": job.folder / "told",
        "ui": "none",
    }
    return [
        *("env", "-u", "HF_HUB_OFFLINE"),  # offline it looks for a tokenizer in the hub's cache alone, a folder or not
        str(program(job.home, "aiperf")),
        "profile",
        *options(words),
        "--streaming",
    ]


def _read(job: Job, _: str) -> Told:
    told = json.loads((job.folder / "told" / "profile_export_aiperf.json").read_text(encoding="utf-8"))

    def both(name: str) -> tuple[float, float] | None:
        return (told[name]["p50"], told[name]["p99"]) if told.get(name) else None

    def total(name: str) -> int:
        return int((told.get(name) or {"avg": 0})["avg"])

    return Told(
        total("request_count"),
        total("error_request_count"),
        total("total_output_tokens"),
        both("time_to_first_token"),
        both("inter_chunk_latency"),
    )


PEER = Peer(
    "aiperf",
    "0.13.0",
    install_pip("aiperf"),
    _command,
    _read,
    "it is several processes, made for several cores, and has one here",
)
