"""`make bench-peers`: other load generators against a sender that knows the truth, and on wrong streams: PEERS.md.

Each peer has one row in PEERS: its pinned version, how it is installed (into a folder of its own below --cache; nothing
else is touched), the command that runs it, and how its result is read. One that can't be installed or run here
stands in the page with the reason. Each client runs on one core, the sender on another, in waves that begin at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench.results import machine, table
from bench.runs import REPO, Cores, two_cores
from bench.sender import BenchError, Pace, build, started
from tokenswarm import __version__, descriptors

PAGE = Path(__file__).parent / "PEERS.md"
CACHE = Path.home() / ".cache" / "tokenswarm" / "peers"
STREAMS = (100, 400)
WAVES = 3
TOKENS = 132
PACE = Pace(tokens=TOKENS)
INSTALL_S, RUN_S = 1800, 180
LATE_MS = 1.0
WRONG = {
    "error object after 5 tokens": "error_mid:1:5",
    "clean end after 5 tokens": "truncate:1:5",
    "connection closed after 5 tokens": "killed:1:5",
    "no content at all": "empty:1",
    "503": "http_503:1",
}
"""What a stream may be, in words and as the simulator's fault. Right is: no answer counts as a success."""
REQUESTS_WRONG = 8


TOKENIZER = {
    "version": "1.0",
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "</s>": 1, "hello": 2}, "unk_token": "[UNK]"},
}
"""One of three words: some refuse to begin without, and what it counts is not looked at."""


class Job(NamedTuple):
    home: Path  # where the peer is installed
    folder: Path  # for what it writes; empty
    url: str
    streams: int
    requests: int


class Told(NamedTuple):
    """What a peer's own report says."""

    ok: int
    failed: int
    tokens: int
    ttft_ms: tuple[float, float] | None = None  # p50, p99
    itl_ms: tuple[float, float] | None = None


class Peer(NamedTuple):
    name: str
    version: str
    install: Callable[[Path, str], None]
    command: Callable[[Job], list[str]]
    read: Callable[[Job, str], Told]


# -- the peers -----------------------------------------------------------------------------------------------------


def pip(home: Path, *words: str) -> None:
    python = home / "venv" / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(home / "venv")], INSTALL_S)
    _run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *words], INSTALL_S)


