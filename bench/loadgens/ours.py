"""A worker's client of ours, as one peer of others."""

from __future__ import annotations

import json
import sys

from bench.loadgens.peer import Job, Peer, Told, options
from tokenswarm import __version__


def _command(job: Job) -> list[str]:
    words = {
        "port": job.url.rpartition(":")[2],
        "streams": job.streams,
        "tokens": job.tokens,
        "seconds": 0,
        "requests": job.requests // job.streams,
        "stream-s": 0.001,  # all begin at once, as the others do
    }
    return [sys.executable, "-m", "bench.clients.tokenswarm_client", *options(words)]


def _read(_: Job, said: str) -> Told:
    told = json.loads(said.splitlines()[-1])
    ttft, itl = ((told[f"{n}_ns"]["p50"] / 1e6, told[f"{n}_ns"]["p99"] / 1e6) if told[f"{n}_ns"] else None
                 for n in ("ttft", "itl"))  # fmt: skip
    return Told(told["requests"] - told["errors"], told["errors"], told["output_tokens"], ttft, itl)


PEER = Peer("tokenswarm (a worker's client)", __version__, lambda _home, _version: None, _command, _read)
