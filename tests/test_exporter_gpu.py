"""The GPU exporter: each metric has the value that the record says, a real or a constructed one; the rest is absent."""

from __future__ import annotations

import copy
import ctypes
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exporter_process import names, parse, promtool_findings, run, running, value
from running import eventually

from exporters import ollama
from exporters.families import Readings, render
from exporters.gpu import command as gpu
from exporters.gpu import nvml, replay, table
from exporters.gpu.readings import GpuReader, Sample
from tokenswarm.clock import FakeClock
from tokenswarm.errors import ConfigError

RECORD_PATH = Path(__file__).parent / "nvml" / "h200_constructed.json"
RECORD = json.loads(RECORD_PATH.read_text())
UUID = RECORD["answers"]["0/uuid"][0][1]
H100 = json.loads((RECORD_PATH.parent / "h100_recorded.json").read_text())
H100_UUID = H100["answers"]["0/uuid"][0][1]


def told(record: dict[str, Any], key: str, at_s: float, part: str | None = None) -> float:
    """What a record says of a call at a moment."""
    answer = [answer for since_s, answer in record["answers"][key] if since_s <= at_s][-1]
    return float(answer if part is None else answer[part])


def unsupported(record: dict[str, Any], key: str) -> bool:
    return key not in record["answers"] or record["answers"][key] == [[0, {"error": "NOT_SUPPORTED"}]]


def changed(**answers: Any) -> dict[str, Any]:
    """The record with some calls answering otherwise from the start; a name `gpu0__field_dot_3` is `0/field.3`.

    A list of pairs that begins with [0, …] is taken as the answers over time.
    """
    record = copy.deepcopy(RECORD)
    for name, entries in answers.items():
        key = name.replace("gpu", "").replace("__", "/").replace("_dot_", ".")
        record["answers"][key] = entries if _over_time(entries) else [[0, entries]]
    return record


def _over_time(entries: Any) -> bool:
    return isinstance(entries, list) and isinstance(entries[0], list)


