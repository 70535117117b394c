"""A data set file on disk: is it one, what is its container, its rows as parsed JSON, and each fault as one sentence.

Strict where it must be (NaN, 5000-digit numbers, broken UTF-8 and endless nesting are faults with file and line) and
lenient where real files need it: a byte order mark, CRLF, raw control characters and lone surrogates in strings pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from tokenswarm.errors import DatasetError, not_text
from tokenswarm.prompts.splitter import ArraySplitter, LinesSplitter, RawRow, SplitFault

# One block is 4 ms of work for long rows (60 MB/s on one slow core: split, parse, estimate) and 10 ms for rows of a few
# words (25 MB/s), so a caller that shares its event loop gets it back in time.
BLOCK_BYTES = 256 << 10

_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096


class RowFault(Exception):
    """One row is not JSON. `offset` is relative to the row's first byte; `truncated`: it stops early."""

    def __init__(self, problem: str, offset: int = 0, *, truncated: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.offset = offset
        self.truncated = truncated


def file_status(path: Path) -> os.stat_result:
    """The stat of a readable, regular, non-empty file. DatasetError otherwise."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: there is no such file (`tokenswarm data fetch sharegpt` downloads the usual data set, with an "
            "address in its place any other)"
        ) from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: the file can't be read: {_os_problem(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DatasetError(f"{path}: this is a directory: name the data set file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"{path}: this is not a regular file: copy the data into one first")
    if status.st_size == 0:
        raise DatasetError(f"{path}: the file is empty: is the download complete?")
    return status


def open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: the file can't be read: {_os_problem(error)}") from None


def _os_problem(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


class Source:
    """One pass over a file: iterate for (bytes read so far, rows of this block); then `sha256` is the whole file's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = ""

    def __iter__(self) -> Iterator[tuple[int, list[RawRow]]]:
        digest = hashlib.sha256()
        done = 0
        with open_file(self.path) as file:
            block = file.read(BLOCK_BYTES)
            splitter, start = self._splitter(block)
            digest.update(block)
            try:
                yield len(block), splitter.feed(block[start:])
                done = len(block)
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    done += len(block)
                    yield done, splitter.feed(block)
                yield done, splitter.finish()
            except SplitFault as fault:
                unfinished = splitter.unfinished_row() if isinstance(splitter, ArraySplitter) else b""
                self._raise_split(fault, unfinished)
        self.sha256 = digest.hexdigest()

    def _splitter(self, head: bytes) -> tuple[ArraySplitter | LinesSplitter, int]:
        """The splitter for the file's container, and where its first byte is. DatasetError where it is not JSON."""
        start = len(_BOM) if head.startswith(_BOM) else 0
        text = head[start : start + _HEAD_BYTES].lstrip()
        if said := not_text(text):
            raise DatasetError(f"{self.path}: {said}")
        start = head.find(text, start) if text else start
        if not text:
            raise DatasetError(f"{self.path}: the file holds only white space: is the download complete?")
        if text.startswith(b"["):
            return ArraySplitter(start + 1), start + 1
        if not text.startswith((b"{", b'"')):
            shown = text[:24].decode("utf-8", "replace").splitlines()[0]
            raise DatasetError(
                f"{self.path}: this is neither a JSON array nor JSONL: it begins with {shown!r}: write one JSON value "
                'a line, such as {"prompt": "…"}'
            )
        return LinesSplitter(start), start

    def _raise_split(self, fault: SplitFault, unfinished: bytes) -> NoReturn:
        """Explain a broken array: a row of wrong JSON is the cause, and not that the file then ends inside it."""
        if fault.row_offset is not None:
            try:
                decode_row(unfinished)
            except RowFault as row_fault:
                if not row_fault.truncated:
                    self.raise_row(row_fault, fault.row_offset)
        line = self.line_at(fault.offset)
        if fault.problem.startswith("the file ends"):
            raise DatasetError(f"{self.path}:{line}: {fault.problem}: is the download complete?") from None
        raise DatasetError(f"{self.path}:{line}: not valid JSON: {fault.problem}") from None

    def raise_row(self, fault: RowFault, row_offset: int) -> NoReturn:
        raise DatasetError(self.row_sentence(fault, row_offset)) from None

    def row_sentence(self, fault: RowFault, row_offset: int) -> str:
        at = row_offset + fault.offset
        problem = fault.problem
        stops_at_the_end = self.path.stat().st_size - at <= len("\r\n")
        if fault.truncated and stops_at_the_end:
            problem = "the file ends inside a JSON value: is the download complete?"
        return f"{self.path}:{self.line_at(at)}: {problem}"

    def line_at(self, offset: int) -> int:
        """The line, from 1, of a byte offset; read again, since a line count is only wanted once something is wrong."""
        line = 1
        with open_file(self.path) as file:
            while offset > 0 and (block := file.read(min(BLOCK_BYTES, offset))):
                line += block.count(b"\n")
                offset -= len(block)
        return line


_decode_fast = msgspec.json.Decoder().decode


def decode_row(raw: bytes) -> Any:
    """One row as Python values. RowFault with the place where it is not JSON.

    msgspec reads nearly every row; what it refuses (raw control characters, lone surrogates: both legal for Python's
    parser) is read again with `json`, which also says where the fault is.
    """
    try:
        row = _decode_fast(raw)
        if isinstance(row, dict) and any(raw.count(b'"%s"' % key.encode()) > 1 for key in row if key.isascii()):
            _decode_careful(raw)  # maybe only the same word elsewhere in the row
        return row
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _decode_careful(raw)


def _decode_careful(raw: bytes) -> Any:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise RowFault("not valid UTF-8", error.start, truncated=error.reason == "unexpected end of data") from None
    try:
        return json.loads(text, strict=False, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except RowFault:
        raise
    except json.JSONDecodeError as error:
        truncated = error.msg.startswith("Unterminated string") or not text[error.pos :].strip()
        at = len(raw) if truncated else len(text[: error.pos].encode())
        spread = "; a row of JSONL stands on one line, as `jq -c` writes it" if text.strip() in ("{", "[") else ""
        raise RowFault(f"not valid JSON: {error.msg}{spread}", at, truncated=truncated) from None
    except RecursionError:
        raise RowFault("the row is nested too deeply") from None
    except ValueError:  # CPython's own limit on digits (sys.set_int_max_str_digits)
        raise RowFault("the row holds a number with thousands of digits") from None


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; RowFault where a key stands in it twice: parsers would keep one of them, each its own."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowFault(f"not one meaning: the key {twice[:40]!r} stands twice in the same object; remove one of them")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise RowFault(f"{name} is not JSON (the row holds it as a number)")
