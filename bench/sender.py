"""The paced sender as a process: compiled when its source changed, started on a core, asked for its truth."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
SOURCES = ("paced_sender.c", "histogram.h", "token_events.h")
TIMEOUT_S = 10


class BenchError(Exception):
    """Something that the reader of the sentence can put right."""


class Pace(NamedTuple):
    """What the sender sends: 50 tokens/s after 0.1 s, as a busy vLLM does, unless said otherwise."""

    ttft_ms: float = 100.0
    itl_ms: float = 20.0
    tokens: int = 128
    jitter: float = 0.2
    seed: int = 1
    merge: float = 0.0

    @property
    def stream_s(self) -> float:
        return (self.ttft_ms + self.itl_ms * (self.tokens - 1)) / 1000

    def arguments(self) -> list[str]:
        return [word for name, value in self._asdict().items() for word in (f"--{name.replace('_', '-')}", str(value))]


class Sender(NamedTuple):
    port: int
    pid: int

    def reset(self) -> None:
        self._get("reset")

    def truth(self) -> dict[str, Any]:
        """What was sent since the last reset, times in ns."""
        return self._get("truth")

    def _get(self, what: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{what}", timeout=TIMEOUT_S) as answer:
            truth: dict[str, Any] = json.load(answer)
            return truth


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build() -> Path:
    """Compile the sender into bench/.build, once for each version of its source."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
    program = HERE / ".build" / f"paced_sender-{digest}"
    if program.exists():
        return program
    cc = compiler()
    if cc is None:
        raise BenchError("the paced sender is a C program: install a C compiler (cc)")
    program.parent.mkdir(exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    command = [cc, "-O2", "-Wall", "-Wextra", "-o", str(fresh), str(HERE / SOURCES[0]), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the paced sender (Linux 5.11 and glibc 2.35, or newer) does not compile:\n{done.stderr}")
    fresh.rename(program)
    return program


@contextmanager
def started(pace: Pace, core: int | None = None) -> Iterator[Sender]:
    """A running sender on a free port, pinned to `core`; ended at the end of the block."""
    process = subprocess.Popen([build(), *pace.arguments()], stdout=subprocess.PIPE, text=True)
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise BenchError("the paced sender did not start")
        yield Sender(int(port), process.pid)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()
