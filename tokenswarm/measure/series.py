"""The order in which requests arrived, kept for a bounded number of them: what sketches can't tell.

Correlation says how many independent requests a sample is worth, the two halves and MSER-5 say whether a window was
steady. They are worked out once, for the final report; formulas: statistics.py.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from math import isnan, nan

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure import statistics
from tokenswarm.measure.budget import FINE, bucket_key
from tokenswarm.measure.counting import log_sums
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Block
from tokenswarm.record import RequestRecord

SERIES_MAX = 20_000  # requests a (stage, phase) and worker: 640 KB, and 0.2 s for the final report
ITL_SAMPLE = 8  # the correlation of gaps looks at every 8th request: 5 µs a request instead of 40

SERIES = ("ttft", "tpot", "e2e")
"""The metrics whose order of arrival is kept."""

HALVES = "halves of "
"""Before a metric's name: the correlation of neighbours within a half of the window, without a trend in it."""


class Series:
    """The first SERIES_MAX successful requests of a block; NaN where a value is missing."""

    def __init__(self) -> None:
        self.intended_ns = array("q")
        self.values = {metric: array("d") for metric in SERIES}
        self.seen = 0
        self.gap_pairs = 0
        self.gap_sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # Σx, Σy, Σx², Σy², Σxy of successive log gaps

    def add(self, record: RequestRecord) -> None:
        self.seen += 1
        if len(record.gaps_ns) > 1 and self.seen % ITL_SAMPLE == 1:
            self._add_gaps(record.gaps_ns)
        if len(self.intended_ns) >= SERIES_MAX:
            return
        self.intended_ns.append(record.intended_ns)
        for metric, value_ns in (("ttft", record.ttft_ns), ("tpot", record.tpot_ns), ("e2e", record.e2e_ns)):
            self.values[metric].append(nan if value_ns is None else value_ns / NS_PER_S)

    def _add_gaps(self, gaps_ns: tuple[int, ...]) -> None:
        pairs, *sums = log_sums(gaps_ns)
        self.gap_pairs += pairs
        x, y, xx, yy, xy = (before + more for before, more in zip(self.gap_sums, sums, strict=True))
        self.gap_sums = x, y, xx, yy, xy

    def gap_correlation(self) -> float:
        """Pearson's correlation of successive log gaps within requests; 0 where all gaps are alike."""
        n, (x, y, xx, yy, xy) = self.gap_pairs, self.gap_sums
        if n < 3:
            return 0.0
        var_x, var_y = xx - x * x / n, yy - y * y / n
        # Below this share of the squares the difference is rounding, not variance.
        if var_x <= 1e-12 * xx or var_y <= 1e-12 * yy:
            return 0.0
        correlation: float = (xy - x * y / n) / (var_x * var_y) ** 0.5
        return max(-1.0, min(1.0, correlation))

    def describe(self, block: Block) -> None:
        """Put into the final `block` what needs the order: correlation, the halves by intended start, MSER-5's cut."""
        order = sorted(range(len(self.intended_ns)), key=self.intended_ns.__getitem__)
        if not order:
            return
        middle_ns = (self.intended_ns[order[0]] + self.intended_ns[order[-1]]) / 2
        middle = bisect_right([self.intended_ns[i] for i in order], middle_ns)
        for metric in SERIES:
            kept = self.values[metric]
            values = [kept[i] for i in order if not isnan(kept[i])]
            ranked = statistics.ranks(values)
            if len(values) > 2:
                block.rho_n[metric] = len(values)
                block.rho_weighted[metric] = len(values) * statistics.pearson(ranked[:-1], ranked[1:])
            halves = [[kept[i] for i in part if not isnan(kept[i])] for part in (order[:middle], order[middle:])]
            block.first_half[metric], block.second_half[metric] = map(Sketch, halves)
            block.rho_n[HALVES + metric] = len(values)
            first = len(halves[0])
            block.rho_weighted[HALVES + metric] = sum(
                len(half) * statistics.lag1_beside_a_line(half) for half in (ranked[:first], ranked[first:])
            )
            block.mser_n[metric] = len(values)
            setattr(block.fine, metric, dict(Counter(bucket_key(value, FINE) for value in values)))
            # Of the ranks: one value far out would be the end of a transient, wherever it stands.
            block.mser_cut[metric] = statistics.mser5(ranked)
            if metric == "ttft":
                block.slow_first = Sketch(statistics.slow_first(values))
        if self.gap_pairs:
            block.rho_n["itl"] = self.gap_pairs
            block.rho_weighted["itl"] = self.gap_pairs * self.gap_correlation()
