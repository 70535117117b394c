"""May these runs be held against each other? What each was, by subject, and where they differ. Pure.

A comparison answers one question: what did the change do. Where two things changed, it answers none. So all runs must
be alike in every subject but the one that is the point, and those of one side in every subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenswarm.result.comparison import Run

SUBJECTS: dict[str, tuple[str, ...]] = {
    # subject: keys of manifest.json
    "model": ("engine.model",),
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


def about(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """{subject: {key: value}} of a run, from its manifest."""
    return {subject: {key: _at(manifest, key) for key in keys} for subject, keys in SUBJECTS.items()}


LOADS_NOTHING = {"profile.load": ("abort_on_fail",)}
"""What stands in a section and changes no load of a run that went through."""


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and dotted in LOADS_NOTHING:
        return {name: inner for name, inner in value.items() if name not in LOADS_NOTHING[dotted]}
    return value


def differences(runs: Sequence[Run]) -> dict[str, str]:
    """{subject: a sentence's end} of what is not alike in these runs; {} where all is."""
    found = {}
    for subject in SUBJECTS:
        for key in (*SUBJECTS[subject], *{run.tool for run in runs if run.tool}):
            told = [run for run in runs if not run.tool or key in (run.about.get(subject) or {})]
            if len(told) < 2 or (key not in SUBJECTS[subject] and not all(run.tool for run in told)):
                continue  # of a file of another tool that does not say it, nobody knows
            first = _of(told[0], subject, key)
            other = next((run for run in told[1:] if _of(run, subject, key) != first), None)
            if other is not None:
                name = key.removeprefix("profile.")
                left, right = _short(first, _of(other, subject, key))
                found[subject] = f"`{name}` is {left} in {told[0].run_id} and {right} in {other.run_id}"
                break
    return found


def _of(run: Run, subject: str, key: str) -> Any:
    return (run.about.get(subject) or {}).get(key)


def _short(first: Any, second: Any) -> tuple[str, str]:
    """Two values that differ, without what they share, short enough for a sentence."""
    while isinstance(first, Mapping) and isinstance(second, Mapping):
        key = next(k for k in [*first, *second] if first.get(k) != second.get(k))
        first, second = first.get(key), second.get(key)
    return tuple(str(value)[:60] for value in (first, second))  # type: ignore[return-value]
