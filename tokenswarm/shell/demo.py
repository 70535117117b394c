"""`make demo`: the embedded engine and a short concurrency sweep against it, with the bundled conversations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tokenswarm.errors import ConfigError, TargetError

BUNDLED = Path(__file__).resolve().parent.parent
START_S = 20.0
STOP_S = 5.0


def configs() -> Path:
    """The folder of bundled profiles and samples: in the installed package, or beside it in a checkout."""
    for folder in (BUNDLED / "configs", BUNDLED.parent / "configs"):
        if (folder / "profiles").is_dir():
            return folder
    raise ConfigError("the bundled profiles are missing; reinstall tokenswarm")


class Simulator:
    """The embedded engine as a process of its own on a free port; `with Simulator(...) as url`."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> str:
        command = [sys.executable, "-m", "tokenswarm.simulator", "--port", "0", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # "simulating MODEL on http://…", or nothing where it failed
        if " on http" not in line:
            self.__exit__()
            raise TargetError("the embedded engine did not start; its own message stands above")
        return line.rsplit(" ", 1)[1].strip()

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main(words: list[str]) -> int:
    """Run the demo; further words are options of `tokenswarm run`. Raises UserError."""
    from tokenswarm import cli

    folder = configs()
    profile = str(folder / "profiles" / "demo.yaml")
    dataset = str(folder / "samples" / "sharegpt.json")
    with Simulator("--preset", "small-gpu") as url:
        return cli.main(["run", profile, "--host", url, "--dataset", dataset, *words])
