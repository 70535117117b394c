"""A Prometheus page -> the samples that are wanted, or PageError: a page is used whole or not at all.

Lines of other families are skipped unread. That is why this is not prometheus_client's parser: the 614 lines of vLLM's
page take that one 9 ms, and this one 1 ms, of an event loop that may also read token streams (plain `locust`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Set
from functools import lru_cache
from typing import Literal

Labels = tuple[tuple[str, str], ...]
Samples = dict[str, dict[Labels, float]]
"""Sample name -> labels, sorted by name -> value; NaN where the page has the series without a finite value."""

GapReason = Literal[
    "timeout", "connect", "closed_early", "http_framing", "http_status", "too_large", "truncated", "not_metrics",
    "malformed", "incomplete", "empty", "several_processes",
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
_HEAD = re.compile(r"[{ \t]")
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}

KNOWN_MAX = 100_000
_KNOWN: dict[str, tuple[str, Labels]] = {}
"""Series as pages spell them, before their value -> name and labels: the same ones come with every look."""

END = b"# EOF"
"""The last line of an OpenMetrics page: whatever has it is whole, with a line break behind it or without."""


class PageError(ValueError):
    """A page that can't be used. `reason` is counted, str() says it in a sentence."""

    def __init__(self, reason: GapReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: GapReason = reason


@lru_cache(maxsize=8)
def _heads(wanted: frozenset[str]) -> tuple[str, ...]:
    """What a wanted line can begin with: few words, so that 5 000 lines of others cost a millisecond."""
    return tuple(sorted({_FIRST_WORD.split(name, 1)[0] for name in wanted}))


def read(page: bytes, wanted: Set[str]) -> Samples:
    """The samples whose names are `wanted` (with `_bucket`, `_sum`, `_count`, `_total`). Raises PageError."""
    _check_kind(page)
    if not page.endswith((b"\n", END)):
        raise PageError("truncated", "the page does not end with a line break: it may have been cut")
    try:
        text = page.decode()
    except UnicodeDecodeError:
        raise PageError("not_metrics", "the page is not UTF-8 text") from None
    samples: Samples = {}
    heads = _heads(frozenset(wanted))
    for line in text.split("\n"):
        if not line.startswith(heads):
            continue
        known = _KNOWN.get(line[: line.rfind(" ")])
        name = _HEAD.split(line, 1)[0] if known is None else known[0]
        if name in wanted:
            labels, value = _sample(line) if known is None else (known[1], _value(line[line.rfind(" ") + 1 :], line))
            family = samples.setdefault(name, {})
            if labels in family and family[labels] != value and not math.isnan(value):
                raise PageError("malformed", f"the page has {name} twice with the same labels, and other values")
            family[labels] = value
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


def _sample(line: str) -> tuple[Labels, float]:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise PageError("malformed", f"the page has a line that is no sample: {line[:80]!r}")
    name, inside, number = match.groups()
    value, labels = _value(number, line), _labels(inside, line) if inside else ()
    if match.end(3) == len(line):
        if len(_KNOWN) >= KNOWN_MAX:
            _KNOWN.clear()
        _KNOWN[line[: match.start(3) - 1]] = name, labels
    return labels, value


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
