"""A worker's rows: where they are kept, and after the load to the master, some blocks ahead of its acknowledgements."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from tokenswarm.cluster.messages import ROWS_INFLATED_MAX, ToMaster
from tokenswarm.errors import ResultsError
from tokenswarm.reports.spool import Owner, Spool

ROWS_BYTES = 512 * 1024  # rows handed over in one message
ROWS_AHEAD = 4  # messages under way before the first is acknowledged


def open_spool(folder: str | None, owner: Owner) -> Spool:
    """In the results folder where it is of this machine, else in a folder of its own below TMPDIR."""
    if folder is not None and Path(folder).is_dir():
        return Spool(Path(folder), owner)
    try:
        return Spool(Path(tempfile.mkdtemp(prefix=f"tokenswarm-{owner.run_id}-")), owner)
    except OSError as error:
        raise ResultsError(f"{error.filename}: rows can't be written: {error.strerror}") from None


class HandOver:
    """The rows of one spool on their way. `tell` sends to the master; `gone` is set when there is none."""

    def __init__(self, spool: Spool, tell: Callable[[ToMaster, Any], None], gone: Event) -> None:
        self._spool, self._tell, self._gone = spool, tell, gone
        self._acks = 0
        self._acked = Event()
        self.written = True  # by the master, as far as it said

    def run(self) -> bool:
        """Hand all rows over. False where not all are in the master's file: then they stay on this disk."""
        self._spool.close()
        sent = 0
        for data in self._spool.blocks(ROWS_BYTES):
            sent += 1
            self._tell(ToMaster.ROWS, {"seq": sent, "data": zlib.compress(data, 1)})
            self._await(sent - ROWS_AHEAD)
            gevent.sleep(0)
        self._tell(ToMaster.DONE, {"rows": self._spool.rows - self._spool.lost, "seq": sent + 1})
        if not self._await(sent + 1) or not self.written:
            return False
        self._spool.remove()
        return True

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
