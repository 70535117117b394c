"""Host and process metrics: counters never run backwards, limits of control groups are read, a restart is noticed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from exporters.families import Readings
from exporters.gpu import host
from tokenswarm.clock import FakeClock


def value(readings: Readings, family: str, *labels: str) -> float | None:
    found = [value for told, value in readings.rows.get(f"tokenswarm_{family}", []) if told == labels]
    assert len(found) <= 1
    return found[0] if found else None


def write(root: Path, **files: str) -> Path:
    """Files below a root; `__` in a name stands for `/`, `_dot_` for `.`."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_every_reading_is_declared_and_the_basics_are_there() -> None:
    readings = host.HostReader().read()
    assert set(readings.rows) <= set(host.FAMILIES)
    assert value(readings, "host_memory_total_bytes") == psutil.virtual_memory().total
    assert value(readings, "host_cpus") == psutil.cpu_count()
    assert (value(readings, "host_cpu_seconds_total", "idle") or 0) > 0
    assert all(value == 0 for _labels, value in readings.rows["tokenswarm_host_read_errors_total"])


def test_a_core_that_is_full_shows_among_the_others() -> None:
    reader, cores = host.HostReader(), sorted(os.sched_getaffinity(0))
    name, burned = "host_core_busy_seconds_total", str(cores[-1])
    os.sched_setaffinity(0, {cores[-1]})
    try:
        before, used_s = value(reader.read(), name, burned), time.process_time()
        while time.process_time() - used_s < 0.4:
            pass
        after = value(reader.read(), name, burned)
    finally:
        os.sched_setaffinity(0, cores)
    assert before is not None
    assert after is not None
    assert after - before >= 0.9 * 0.4
    told = {labels[0] for labels, _ in reader.read().rows[f"tokenswarm_{name}"]}
    assert told == {str(core) for core in range(psutil.cpu_count() or 1)}


Nic = namedtuple("Nic", "bytes_sent bytes_recv")


def test_network_bytes_leave_out_loopback_and_survive_an_interface_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    nics: dict[str, Nic] = {"lo": Nic(1000, 1000), "eth0": Nic(10, 100), "veth1": Nic(5, 50)}
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_options: dict(nics))
    reader = host.HostReader()

    def rx() -> float | None:
        return value(reader.read(), "host_network_bytes_total", "rx")

    assert rx() == 150
    del nics["veth1"]
    nics["eth0"] = Nic(10, 110)
    assert rx() == 160
    nics["veth2"] = Nic(1, 7)
    assert rx() == 167


