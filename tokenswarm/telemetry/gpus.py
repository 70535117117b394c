"""The page of `python -m exporters.gpu` -> a `Reading` a GPU, and the GPUs that are there but do not answer.

Names are those of docs/exporters.md. A GPU that is lost has no series but `up 0`, so its window ends there by itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from tokenswarm.telemetry import exposition
from tokenswarm.telemetry.exposition import Labels, PageError, label
from tokenswarm.telemetry.reading import Reading

PREFIX = "tokenswarm_gpu_"
GPUS = "tokenswarm_gpus"
LAST_FAMILY = "tokenswarm_host_cpus"
"""Always on the page and behind everything of the GPUs: a page without it was cut."""


class Row(NamedTuple):
    """One quantity: our name, the exporter's (without prefix), the label it must have or is told apart by."""

    ours: str
    name: str
    only: tuple[str, str] | None = None
    by: str = ""


LEVELS = (
    Row("power_w", "power_watts"),
    Row("memory_used_bytes", "memory_used_bytes"),
    Row("memory_total_bytes", "memory_total_bytes"),
    Row("clock_sm_hz", "clock_hertz", only=("clock", "sm")),
    Row("clock_mem_hz", "clock_hertz", only=("clock", "mem")),
    Row("clock_sm_limit_hz", "clock_max_hertz", only=("clock", "sm")),
    Row("temperature_c", "temperature_celsius", only=("sensor", "gpu")),
    Row("temperature_memory_c", "temperature_celsius", only=("sensor", "memory")),
)

COUNTERS = (
    Row("energy_j", "energy_joules_total"),
    Row("busy_s", "busy_seconds_total"),
    Row("observed_s", "observed_seconds_total"),
    Row("throttle", "throttle_seconds_total", by="reason"),
)

XID = Row("xid", "xid_errors_total", by="xid")

CPU_ENERGY = "tokenswarm_host_energy_joules_total"
CPU_ENERGY_WHY = "tokenswarm_host_energy_unavailable_info"

FACTS = ("index", "name", "driver", "backend")

WANTED = frozenset(PREFIX + row.name for row in (*LEVELS, *COUNTERS, XID)) | {
    PREFIX + "info", PREFIX + "up", GPUS, LAST_FAMILY, CPU_ENERGY, CPU_ENERGY_WHY,
}  # fmt: skip


class GpuPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page: the GPUs that answer, those that do not, and XID counts (they outlive the GPU that reported them)."""

    gpus: dict[str, Reading]
    lost: frozenset[str]
    host: Reading  # energy of the CPU packages
    xids: dict[tuple[str, str], float] = {}  # (gpu, xid) -> count


def read(page: bytes) -> GpuPage:
    """Raises PageError where the page is not the exporter's, or not whole."""
    samples = {
        name: {labels: value for labels, value in family.items() if not math.isnan(value)}
        for name, family in exposition.read(page, WANTED).items()
    }
    if GPUS not in samples:
        whose = "dcgm-exporter's, not" if b"DCGM_FI_" in page else "not"
        raise PageError("not_metrics", f"the page has no {GPUS}: it is {whose} that of `python -m exporters.gpu`")
    if LAST_FAMILY not in samples:
        raise PageError("incomplete", f"the page lacks {LAST_FAMILY}: it was cut")
    up = {label(labels, "gpu"): value for labels, value in samples.get(PREFIX + "up", {}).items()}
    alive = sorted(gpu for gpu, value in up.items() if value == 1)
    if samples[GPUS].get((), -1) != len(alive):
        raise PageError("incomplete", f"{GPUS} differs from the GPUs on the page")
    infos = {label(labels, "gpu"): dict(labels) for labels in samples.get(PREFIX + "info", {})}
    levels: dict[str, dict[str, float]] = {gpu: {} for gpu in alive}
    counters: dict[str, dict[str, float]] = {gpu: {} for gpu in alive}
    for rows, found in ((LEVELS, levels), (COUNTERS, counters)):
        for row in rows:
            for labels, value in samples.get(PREFIX + row.name, {}).items():
                gpu = label(labels, "gpu")
                if gpu in found and (row.only is None or label(labels, row.only[0]) == row.only[1]):
                    found[gpu][f"{row.ours}.{label(labels, row.by)}" if row.by else row.ours] = value
    return GpuPage(
        gpus={gpu: _reading(infos.get(gpu, {}), levels[gpu], counters[gpu]) for gpu in alive},
        lost=frozenset(up.keys() - set(alive)),
        host=_host(samples),
        xids={(label(labels, "gpu"), label(labels, "xid")): n for labels, n in _of(samples, XID).items()},
    )


def _host(samples: exposition.Samples) -> Reading:
    energy = {f"cpu_energy_j.{label(at, 'domain')}": value for at, value in samples.get(CPU_ENERGY, {}).items()}
    why = "".join(label(at, "reason") for at in samples.get(CPU_ENERGY_WHY, {}))
    return Reading(kind="page", counters=energy, facts={"cpu_energy": why} if why else {})


def _of(samples: exposition.Samples, row: Row) -> dict[Labels, float]:
    return samples.get(PREFIX + row.name, {})


def _reading(info: dict[str, str], levels: dict[str, float], counters: dict[str, float]) -> Reading:
    facts = {name: info[name] for name in FACTS if name in info}
    return Reading(kind="gpu", levels=levels, counters=counters, facts=facts)
