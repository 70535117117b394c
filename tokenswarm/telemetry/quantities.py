"""Where on a page each quantity of a program's table stands, and what it comes to: places once, values at each look.

Old names that were used are told in `facts["old_names"]`, quantities that the page has under no name in `missing`, and
what was left out since it can't be true, of those that a page need not have, in `odd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tokenswarm.telemetry import histogram, names
from tokenswarm.telemetry.exposition import UNREAD, Labels, PageError, Series, label, picker
from tokenswarm.telemetry.histogram import Places
from tokenswarm.telemetry.names import Engine, Row
from tokenswarm.telemetry.reading import Counts, Reading

COPIES = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of series that tell the same thing again: the ranks of one engine (SGLang), each with its queue."""

PIECES = "priority"
"""The label of series that tell a part of the one without it (SGLang, by priority of the requests)."""

CACHE_INFO = "vllm:cache_config_info"
CACHE_FACTS = ("num_gpu_blocks", "block_size", "cache_dtype", "kv_cache_size_tokens", "kv_cache_memory_bytes")
STARTED = "process_start_time_seconds"
RESIDENT = "process_resident_memory_bytes"

NONE_UNREAD: Mapping[str, PageError] = {}

Page = Mapping[str, Mapping[Labels, int]]
"""The place of each sample in the values, by name and labels."""

Pick = Callable[[Sequence[float]], Sequence[float]]


class _Level(NamedTuple):
    ours: str
    whole: tuple[Pick, ...]  # each picks what ranks tell alike: the largest of them counts
    share: int  # the sum is divided by: 1, or the number of those for a mean


class _Count(NamedTuple):
    ours: str
    parts: Pick


class Quantities:
    """Those of one program, on pages with these series. `lacking`: rows that the page must have, and has not."""

    def __init__(self, kind: str, engine: Engine, series: Sequence[Series]) -> None:
        page: dict[str, dict[Labels, int]] = {}
        for place, (name, labels) in enumerate(series):
            page.setdefault(name, {})[labels] = place
        self.lacking: list[Row] = []
        self._kind = kind
        self._levels: list[_Level] = []
        self._counts: list[_Count] = []
        self._times: list[tuple[str, Places]] = []
        self._rows: list[tuple[Row, str, Pick]] = []  # those that the page has, their name there, all their values
        self._zeros: dict[str, float] = {}  # counters that it may tell later
        self._missing: list[str] = []
        old = []
        for row in engine.rows:
            name = _name(row, page)
            if not name:
                self._lack(row)
                continue
            if name not in names.spellings(row.names[0]):
                old.append(name)
            self._place(row, name, page)
        self._facts = ({"old_names": ", ".join(old)} if old else {}) | _cache_facts(page)
        self._shape = frozenset(one for one in series if one[0] != CACHE_INFO)
        self._started = picker(list(page.get(STARTED, {}).values()))
        self._resident = picker(list(page.get(RESIDENT, {}).values()))
        growing = _growing(engine.rows, page)
        self._growing, self._grown = tuple(growing), picker(list(growing.values()))

    def _lack(self, row: Row) -> None:
        self._missing.append(row.ours)
        if row.needed:
            self.lacking.append(row)
            if row.kind == "counter":
                self._zeros[row.ours] = 0.0

    def _place(self, row: Row, name: str, page: Page) -> None:
        suffixes = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
        every = [place for suffix in suffixes for place in page.get(name + suffix, {}).values()]
        self._rows.append((row, name, picker(every)))
        places = page.get(name, {})
        if row.kind == "histogram":
            found = histogram.places(name, page)
            if found is not None:
                self._times.append((row.ours, found))
        elif row.kind in ("level", "mean_level"):
            once = _once(places)
            self._levels.append(_Level(row.ours, once, len(once) if row.kind == "mean_level" else 1))
        elif row.kind == "counter":
            self._counts.append(_Count(row.ours, picker(list(places.values()))))
        else:
            by: dict[str, list[int]] = {}
            for labels, place in places.items():
                by.setdefault(f"{row.ours}.{label(labels, row.by)}", []).append(place)
            self._counts += [_Count(ours, picker(some)) for ours, some in by.items()]

    def reading(self, values: Sequence[float], unread: Mapping[str, PageError] = NONE_UNREAD) -> Reading:
        """What the page says. Raises PageError where a value that it must have can't be true, or be read."""
        unknown = self._without_value(values)
        odd = self._odd(values, unknown, unread)
        histograms = {}
        for ours, places in self._times:
            if ours in unknown:
                continue
            try:
                histograms[ours] = places.read(values)
            except PageError as error:
                if error.reason != "malformed":  # half of it tells of half a page
                    raise
                odd[places.name] = str(error)
        if odd:
            unknown |= {row.ours for row, name, _ in self._rows if name in odd}
        counters = dict(self._zeros)
        for ours, parts in self._counts:
            if ours.partition(".")[0] not in unknown and ours not in unknown:
                counters[ours] = counters.get(ours, 0.0) + sum(parts(values))
        levels = {
            one.ours: sum(max(alike(values)) for alike in one.whole) / one.share
            for one in self._levels
            if one.ours not in unknown
        }
        if resident := [size for size in self._resident(values) if not math.isnan(size)]:
            levels["resident_bytes"] = sum(resident)  # of the processes that share the page
        return Reading(
            kind=self._kind,
            levels=levels,
            counters=counters,
            histograms=histograms,
            started_s=max((at for at in self._started(values) if not math.isnan(at)), default=None),
            facts=self._facts,
            shape=self._shape,
            unknown=unknown,
            odd=odd,
            missing=tuple(self._missing),
            counts=self._counted(values, odd, whole=not unknown),
            born_at_0=True,
        )

    def _without_value(self, values: Sequence[float]) -> frozenset[str]:
        """Rows of which one value is no number: a sum over the others would look like all."""
        if not math.isnan(sum(values)):
            return frozenset()
        return frozenset(row.ours for row, _, every in self._rows if any(map(math.isnan, every(values))))

    def _odd(self, values: Sequence[float], unknown: frozenset[str], unread: Mapping[str, PageError]) -> dict[str, str]:
        """By name: samples that can't be read, and rows below 0, where they are none that the page must have."""
        odd = {name: str(error) for name, error in unread.items()}
        for row, name, every in self._rows if unread or not min(values) >= 0 else ():
            below = row.kind != "histogram" and row.ours not in unknown and min(every(values)) < 0
            error = PageError("malformed", f"{name} is below 0") if below else unread.get(name)
            if error is not None and row.needed:
                raise error
            if error is not None:
                odd[name] = str(error)
        return odd

    def _counted(self, values: Sequence[float], odd: Mapping[str, str], *, whole: bool) -> Counts:
        counted = self._grown(values)
        if whole:
            return Counts(self._growing, counted)
        there = [
            (key, n)
            for key, n in zip(self._growing, counted, strict=True)
            if not math.isnan(n) and key[0].removesuffix("_bucket") not in odd
        ]
        return Counts(tuple(key for key, _ in there), tuple(n for _, n in there))


