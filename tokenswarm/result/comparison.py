"""Runs against runs: what is held against what, and what came out. The structs of a stored baseline and of --json."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA_VERSION = 1

Word = Literal["better", "worse", "same", "can't tell"]
Kind = Literal["median", "tail", "throughput", "success"]

MARGINS: dict[Kind, float] = {"median": 0.05, "tail": 0.10, "throughput": 0.02, "success": 0.01}
"""What still counts as the same, as a share, where nobody says otherwise."""

RUNS_MAX = 40
"""Of one side: counting the null distribution takes n³ steps."""

Open = tuple[float, float, float | None]
"""A value, and what the instrument leaves open of it: from … to; None: nothing bounds it."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison needs of a run; a stored baseline is a list of them. `about`: judge/alike.py."""

    run_id: str
    values: dict[str, float | None]
    about: dict[str, dict[str, Any]] = {}
    status: str = "VALID"
    tool: str = ""  # whose file it is, and whose definitions: a tool of result/foreign/; "" for a run of ours
    started: str = ""  # ISO 8601
    percentiles: dict[str, dict[str, Open]] = {}  # of all its stages together: {"ttft_s": {"p50": …}}
    setup: dict[str, str] = {}  # what it ran against and on, by name: judge/alike.py
    folder: str | None = None  # where its files are, while it is read


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. `ratio`, `low` and `high` are B / A; `a`, `b`: the value of each run, None where it has none.

    One run a side has a ratio and no interval.
    """

    metric: str
    kind: Kind
    higher_is_better: bool
    margin: float
    a: tuple[float | None, ...]
    b: tuple[float | None, ...]
    word: Word
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None  # what the interval really has, which few runs make less than was asked for
    p_worse: float | None = None
    p_better: float | None = None
    runs_needed: int | None = None  # a side, where it can't be told and more runs would
    why: str = ""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one side, in the order of a finding's values."""

    name: str
    runs: tuple[str, ...] = ()
    status: tuple[str, ...] = ()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Something in which the two sides, or the runs of one, are not alike: what each side has, each value once."""

    what: str
    a: tuple[str, ...]
    b: tuple[str, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. `word`: worse if any metric is, else can't tell if any is, else better if any is, else same."""

    schema_version: int = SCHEMA_VERSION
    word: Word
    findings: tuple[Finding, ...]
    alpha: float
    a: Side = Side(name="baseline")
    b: Side = Side(name="new")
    differs: tuple[Difference, ...] = ()
    left_out: tuple[str, ...] = ()  # runs that were made and count on no side, in sentences
    definitions: str = ""  # the tool by whose definitions all of it is; "" for ours
    apart: str = ""  # what of that tool can't be compared, or isn't known


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that stand for one thing: what `--save` writes and `--baseline` reads."""

    schema_version: int = SCHEMA_VERSION
    runs: tuple[Run, ...]
