"""One watched page over a run: is it whole, which windows are open, what was missed. Bytes and stamps in, sums out.

`EngineWatch` follows an engine's page, `GpuWatch` an exporter's: there each GPU has windows of its own, and which GPUs
answered, and which XIDs were reported, is noted beside them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tokenswarm.telemetry import gpus
from tokenswarm.telemetry.exposition import END, GapReason, PageError
from tokenswarm.telemetry.gpus import GpuPage
from tokenswarm.telemetry.processes import Processes
from tokenswarm.telemetry.reading import Reading
from tokenswarm.telemetry.window import Sample, Window

SEVERAL = (
    "several processes answer at this address in turn, their counts go back and forth: it is a router, or a cache; "
    "give telemetry.engine_metrics the address of each engine"
)
CACHED = "a cache on the path answers with old pages: give telemetry the address behind it"


class Return(msgspec.Struct, frozen=True):
    """An engine came back as another process: it had answered for the last time at `gone_ns`."""

    gone_ns: int
    back_ns: int


RETURNS_MAX = 1000  # an engine that restarts each minute of a day has told enough


class Watch:
    """What both have: counts of looks, the newest problem."""

    def __init__(self, url: str, interval_s: float) -> None:
        self.url = url
        self.interval_s = interval_s
        self.looks = self.good = 0
        self.misses = 0  # in a row
        self.gaps: dict[str, int] = {}  # over the whole run, by reason
        self.problem = ""  # the newest one, in a sentence
        self.stale = False  # a cache has answered: no number from then on, as pages of before tell of no window

    def windows(self) -> list[Window]:
        raise NotImplementedError

    def page(
        self, page: bytes, at_ns: int, slack_ns: int, *, framed: bool = True, stale: bool = False
    ) -> GapReason | None:
        """Take a page, or count a gap: its reason.

        `framed`: HTTP itself tells that the page is whole. `stale`: it is a cache's, and old.
        """
        raise NotImplementedError

    def _check_cache(self, *, stale: bool) -> None:
        """Raises PageError once a cache has answered."""
        self.stale = self.stale or stale
        if self.stale:
            for window in self.windows():
                window.void()
            raise PageError("cached", CACHED)

    @property
    def waits(self) -> bool:
        """True while a window was closed and the reading at its end has not come yet."""
        return any(window.closed_ns is not None and not window.done for window in self.windows())

    def close(self, now_ns: int) -> None:
        for window in self.windows():
            window.close(now_ns)

    def gap(self, reason: GapReason, sentence: str, at_ns: int) -> None:
        """A look that brought nothing."""
        self.looks += 1
        self.misses += 1
        self.problem = sentence
        self.gaps[reason] = self.gaps.get(reason, 0) + 1
        for window in self.windows():
            window.gap(reason, at_ns)

    def _came(self) -> None:
        self.looks += 1
        self.good += 1
        self.misses = 0


class EngineWatch(Watch):
    """An engine's page, read by `read`."""

    def __init__(self, url: str, interval_s: float, read: Callable[[bytes], Reading], version: str = "") -> None:
        super().__init__(url, interval_s)
        self.version = version
        self.odd: dict[str, int] = {}  # looks that left out a value since it can't be true, by its name
        self.odd_says: dict[str, str] = {}  # the first of each, in a sentence
        self.newest: Reading | None = None
        self.by_stage: dict[int, Window] = {}
        self._read = read
        self.twin = ""  # the address at which the same engine is watched already: it counts there
        self.returns: list[Return] = []
        self._short: frozenset[object] | None = None  # the shape of a page that had fewer series than the one before
        self._good_ns = 0  # when the newest reading was taken
        self._refused = False  # nobody listened there since
        self._processes = Processes()

    def windows(self) -> list[Window]:
        return list(self.by_stage.values())

    def open(self, stage: int, now_ns: int) -> None:
        self.by_stage[stage] = Window(stage, now_ns, self.interval_s)

    @property
    def several(self) -> bool:
        """True once it is known that several processes answer here: there are no numbers from then on."""
        return self._processes.several

    def gap(self, reason: GapReason, sentence: str, at_ns: int) -> None:
        """A look that brought nothing."""
        if reason not in ("incomplete", "several_processes", "cached"):  # these did bring a page
            self._processes.missed()
        self._refused = self._refused or reason == "connect"
        super().gap(reason, sentence, at_ns)

    def page(
        self, page: bytes, at_ns: int, slack_ns: int, *, framed: bool = True, stale: bool = False
    ) -> GapReason | None:
        """Take a page, or count a gap."""
        whole = framed or page.rstrip().endswith(END)
        try:
            reading = self._read(page + b"\n" if whole and page.strip() else page)
            if not whole:
                reading = msgspec.structs.replace(reading, born_at_0=False)  # it may have been cut, behind a line
            self._check_cache(stale=stale)
            self._check_process(reading)
            reading = self._whole(reading)
        except PageError as error:
            self.gap(error.reason, str(error), at_ns)
            return error.reason
        self._came()
        for name, said in reading.odd.items():
            self.odd[name] = self.odd.get(name, 0) + 1
            self.odd_says.setdefault(name, said)
        self._note_return(reading, at_ns)
        self.newest = reading
        for window in self.windows():
            window.offer(Sample(at_ns, slack_ns, reading))
        return None

    @property
    def left_out(self) -> str:
        """What was left out of good pages, in a sentence; "" for nothing."""
        told = [
            f"{said}: left out, in {self.odd[name]} of {self.good} good looks" for name, said in self.odd_says.items()
        ]
        return "; ".join(told)

    def is_later(self, page: bytes) -> bool:
        """Whether a page tells of the same process after the newest reading: a count rose, and none fell."""
        before = self.newest
        try:
            reading = self._read(page)
        except PageError:
            return False
        if before is None or (reading.started_s is None) is not (before.started_s is None) or reading.fell(before):
            return False
        return any(value > before.counters.get(name, 0.0) for name, value in reading.counters.items())

    def _note_return(self, reading: Reading, at_ns: int) -> None:
        """Another process answers. A page that counts nothing (Ollama) tells it by nobody having listened between."""
        before, silent = self.newest, reading.started_s is None and not reading.counts.keys and not reading.counters
        if before is not None and (reading.fell(before) or (silent and self._refused)):
            self.returns.append(Return(self._good_ns, at_ns))
            del self.returns[RETURNS_MAX:]
        self._good_ns, self._refused = at_ns, False

    def _whole(self, reading: Reading) -> Reading:
        """Series that vanish tell of half a page, unless they are gone twice in a row: then the server changed."""
        before = self.newest
        missing = before.lost_by(reading) if before is not None and before.kind == reading.kind else ()
        if missing and before is not None and not reading.fell(before) and self._short != reading.shape:
            self._short = reading.shape
            raise PageError("incomplete", f"the page lacks a series of {min(missing)[0]} that was there before")
        self._short = None
        return reading

    def _check_process(self, reading: Reading) -> None:
        """Raises PageError once it is known that several processes answer: all that was read is of any of them."""
        self._processes.take(reading)
        if self._processes.several:
            self.returns.clear()
            for window in self.windows():
                window.void()
            self.newest = Reading(kind=reading.kind, facts=reading.facts)  # what is shown live must not stand still
            raise PageError("several_processes", SEVERAL)


