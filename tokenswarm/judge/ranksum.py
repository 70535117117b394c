"""Two small groups of runs: exact one-sided Mann–Whitney, Hodges–Lehmann shift with its interval, Holm. No scipy.

The unit of replication is the run. Requests of one run share its warm-up, its machine and its neighbours: a test over
requests calls two equal servers different in half of all cases. Source: Mann and Whitney (1947); Hodges and Lehmann
(1963); Holm (1979). The null distribution is counted, with midranks where values are equal, not approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, comb, fsum, pi, sqrt
from statistics import NormalDist

from tokenswarm.measure.statistics import ranks
from tokenswarm.result.comparison import RUNS_MAX


@lru_cache(maxsize=256)
def _subsets(doubled: tuple[int, ...], size: int) -> tuple[int, ...]:
    """How many subsets of `size` of these doubled ranks have each sum, 0 … the largest."""
    top = sum(sorted(doubled)[-size:]) if size else 0
    ways = [[0] * (top + 1) for _ in range(size + 1)]
    ways[0][0] = 1
    for value in doubled:
        for chosen in range(size, 0, -1):
            row, fewer = ways[chosen], ways[chosen - 1]
            for total in range(top, value - 1, -1):
                row[total] += fewer[total - value]
    return tuple(ways[size])


def p_greater(a: Sequence[float], b: Sequence[float]) -> float:
    """P(rank sum of b ≥ the one seen), were a and b of one distribution: small where b's values are the larger ones.

    Exact, given the ties. 1.0 where a group is empty.
    """
    if not a or not b:
        return 1.0
    if max(len(a), len(b)) > RUNS_MAX:
        raise ValueError(f"more than {RUNS_MAX} runs on a side")
    doubled = [round(2 * rank) for rank in ranks([*a, *b])]
    seen = sum(doubled[len(a) :])
    ways = _subsets(tuple(sorted(doubled)), len(b))
    return sum(ways[seen:]) / comb(len(doubled), len(b))


def smallest_p(a: int, b: int) -> float:
    """The smallest p that groups of these sizes can give: 1/C(a+b, b). 5 and 5: 0.004; 3 and 3: 0.05; 2 and 2: 0.17."""
    return 1.0 / comb(a + b, b)


def shift(a: Sequence[float], b: Sequence[float]) -> float:
    """Hodges–Lehmann: the median of all differences b − a. ValueError where a group is empty."""
    differences = sorted(y - x for x in a for y in b)
    if not differences:
        raise ValueError("no shift between nothing and something")
    middle = len(differences) // 2
    return differences[middle] if len(differences) % 2 else (differences[middle - 1] + differences[middle]) / 2


def interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.9) -> tuple[float, float, float]:
    """(low, high, confidence that these bounds really have) of the shift, from the exact null distribution of U.

    The bounds are differences b − a by order; few runs give all they can: 3 and 3 the whole range, at 90 %.
    """
    differences = sorted(y - x for x in a for y in b)
    n, pairs = len(a) + len(b), len(differences)
    ways, all_ways = _subsets(tuple(range(1, n + 1)), len(b)), comb(n, len(b))
    least = len(b) * (len(b) + 1) // 2
    cut, below = 0, ways[least] if least < len(ways) else 0  # below: ways with U ≤ cut
    while cut + 1 < pairs / 2 and 2 * (below + ways[least + cut + 1]) <= (1.0 - confidence) * all_ways:
        cut += 1
        below += ways[least + cut]
    return differences[cut], differences[pairs - 1 - cut], 1.0 - 2 * below / all_ways


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0.0 below two values."""
    if len(values) < 2:
        return 0.0
    mean = fsum(values) / len(values)
    return sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def runs_needed(distance: float, deviation: float, alpha: float, power: float = 0.8) -> int | None:
    """How many runs a side would tell a shift that lies `distance` from what it is held against; None beyond RUNS_MAX.

    Normal approximation with the test's efficiency of 3/π, and never fewer than can reach `alpha` at all.
    """
    least = next((k for k in range(2, RUNS_MAX + 1) if smallest_p(k, k) <= alpha + 1e-12), RUNS_MAX + 1)
    if distance <= 0:
        return None
    z = NormalDist().inv_cdf(1.0 - alpha) + NormalDist().inv_cdf(power)
    k = max(least, ceil(2 * (pi / 3) * (z * deviation / distance) ** 2))
    return k if k <= RUNS_MAX else None