def _name(row: Row, page: Page) -> str:
    """The newest of the row's names that the page has, as it is spelled there; "" where it has none."""
    suffix = "_bucket" if row.kind == "histogram" else ""
    spelled = (one for name in row.names for one in names.spellings(name))
    return next((name for name in spelled if name + suffix in page), "")


def _once(places: Mapping[Labels, int]) -> tuple[Pick, ...]:
    """The values of a level without parts of others, and together those that ranks tell alike."""
    found: dict[Labels, list[int]] = {}
    whole = {labels: place for labels, place in places.items() if not label(labels, PIECES)}
    for labels, place in (whole or places).items():
        found.setdefault(tuple(pair for pair in labels if pair[0] not in COPIES), []).append(place)
    return tuple(picker(alike) for alike in found.values())


def _growing(rows: Sequence[Row], page: Page) -> dict[Series, int]:
    """Every series that can't fall while its process lives."""
    found = {}
    for row in rows:
        if row.kind in ("level", "mean_level"):
            continue
        for name in (one for spelled in row.names for one in names.spellings(spelled)):
            series = name + "_bucket" if row.kind == "histogram" else name
            for labels, place in page.get(series, {}).items():
                found[series, labels] = place
    return found


def _cache_facts(page: Page) -> dict[str, str]:
    """What the engine says about its KV-cache; `engines`: how many caches of this size there are (data parallel)."""
    series = page.get(CACHE_INFO, {})
    facts: dict[str, str] = {}
    if UNREAD in series:
        return facts
    for labels in series:
        for name in CACHE_FACTS:
            value = label(labels, name)
            if value not in ("", "None"):
                facts.setdefault(name, value[:40])
    return facts | ({"engines": str(len(series))} if series else {})
