"""BurstGPT: Timestamp in s, `Request tokens`, `Response tokens`; among other columns, which differ by version."""

from __future__ import annotations

from tokenswarm.load.traces import Columns, Reader, cells_of, number_or_time

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def head(line: str) -> Reader | None:
    names = cells_of(line) if "Request tokens" in line else []
    return Columns(names, COLUMNS, number_or_time) if set(COLUMNS) <= set(names) else None
