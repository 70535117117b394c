"""Energy of the CPU packages from Linux' powercap (RAPL: Intel, and AMD since Zen): no GPU's, and named so.

A zone's `energy_uj` counts microjoules and begins again at `max_energy_range_uj`, after minutes at full load. Since
2020 only root may read it; where this process may not, the reason is told instead of a number.
"""

from __future__ import annotations

from pathlib import Path

from exporters.families import Family, Readings, Tally

FAMILIES = {
    "tokenswarm_host_energy_joules_total": Family(
        "counter",
        "Energy of a CPU package, its DRAM or the platform (psys) by RAPL: not of a GPU. Packages add up; the others "
        "overlap with them.",
        ("domain",),
    ),
    "tokenswarm_host_energy_unavailable_info": Family(
        "gauge", "Why the CPU's energy is not told, always 1: absent (no powercap here) or permission.", ("reason",)
    ),
}


class PowercapReader:
    """Follows every zone under `root`; a step back is the counter's end, not a restart."""

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._root = root
        self._tally = Tally()
        self._raw_uj: dict[Path, int] = {}

    def read(self) -> Readings:
        """The energy of each zone, or why there is none. Raises OSError or ValueError for a zone without sense."""
        readings = Readings()
        refused = False
        zones = sorted(zone for zone in self._root.glob("*-rapl:*") if (zone / "energy_uj").exists())
        for zone in zones:
            try:
                raw_uj = int((zone / "energy_uj").read_text(encoding="ascii"))
            except PermissionError:
                refused = True
                continue
            readings.add("tokenswarm_host_energy_joules_total", self._joules(zone, raw_uj), self._domain(zone))
        if not readings.rows:
            reason = "permission" if refused else "absent"
            readings.add("tokenswarm_host_energy_unavailable_info", 1, reason)
        return readings

    def _joules(self, zone: Path, raw_uj: int) -> float:
        before_uj = self._raw_uj.get(zone)
        self._raw_uj[zone] = raw_uj
        grown_uj = 0 if before_uj is None else raw_uj - before_uj
        if grown_uj < 0:
            grown_uj += int((zone / "max_energy_range_uj").read_text(encoding="ascii")) + 1
        return self._tally.add((zone.name,), max(0, grown_uj) / 1e6)

    def _domain(self, zone: Path) -> str:
        """package-0; of a part of it (intel-rapl:0:1) with the package's: dram-0."""
        name = (zone / "name").read_text(encoding="ascii").strip()
        parent = zone.name.split(":")[1:]
        return name if len(parent) < 2 or name.startswith("package") else f"{name}-{parent[0]}"
