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
"""Sample name -> labels, sorted by name -> value (finite)."""

GapReason = Literal[
    "timeout", "connect", "closed_early", "http_framing", "http_status", "too_large", "truncated", "not_metrics",
    "malformed", "incomplete",
]  # fmt: skip
"""Why a poll brought nothing. The first six are the transport's."""

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?[0-9]+)?[ \t]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"[ \t]*(?:,[ \t]*|$)')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEAD = re.compile(r"[{ \t]")
_ESCAPED = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


class PageError(ValueError):
    """A page that can't be used. `reason` is counted, str() says it in a sentence."""

    def __init__(self, reason: GapReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: GapReason = reason


def read(page: bytes, wanted: Container[str]) -> Samples:
    """The samples whose names are `wanted` (with `_bucket`, `_sum`, `_count`, `_total`). Raises PageError."""
    if page.lstrip()[:1] in (b"<", b"{", b"["):
        raise PageError("not_metrics", "the page is HTML or JSON, not metrics")
    if not page.endswith(b"\n"):
        raise PageError("truncated", "the page does not end with a line break")
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
            if labels in family:
                raise PageError("malformed", f"the page has {name} twice with the same labels")
            family[labels] = value
    return samples


def _sample(line: str) -> tuple[Labels, float]:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise PageError("malformed", f"the page has a line that is no sample: {line[:80]!r}")
    _, inside, number = match.groups()
    if _NUMBER.fullmatch(number) is None or not math.isfinite(value := float(number)):
        raise PageError("malformed", f"the page has a sample without a finite value: {line[:80]!r}")
    return (_labels(inside, line) if inside else ()), value


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
