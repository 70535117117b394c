"""GuideLLM. It takes its prompts from torch's DataLoader, and nothing else from torch: ten lines stand in for it."""

from __future__ import annotations

import json
from pathlib import Path

from bench.loadgens.peer import Job, Peer, Told, pip, program, prompts, tokenizer

NEEDS = (
    "click culsans datasets ftfy httpcore httpx[http2] Jinja2 more-itertools numpy pydantic pydantic-settings PyYAML"
)
NEEDS += " typing_extensions uvloop websockets eval_type_backport Faker loguru msgpack protobuf rich sanic tabulate"
NEEDS += " transformers"
"""Its requirements but torch, which is some gigabytes, and what torch would have brought."""

TORCH = {
    "__init__": "import torch.utils.data\n\n\nclass Tensor: ...\n\n\nclass nn:\n    class Module: ...\n\n\n"
    "class Generator:\n    def manual_seed(self, seed):\n        return self\n",
    "utils/__init__": "",
    "utils/data/__init__": "def get_worker_info():\n    return None\n",
    "utils/data/dataset": "from typing import Generic, TypeVar\n\n\n"
    "class IterableDataset(Generic[TypeVar('T')]): ...\n",
    "utils/data/dataloader": "from typing import Generic, TypeVar\n\n\nclass DataLoader(Generic[TypeVar('T')]):\n"
    "    def __init__(self, dataset, collate_fn, **_):\n        self.dataset, self.collate_fn = dataset, collate_fn\n\n"
    "    def __iter__(self):\n        return (self.collate_fn([each]) for each in self.dataset)\n",
}


def _install(home: Path, version: str) -> None:
    pip(home, "install", "--no-compile", "--no-deps", f"guidellm=={version}")
    pip(home, "install", "--no-compile", *NEEDS.split())
    (packages,) = home.glob("venv/lib/python*/site-packages")
    for name, text in TORCH.items():
        at = packages / "torch" / f"{name}.py"
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text, encoding="utf-8")


def _command(job: Job) -> list[str]:
    return [
        *(str(program(job.home, "guidellm")), "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={job.url},model=sim,validate_backend=false,max_tokens={job.tokens}"),
        *("--profile", f"kind=concurrent,streams={job.streams}"),
        *("--constraint", f"kind=max_requests,count={job.requests}"),
        *("--tokenizer", f"kind=hf_auto,model={tokenizer(job)}"),
        *("--data", f"kind=json_file,path={prompts(job)}"),
        *("--output", f"kind=json,path={job.folder / 'told.json'}"),
    ]


def _read(job: Job, _: str) -> Told:
    (run,) = json.loads((job.folder / "told.json").read_text(encoding="utf-8"))["benchmarks"]
    metrics = run["metrics"]

    def both(name: str) -> tuple[float, float] | None:
        spread = metrics[name]["successful"]
        return (spread["percentiles"]["p50"], spread["percentiles"]["p99"]) if spread and spread["count"] else None

    count, tokens = metrics["request_totals"], metrics["output_token_count"]["successful"]
    ttft, itl = both("time_to_first_token_ms"), both("inter_token_latency_ms")
    return Told(count["successful"], count["errored"], int(tokens["total_sum"]) if tokens else 0, ttft, itl, True)


PEER = Peer(
    "guidellm",
    "0.8.1",
    _install,
    _command,
    _read,
    "one worker process; torch's DataLoader, which hands it the prompts, is a stand-in of ten lines",
)