class GpuWindow:
    """The windows of all GPUs of one page in one stage."""

    def __init__(self, stage: int, opened_ns: int, interval_s: float, before: GpuPage | None) -> None:
        self.stage, self.opened_ns, self.interval_s = stage, opened_ns, interval_s
        self.gpus: dict[str, Window] = {}
        self.lost: set[str] = set()  # did not answer at least once
        self.xids: dict[str, dict[str, int]] = {}  # gpu -> xid -> how often in the window
        self.overall = Window(stage, opened_ns, interval_s)  # of the page itself
        self._before = before
        for gpu in before.gpus if before is not None else ():
            self.gpus[gpu] = Window(stage, opened_ns, interval_s)

    def windows(self) -> list[Window]:
        return [self.overall, *self.gpus.values()]

    def offer(self, page: GpuPage, at_ns: int, slack_ns: int) -> None:
        if self.overall.done or at_ns < self.opened_ns:
            return
        self.overall.offer(Sample(at_ns, slack_ns, page.host))
        for gpu, reading in page.gpus.items():
            if gpu not in self.gpus:
                self.gpus[gpu] = Window(self.stage, self.opened_ns, self.interval_s)
                self.gpus[gpu].closed_ns = self.overall.closed_ns
                if self._before is not None:
                    self.lost.add(gpu)  # it came later than the others: the set of GPUs changed
            self.gpus[gpu].offer(Sample(at_ns, slack_ns, reading))
        self.lost |= self.gpus.keys() - page.gpus.keys()
        self._note_xids(page)
        self._before = page

    def _note_xids(self, page: GpuPage) -> None:
        if self._before is None:
            return
        for (gpu, xid), n in page.xids.items():
            new = int(n - self._before.xids.get((gpu, xid), 0))
            if new > 0:
                mine = self.xids.setdefault(gpu, {})
                mine[xid] = mine.get(xid, 0) + new


class GpuWatch(Watch):
    """The page of a GPU exporter."""

    def __init__(self, url: str, interval_s: float) -> None:
        super().__init__(url, interval_s)
        self.newest: GpuPage | None = None
        self.facts: dict[str, dict[str, str]] = {}
        self.by_stage: dict[int, GpuWindow] = {}

    def windows(self) -> list[Window]:
        return [window for stage in self.by_stage.values() for window in stage.windows()]

    @property
    def waits(self) -> bool:
        """As of the page: a GPU that is gone is not waited for."""
        pages = [stage.overall for stage in self.by_stage.values()]
        return any(page.closed_ns is not None and not page.done for page in pages)

    def open(self, stage: int, now_ns: int) -> None:
        self.by_stage[stage] = GpuWindow(stage, now_ns, self.interval_s, self.newest)

    def page(
        self, page: bytes, at_ns: int, slack_ns: int, *, framed: bool = True, stale: bool = False
    ) -> GapReason | None:
        """Take a page, or count a gap."""
        try:
            found = gpus.read(page + b"\n" if framed and page.strip() else page)
            self._check_cache(stale=stale)
        except PageError as error:
            self.gap(error.reason, str(error), at_ns)
            return error.reason
        self._came()
        for stage in self.by_stage.values():
            stage.offer(found, at_ns, slack_ns)
        self.newest = found
        for gpu, reading in found.gpus.items():
            self.facts[gpu] = reading.facts
        return None