def two_gpus(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a machine with a second, equal GPU."""
    record = copy.deepcopy(record)
    record["answers"]["system/count"] = [[0, 2]]
    for key, entries in list(record["answers"].items()):
        if key.startswith("0/"):
            record["answers"].setdefault("1" + key[1:], copy.deepcopy(entries))
    record["answers"]["1/uuid"] = [[0, "GPU-second"]]
    return record


class Bench:
    """A reader over a record, in virtual time: one sample a second."""

    def __init__(self, record: dict[str, Any], **options: Any) -> None:
        self.clock = FakeClock(1_000_000_000)
        self.session = replay.Replay(record, clock=self.clock, sleep=self.clock.advance)
        wall = FakeClock(1_800_000_000 * 10**9)
        self.reader = GpuReader(self.session, 1.0, clock=self.clock, wall=wall, **options)
        self.sample = Sample(Readings(), {}, "")

    def at(self, second: int) -> dict[Any, float]:
        """Sample once a second up to this second of the record; the page there."""
        while True:
            elapsed_s = round(self.clock.now_ns / 1e9 - 1)
            self.sample = self.reader.read()
            if elapsed_s >= second:
                break
            self.clock.advance(1)
        self.clock.advance(1)
        return self.page()

    def page(self) -> dict[Any, float]:
        readings = Readings()
        readings.extend(self.sample.readings)
        readings.extend(self.reader.health(self.sample, timeouts=0, timed_out=False))
        return parse(render(gpu.FAMILIES, readings).decode())


# metric, labels but gpu, key of the record, part of the answer, factor: written out, not taken from the code
EXPECTED = [
    ("utilization_ratio", {}, "utilization", "gpu", 0.01),
    ("memory_activity_ratio", {}, "utilization", "memory", 0.01),
    ("memory_used_bytes", {}, "memory", "used", 1),
    ("memory_free_bytes", {}, "memory", "free", 1),
    ("memory_total_bytes", {}, "memory", "total", 1),
    ("memory_reserved_bytes", {}, "memory", "reserved", 1),
    ("energy_joules_total", {}, "field.83", None, 1e-3),
    ("power_watts", {}, "field.186", None, 1e-3),
    ("power_average_watts", {}, "field.185", None, 1e-3),
    ("power_limit_watts", {}, "power_limit", None, 1e-3),
    ("clock_hertz", {"clock": "sm"}, "clock.sm", None, 1e6),
    ("clock_hertz", {"clock": "mem"}, "clock.mem", None, 1e6),
    ("clock_hertz", {"clock": "graphics"}, "clock.graphics", None, 1e6),
    ("clock_max_hertz", {"clock": "sm"}, "max_clock.sm", None, 1e6),
    ("throttle_seconds_total", {"reason": "sw_power_cap"}, "field.74", None, 1e-9),
    ("throttle_seconds_total", {"reason": "sync_boost"}, "field.76", None, 1e-9),
    ("throttle_seconds_total", {"reason": "sw_thermal"}, "field.269", None, 1e-9),
    ("throttle_seconds_total", {"reason": "hw_thermal"}, "field.270", None, 1e-9),
    ("throttle_seconds_total", {"reason": "hw_power_brake"}, "field.271", None, 1e-9),
    ("temperature_celsius", {"sensor": "gpu"}, "temperature", None, 1),
    ("temperature_celsius", {"sensor": "memory"}, "field.82", None, 1),
    ("temperature_limit_celsius", {"limit": "slowdown"}, "temperature_limit.slowdown", None, 1),
    ("temperature_limit_celsius", {"limit": "memory_max"}, "temperature_limit.memory_max", None, 1),
    ("temperature_limit_celsius", {"limit": "gpu_max"}, "temperature_limit.gpu_max", None, 1),
    ("pcie_replays_total", {}, "field.94", None, 1),
    ("pcie_link_generation", {}, "pcie_link", "generation", 1),
    ("pcie_link_width", {}, "pcie_link", "width", 1),
    ("nvlink_bytes_total", {"direction": "tx"}, "field.138", None, 1024),
    ("ecc_errors_total", {"type": "corrected", "scope": "volatile"}, "field.3", None, 1),
    ("ecc_errors_total", {"type": "uncorrected", "scope": "volatile"}, "field.4", None, 1),
    ("remapped_rows", {"type": "corrected"}, "field.142", None, 1),
    ("remapped_rows", {"type": "uncorrected"}, "field.143", None, 1),
    ("remap_pending", {}, "field.144", None, 1),
    ("remap_failure", {}, "field.145", None, 1),
    ("sm_active_ratio", {}, "gpm", "sm_active", 0.01),
    ("sm_occupancy_ratio", {}, "gpm", "sm_occupancy", 0.01),
    ("tensor_active_ratio", {}, "gpm", "tensor_active", 0.01),
    ("dram_active_ratio", {}, "gpm", "dram_active", 0.01),
]


@pytest.mark.parametrize("at_s", [0, 20, 35, 59])
def test_each_metric_has_the_value_of_the_record(at_s: int) -> None:
    page = Bench(RECORD, gpm=True).at(at_s)
    for name, labels, key, part, factor in EXPECTED:
        got = value(page, f"tokenswarm_gpu_{name}", gpu=UUID, **labels)
        assert got == pytest.approx(told(RECORD, f"0/{key}", at_s, part) * factor, rel=1e-12), name


@pytest.mark.parametrize("at_s", [5, 20, 35, 59, 75])
def test_each_metric_has_the_value_that_a_real_h100_gave(at_s: int) -> None:
    page = Bench(H100, gpm=True).at(at_s)
    compared = 0
    for name, labels, key, part, factor in EXPECTED:
        got = value(page, f"tokenswarm_gpu_{name}", gpu=H100_UUID, **labels)
        if unsupported(H100, f"0/{key}"):
            assert got is None or name == "throttle_seconds_total", name
            continue
        assert got == pytest.approx(told(H100, f"0/{key}", at_s, part) * factor, rel=1e-12), name
        compared += 1
    assert compared >= 34


def grown(bench: Bench, since_s: int, until_s: int) -> dict[str, float]:
    """What the counters of the H100 gained between two seconds of the record, by name and first label."""
    before, after = bench.at(since_s), bench.at(until_s)
    return {
        "/".join([name.removeprefix("tokenswarm_gpu_"), *(text for key, text in labels if key != "gpu")]): now
        - before[name, labels]
        for (name, labels), now in after.items()
        if name.endswith("_total") and ("gpu", H100_UUID) in labels
    }


def test_units_are_those_of_the_work_that_the_h100_did() -> None:
    """Known of the work from its own clock: 24 GiB taken, weights read at 1.791 TB/s, then 18 s at the power limit."""
    bench = Bench(H100, gpm=True)
    idle = bench.at(8)
    memory = ("tokenswarm_gpu_memory_used_bytes", (("gpu", H100_UUID),))
    loaded = bench.at(17)
    assert 24 * 2**30 <= loaded[memory] - idle[memory] <= 25 * 2**30
    decoding = grown(bench, 31, 48)
    page = bench.page()
    ours = {name: value(page, f"tokenswarm_gpu_{name}", gpu=H100_UUID) or 0 for name in (
        "dram_active_ratio", "tensor_active_ratio", "sm_active_ratio", "power_average_watts")}  # fmt: skip
    assert ours["dram_active_ratio"] * 3.35e12 == pytest.approx(1.791e12, rel=0.04)
    assert ours["tensor_active_ratio"] < 0.1
    assert decoding["throttle_seconds_total/sw_power_cap"] == 0
    assert decoding["energy_joules_total"] / decoding["observed_seconds_total"] == pytest.approx(
        ours["power_average_watts"], rel=0.03
    )
    capped = grown(bench, 51, 66)
    page = bench.page()
    assert capped["observed_seconds_total"] == 15
    assert capped["throttle_seconds_total/sw_power_cap"] == pytest.approx(15, abs=1)
    assert capped["busy_seconds_total"] == pytest.approx(15, abs=0.3)
    assert capped["energy_joules_total"] / 15 == pytest.approx(700, rel=0.03), "the card's limit is 700 W"
    assert (value(page, "tokenswarm_gpu_tensor_active_ratio", gpu=H100_UUID) or 0) > 0.9
    assert value(page, "tokenswarm_gpu_throttled", gpu=H100_UUID, reason="sw_power_cap") == 1
    after = bench.at(75)
    assert after[memory] - idle[memory] < 2**30


def test_identity_is_one_info_series_and_says_that_it_is_a_replay() -> None:
    page = Bench(RECORD).at(0)
    [(_name, pairs)] = [key for key in page if key[0] == "tokenswarm_gpu_info"]
    labels = dict(pairs)
    assert labels.pop("host")
    assert labels == {
        "gpu": UUID,
        "index": "0",
        "name": "NVIDIA H200",
        "driver": "580.95.05",
        "cuda": "13.0",
        "vbios": "96.00.BC.00.01",
        "pci_bus_id": "00000000:1B:00.0",
        "mig_mode": "disabled",
        "backend": "replay",
    }
    assert value(page, "tokenswarm_gpus") == 1
    assert value(page, "tokenswarm_gpu_nvml_available") == 1


def test_busy_time_is_the_integral_of_utilization_over_the_observed_time() -> None:
    page = Bench(RECORD).at(30)
    integral = sum(told(RECORD, "0/utilization", second, "gpu") / 100 for second in range(1, 31))
    assert value(page, "tokenswarm_gpu_busy_seconds_total", gpu=UUID) == pytest.approx(integral)
    assert value(page, "tokenswarm_gpu_observed_seconds_total", gpu=UUID) == pytest.approx(30)


def test_no_counter_runs_backwards_when_the_driver_starts_its_counters_again() -> None:
    bench = Bench(RECORD)
    last = bench.at(55)
    for second in range(56, 70):  # the record starts again at 60 s: the raw counters fall
        page = bench.at(second)
        for key, before in last.items():
            if key[0].endswith("_total"):
                assert page[key] >= before, key
        last = page


def test_throttle_time_of_an_old_driver_comes_from_violation_status_or_from_the_moments() -> None:
    no = {"error": "NOT_SUPPORTED"}
    fields = {f"gpu0__field_dot_{number}": no for number in (74, 75, 76, 269, 270, 271)}
    violated = changed(**fields, gpu0__violation_dot_power=3_500_000_000)
    page = Bench(violated).at(45)
    name = "tokenswarm_gpu_throttle_seconds_total"
    assert value(page, name, gpu=UUID, reason="sw_power_cap") == 3.5
    page = Bench(changed(**fields)).at(50)
    assert value(page, name, gpu=UUID, reason="sw_power_cap") == pytest.approx(15)  # capped from 30 s to 45 s
    assert value(page, name, gpu=UUID, reason="hw_thermal") == 0


def test_the_moment_of_throttling_is_told_by_reason() -> None:
    bench = Bench(RECORD)
    name = "tokenswarm_gpu_throttled"
    assert value(bench.at(20), name, gpu=UUID, reason="sw_power_cap") == 0
    page = bench.at(35)
    assert value(page, name, gpu=UUID, reason="sw_power_cap") == 1
    assert value(page, name, gpu=UUID, reason="sw_thermal") == 0


# A card that has none of it, call by call: the metrics that must be absent, or come from the fallback.
ABSENT = [
    ("utilization", {"utilization_ratio", "memory_activity_ratio", "busy_seconds_total", "observed_seconds_total"}),
    ("memory", {"memory_used_bytes", "memory_free_bytes", "memory_total_bytes", "memory_reserved_bytes"}),
    ("field.83", {"energy_joules_total"}),
    ("field.82", {"temperature_celsius/memory"}),
    ("temperature", {"temperature_celsius/gpu"}),
    ("field.3", {"ecc_errors_total/corrected"}),
    ("power_limit", {"power_limit_watts"}),
    ("event_reasons", {"throttled"}),
    ("processes", {"processes", "process_memory_bytes"}),
    ("gpm", {"sm_active_ratio", "sm_occupancy_ratio", "tensor_active_ratio", "dram_active_ratio"}),
]


def present(page: dict[Any, float]) -> set[str]:
    """Metrics on a page, short: family, and family/label for those with one label beside gpu."""
    found = set()
    for name, labels in page:
        short = name.removeprefix("tokenswarm_gpu_")
        found.add(short)
        found.update(f"{short}/{text}" for key, text in labels if key != "gpu")
    return found


@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "UNKNOWN", "NO_PERMISSION"])
@pytest.mark.parametrize(("call", "gone"), ABSENT)
def test_what_a_card_does_not_tell_is_absent(call: str, gone: set[str], error: str) -> None:
    record = copy.deepcopy(RECORD)
    everything = present(Bench(record, gpm=True).at(20))
    record["answers"][f"0/{call}"] = [[0, {"error": error}]]
    bench = Bench(record, gpm=True)
    page = bench.at(20)
    missing = everything - present(page)
    assert {metric for metric in missing if metric.partition("/")[0] not in missing or "/" not in metric} == gone
    assert value(page, "tokenswarm_gpu_up", gpu=UUID) == 1
    label = "fields" if call.startswith("field.") else call
    counted = value(page, "tokenswarm_gpu_exporter_errors_total", call=label, nvml_error=error)
    # Not having something is no error; a lack of permission is asked about once a minute, a hiccup every second.
    assert counted == {"NOT_SUPPORTED": None, "FUNCTION_NOT_FOUND": None, "NO_PERMISSION": 1, "UNKNOWN": 21}[error]


def test_what_was_unsupported_is_asked_again_after_a_minute() -> None:
    record = changed(gpu0__memory=[[0, {"error": "NOT_SUPPORTED"}], [5, RECORD["answers"]["0/memory"][-1][1]]])
    record["seconds"] = 1000
    bench = Bench(record)
    assert "tokenswarm_gpu_memory_used_bytes" not in names(bench.at(55))
    assert "tokenswarm_gpu_memory_used_bytes" in names(bench.at(62))


@pytest.mark.parametrize("sentinel", [2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
def test_a_sentinel_is_never_a_number(sentinel: int) -> None:
    def poison(answer: Any) -> Any:
        if isinstance(answer, dict):
            return {key: part if key == "error" else sentinel for key, part in answer.items()}
        return sentinel if isinstance(answer, int) else answer

    record = copy.deepcopy(RECORD)
    for key, entries in record["answers"].items():
        if key.startswith("0/") and key not in ("0/processes", "0/mig_mode", "0/event_reasons"):
            record["answers"][key] = [[since_s, poison(answer)] for since_s, answer in entries]
    record["answers"]["0/processes"] = [[0, [{"pid": 1, "used": sentinel}, {"pid": 2, "used": 5}]]]
    page = Bench(record, gpm=True).at(20)
    assert present(page) & {short.partition("/")[0] for row in EXPECTED for short in [row[0]]} == {
        "throttle_seconds_total"  # integrated from the moments instead
    }
    assert "tokenswarm_gpu_process_memory_bytes" not in {
        name for name, labels in page if ("pid_class", "other") in labels
    }
    assert value(page, "tokenswarm_gpu_processes", gpu=UUID, pid_class="other") == 2


def test_a_ratio_beyond_1_is_dropped_and_counted() -> None:
    page = Bench(changed(gpu0__utilization={"gpu": 250, "memory": 50})).at(3)
    assert value(page, "tokenswarm_gpu_utilization_ratio", gpu=UUID) is None
    assert value(page, "tokenswarm_gpu_memory_activity_ratio", gpu=UUID) == 0.5
    assert value(page, "tokenswarm_gpu_exporter_errors_total", call="utilization", nvml_error="IMPLAUSIBLE") == 4


@pytest.mark.parametrize("error", ["GPU_IS_LOST", "GPU_NOT_FOUND", "RESET_REQUIRED"])
def test_a_lost_gpu_vanishes_at_once_and_comes_back_while_the_other_goes_on(error: str) -> None:
    record = two_gpus(RECORD)
    record["answers"]["0/device"] = [[0, None], [15, {"error": error}], [20, None]]
    bench = Bench(record)
    before = bench.at(14)
    assert value(before, "tokenswarm_gpus") == 2
    for second in range(15, 20):
        page = bench.at(second)
        assert value(page, "tokenswarm_gpu_up", gpu=UUID) == 0
        assert {name for name, labels in page if ("gpu", UUID) in labels} == {"tokenswarm_gpu_up"}
        assert value(page, "tokenswarm_gpu_up", gpu="GPU-second") == 1
        assert value(page, "tokenswarm_gpu_power_watts", gpu="GPU-second") is not None
        assert value(page, "tokenswarm_gpus") == 1
        assert value(page, "tokenswarm_gpu_nvml_available") == 1
    after = bench.at(30)
    assert value(after, "tokenswarm_gpu_up", gpu=UUID) == 1
    energy = ("tokenswarm_gpu_energy_joules_total", (("gpu", UUID),))
    assert before[energy] <= after[energy]
    assert (value(after, "tokenswarm_gpu_exporter_errors_total", call="once", nvml_error=error) or 0) + (
        value(after, "tokenswarm_gpu_exporter_errors_total", call="fields", nvml_error=error) or 0
    ) >= 1


def test_a_gpu_that_stays_lost_is_left_in_peace() -> None:
    record = changed(gpu0__device=[[0, None], [10, {"error": "GPU_IS_LOST"}]])
    record["seconds"] = 1000
    page = Bench(record).at(130)
    calls = "tokenswarm_gpu_exporter_calls_total"
    # Opened at the start, then after 1, 1, 2, 4, 8, 16 and every 30 s; asked once after each.
    assert 6 <= (value(page, calls, call="init") or 0) <= 12
    assert (value(page, calls, call="once") or 0) <= 20 + 12


def test_a_gpu_that_was_lost_before_it_ever_answered_is_told_by_its_index() -> None:
    record = two_gpus(RECORD)
    record["answers"]["1/device"] = [[0, {"error": "GPU_IS_LOST"}]]
    page = Bench(record).at(3)
    assert value(page, "tokenswarm_gpu_up", gpu="index-1") == 0
    assert value(page, "tokenswarm_gpu_up", gpu=UUID) == 1
    assert value(page, "tokenswarm_gpu_exporter_last_success_timestamp_seconds") is None


@pytest.mark.parametrize("error", ["UNKNOWN", "NO_PERMISSION", "TIMEOUT", "CODE_4711"])
def test_a_gpu_of_which_every_call_fails_is_down_and_opened_again(error: str) -> None:
    """A container after `systemctl daemon-reload`: the driver is there, and the device files are not."""
    record = two_gpus(RECORD)
    record["answers"]["0/device"] = [[0, None], [5, {"error": error}], [40, None]]
    record["seconds"] = 1000
    bench = Bench(record)
    success, inits = "tokenswarm_gpu_exporter_last_success_timestamp_seconds", "tokenswarm_gpu_exporter_calls_total"
    before = bench.at(4)
    for second in (5, 6, 9, 20, 30):
        page = bench.at(second)
        assert {name for name, labels in page if ("gpu", UUID) in labels} == {"tokenswarm_gpu_up"}
        assert (value(page, "tokenswarm_gpu_up", gpu=UUID), value(page, "tokenswarm_gpus")) == (0, 1)
        assert value(page, "tokenswarm_gpu_power_watts", gpu="GPU-second") is not None
        assert value(page, success) == value(before, success)
    named = [labels for name, labels in page if name == "tokenswarm_gpu_exporter_errors_total"]
    assert {dict(labels)["nvml_error"] for labels in named} == {error}
    assert (value(page, inits, call="init") or 0) >= (value(before, inits, call="init") or 0) + 5
    page = bench.at(75)
    assert (value(page, "tokenswarm_gpu_up", gpu=UUID), value(page, "tokenswarm_gpus")) == (1, 2)


def test_a_gpu_that_says_nothing_but_unknown_from_the_start_is_opened_again() -> None:
    page = Bench(changed(gpu0__device=[[0, {"error": "UNKNOWN"}], [10, None]])).at(30)
    assert value(page, "tokenswarm_gpu_up", gpu=UUID) == 1
    assert (value(page, "tokenswarm_gpu_exporter_calls_total", call="init") or 0) >= 3


def test_a_card_that_supports_nothing_is_not_down() -> None:
    record = changed()
    keep = {"0/uuid", "0/name", "system/count", "system/driver", "system/cuda"}
    record["answers"] = {key: entries for key, entries in record["answers"].items() if key in keep}
    page = Bench(record).at(20)
    assert value(page, "tokenswarm_gpu_up", gpu=UUID) == 1
    assert value(page, "tokenswarm_gpu_exporter_calls_total", call="init") == 1


@pytest.mark.parametrize("error", ["UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH"])
def test_a_driver_that_goes_takes_all_gpus_and_brings_them_back(error: str) -> None:
    record = two_gpus(RECORD)
    record["answers"]["1/device"] = [[0, None], [10, {"error": error}], [14, None]]
    record["answers"]["system/count"] = [[0, 2], [11, {"error": error}], [14, 2]]
    bench = Bench(record)
    assert value(bench.at(9), "tokenswarm_gpus") == 2
    for second in (10, 12, 13):
        page = bench.at(second)
        assert value(page, "tokenswarm_gpu_nvml_available") == 0
        assert value(page, "tokenswarm_gpu_nvml_unavailable_info", reason=error) == 1
        assert value(page, "tokenswarm_gpus") == 0
        for gpu_label in (UUID, "GPU-second"):
            assert {name for name, labels in page if ("gpu", gpu_label) in labels} == {"tokenswarm_gpu_up"}
    page = bench.at(25)
    assert value(page, "tokenswarm_gpus") == 2
    assert value(page, "tokenswarm_gpu_nvml_available") == 1


def test_zero_gpus_is_no_healthy_machine() -> None:
    page = Bench(changed(system__count=0)).at(2)
    assert value(page, "tokenswarm_gpu_nvml_available") == 0
    assert value(page, "tokenswarm_gpu_nvml_unavailable_info", reason="NO_GPU") == 1


def test_process_memory_is_told_by_class() -> None:
    processes = [{"pid": 10, "used": 100}, {"pid": 11, "used": 20}, {"pid": 12, "used": 3}]
    page = Bench(changed(gpu0__processes=processes), engine_pids=lambda: {10, 11}).at(0)
    name = "tokenswarm_gpu_process_memory_bytes"
    assert value(page, name, gpu=UUID, pid_class="engine") == 120
    assert value(page, name, gpu=UUID, pid_class="other") == 3


def test_mig_memory_is_told_once_for_a_gpu_instance() -> None:
    mig = [
        {"gi": 1, "ci": 0, "uuid": "MIG-a", "profile": "1c.3g.71gb", "used": 700},
        {"gi": 1, "ci": 1, "uuid": "MIG-b", "profile": "1c.3g.71gb", "used": 700},
        {"gi": 2, "ci": 0, "uuid": "MIG-c", "profile": "1g.18gb", "used": 50},
    ]
    page = Bench(changed(gpu0__mig_mode=1, gpu0__mig=mig)).at(0)
    assert value(page, "tokenswarm_gpu_mig_memory_used_bytes", gpu=UUID, gi="1") == 700
    assert value(page, "tokenswarm_gpu_mig_memory_used_bytes", gpu=UUID, gi="2") == 50
    labels = {"gpu": UUID, "gi": "1", "ci": "1", "profile": "1c.3g.71gb", "mig_uuid": "MIG-b"}
    assert value(page, "tokenswarm_gpu_mig_info", **labels) == 1


def test_a_recorded_session_replays_to_the_same_readings() -> None:
    clock = FakeClock(0)
    recorder = replay.Recorder(replay.Replay(RECORD, clock=clock), clock=clock)
    reader = GpuReader(recorder, 1.0, gpm=True, clock=clock)
    for _second in range(40):
        reader.read()
        clock.advance(1)
    record = json.loads(json.dumps(recorder.record("test")))
    assert record["answers"]["0/max_clock.sm"] == RECORD["answers"]["0/max_clock.sm"]
    ours, theirs = Bench(record, gpm=True).at(30), Bench(RECORD, gpm=True).at(30)
    differing = {key[0] for key in ours | theirs if ours.get(key) != theirs.get(key)}
    assert differing == set()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a record of NVML"),
        ("[]", '"format"'),
        ('{"format": "tokenswarm-nvml-record/2"}', '"format"'),
        ('{"format": "tokenswarm-nvml-record/1", "seconds": 1, "answers": {"0/uuid": 3}}', '"answers"'),
        ('{"format": "tokenswarm-nvml-record/1", "seconds": 0, "answers": {}}', '"seconds"'),
        ('{"format": "tokenswarm-nvml-record/1", "seconds": 9, "answers": {"a": [[1, 0], [1, 0]]}}', '"answers"'),
    ],
)
def test_a_file_that_is_no_record_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as told_error:
        replay.load(path)
    assert says in str(told_error.value)
    assert str(path) in str(told_error.value)


def test_every_family_is_documented_and_everything_documented_exists() -> None:
    page = (Path(__file__).parent.parent / "docs" / "exporters.md").read_text()
    documented = dict(re.findall(r"^\| `(tokenswarm_\w+)`(?:\{[^}]*\})? \| (counter|gauge) \|", page, re.M))
    labels = {
        name: tuple(part for part in text.split(", ") if part)
        for name, text in re.findall(r"^\| `(tokenswarm_\w+)` \| (?:counter|gauge) \| ([^|]*?) ?\|", page, re.M)
    }
    families = {**gpu.FAMILIES, **ollama.FAMILIES}
    assert documented == {name: family.kind for name, family in families.items()}
    assert labels == {name: family.labels for name, family in families.items()}


# The real command over a real socket.


@pytest.fixture
def record_file(tmp_path: Path) -> Iterator[Any]:
    def write(record: dict[str, Any]) -> str:
        path = tmp_path / "record.json"
        path.write_text(json.dumps(record))
        return f"replay:{path}"

    return write  # type: ignore[return-value]


def has_nvml() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_nvml(), reason="this machine has an NVIDIA driver")
def test_without_a_gpu_it_says_so_and_tells_of_the_host() -> None:
    with running("gpu", "--interval", "0.1") as exporter:
        page = exporter.wait_for(
            lambda page: (
                value(page, "tokenswarm_gpu_nvml_unavailable_info", reason="LIBRARY_NOT_FOUND")
                and value(page, "tokenswarm_host_cpu_seconds_total", mode="user")
            )
        )
        assert value(page, "tokenswarm_gpu_nvml_available") == 0
        assert value(page, "tokenswarm_gpus") == 0
        assert (value(page, "tokenswarm_host_memory_total_bytes") or 0) > 0
        assert promtool_findings(exporter.text()) == ""
        assert exporter.stop() == 0


@pytest.mark.skipif(has_nvml(), reason="this machine has an NVIDIA driver")
def test_when_nvml_is_required_its_lack_is_one_sentence() -> None:
    ended = run("gpu", "--listen", "127.0.0.1:0", "--gpu-backend", "nvml")
    assert ended.returncode == 14
    assert "LIBRARY_NOT_FOUND" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_page_of_a_replay_is_clean_and_has_every_gpu_family_the_record_can_fill(record_file: Any) -> None:
    record = two_gpus(RECORD)
    record["events"] = [[0.0, 0, 31], [0.1, 0, 31], [0.2, 1, 79]]
    with running("gpu", "--interval", "0.1", "--gpm", "--gpu-backend", record_file(record)) as exporter:
        page = exporter.wait_for(lambda page: value(page, "tokenswarm_gpu_xid_errors_total", gpu=UUID, xid="31") == 2)
        page = exporter.wait_for(
            lambda page: value(page, "tokenswarm_gpu_xid_errors_total", gpu="GPU-second", xid="79")
        )
        assert promtool_findings(exporter.text()) == ""
        missing = set(table.FAMILIES) - names(page)
        assert missing == {
            "tokenswarm_gpu_nvml_unavailable_info",
            "tokenswarm_gpu_mig_info",
            "tokenswarm_gpu_mig_memory_used_bytes",
            "tokenswarm_gpu_exporter_errors_total",
        }
        assert exporter.stop() == 0


def test_a_call_that_hangs_drops_the_gpu_series_while_the_host_goes_on(record_file: Any) -> None:
    record = changed(gpu0__device=[[0, None], [1, {"hang_s": 4.5}], [1.5, None]])
    options = ("--interval", "0.1", "--gpu-timeout", "0.5", "--gpu-backend", record_file(record))
    with running("gpu", *options) as exporter:
        exporter.wait_for(lambda page: value(page, "tokenswarm_gpu_power_watts", gpu=UUID))
        stuck = exporter.wait_for(lambda page: value(page, "tokenswarm_gpu_exporter_collect_timeouts_total") == 1)
        assert value(stuck, "tokenswarm_gpu_up", gpu=UUID) == 0
        assert {name for name, labels in stuck if ("gpu", UUID) in labels} == {"tokenswarm_gpu_up"}
        assert value(stuck, "tokenswarm_gpu_nvml_unavailable_info", reason="TIMED_OUT") == 1
        cpu = value(stuck, "tokenswarm_exporter_cpu_seconds_total", exporter="gpu") or 0
        exporter.wait_for(
            lambda page: (value(page, "tokenswarm_exporter_cpu_seconds_total", exporter="gpu") or 0) > cpu, within_s=4.0
        )
        back = exporter.wait_for(lambda page: value(page, "tokenswarm_gpu_up", gpu=UUID) == 1)
        assert value(back, "tokenswarm_gpu_exporter_collect_timeouts_total") == 1
        assert value(back, "tokenswarm_gpu_power_watts", gpu=UUID) is not None


def test_a_wedged_driver_does_not_hold_back_the_exit(record_file: Any) -> None:
    record = changed(gpu0__device=[[0, None], [0.3, {"hang_s": 100}]])
    with running("gpu", "--interval", "0.1", "--gpu-timeout", "0.5", "--gpu-backend", record_file(record)) as exporter:
        exporter.wait_for(lambda page: value(page, "tokenswarm_gpu_exporter_collect_timeouts_total") == 1)
        assert exporter.stop() == 0


def test_record_writes_what_replay_serves(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    backend = f"replay:{RECORD_PATH}"
    ended = run("gpu", "--gpu-backend", backend, "--record", str(path), "--seconds", "0.5", "--interval", "0.1")
    assert ended.returncode == 0, ended.stderr
    assert replay.load(path)["answers"]["0/uuid"] == [[0, UUID]]


def test_a_recording_that_is_ended_early_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", "exporters.gpu", "--gpu-backend", f"replay:{RECORD_PATH}", "--record", str(path)]
    with subprocess.Popen([*command, "--seconds", "3600"], stdout=subprocess.DEVNULL) as started:
        assert eventually(path.exists)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 13
    assert replay.load(path)["answers"]["0/uuid"] == [[0, UUID]]


@pytest.mark.parametrize(
    ("where", "limit", "seconds"), [("none/out.json", "unlimited", "3600"), ("out.json", "1", "0.1")]
)
def test_a_record_that_can_not_be_written_is_16(where: str, limit: str, seconds: str, tmp_path: Path) -> None:
    """At once, where that can be known; and of a disk that fills up no half of it is left."""
    path = tmp_path / where
    command = [sys.executable, "-m", "exporters.gpu", "--gpu-backend", f"replay:{RECORD_PATH}", "--record", str(path)]
    limited = ["sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh", *command, "--seconds", seconds]
    ended = subprocess.run(limited, capture_output=True, text=True, timeout=90, check=False)
    assert (ended.returncode, path.exists()) == (16, False), ended.stderr
    assert ended.stderr.startswith(f"python -m exporters.gpu: {path} can't be written: ")


def test_the_table_and_the_calls_agree() -> None:
    calls = {source.call for row in (*table.ROWS, *table.GPM_ROWS) for source in row.sources}
    unknown = {call for call in calls if not call.startswith("field.") and call != "gpm"} - set(nvml.DEVICE_CALLS)
    assert unknown == set()
    assert all(row.family in table.FAMILIES for row in (*table.ROWS, *table.GPM_ROWS))
    assert not re.findall(r"_(ms|mib|percent|mhz)\b", " ".join(table.FAMILIES))
