"""What an exporter says: a table of metric families, and the readings of one sample, rendered as Prometheus text.

A family that has no reading is absent from the page. That is the point: a value that is not known now must vanish,
because a frozen one looks healthy. Output is the text format 0.0.4 (no `_created` series; every Prometheus reads it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus 3 refuses a scrape whose Content-Type is missing or lacks the version."""

LABEL_CHARS_MAX = 128
"""A label value that comes from another program (a model's name) is cut here, so that it can't swell the database."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its type, its help line and its label names. The unit is in the name, as Prometheus wants it."""

    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


class Readings:
    """The values of one sample, by family name. `add` skips None, so that "not known" never becomes a number."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[tuple[str, ...], float]]] = {}

    def add(self, family: str, value: float | None, *labels: str) -> None:
        if value is not None and math.isfinite(value):
            self.rows.setdefault(family, []).append((tuple(label[:LABEL_CHARS_MAX] for label in labels), value))

    def extend(self, other: Readings) -> None:
        for family, rows in other.rows.items():
            self.rows.setdefault(family, []).extend(rows)


class Tally:
    """Counters that never run backwards, whatever their source does.

    `advance` follows a raw counter of the source: it starts at the first raw value and adds every forward step. A
    step backwards is a restart of the source and adds nothing.
    """

    def __init__(self) -> None:
        self._total: dict[tuple[str, ...], float] = {}
        self._raw: dict[tuple[str, ...], float] = {}

    def advance(self, key: tuple[str, ...], raw: float) -> float:
        before = self._raw.get(key)
        self._raw[key] = raw
        if before is None:
            return self.add(key, raw if key not in self._total else 0.0)
        return self.add(key, max(0.0, raw - before))

    def add(self, key: tuple[str, ...], amount: float) -> float:
        self._total[key] = self._total.get(key, 0.0) + amount
        return self._total[key]

    def rebase(self, first: str | None = None) -> None:
        """The source named by the first part of the key (or all) was away: its next raw value is a start, no step."""
        self._raw = {key: raw for key, raw in self._raw.items() if first is not None and key[0] != first}


class Sum:
    """The sum of counters whose owners come and go (processes, network interfaces); it never runs backwards."""

    def __init__(self) -> None:
        self.total = 0.0
        self._last: dict[object, float] = {}

    def advance(self, raw: Mapping[object, float]) -> float:
        """`raw`: the counter of each owner that is there now. An owner that is new brings all that it has."""
        self.total += sum(max(0.0, value - self._last.get(owner, 0.0)) for owner, value in raw.items())
        self._last = dict(raw)
        return self.total


class _Sample(Collector):
    def __init__(self, families: Mapping[str, Family], readings: Readings) -> None:
        self.families = families
        self.readings = readings

    def collect(self) -> Iterator[Metric]:
        for name, rows in sorted(self.readings.rows.items()):
            family = self.families[name]
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(name, family.help, labels=family.labels)
            for labels, value in rows:
                metric.add_metric(labels, value)
            yield metric


def render(families: Mapping[str, Family], readings: Readings) -> bytes:
    """Prometheus text of one sample. KeyError on a reading that no family declares: that is a bug."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sample(families, readings))
    return generate_latest(registry)
