"""`tokenswarm run PROFILE`: master and workers on this machine, verdict, results folder."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tokenswarm.errors import ExitCode
from tokenswarm.profile import options
from tokenswarm.profile.bundled import configs


def make_parser(command: str, about: str | None = None) -> argparse.ArgumentParser:
    """The options of `tokenswarm run`, which `tokenswarm search` shares."""
    parser = options.parser_of(command)
    parser.description = about
    parser.add_argument(
        "profile",
        nargs="?",
        help="the profile: a YAML file, or a bundled name (tokenswarm profiles); without one the options say it all",
    )
    parser.add_argument("--host", metavar="URL", help="the target; wins over the profile's")
    parser.add_argument("--workers", metavar="N", help="worker processes on this machine")
    parser.add_argument("--expect-workers", metavar="N", type=int, help="wait for N remote workers, start none here")
    parser.add_argument("--bind", metavar="HOST:PORT", help="where remote workers find the master")
    parser.add_argument("--started-by", help=argparse.SUPPRESS)  # the command that runs this one, for the manifest
    options.add_arguments(parser, locust=False)
    options.add_forms(parser)
    return parser


def main(words: list[str]) -> int:
    """Run a profile; raises UserError before any load."""
    parser = make_parser("run")
    options.refuse_secrets(words)
    return start(vars(parser.parse_args(words)))


def start(given: dict[str, Any]) -> int:
    """Run what the parsed options ask for."""
    if given["profile"] is None and given["dataset"] is None and not any("dataset" in pair for pair in given["set"]):
        given["dataset"] = str(configs() / "samples" / "sharegpt.json")
        print(f"tokenswarm: no data set was given: the bundled samples are sent, {given['dataset']}", file=sys.stderr)
    options.read_profile(given["profile"], given, options.of_run(given))  # a mistake is told at once
    try:
        from tokenswarm.cluster.master import run_profile  # after the words: gevent and Locust take half a second

        return run_profile(given)
    except KeyboardInterrupt:
        print("tokenswarm: interrupted before the load began: none was sent", file=sys.stderr, flush=True)
        return int(ExitCode.INTERRUPTED)
