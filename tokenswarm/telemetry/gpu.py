"""Sums over a window -> the `gpu` block: energy, power, use and limits of each GPU and of all, and what a token costs.

Mean power is the energy counter's difference by the time that the exporter's samples cover (it samples once a second,
so reading and sample differ by up to that); energy per token is mean power by tokens a second, both of the same window.
Sums over GPUs are null where one of them was lost: those of the others would look like all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.telemetry.server import Covered, covered, level
from tokenswarm.telemetry.watch import GpuWatch
from tokenswarm.telemetry.window import Totals, one_after_another

SECONDS_PER_HOUR = 3600.0


class Price(msgspec.Struct, frozen=True):
    """What an hour of one GPU costs; `currency` is a label only. `gpus`: how many are paid for; None: those seen."""

    per_gpu_hour: float
    currency: str
    gpus: int | None = None


class Gpu(msgspec.Struct, kw_only=True):
    """One GPU over the windows."""

    gpu: str  # UUID
    index: str = ""
    name: str = ""
    backend: str = ""  # "replay": recorded values, not this run's
    lost: bool = False  # did not answer at least once inside a window
    observed_s: float | None = None  # time that the exporter's samples cover
    energy_j: float | None = None  # in that time
    power_w_mean: float | None = None
    power_w_max: float | None = None  # of momentary values
    utilization_ratio_mean: float | None = None  # time in which any kernel ran: near 1 in any decode loop
    memory_used_bytes_max: float | None = None
    memory_total_bytes: float | None = None
    clock_sm_hz_min: float | None = None
    clock_sm_hz_max: float | None = None
    clock_sm_hz_limit: float | None = None  # the card's highest
    clock_mem_hz_min: float | None = None
    temperature_c_max: float | None = None
    temperature_memory_c_max: float | None = None
    throttle_s: dict[str, float] = {}
    xids: dict[str, int] = {}


class CpuBlock(msgspec.Struct, kw_only=True):
    """Energy of the CPU packages of the exporters' machines, by RAPL: no GPU's, and in no sum with theirs."""

    energy_j: float | None = None
    power_w_mean: float | None = None
    dram_energy_j: float | None = None  # not part of the packages'
    j_per_output_token: float | None = None
    output_tokens_per_j: float | None = None
    why_not: str = ""  # "permission": only root may read it; "absent": the machine doesn't tell it


class GpuBlock(msgspec.Struct, kw_only=True):
    """`gpu` of a stage or of the run."""

    coverage: Covered
    count: int
    gpus: list[Gpu] = []
    energy_j: float | None = None
    power_w_mean: float | None = None
    utilization_ratio_mean: float | None = None
    memory_used_bytes_max: float | None = None
    output_tokens_per_j: float | None = None
    output_tokens_per_s_per_w: float | None = None  # the same number: a watt is a joule a second
    j_per_output_token: float | None = None
    cost_per_million_output_tokens: float | None = None
    price_per_gpu_hour: float | None = None
    currency: str | None = None
    cpu: CpuBlock | None = None


def block(
    watches: Sequence[GpuWatch],
    stages: Sequence[int],
    now_ns: int,
    output_tokens_per_s: float | None,
    price: Price | None,
) -> GpuBlock:
    """The block of some stages: one, or all of a run, whose windows follow each other."""
    gpus: list[Gpu] = []
    pages: list[Totals] = []
    resets = 0
    machines: list[GpuWatch] = []
    for watch in watches:
        told = {one.gpu for one in gpus}
        machines += [] if told & watch.facts.keys() else [watch]
        given = [watch.by_stage[stage] for stage in stages if stage in watch.by_stage]
        pages += [stage.overall.totals(now_ns) for stage in given]
        for uuid in sorted({uuid for stage in given for uuid in stage.gpus} - told):  # of two exporters of a machine
            total = one_after_another(stage.gpus[uuid].totals(now_ns) for stage in given if uuid in stage.gpus)
            one = _gpu(uuid, total, watch.facts.get(uuid, {}))
            one.lost = any(uuid in stage.lost or uuid not in stage.gpus for stage in given)
            for stage in given:
                for xid, n in stage.xids.get(uuid, {}).items():
                    one.xids[xid] = one.xids.get(xid, 0) + n
            gpus.append(one)
            resets += total.resets
    found = GpuBlock(coverage=_coverage(pages, len(watches)), count=len(gpus), gpus=gpus)
    found.coverage.resets = resets
    silent = any(not watch.by_stage.keys() & set(stages) for watch in watches)
    if gpus and not silent and not found.coverage.empty_windows and not any(one.lost for one in gpus):
        _sum(found)
    _per_token(found, output_tokens_per_s, price)
    if watches:
        found.cpu = _cpu(machines, stages, now_ns, output_tokens_per_s)
    return found


def _cpu(watches: Sequence[GpuWatch], stages: Sequence[int], now_ns: int, tokens_per_s: float | None) -> CpuBlock:
    """Sums over the machines; null where one of them does not tell."""
    energy_j = dram_j = power_w = 0.0
    told, dram_told = bool(watches), False
    for watch in watches:
        total = one_after_another(
            watch.by_stage[stage].overall.totals(now_ns) for stage in stages if stage in watch.by_stage
        )
        parts = {name.partition(".")[2]: joules for name, joules in total.counters.items() if name.startswith("cpu_")}
        packages = [joules for name, joules in parts.items() if name.startswith("package")]
        dram = [joules for name, joules in parts.items() if name.startswith("dram")]
        told = told and bool(packages) and total.covered_ns > 0
        dram_told = dram_told or bool(dram)
        if total.covered_ns:
            energy_j, dram_j = energy_j + sum(packages), dram_j + sum(dram)
            power_w += sum(packages) * NS_PER_S / total.covered_ns
    if not told:
        reasons = [watch.newest.host.facts.get("cpu_energy", "") for watch in watches if watch.newest is not None]
        return CpuBlock(why_not=next(filter(None, reasons), "absent"))
    found = CpuBlock(energy_j=energy_j, power_w_mean=power_w, dram_energy_j=dram_j if dram_told else None)
    if tokens_per_s and power_w:
        found.j_per_output_token, found.output_tokens_per_j = power_w / tokens_per_s, tokens_per_s / power_w
    return found


def _coverage(pages: list[Totals], watches: int) -> Covered:
    """Of the pages; the times are those of one exporter."""
    total = one_after_another(pages)
    total.planned_ns //= max(1, watches)
    total.covered_ns //= max(1, watches)
    return covered(total)


def _gpu(uuid: str, total: Totals, facts: Mapping[str, str]) -> Gpu:
    observed_s = total.counters.get("observed_s")
    seconds = total.covered_ns / NS_PER_S if observed_s is None else observed_s
    energy_j = total.counters.get("energy_j")
    found = Gpu(gpu=uuid, index=facts.get("index", ""), name=facts.get("name", ""), backend=facts.get("backend", ""))
    if not seconds:
        return found  # no two readings, or an exporter that samples no more: a difference of 0 J would be no 0 W
    found.observed_s = seconds
    found.energy_j = energy_j
    found.power_w_mean = level(total, "power_w").mean if energy_j is None else energy_j / seconds
    found.power_w_max = level(total, "power_w").max
    busy_s = total.counters.get("busy_s")
    found.utilization_ratio_mean = busy_s / observed_s if busy_s is not None and observed_s else None
    for name in ("memory_used_bytes", "temperature_c", "temperature_memory_c"):
        setattr(found, f"{name}_max", level(total, name).max)
    found.memory_total_bytes = level(total, "memory_total_bytes").max
    for name in ("clock_sm_hz", "clock_mem_hz"):
        setattr(found, f"{name}_min", total.levels[name].low if name in total.levels else None)
    found.clock_sm_hz_max = level(total, "clock_sm_hz").max
    found.clock_sm_hz_limit = level(total, "clock_sm_limit_hz").max
    found.throttle_s = {
        name.removeprefix("throttle."): value
        for name, value in sorted(total.counters.items())
        if name.startswith("throttle.")
    }
    return found


def _sum(found: GpuBlock) -> None:
    for name in ("energy_j", "power_w_mean", "memory_used_bytes_max"):
        values = [getattr(one, name) for one in found.gpus]
        setattr(found, name, None if None in values else sum(values))
    shares = [one.utilization_ratio_mean for one in found.gpus if one.utilization_ratio_mean is not None]
    found.utilization_ratio_mean = sum(shares) / len(shares) if len(shares) == len(found.gpus) else None


def _per_token(found: GpuBlock, output_tokens_per_s: float | None, price: Price | None) -> None:
    """tokens/J = tokens/s/W = (tokens/s)/W; cost = GPUs · price · hours that a million output tokens take."""
    if price is not None:
        found.price_per_gpu_hour, found.currency = price.per_gpu_hour, price.currency
    if not output_tokens_per_s:
        return
    if found.power_w_mean:
        found.output_tokens_per_j = found.output_tokens_per_s_per_w = output_tokens_per_s / found.power_w_mean
        found.j_per_output_token = found.power_w_mean / output_tokens_per_s
    paid = None if price is None else price.gpus or found.count
    if price is not None and paid:
        hours = 1e6 / output_tokens_per_s / SECONDS_PER_HOUR
        found.cost_per_million_output_tokens = paid * price.per_gpu_hour * hours
