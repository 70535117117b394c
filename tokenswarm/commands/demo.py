"""`tokenswarm demo`: the embedded engine, the exporters, and a short concurrency sweep over bundled conversations."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from tokenswarm.commands import run
from tokenswarm.commands.services import Service
from tokenswarm.errors import ExitCode
from tokenswarm.profile.bundled import configs

HELP = """\
usage: tokenswarm demo [options of tokenswarm run]

Starts the embedded engine and two exporters on free ports of this machine, runs the bundled profile demo.yaml against
them (a sweep of less than a minute), prints the verdict, and ends them again. The results lie under results/. It takes
no profile and no host: those are given to `tokenswarm run`.

for example:
  tokenswarm demo --set load.stages.0.users=4 --max-tokens 32

`tokenswarm run --help` lists the options, their defaults, and the exit codes, which are those of `tokenswarm run`.
"""


def main(words: list[str]) -> int:
    """Run the demo; further words are options of `tokenswarm run`. Raises UserError."""
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    with (
        Service("tokenswarm.simulator", "--port", "0", "--preset", "small-gpu") as engine,
        Service("exporters.load", "--listen", "127.0.0.1:0") as load,
        Service("exporters.gpu", "--listen", "127.0.0.1:0") as gpu,
    ):
        print(f"embedded engine {engine} · live metrics {load}/metrics and {gpu}/metrics", flush=True)
        options = ["--host", engine, "--push", load]
        code = run.main([str(configs() / "profiles" / "demo.yaml"), *options, *words])
    if code == ExitCode.OK and not {"--json", "--csv", "--quiet"} & set(words):
        print(f"\n next, with your server's address:  {own_name()} run smoke --host http://127.0.0.1:8000")
    return code


def own_name() -> str:
    """This program as it has to be typed here: by name where the shell finds it, else by its path."""
    program = Path(sys.executable).parent / "tokenswarm"
    found = shutil.which("tokenswarm")
    if found is not None and Path(found).resolve() == program.resolve():
        return "tokenswarm"
    here = Path.cwd()
    return shlex.quote(str(program.relative_to(here) if program.is_relative_to(here) else program))
