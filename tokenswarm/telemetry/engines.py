"""An engine's or a router's /metrics -> a `Reading`: which program's page it is. The embedded engine's is vLLM's."""

from __future__ import annotations

import re

from tokenswarm.telemetry import exposition, names
from tokenswarm.telemetry.exposition import PageError, Scanner, Series
from tokenswarm.telemetry.names import ENGINES
from tokenswarm.telemetry.quantities import CACHE_INFO, RESIDENT, STARTED, Quantities
from tokenswarm.telemetry.reading import Reading

WANTED = frozenset(part for engine in ENGINES.values() for row in engine.rows for part in names.parts(row)) | {
    CACHE_INFO, STARTED, RESIDENT,
}  # fmt: skip

_TYPE = re.compile(rb"^# TYPE (\S+) ", re.MULTILINE)


class Reader:
    """Reads the pages of one address, one after another: what is known of its lines is not looked for again."""

    def __init__(self) -> None:
        self._scanner = Scanner(WANTED)
        self._series: tuple[Series, ...] | None = None
        self._quantities: Quantities | None = None

    def __call__(self, page: bytes) -> Reading:
        """The reading of an engine's /metrics. Raises PageError where it is none, or not whole."""
        scanned = self._scanner.scan(page)
        if self._series is not scanned.series:
            self._series, self._quantities = scanned.series, _quantities(scanned.series)
        if self._quantities is None:
            raise _of_nobody(page)
        # vLLM's Rust front end tells some counters with the first request only.
        whole = page.rstrip().endswith(exposition.END)
        lacking = min(
            (row.names[0] for row in self._quantities.lacking if not (whole and row.kind == "counter")), default=""
        )
        if lacking:
            raise PageError("incomplete", f"the page lacks {lacking}")
        return self._quantities.reading(scanned.values, scanned.odd)


def read(page: bytes) -> Reading:
    """The reading of one page. Raises PageError."""
    return Reader()(page)


def _quantities(series: tuple[Series, ...]) -> Quantities | None:
    """Of the first program whose names are there."""
    names_there = {name for name, _ in series}
    for kind, engine in ENGINES.items():
        if any(one in names_there for row in engine.rows for one in names.shows(row)):
            return Quantities(kind, engine, series)
    return None


def _of_nobody(page: bytes) -> PageError:
    if any(name.decode(errors="replace") in _FAMILIES for name in _TYPE.findall(page)):
        return PageError("incomplete", "the page names an engine's metrics, but has no value of them yet")
    known = ", ".join(engine.title for engine in ENGINES.values())
    return PageError("not_metrics", f"the page has no metrics of an engine or router that is known here ({known})")


_FAMILIES = frozenset(
    one.removesuffix(end)
    for engine in ENGINES.values()
    for row in engine.rows
    for name in row.names
    for one in names.spellings(name)
    for end in ("", "_sum", "_total")
)
