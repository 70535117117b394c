"""The real NVML binding against a stand-in library: structures, versions, value types, errors, events and GPM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nvml_stub
import pytest
from exporter_process import REPO, Exporter, promtool_findings, running, value


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in for libnvidia-ml.so.1."""
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))


def stub(library: Path, lost: Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(library), "STUB_LOST": str(lost)}


def gpu(page: dict[object, float], index: int, name: str, **labels: str) -> float | None:
    return value(page, f"tokenswarm_gpu_{name}", gpu=f"GPU-stub-{index}", **labels)  # type: ignore[arg-type]


EXPECTED = [
    (0, "up", {}, 1),
    (0, "utilization_ratio", {}, 0.75),
    (0, "memory_activity_ratio", {}, 0.25),
    (0, "memory_used_bytes", {}, 300),
    (0, "memory_reserved_bytes", {}, 100),
    (1, "memory_used_bytes", {}, 400),  # version 1 of the structure
    (1, "memory_reserved_bytes", {}, None),
    (0, "energy_joules_total", {}, 5000000.123),
    (0, "power_watts", {}, 333.25),
    (0, "power_average_watts", {}, 250.5),  # field 185 is not supported: GetPowerUsage
    (0, "power_limit_watts", {}, None),  # a sentinel
    (0, "clock_hertz", {"clock": "sm"}, 1.01e9),
    (0, "clock_hertz", {"clock": "mem"}, 1.02e9),
    (0, "clock_max_hertz", {"clock": "sm"}, None),  # not in this driver
    (0, "temperature_celsius", {"sensor": "gpu"}, 55),
    (0, "temperature_celsius", {"sensor": "memory"}, -3),
    (0, "throttled", {"reason": "sw_power_cap"}, 1),  # by the function's old name
    (0, "throttled", {"reason": "hw_thermal"}, 0),
    (0, "nvlink_bytes_total", {"direction": "tx"}, 7168),
    (0, "pcie_replays_total", {}, None),  # a sentinel
    (0, "ecc_errors_total", {"type": "corrected", "scope": "volatile"}, 2),
    (0, "ecc_errors_total", {"type": "uncorrected", "scope": "volatile"}, None),
    (0, "processes", {"pid_class": "other"}, 2),
    (0, "process_memory_bytes", {"pid_class": "other"}, 5120),
    (1, "process_memory_bytes", {"pid_class": "other"}, None),  # one of them is hidden
    (0, "sm_active_ratio", {}, 0.2),
    (0, "sm_occupancy_ratio", {}, 0.3),
    (0, "tensor_active_ratio", {}, 0.5),
    (0, "dram_active_ratio", {}, None),
    (1, "sm_active_ratio", {}, None),
]


def test_every_kind_of_answer_is_understood(library: Path, tmp_path: Path) -> None:
    with running("gpu", "--interval", "0.1", "--gpm", env=stub(library, tmp_path / "lost")) as exporter:
        page = exporter.wait_for(
            lambda page: gpu(page, 0, "sm_active_ratio") and gpu(page, 1, "xid_errors_total", xid="63")
        )
        got = [(index, name, labels, gpu(page, index, name, **labels)) for index, name, labels, _value in EXPECTED]
        assert got == [(*row[:3], None if row[3] is None else pytest.approx(row[3])) for row in EXPECTED]
        [labels] = [dict(pairs) for name, pairs in page if name == "tokenswarm_gpu_info" and ("index", "0") in pairs]
        told = {key: labels[key] for key in ("name", "driver", "cuda", "vbios", "pci_bus_id", "mig_mode", "backend")}
        assert told == {
            "name": "Stub GPU",
            "driver": "550.54.15",
            "cuda": "12.4",
            "vbios": "",
            "pci_bus_id": "00000000:41:00.0",
            "mig_mode": "unsupported",
            "backend": "nvml",
        }
        assert not any(name == "tokenswarm_gpu_exporter_errors_total" for name, _labels in page)
        assert promtool_findings(exporter.text()) == ""
        assert exporter.stop() == 0


def test_pcie_bytes_are_true_while_the_counter_turns_over_ten_times_a_second(library: Path, tmp_path: Path) -> None:
    name = "tokenswarm_gpu_pcie"
    with running("gpu", "--interval", "0.1", env=stub(library, tmp_path / "lost")) as exporter:
        page = exporter.wait_for(lambda page: (gpu(page, 0, "pcie_observed_seconds_total") or 0) > 1)
        seconds = gpu(page, 0, "pcie_observed_seconds_total") or 0
        assert gpu(page, 0, "pcie_bytes_total", direction="tx") == pytest.approx(40e9 * seconds, rel=0.02)
        assert gpu(page, 0, "pcie_bytes_total", direction="rx") == pytest.approx(4e9 * seconds, rel=0.02)
        assert gpu(page, 1, "pcie_bytes_total", direction="tx") is None
        assert (value(page, "tokenswarm_gpu_exporter_calls_total", call="pcie") or 0) > 20
    with running("gpu", "--interval", "0.1", "--no-pcie", env=stub(library, tmp_path / "lost")) as exporter:
        page = exporter.wait_for(lambda page: gpu(page, 0, "observed_seconds_total"))
        assert not [key for key in page if key[0].startswith(f"{name}_bytes") or ("call", "pcie") in key[1]]


def lost_and_found(exporter: Exporter, lost: Path) -> None:
    exporter.wait_for(lambda page: gpu(page, 0, "up") == 1)
    lost.touch()
    page = exporter.wait_for(lambda page: gpu(page, 0, "up") == 0)
    assert {name for name, labels in page if ("gpu", "GPU-stub-0") in labels} == {"tokenswarm_gpu_up"}
    assert gpu(page, 1, "power_watts") == 333.25
    lost.unlink()
    page = exporter.wait_for(lambda page: gpu(page, 0, "up") == 1)
    assert gpu(page, 0, "power_watts") == 333.25
    assert gpu(page, 0, "energy_joules_total") == pytest.approx(5000000.123)


def test_a_lost_gpu_goes_and_comes_through_the_real_binding(library: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    with running("gpu", "--interval", "0.1", env=stub(library, lost)) as exporter:
        lost_and_found(exporter, lost)
        lost_and_found(exporter, lost)
        assert exporter.stop() == 0


def test_a_session_can_be_recorded_and_replayed(library: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    with running("gpu", "--interval", "0.1", env=stub(library, tmp_path / "lost")) as exporter:
        live = exporter.wait_for(lambda page: gpu(page, 0, "busy_seconds_total"))
    command = ["-m", "exporters.gpu", "--record", str(record), "--seconds", "0.5", "--interval", "0.1"]
    env = {**os.environ, **stub(library, tmp_path / "lost")}
    subprocess.run([sys.executable, *command], check=True, cwd=REPO, env=env, capture_output=True)
    with running("gpu", "--interval", "0.1", "--gpu-backend", f"replay:{record}") as exporter:
        replayed = exporter.wait_for(lambda page: gpu(page, 0, "busy_seconds_total"))
    timed = ("busy_seconds", "_pcie_", "observed_seconds", "throttle_seconds", "_exporter_", "_xid_", "_host_", "_info")

    def lasting(page: dict[object, float]) -> dict[object, float]:
        return {key: value for key, value in page.items() if not any(part in key[0] for part in timed)}  # type: ignore[index]

    assert lasting(replayed) == lasting(live)  # type: ignore[arg-type]
