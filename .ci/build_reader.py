"""Builds _reader.c: a hook of hatchling, and `python .ci/build_reader.py` for those who change the file.

Where there is no C compiler, or it fails, the install goes on without the reader in C and says so in one line; Python's
reader then takes its place. HATCH_BUILD_NO_HOOKS=true makes the pure wheel. What is built fits every CPython from 3.11
on (the stable ABI), so a wheel has the tag cp311-abi3.
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

CLIENT = Path(__file__).parent.parent / "tokenswarm" / "client"
SOURCE = CLIENT / "_reader.c"
BUILT = CLIENT / "_reader.abi3.so"
STRICT = ("-Wall", "-Wextra", "-Werror")


def command(output: Path, *more: str) -> list[str]:
    """What compiles the reader; CC and CFLAGS as everywhere."""
    words = [*shlex.split(os.environ.get("CC", "cc")), "-std=c11", "-O2", "-fPIC", "-shared", *more]
    words += [f"-I{sysconfig.get_paths()['include']}", *shlex.split(os.environ.get("CFLAGS", ""))]
    return [*words, str(SOURCE), "-o", str(output), "-lm"]


def build() -> str:
    """Compile it beside its source; returns why it could not be, or ""."""
    if not sys.platform.startswith("linux") or sys.implementation.name != "cpython":
        return "it is for Linux and CPython"
    fresh = BUILT.with_suffix(f".{os.getpid()}")
    try:
        done = subprocess.run(command(fresh), capture_output=True, text=True, check=False)
    except OSError as error:
        return f"there is no C compiler ({error.filename})"
    if done.returncode:
        fresh.unlink(missing_ok=True)
        return "the C compiler failed: " + (done.stderr.strip().splitlines() or ["without a word"])[0]
    fresh.rename(BUILT)
    return ""


class ReaderHook(BuildHookInterface):  # type: ignore[type-arg]  # generic over a configuration that it does not have
    """Puts the reader into the wheel, or beside its source for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        BUILT.unlink(missing_ok=True)  # rather none than one of another source
        if missing := build():
            self.app.display_warning(f"tokenswarm: the reader in C is not built: {missing}. Python's reads instead.")
            return
        self.app.display_info("tokenswarm: the reader in C is built")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if version != "editable":
            build_data["artifacts"].append(str(BUILT.relative_to(self.root)))


if __name__ == "__main__":
    sys.exit(build() or 0)
