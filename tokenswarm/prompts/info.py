"""What is known about an opened data set: rows read, kept and dropped by reason, lengths; and its rendering as text.

`rows_read == rows_kept + sum(drops.values())`, always. Lengths are tokens: of the longest prompt of a conversation
(the last turn's, with its history) and of all its answers together; p50 and p95 by nearest rank.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

UNANSWERED = "history_without_answers"
"""A note of a conversation whose earlier turns lack an answer: what stands in its history is not of the data set."""

ESTIMATE = "estimated: characters / 4, / 1.5 for Chinese, Japanese, Korean and emoji"


class Spread(msgspec.Struct, frozen=True):
    min: int
    p50: int
    p95: int
    max: int
    mean: float


class DataInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `data info` shows and the manifest records."""

    path: str | None  # None: synthetic
    format: str
    bytes: int
    sha256: str | None
    rows_read: int
    rows_kept: int
    drops: dict[str, int]  # reason -> rows
    notes: dict[str, int]  # what was changed in rows that were kept -> rows
    duplicates: int  # rows that ask the same as an earlier one, kept or dropped as the settings say
    conversations: str  # single | multi
    turns: Spread | None
    input_tokens: Spread | None
    output_tokens: Spread | None  # of the rows that have an answer or state a length
    rows_with_answer: int
    tokens_from: str  # "estimated: ..." or "counted by <tokenizer>"
    seed: int | None  # of the order; None: file order
    cached: bool  # the index came from the cache


def spread(values: Iterable[int]) -> Spread | None:
    """The spread of the values; None where there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    count = len(ordered)
    rank = [max(0, -(-count * percent // 100) - 1) for percent in (50, 95)]
    return Spread(ordered[0], ordered[rank[0]], ordered[rank[1]], ordered[-1], sum(ordered) / count)


def info_text(info: DataInfo) -> str:
    """The lines of `data info`, without a final line end."""
    rows = [
        ("data set", info.path or "synthetic"),
        ("format", f"{info.format}, {info.conversations} turn"),
        ("size", f"{info.bytes:,} bytes" if info.path else "generated"),
        ("sha256", info.sha256 or "none"),
        ("rows", f"{info.rows_read:,} read = {info.rows_kept:,} kept + {sum(info.drops.values()):,} dropped"),
        *(("  dropped", f"{n:,} {name}") for name, n in sorted(info.drops.items(), key=lambda row: (-row[1], row[0]))),
        *(("  changed", f"{n:,} {name}") for name, n in sorted(info.notes.items(), key=lambda row: (-row[1], row[0]))),
        ("duplicates", f"{info.duplicates:,}"),
        ("turns", _spread_text(info.turns)),
        ("prompt tokens", _spread_text(info.input_tokens)),
        ("answer tokens", f"{_spread_text(info.output_tokens)} ({info.rows_with_answer:,} rows have one)"),
        ("tokens are", info.tokens_from),
        ("order", "as in the file" if info.seed is None else f"shuffled, seed {info.seed}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _spread_text(values: Spread | None) -> str:
    if values is None:
        return "none"
    return f"min {values.min:,}  p50 {values.p50:,}  p95 {values.p95:,}  max {values.max:,}  mean {values.mean:,.1f}"
