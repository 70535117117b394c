"""The plain form, CSV with a head or JSONL: timestamp (s, or a date), input_tokens, output_tokens."""

from __future__ import annotations

from tokenswarm.load.traces import Columns, Lines, Reader, cells_of, fields_of, number_or_time

COLUMNS = ("timestamp", "input_tokens", "output_tokens")


def head(line: str) -> Reader | None:
    if line.startswith("{"):
        return Lines(COLUMNS, 1.0) if fields_of(line) is None or "input_tokens" in (fields_of(line) or ()) else None
    names = [name.strip() for name in cells_of(line)] if "input_tokens" in line else []
    return Columns(names, COLUMNS, number_or_time) if set(COLUMNS) <= set(names) else None
