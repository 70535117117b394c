"""What a worker keeps on disk while the load runs, so that its death loses a second and no more.

Rows are written each second, and beside them the newest report, and whose all of it is:

    worker-3.json           Owner: run, worker, host, process
    worker-3.jsonl          rows of requests.jsonl
    worker-3.0001.jsonl     rows that were closed to be handed over while the load runs (`soak.rotate_mib`)
    worker-3.live-0.part    the newest report, or the one before it (live-1): Snapshots with what changed lately
    worker-3.0-steady.part  the newest report that still held this block

A disk that fails costs rows, never the load: `failure` keeps the first error, later rows are dropped and counted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tokenswarm.errors import ResultsError
from tokenswarm.measure.snapshot import Snapshot

PENDING_BYTES_MAX = 256 * 1024  # rows in memory; more are written before the second is over
PART_BYTES = 1 << 20  # rows of a part that is handed over while the load runs


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose files these are. `workers`: how many the run has."""

    run_id: str
    worker: int
    workers: int
    host: str
    pid: int

    @property
    def name(self) -> str:
        return f"worker {self.worker} ({self.host}, pid {self.pid})"


class Spool:
    """The files of one worker of one run. `rows` were given; `lost` of them could not be written."""

    def __init__(self, folder: Path, owner: Owner, *, parts: bool = False, alone: bool = False) -> None:
        """Begin empty files in `folder`; `parts`: rows are closed in parts, see `take`; `alone`: the folder goes with
        them. Raises ResultsError.
        """
        self._alone = alone
        self.path = folder / f"worker-{owner.worker}.jsonl"
        self.failure: ResultsError | None = None
        self.rows = self.lost = 0
        self._pending: list[bytes] = []
        self._pending_bytes = self._good = 0
        self._live: set[str] = set()  # blocks of the newest report
        self._turn = 0
        self._part_bytes = PART_BYTES if parts else None
        self._parts: list[Path] = []  # closed, oldest first
        self._part = 0
        try:
            self._file = self._open()
            self.path.with_suffix(".json").write_bytes(msgspec.json.encode(owner))
            for turn in (0, 1):
                self._live_path(turn).touch()
        except OSError as error:
            raise ResultsError(f"{self.path}: rows can't be written: {error.strerror}") from None

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

    def write(self, row: bytes) -> None:
        """Keep one row; it is on disk within the second."""
        self.rows += 1
        self._pending.append(row)
        self._pending_bytes += len(row)
        if self._pending_bytes > PENDING_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what was kept. A file never ends within a row that could not be written whole."""
        rows, self._pending, self._pending_bytes = self._pending, [], 0
        if self.failure is not None:
            self.lost += len(rows)
        elif rows:
            data = memoryview(b"".join(rows))
            self._good += len(data)
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError as error:
                self._good -= sum(map(len, rows))
                os.truncate(self._file, self._good)
                self.lost += len(rows)
                self._fail(error)
            if self._part_bytes is not None and self._good >= self._part_bytes:
                self._close_part()

    def _close_part(self) -> None:
        """The rows so far are a part. Where the disk refuses a new file, rows go on into the same one."""
        path = self.path.with_suffix(f".{self._part + 1:04d}.jsonl")
        try:
            self.path.rename(path)
            fresh = self._open()
        except OSError:
            with contextlib.suppress(OSError):
                path.rename(self.path)
            return
        os.close(self._file)
        self._file, self._good = fresh, 0
        self._part += 1
        self._parts.append(path)

    def take(self) -> Path | None:
        """The oldest part that was closed; it is the taker's to remove."""
        return self._parts.pop(0) if self._parts else None

    def keep(self, report: Snapshot, encoded: bytes) -> None:
        """Keep the newest report. A block that it lacks did not change any more: the one before has its last state.

        Two files in turn, written in place: should this process be killed within a write, the other one is whole, and
        no file is replaced, for which some file systems would write to the disk at once (6 ms, each second).
        """
        if self.failure is not None:
            return
        blocks = {f"{block.stage}-{block.phase}" for block in report.blocks}
        try:
            for settled in self._live - blocks:
                shutil.copyfile(self._live_path(0), self.path.with_suffix(f".{settled}.part"))
            self._turn += 1
            with self._live_path(0).open("r+b") as file:
                file.write(encoded)
                file.truncate()
            self._live = blocks
        except OSError as error:
            self._fail(error)

    def _live_path(self, ago: int) -> Path:
        return self.path.with_suffix(f".live-{(self._turn + ago) % 2}.part")

    def _fail(self, error: OSError) -> None:
        self.failure = ResultsError(
            f"{self.path.parent}: rows can't be written any more: {error.strerror}; requests are still sent and "
            "counted, but requests.jsonl will lack them"
        )

    def close(self) -> None:
        """No more rows."""
        self.flush()
        os.close(self._file)

    def blocks(self, size: int) -> Iterator[bytes]:
        """The rows that nobody took, in blocks of whole ones, `size` bytes and a little more each."""
        for path in (*self._parts, self.path):
            yield from blocks_of(path, size)

    def remove(self) -> None:
        """They are in better hands."""
        for path in self.path.parent.glob(f"{self.path.stem}.*"):
            path.unlink(missing_ok=True)
        if self._alone:
            with contextlib.suppress(OSError):  # where somebody put something beside them
                self.path.parent.rmdir()


def blocks_of(path: Path, size: int) -> Iterator[bytes]:
    """The rows of a file in blocks of whole ones, `size` bytes and a little more each."""
    with path.open("rb") as rows:
        while data := rows.read(size):
            yield data + rows.readline()
