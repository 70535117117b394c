"""Which reader a process has: by what is built, and by TOKENSWARM_READER; where it is told; how it is built."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import msgspec
import pytest
from exchanges import BUILT

from tokenswarm.engines import Dialect
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.errors import ExitCode

REPO = Path(__file__).resolve().parent.parent


def version(cwd: Path = REPO, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenswarm.cli", "--version"]
    environ = {**os.environ, "PYTHONPATH": str(cwd), **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ, cwd=cwd)


def test_the_version_tells_it() -> None:
    assert version(TOKENSWARM_READER="").stdout.endswith(f"({'native' if BUILT else 'python'} reader)\n")
    assert version(TOKENSWARM_READER="python").stdout.endswith("(python reader)\n")


def test_a_reader_that_there_is_none_of() -> None:
    told = version(TOKENSWARM_READER="rust")
    assert (told.returncode, told.stdout) == (ExitCode.CONFIG, "")
    assert told.stderr == "tokenswarm: TOKENSWARM_READER is `rust`; it may be `native` or `python`\n"


def copied(folder: Path) -> Path:
    """What an install is built from."""
    for name in ("tokenswarm", "exporters", "configs", "locustfiles", ".ci"):
        command = ["cp", "-r", str(REPO / name), str(folder / name)]
        subprocess.run(command, check=True, timeout=60)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((REPO / name).read_bytes())
    for built in (folder / "tokenswarm").glob("*/*.so"):
        built.unlink()
    return folder


LIBRARIES = ("tokenswarm/client/_reader.abi3.so", "tokenswarm/measure/_counting.abi3.so")


@pytest.mark.parametrize(
    ("stale", "source"), [(LIBRARIES[0], "_reader.c"), (LIBRARIES[0], "_shape.h"), (LIBRARIES[1], "_counting.c")]
)
@pytest.mark.skipif(not BUILT, reason="no C compiler here, or another system")
def test_a_reader_older_than_its_source_is_not_used(tmp_path: Path, stale: str, source: str) -> None:
    """After a pull: it would speak another language than what stands above it."""
    copied(tmp_path)
    for library in LIBRARIES:
        (tmp_path / library).write_bytes((REPO / library).read_bytes())
    assert version(tmp_path, TOKENSWARM_READER="").stdout.endswith("(native reader)\n")
    newer = (tmp_path / stale).stat().st_mtime + 10
    os.utime((tmp_path / stale).with_name(source), (newer, newer))
    assert version(tmp_path, TOKENSWARM_READER="").stdout.endswith("(python reader)\n")
    assert "older than its source" in version(tmp_path, TOKENSWARM_READER="native").stderr


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.skipif(not BUILT, reason="no C compiler here, or another system")
def test_a_reader_that_was_built_for_another_system_is_not_used(tmp_path: Path, library: str) -> None:
    """A wheel from a machine with a newer C library, which no tag of it says, does not load."""
    copied(tmp_path)
    for name in LIBRARIES:
        data = (REPO / name).read_bytes()
        (tmp_path / name).write_bytes(data.replace(b"GLIBC_2.", b"GLIBC_9.") if name == library else data)
    assert version(tmp_path, TOKENSWARM_READER="").stdout.endswith("(python reader)\n")
    assert "for another system" in version(tmp_path, TOKENSWARM_READER="native").stderr
    counts = "from tokenswarm.measure import counting; print(counting.spread((3, 1, 2)))"
    command = [sys.executable, "-c", counts]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (told.stdout, told.stderr) == ("(6, 2, 3)\n", "")


def wheel(source: Path, **environ: str) -> tuple[zipfile.ZipFile, str]:
    """(the wheel, what the build said)."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(source / "out")]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=source, env={**os.environ, **environ}
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return zipfile.ZipFile(next((source / "out").iterdir())), told.stdout + told.stderr


def readers(built: zipfile.ZipFile) -> list[str]:
    return [name for name in built.namelist() if name.endswith(".so")]


@pytest.mark.skipif(not BUILT, reason="no C compiler here, or another system")
def test_a_wheel_holds_the_reader_and_fits_every_later_python(tmp_path: Path) -> None:
    built, said = wheel(copied(tmp_path))
    assert sorted(readers(built)) == sorted(LIBRARIES)
    assert "-cp311-abi3-linux_" in str(built.filename)
    assert "the reader in C is built" in said
    built.extractall(tmp_path / "installed")
    for library in readers(built):
        os.utime(tmp_path / "installed" / library, (0, 0))  # pip writes them first of all
    assert version(tmp_path / "installed", TOKENSWARM_READER="").stdout.endswith("(native reader)\n")


def test_without_a_compiler_the_install_goes_on_and_says_so_in_a_line(tmp_path: Path) -> None:
    """And what it installs works, with Python's reader."""
    built, said = wheel(copied(tmp_path), CC="no-such-compiler", PATH="/nowhere")
    assert readers(built) == []
    assert str(built.filename).endswith("-py3-none-any.whl")
    lines = [line for line in said.splitlines() if "reader" in line]
    assert len(lines) == 1
    assert lines[0].endswith(
        "tokenswarm: the reader in C is not built: there is no C compiler (no-such-compiler). Python's reads instead."
    )
    built.extractall(tmp_path / "installed")
    assert version(tmp_path / "installed", TOKENSWARM_READER="").stdout.endswith("(python reader)\n")
    told = version(tmp_path / "installed", TOKENSWARM_READER="native")
    assert (told.returncode, told.stderr.count("\n")) == (ExitCode.CONFIG, 1)
    assert "the reader in C is not there" in told.stderr


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_compiler_that_fails_is_told_of_in_its_own_words(tmp_path: Path, library: str) -> None:
    """All or nothing: no half of it stays behind."""
    source = copied(tmp_path)
    (source / library.replace(".abi3.so", ".c")).write_text("#error no good\n")
    built, said = wheel(source)
    assert readers(built) == []
    assert not list(source.glob("tokenswarm/*/_*.abi3*"))
    assert "the C compiler failed: " in said or "there is no C compiler" in said


def fields_of(kind: object) -> set[str]:
    """Names of all fields that a type holds, at any depth."""
    if typing.get_args(kind):
        return set().union(*(fields_of(inner) for inner in typing.get_args(kind)))
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return set()
    hints = typing.get_type_hints(kind)
    return set(hints) | set().union(*(fields_of(inner) for inner in hints.values()))


@pytest.mark.parametrize("dialect", [d for d in DIALECTS.values() if d.unread], ids=lambda dialect: dialect.name)
def test_what_a_dialect_says_it_does_not_read_its_decoder_does_not_know(dialect: Dialect) -> None:
    """Else an event could differ there and mean something else."""
    known = fields_of(importlib.import_module(dialect.decode.__module__)._decode.__self__.type)
    assert "error" in known
    assert known.isdisjoint(dialect.unread)
