"""The windows of a long run -> `soak` of summary.json: what each told, what drifts, what grows, what restarted.

A series is tested where it has enough windows; all series of a run are tested together, so that the chance of a false
alarm is that of the run (measure/trend.py). `change` is what Sen's line gains from the first window to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from tokenswarm.measure import trend
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.statistics import holm, samples_needed
from tokenswarm.measure.trend import CHANGE_MIN, Trend
from tokenswarm.measure.windows import METRICS, Restart, Window

TAIL_N_MIN = 100  # requests of a window below which its p99 is its maximum
FAILED_MIN = 0.001  # of the requests: what more of them must fail at the end than at the begin
GROWTH_MIN = (20 << 20, 0.1)  # bytes, and share of the middle: the larger one must have come
AFTER_S = 5.0  # behind a restart, in which requests that it hit are still counted
KNOWN_SHARE = 0.8  # of the windows must have a value, for a series


NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E"}
OTHERS = {
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "failed_ratio": "the share of requests that fail",
}


def name_of(metric: str) -> str:
    """`TTFT p50` of `ttft_s.p50`."""
    field, _, which = metric.partition(".")
    return f"{NAMES[field]} {which}" if field in NAMES else OTHERS.get(metric, metric)


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of one latency in one window, s; null where it has too few requests."""

    n: int = 0
    p50: float | None = None
    p99: float | None = None


class WindowTold(msgspec.Struct, frozen=True, kw_only=True):
    """One window in numbers."""

    stage: int
    start_s: float
    end_s: float
    ok: int
    failed: int
    failed_in_restarts: int = 0
    requests_per_s: float
    output_tokens_per_s: float
    failed_ratio: float | None  # without those that failed in restarts
    latency: dict[str, Quantiles]  # ttft_s, tpot_s, itl_s, e2e_s
    memory_bytes: dict[str, int] = {}


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One series, tested. `change`: relative to its middle; of `failed_ratio` itself."""

    metric: str
    stage: int
    windows: int
    blocks: int
    middle: float
    change: float
    p: float
    rho: float
    drifts: bool
    worse: bool


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of one process or card, bytes."""

    what: str
    stage: int
    windows: int
    blocks: int
    middle: float
    change: float
    per_hour: float
    p: float
    rho: float
    grows: bool


class Soak(msgspec.Struct, kw_only=True):
    """What a long run told, window by window, and what the tests say of it."""

    window_s: float
    windows: list[WindowTold] = []
    drift: list[Drift] = []
    memory: list[Growth] = []
    restarts: list[Restart] = []
    failed_in_restarts: int = 0
    note: str = ""  # what of the windows could not be kept, or read back

    def where(self, one: Drift | Growth) -> str:
        """` in stage 2`; "" in a run whose windows are all of one stage."""
        return f" in stage {one.stage + 1}" if len({window.stage for window in self.windows}) > 1 else ""


def told(window: Window) -> WindowTold:
    """A window without its sketches. Raises ValueError where one of them is none."""
    length_s, ended = window.length_s, window.ok + window.failed
    return WindowTold(
        stage=window.stage,
        start_s=window.start_s,
        end_s=window.end_s,
        ok=window.ok,
        failed=window.failed,
        requests_per_s=window.requests / length_s if length_s > 0 else 0.0,
        output_tokens_per_s=window.output_tokens / length_s if length_s > 0 else 0.0,
        failed_ratio=window.failed / ended if ended else None,
        latency={f"{name}_s": _quantiles(Sketch.from_wire(window.sketches.get(name))) for name in METRICS},
        memory_bytes=window.memory_bytes,
    )


def _quantiles(sketch: Sketch) -> Quantiles:
    enough = sketch.n >= samples_needed(0.5), sketch.n >= TAIL_N_MIN
    p50, p99 = sketch.quantiles((0.5, 0.99))
    return Quantiles(n=sketch.n, p50=p50 if enough[0] else None, p99=p99 if enough[1] else None)


def soak(
    windows: Sequence[WindowTold],
    restarts: Iterable[Restart],
    window_s: float,
    note: str = "",
    changing: Collection[int] = (),
) -> Soak | None:
    """The section; None where there is nothing to tell: a run of less than two windows, without a restart.

    `changing`: stages whose load changes by itself, so that what changes with it is no drift.
    """
    came_back = list(restarts)
    if len(windows) < 2 and not came_back:
        return None
    windows = _apart(windows, came_back)
    return Soak(
        window_s=window_s,
        windows=list(windows),
        drift=_drifts([window for window in windows if window.stage not in changing]),
        memory=_growths(windows),
        restarts=came_back,
        failed_in_restarts=sum(restart.failed for restart in came_back),
        note=note,
    )


