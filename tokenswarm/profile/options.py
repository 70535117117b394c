"""Command-line options of plain `locust` and of `tokenswarm run` -> overrides of the profile. No default stands here.

An option that was not given leaves the profile's value alone, so a profile file and options combine in one way only:
file, then SLO file, then options, then --set.
"""

from __future__ import annotations

import argparse
import difflib
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
from yaml.nodes import Node

from tokenswarm.errors import ConfigError
from tokenswarm.profile import bundled, typed_yaml
from tokenswarm.profile import help as help_texts
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.dataset import FORMATS
from tokenswarm.profile.engine import APIS, KINDS
from tokenswarm.profile.load import ENDLESS_S, RATE_KINDS
from tokenswarm.profile.profile import Profile

OPTIONS: dict[str, tuple[str, str, str]] = {
    # option: (profile key, metavar, help)
    "--engine": ("engine.kind", "KIND", f"{' or '.join(KINDS)}: which API family the server speaks"),
    "--api": (
        "engine.api",
        "API",
        "; ".join(f"{kind}: {', '.join(row.api for row in APIS if row.kind == kind)}" for kind in KINDS),
    ),
    "--model": ("engine.model", "NAME", "model to ask for; needed where the server has several"),
    "--dataset": ("dataset.path", "FILE", "ShareGPT, Alpaca or JSONL file of prompts"),
    "--dataset-format": ("dataset.format", "FORMAT", f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"),
    "--conversations": ("dataset.conversations", "HOW", "single or multi: only first turns, or whole conversations"),
    "--max-tokens": (
        "dataset.output_tokens.fixed",
        "N",
        "ask for N output tokens each time, not the data set's length",
    ),
    "--ignore-eos": ("dataset.ignore_eos", "BOOL", "true or false: generate to the full length where the engine can"),
    "--arrivals": (
        "load.kind",
        "KIND",
        f"{', '.join(RATE_KINDS[:-1])} or {RATE_KINDS[-1]}: how --rate is spread (default: {RATE_KINDS[0]})",
    ),
    "--burstiness": ("load.burstiness", "SHAPE", "of gamma arrivals: 1 is Poisson, less comes in bursts"),
    "--max-in-flight": ("load.max_in_flight", "N", "requests under way at most; what is due beyond them is dropped"),
    "--requests": ("load.requests", "N", "end after so many requests, over all workers; without --duration only then"),
    "--trace": (
        "load.trace.path",
        "FILE",
        "arrivals and lengths of a real service (Azure, BurstGPT, Mooncake, Bailian, CSV)",
    ),
    "--time-scale": ("load.trace.time_scale", "X", "of the time between arrivals of --trace: 0.1 is ten times as fast"),
    "--warmup": ("phases.warmup", "TIME", "time before the first window is measured (part of --run-time in locust)"),
    "--drain": ("phases.drain", "TIME", "how long open streams may run on at the end"),
    "--push": ("telemetry.push", "URL", "load exporter that gets live snapshots"),
}

RATE = ("--rate", "R", "an open loop: so many requests a second, whatever the answers take; or a ramp, [5,80]")

STAGE_OPTIONS: dict[str, tuple[str, str]] = {
    # (metavar, help); plain locust has --users and --run-time of its own
    "--users": ("N", "a closed loop: so many users, each with one request at a time"),
    "--duration": ("TIME", "length of the measured window, with --rate or --users (30s)"),
}


def add_arguments(parser: Any, *, locust: bool) -> None:
    """Add the options to an argparse parser; with `locust`, not to the web UI's form, which can't check them.

    But for the rate: the form's number of users, which stands for it, is a whole number.
    """
    group = parser if locust else parser.add_argument_group("what to replay, and how it is measured")
    hidden: dict[str, Any] = {"include_in_web_ui": False} if locust else {}
    for option, (_, metavar, text) in OPTIONS.items():
        group.add_argument(option, metavar=metavar, help=text, default=None, **hidden)
    group.add_argument(RATE[0], metavar=RATE[1], help=RATE[2], default=None)
    for option, (metavar, text) in STAGE_OPTIONS.items() if not locust else ():
        group.add_argument(option, metavar=metavar, help=text, default=None)
    group.add_argument("--no-probe", action="store_true", help="send no request of our own before the load", **hidden)
    group.add_argument(
        "--slo", metavar="FILE", help="limits: a YAML file, or a bundled name; one missed gives exit 10", **hidden
    )
    group.add_argument("--results", metavar="DIR", default="results", help="where result folders go", **hidden)
    group.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="set any key of the profile", **hidden
    )
    if locust:
        group.add_argument(
            "--run-profile", metavar="FILE", help="profile to start from: a YAML file, or a bundled name", **hidden
        )


