"""The index of a data set file: where each kept row is, how long it is in tokens, and what became of all the others.

Rows are read back by offset, so memory is 32 bytes a kept row whatever the file's size. The index is cached on disk,
keyed by the path, the settings and the file's size and times; a stale, foreign or broken cache is ignored and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from array import array
from pathlib import Path
from zlib import crc32

import msgspec

INDEX_VERSION = 5  # raise it whenever a reader, a filter or the estimate decides differently
UNKNOWN = 0xFFFFFFFF  # in the output column: the row has no answer and states no length

_COLUMNS = (
    ("offsets", "Q"),
    ("lengths", "I"),
    ("numbers", "I"),
    ("turns", "I"),
    ("inputs", "I"),
    ("outputs", "I"),
    ("sums", "I"),
)


class Index:
    """Columns of the kept rows, in file order, and the counts of all rows. Filled once, then only read."""

    def __init__(self) -> None:
        self.sha256 = ""
        self.rows_read = 0
        self.duplicates = 0
        self.formats: dict[str, int] = {}
        self.drops: dict[str, int] = {}
        self.notes: dict[str, int] = {}
        self.offsets = array("Q")
        self.lengths = array("I")  # bytes
        self.numbers = array("I")  # the row's number in the file, from 0
        self.turns = array("I")
        self.inputs = array("I")  # tokens of the longest prompt: the last turn's, with its history
        self.outputs = array("I")  # tokens of all answers together, or UNKNOWN
        self.sums = array("I")  # CRC-32 of the row's bytes: a row that was edited meanwhile is another

    def __len__(self) -> int:
        return len(self.offsets)

    def keep(
        self, offset: int, raw: bytes, number: int, turns: int, input_tokens: int, output_tokens: int | None
    ) -> None:
        self.offsets.append(offset)
        self.lengths.append(len(raw))
        self.sums.append(crc32(raw))
        self.numbers.append(number)
        self.turns.append(turns)
        self.inputs.append(min(input_tokens, UNKNOWN - 1))
        self.outputs.append(UNKNOWN if output_tokens is None else min(output_tokens, UNKNOWN - 1))


def count(table: dict[str, int], name: str) -> None:
    table[name] = table.get(name, 0) + 1


class _Stored(msgspec.Struct, array_like=True):
    key: bytes
    sha256: str
    rows_read: int
    duplicates: int
    formats: dict[str, int]
    drops: dict[str, int]
    notes: dict[str, int]
    columns: list[bytes]


def cache_key(path: Path, status: os.stat_result, settings: bytes) -> bytes:
    """32 bytes that differ when the file, the settings or the program's reading of it do."""
    parts = (
        str(path.resolve()),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,  # a replaced file may carry an old mtime (rsync, tar); its ctime is new
        INDEX_VERSION,
        sys.byteorder,
        settings,
    )
    return hashlib.sha256(msgspec.msgpack.encode(parts)).digest()


def cache_file(folder: Path, path: Path, settings: bytes) -> Path:
    """One file a (data set, settings) pair, so that a stale index is replaced and not piled up."""
    name = hashlib.sha256(f"{path.resolve()}\n".encode("utf-8", "surrogateescape") + settings).hexdigest()[:24]
    return folder / f"index-{name}.msgpack"


def load(file: Path, key: bytes) -> Index | None:
    """The cached index, or None where there is none, it is stale, or it is broken."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    body, checksum = data[:-32], data[-32:]
    if hashlib.sha256(body).digest() != checksum:
        return None
    try:
        stored = msgspec.msgpack.decode(body, type=_Stored)
    except msgspec.MsgspecError:
        return None
    if stored.key != key or len(stored.columns) != len(_COLUMNS):
        return None
    index = Index()
    for field in ("sha256", "rows_read", "duplicates", "formats", "drops", "notes"):
        setattr(index, field, getattr(stored, field))
    for (name, typecode), column in zip(_COLUMNS, stored.columns, strict=True):
        values = array(typecode)
        values.frombytes(column)
        setattr(index, name, values)
    return index


def save(file: Path, key: bytes, index: Index) -> bool:
    """Write the index whole or not at all; False where the folder can't be written (the next run indexes again).

    Several workers may do this at once: each writes its own temporary file, the last rename wins, all are the same.
    """
    columns = [getattr(index, name).tobytes() for name, _ in _COLUMNS]
    stored = _Stored(
        key, index.sha256, index.rows_read, index.duplicates, index.formats, index.drops, index.notes, columns
    )
    body = msgspec.msgpack.encode(stored)
    temporary = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.stem}-", delete=False) as out:
            temporary = out.name
            out.write(body + hashlib.sha256(body).digest())
        Path(temporary).replace(file)
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        return False
    return True
