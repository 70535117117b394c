"""What `tokenswarm path` found: the levels, the findings, the verdict. path.json is this, field by field."""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_VERSION = 1

Word = Literal["transparent", "delays", "alters", "loses"]
WORDS: tuple[Word, ...] = ("transparent", "delays", "alters", "loses")
"""From harmless to grave; the verdict is the worst of the findings."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the path did. `transparent`: worth knowing, and no reason for another verdict."""

    code: str
    word: Word
    message: str


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One way to the engine, at one number of streams. Added: client − engine, seconds."""

    ok: int
    added_ttft_s: float | None = None  # medians over the streams
    added_e2e_s: float | None = None
    gap_p50_s: float | None = None  # between reads with content
    gap_p99_s: float | None = None
    merged_ratio: float = 0.0  # of the events: came in a read with an earlier one


class Level(msgspec.Struct, frozen=True, kw_only=True):
    streams: int  # at a time
    answers: int
    direct: Side
    via: Side


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One stream on one clock, seconds since it was sent: when the engine wrote each token, when the client had it."""

    sent_s: tuple[float, ...] = ()
    seen_s: tuple[float, ...] = ()


class PathReport(msgspec.Struct, frozen=True, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    via: str
    upstream: str
    api: str
    verdict: Word
    findings: tuple[Finding, ...]
    levels: tuple[Level, ...]
    trace: Trace
    marks: dict[str, str] = {}  # headers in which proxies and gateways give themselves away
    checks: tuple[tuple[str, str], ...] = ()  # (what was tried, what came of it)
