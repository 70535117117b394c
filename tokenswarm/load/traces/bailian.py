"""Qwen-Bailian: Mooncake's fields, but `timestamp` in s and `hash_ids` of 16 tokens; told by its `chat_id`.

https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon
"""

from __future__ import annotations

from tokenswarm.load.traces import Lines, Reader, fields_of, mooncake

BLOCK_TOKENS = 16


def head(line: str) -> Reader | None:
    fields = fields_of(line) if line.startswith("{") else None
    known = fields is not None and "chat_id" in fields and "input_length" in fields
    return Lines(mooncake.COLUMNS, 1.0, BLOCK_TOKENS) if known else None
