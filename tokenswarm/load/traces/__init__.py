"""Formats of traces, one a file. Each has `head(line)`: what reads the lines of a file that begins so, or None."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
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
    block_tokens: int  # of the prompt that a block's id stands for

    def row(self, line: str) -> Row: ...


class Columns:
    """A CSV file: its head names the columns that hold time, prompt tokens and answer tokens."""

    has_header = True
    block_tokens = 0

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
    """A JSONL file: names of the fields that hold time, prompt tokens and answer tokens.

    `hash_ids` are blocks of so many tokens where the format has them; 0: it has none.
    """

    has_header = False

    def __init__(self, wanted: tuple[str, str, str], unit_s: float, block_tokens: int = 0) -> None:
        self._wanted, self._unit_s, self.block_tokens = wanted, unit_s, block_tokens

    def row(self, line: str) -> Row:
        fields = fields_of(line)
        if fields is None:
            raise Faulty("is no JSON object: is the file cut off?")
        for name in self._wanted:
            if name not in fields:
                raise Faulty(f"has no `{name}`")
        at, name_in, name_out = self._wanted
        tokens = count(fields[name_in], name_in)
        blocks = self._blocks(fields.get("hash_ids"), tokens) if self.block_tokens else ()
        at_s = number_or_time(fields[at]) * self._unit_s
        return Row(at_s, tokens, count(fields[name_out], name_out), blocks)

    def _blocks(self, ids: Any, tokens: int) -> tuple[int, ...]:
        """The prompt's blocks; the last one, which is not full, may have an id or none."""
        if ids is None:
            return ()
        if not isinstance(ids, list) or not all(isinstance(block, int) for block in ids):
            raise Faulty("`hash_ids` is no list of numbers")
        full, rest = divmod(max(1, tokens), self.block_tokens)
        if ids and not full <= len(ids) <= full + bool(rest):
            raise Faulty(
                f"`hash_ids` are {len(ids)} for {tokens} tokens, which are {full + bool(rest)} blocks of "
                f"{self.block_tokens}: how long are this trace's, `load.trace.block_tokens`?"
            )
        return tuple(ids)


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
        found = datetime.fromisoformat(text.strip())
        return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH).total_seconds()
    except (ValueError, OverflowError):
        raise Faulty(f"its time is {text[:40]!r}, which is no number and no date") from None


_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
