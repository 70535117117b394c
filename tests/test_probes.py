"""A worker's probes measure what they say: each thing they watch is done to this very process, and to a whole run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import psutil
import pytest
from running import SAMPLES, locust, run
from simulator_process import simulator

from tokenswarm.clock import NS_PER_S
from tokenswarm.cluster import probes
from tokenswarm.cluster.probes import Probes, cpu_stats, throttled_ns
from tokenswarm.measure.snapshot import Instrument

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")


@pytest.fixture
def watched() -> Iterator[tuple[Probes, Instrument]]:
    instrument = Instrument()
    watching = Probes(instrument)
    watching.start()
    yield watching, instrument
    watching.stop()


def burn(seconds: float) -> None:
    """Use so much CPU time."""
    used_s = time.process_time()
    while time.process_time() - used_s < seconds:
        pass


def looks(watching: Probes, wanted: Callable[[], None]) -> tuple[float, float]:
    """The least and the most that a share of a core can be between the look before `wanted` and the one behind it."""
    edges = [(time.monotonic(), time.process_time())]
    watching.sample()
    edges.append((time.monotonic(), time.process_time()))
    wanted()
    edges.append((time.monotonic(), time.process_time()))
    watching.sample()
    edges.append((time.monotonic(), time.process_time()))
    (early_s, early_used_s), (in_s, in_used_s), (out_s, out_used_s), (late_s, late_used_s) = edges
    return (out_used_s - in_used_s) / (late_s - early_s), (late_used_s - early_used_s) / (out_s - in_s)


def ticks(instrument: Instrument, n: int) -> None:
    """Let the loop go on until it ticked so often, however busy the machine is."""
    until_s = time.monotonic() + 20
    while instrument.loop_lag.n < n:
        assert time.monotonic() < until_s, "it does not tick"
        gevent.sleep(0.02)


# -- lag of the loop -----------------------------------------------------------------------------------------------


def test_a_loop_that_was_blocked_shows_as_lag(watched: tuple[Probes, Instrument]) -> None:
    _, instrument = watched
    ticks(instrument, 2)  # it does so by itself
    before = instrument.loop_lag_ns_max
    time.sleep(0.5)  # the whole process, the loop too
    gevent.sleep(0.05)
    due_s = probes.TICK_S  # the tick may have been due at any time within it
    assert instrument.loop_lag_ns_max >= (0.5 - due_s) * NS_PER_S
    assert instrument.loop_lag_ns_max > before or before >= 0.49 * NS_PER_S
    assert instrument.loop_lag.high == pytest.approx(instrument.loop_lag_ns_max / NS_PER_S)
    assert instrument.loop_lag.above(0.4) >= 1


def test_lag_is_counted_from_the_moment_a_tick_was_due(watched: tuple[Probes, Instrument]) -> None:
    """A tick that comes when it should has no lag. Noise only adds, so many are asked, but not the first."""
    _, instrument = watched
    ticks(instrument, 30)
    assert instrument.loop_lag.n - instrument.loop_lag.above(probes.TICK_S / 2) >= 3


# -- CPU and memory ------------------------------------------------------------------------------------------------


def test_cpu_is_what_this_process_used_and_the_most_is_kept(watched: tuple[Probes, Instrument]) -> None:
    watching, instrument = watched
    time.sleep(0.6)
    least, most = looks(watching, lambda: burn(0.6))
    assert 0.99 * least <= instrument.cpu_ratio_last <= 1.01 * most
    assert instrument.cpu_ratio_max == instrument.cpu_ratio_last
    used = instrument.cpu_ratio_max
    time.sleep(max(0.6, 2 * 0.6 / used))  # however long the machine took for what was burned
    watching.sample()
    assert instrument.cpu_ratio_last < 0.5 * used
    assert instrument.cpu_ratio_max == used


def test_a_share_over_a_moment_is_not_taken(watched: tuple[Probes, Instrument]) -> None:
    watching, instrument = watched
    watching._sampled_ns = probes.monotonic_ns()
    watching.sample()
    assert (instrument.cpu_ratio_last, instrument.rss_bytes) == (0.0, 0)


def test_memory_is_that_of_this_process(watched: tuple[Probes, Instrument]) -> None:
    watching, instrument = watched
    time.sleep(0.5)
    watching.sample()
    assert instrument.rss_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_collections_of_garbage_are_counted_and_timed(watched: tuple[Probes, Instrument]) -> None:
    watching, instrument = watched
    before = instrument.gc_pauses
    lasted_ns = []
    for _ in range(5):  # one of them was not put off between two looks at the clock
        circles: list[list[object]] = [[] for _ in range(100_000)]
        for circle in circles:
            circle.append(circle)
        del circles, circle
        began_ns = time.monotonic_ns()
        gc.collect()
        lasted_ns.append(time.monotonic_ns() - began_ns)
    assert instrument.gc_pauses >= before + 5
    assert 0.5 * min(lasted_ns) < instrument.gc_pause_ns_max
    watching.stop()
    counted = instrument.gc_pauses
    gc.collect()
    assert instrument.gc_pauses == counted


# -- the wall clock ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 15.0])
def test_a_step_of_the_wall_clock_is_its_size_and_is_kept(
    watched: tuple[Probes, Instrument], monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    watching, instrument = watched
    real = probes.realtime_ns
    time.sleep(0.5)
    watching.sample()
    assert instrument.clock_step_ns_max < NS_PER_S
    monkeypatch.setattr(probes, "realtime_ns", lambda: real() + int(step_s * NS_PER_S))
    for _ in range(2):  # a step, and then none
        time.sleep(0.5)
        watching.sample()
    assert instrument.clock_step_ns_max == pytest.approx(abs(step_s) * NS_PER_S, rel=0.01)


# -- throttling by a CPU quota -------------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a cpu.stat of a group."""

    def write(path: str, text: str) -> Path:
        file = tmp_path / path / "cpu.stat"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize(
    ("membership", "held_back"),
    [
        ("0::/", 5_000_000),  # a container with cgroup v2: the root that it sees is its own
        ("0::/user.slice/load.service", 7_000_000),  # a unit with a quota, below a root with a smaller one
        ("0::/user.slice/load.service/worker", 7_000_000),  # a group without a quota of its own inside it
        ("0::/not/here", 5_000_000),  # the host's name of a container's group
        ("9:name=systemd:/\n4:memory:/a\n2:cpu,cpuacct:/a", 11_000_000),  # v1
        ("4:memory:/a\n3:cpuset:/a", 0),
        ("", 0),
    ],
)
def test_the_time_held_back_is_that_of_our_groups(
    groups: Callable[[str, str], Path], tmp_path: Path, membership: str, held_back: int
) -> None:
    groups(".", "usage_usec 1\nnr_throttled 3\nthrottled_usec 5000\n")
    groups("user.slice", "usage_usec 1\n")
    groups("user.slice/load.service", "nr_periods 9\nthrottled_usec 7000\n")
    groups("user.slice/load.service/worker", "usage_usec 1\nthrottled_usec 0\n")
    groups("cpu,cpuacct/a", "nr_periods 9\nnr_throttled 3\nthrottled_time 11000000\n")
    groups("cpuset/a", "throttled_time 13000000\n")
    assert throttled_ns(cpu_stats(membership, tmp_path)) == held_back


