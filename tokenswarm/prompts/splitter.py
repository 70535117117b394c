"""Cuts a JSON array, or JSONL, into its rows without parsing them: bytes in, (offset, bytes) of each row out.

Sans-IO: `feed` blocks of any size, then `finish`. Knows strings and escapes, so brackets inside them don't count. About
200 MB/s (a regex match a string or bracket), linear for any input; holds one row and one block, and a row has at most
ROW_BYTES_MAX. What is wrong with the array is raised as SplitFault with the byte offset.
"""

from __future__ import annotations

import re
from typing import Protocol

ROW_BYTES_MAX = 16 << 20  # 4 million tokens in one conversation: no model takes them, and memory stays bounded

_STRING_REST = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
# A whole string, a bracket, or a quote whose string goes on in the next block. Possessive: no backtracking, so linear.
_TOKEN = re.compile(rb'"' + _STRING_REST + rb'"|[\[\]{}]|"', re.DOTALL)
_REST = re.compile(_STRING_REST, re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb'[^\s,\[\]{}"]*+')
_QUOTE = ord('"')
_OPEN = frozenset(b"[{")
_NOT_A_ROW = frozenset(b",]}:")

RawRow = tuple[int, bytes]


class SplitFault(Exception):
    """The container is broken at byte `offset`. `row_offset` is where the row around it begins; None: between rows."""

    def __init__(self, offset: int, problem: str, row_offset: int | None = None) -> None:
        super().__init__(problem)
        self.offset = offset
        self.problem = problem
        self.row_offset = row_offset


class Splitter(Protocol):
    def feed(self, block: bytes) -> list[RawRow]: ...

    def finish(self) -> list[RawRow]: ...


class LinesSplitter:
    """Rows of JSONL: one a line, LF or CRLF, the last one with or without a line end; empty lines are none."""

    def __init__(self, offset: int = 0) -> None:
        self._base = offset
        self._tail = b""

    def feed(self, block: bytes) -> list[RawRow]:
        lines = (self._tail + block).split(b"\n")
        self._tail = lines.pop()
        rows = []
        for line in lines:
            if line and not line.isspace():
                rows.append((self._base, line))
            self._base += len(line) + 1
        if len(self._tail) > ROW_BYTES_MAX:
            raise SplitFault(self._base, "a line of more than 16 MiB is not one row")
        return rows

    def finish(self) -> list[RawRow]:
        return self.feed(b"\n") if self._tail else []


class ArraySplitter:
    """Rows of one JSON array. Feed it from the first byte after the opening bracket, which is at `offset - 1`."""

    def __init__(self, offset: int) -> None:
        self._base = offset  # file offset of _buffer[0]
        self._buffer = b""
        self._at = 0  # scanned up to here
        self._row = -1  # where the current row begins in _buffer; -1: between rows
        self._depth = 0
        self._in_string = False
        self._wants = "row or end"  # | "row" (after a comma) | "comma or end" | "nothing" (the array is closed)

    def feed(self, block: bytes) -> list[RawRow]:
        self._buffer += block
        rows: list[RawRow] = []
        while self._row >= 0 or self._next_row():
            if not self._row_end():
                break
            rows.append((self._base + self._row, self._buffer[self._row : self._at]))
            self._row = -1
            self._wants = "comma or end"
        done = self._at if self._row < 0 else self._row
        self._buffer = self._buffer[done:]
        self._base += done
        self._at -= done
        self._row = min(self._row, 0)
        if self._row == 0 and len(self._buffer) > ROW_BYTES_MAX:
            raise SplitFault(self._base, "a row of more than 16 MiB, or a quote or bracket is missing", self._base)
        return rows

    def finish(self) -> list[RawRow]:
        if self._wants != "nothing":
            row_offset = self._base if self._row == 0 else None
            raise SplitFault(self._base + len(self._buffer), "the file ends inside a JSON array", row_offset)
        return []

    def unfinished_row(self) -> bytes:
        """The bytes of the row that has no end yet, for whoever explains a fault."""
        return self._buffer if self._row == 0 else b""

    def _next_row(self) -> bool:
        """Move to the first byte of the next row; False: the block is used up (or the array is closed)."""
        buffer = self._buffer
        while True:
            space = _SPACE.match(buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at == len(buffer):
                return False
            byte = buffer[self._at]
            wants = self._wants
            if wants == "nothing":
                raise self._fault("there is more after the JSON array")
            if byte == ord("]") and wants != "row":
                self._wants = "nothing"
            elif byte == ord(",") and wants == "comma or end":
                self._wants = "row"
            elif wants == "comma or end":
                raise self._fault("a comma is missing between two rows")
            elif byte in _NOT_A_ROW:
                raise self._fault(f"a row is missing before {chr(byte)!r}")
            else:
                self._row = self._at
                self._depth = 0
                return True
            self._at += 1

    def _row_end(self) -> bool:
        """Scan on to the end of the current row; False: the row goes on in the next block."""
        buffer = self._buffer
        if self._in_string and not self._string_end():
            return False
        if self._depth == 0 and self._at > self._row:
            return True  # a row that is one string, and it just ended
        if self._depth == 0 and buffer[self._row] not in b'[{"':
            return self._scalar_end()
        depth = self._depth
        for token in _TOKEN.finditer(buffer, self._at):
            byte = buffer[token.start()]
            if byte == _QUOTE:
                if token.end() - token.start() == 1:  # a whole string has two quotes
                    self._in_string, self._depth, self._at = True, depth, token.end()
                    return self._string_end()
            elif byte in _OPEN:
                depth += 1
            else:
                depth -= 1
            if depth == 0:
                self._at = token.end()
                return True
        self._depth, self._at = depth, len(buffer)
        return False

    def _string_end(self) -> bool:
        rest = _REST.match(self._buffer, self._at)
        self._at = rest.end() if rest else self._at
        if self._buffer[self._at : self._at + 1] != b'"':
            return False  # at the end of the block, or before a backslash whose partner is in the next one
        self._at += 1
        self._in_string = False
        return True

    def _scalar_end(self) -> bool:
        scalar = _SCALAR.match(self._buffer, self._row)
        end = scalar.end() if scalar else self._row
        if end == len(self._buffer):
            return False
        self._at = end
        return True

    def _fault(self, problem: str) -> SplitFault:
        return SplitFault(self._base + self._at, problem)
