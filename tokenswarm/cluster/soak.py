"""What a long run leaves behind while it goes on: a line a window, the newest sums, and which engines came back.

A watcher of the run, on the master: it looks at the sums that come each second and costs the workers nothing. Windows
go to windows.jsonl with their sketches as they close; in memory stays what the report tells of each. `tokenswarm
report` makes its tables of a run that goes on from these files; what engines and GPUs told so far lies beside them.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

import msgspec

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.probes import resident_bytes
from tokenswarm.errors import ResultsError
from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import Merged
from tokenswarm.measure.windows import Cutter, Restart
from tokenswarm.profile.load import Stage
from tokenswarm.record import FAILED_OUTCOMES
from tokenswarm.reports.folder import LIVE_NAME, TOLD_NAME, ResultsFolder
from tokenswarm.reports.windows import WINDOWS_NAME, encode
from tokenswarm.result.soak import Soak, WindowTold, soak, told
from tokenswarm.telemetry.watch import EngineWatch, GpuWatch, Watch

LIVE_S = 10.0  # between two writes of the newest sums
SETTLE_S = 3.0  # after a restart, until requests that failed in it are counted
LOOKS_MAX = 7200  # seconds of counts that are kept to tell what failed in a restart
FAILED = frozenset(outcome.value for outcome in FAILED_OUTCOMES)

Counts = dict[str, int]


class SoakWatch:
    """Use it as one of the run's watchers; `finish` gives the section of the summary."""

    def __init__(
        self,
        folder: ResultsFolder,
        window_s: float,
        watches: Callable[[], list[Watch]],
        telemetry: Callable[[Merged], bytes],
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._window_s, self._watches, self._say = folder, window_s, watches, say
        self._telemetry = telemetry
        self._cutter = Cutter(window_s)
        self._merged = Merged(run_id=folder.run_id)
        self._windows: list[WindowTold] = []
        self._restarts: list[Restart] = []
        self._fresh: list[Restart] = []  # not in a window yet
        self._held = b""  # a line that is written once there is another one
        self._told: dict[str, int] = {}  # by url: how many of a watch's returns are in `_restarts`
        self._failed: deque[tuple[int, Counts]] = deque(maxlen=LOOKS_MAX)  # (when, failures by outcome so far)
        self._began_ns, self._live_ns = 1 << 62, 0
        self._note = ""

    # What the controller says.

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None:  # noqa: ARG002 - the protocol
        """A stage may be over: what is left of its last window is told."""
        self._cut(over=True)

    def tick(self, merged: Merged) -> None:
        """The newest sums."""
        now_ns = monotonic_ns()
        self._merged = merged
        if merged.workers:  # the first to begin; reports are up to a second old, so the least that was ever seen
            self._began_ns = min(self._began_ns, now_ns - max(worker.elapsed_ns for worker in merged.workers))
        self._look_at_restarts(now_ns)
        self._cut(over=False)
        if now_ns - self._live_ns >= LIVE_S * NS_PER_S:
            self._live_ns = now_ns
            self._write_live()

    def note(self, text: str) -> None:
        """Nothing: notes go to the console."""

    # The run.

    def finish(self, merged: Merged, changing: Collection[int] = ()) -> Soak | None:
        """`soak` of the summary. The load is over; `changing`: stages in which it was not meant to be even."""
        self._merged = merged
        self._look_at_restarts(monotonic_ns(), over=True)
        return soak(self._windows, self._restarts, self._window_s, self._note, changing)

    def _cut(self, *, over: bool) -> None:
        steady = [block for block in self._merged.blocks if block.phase == "steady" and block.window_ns]
        window = self._cutter.look(steady[-1], over=over) if steady else None
        if window is None:
            return
        fresh, self._fresh = tuple(self._fresh), []
        window = msgspec.structs.replace(window, memory_bytes=self._memory(), restarts=fresh)
        self._windows.append(told(window))
        line, self._held = self._held + encode(window), b""
        if len(self._windows) == 1 and over:
            self._held = line  # of a short run it is the only window, and tells nothing more
            return
        self._keep(lambda: self._folder.append_line(WINDOWS_NAME, line))
        self._write_live()

    def _write_live(self) -> None:
        self._keep(lambda: self._folder.write_live(LIVE_NAME, snapshot.encode(self._merged)))
        if self._watches():
            self._keep(lambda: self._folder.write_live(TOLD_NAME, self._telemetry(self._merged)))

    def _keep(self, write: Callable[[], None]) -> None:
        """Write; what the disk refuses is said once, and the run goes on."""
        try:
            write()
        except ResultsError as error:
            if not self._note:
                self._note = str(error)
                self._say(f"{error}; the run goes on")

    def _memory(self) -> dict[str, int]:
        """Resident bytes of workers, master and engines, used bytes of GPUs, as far as they are told."""
        here = (socket.gethostname(), os.getpid())
        found = {f"worker {w.worker}": w.instrument.rss_bytes for w in self._merged.workers if w.instrument.rss_bytes}
        if all((worker.host, worker.pid) != here for worker in self._merged.workers):
            found["master"] = resident_bytes()
        for watch in self._watches():
            if isinstance(watch, EngineWatch) and watch.newest is not None and not watch.misses:
                for name in ("resident_bytes", "vram_bytes"):
                    if name in watch.newest.levels:
                        kind = "engine" if name == "resident_bytes" else "engine, VRAM,"
                        found[f"{kind} {urlsplit(watch.url).netloc}"] = int(watch.newest.levels[name])
            elif isinstance(watch, GpuWatch) and watch.newest is not None and not watch.misses:
                for gpu, reading in watch.newest.gpus.items():
                    if "memory_used_bytes" in reading.levels:
                        found[f"GPU {gpu}"] = int(reading.levels["memory_used_bytes"])
        return found

    # Restarts.

    def returns(self) -> int:
        """How many were told so far, at once."""
        return sum(len(w.returns) for w in self._watches() if isinstance(w, EngineWatch) and not w.several)

    def _look_at_restarts(self, now_ns: int, *, over: bool = False) -> None:
        now = self._failures()
        for watch in self._watches():
            if not isinstance(watch, EngineWatch) or watch.several:
                continue
            for back in watch.returns[self._told.get(watch.url, 0) :]:
                if now_ns < back.back_ns + SETTLE_S * NS_PER_S and not over:
                    break
                self._told[watch.url] = self._told.get(watch.url, 0) + 1
                self._note_restart(watch.url, back.gone_ns, back.back_ns, now)
        self._failed.append((now_ns, now))

    def _note_restart(self, url: str, gone_ns: int, back_ns: int, now: Counts) -> None:
        before = next((counts for at_ns, counts in reversed(self._failed) if at_ns <= gone_ns), {})
        if not before and self._failed:
            before = self._failed[0][1]
        more = {name: n for name, was in now.items() if (n := was - before.get(name, 0)) > 0}
        restart = Restart(
            url=url,
            gone_s=max(0.0, (gone_ns - self._began_ns) / NS_PER_S),
            back_s=max(0.0, (back_ns - self._began_ns) / NS_PER_S),
            failed=sum(more.values()),
            by_outcome=more,
        )
        # Several pages of one engine, or engines that went together: what failed is told once.
        if self._restarts and self._restarts[-1].back_s + SETTLE_S >= restart.gone_s and self._restarts[-1].url != url:
            restart = msgspec.structs.replace(restart, failed=0, by_outcome={})
        self._restarts.append(restart)
        self._fresh.append(restart)
        self._say(f"{url} came back as another process after {(back_ns - gone_ns) / NS_PER_S:.3g} s: it restarted")

    def _failures(self) -> Counts:
        total: Counts = {}
        for block in self._merged.blocks:
            for name, n in block.by_outcome.items():
                if name in FAILED:
                    total[name] = total.get(name, 0) + n
        return total
