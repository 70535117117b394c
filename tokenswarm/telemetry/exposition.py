"""A Prometheus page -> the samples that are wanted, or PageError: a page is used whole or not at all.

Lines of other families are skipped unread. That is why this is not prometheus_client's parser: the 614 lines of vLLM's
page take that one 9 ms, and this one 1 ms, of an event loop that may also read token streams (plain `locust`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Container
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
_HEAD = re.compile(r"[{ \t]")
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}

END = b"# EOF"
"""The last line of an OpenMetrics page: whatever has it is whole, with a line break behind it or without."""


class PageError(ValueError):
    """A page that can't be used. `reason` is counted, str() says it in a sentence."""

    def __init__(self, reason: GapReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: GapReason = reason


def read(page: bytes, wanted: Container[str]) -> Samples:
    """The samples whose names are `wanted` (with `_bucket`, `_sum`, `_count`, `_total`). Raises PageError."""
    _check_kind(page)
    if not page.endswith((b"\n", END)):
        raise PageError("truncated", "the page does not end with a line break: it may have been cut")
    try:
        text = page.decode()
    except UnicodeDecodeError:
        raise PageError("not_metrics", "the page is not UTF-8 text") from None
    samples: Samples = {}
    for line in text.split("\n"):
        if line[:1] == "#" or not line:
            continue
        name = _HEAD.split(line, 1)[0]
        if name in wanted:
            labels, value = _sample(line)
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
    _, inside, number = match.groups()
    if _NUMBER.fullmatch(number) is not None:
        value = float(number)
    elif _NO_NUMBER.fullmatch(number) is not None:
        value = math.nan
    else:
        raise PageError("malformed", f"the page has a sample whose value is no number: {line[:80]!r}")
    return (_labels(inside, line) if inside else ()), value if math.isfinite(value) else math.nan


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
