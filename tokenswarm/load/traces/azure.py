"""Azure's traces of LLM inference, of 2023 and of 2024: TIMESTAMP,ContextTokens,GeneratedTokens."""

from __future__ import annotations

from tokenswarm.load.traces import Columns, Reader, cells_of, moment

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def head(line: str) -> Reader | None:
    names = cells_of(line) if "ContextTokens" in line else []
    return Columns(names, COLUMNS, moment) if set(COLUMNS) <= set(names) else None