def add_forms(parser: Any) -> None:
    """How the result is printed: the options of `run` and `report`."""
    group = parser.add_argument_group("what is printed").add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="the summary as JSON on stdout, in place of tables")
    group.add_argument("--csv", action="store_true", help="a row a stage on stdout, in place of tables")
    parser.add_argument(
        "--quiet", action="store_true", help="no progress; one line, or with --json and --csv only that"
    )


def of_run(options: Mapping[str, Any], host: str = "host") -> list[tuple[str, Node]]:
    """The overrides of the options that `tokenswarm run` alone has. `host`: the option that holds the target."""
    pairs = (("target", host), ("workers", "workers"))
    named = [(key, name, f"--{name.replace('_', '-')}") for key, name in pairs]
    return [(key, typed_yaml.literal(options[name], option)) for key, name, option in named if options[name]]


def read_profile(path: str | None, options: Mapping[str, Any], more: list[tuple[str, Node]]) -> Profile:
    """The profile of a run. `more` are overrides that rank below the user's own options. Raises ConfigError."""
    path = bundled.find("profile", path) if path else path
    text = profiles.read_text(Path(path)) if path else None
    slo_path = bundled.find("SLO file", options["slo"]) if options.get("slo") else None
    slo = (profiles.read_text(Path(slo_path)), slo_path) if slo_path else None
    overrides = [*more, *_stage(options, text, path), *given(options)]
    overrides += _format(text, path, overrides)
    if path is None:
        overrides += _start({key for key, _ in overrides})
    profile = profiles.load(text, path or "command line", overrides, slo)
    if path is None or options.get("expect_workers") or options.get("master"):
        return profile  # remote workers read these paths, from their own folders
    return beside(profile, Path(path), {key for key, _ in overrides})


def _start(keys: set[str]) -> list[tuple[str, Node]]:
    """Without a profile file, a target and a data set must come from options: what follows from them, if anything.

    Raises ConfigError.
    """
    if "target" not in keys:
        raise ConfigError("no target: give --host URL, for example --host http://127.0.0.1:8000")
    if keys & {"dataset", "dataset.path", "dataset.format"}:
        return []
    lengths = next((key for key in keys if key.startswith("dataset.synthetic")), None)
    if lengths is None:
        raise ConfigError("no data set: give --dataset FILE (`tokenswarm data fetch sharegpt` downloads one)")
    return [("dataset.format", typed_yaml.literal("synthetic", f"--set {lengths}"))]


def _format(text: str | None, path: str | None, overrides: list[tuple[str, Node]]) -> list[tuple[str, Node]]:
    """A file that is named is sent, also where the profile generates prompts. Raises ConfigError for what says both."""
    keys = {key for key, _ in overrides}
    if "dataset" in keys:
        return []
    named = [str(getattr(node, "value", "")) for key, node in overrides if key == "dataset.format"]
    generated = (named or [_said(text, path, "dataset.format")])[-1] == "synthetic"
    lengths = next((key for key in keys if key.startswith("dataset.synthetic")), None)
    if "dataset.path" in keys and generated:
        if named:
            raise ConfigError(
                "--dataset and --dataset-format synthetic: a file, or generated prompts; give one of them"
            )
        return [("dataset.format", typed_yaml.literal("auto", "--dataset"))]
    if lengths is not None and not generated and (text is not None or named or "dataset.path" in keys):
        raise ConfigError(
            f"--set {lengths}: is of generated prompts, and a file is sent: add --dataset-format synthetic"
        )
    return []


