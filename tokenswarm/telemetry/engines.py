"""An engine's or a router's /metrics -> a `Reading`: which program's page it is, and every quantity of its table.

Old names that were used are told in `facts["old_names"]`, quantities that the page has under no name in `missing`.
The embedded engine speaks vLLM's names.
"""

from __future__ import annotations

import math
import re

from tokenswarm.telemetry import exposition, histogram, names
from tokenswarm.telemetry.exposition import Labels, PageError, Samples, label
from tokenswarm.telemetry.histogram import Histogram
from tokenswarm.telemetry.names import ENGINES, Row
from tokenswarm.telemetry.reading import Reading

COPIES = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of series that tell the same thing again: the ranks of one engine (SGLang), each with its queue."""

PIECES = "priority"
"""The label of series that tell a part of the one without it (SGLang, by priority of the requests)."""

CACHE_INFO = "vllm:cache_config_info"
CACHE_FACTS = ("num_gpu_blocks", "block_size", "cache_dtype", "kv_cache_size_tokens", "kv_cache_memory_bytes")
STARTED = "process_start_time_seconds"


WANTED = frozenset(part for engine in ENGINES.values() for row in engine.rows for part in names.parts(row)) | {
    CACHE_INFO, STARTED,
}  # fmt: skip

_TYPE = re.compile(rb"^# TYPE (\S+) ", re.MULTILINE)


def read(page: bytes) -> Reading:
    """The reading of an engine's /metrics. Raises PageError where it is none, or not whole."""
    samples = exposition.read(page, WANTED)
    for kind, engine in ENGINES.items():
        present = {row.ours for row in engine.rows if _name(row, samples)}
        if present:
            whole = page.rstrip().endswith(exposition.END)
            # vLLM's Rust front end tells some counters with the first request only.
            required = [row for row in engine.rows if row.needed and not (whole and row.kind == "counter")]
            missing = sorted(row.names[0] for row in required if row.ours not in present)
            if missing:
                raise PageError("incomplete", f"the page lacks {missing[0]}")
            return _reading(kind, samples)
    if any(name.decode(errors="replace") in _FAMILIES for name in _TYPE.findall(page)):
        raise PageError("incomplete", "the page names an engine's metrics, but has no value of them yet")
    known = ", ".join(engine.title for engine in ENGINES.values())
    raise PageError("not_metrics", f"the page has no metrics of an engine or router that is known here ({known})")


_FAMILIES = frozenset(
    one.removesuffix(end)
    for engine in ENGINES.values()
    for row in engine.rows
    for name in row.names
    for one in names.spellings(name)
    for end in ("", "_sum", "_total")
)


def _name(row: Row, samples: Samples) -> str:
    """The newest of the row's names that the page has, as it is spelled there; "" where it has none."""
    suffix = "_bucket" if row.kind == "histogram" else ""
    spelled = (one for name in row.names for one in names.spellings(name))
    return next((name for name in spelled if name + suffix in samples), "")


def _reading(kind: str, samples: Samples) -> Reading:
    engine = ENGINES[kind]
    levels: dict[str, float] = {}
    counters: dict[str, float] = {}
    histograms: dict[str, Histogram] = {}
    unknown, missing, old = set(), [], []
    for row in engine.rows:
        name = _name(row, samples)
        if not name:
            missing.append(row.ours)
            if row.needed and row.kind == "counter":
                counters[row.ours] = 0.0
            continue
        if name not in names.spellings(row.names[0]):
            old.append(name)
        if _has_no_value(row, name, samples):  # a sum over the others would look like all
            unknown.add(row.ours)
            continue
        if row.kind == "histogram":
            found = histogram.read(samples, name)
            if found is not None:
                histograms[row.ours] = found
            continue
        values = samples[name]
        if min(values.values()) < 0:
            raise PageError("malformed", f"{name} is below 0")
        if row.kind == "counter_by_label":
            for labels, value in values.items():
                key = f"{row.ours}.{label(labels, row.by)}"
                counters[key] = counters.get(key, 0.0) + value
        elif row.kind == "counter":
            counters[row.ours] = sum(values.values())
        else:
            once = _once(values)
            levels[row.ours] = sum(once) / (len(once) if row.kind == "mean_level" else 1)
    facts = {"old_names": ", ".join(old)} if old else {}
    return Reading(
        kind=kind,
        levels=levels,
        counters=counters,
        histograms=histograms,
        started_s=max((at for at in samples.get(STARTED, {}).values() if not math.isnan(at)), default=None),
        facts=facts | _cache_facts(samples),
        shape=frozenset((name, labels) for name, family in samples.items() if name != CACHE_INFO for labels in family),
        unknown=frozenset(unknown),
        missing=tuple(missing),
        counts=_counts(engine.rows, samples),
        born_at_0=True,
    )


def _once(values: dict[Labels, float]) -> list[float]:
    """The values of a level without parts of others, and one of those that ranks tell alike: the largest."""
    found: dict[Labels, float] = {}
    whole = {labels: value for labels, value in values.items() if not label(labels, PIECES)}
    for labels, value in (whole or values).items():
        key = tuple(pair for pair in labels if pair[0] not in COPIES)
        found[key] = max(value, found.get(key, 0.0))
    return list(found.values())


def _has_no_value(row: Row, name: str, samples: Samples) -> bool:
    suffixes = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
    return any(math.isnan(value) for suffix in suffixes for value in samples.get(name + suffix, {}).values())


def _counts(rows: tuple[Row, ...], samples: Samples) -> dict[tuple[str, Labels], float]:
    """Every series that can't fall while its process lives."""
    found = {}
    for row in rows:
        if row.kind in ("level", "mean_level"):
            continue
        for name in (one for spelled in row.names for one in names.spellings(spelled)):
            series = name + "_bucket" if row.kind == "histogram" else name
            for labels, value in samples.get(series, {}).items():
                if not math.isnan(value):
                    found[series, labels] = value
    return found


def _cache_facts(samples: Samples) -> dict[str, str]:
    """What the engine says about its KV-cache; `engines`: how many caches of this size there are (data parallel)."""
    series = samples.get(CACHE_INFO, {})
    facts: dict[str, str] = {}
    for labels in series:
        for name in CACHE_FACTS:
            value = label(labels, name)
            if value not in ("", "None"):
                facts.setdefault(name, value[:40])
    return facts | ({"engines": str(len(series))} if series else {})