def test_only_what_was_held_back_since_the_start_counts(
    groups: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = groups(".", "throttled_usec 5000\n")
    monkeypatch.setattr(probes, "cpu_stats", lambda _: [stat])
    instrument = Instrument()
    watching = Probes(instrument)
    stat.write_text("throttled_usec 9000\n")
    time.sleep(0.5)
    watching.sample()
    assert instrument.throttled_ns == 4_000_000
    stat.unlink()
    time.sleep(0.5)
    watching.sample()
    assert instrument.throttled_ns == 4_000_000, "a group that is gone takes nothing back"


HELD_BACK = """
import sys, time
from tokenswarm.cluster.probes import Probes
from tokenswarm.measure.snapshot import Instrument
instrument = Instrument()
watching = Probes(instrument)
until_s = time.monotonic() + 1.5
while time.monotonic() < until_s:
    pass
watching.sample()
print(instrument.throttled_ns, instrument.cpu_ratio_last)
"""


def test_a_quota_of_a_tenth_of_a_core_is_noticed() -> None:
    """A real one, of the kernel: cgroup v1 where this machine lets us make a group."""
    group = CPU_GROUPS / f"tokenswarm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no group of cgroup v1 can be made here: {error.strerror}")
    try:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("10000")
        (group / "cpu.shares").write_text("262144")  # who gets less than his quota on a busy machine is not held back
        started = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.stdin.read()\n{HELD_BACK}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        (group / "cgroup.procs").write_text(str(started.pid))
        said, _ = started.communicate(timeout=60)
    finally:
        group.rmdir()
    throttled, cpu = said.split()
    assert int(throttled) > 0.2 * NS_PER_S
    assert float(cpu) < 0.5


# -- a whole run ---------------------------------------------------------------------------------------------------

BLOCKS = """
import gevent
from gevent.monkey import get_original
from tokenswarm.cluster import plugin
from tokenswarm.cluster.users import ReplayUser

class Chat(ReplayUser):
    def on_start(self):
        gevent.spawn(self.block)

    def block(self):
        while True:
            gevent.sleep(0.5)
            get_original("time", "sleep")(0.3)
"""


def test_what_a_blocked_worker_can_have_spoiled_is_withheld(tmp_path: Path) -> None:
    """The probes are started, sampled, reported, merged and judged: a locustfile that blocks its process."""
    (tmp_path / "blocks.py").write_text(BLOCKS)
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as engine:
        words = ["--headless", "-u", "1", "-t", "5s", "--host", engine.url, "--dataset", str(SAMPLES / "sharegpt.json")]
        command = [*locust("chat.py")[:2], str(tmp_path / "blocks.py"), *words, "--max-tokens", "4"]
        finished = run(command, tmp_path, TOKENSWARM_READER="python")  # C's leaves tokens that waited their stamps
    doubts = {doubt["code"]: doubt["severity"] for doubt in finished.summary["verdict"]["doubts"]}
    assert doubts["loop-stall"] == "note", finished.out
    assert doubts["error-bar"] in ("degraded", "invalid"), "what it can have done to the numbers is told"
    instrument = finished.summary["instrument"]
    assert instrument["loop_lag_s"]["max"] >= 0.28
    assert 0 < instrument["cpu_ratio_max"] < 2
    assert "Withheld" in " ".join(finished.out.split())
