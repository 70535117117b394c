"""A worker's rows: where they are kept, and to the master, some blocks ahead of its acknowledgements.

After the load, all at once. In a long run (`soak.rotate_mib`) part by part while it goes on, without haste: packed in a
thread, a pause after each block, so that no stream is read later for it.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from tokenswarm.cluster.messages import ROWS_INFLATED_MAX, ToMaster
from tokenswarm.errors import ExitCode, ResultsError
from tokenswarm.reports.spool import Owner, Spool, blocks_of

ROWS_BYTES = 512 * 1024  # rows handed over in one message
ROWS_AHEAD = 4  # messages under way before the first is acknowledged
BESIDE_BYTES, BESIDE_S = 128 * 1024, 0.02  # of a block beside the load, and the pause after it


def open_spool(folder: bytes | None, owner: Owner, *, parts: bool = False) -> Spool:
    """In the results folder where it is of this machine, else in a folder of its own below TMPDIR.

    In bytes, as the system has it: a path need not be text.
    """
    if folder is not None and (home := Path(os.fsdecode(folder))).is_dir():
        return Spool(home, owner, parts=parts)
    try:
        return Spool(Path(tempfile.mkdtemp(prefix=f"tokenswarm-{owner.run_id}-")), owner, parts=parts, alone=True)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""  # else no folder will do, and it names them
        raise ResultsError(f"{where}rows can't be written: {error.strerror}") from None


class HandOver:
    """The rows of one spool on their way. `tell` sends to the master; `gone` is set when there is none."""

    def __init__(self, spool: Spool, tell: Callable[[ToMaster, Any], None], gone: Event) -> None:
        self._spool, self._tell, self._gone = spool, tell, gone
        self._acks = self._sent = 0
        self._acked = Event()
        self._beside: gevent.Greenlet | None = None
        self._over = Event()
        self.written = True  # by the master, as far as it said

    def run(self) -> bool:
        """Hand all rows over. False where not all are in the master's file: then they stay on this disk."""
        self._spool.close()
        self._over.set()
        if self._beside is not None:
            self._beside.join()  # the part that it is at
        try:
            for data in self._spool.blocks(ROWS_BYTES):
                self._send(zlib.compress(data, 1))
                gevent.sleep(0)
        except OSError:  # somebody removed them; the number that is told next shows how many lack
            self.written = False
        self._tell(ToMaster.DONE, {"rows": self._spool.rows - self._spool.lost, "seq": self._sent + 1})
        if not self._await(self._sent + 1) or not self.written:
            return False
        self._spool.remove()
        return True

    def reproach(self) -> tuple[ExitCode, str]:
        """What became of the rows of a worker whose master said no more."""
        if not self._spool.rows and not self._over.is_set():
            return ExitCode.TARGET, "the run ended without a row of this worker's: its master says why"
        why = "ended before it had" if self.written else "could not write"
        return ExitCode.INVALID, f"the master {why} this worker's rows"

    def begin(self) -> None:
        """Hand over what is closed while the load runs."""
        self._beside = gevent.spawn(self._run_beside)

    def _run_beside(self) -> None:
        """Part after part. One that is not in the master's file for certain stays on this disk, as do all after it."""
        while not self._gone.is_set() and self.written:
            path = self._spool.take()
            if path is None:
                if self._over.is_set():
                    return
                self._over.wait(1.0)
                continue
            try:
                for data in blocks_of(path, BESIDE_BYTES):
                    self._send(gevent.get_hub().threadpool.apply(zlib.compress, (data, 1)))
                    self._over.wait(BESIDE_S)
            except OSError:
                self.written = False
            if self._await(self._sent) and self.written:
                path.unlink(missing_ok=True)

    def _send(self, packed: bytes) -> None:
        self._sent += 1
        self._tell(ToMaster.ROWS, {"seq": self._sent, "data": packed})
        self._await(self._sent - ROWS_AHEAD)

    def on_ack(self, data: dict[str, Any]) -> None:
        self._acks = max(self._acks, int(data["seq"]))
        self.written = self.written and bool(data.get("written", True))
        self._acked.set()

    def _await(self, number: int) -> bool:
        """Until the master has `number` of our blocks; False where it is gone."""
        while self._acks < number and not self._gone.is_set():
            self._acked.clear()
            self._acked.wait(1.0)
        return self._acks >= number


def inflate(data: bytes) -> bytes | None:
    """What zlib made of at most ROWS_INFLATED_MAX bytes; None where it is no such thing, or more."""
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(data, ROWS_INFLATED_MAX)
    except zlib.error:
        return None
    return rows if inflater.eof and not inflater.unused_data else None
