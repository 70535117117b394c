"""results/<run_id>/: rows appended while they come, documents written whole or not at all, `latest` kept up to date.

Every failure is a ResultsError of one sentence. What could not be written whole is not left behind: rows end with a
whole row, and no file is empty because the disk was full.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from tokenswarm.errors import ResultsError
from tokenswarm.reports.rows import ROWS_NAME, closed_name

LIVE_NAME = "live.part"
"""In the spool, while the run goes on: the newest sums of all workers,"""
TOLD_NAME = "told.part"
"""and what engines and GPUs told until then."""

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_DOCUMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def new_run_id(now: datetime, random: str) -> str:
    """YYYYMMDD-HHMMSS-xxxx, which sorts by time; `random` is a few of [a-z0-9]. Raises ValueError for others."""
    run_id = f"{now:%Y%m%d-%H%M%S}-{random}"
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"{random!r} can't be part of a run id")
    return run_id


class ResultsFolder:
    """The folder of one run. `failure` keeps the first error of appending rows; later rows are then dropped."""

    def __init__(self, path: Path) -> None:
        self.path, self.run_id = path, path.name
        self.failure: ResultsError | None = None
        self._rows: io.FileIO | None = None
        self._good = 0  # bytes of whole rows
        self.rotate_bytes: int | None = None  # rows of a file before the next one begins
        self.closed: list[Path] = []  # full files that nobody has compressed yet
        self._number = 0  # of full files

    @classmethod
    def create(cls, base: Path, run_id: str) -> ResultsFolder:
        """Make `base`/`run_id` and check that it can be written. Raises ResultsError."""
        if not _RUN_ID.fullmatch(run_id):
            raise ResultsError(f"{run_id!r} is no run id: it may hold a-z, 0-9 and '-' only")
        folder = cls(Path(base) / run_id)
        try:
            folder.path.mkdir(parents=True)
            folder.spool.mkdir()
        except FileExistsError:
            raise ResultsError(f"{folder.path}: exists already, or a file is where a folder should be") from None
        except OSError as error:
            raise ResultsError(f"{folder.path}: can't make the results folder: {error.strerror}") from None
        folder._write(".probe", (b"can this be written?\n",))
        (folder.path / ".probe").unlink()
        return folder

    @property
    def spool(self) -> Path:
        """Where workers on this machine keep their rows until the end."""
        return self.path / ".spool"

    def has(self, name: str) -> bool:
        """Whether there is such a file, as far as one may look."""
        return os.access(self.path / name, os.F_OK)

    def append_rows(self, rows: bytes) -> None:
        """Append whole rows to requests.jsonl. Raises ResultsError at the first failure; after it, does nothing."""
        if self.failure is not None:
            return
        try:
            if self._rows is None:
                self._rows = io.FileIO(self.path / ROWS_NAME, "ab")
            view = memoryview(rows)
            while view:
                view = view[self._rows.write(view) or 0 :]
            self._good += len(rows)
        except OSError as error:
            self.failure = ResultsError(f"{self.path / ROWS_NAME}: rows could not be written: {error.strerror}")
            self._cut_torn_row()
            raise self.failure from None
        if self.rotate_bytes is not None and self._good >= self.rotate_bytes:
            self._rotate()

    def _rotate(self) -> None:
        """The file is full: it gets its number, and `closed` has it. Where that fails, rows go on into the same one."""
        assert self._rows is not None
        full = self.path / closed_name(self._number + 1)
        with contextlib.suppress(OSError):
            (self.path / ROWS_NAME).rename(full)
            self._number += 1
            self.closed.append(full)
            rows, self._rows, self._good = self._rows, None, 0
            rows.close()

    def _cut_torn_row(self) -> None:
        if self._rows is None:
            return
        try:
            self._rows.truncate(self._good)
            if not self._good:
                (self.path / ROWS_NAME).unlink()
        except OSError:
            pass  # the first failure is the one to tell

    def close_rows(self) -> None:
        """All rows are there: onto the disk with them. Raises ResultsError, again if appending had failed.

        A folder that somebody removed meanwhile is made again, for what is known without rows.
        """
        rows, self._rows = self._rows, None
        with contextlib.suppress(OSError):
            self.path.mkdir(parents=True, exist_ok=True)
        if rows is not None:
            try:
                os.fsync(rows.fileno())
                rows.close()
            except OSError as error:
                self.failure = self.failure or ResultsError(
                    f"{self.path / ROWS_NAME}: could not be written: {error.strerror}"
                )
        with contextlib.suppress(OSError):  # rows are still in it; or nothing can be removed, which is no loss
            for name in (LIVE_NAME, TOLD_NAME):
                (self.spool / name).unlink(missing_ok=True)
            self.spool.rmdir()
        if self.failure is not None:
            raise self.failure

    def append_line(self, name: str, line: bytes) -> None:
        """Append one line, or whole lines, to a file of few. Raises ResultsError; what was cut off is taken back."""
        path = self.path / name
        try:
            with path.open("ab") as file:
                good = file.seek(0, os.SEEK_END)
                try:
                    file.write(line)
                    file.flush()
                except OSError:
                    file.truncate(good)
                    raise
        except OSError as error:
            raise ResultsError(f"{path}: could not be written: {error.strerror}") from None

    def write_live(self, name: str, data: bytes) -> None:
        """Keep what is newest, for whoever asks while the run goes on; not waited for. Raises ResultsError."""
        path = self.spool / name
        temporary = path.with_suffix(".new")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            _drop(temporary)
            raise ResultsError(f"{path}: could not be written: {error.strerror}") from None

    def write_json(self, name: str, data: bytes) -> None:
        """Write a document under `name`, whole or not at all. Raises ResultsError."""
        self._write(name, (data,))

    def write_text(self, name: str, text: str) -> None:
        """`write_json` for text, as UTF-8."""
        self.write_pieces(name, (text,))

    def write_pieces(self, name: str, pieces: Iterable[str]) -> None:
        """`write_text`, piece by piece."""
        self._write(name, (piece.encode("utf-8", "replace") for piece in pieces))

    def _write(self, name: str, data: Iterable[bytes]) -> None:
        if not _DOCUMENT.fullmatch(name.removeprefix(".")):
            raise ValueError(f"{name!r} is no name for a document of a results folder")
        path, temporary = self.path / name, self.path / f"{name}.part"
        try:
            with temporary.open("wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            _drop(temporary)
            raise ResultsError(f"{path}: could not be written: {error.strerror}") from None


def check_folder(path: Path) -> None:
    """Make a folder where there is none, and see that a file can be written into it: before the work, whose result
    goes there. Raises ResultsError.
    """
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"can this be written?\n")
        probe.unlink()
    except OSError as error:
        _drop(probe)
        raise ResultsError(f"{path}: can't be written: {error.strerror or error}") from None


def link_latest(base: Path, run: Path) -> str:
    """Let `latest` in `base` point to `run` below it. What to tell where something else stands there; else "".

    Who reads `latest` must not take another run for this one. File systems without links have none.
    """
    link, temporary = base / "latest", base / f".latest-{run.name}"
    try:
        temporary.symlink_to(run.relative_to(base), target_is_directory=True)
        temporary.replace(link)
    except (OSError, NotImplementedError, ValueError):
        _drop(temporary)
        if os.access(link, os.F_OK):
            kind = "could not be set" if os.path.islink(link) else "is no link"  # noqa: PTH114 -- it raises nothing
            return f"{link} {kind}, and stays what it is: this run is in {run}"
    return ""


def _drop(path: Path) -> None:
    """Remove what could not be finished. Where that fails, too (a disk that became read-only), it stays."""
    with contextlib.suppress(OSError):
        path.unlink()
