"""Every metric of the GPU exporter, and where its number comes from in NVML. Data only.

A row takes the first of its sources that answers with a real number; if none does, the metric is absent.
Field numbers are NVML_FI_DEV_* (nvml.h); units there: mJ, mW, MHz, ns, KiB, as the factors say.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporters.families import Family


@dataclass(frozen=True, slots=True)
class Source:
    """A call of nvml.DEVICE_CALLS (or `field.ID`, or `gpm`), the key inside its answer, the factor to the base unit."""

    call: str
    key: str | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One series a GPU: its family, the label values after `gpu`, its sources."""

    family: str
    labels: tuple[str, ...]
    sources: tuple[Source, ...]


GPU = ("gpu",)

FAMILIES = {
    "tokenswarm_gpu_info": Family(
        "gauge",
        "Identity of a GPU, always 1; join on gpu (its UUID). backend=replay marks recorded, not live, values.",
        (
            "gpu",
            "index",
            "name",
            "driver",
            "cuda",
            "vbios",
            "pci_bus_id",
            "mig_mode",
            "host",
            "backend",
        ),
    ),
    "tokenswarm_gpu_up": Family("gauge", "1 if the GPU answered in the newest sample, 0 if it is lost or stuck.", GPU),
    "tokenswarm_gpus": Family("gauge", "GPUs that answered in the newest sample."),
    "tokenswarm_gpu_nvml_available": Family("gauge", "1 if NVML could be asked in the newest sample."),
    "tokenswarm_gpu_nvml_unavailable_info": Family(
        "gauge",
        "Why NVML can't be asked, always 1: NVML's error name, NO_GPU, STARTING, TIMED_OUT or off.",
        ("reason",),
    ),
    "tokenswarm_gpu_utilization_ratio": Family(
        "gauge", "Share of time in which any kernel ran (last 1/6 to 1 s). About 1 in any decode loop: not load.", GPU
    ),
    "tokenswarm_gpu_memory_activity_ratio": Family("gauge", "Share of time in which device memory was accessed.", GPU),
    "tokenswarm_gpu_busy_seconds_total": Family("counter", "The utilization ratio, integrated over time.", GPU),
    "tokenswarm_gpu_observed_seconds_total": Family(
        "counter", "Time that busy_seconds covers; less than wall time where the GPU did not answer.", GPU
    ),
    "tokenswarm_gpu_memory_used_bytes": Family("gauge", "Device memory in use, without the driver's reserve.", GPU),
    "tokenswarm_gpu_memory_free_bytes": Family("gauge", "Device memory that is free.", GPU),
    "tokenswarm_gpu_memory_total_bytes": Family("gauge", "Device memory of the GPU.", GPU),
    "tokenswarm_gpu_memory_reserved_bytes": Family("gauge", "Device memory that driver and firmware keep.", GPU),
    "tokenswarm_gpu_energy_joules_total": Family("counter", "Energy drawn; its rate is the true mean power.", GPU),
    "tokenswarm_gpu_power_watts": Family("gauge", "Power now (older drivers: the average of 1 s).", GPU),
    "tokenswarm_gpu_power_average_watts": Family("gauge", "Power, averaged by the driver over 1 s.", GPU),
    "tokenswarm_gpu_power_limit_watts": Family("gauge", "The power limit that is enforced.", GPU),
    "tokenswarm_gpu_clock_hertz": Family("gauge", "Clock frequency now.", ("gpu", "clock")),
    "tokenswarm_gpu_clock_max_hertz": Family("gauge", "The highest clock frequency of the card.", ("gpu", "clock")),
    "tokenswarm_gpu_throttle_seconds_total": Family(
        "counter", "Time in which the clocks were held down, by reason.", ("gpu", "reason")
    ),
    "tokenswarm_gpu_throttled": Family(
        "gauge", "1 if the clocks are held down for this reason now.", ("gpu", "reason")
    ),
    "tokenswarm_gpu_temperature_celsius": Family("gauge", "Temperature now.", ("gpu", "sensor")),
    "tokenswarm_gpu_temperature_limit_celsius": Family(
        "gauge", "Temperature at which the card slows down, stops, or must stay below.", ("gpu", "limit")
    ),
    "tokenswarm_gpu_pcie_bytes_total": Family(
        "counter",
        "Bytes over PCIe, packet headers included, seen from the GPU (tx: to the host).",
        ("gpu", "direction"),
    ),
    "tokenswarm_gpu_pcie_observed_seconds_total": Family(
        "counter",
        "Time that pcie_bytes covers; a piece too long for the card's 32-bit counter is left out of both.",
        GPU,
    ),
    "tokenswarm_gpu_pcie_replays_total": Family("counter", "PCIe transfers that had to be repeated.", GPU),
    "tokenswarm_gpu_pcie_link_generation": Family("gauge", "PCIe generation of the link now.", GPU),
    "tokenswarm_gpu_pcie_link_width": Family("gauge", "PCIe lanes of the link now.", GPU),
    "tokenswarm_gpu_nvlink_bytes_total": Family(
        "counter", "Payload bytes over all NVLinks of the GPU.", ("gpu", "direction")
    ),
    "tokenswarm_gpu_ecc_errors_total": Family(
        "counter", "Memory errors since the driver was loaded.", ("gpu", "type", "scope")
    ),
    "tokenswarm_gpu_remapped_rows": Family("gauge", "Memory rows that were replaced by spare ones.", ("gpu", "type")),
    "tokenswarm_gpu_remap_pending": Family("gauge", "1 if a row waits for a reset to be replaced.", GPU),
    "tokenswarm_gpu_remap_failure": Family("gauge", "1 if a row could not be replaced.", GPU),
    "tokenswarm_gpu_xid_errors_total": Family("counter", "Critical errors that the driver reported.", ("gpu", "xid")),
    "tokenswarm_gpu_xid_last_timestamp_seconds": Family("gauge", "When the XID was last reported.", ("gpu", "xid")),
    "tokenswarm_gpu_processes": Family("gauge", "Compute processes on the GPU.", ("gpu", "pid_class")),
    "tokenswarm_gpu_process_memory_bytes": Family(
        "gauge", "Device memory of compute processes; absent if the driver hides one of them.", ("gpu", "pid_class")
    ),
    "tokenswarm_gpu_sm_active_ratio": Family("gauge", "Share of the SMs that were busy (GPM).", GPU),
    "tokenswarm_gpu_sm_occupancy_ratio": Family("gauge", "Active warps of the possible ones (GPM).", GPU),
    "tokenswarm_gpu_tensor_active_ratio": Family("gauge", "Share of time in tensor operations (GPM).", GPU),
    "tokenswarm_gpu_dram_active_ratio": Family("gauge", "Memory bandwidth used of the possible one (GPM).", GPU),
    "tokenswarm_gpu_mig_info": Family("gauge", "A MIG device, always 1.", ("gpu", "gi", "ci", "profile", "mig_uuid")),
    "tokenswarm_gpu_mig_memory_used_bytes": Family("gauge", "Device memory in use in a GPU instance.", ("gpu", "gi")),
    "tokenswarm_gpu_exporter_last_success_timestamp_seconds": Family(
        "gauge", "When all GPUs last answered; absent before the first time."
    ),
    "tokenswarm_gpu_exporter_collects_total": Family("counter", "Samples taken."),
    "tokenswarm_gpu_exporter_collect_timeouts_total": Family(
        "counter", "Samples in which NVML did not return in time; the GPU series were dropped meanwhile."
    ),
    "tokenswarm_gpu_exporter_collect_duration_seconds": Family(
        "gauge", "Time the last NVML call of its kind took.", ("call",)
    ),
    "tokenswarm_gpu_exporter_call_seconds_total": Family("counter", "Time spent in NVML calls.", ("call",)),
    "tokenswarm_gpu_exporter_calls_total": Family("counter", "NVML calls made.", ("call",)),
    "tokenswarm_gpu_exporter_errors_total": Family(
        "counter",
        "NVML errors by call; not counted: what a card does not support. IMPLAUSIBLE: a ratio above 1, dropped.",
        ("call", "nvml_error"),
    ),
}


