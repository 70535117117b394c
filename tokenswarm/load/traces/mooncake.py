"""Mooncake: JSONL with `timestamp` in ms, lengths, and `hash_ids`, one for each 512 tokens of the prompt."""

from __future__ import annotations

from tokenswarm.load.traces import Lines, Reader, fields_of

COLUMNS = ("timestamp", "input_length", "output_length")
BLOCK_TOKENS = 512


def head(line: str) -> Reader | None:
    fields = fields_of(line) if line.startswith("{") else None
    return Lines(COLUMNS, 0.001, BLOCK_TOKENS) if fields is not None and "input_length" in fields else None
