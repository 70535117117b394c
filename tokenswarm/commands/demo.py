"""`tokenswarm demo`: the embedded engine, the exporters, and a short concurrency sweep over bundled conversations."""

from __future__ import annotations

from pathlib import Path

from tokenswarm.commands import run
from tokenswarm.commands.services import Service
from tokenswarm.errors import ConfigError

HELP = """\
usage: tokenswarm demo [options of tokenswarm run]

Starts the embedded engine and two exporters on free ports of this machine, runs the bundled profile demo.yaml against
them (a sweep of less than a minute), prints the verdict, and ends them again. The results lie under results/. It takes
no profile and no host: those are given to `tokenswarm run`.

for example:
  tokenswarm demo --set load.stages.0.users=4 --max-tokens 32

`tokenswarm run --help` lists the options.
"""

PACKAGE = Path(__file__).resolve().parent.parent


def configs() -> Path:
    """The folder of bundled profiles and samples: in the installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "profiles").is_dir():
            return folder
    raise ConfigError("the bundled profiles are missing; reinstall tokenswarm")


def main(words: list[str]) -> int:
    """Run the demo; further words are options of `tokenswarm run`. Raises UserError."""
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    folder = configs()
    dataset = str(folder / "samples" / "sharegpt.json")
    with (
        Service("tokenswarm.simulator", "--port", "0", "--preset", "small-gpu") as engine,
        Service("exporters.load", "--listen", "127.0.0.1:0") as load,
        Service("exporters.gpu", "--listen", "127.0.0.1:0") as gpu,
    ):
        print(f"embedded engine {engine} · live metrics {load}/metrics and {gpu}/metrics", flush=True)
        options = ["--host", engine, "--dataset", dataset, "--push", load]
        return run.main([str(folder / "profiles" / "demo.yaml"), *options, *words])
