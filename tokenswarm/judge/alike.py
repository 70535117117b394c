"""May these runs be held against each other? What each was, by subject, and where they differ. Pure.

A comparison answers one question: what did the change do. Where two things changed, it answers none. So all runs must
be alike in every subject but the one that is the point, and those of one side in every subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tokenswarm.engines.model_names import is_alias
from tokenswarm.result.comparison import Difference, Run

ANSWERED = "answers name"
"""The model that most answers of a run name: of its summary, not of its manifest."""

SUBJECTS: dict[str, tuple[str, ...]] = {
    # subject: keys of manifest.json
    "model": ("engine.model", ANSWERED),
    "dialect": ("profile.engine.kind", "profile.engine.api"),
    "data": (
        "dataset.sha256",
        "profile.dataset.format",
        "profile.dataset.conversations",
        "profile.dataset.history",
        "profile.dataset.length_filter",
        "profile.dataset.system",
        "profile.dataset.leading_assistant",
        "profile.dataset.duplicates",
        "profile.dataset.synthetic",
        "profile.dataset.rounds",
        "profile.dataset.shuffle",
        "profile.dataset.shuffle_seed",
    ),
    "lengths": (
        "profile.dataset.input_tokens",
        "profile.dataset.answer_tokens",
        "profile.dataset.output_tokens",
        "profile.dataset.ignore_eos",
    ),
    "sampling": (
        "profile.engine.temperature",
        "profile.engine.top_p",
        "profile.engine.seed",
        "profile.engine.stop",
        "profile.engine.choices",
        "profile.engine.extra_body",
    ),
    "load": (
        "profile.load",
        "profile.phases",
        "profile.connections",
        "profile.timeouts.connect",
        "profile.timeouts.first_token",
        "profile.timeouts.idle_token",
        "profile.timeouts.total",
    ),
}
"""What has to be alike, or named as the point of the comparison."""


SETUP: dict[str, str] = {
    # what it is called: key of manifest.json
    "target": "profile.target",
    "profile": "profile.name",
    "engine's version": "engine.version",
    "data set": "dataset.path",
    "workers": "profile.workers",
    "tokenswarm": "versions.tokenswarm",
    "git revision": "git_revision",
    "load host": "host.hostname",
    "load host's system": "host.system",
    "load host's CPU": "host.cpu",
    "load host's cores": "host.cpus",
    "Python": "host.python",
}
"""What may differ between runs that are held against each other, and is told where it does."""

SHOWN_MAX = 200  # characters of a value


def setup(manifest: Mapping[str, Any]) -> dict[str, str]:
    """{name: value} of what a run was made with, as far as its manifest says."""
    found = {name: _at(manifest, key) for name, key in SETUP.items()}
    return {name: _told(value)[:SHOWN_MAX] for name, value in found.items() if value not in (None, "", [], {})}


def set_apart(a: Sequence[Run], b: Sequence[Run]) -> tuple[Difference, ...]:
    """What is not alike in all these runs: subjects by their keys, then what they ran on."""
    found = []
    keys = {
        key: subject for run in (*a, *b) for subject, of in run.about.items() if isinstance(of, Mapping) for key in of
    }
    for key, subject in keys.items():
        left, right = (tuple(dict.fromkeys(_told(_of(run, subject, key)) for run in side)) for side in (a, b))
        if len({*left, *right}) > 1:
            found.append(Difference(what=f"{subject}: {key.removeprefix('profile.')}", a=_cut(left), b=_cut(right)))
    for name in dict.fromkeys(name for run in (*a, *b) for name in run.setup):
        left, right = (tuple(dict.fromkeys(run.setup.get(name, "") for run in side)) for side in (a, b))
        if len({*left, *right}) > 1:
            found.append(Difference(what=name, a=_cut(left), b=_cut(right)))
    return tuple(found)


def _cut(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(value[:SHOWN_MAX] for value in values if value)


def _told(value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return msgspec.json.encode(value, order="sorted").decode()


def about(manifest: Mapping[str, Any], by_model: Mapping[str, int]) -> dict[str, Any]:
    """{subject: {key: value}} of a run, from its manifest; `by_model`: its answers by the model that they name."""
    told = {subject: {key: _at(manifest, key) for key in keys} for subject, keys in SUBJECTS.items()}
    return told | {"model": told["model"] | {ANSWERED: max(by_model, key=lambda name: by_model[name], default=None)}}


LOADS_NOTHING = {"profile.load": ("abort_on_fail",)}
"""What stands in a section and changes no load of a run that went through."""


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and dotted in LOADS_NOTHING:
        return {name: inner for name, inner in value.items() if name not in LOADS_NOTHING[dotted]}
    return value


def _said(value: Any) -> Any:
    """A value without what it leaves open: another version's profile has not the same keys that are not set."""
    if isinstance(value, Mapping):
        return {name: said for name, inner in value.items() if (said := _said(inner)) is not None} or None
    return [_said(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(runs: Sequence[Run]) -> dict[str, str]:
    """{subject: a sentence's end} of what is not alike in these runs; {} where all is."""
    found = {}
    for subject in SUBJECTS:
        for key in (*SUBJECTS[subject], *{run.tool for run in runs if run.tool}):
            told = [run for run in runs if key in run.about.get(subject, {})]  # a stored group may be of before the key
            if key == ANSWERED:  # gateways leave it out, and older runs have none
                told = [run for run in told if _of(run, subject, key)]
            if len(told) < 2 or (key not in SUBJECTS[subject] and not all(run.tool for run in told)):
                continue  # of a file of another tool that does not say it, nobody knows
            first = _of(told[0], subject, key)
            other = next((run for run in told[1:] if not _equal(key, first, _of(run, subject, key))), None)
            if other is not None:
                name, left, right = _short(key.removeprefix("profile."), first, _of(other, subject, key))
                found[subject] = f"`{name}` is {left} in {told[0].run_id} and {right} in {other.run_id}"
                break
    return found


def _equal(key: str, one: Any, other: Any) -> bool:
    """A gateway may write the alias where the engine writes its release."""
    if key != ANSWERED or not (isinstance(one, str) and isinstance(other, str)):
        return bool(one == other)
    return one == other or is_alias(one, other) or is_alias(other, one)


def _of(run: Run, subject: str, key: str) -> Any:
    return _said((run.about.get(subject) or {}).get(key))


def _short(name: str, first: Any, second: Any) -> tuple[str, str, str]:
    """The first key below `name` whose values differ, and both, short enough for a sentence."""
    while True:
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            below = next(key for key in [*first, *second] if first.get(key) != second.get(key))
            first, second = first.get(below), second.get(below)
        elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
            below = next(at for at, (one, other) in enumerate(zip(first, second, strict=True)) if one != other)
            first, second = first[below], second[below]
        else:
            return name, *(text if len(text := str(value)) <= 60 else f"{text[:59]}…" for value in (first, second))  # type: ignore[return-value]
        name = f"{name}.{below}"