def install_vllm_rs(home: Path, version: str) -> None:
    """The program alone, out of the wheel; the one on the PATH where there is one."""
    program = home / "vllm-rs"
    if found := shutil.which("vllm-rs"):
        program.symlink_to(found)
        return
    pip(home, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(home), f"vllm=={version}")
    (wheel,) = home.glob("vllm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        program.write_bytes(archive.read("vllm/vllm-rs"))
    program.chmod(0o755)
    wheel.unlink()


def run_vllm_rs(job: Job) -> list[str]:
    prompts = "".join(json.dumps({"prompt": f"w{n} hello"}) + "\n" for n in range(job.requests))
    (job.folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    words = {
        "backend": "openai-chat",
        "base-url": job.url,
        "endpoint": "/v1/chat/completions",
        "model": "sim",
        "tokenizer": tokenizer(job.folder),
        "dataset-name": "custom",
        "dataset-path": job.folder / "prompts.jsonl",
        "custom-output-len": TOKENS,
        "num-prompts": job.requests,
        "max-concurrency": job.streams,
        "percentile-metrics": "ttft,itl",
        "metric-percentiles": "50,99",
        "result-dir": job.folder,
        "result-filename": "told.json",
    }
    options = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    return [str(job.home / "vllm-rs"), "bench", "serve", *options, "--save-result", "--disable-tqdm"]


def read_vllm_rs(job: Job, _: str) -> Told:
    told = json.loads((job.folder / "told.json").read_text(encoding="utf-8"))
    ttft, itl = ((told.get(f"p50_{name}_ms"), told.get(f"p99_{name}_ms")) for name in ("ttft", "itl"))
    return Told(told["completed"], told["failed"], told["total_output_tokens"], ttft, itl)


def install_pip(package: str) -> Callable[[Path, str], None]:
    return lambda home, version: pip(home, "install", f"{package}=={version}")


def run_aiperf(job: Job) -> list[str]:
    words = {
        "model": "sim",
        "url": job.url,
        "endpoint-type": "chat",
        "concurrency": job.streams,
        "request-count": job.requests,
        "tokenizer": tokenizer(job.folder),
        "synthetic-input-tokens-mean": 8,
        "output-tokens-mean": TOKENS,
        "output-artifact-dir": job.folder / "told",
        "ui": "none",
    }
    options = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    return [str(job.home / "venv" / "bin" / "aiperf"), "profile", *options, "--streaming", "--use-server-token-count"]


def read_aiperf(job: Job, _: str) -> Told:
    told = json.loads((job.folder / "told" / "profile_export_aiperf.json").read_text(encoding="utf-8"))

    def of(name: str) -> tuple[float, float] | None:
        return (told[name]["p50"], told[name]["p99"]) if told.get(name) else None

    ok = int((told.get("request_count") or {"avg": 0})["avg"])
    tokens = int((told.get("total_output_tokens") or {"avg": 0})["avg"])
    failed = int((told.get("error_request_count") or {"avg": 0})["avg"])
    return Told(ok, failed, tokens, of("time_to_first_token"), of("inter_token_latency"))


def run_ours(job: Job) -> list[str]:
    words = {
        "port": job.url.rpartition(":")[2],
        "streams": job.streams,
        "tokens": TOKENS,
        "seconds": (WAVES - 0.5) * PACE.stream_s if job.requests > job.streams else 0,
        "stream-s": 0.001,  # all begin at once, as the others do
    }
    options = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "bench.clients.tokenswarm_client", *options]


def read_ours(_: Job, said: str) -> Told:
    told = json.loads(said.splitlines()[-1])
    ttft, itl = ((told[f"{n}_ns"]["p50"] / 1e6, told[f"{n}_ns"]["p99"] / 1e6) if told[f"{n}_ns"] else None
                 for n in ("ttft", "itl"))  # fmt: skip
    return Told(told["requests"] - told["errors"], told["errors"], told["events"], ttft, itl)


PEERS = (
    Peer("vllm-rs bench serve", "0.33.0", install_vllm_rs, run_vllm_rs, read_vllm_rs),
    Peer("aiperf", "0.13.0", install_pip("aiperf"), run_aiperf, read_aiperf),
)
OURS = Peer("tokenswarm (a worker's client)", __version__, lambda _home, _version: None, run_ours, read_ours)


def tokenizer(folder: Path) -> Path:
    at = folder / "tokenizer"
    at.mkdir()
    (at / "tokenizer.json").write_text(json.dumps(TOKENIZER), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "eos_token": "</s>"}
    (at / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return at


def _run(command: list[str], timeout_s: float, core: int | None = None) -> str:
    """What it printed. Raises BenchError with the last thing that it said."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    place = ["taskset", "--cpu-list", str(core)] if core is not None else []
    try:
        done = subprocess.run(
            [*place, *command], capture_output=True, text=True, check=False, cwd=REPO, env=environ, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{Path(command[0]).name}: {type(error).__name__}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()
        raise BenchError(f"exit code {done.returncode}: {lines[-1][:160]}")
    return done.stdout


# -- what is tried -------------------------------------------------------------------------------------------------


def ask(peer: Peer, cache: Path, url: str, streams: int, requests: int, core: int) -> Told:
    """One run of a peer. Raises BenchError."""
    folder = cache / "told"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = Job(home_of(peer, cache), folder, url, streams, requests)
    said = _run(peer.command(job), RUN_S, core)
    try:
        return peer.read(job, said)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise BenchError(f"its result can't be read: {type(error).__name__} {str(error)[:80]}") from None


def home_of(peer: Peer, cache: Path) -> Path:
    return cache / f"{peer.name.split()[0]}-{peer.version}"


def installed(peer: Peer, cache: Path) -> None:
    """Install it, once. Raises BenchError."""
    home = home_of(peer, cache)
    if (home / "ready").exists():
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    peer.install(home, peer.version)
    (home / "ready").touch()


@contextmanager
def simulator(fault: str, core: int) -> Iterator[str]:
    """The embedded engine with a fault in each answer; its URL."""
    words = ["taskset", "--cpu-list", str(core), sys.executable, "-m", "tokenswarm.cli", "simulate", "--port", "0"]
    process = subprocess.Popen([*words, "--preset", "instant", "--fault", fault], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().rpartition(" ")[2]
    finally:
        process.terminate()
        process.wait(10)


def truth(peer: Peer, cache: Path, streams: int, cores: Cores) -> list[str]:
    """A row: TTFT and ITL as it says − as sent, CPU of an event, start-up included."""
    with started(PACE, cores.sender) as sender:
        before = os.times()
        told = ask(peer, cache, f"http://127.0.0.1:{sender.port}", streams, WAVES * streams, cores.client)
        after, sent = os.times(), sender.truth()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    late_ms = sent["lateness_ns"]["p99"] / 1e6
    row = [peer.name, str(streams)]
    if late_ms > LATE_MS:
        return [*row, "not usable", "not usable", "not usable", f"{told.ok} of {sent['finished']}", f"{late_ms:.1f}"]
    for seen, name in ((told.ttft_ms, "ttft_ns"), (told.itl_ms, "itl_ns")):
        wide = [f"{value - sent[name][q] / 1e6:+.1f}" for value, q in zip(seen or (), ("p50", "p99"), strict=False)]
        row.append(" / ".join(wide) or "not told")
    row.append(f"{cpu_s / max(1, sent['tokens']) * 1e6:.0f}")
    return [*row, f"{told.ok} of {sent['finished']}", f"{late_ms:.1f}"]


def wrong(peer: Peer, cache: Path, cores: Cores) -> list[str]:
    """A row: what it makes of each wrong stream; F: no answer was a success."""
    row = [peer.name]
    for fault in WRONG.values():
        with simulator(fault, cores.sender) as url:
            try:
                told = ask(peer, cache, url, REQUESTS_WRONG, REQUESTS_WRONG, cores.client)
                row.append(f"**{told.ok} ok**, {told.tokens} tokens" if told.ok else "F")
            except BenchError as error:
                row.append(f"F ({str(error)[:40]})")
    return row


def page(tried: list[Peer], truths: list[list[str]], wrongs: list[list[str]], missing: list[str], took_s: float) -> str:
    """PEERS.md. `missing`: a sentence for each peer of `tried` that could not be run to its end."""
    about = [
        f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {took_s:.0f} s",
        f"machine: {machine()}",
        f"load average before the end: {', '.join(f'{load:.1f}' for load in os.getloadavg())}",
        "versions: " + ", ".join(f"{peer.name} {peer.version}" for peer in tried),
        f"streams: {TOKENS} tokens, first after 100 ms, a gap of 20 ms ± 20%; {WAVES} waves that begin at once",
    ]
    head = ["client", "streams", "TTFT off by, p50 / p99, ms", "ITL off by, p50 / p99, ms", "CPU an event, µs", "ok"]
    return "\n".join(
        [
            "# Other load generators beside this one\n",
            "Written by `make bench-peers`. Each client has one core, the sender another; what a client says, less",
            "what was sent. CPU is that of the whole process, its start included. Where the sender's own lateness is",
            f"above {LATE_MS:g} ms (p99), something took its core, and the row is not usable.\n",
            *(f"* {line}" for line in about),
            "\n## Truth\n",
            table([*head, "sender late, p99, ms"], truths),
            f"## Wrong streams, {REQUESTS_WRONG} requests each\n",
            table(["client", *WRONG], wrongs),
            *(["## Not run here\n", *(f"* {line}" for line in missing), ""] if missing else []),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where peers are installed")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="the first words of the peers' names; ours always")
    chosen = parser.parse_args()
    descriptors.raise_limit()
    cores, began_s = two_cores(), time.monotonic()
    build()
    tried = [
        peer for peer in (OURS, *PEERS) if peer is OURS or chosen.only is None or peer.name.split()[0] in chosen.only
    ]
    truths, wrongs, missing = [], [], []
    for peer in tried:
        try:
            installed(peer, chosen.cache)
            for streams in STREAMS:
                truths.append(truth(peer, chosen.cache, streams, cores))
                print(truths[-1], file=sys.stderr, flush=True)
            wrongs.append(wrong(peer, chosen.cache, cores))
            print(wrongs[-1], file=sys.stderr, flush=True)
        except BenchError as error:
            missing.append(f"{peer.name} {peer.version}: {error}")
            print(missing[-1], file=sys.stderr, flush=True)
    PAGE.write_text(page(tried, truths, wrongs, missing, time.monotonic() - began_s), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
