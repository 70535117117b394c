"""The file of a history: appended to as a whole and one at a time, read line by line with what is wrong named.

A line goes out in one write to the end of the file under an exclusive lock, so that pipelines that end together lose
nothing; where the disk is full the file is cut back to what it was. What a killed machine left torn gets an end of
line first, so that it spoils one line and not two.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isclose
from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.errors import MALFORMED, ConfigError, ResultsError
from tokenswarm.reports.numbers import harmless
from tokenswarm.result.comparison import Comparison, Open
from tokenswarm.result.history import SCHEMA_VERSION, Line, Told
from tokenswarm.result.summary import Summary

LINE_BYTES_MAX = 1 << 20
PROBLEMS_TOLD = 20
BLANK_MAX = 100  # lines before the first that says something
TEXT_MAX = 200


def of_run(
    summary: Summary,
    values: Mapping[str, float | None],
    percentiles: Mapping[str, Mapping[str, Open]],
    manifest: Mapping[str, Any],
    setup: Mapping[str, str],
) -> Line:
    """The line of a finished run. `values`: the one number of each metric; `percentiles`: with their bars."""
    engine, profile = (manifest.get(name) for name in ("engine", "profile"))
    bars = {}
    for metric, value in values.items():
        field, _, which = metric.partition(".")
        bar = percentiles.get(field, {}).get(which)
        if value is not None and bar is not None and isclose(bar[0], value, rel_tol=1e-9):
            bars[metric] = (bar[1], bar[2])
    return Line(
        schema_version=SCHEMA_VERSION,
        kind="run",
        at=_moment(manifest.get("started")),
        run_id=summary.run_id,
        profile=_text(profile.get("name")) if isinstance(profile, Mapping) else "",
        load=_load(profile.get("load")) if isinstance(profile, Mapping) else "",
        model=_text(engine.get("model")) if isinstance(engine, Mapping) else "",
        host=_text(setup.get("target")),
        status=summary.verdict.status or "not judged",
        partial=summary.partial,
        values={name: value for name, value in values.items() if value is not None},
        bars=bars,
        setup=dict(setup),
    )


def of_comparison(found: Comparison, last: str) -> Line:
    """The line of a comparison; `last`: when the last of its runs began (ISO 8601, or "")."""
    findings = tuple(Told(metric=f.metric, word=f.word, ratio=f.ratio, low=f.low, high=f.high) for f in found.findings)
    return Line(
        schema_version=SCHEMA_VERSION, kind="comparison", at=_moment(last), word=found.word, a=found.a.runs,
        b=found.b.runs, findings=findings,
    )  # fmt: skip


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _load(load: object) -> str:
    """`1, 8 users`, `20/s`, a trace's name; "" where the manifest tells none."""
    try:
        known = msgspec.convert(load, _Load)
    except msgspec.ValidationError:
        return ""
    if known.trace is not None:
        return _text(Path(known.trace.path).name)
    rates = [stage.rate if isinstance(stage.rate, list) else [stage.rate] for stage in known.stages if stage.rate]
    users = [stage.users for stage in known.stages if stage.users is not None]
    if rates:
        return _text(f"{', '.join('–'.join(f'{end:g}' for end in rate) for rate in rates)}/s")
    return _text(f"{', '.join(map(str, users))} user{'s' * (users != [1])}") if users else ""


class _Stage(msgspec.Struct):
    users: int | None = None
    rate: float | list[float] | None = None


class _Trace(msgspec.Struct):
    path: str


class _Load(msgspec.Struct):
    """What of `profile.load` in a manifest names it."""

    stages: list[_Stage] = []
    trace: _Trace | None = None


def _text(value: object) -> str:
    return str(value)[:TEXT_MAX] if value else ""


def check(path: Path) -> None:
    """Can lines be appended here? Raises ConfigError where the file is something else, ResultsError where not."""
    if not path.exists() and path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK):
        return  # the first line makes it
    try:
        with path.open("ab"):
            pass
        with path.open("rb") as file:
            first = next((line for _ in range(BLANK_MAX) if (line := file.readline(LINE_BYTES_MAX)).strip()), b"")
    except OSError as error:
        raise ResultsError(f"--history {path}: can't be written: {error.strerror}") from None
    if first and isinstance(_decoded(first), str):
        raise ConfigError(f"--history {path}: its first line is of no history ({_decoded(first)}); name another file")


def append(path: Path, lines: Sequence[Line]) -> None:
    """All of these lines, or none. Raises ResultsError."""
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            _write(handle, (b"\n" if torn else b"") + data, size)
        finally:
            os.close(handle)
    except OSError as error:
        raise ResultsError(f"{path}: no line could be appended: {error.strerror}") from None


def _write(handle: int, data: bytes, size: int) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def read(path: Path) -> tuple[list[Line], list[str]]:
    """(the lines, a sentence for each that is left out, with its number). Raises ConfigError."""
    lines: list[Line] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(LINE_BYTES_MAX):
                number += 1
                long = len(data) == LINE_BYTES_MAX and not data.endswith(b"\n")
                while long and (rest := file.readline(LINE_BYTES_MAX)) and not rest.endswith(b"\n"):
                    pass
                found: Line | str = "is longer than a line of a history can be" if long else _decoded(data)
                if isinstance(found, Line) and found.kind == "run" and found.run_id in seen:
                    found = f"run {found.run_id} stands in line {seen[found.run_id]} already"
                if isinstance(found, Line):
                    lines.append(found)
                    seen.setdefault(found.run_id, number)
                elif data.strip():
                    problems.append(f"{path}:{number}: {found}; left out")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    return lines, problems


class _Head(msgspec.Struct):
    schema_version: int = 0


def _decoded(data: bytes) -> Line | str:
    """The line, or what is wrong with it."""
    try:
        version = msgspec.json.decode(data, type=_Head).schema_version
        if version != SCHEMA_VERSION:
            return f"has schema version {version}, this program reads {SCHEMA_VERSION}"
        line = msgspec.json.decode(data, type=Line)
    except MALFORMED as error:
        cut = "is cut, it has no end of line" if not data.endswith(b"\n") else "is no line of a history"
        return f"{cut}: {harmless(str(error))}"
    if line.kind == "run" and (line.at is None or not line.run_id):
        return "is a run without its id, or without its time"
    return line
