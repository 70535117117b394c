"""What a worker keeps on disk holds, at each second, everything that it counted, and no half of a row."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from load_run import START_NS, S, SyntheticRun

from tokenswarm.errors import ResultsError
from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import Inbox
from tokenswarm.reports.spool import PENDING_BYTES_MAX, Owner, Spool

OWNER = Owner(run_id="20261123-142233-a1b2", worker=0, workers=1, host="host", pid=100)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, OWNER)


def test_the_files_of_any_second_hold_all_counts_of_the_run(spool: Spool, tmp_path: Path) -> None:
    run = SyntheticRun(stages=(4, 8, 16), seconds=6, workers=1)
    (recorder,) = run.recorders
    while not run.over:
        run.advance()
        report = recorder.snapshot(START_NS + run.second * S)
        spool.keep(report, snapshot.encode(report))
        inbox = Inbox(OWNER.run_id)
        for path in tmp_path.glob("worker-0.*.part"):
            if path.stat().st_size:
                inbox.put(snapshot.decode(path.read_bytes()))
        whole = recorder.snapshot(START_NS + run.second * S, final=True).blocks
        kept = {(b.stage, b.phase): (b.ok, b.failed, b.ttft.n, b.window_tokens) for b in inbox.merged().blocks}
        assert kept == {(b.stage, b.phase): (b.ok, b.failed, b.ttft.n, b.window_tokens) for b in whole}
    assert len(kept) == 6
    spool.remove()
    assert list(tmp_path.iterdir()) == []


def test_rows_wait_for_a_flush_or_until_there_are_many(spool: Spool) -> None:
    spool.write(b"a\n")
    assert spool.path.read_bytes() == b""
    spool.flush()
    assert spool.path.read_bytes() == b"a\n"
    big = b"b" * PENDING_BYTES_MAX + b"\n"
    spool.write(big)
    assert spool.path.read_bytes() == b"a\n" + big


def test_blocks_are_whole_rows(spool: Spool) -> None:
    rows = [bytes([97 + n]) * (n + 1) + b"\n" for n in range(20)]
    for row in rows:
        spool.write(row)
    spool.close()
    found = list(spool.blocks(15))
    assert b"".join(found) == b"".join(rows)
    assert len(found) > 5
    assert all(block.endswith(b"\n") for block in found)


def test_a_disk_that_fails_costs_rows_and_leaves_whole_ones(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.write(b"first\n")
    spool.flush()
    write = os.write

    def full(file: int, data: memoryview) -> int:
        if len(data) < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:-3])  # the last bytes that fit

    monkeypatch.setattr(os, "write", full)
    spool.write(b"second\n")
    spool.flush()
    monkeypatch.undo()
    for _ in range(3):
        spool.write(b"later\n")
    spool.flush()
    assert spool.path.read_bytes() == b"first\n"
    assert (spool.rows, spool.lost) == (5, 4)
    assert isinstance(spool.failure, ResultsError)
    assert "No space left on device" in str(spool.failure)


def test_a_folder_that_can_not_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"worker-0\.jsonl: rows can't be written: No such file"):
        Spool(tmp_path / "absent", OWNER)
