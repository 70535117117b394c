"""Formats of traces, one a file. Each has `head(line)`: what reads the lines of a file that begins so, or None."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from tokenswarm.errors import MALFORMED

TOKENS_MAX = 10_000_000


class Faulty(ValueError):
    """A line that is no row; str() says why."""


class Row(NamedTuple):
    """One arrival: when, in s on any clock, and how long its prompt and its answer are, in tokens."""

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()  # of its prompt's text, by id; rows that begin with the same ids share that text


class Reader(Protocol):
    has_header: bool

    def row(self, line: str) -> Row: ...


class Columns:
    """A CSV file: its head names the columns that hold time, prompt tokens and answer tokens."""

    has_header = True

    def __init__(self, names: list[str], wanted: tuple[str, str, str], time: Callable[[str], float]) -> None:
        self._count = len(names)
        self._at, self._in, self._out = (names.index(name) for name in wanted)
        self._names = wanted
        self._time = time

    def row(self, line: str) -> Row:
        cells = cells_of(line)
        if len(cells) != self._count:
            raise Faulty(f"{len(cells)} columns, where the head has {self._count}: is the file cut off?")
        _, name_in, name_out = self._names
        return Row(self._time(cells[self._at]), count(cells[self._in], name_in), count(cells[self._out], name_out))


class Lines:
    """A JSONL file: names of the fields that hold time, prompt tokens and answer tokens; of the blocks, if any."""

    has_header = False

    def __init__(self, wanted: tuple[str, str, str], unit_s: float, blocks: str | None = None) -> None:
        self._wanted, self._unit_s, self._blocks = wanted, unit_s, blocks

    def row(self, line: str) -> Row:
        fields = fields_of(line)
        if fields is None:
            raise Faulty("is no JSON object: is the file cut off?")
        for name in self._wanted:
            if name not in fields:
                raise Faulty(f"has no `{name}`")
        at, name_in, name_out = self._wanted
        blocks = fields.get(self._blocks, []) if self._blocks else []
        if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
            raise Faulty(f"`{self._blocks}` is no list of numbers")
        at_s = number_or_time(fields[at]) * self._unit_s
        return Row(at_s, count(fields[name_in], name_in), count(fields[name_out], name_out), tuple(blocks))


def cells_of(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise Faulty(f"is no line of CSV ({error}): is the file cut off?") from None


def fields_of(line: str) -> Mapping[str, Any] | None:
    try:
        found = msgspec.json.decode(line)
    except MALFORMED:
        return None
    return found if isinstance(found, dict) else None


def count(value: Any, name: str) -> int:
    """A number of tokens; whole, also where it is written 12.0."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise Faulty(f"`{name}` is {str(value)[:40]!r}, no number of tokens") from None
    if not math.isfinite(found) or found != int(found) or not 0 <= found <= TOKENS_MAX:
        raise Faulty(f"`{name}` is {found:g}; tokens are whole numbers from 0 to {TOKENS_MAX}")
    return int(found)


def number_or_time(value: Any) -> float:
    """Seconds as a number, or a date with its time."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return moment(str(value))
    if not math.isfinite(found):
        raise Faulty(f"its time is {value}")
    return found


def moment(text: str) -> float:
    """`2023-11-16 18:15:46.6805900`, with a zone or without, in s; beyond µs it is cut."""
    try:
        return (datetime.fromisoformat(text.strip()) - _EPOCHS["+" in text[10:] or text.endswith("Z")]).total_seconds()
    except (ValueError, OverflowError):
        raise Faulty(f"its time is {text[:40]!r}, which is no number and no date") from None


_EPOCHS = {False: datetime(2000, 1, 1), True: datetime.fromisoformat("2000-01-01T00:00:00+00:00")}
