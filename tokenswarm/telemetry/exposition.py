"""A Prometheus page -> the samples that are wanted, or PageError. What one sample spoils is told by its name.

Lines of other families are skipped unread, and a page that has the lines of the one before is not parsed again: only
its values are taken. That is why this is not prometheus_client's parser: 5 000 lines take that one 75 ms, and this one
2 ms, of an event loop that may also read token streams (plain `locust`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal, NamedTuple

Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]
"""Sample name -> labels, sorted by name -> value; NaN where the page has the series without a finite value."""

GapReason = Literal[
    "timeout", "connect", "closed_early", "http_framing", "http_status", "too_large", "truncated", "not_metrics",
    "malformed", "incomplete", "empty", "several_processes", "cached",
]  # fmt: skip
"""Why a poll brought nothing. The first six are the transport's."""

_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?[ \t]+(\S+)"
    r"(?:[ \t]+[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)?[ \t]*(?:# \{.*)?"  # a time stamp, OpenMetrics' exemplar
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"[ \t]*(?:,[ \t]*|$)')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_FIRST_WORD = re.compile(r"[:_]")
_HEAD = re.compile(rb"[{ \t]")
_OF_NUMBERS = b"0123456789.eE+-"
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}

END = b"# EOF"
"""The last line of an OpenMetrics page: whatever has it is whole, with a line break behind it or without."""


