"""The command line: one verb, one function. Mistakes of the user are one sentence and an exit code, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenswarm import __version__
from tokenswarm.errors import ConfigError, ExitCode, UserError

USAGE = """\
usage: tokenswarm COMMAND [options]

  run PROFILE        replay a profile: master and workers on this machine, verdict, results folder
  worker             join the master of a run from another machine
  demo               a short sweep of the bundled conversations against the embedded engine
  observe [PROFILE]  the same or your own profile, with Prometheus and all exporters around it, without Docker
  simulate           the embedded engine: vLLM's and Ollama's wire formats, a batching model, the truth
  data fetch NAME    download sharegpt or alpaca (resumes, verifies)
  data info FILE     what a data set holds, what is kept, what is dropped and why
  kv CONFIG_JSON     KV-cache of a model: bytes a token, what fits, from its config.json
  report DIR         print the tables of a finished run again, and write its report.html again

tokenswarm COMMAND --help explains each; plain `locust -f locustfiles/chat.py` works, too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return ExitCode.OK if words else ExitCode.CONFIG
    if words[0] == "--version":
        print(f"tokenswarm {__version__}")
        return ExitCode.OK
    try:
        command = COMMANDS.get(words[0])
        if command is None:
            from tokenswarm.typed_yaml import suggestion

            raise ConfigError(f"there is no command `{words[0]}`{suggestion(words[0], list(COMMANDS))}")
        return int(command(words[1:]))
    except UserError as error:
        print(f"tokenswarm: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return int(ExitCode.OK)


def _run(words: list[str]) -> int:
    from tokenswarm.shell import options

    parser = options.parser_of("run")
    parser.add_argument("profile", help="the profile, a YAML file")
    parser.add_argument("--host", metavar="URL", help="the target; wins over the profile's")
    parser.add_argument("--workers", metavar="N", help="worker processes on this machine")
    parser.add_argument("--expect-workers", metavar="N", type=int, help="wait for N remote workers, start none here")
    parser.add_argument("--bind", metavar="HOST:PORT", help="where remote workers find the master")
    options.add_arguments(parser, locust=False)
    options.refuse_secrets(words)
    given = vars(parser.parse_args(words))
    from tokenswarm.shell.master import run_profile

    return run_profile(given)


def _worker(words: list[str]) -> int:
    from tokenswarm.shell import options

    parser = options.parser_of("worker")
    parser.add_argument("--master-host", required=True, metavar="HOST")
    parser.add_argument("--master-port", required=True, metavar="PORT", type=int)
    given = parser.parse_args(words)
    from tokenswarm.profile import run_token
    from tokenswarm.shell.launch import run_worker

    return run_worker(given.master_host, given.master_port, run_token())


def _simulate(words: list[str]) -> int:
    from tokenswarm.simulator import main as simulate

    return simulate(words)


def _data(words: list[str]) -> int:
    from tokenswarm.shell import data_command

    return data_command.main(words)


def _demo(words: list[str]) -> int:
    from tokenswarm.shell import demo

    return demo.main(words)


def _kv(words: list[str]) -> int:
    from tokenswarm.shell import kv_command

    return kv_command.main(words)


def _observe(words: list[str]) -> int:
    from tokenswarm.shell import observe

    return observe.main(words)


def _report(words: list[str]) -> int:
    from rich.console import Console

    from tokenswarm.reports import console as terminal
    from tokenswarm.reports.saved import read_summary, write_page
    from tokenswarm.shell import options

    parser = options.parser_of("report")
    parser.add_argument("folder", help="a results folder, for example results/latest")
    folder = Path(parser.parse_args(words).folder)
    summary = read_summary(folder)
    if folder.is_dir():
        write_page(folder, summary)
    Console().print(terminal.report(summary, str(folder)))
    return int(ExitCode.OK)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "worker": _worker,
    "demo": _demo,
    "observe": _observe,
    "simulate": _simulate,
    "data": _data,
    "kv": _kv,
    "report": _report,
}

if __name__ == "__main__":
    sys.exit(main())
