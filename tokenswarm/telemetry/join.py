"""What was watched -> `server.metrics` and `gpu` of the summary and of each of its stages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenswarm.kv_cache import KvShape
from tokenswarm.result.summary import Part, Summary
from tokenswarm.telemetry import gpu, kv, names, server
from tokenswarm.telemetry.gpu import Price
from tokenswarm.telemetry.reading import Reading
from tokenswarm.telemetry.watch import EngineWatch, GpuWatch, Watch
from tokenswarm.telemetry.window import Totals, one_after_another, side_by_side

TWIN = "the same engine as at {}: it is counted once"


class StageTold(msgspec.Struct, frozen=True, kw_only=True):
    """What engine and GPUs told of one stage that is over, for whoever shows it live: as in its blocks.

    No energy of a token: requests that are still open bring the stage's last tokens later.
    """

    engine_batch: float | None = None
    engine_waiting: float | None = None
    power_w_mean: float | None = None


class Source(msgspec.Struct, kw_only=True):
    """One page that was asked for, over the whole run."""

    url: str
    kind: str | None = None  # of telemetry/names.py, ollama or gpu; null: it never answered with metrics
    version: str = ""
    looks: int
    good: int
    gaps: dict[str, int]
    problem: str  # the newest, in a sentence
    facts: dict[str, str] = {}
    missing: list[str] = []  # quantities that this kind tells, and this page did not


def fill(
    summary: Summary,
    engines: Sequence[EngineWatch],
    gpus: Sequence[GpuWatch],
    *,
    now_ns: int,
    price: Price | None = None,
    shape: KvShape | None = None,
) -> None:
    """Put the blocks where summary.json has them. Without a source there is none."""
    numbers = [stage.stage for stage in summary.stages]
    if engines:
        sources = server.to_dict([_source(watch, watch.newest) for watch in engines])
        summary.server["metrics"] = {"sources": sources, **_server(engines, numbers, now_ns, summary, shape)}
        for stage in summary.stages:
            stage.server["metrics"] = _server(engines, [stage.stage], now_ns, stage, shape)
    if gpus or price is not None:
        whole = gpu.block(gpus, numbers, now_ns, summary.throughput.output_tokens_per_s, price)
        summary.gpu.update({"sources": server.to_dict([_source(watch, None) for watch in gpus])})
        summary.gpu.update(server.to_dict(whole))
        for stage in summary.stages:
            one = gpu.block(gpus, [stage.stage], now_ns, stage.throughput.output_tokens_per_s, price)
            stage.gpu.update(server.to_dict(one))


def of_stage(engines: Sequence[EngineWatch], gpus: Sequence[GpuWatch], stage: int, now_ns: int) -> StageTold | None:
    """None while a reading at the end of the stage is still to come, or where nothing was watched in it."""
    windows = [watch.by_stage[stage] for watch in engines if stage in watch.by_stage]
    windows += [watch.by_stage[stage].overall for watch in gpus if stage in watch.by_stage]
    if not windows or not all(window.is_over(now_ns) for window in windows):
        return None
    total = _total(own(engines), [stage], now_ns)
    return StageTold(
        engine_batch=server.level(total, "running").mean if engines else None,
        engine_waiting=server.level(total, "waiting").mean if engines else None,
        power_w_mean=gpu.block(gpus, [stage], now_ns, None, None).power_w_mean,
    )


def _source(watch: Watch, reading: Reading | None) -> Source:
    found = Source(
        url=watch.url, looks=watch.looks, good=watch.good, gaps=dict(sorted(watch.gaps.items())), problem=watch.problem
    )
    if isinstance(watch, EngineWatch):
        found.version = watch.version
        told = "; ".join(filter(None, (watch.problem, watch.left_out)))
        found.problem = TWIN.format(watch.twin) if watch.twin else told
        if reading is not None:
            found.kind, found.facts, found.missing = reading.kind, reading.facts, list(reading.missing)
    elif watch.good:
        found.kind = "gpu"
    return found


def _server(
    engines: Sequence[EngineWatch], stages: Sequence[int], now_ns: int, client: Part, shape: KvShape | None
) -> dict[str, object]:
    routers = [watch for watch in engines if watch.newest is not None and names.is_router(watch.newest.kind)]
    engines = own(engines)
    total = _total(engines, stages, now_ns)
    kinds = {watch.newest.kind for watch in engines if watch.newest is not None}
    kind = kinds.pop() if len(kinds) == 1 else ""
    block = server.block(total, kind, len(engines), client)
    for watch in engines if len(engines) > 1 else ():
        kind = watch.newest.kind if watch.newest is not None else ""
        block.replicas.append(server.replica(watch.url, kind, _total([watch], stages, now_ns)))
    for watch in routers:
        assert watch.newest is not None
        block.routers.append(server.router(watch.url, watch.newest.kind, _total([watch], stages, now_ns)))
    found = server.to_dict(block)
    seen = kv.Seen(
        use=server.level(total, "kv_cache_usage", len(engines)),
        running=server.level(total, "running").mean,
        decoding=client.decoding_mean,
        prompt=client.tokens.input_length.mean,
        answer=client.tokens.output_length.mean,
    )
    found["kv_cache"] = server.to_dict(kv.block(engines, seen, shape))
    return found


def find_twins(watches: Sequence[EngineWatch]) -> list[EngineWatch]:
    """Those found now to be an engine that is watched under another address, too. Under load no two pages are alike."""
    found = []
    for place, watch in enumerate(watches):
        for other in watches[:place]:
            if watch.twin or other.twin or watch.newest is None or other.newest is None:
                continue
            if watch.newest.same_as(other.newest):
                watch.twin = other.url
                found.append(watch)
    return found


def own(watches: Sequence[EngineWatch]) -> list[EngineWatch]:
    """The engines among them, each once, whose numbers add up; a router's own account only where there is no other."""
    watches = [watch for watch in watches if not watch.twin]
    engines = [watch for watch in watches if watch.newest is None or not names.is_router(watch.newest.kind)]
    return engines or list(watches)


def _total(engines: Sequence[EngineWatch], stages: Sequence[int], now_ns: int) -> Totals:
    """The sums over these stages of all replicas."""
    by_stage = []
    for stage in stages:
        parts = [watch.by_stage[stage].totals(now_ns) for watch in engines if stage in watch.by_stage]
        if parts:
            by_stage.append(parts[0] if len(parts) == len(engines) == 1 else side_by_side(_all(parts, len(engines))))
    return one_after_another(by_stage)


def _all(parts: list[Totals], n: int) -> list[Totals]:
    """A replica that has no window of this stage is an empty one."""
    return parts + [Totals(empty=1)] * (n - len(parts))