def _row(family: str, *sources: Source, labels: tuple[str, ...] = ()) -> Row:
    return Row(f"tokenswarm_gpu_{family}", labels, sources)


def _field(number: int, scale: float = 1.0) -> Source:
    return Source(f"field.{number}", None, scale)


ROWS = (
    _row("utilization_ratio", Source("utilization", "gpu", 0.01)),
    _row("memory_activity_ratio", Source("utilization", "memory", 0.01)),
    _row("memory_used_bytes", Source("memory", "used")),
    _row("memory_free_bytes", Source("memory", "free")),
    _row("memory_total_bytes", Source("memory", "total")),
    _row("memory_reserved_bytes", Source("memory", "reserved")),
    _row("energy_joules_total", _field(83, 1e-3), Source("energy", scale=1e-3)),
    _row("power_watts", _field(186, 1e-3), Source("power_usage", scale=1e-3)),
    _row("power_average_watts", _field(185, 1e-3), Source("power_usage", scale=1e-3)),
    _row("power_limit_watts", Source("power_limit", scale=1e-3)),
    *(_row("clock_hertz", Source(f"clock.{clock}", scale=1e6), labels=(clock,)) for clock in ("sm", "mem", "graphics")),
    *(
        _row("clock_max_hertz", Source(f"max_clock.{clock}", scale=1e6), labels=(clock,))
        for clock in ("sm", "mem", "graphics")
    ),
    _row("throttle_seconds_total", _field(74, 1e-9), Source("violation.power", scale=1e-9), labels=("sw_power_cap",)),
    _row(
        "throttle_seconds_total", _field(76, 1e-9), Source("violation.sync_boost", scale=1e-9), labels=("sync_boost",)
    ),
    _row(
        "throttle_seconds_total",
        _field(269, 1e-9),
        _field(75, 1e-9),
        Source("violation.thermal", scale=1e-9),
        labels=("sw_thermal",),
    ),
    _row("throttle_seconds_total", _field(270, 1e-9), labels=("hw_thermal",)),
    _row("throttle_seconds_total", _field(271, 1e-9), labels=("hw_power_brake",)),
    _row("temperature_celsius", Source("temperature"), labels=("gpu",)),
    _row("temperature_celsius", _field(82), labels=("memory",)),
    *(
        _row("temperature_limit_celsius", Source(f"temperature_limit.{limit}"), labels=(limit,))
        for limit in ("shutdown", "slowdown", "memory_max", "gpu_max")
    ),
    _row("pcie_replays_total", _field(94), Source("pcie_replays")),
    _row("pcie_link_generation", Source("pcie_link", "generation")),
    _row("pcie_link_width", Source("pcie_link", "width")),
    _row("nvlink_bytes_total", _field(138, 1024), labels=("tx",)),
    _row("nvlink_bytes_total", _field(139, 1024), labels=("rx",)),
    _row("ecc_errors_total", _field(3), labels=("corrected", "volatile")),
    _row("ecc_errors_total", _field(4), labels=("uncorrected", "volatile")),
    _row("remapped_rows", _field(142), labels=("corrected",)),
    _row("remapped_rows", _field(143), labels=("uncorrected",)),
    _row("remap_pending", _field(144)),
    _row("remap_failure", _field(145)),
)

GPM_ROWS = tuple(
    _row(f"{name}_ratio", Source("gpm", name, 0.01))
    for name in ("sm_active", "sm_occupancy", "tensor_active", "dram_active")
)

FIELDS = tuple(
    sorted(
        int(source.call.removeprefix("field."))
        for row in ROWS
        for source in row.sources
        if source.call.startswith("field.")
    )
)

THROTTLE_BITS = {
    "sw_power_cap": 0x04,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
"""nvmlClocksEventReason*. Not here: idle, application clocks (no throttling), HW_SLOWDOWN (the last two together)."""

ASKED_ONCE = frozenset(
    {
        "uuid",
        "name",
        "vbios",
        "pci",
        "driver",
        "cuda",
        *(f"max_clock.{clock}" for clock in ("sm", "mem", "graphics")),
        *(f"temperature_limit.{limit}" for limit in ("shutdown", "slowdown", "memory_max", "gpu_max")),
    }
)
"""Calls whose answer can't change while the session is open."""
