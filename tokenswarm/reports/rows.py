"""The files of a run's rows: requests.jsonl, and before it those that were closed and compressed while the run went on.

    requests.0001.jsonl.gz    the oldest rows
    requests.0002.jsonl       closed, not compressed yet (or the disk was full)
    requests.jsonl            the newest

Readers take them in this order as one. A file that is missing or cut off is told in a sentence with file and line.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tokenswarm.errors import ResultsError

ROWS_NAME = "requests.jsonl"
LINE_BYTES_MAX = 16 << 20  # rows with text hold an answer; more is no row of ours
COPY_BYTES = 1 << 20
LEVEL = 1  # rows take an eighth of their size, at a third of the time that the usual level takes

_CLOSED = re.compile(r"requests\.(\d{4,9})\.jsonl(\.gz)?")


def closed_name(number: int) -> str:
    """What a file of rows is called once it is full."""
    return f"requests.{number:04d}.jsonl"


def closed_files(folder: Path) -> dict[int, Path]:
    """The full files by number, ascending. Where one is there in both forms, the plain one: it is whole."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (name := _CLOSED.fullmatch(path.name)) and (name[2] is None or int(name[1]) not in found):
            found[int(name[1])] = path
    return dict(sorted(found.items()))


def row_files(folder: Path) -> list[Path]:
    """All files with rows of the run, oldest first."""
    newest = folder / ROWS_NAME
    return [*closed_files(folder).values(), *([newest] if newest.exists() else [])]


def missing_files(paths: Sequence[Path]) -> str:
    """A sentence on full files that are not among those of a run; "" where none is missing."""
    numbers = {int(found[1]) for path in paths if (found := _CLOSED.fullmatch(path.name))}
    lacking = [f"{closed_name(n)}.gz" for n in range(1, max(numbers, default=0)) if n not in numbers]
    if not lacking:
        return ""
    more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    return f"{lacking[0]}: no such file{more}, but later ones are there: copy it back, its rows are in no other"


class Lines:
    """The lines of a file, plain or compressed. `problem`: why it could not be read to its end, in a sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0  # of the newest line
        self.problem = ""

    def __iter__(self) -> Iterator[bytes]:
        try:
            with self._open() as file:
                while line := file.readline(LINE_BYTES_MAX):
                    self.number += 1
                    yield line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            how = "ends too early" if isinstance(error, EOFError) else f"is damaged ({error})"
            self.problem = (
                f"{self.path.name}:{self.number + 1}: the compressed file {how}; its rows up to here are read: copy it "
                "again from where it is whole"
            )
        except OSError as error:
            self.problem = f"{self.path.name} can't be read ({error.strerror or error})"

    def _open(self) -> BinaryIO:
        return gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb")  # type: ignore[return-value]


def compress(path: Path) -> None:
    """The file as .gz, which takes its place once it is whole. Raises ResultsError; then the plain one stays.

    Its work is done in zlib and the kernel, so it may run in a thread beside the load.
    """
    target = path.with_name(f"{path.name}.gz")
    temporary = target.with_name(f"{target.name}.part")
    try:
        with path.open("rb") as source, temporary.open("wb") as raw:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as packed:
                while data := source.read(COPY_BYTES):
                    packed.write(data)
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(target)
        path.unlink()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResultsError(
            f"{target}: could not be written: {error.strerror}; the rows stay in {path.name}, uncompressed"
        ) from None
