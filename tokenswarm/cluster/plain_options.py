"""Locust's own options, where Locust itself would be silent about a mistake, or end in a traceback, before the load or
behind it. What it tells well enough (a run time that is none, a user class that there is not) is left to it.
"""

from __future__ import annotations

import argparse
import functools
import logging
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from locust.env import Environment

from tokenswarm.cluster.entrance import say
from tokenswarm.errors import ConfigError, ResultsError, UserError
from tokenswarm.profile import bundled, options

WRITTEN = {
    "csv_prefix": ("_stats.csv", "_stats_history.csv", "_failures.csv", "_exceptions.csv"),
    "html_file": ("",),
    "json_file": (".json",),
    "logfile": ("",),
}
"""What Locust writes, by the option's place: what it puts behind the name that is given."""


def watch_files(parser: argparse.ArgumentParser, refuse: Callable[[UserError], object]) -> None:
    """From now on each of those files is tried as the command line is read: Locust opens some before it tells anybody
    that it is there, and others behind the load.
    """
    for action in parser._actions:  # argparse has no other way to an option
        if action.dest in WRITTEN:
            action.type = functools.partial(_tried, "/".join(action.option_strings), WRITTEN[action.dest], refuse)


def _tried(option: str, ends: Iterable[str], refuse: Callable[[UserError], object], name: str) -> str:
    try:
        for end in ends:
            _try(Path(f"{name}{end}"))
    except (OSError, ValueError) as error:  # the latter: a name that none can be
        why = getattr(error, "strerror", None) or error
        refuse(ResultsError(f"{option} {name}: can't be written: {why}; name a file in a folder that takes it"))
    return name


def _try(path: Path) -> None:
    """Whether it can be written; what is there already is kept. A pipe or a terminal is not tried: it might wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.exists()
    if there and not path.is_file() and not path.is_dir():
        return
    with path.open("a"):
        pass
    if not there:
        path.unlink()


def say_run_time(seconds: float | None, record: logging.LogRecord) -> bool:
    """A filter of Locust's log, which does not know that there is a limit: it is ours."""
    if seconds and str(record.msg).startswith("No run time limit set"):
        record.msg = f"Run time limit set to {seconds:g} seconds, then open streams are drained"
    return True


def refuse_mistakes(environment: Environment, words: list[str]) -> None:
    """Everything that can be seen once the options are read. Raises ConfigError."""
    options.refuse_secrets(words)
    options.refuse_empty(vars(environment.parsed_options))
    for refuse in (refuse_tls, refuse_idle, refuse_other_words):
        refuse(environment)


def refuse_other_words(environment: Environment) -> None:
    """Raise ConfigError for an option of Locust's that means something else in ours; say what has no effect."""
    given = environment.parsed_options
    if given.profile and (given.profile in bundled.named("profile") or Path(given.profile).is_file()):
        raise ConfigError(
            f"--profile {given.profile}: that is a label for Locust's own pages; --run-profile {given.profile} is what "
            "starts from a profile"
        )
    if given.exit_code_on_error != 1:
        say("--exit-code-on-error has no effect: the exit code is the verdict's and the gates'")


def refuse_tls(environment: Environment) -> None:
    """Raise ConfigError where the web UI can't speak TLS as it is told to: Locust would end each connection with a
    traceback; or, with one file of the two, speak plain HTTP.
    """
    given = environment.parsed_options
    files = {"--tls-cert": given.tls_cert, "--tls-key": given.tls_key}
    if environment.web_ui is None or not any(files.values()):
        return
    for option, name in files.items():
        if not name:
            raise ConfigError(f"{' and '.join(files)} belong together: without {option} the web UI would be plain HTTP")
        try:
            Path(name).read_bytes()
        except (OSError, ValueError) as error:  # the latter: a name that none can be
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{option} {name}: can't be read: {why}; name a file in PEM") from None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(given.tls_cert, given.tls_key, password="")  # else it would be asked for
    except (OSError, ValueError) as error:
        said = " with ".join(f"{option} {name}" for option, name in files.items())
        raise ConfigError(
            f"{said}: no certificate and its key without a password, both in PEM ({error.args[-1]})"
        ) from None


def refuse_idle(environment: Environment) -> None:
    """Raise ConfigError where --tags and --exclude-tags leave a user class without a task: its users would send
    nothing, and say so in a traceback a second.
    """
    given = vars(environment.parsed_options)
    tags, without = (set(given.get(name) or ()) for name in ("tags", "exclude_tags"))
    for user in environment.user_classes if tags or without else ():
        if not any(_stays(task, tags, without) for task in user.tasks):
            own = sorted(set().union(*(_tags_of(task) for task in user.tasks)))
            said = " and ".join(
                f"--{option} {' '.join(sorted(asked))}"
                for option, asked in (("tags", tags), ("exclude-tags", without))
                if asked
            )
            raise ConfigError(
                f"{said}: no task of {user.__name__} is left, so its users would send nothing; "
                f"{'its tags are ' + ', '.join(own) if own else 'it has no tags, leave the option out'}"
            )


def _stays(task: Any, tags: set[str], without: set[str]) -> bool:
    """As Locust filters them."""
    if hasattr(task, "tasks"):
        return any(_stays(inner, tags, without) for inner in task.tasks)
    own = _tags_of(task)
    return (not tags or bool(own & tags)) and not own & without


def _tags_of(task: Any) -> set[str]:
    if hasattr(task, "tasks"):
        return set().union(*(_tags_of(inner) for inner in task.tasks))
    return set(getattr(task, "locust_tag_set", ()))


def refuse_several(environment: Environment) -> None:
    """Raise ConfigError where user classes replay different things: a run has one workload, and would take the first's
    for all of them. A profile says itself what is replayed.
    """
    found: dict[tuple[Any, ...], str] = {}
    for user in () if environment.parsed_options.run_profile else environment.user_classes:
        asked = tuple(getattr(user, name, None) for name in ("api", "conversations", "rate"))
        if asked[0] is not None:  # a user class of another kind sends what it likes
            found.setdefault(asked, user.__name__)
    if len(found) > 1:
        names = sorted(found.values())
        raise ConfigError(
            f"{' and '.join(names)} are different workloads, and a run has one: name it behind the options, "
            f"as in `locust … {names[0]}`, or give one file to -f"
        )