def _apart(windows: Sequence[WindowTold], restarts: Sequence[Restart]) -> list[WindowTold]:
    """What failed in a restart stands apart in the windows that it touches, the earlier ones first."""
    found = list(windows)
    for restart in restarts:
        left = restart.failed
        for at, window in enumerate(found):
            if window.end_s <= restart.gone_s or window.start_s >= restart.back_s + AFTER_S or not left:
                continue
            more = min(left, window.failed - window.failed_in_restarts)
            left -= more
            apart, ended = window.failed_in_restarts + more, window.ok + window.failed
            by_itself = (window.failed - apart) / ended if ended else None
            found[at] = msgspec.structs.replace(window, failed_in_restarts=apart, failed_ratio=by_itself)
    return found


def _latency(metric: str, which: str) -> Callable[[WindowTold], float | None]:
    def value(window: WindowTold) -> float | None:
        found = window.latency.get(metric)
        return None if found is None else getattr(found, which)

    return value


SERIES: dict[str, Callable[[WindowTold], float | None]] = {
    **{f"{m}_s.{which}": _latency(f"{m}_s", which) for m in METRICS for which in ("p50", "p99")},
    "requests_per_s": lambda window: window.requests_per_s,
    "output_tokens_per_s": lambda window: window.output_tokens_per_s,
    "failed_ratio": lambda window: window.failed_ratio,
}
"""What is looked at for drift, by the name that the report gives it."""


def series(windows: Sequence[WindowTold], value: Callable[[WindowTold], float | None]) -> list[float]:
    """The values that windows have; [] where too many of them have none."""
    known = [found for window in windows if (found := value(window)) is not None]
    return known if len(known) >= KNOWN_SHARE * len(windows) else []


def _by_stage(windows: Sequence[WindowTold]) -> dict[int, list[WindowTold]]:
    found: dict[int, list[WindowTold]] = {}
    for window in windows:
        found.setdefault(window.stage, []).append(window)
    return found


def _drifts(windows: Sequence[WindowTold]) -> list[Drift]:
    tested: list[tuple[str, int, int, Trend]] = []
    for stage, part in _by_stage(windows).items():
        for metric, value in SERIES.items():
            values = series(part, value)
            if (found := trend.trend(values)) is not None:
                tested.append((metric, stage, len(values), found))
    rare = holm({place: found.p for place, (*_, found) in enumerate(tested)}, trend.ALPHA)
    return [_drift(metric, stage, n, found, rare=rare[place]) for place, (metric, stage, n, found) in enumerate(tested)]


def _drift(metric: str, stage: int, n: int, found: Trend, *, rare: bool) -> Drift:
    share = metric == "failed_ratio"
    change = found.change if share else found.relative or 0.0
    return Drift(
        metric=metric,
        stage=stage,
        windows=n,
        blocks=found.n,
        middle=found.middle,
        change=change,
        p=found.p,
        rho=found.rho,
        drifts=rare and abs(change) >= (FAILED_MIN if share else CHANGE_MIN),
        worse=change < 0 if metric.endswith("_per_s") else change > 0,
    )


def _growths(windows: Sequence[WindowTold]) -> list[Growth]:
    tested: list[tuple[str, int, int, float, Trend]] = []
    for stage, part in _by_stage(windows).items():
        length_s = part[-1].end_s - part[0].start_s
        for what in sorted({name for window in part for name in window.memory_bytes}):
            values = series(part, lambda window, name=what: window.memory_bytes.get(name))  # type: ignore[misc]
            if (found := trend.trend(values, read=True)) is not None:
                tested.append((what, stage, len(values), length_s, found))
    rare = holm({place: found.p for place, (*_, found) in enumerate(tested)}, trend.ALPHA)
    return [
        Growth(
            what=what,
            stage=stage,
            windows=n,
            blocks=found.n,
            middle=found.middle,
            change=found.change,
            per_hour=found.change * 3600 / length_s if length_s > 0 else 0.0,
            p=found.p,
            rho=found.rho,
            grows=rare[place] and found.change >= max(GROWTH_MIN[0], GROWTH_MIN[1] * found.middle),
        )
        for place, (what, stage, n, length_s, found) in enumerate(tested)
    ]