def test_network_bytes_are_the_machines_where_its_processes_are_shared_and_its_network_is_not(tmp_path: Path) -> None:
    """As in a container with `pid: host`: its own interfaces have moved nothing."""
    head = "Inter-|   Receive\n face |bytes    packets\n"
    row = "  {}: {} 9 0 0 0 0 0 0 {} 9 0 0 0 0 0 0\n"
    write(
        tmp_path,
        **{
            "1__net__dev": head + row.format("lo", 5, 5) + row.format("eth0", 700, 30) + row.format("veth0:1", 20, 4),
            "self__net__dev": head + row.format("eth0", 1, 1),
        },
    )
    readings = host.HostReader(proc=tmp_path).read()
    assert value(readings, "host_network_bytes_total", "rx") == 720
    assert value(readings, "host_network_bytes_total", "tx") == 34


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own takes root")
def test_in_a_network_of_its_own_it_tells_that_of_process_1() -> None:
    code = (
        "from exporters.gpu import host; r = host.HostReader().read();"
        "print(dict(r.rows['tokenswarm_host_network_bytes_total'])[('rx',)])"
    )
    command = ["unshare", "--net", sys.executable, "-c", code]
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")

    def machine() -> int:
        rows = [line.split(":") for line in Path("/proc/1/net/dev").read_text().splitlines()[2:]]
        return sum(int(counts.split()[0]) for name, counts in rows if not name.strip().startswith("lo"))

    before = machine()
    told = float(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert before <= told <= machine()


def test_network_bytes_are_those_of_process_1_in_a_network_of_another_container(tmp_path: Path) -> None:
    dev = tmp_path / "1" / "net" / "dev"
    dev.parent.mkdir(parents=True)
    head = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n"
    lines = ("    lo: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n", "  eth0:38000000000 5 0 0 0 0 0 0 4900000 9 0 0 0 0 0 0\n")
    dev.write_text(head + "".join(lines))
    ours = tmp_path / "self" / "net" / "dev"
    ours.parent.mkdir(parents=True)
    ours.write_text(head)  # a file of its own: another network
    readings = host.HostReader(proc=tmp_path).read()
    assert value(readings, "host_network_bytes_total", "rx") == 38_000_000_000
    assert value(readings, "host_network_bytes_total", "tx") == 4_900_000


@pytest.mark.parametrize("error", [OSError("gone"), psutil.AccessDenied(), ValueError("new format")])
def test_a_source_that_fails_is_counted_and_spoils_no_other(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    reader = host.HostReader()
    reader.read()
    readings = reader.read()
    assert value(readings, "host_read_errors_total", "memory") == 2
    assert value(readings, "host_memory_total_bytes") is None
    assert value(readings, "host_load1") is not None


def test_pressure_is_told_in_seconds(tmp_path: Path) -> None:
    proc = write(
        tmp_path,
        pressure__cpu="some avg10=0.00 avg60=0.01 avg300=0.08 total=9248687\n",
        pressure__io="some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
    )
    readings = host.HostReader(proc=proc).read()
    assert value(readings, "host_pressure_seconds_total", "cpu", "some") == 9.248687
    assert value(readings, "host_pressure_seconds_total", "io", "full") == 4e-6
    assert value(readings, "host_pressure_seconds_total", "memory", "some") is None
    assert value(readings, "host_read_errors_total", "pressure") == 0


def test_limits_of_control_groups_version_2(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", self__cgroup="0::/kubepods/pod1\n")
    group = write(
        tmp_path / "cgroup",
        kubepods__pod1__memory_dot_max="8589934592\n",
        kubepods__pod1__memory_dot_current="1000\n",
        kubepods__pod1__cpu_dot_max="150000 100000\n",
        kubepods__pod1__cpu_dot_stat="usage_usec 7\nnr_throttled 3\nthrottled_usec 2500000\n",
    )
    readings = host.HostReader(proc=proc, cgroup=group).read()
    assert value(readings, "host_cgroup_memory_limit_bytes") == 8 << 30
    assert value(readings, "host_cgroup_memory_used_bytes") == 1000
    assert value(readings, "host_cgroup_cpu_limit_cpus") == 1.5
    assert value(readings, "host_cgroup_throttled_seconds_total") == 2.5


def test_no_limit_is_no_series(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", self__cgroup="0::/\n")
    group = write(tmp_path / "cgroup", memory_dot_max="max\n", cpu_dot_max="max 100000\n")
    readings = host.HostReader(proc=proc, cgroup=group).read()
    assert value(readings, "host_cgroup_memory_limit_bytes") is None
    assert value(readings, "host_cgroup_cpu_limit_cpus") is None
    assert value(readings, "host_read_errors_total", "cgroup") == 0


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", self__cgroup="4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n")
    group = write(
        tmp_path / "cgroup",
        memory__memory_dot_limit_in_bytes="1073741824\n",  # inside a container the root is ours
        memory__memory_dot_usage_in_bytes="77\n",
        cpu__docker__abc__cpu_dot_cfs_quota_us="50000\n",
        cpu__docker__abc__cpu_dot_cfs_period_us="100000\n",
        cpu__docker__abc__cpu_dot_stat="nr_periods 1\nthrottled_time 3000000000\n",
    )
    readings = host.HostReader(proc=proc, cgroup=group).read()
    assert value(readings, "host_cgroup_memory_limit_bytes") == 1 << 30
    assert value(readings, "host_cgroup_memory_used_bytes") == 77
    assert value(readings, "host_cgroup_cpu_limit_cpus") == 0.5
    assert value(readings, "host_cgroup_throttled_seconds_total") == 3
    unlimited = write(group, memory__memory_dot_limit_in_bytes="9223372036854771712\n")
    readings = host.HostReader(proc=proc, cgroup=unlimited).read()
    assert value(readings, "host_cgroup_memory_limit_bytes") is None


ENGINE = """
import os, subprocess, sys, time
while sum(os.times()[:2]) == 0:
    pass  # the kernel counts in ticks of 10 ms, and a start may take less
child = subprocess.Popen([sys.executable, "-c", "import time\\nwhile True: time.sleep(1)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Start engines called my-engine-server, each with one child; all are ended at the end."""
    script = tmp_path / "my-engine-server"
    script.write_text(ENGINE)
    started: list[int] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        started.extend((process.pid, child))
        return process, child

    yield start
    for pid in started:
        for process in [psutil.Process(pid)] if psutil.pid_exists(pid) else []:
            process.kill()


def end(process: subprocess.Popen[str], child: int) -> None:
    process.kill()
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()
    psutil.Process(child).kill()
    until_s = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.parametrize("by", ["pid", "name"])
def test_the_engines_tree_is_watched_through_a_restart(engines: Any, by: str) -> None:
    process, child = engines()
    clock = FakeClock()
    watch = (
        host.EngineWatch(process.pid, None, clock) if by == "pid" else host.EngineWatch(None, "my-engine-server", clock)
    )
    readings = watch.read()
    assert watch.pids == {process.pid, child}
    assert value(readings, "processes", "engine") == 2
    assert (value(readings, "process_resident_memory_bytes", "engine") or 0) > 1e6
    assert (value(readings, "process_open_fds", "engine") or 0) >= 6
    assert (value(readings, "process_threads", "engine") or 0) >= 2
    assert value(readings, "process_restarts_total", "engine") == 0
    cpu_s = value(readings, "process_cpu_seconds_total", "engine") or 0
    assert cpu_s > 0

    end(process, child)
    clock.advance(host.LOOK_AGAIN_S + 1)
    readings = watch.read()
    assert value(readings, "processes", "engine") == 0
    assert value(readings, "process_resident_memory_bytes", "engine") is None
    assert value(readings, "process_cpu_seconds_total", "engine") == cpu_s
    assert watch.pids == frozenset()

    if by == "name":
        _process, child = engines()
        clock.advance(host.LOOK_AGAIN_S + 1)
        readings = watch.read()
        assert child in watch.pids
        assert value(readings, "process_restarts_total", "engine") == 1
        assert (value(readings, "process_cpu_seconds_total", "engine") or 0) > cpu_s


def test_a_clock_that_is_set_is_no_restart_and_no_time_of_a_processor(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the machine began is the time of day less how long it runs: it moves by a second when the clock does."""
    process, child = engines()
    stat = Path("/proc/stat").read_text()
    began = int(re.search(r"^btime (\d+)$", stat, re.MULTILINE)[1])  # type: ignore[index]
    (tmp_path / "proc").mkdir()
    for pid in (process.pid, child, os.getpid(), os.getppid()):
        (tmp_path / "proc" / str(pid)).symlink_to(f"/proc/{pid}")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    clock = FakeClock()
    watch, used_s = host.EngineWatch(process.pid, None, clock), []
    for wobble in (0, 1, 0, -1):
        (tmp_path / "proc" / "stat").write_text(stat.replace(f"btime {began}", f"btime {began + wobble}"))
        readings = watch.read()
        assert value(readings, "process_restarts_total", "engine") == 0
        used_s.append(value(readings, "process_cpu_seconds_total", "engine") or 0)
        clock.advance(host.LOOK_AGAIN_S + 1)
    assert used_s[0] > 0
    assert used_s[-1] < 1.5 * used_s[0]


def test_it_never_watches_itself_or_its_parents() -> None:
    own_name = psutil.Process().name()
    watch = host.EngineWatch(None, own_name)
    watch.read()
    assert os.getpid() not in watch.pids
    assert os.getppid() not in watch.pids
