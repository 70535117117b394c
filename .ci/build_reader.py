"""Builds the files in C: a hook of hatchling, and `python .ci/build_reader.py` for those who change one.

Where there is no C compiler, or it fails, the install goes on without the reader in C and says so in one line; Python's
reader then takes its place, and counts. HATCH_BUILD_NO_HOOKS=true makes the pure wheel. What is built fits every
CPython from 3.11 on (the stable ABI), so a wheel has the tag cp311-abi3.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path(__file__).parent.parent / "tokenswarm"
SOURCES = (PACKAGE / "client" / "_reader.c", PACKAGE / "measure" / "_counting.c")
BUILT = {source: source.with_suffix(".abi3.so") for source in SOURCES}
STRICT = ("-Wall", "-Wextra", "-Werror")


def command(source: Path, output: Path, *more: str) -> list[str]:
    """What compiles one of SOURCES; CC and CFLAGS as everywhere."""
    words = [*shlex.split(os.environ.get("CC", "cc")), "-std=c11", "-O2", "-fPIC", "-shared", *more]
    words += [f"-I{sysconfig.get_paths()['include']}", *shlex.split(os.environ.get("CFLAGS", ""))]
    return [*words, str(source), "-o", str(output), "-lm"]


def build() -> str:
    """Compile all beside their sources, or none; returns why they could not be, or ""."""
    for library in BUILT.values():
        library.unlink(missing_ok=True)  # rather none than one of another source
    if not sys.platform.startswith("linux") or sys.implementation.name != "cpython":
        return "it is for Linux and CPython"
    fresh = {source: library.with_suffix(f".{os.getpid()}") for source, library in BUILT.items()}
    try:
        for source, output in fresh.items():
            done = subprocess.run(command(source, output), capture_output=True, text=True, check=False)
            if done.returncode:
                return "the C compiler failed: " + (done.stderr.strip().splitlines() or ["without a word"])[0]
        for source, output in fresh.items():
            output.rename(BUILT[source])
    except OSError as error:
        return f"there is no C compiler ({error.filename})"
    finally:
        for output in fresh.values():
            output.unlink(missing_ok=True)
    return ""


class ReaderHook(BuildHookInterface):  # type: ignore[type-arg]  # generic over a configuration that it does not have
    """Puts what is built into the wheel, or leaves it beside its source for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        if missing := build():
            self.app.display_warning(f"tokenswarm: the reader in C is not built: {missing}. Python's reads instead.")
            return
        self.app.display_info("tokenswarm: the reader in C is built")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if version != "editable":
            build_data["artifacts"] += [str(library.relative_to(self.root)) for library in BUILT.values()]


if __name__ == "__main__":
    sys.exit(build() or 0)
