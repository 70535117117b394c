"""A day, or more, in virtual time: does anything grow? `python -m bench.soak [REQUESTS [SECONDS]]`, 10 000 000.

Records go the way of a run: recorder, rows and spool of a worker; report, inbox, windows and rotated rows of a master.
Only the wire and Locust are not there. Resident memory is read once a tenth of the requests are through, and from then
on; what it grows by at most, and the windows' own verdict, are printed as one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenswarm.clock import NS_PER_S
from tokenswarm.cluster.soak import SoakWatch
from tokenswarm.measure import snapshot
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.snapshot import Inbox, Merged
from tokenswarm.record import Outcome, RequestRecord, TokenSource
from tokenswarm.reports.folder import ResultsFolder
from tokenswarm.reports.jsonl import row
from tokenswarm.reports.rows import compress
from tokenswarm.reports.spool import Owner, Spool, blocks_of
from tokenswarm.result.soak import Soak

REQUESTS = 10_000_000
DAY_S = 86_400
REPORT_S = 10  # of virtual time between two reports; the windows are whole ones all the same
GROWTH_MAX = 20 << 20
TOKENS = 8
DRAWN = 4096  # different answers
ERRORS = 100_000  # different error texts that a broken server may give


class Day:
    """`n` requests over a day, of which `drift` slows the last by so much against the first."""

    def __init__(
        self,
        n: int,
        folder: Path,
        *,
        drift: float = 0.0,
        seed: int = 1,
        window_s: float = 300.0,
        every_s: int = REPORT_S,
    ) -> None:
        self.n, self.drift, self.every_s = n, drift, every_s
        draw = random.Random(seed).lognormvariate
        self._drawn = [
            (draw(-2.3, 0.2) * NS_PER_S, [draw(-3.9, 0.1) * NS_PER_S for _ in range(TOKENS - 1)]) for _ in range(DRAWN)
        ]
        self._choose = random.Random(seed + 1).randrange
        self._next_ns = 0.0
        self.recorder = Recorder("20261128-000000-50ac", 0, None, start_ns=0, host="far", pid=1)
        self.inbox = Inbox(self.recorder.run_id)
        self.results = ResultsFolder.create(folder, self.recorder.run_id)
        self.results.rotate_bytes = 16 << 20
        owner = Owner(run_id=self.recorder.run_id, worker=0, workers=1, host="far", pid=1)
        self.spool = Spool(self.results.spool, owner, parts=True)
        self.watch = SoakWatch(self.results, window_s, list, lambda _: b"", print)
        self.rows = 0

    def _records(self, until_ns: int) -> Iterator[RequestRecord]:
        while self._next_ns < until_ns:
            yield self._record(int(self._next_ns))
            self._next_ns += DAY_S * NS_PER_S / self.n

    def _record(self, at_ns: int) -> RequestRecord:
        slower, number = 1 + self.drift * at_ns / (DAY_S * NS_PER_S), self.rows
        fields: dict[str, Any] = {"id": f"r{number}", "stage": 0, "phase": "steady"}
        fields |= {"intended_ns": at_ns, "sent_ns": at_ns}
        if number % 500 == 499:  # errors of many kinds, which must not be kept for ever
            kind = f"kind {number * 7919 % ERRORS}"
            fields |= {"outcome": Outcome.HTTP_5XX, "error": kind, "error_kind": kind, "done_ns": at_ns + 1000}
            return RequestRecord(**fields)
        ttft_ns, drawn_ns = self._drawn[self._choose(DRAWN)]
        gaps_ns = [int(gap_ns * slower) for gap_ns in drawn_ns]
        stamps = list(accumulate(gaps_ns, initial=at_ns + int(ttft_ns * slower)))
        return RequestRecord(
            **fields,
            outcome=Outcome.OK,
            first_ns=stamps[0],
            first_answer_ns=stamps[0],
            last_ns=stamps[-1],
            done_ns=stamps[-1] + 1000,
            prompt_tokens=100,
            output_tokens=TOKENS,
            token_source=TokenSource.SERVER,
            events=TOKENS,
            reads=TOKENS,
            gaps_ns=tuple(gaps_ns),
            token_stamps_ns=tuple(stamps),
        )

    def play(self) -> Iterator[int]:
        """Requests so far, after each report."""
        self.recorder.open_window(0, 0)
        self.watch.phase(0, "steady", None, DAY_S)
        for second in range(0, DAY_S, self.every_s):
            until_ns = (second + self.every_s) * NS_PER_S
            for record in self._records(until_ns):
                self.recorder.intended(0, "steady")
                self.recorder.started(0, "steady")
                self.recorder.ended(decoding=False)
                self.recorder.add(record)
                self.spool.write(row(record, 0, 0, save_text=False))
                self.rows += 1
            self._report(until_ns)
            yield self.rows
        self.recorder.close_window(0, DAY_S * NS_PER_S)

    def _report(self, now_ns: int) -> Merged:
        report = self.recorder.snapshot(now_ns)
        encoded = snapshot.encode(report)
        self.spool.flush()
        self.spool.keep(report, encoded)
        self.inbox.put(snapshot.decode(encoded))
        merged = self.inbox.merged()
        self.watch.tick(merged)
        while part := self.spool.take():
            for block in blocks_of(part, 1 << 17):
                self.results.append_rows(block)
            part.unlink()
        while self.results.closed:
            compress(self.results.closed.pop())
        return merged

    def finish(self) -> Soak:
        """The end: what the windows say."""
        self.watch.phase(0, "drain", None, 0.0)
        found = self.watch.finish(self.inbox.merged())
        assert found is not None
        return found


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(words: list[str]) -> int:
    """Play the day; 0 where nothing grew beyond GROWTH_MAX."""
    n, every_s = (int(word) for word in (*words, *(str(REQUESTS), str(REPORT_S))[len(words) :]))
    with tempfile.TemporaryDirectory(prefix="tokenswarm-soak-") as place:
        day, first, most, told = Day(n, Path(place), every_s=every_s), 0, 0, 0
        for done in day.play():
            if done >= n // 10:
                now = resident()
                first = first or now
                most = max(most, now)
                if done >= n // 10 * (told + 1):
                    told += 1
                    print(f"{done} requests, {(most - first) / 2**20:.2f} MiB more", file=sys.stderr, flush=True)
        soak = day.finish()
        files = sorted(path.name for path in day.results.path.glob("requests.*"))
    result = {
        "requests": day.rows,
        "growth_mib": round((most - first) / 2**20, 2),
        "resident_mib": round(most / 2**20, 1),
        "windows": len(soak.windows),
        "drifts": [one.metric for one in soak.drift if one.drifts],
        "row_files": len(files),
    }
    print(json.dumps(result))
    return int(most - first > GROWTH_MAX)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
