"""A /proc that tells less than Linux documents, as in sandboxes and containers: files that are empty, or cut short."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import sample_runs

from exporters import serving
from exporters.gpu import host
from tokenswarm.cluster import probes
from tokenswarm.cluster.neighbour import Neighbour
from tokenswarm.cluster.probes import Probes, cpu_stats, resident_bytes, throttled_ns
from tokenswarm.measure.snapshot import Instrument

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

ME = str(os.getpid())
FILES = ("stat", "meminfo", "vmstat", "diskstats", "net/dev", "net/tcp", "net/tcp6", "self/net/dev", "1/net/dev")
OURS = ("stat", "statm", "status", "cmdline", "schedstat", "cgroup", "net/dev")


@pytest.fixture(params=["", "x\n", "cpu 1\nMemTotal: kB\n"], ids=["empty", "a word", "cut"])
def proc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The /proc that psutil reads."""
    for name in (*FILES, *(f"{ME}/{name}" for name in OURS)):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(request.param)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    return tmp_path


def test_the_exporter_tells_what_is_told_and_counts_the_rest(proc: Path) -> None:
    reader = host.HostReader(host.EngineWatch(pid=os.getpid()), proc=proc)
    reader.read()
    rows = reader.read().rows
    failed = {labels[0]: count for labels, count in rows["tokenswarm_host_read_errors_total"]}

    assert (failed["memory"], failed["engine"]) == (2, 2)
    assert "tokenswarm_host_load1" in rows
    assert "tokenswarm_processes" not in rows, "an engine that can't be looked at is not one without processes"


def test_an_exporter_serves_without_a_word_of_itself(proc: Path) -> None:
    del proc
    server = cast(Any, SimpleNamespace(scrapes=Counter()))
    rows = serving.Server.own(server, "gpu").rows
    assert rows["tokenswarm_exporter_cpu_seconds_total"][0][1] > 0
    assert "tokenswarm_exporter_resident_memory_bytes" not in rows
    assert "tokenswarm_exporter_scrapes_total" in rows


def test_a_worker_measures_on(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del proc
    instrument = Instrument()
    ours = Probes(instrument)
    monkeypatch.setattr(ours, "_sampled_ns", 0)
    ours.sample()
    assert (resident_bytes(), instrument.rss_bytes, instrument.cpu_ratio_max > 0) == (0, 0, True)


def test_nobody_knows_what_an_engine_beside_us_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its port is seen, its process is not: /proc/stat does not say when the machine began."""
    for entry in Path("/proc").iterdir():
        if entry.name != "stat":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "stat").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        profile = sample_runs.profile(target=(f"http://127.0.0.1:{server.getsockname()[1]}",))
        assert Neighbour(profile).beside() is not None
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
        neighbour = Neighbour(profile)
        assert (neighbour.note(), neighbour.beside()) == (None, None)


def test_locust_loses_a_warning_and_no_greenlet(proc: Path) -> None:
    """With a greenlet that failed plain Locust ends with 2, whatever was measured."""
    code = (
        "from locust.env import Environment; import psutil; from tokenswarm.cluster import runners;"
        f"psutil.PROCFS_PATH = {str(proc)!r};"
        "runners.runners.CPU_MONITOR_INTERVAL = 0;"
        f"Path({str(proc)!r}, str(os.getpid())).symlink_to({ME!r});"
        "Environment(user_classes=[]).create_local_runner().monitor_cpu_and_memory(); print('went on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import os; from pathlib import Path; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("went on\n", 0), done.stderr


@pytest.mark.parametrize("membership", ["", "\n", "nonsense\n0::/", "0::/a\n1:2"])
def test_a_membership_that_is_none(membership: str, tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("throttled_usec\nthrottled_usec x\n\n")
    assert throttled_ns(cpu_stats(membership, tmp_path)) == 0


@pytest.mark.parametrize("text", ["", "some\n", "some avg10=0.00 total=\n", "full total=x"])
def test_a_pressure_file_that_tells_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cpu.pressure"
    file.write_text(text)
    before = probes._pressure_ns([])
    assert before <= probes._pressure_ns([file]) <= probes._pressure_ns([]), "the machine's is taken"
