"""EvalScope's `perf`. Its percentiles are nearest ranks."""

from __future__ import annotations

import json

from bench.loadgens.peer import Job, Peer, Told, install_pip, options, program, tokenizer


def _command(job: Job) -> list[str]:
    lines = job.folder / "prompts.txt"
    lines.write_text("".join(f"w{n} hello\n" for n in range(job.requests)), encoding="utf-8")
    words = {
        "model": "sim",
        "api": "openai",
        "url": f"{job.url}/v1/chat/completions",
        "parallel": job.streams,
        "number": job.requests,
        "dataset": "line_by_line",
        "dataset-path": lines,
        "max-tokens": job.tokens,
        "tokenizer-path": tokenizer(job),  # counts where a server says no usage; without one it ends there
        "outputs-dir": job.folder,
    }
    flags = ("--no-test-connection", "--stream", "--no-timestamp")
    return [str(program(job.home, "evalscope")), "perf", *options(words), *flags]


def _read(job: Job, _: str) -> Told:
    (found,) = job.folder.glob("sim/*/benchmark_summary.json")
    told = json.loads(found.read_text(encoding="utf-8"))
    ok, failed = told["Success Requests"], told["Failed Requests"]
    if not ok:
        return Told(ok, failed, 0)
    rows = json.loads(found.with_name("benchmark_percentile.json").read_text(encoding="utf-8"))
    by = {row["Percentiles"]: row for row in rows}
    ttft, itl = ((by["50%"][name], by["99%"][name]) for name in ("TTFT (ms)", "ITL (ms)"))
    return Told(ok, failed, round(told["Avg Output Tokens"] * ok), ttft, itl)


PEER = Peer("evalscope perf", "1.14.1", install_pip("evalscope[perf]"), _command, _read)
