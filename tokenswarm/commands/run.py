"""`tokenswarm run PROFILE`: master and workers on this machine, verdict, results folder."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from tokenswarm.cluster import entrance, parent, web_later
from tokenswarm.commands import group_options
from tokenswarm.errors import ConfigError, ExitCode, ResultsError
from tokenswarm.own_process import loading
from tokenswarm.profile import options
from tokenswarm.profile.bundled import configs

ROUNDS = "dataset.rounds=distinct"
CHOOSES = ("dataset", "dataset.path", "dataset.format")  # keys that say which data set; the others, what of it


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
    group_options.of_several_runs(parser)
    options.refuse_secrets(words)
    given = vars(parser.parse_args(words))
    if not group_options.several_wanted(given):
        return start(given)
    _data_set(given)
    from tokenswarm.commands import repeat  # what compares takes a while

    return repeat.main(given, words)


def _data_set(given: dict[str, Any]) -> None:
    """The bundled samples, where no profile and no option names a data set: few, so no two rounds are alike."""
    names = (pair.partition("=")[0].strip() for pair in given["set"])
    chosen = given.get("dataset_format") is not None or any(
        name in CHOOSES or name.startswith("dataset.synthetic") for name in names
    )
    if given["profile"] is None and given["dataset"] is None and not chosen:
        given["dataset"] = str(configs() / "samples" / "sharegpt.json")
        given["set"] = [ROUNDS, *given["set"]]
        print(f"tokenswarm: no data set was given: the bundled samples are sent, {given['dataset']}", file=sys.stderr)


def start(given: dict[str, Any]) -> int:
    """Run what the parsed options ask for."""
    if given["started_by"] is not None:  # a session of our own, whose starter may be killed
        parent.die_with_it(signal.SIGTERM)
        parent.share_with_it()
    _data_set(given)
    profile = options.read_profile(given["profile"], given, [*options.of_run(given), *given.get("bounds", ())])
    history = given.get("history")
    if history:
        from tokenswarm.commands import groups  # what compares takes a while

        groups.check_history(history)
    folders: list[Path] = []
    try:
        entrance.check(profile, given)
        searching = None
        if given.get("search"):
            from tokenswarm.cluster.stages import for_search

            searching, profile = entrance.searching_of(profile), for_search(profile)
        from tokenswarm.client.pool import check_descriptors  # after mistakes: gevent takes a while
        from tokenswarm.cluster.look import look

        if given["expect_workers"] is None:
            check_descriptors(profile.load.under_way, profile.workers)
        looked = look(profile)
        web_later.put_off()
        with loading():
            from tokenswarm.cluster.master import run_profile  # after the look: Locust takes a third of a second

        code = run_profile(looked, given, folders.append, searching)
    except KeyboardInterrupt:
        print("tokenswarm: interrupted before the load began: none was sent", file=sys.stderr, flush=True)
        return int(ExitCode.INTERRUPTED)
    if history and folders:
        try:
            groups.remember_run(history, folders[0])
        except ConfigError as error:  # the disk took no summary: no mistake in the command, which 15 would say
            raise ResultsError(f"{error}; {history} has no line of it") from None
    return code