def _stage(options: Mapping[str, Any], text: str | None, path: str | None) -> list[tuple[str, Node]]:
    """One stage of --rate, or of --users, in place of the profile's. Raises ConfigError."""
    rate, users, duration = (options.get(name) for name in ("rate", "users", "duration"))
    if options.get("trace") is not None:
        if rate is not None or users is not None or options.get("arrivals") is not None:
            raise ConfigError("--trace says when requests come: leave out --rate, --users and --arrivals")
        stages = [] if duration is None else one_stage("duration", str(duration), "--duration", None)
        if not stages and _said(text, path, "load.kind") != "trace":
            stages = one_stage("duration", str(ENDLESS_S), "--trace", None)  # in place of another kind of load's
        return [("load.kind", typed_yaml.literal("trace", "--trace")), *stages]
    if options.get("time_scale") is not None and not (
        _said(text, path, "load.trace.path") or _sets(options, "load.trace")
    ):
        raise ConfigError("--time-scale goes with --trace, or a profile that has one")
    if rate is not None and users is not None:
        raise ConfigError("--rate and --users: an open loop or a closed one; give one of them")
    if rate is None and users is None:
        if duration is not None and path is not None:
            raise ConfigError("--duration goes with --rate or --users; else --set load.stages.0.duration=…")
        if options.get("arrivals") is not None and path is None:
            raise ConfigError("--arrivals needs --rate, for example --rate 20")
        return [] if duration is None else one_stage("users", "1", "--users", duration)
    ends = str(rate).replace("..", ",").split(",")
    if len(ends) == 2 and not str(rate).startswith("["):
        raise ConfigError(f"--rate {typed_yaml.shown(str(rate))}: a ramp stands in brackets: --rate '[5,80]'")
    found = [] if users is None else [("load.kind", typed_yaml.literal("closed", "--users"))]
    if rate is not None and options.get("arrivals") is None and _said(text, path, "load.kind") not in RATE_KINDS:
        found.append(("load.kind", typed_yaml.literal(RATE_KINDS[0], "--rate")))
    word = "rate" if rate is not None else "users"
    return found + one_stage(word, str(rate if rate is not None else users), f"--{word}", duration)


def one_stage(word: str, value: str, origin: str, duration: str | None) -> list[tuple[str, Node]]:
    """`load.stages` of one stage that asks for `value` users, or rate."""
    node = typed_yaml.parse_value("[{}]", origin)
    root = typed_yaml.parse("{}", origin)
    typed_yaml.set_value(root, "stages", node)
    typed_yaml.set_value(root, f"stages.0.{word}", typed_yaml.parse_value(value, origin))
    if duration is not None:
        typed_yaml.set_value(root, "stages.0.duration", typed_yaml.literal(duration, "--duration"))
    return [("load.stages", node)]


def _said(text: str | None, path: str | None, key: str) -> str:
    """A value as the profile's text has it; what is wrong there is told by whoever reads it whole."""
    found = typed_yaml.find(typed_yaml.parse(text, path or ""), key) if text is not None else None
    return str(getattr(found, "value", ""))


def _sets(options: Mapping[str, Any], section: str) -> bool:
    """Whether a --set says something of a section of the profile."""
    return any(pair.strip().startswith(section) for pair in options.get("set") or ())


def given(options: Mapping[str, Any]) -> list[tuple[str, Node]]:
    """The overrides that the user gave, in rank order."""
    found: list[tuple[str, Node]] = []
    for option, (key, _, _) in OPTIONS.items():
        value = options.get(option[2:].replace("-", "_"))
        if value is not None:
            found.append((key, typed_yaml.literal(str(value), option)))
    if options.get("no_probe"):
        found.append(("engine.probe", typed_yaml.literal("false", "--no-probe")))
    for pair in options.get("set") or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {typed_yaml.shown(pair)}: write KEY=VALUE, for example --set load.think_time=2s")
        found.append((key.strip(), typed_yaml.parse_value(value, f"--set {typed_yaml.shown(key)}")))
    return found


def refuse_secrets(arguments: list[str]) -> None:
    """A key on a command line stands in the process list for everybody: refuse it."""
    for word in arguments:
        lowered = word.lower()
        if lowered.startswith(("--api-key", "--apikey", "--token")) or "bearer " in lowered:
            name = word.split("=")[0] if word.startswith("--") else "an option"  # the word itself may be the secret
            raise ConfigError(
                f"{name}: secrets don't go on the command line; "
                "export a variable and name it: --set engine.headers_from_env={Authorization: VARIABLE}"
            )


def parser_of(command: str) -> argparse.ArgumentParser:
    """A parser that reports a mistake as one sentence and exit 15."""
    end, form = help_texts.end_of(command), help_texts.formatter(default_of)
    return _Parser(prog=f"tokenswarm {command}", allow_abbrev=False, epilog=end, formatter_class=form)


def default_of(option: str) -> str:
    """What the profile has where the option is not given; "" where that is nothing."""
    return help_texts.default_of_key(Profile, OPTIONS[option][0]) if option in OPTIONS else ""


