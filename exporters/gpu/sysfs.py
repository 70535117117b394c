"""GPUs that Linux itself tells of (hwmon of amdgpu, i915, xe): power, energy, memory, clock, temperature. No library.

They have the metrics of table.py, with `backend="sysfs"`. What a driver lacks (amdgpu: an energy counter) is absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporters.families import Readings, Tally
from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns

DRIVERS = frozenset({"amdgpu", "i915", "xe"})
GAP_S = 5.0  # a longer time without a sample is not observed


@dataclass(frozen=True, slots=True)
class Row:
    """One number: its family, labels after `gpu`, the files that may hold it (hwmon's: of the device's), its unit."""

    family: str
    labels: tuple[str, ...]
    files: tuple[str, ...]
    scale: float


ROWS = (
    Row("power_watts", (), ("power1_input", "power1_average"), 1e-6),
    Row("power_average_watts", (), ("power1_average",), 1e-6),
    Row("power_limit_watts", (), ("power1_cap",), 1e-6),
    Row("energy_joules_total", (), ("energy1_input",), 1e-6),
    Row("clock_hertz", ("sm",), ("freq1_input",), 1),
    Row("clock_hertz", ("mem",), ("freq2_input",), 1),
    Row("temperature_celsius", ("gpu",), ("temp2_input", "temp1_input"), 1e-3),  # junction before edge
    Row("temperature_celsius", ("memory",), ("temp3_input",), 1e-3),
    Row("utilization_ratio", (), ("device/gpu_busy_percent",), 1e-2),
    Row("memory_used_bytes", (), ("device/mem_info_vram_used",), 1),
    Row("memory_total_bytes", (), ("device/mem_info_vram_total",), 1),
)


class SysfsReader:
    """`read` gives one sample of every card under `root` whose driver is known here; none: an empty one."""

    def __init__(self, host: str, root: Path = Path("/sys/class/drm"), clock: Clock = monotonic_ns) -> None:
        self._host = host
        self._root = root
        self._clock = clock
        self._tally = Tally()
        self._sampled_ns: dict[str, int] = {}

    def read(self) -> Readings:
        readings = Readings()
        cards = sorted(card for card in self._root.glob("card[0-9]*") if card.name[4:].isdecimal())
        for card in cards:
            device = card / "device"
            for monitor in sorted((device / "hwmon").glob("hwmon*")):
                driver = _text(monitor / "name")
                if driver in DRIVERS:
                    self._read_gpu(readings, card.name[4:], driver, device, monitor)
                    break
        return readings

    def _read_gpu(self, readings: Readings, index: str, driver: str, device: Path, monitor: Path) -> None:
        pci = device.resolve().name
        uuid = f"{'AMD' if driver == 'amdgpu' else 'INTEL'}-{_text(device / 'unique_id') or pci}"
        name = _text(device / "product_name") or driver
        info = (uuid, index, name, driver, "", "", pci, "unsupported", self._host, "sysfs")
        readings.add("tokenswarm_gpu_info", 1, *info)
        readings.add("tokenswarm_gpu_up", 1, uuid)
        for row in ROWS:
            value = _first(row.files, lambda file: device / file[7:] if file.startswith("device/") else monitor / file)
            if value is None:
                continue
            family = f"tokenswarm_gpu_{row.family}"
            scaled = value * row.scale
            if row.family == "energy_joules_total":
                scaled = self._tally.advance((uuid, family), scaled)
            readings.add(family, scaled, uuid, *row.labels)
        self._integrate(readings, uuid)

    def _integrate(self, readings: Readings, uuid: str) -> None:
        """Busy and observed time, of a card that tells its share."""
        now_ns = self._clock()
        past_s = (now_ns - self._sampled_ns.get(uuid, now_ns)) / NS_PER_S
        self._sampled_ns[uuid] = now_ns
        told = readings.rows.get("tokenswarm_gpu_utilization_ratio", ())
        shares = [value for labels, value in told if labels[0] == uuid]
        past_s = past_s if past_s <= GAP_S else 0.0
        for name, share in (("busy", shares[0] if shares else None), ("observed", 1.0 if shares else None)):
            if share is not None:
                family = f"tokenswarm_gpu_{name}_seconds_total"
                readings.add(family, self._tally.add((uuid, family), share * past_s), uuid)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _first(files: tuple[str, ...], at: Callable[[str], Path]) -> float | None:
    """The number in the first file that has one; a sensor that sleeps answers with an error."""
    for file in files:
        text = _text(at(file))
        if text.removeprefix("-").isdecimal():
            return float(text)
    return None
