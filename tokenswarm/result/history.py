"""A history: a JSON line for each run and each comparison, as they were made. Only ever appended to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

SCHEMA_VERSION = 1

Value = Annotated[float, msgspec.Meta(gt=0, lt=1e18)]
End = Annotated[float, msgspec.Meta(ge=0, lt=1e18)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found of a metric. `ratio`, `low`, `high`: B / A."""

    metric: str
    word: str
    ratio: Value | None = None
    low: Value | None = None
    high: Value | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run, or a comparison. A run that can't be believed is there, too: its status says so."""

    schema_version: int
    kind: Literal["run", "comparison"]
    at: Moment | None = None  # when the run began; of a comparison, when its last run did
    run_id: str = ""
    profile: str = ""
    load: str = ""  # `4 users`, `20/s`: runs of another one are no measure of this
    model: str = ""
    host: str = ""  # the target
    status: str = ""
    partial: bool = False
    values: dict[str, Value | None] = {}
    bars: dict[str, tuple[End, Value | None]] = {}  # what the instrument leaves open of a value
    setup: dict[str, str] = {}
    word: str = ""  # of a comparison
    a: tuple[str, ...] = ()  # its runs
    b: tuple[str, ...] = ()
    findings: tuple[Told, ...] = ()
