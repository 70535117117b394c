"""Energy without an NVIDIA card: RAPL zones and cards of sysfs, from an exporter's page to joules a token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import sample_runs
from exporter_process import running, value

from exporters.gpu.powercap import PowercapReader
from exporters.gpu.sysfs import SysfsReader
from tokenswarm.clock import NS_PER_S
from tokenswarm.telemetry import gpus, join
from tokenswarm.telemetry.watch import GpuWatch

ENERGY = "tokenswarm_host_energy_joules_total"


def zone(root: Path, name: str, told: str, uj: int, most_uj: int = 262_143_328_850) -> Path:
    folder = root / "class" / "powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (("name", told), ("energy_uj", str(uj)), ("max_energy_range_uj", str(most_uj))):
        (folder / file).write_text(text + "\n", encoding="ascii")
    return folder


def card(root: Path, number: int, driver: str, **files: int | str) -> Path:
    device = root / "devices" / f"0000:0{number}:00.0"
    monitor = device / "hwmon" / "hwmon3"
    monitor.mkdir(parents=True)
    (monitor / "name").write_text(driver + "\n")
    for name, told in files.items():
        place = device if name in ("gpu_busy_percent", "mem_info_vram_used", "unique_id", "product_name") else monitor
        (place / name).write_text(f"{told}\n")
    drm = root / "class" / "drm"
    (drm / f"card{number}").mkdir(parents=True)
    (drm / f"card{number}" / "device").symlink_to(device)
    (drm / f"card{number}-HDMI-A-1").mkdir()
    return monitor


def rows(reader: PowercapReader) -> dict[tuple[str, ...], float]:
    return dict(reader.read().rows.get(ENERGY, []))


def test_packages_and_their_parts_are_told_apart(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "dram", 7)
    zone(tmp_path, "intel-rapl:1", "package-1", 9)
    (tmp_path / "class" / "powercap" / "intel-rapl").mkdir()  # the driver itself
    reader = PowercapReader(tmp_path / "class" / "powercap")
    assert rows(reader) == {("package-0",): 0, ("dram-0",): 0, ("package-1",): 0}
    (first / "energy_uj").write_text("17500000\n")
    assert rows(reader)["package-0",] == 12.5


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 900, most_uj=999)
    reader = PowercapReader(tmp_path / "class" / "powercap")
    for raw_uj, joules in ((900, 0.0), (950, 50e-6), (10, 110e-6), (0, 1100e-6)):
        (folder / "energy_uj").write_text(f"{raw_uj}\n")
        assert rows(reader)["package-0",] == pytest.approx(joules, abs=1e-12), raw_uj


def test_why_there_is_no_energy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "tokenswarm_host_energy_unavailable_info"
    assert PowercapReader(tmp_path / "none").read().rows == {why: [(("absent",), 1)]}
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 900)
    (folder / "energy_uj").chmod(0)
    if os.access(folder / "energy_uj", os.R_OK):  # root reads it all the same
        read = Path.read_text

        def refuse(path: Path, *given: Any, **named: Any) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return read(path, *given, **named)

        monkeypatch.setattr(Path, "read_text", refuse)
    assert PowercapReader(tmp_path / "class" / "powercap").read().rows == {why: [(("permission",), 1)]}


def test_cards_of_sysfs_have_the_units_of_the_table(tmp_path: Path) -> None:
    files = {"power1_average": 212_000_000, "freq1_input": 1_533_000_000, "temp1_input": 60_000, "temp2_input": 76_000}
    shares: dict[str, int | str] = {"gpu_busy_percent": 97, "mem_info_vram_used": 183_265, "unique_id": "0a1b"}
    card(tmp_path, 1, "amdgpu", **files, **shares)
    monitor = card(tmp_path, 2, "xe", energy1_input=5_000_000)
    card(tmp_path, 3, "nouveau", power1_input=1)
    now_ns = [0]
    reader = SysfsReader("h", tmp_path / "class" / "drm", lambda: now_ns[0])
    reader.read()
    now_ns[0] = NS_PER_S
    (monitor / "energy1_input").write_text("8000000\n")
    found = {(family.removeprefix("tokenswarm_gpu_"), *labels): value
             for family, given in reader.read().rows.items() if not family.endswith("_info")
             for labels, value in given}  # fmt: skip
    amd, intel = "AMD-0a1b", "INTEL-0000:02:00.0"
    assert found == {
        ("up", amd): 1, ("up", intel): 1, ("power_watts", amd): 212, ("power_average_watts", amd): 212,
        ("clock_hertz", amd, "sm"): 1.533e9, ("temperature_celsius", amd, "gpu"): 76,
        ("utilization_ratio", amd): pytest.approx(0.97), ("memory_used_bytes", amd): 183_265,
        ("busy_seconds_total", amd): pytest.approx(0.97), ("observed_seconds_total", amd): 1,
        ("energy_joules_total", intel): 8,
    }  # fmt: skip


def test_from_the_exporters_page_to_joules_a_token(tmp_path: Path) -> None:
    """A real exporter over a tree of files: the page, and what a window of it comes to."""
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zone(tmp_path, "intel-rapl:0:0", "dram", 0)
    card(tmp_path, 1, "amdgpu", power1_average=200_000_000, unique_id="0a1b")
    watch = GpuWatch("http://g/metrics", 1.0)
    with running("gpu", "--sysfs", str(tmp_path), "--interval", "0.05") as exporter:
        exporter.wait_for(lambda samples: value(samples, "tokenswarm_gpus") == 1)
        first = exporter.text().encode()
        (folder / "energy_uj").write_text("1000000000\n")
        exporter.wait_for(lambda samples: value(samples, ENERGY, domain="package-0") == 1000)
        last = exporter.text()
    page = gpus.read(last.encode())
    assert page.gpus["AMD-0a1b"].levels["power_w"] == 200
    watch.open(0, 0)
    for at_s in range(101):
        assert watch.page(first if at_s < 100 else last.encode(), at_s * NS_PER_S + 1, 1) is None
    watch.close(100 * NS_PER_S)
    summary = sample_runs.summary(sample_runs.run(ok=800))
    join.fill(summary, (), [watch], now_ns=100 * NS_PER_S)
    tokens_per_s = summary.throughput.output_tokens_per_s
    assert tokens_per_s == pytest.approx(72, abs=0.5)
    cpu = summary.gpu["cpu"]
    assert (cpu["energy_j"], cpu["power_w_mean"], cpu["dram_energy_j"]) == (1000, pytest.approx(10), 0)
    assert cpu["j_per_output_token"] == pytest.approx(10 / tokens_per_s)
    assert summary.stages[0].gpu["cpu"]["j_per_output_token"] == cpu["j_per_output_token"]
    assert summary.gpu["power_w_mean"] == pytest.approx(200)
    assert summary.gpu["j_per_output_token"] == pytest.approx(200 / tokens_per_s)  # the GPU's stands apart