class PageError(ValueError):
    """A page that can't be used. `reason` is counted, str() says it in a sentence."""

    def __init__(self, reason: GapReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: GapReason = reason


Series = tuple[str, Labels]


class Scanned(NamedTuple):
    """The wanted samples of a page. `series` is the same object as long as pages have the same lines."""

    series: tuple[Series, ...]
    values: Sequence[float]  # of each; NaN where the page has no finite number
    odd: Mapping[str, PageError] = {}  # by name: a sample that can't be read, NaN among the values


KNOWN_MAX = 100_000
UNREAD: Labels = (("", "unread"),)
"""Those of all lines of one name whose labels can't be read: no page can have them."""

_KNOWN: dict[bytes, Series] = {}
"""Wanted lines, as they are spelled before their value: the same ones come from each replica."""


class Scanner:
    """Reads the pages of one address, one after another."""

    def __init__(self, wanted: Set[str]) -> None:
        self._wanted = {name.encode() for name in wanted}
        self._heads = _heads(frozenset(wanted))
        self._series: tuple[Series, ...] = ()
        self._same: _Same | None = None

    def scan(self, page: bytes) -> Scanned:
        """The samples whose names are wanted. Raises PageError."""
        page = page.replace(b"\r\n", b"\n") if b"\r\n" in page else page
        _check_kind(page)
        if not page.endswith((b"\n", END)):
            raise PageError("truncated", "the page does not end with a line break: it may have been cut")
        values = self._same.values(page) if self._same is not None else None
        return self._anew(page) if values is None else Scanned(self._series, values)

    def _anew(self, page: bytes) -> Scanned:
        """Line by line: the first page, one with other lines than that before, one with what is no plain number."""
        try:
            page.decode()
        except UnicodeDecodeError:
            raise PageError("not_metrics", "the page is not UTF-8 text") from None
        found: dict[Series, float] = {}
        odd: dict[str, PageError] = {}
        places: list[int] = []
        last = -1  # the word that ends the line
        ends: set[int] = set()
        for line in page.split(b"\n"):
            last += len(line.split())
            ends.add(last)
            if not line.startswith(self._heads):
                continue
            key, _, word = line.rpartition(b" ")
            series = _KNOWN.get(key)
            name = _HEAD.split(line, 1)[0] if series is None else series[0].encode()
            if name not in self._wanted:
                continue
            try:
                if series is None:
                    series, value = _sample(line.decode(), key)
                else:
                    value = _value(word.decode(), line.decode())
                if series in found and found[series] != value and not math.isnan(value):
                    said = f"the page has {series[0]} twice with the same labels, and other values"
                    raise PageError("malformed", said)
            except PageError as error:
                series, value = series or (name.decode(), UNREAD), math.nan
                odd.setdefault(series[0], error)
            found[series] = value
            if key in _KNOWN:
                places.append(last)
        self._series = tuple(found)
        self._same = _Same(page, places, ends) if len(places) == len(found) > 0 else None
        return Scanned(self._series, tuple(found.values()), odd)


class _Same:
    """Takes the values of a page whose words are those of another, but for the last of each line."""

    def __init__(self, page: bytes, places: Sequence[int], ends: Set[int]) -> None:
        words = page.split()
        self._breaks, self._n = page.count(b"\n"), len(words)
        self._pick = picker(places)
        self._pick_fixed = picker([place for place in range(len(words)) if place not in ends])
        self._fixed = self._pick_fixed(words)

    def values(self, page: bytes) -> Sequence[float] | None:
        """Those of the wanted samples; None where the page has other lines, or what is no finite number."""
        words = page.split()
        if len(words) != self._n or page.count(b"\n") != self._breaks or self._pick_fixed(words) != self._fixed:
            return None
        numbers = self._pick(words)
        if b"".join(numbers).translate(None, _OF_NUMBERS):
            return None
        try:
            values = tuple(map(float, numbers))
        except ValueError:
            return None
        return values if math.isfinite(sum(values)) else None


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What takes these places of a sequence, at the speed of C."""
    if len(places) < 2:
        return lambda row: [row[place] for place in places]
    return itemgetter(*places)


@lru_cache(maxsize=8)
def _heads(wanted: frozenset[str]) -> tuple[bytes, ...]:
    """What a wanted line can begin with: few words, so that 5 000 lines of others cost a millisecond."""
    return tuple(sorted({_FIRST_WORD.split(name, 1)[0].encode() for name in wanted}))


def read(page: bytes, wanted: Set[str]) -> Samples:
    """The samples of one page whose names, with `_bucket`, `_sum`, `_count`, `_total`, are wanted.

    Raises PageError, for one odd sample, too.
    """
    scanned = Scanner(wanted).scan(page)
    for error in scanned.odd.values():
        raise error
    return by_name(scanned)


def by_name(scanned: Scanned) -> Samples:
    """The samples by name and labels."""
    samples: Samples = {}
    for (name, labels), value in zip(scanned.series, scanned.values, strict=True):
        samples.setdefault(name, {})[labels] = value
    return samples


def _check_kind(page: bytes) -> None:
    """Raises PageError for a whole answer that is no page, in words that say what it is."""
    start = page.lstrip()[:1]
    if not start:
        raise PageError("empty", "the page is empty: the server has nothing to tell yet, or not here")
    if start == b"<":
        raise PageError("not_metrics", "the page is HTML, not metrics: a login, or another program's address")
    if start == b'"':
        raise PageError("not_metrics", "the page is a JSON string, not metrics: the server quotes its own page")
    if start in (b"{", b"["):
        raise PageError("not_metrics", "the page is JSON, not metrics")


def _sample(line: str, key: bytes) -> tuple[Series, float]:
    """The series and its value. It is known from now on by `key`, if that and the value are all that the line has."""
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise PageError("malformed", f"the page has a line that is no sample: {line[:80]!r}")
    name, inside, number = match.groups()
    value, series = _value(number, line), (name, _labels(inside, line) if inside else ())
    if match.end(3) == len(line) and line[match.start(3) - 1] == " ":
        if len(_KNOWN) >= KNOWN_MAX:
            _KNOWN.clear()
        _KNOWN[key] = series
    return series, value


def _value(number: str, line: str) -> float:
    """NaN where the page says no finite number."""
    if _NUMBER.fullmatch(number) is not None:
        value = float(number)
        return value if math.isfinite(value) else math.nan
    if _NO_NUMBER.fullmatch(number) is not None:
        return math.nan
    raise PageError("malformed", f"the page has a sample whose value is no number: {line[:80]!r}")


def _labels(inside: str, line: str) -> Labels:
    found: dict[str, str] = {}
    at = 0
    while at < len(inside):
        match = _LABEL.match(inside, at)
        if match is None or match[1] in found:
            raise PageError("malformed", f"the page has labels that can't be read: {line[:80]!r}")
        value = match[2]
        found[match[1]] = _ESCAPED.sub(lambda m: _ESCAPES.get(m[1], m[0]), value) if "\\" in value else value
        at = match.end()
    return tuple(sorted(found.items()))


def without(labels: Labels, name: str) -> Labels:
    """The labels but for one of them."""
    return tuple(pair for pair in labels if pair[0] != name)


def label(labels: Labels, name: str) -> str:
    """The value of one label; "" where there is none."""
    return next((value for key, value in labels if key == name), "")