class _Parser(argparse.ArgumentParser):
    def parse_args(self, *arguments: Any, **more: Any) -> Any:
        given = super().parse_args(*arguments, **more)
        refuse_empty(vars(given))
        return given

    def error(self, message: str) -> Any:
        known = list(self._option_string_actions)
        unknown = [word for word in message.split() if word.startswith("-")] if "unrecognized" in message else []
        hint = "".join(option_hint(word.partition("=")[0], known) for word in unknown[:1])
        raise ConfigError(f"{message}{hint} (see {self.prog} --help)")


_GIVEN = {option[2:].replace("-", "_") for option in OPTIONS}
_GIVEN |= {option[2:] for option in (RATE[0], *STAGE_OPTIONS)}
_OURS = frozenset({*_GIVEN, "profile", "run_profile", "host", "workers", "bind", "slo", "results", "master_host", "to"})
_OURS |= {"repeat", "against_host", "against_name", "baseline", "history", "save", "markdown", "file"}


def refuse_empty(given: Mapping[str, Any]) -> None:
    """An option that is given and empty is a variable of a script that is not set, and no wish. Raises ConfigError."""
    for name in _OURS & given.keys():
        if given[name] == "":
            what = "the profile's name" if name == "profile" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{what} is empty: is a variable unset?")


_OTHER_WORDS = {
    "u": "users",
    "concurrency": "users",
    "t": "duration",
    "run-time": "duration",
    "r": "spawn-rate",
    "url": "host",
    "base-url": "host",
    "target": "host",
}
"""What other tools call it."""

_KEYS_NAMED = 2  # at most, of a word that is the end of several keys


def option_hint(word: str, known: list[str]) -> str:
    """`; did you mean …?` for an option that there is not: one that there is, or `--set` with the key of that name."""
    name = word.lstrip("-")
    name = _OTHER_WORDS.get(name, name)
    keys = _keys() if "--set" in known else {}
    words = {option.lstrip("-"): option for option in known if option.startswith("--")}
    if name not in words and len(keys.get(name, ())) > 1:  # what means several things is none of its neighbours
        few = sorted(keys[name]) if len(keys[name]) <= _KEYS_NAMED else []
        return f"; did you mean {' or '.join(f'`--set {key}=…`' for key in few)}?" if few else ""
    words |= {last: f"--set {one[0]}=…" for last, one in keys.items() if last not in words and len(one) == 1}
    close = [name] if name in words else difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    return f"; did you mean `{words[close[0]]}`?" if close else ""


def _keys() -> dict[str, list[str]]:
    """The last word of each key of a profile, as an option would spell it, to the keys that end in it."""
    found: dict[str, list[str]] = {}
    todo: list[tuple[str, Any]] = [("", Profile)]
    while todo:
        path, kind = todo.pop()
        for name, hint in typing.get_type_hints(kind).items():
            inner = [part for part in (hint, *typing.get_args(hint)) if is_section(part)]
            listed = typing.get_origin(hint) is tuple
            todo += [(f"{path}{name}.{'0.' if listed else ''}", part) for part in inner]
            if not inner:
                found.setdefault(name.replace("_", "-"), []).append(f"{path}{name}")
    return found


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


_PATHS = (("dataset", "path"), ("tls", "ca_file"), ("telemetry", "model_config"), ("load", "trace", "path"))
_FOLDERS_UP = 3


def beside(profile: Profile, path: Path, overridden: Collection[str]) -> Profile:
    """The profile with its relative paths found near its file, where nothing is there from the folder we stand in.

    Near: in the file's folder, or one of the two above it (`configs/…` in a profile under `configs/profiles`). Paths
    that come from an option stay what the user typed.
    """
    for keys in _PATHS:
        value: Any = profile
        for key in keys:
            value = getattr(value, key, None)
        named = {".".join(keys[: n + 1]) for n in range(len(keys))}
        if not isinstance(value, str) or named & set(overridden) or bundled.is_there(Path(value)):
            continue
        near = (folder / value for folder in list(path.resolve().parents)[:_FOLDERS_UP])
        if found := next((one for one in near if bundled.is_there(one)), None):
            profile = _replaced(profile, keys, str(found))
    return profile


def _replaced(part: Any, keys: tuple[str, ...], value: str) -> Any:
    inner = value if len(keys) == 1 else _replaced(getattr(part, keys[0]), keys[1:], value)
    return msgspec.structs.replace(part, **{keys[0]: inner})
