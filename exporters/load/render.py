"""Readings of runs → Prometheus text 0.0.4, at about a microsecond a line.

A run has up to 5 000 series whose names and labels never change, so each line's beginning is built once and kept; a
rendering then only joins them with numbers. (prometheus_client, which builds, sorts and escapes the labels of each
line anew, needs 10 to 60 times as long; it renders what the exporter says of itself.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from exporters.load.runs import Labels, Run
from exporters.load.table import CONSTANT_LABELS, FAMILIES, HISTOGRAM_HELP, SUMMARIES, Histogram
from tokenswarm.measure.sketch import Sketch, bucket_edge
from tokenswarm.result import envelope

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

LABEL_NAMES = {
    **{name: family.labels for name, family in FAMILIES.items()},
    **{name: (*labels, "quantile") for name, (_, labels) in SUMMARIES.items()},
    **{f"{name}_{part}": labels for name, (_, labels) in SUMMARIES.items() for part in ("sum", "count")},
    "tokenswarm_run_info": envelope.INFO_LABELS,
}
"""The labels of every series but histograms', after the constant ones."""


_ORDER = (
    *FAMILIES,
    *(f"{name}{part}" for name in SUMMARIES for part in ("", "_sum", "_count")),
    *HISTOGRAM_HELP,
)


def le(key: int, schema: int) -> str:
    """The label of a bucket's upper edge: 6 digits, so that it is short and the same everywhere."""
    return f"{bucket_edge(key, schema):.6g}"


def header(name: str) -> str:
    """The HELP and TYPE lines of a family."""
    if name in HISTOGRAM_HELP:
        return f"# HELP {name} {HISTOGRAM_HELP[name]}\n# TYPE {name} histogram\n"
    if name in SUMMARIES:
        return f"# HELP {name} {SUMMARIES[name][0]}\n# TYPE {name} summary\n"
    if name not in FAMILIES:  # the sum and the count of a summary
        return ""
    return f"# HELP {name} {FAMILIES[name].help}\n# TYPE {name} {FAMILIES[name].kind}\n"


class TextRun:
    """The lines of one run, by family. Rendered again only when the run's version changes."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, Labels], str] = {}
        self._bucket_prefixes: dict[tuple[str, Histogram], list[str]] = {}
        self._constant: tuple[Labels, dict[str, str]] = ((), {})
        self._histogram_lines: tuple[int, dict[str, str]] = (-1, {})

    def lines(self, run: Run, values: Mapping[str, Sequence[tuple[Labels, float]]]) -> dict[str, str]:
        """Text by family, of `values` and of the run's histograms."""
        if self._constant != (run.labels, run.info):
            self._constant = (run.labels, dict(run.info))
            self._prefixes.clear()
            self._bucket_prefixes.clear()
        if self._histogram_lines[0] != run.version:
            lines: dict[str, str] = {}
            for family, histogram, sketch in run.readings.histograms:
                lines[family] = lines.get(family, "") + self._buckets(family, histogram, sketch)
            self._histogram_lines = (run.version, lines)
        lines = dict(self._histogram_lines[1])
        prefixes = self._prefixes
        for family, rows in values.items():
            parts = []
            for labels, value in rows:
                prefix = prefixes.get((family, labels))
                if prefix is None:
                    pairs = zip(LABEL_NAMES[family], labels, strict=True)
                    prefix = prefixes[family, labels] = f"{family}{{{self._labels(pairs)}}} "
                parts.append(f"{prefix}{value!r}\n")
            lines[family] = "".join(parts)
        return lines

    def _labels(self, more: Iterable[tuple[str, str]]) -> str:
        pairs = [*zip(CONSTANT_LABELS, self._constant[0], strict=True), *more]
        return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs)

    def _buckets(self, family: str, histogram: Histogram, sketch: Sketch) -> str:
        prefixes = self._bucket_prefixes.get((family, histogram))
        if prefixes is None:
            labels = self._labels(histogram.labels)
            edges = [*(le(key, histogram.schema) for key in histogram.keys), "+Inf"]
            prefixes = [f'{family}_bucket{{{labels},le="{edge}"}} ' for edge in edges]
            prefixes += [f"{family}_sum{{{labels}}} ", f"{family}_count{{{labels}}} "]
            self._bucket_prefixes[family, histogram] = prefixes
        numbers = [*histogram.cumulative(sketch), sketch.n, sketch.sum, sketch.n]
        return "".join([f"{prefix}{number!r}\n" for prefix, number in zip(prefixes, numbers, strict=True)])


class Text:
    """The page of all runs."""

    def __init__(self) -> None:
        self._runs: dict[str, TextRun] = {}

    def page(self, runs: Mapping[str, Run], now_ns: int) -> str:
        """All families of all runs, each family in one block."""
        self._runs = {run_id: self._runs.get(run_id) or TextRun() for run_id in runs}
        rendered = [self._runs[run_id].lines(run, run.current(now_ns)) for run_id, run in runs.items()]
        parts = []
        for family in _ORDER:
            lines = [text for run in rendered if (text := run.get(family))]
            if lines:
                parts += [header(family), *lines]
        return "".join(parts)
