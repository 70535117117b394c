"""Before the load it is said that the engine on this machine may take all cores; not where it leaves one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec
import psutil
import pytest
import sample_runs
from load_run import SyntheticRun

from tokenswarm.cluster import neighbour
from tokenswarm.cluster.neighbour import Neighbour
from tokenswarm.judge.rules.causes import causes
from tokenswarm.judge.rules.evidence import Beside, Evidence
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.profile import Profile
from tokenswarm.result.summary import summarize

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

LISTEN = """
import os, socket, sys
if "--pin" in sys.argv:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sock = socket.create_server(("127.0.0.1", int(sys.argv[-1]) if "--at" in sys.argv else 0))
print(sock.getsockname()[1], flush=True)
sock.settimeout(60)
while "--spin" in sys.argv:
    pass
sock.accept()
"""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextlib.contextmanager
def engine(*words: str) -> Iterator[Profile]:
    """A process with these words on its command line, and the profile that has it as target."""
    command = [sys.executable, "-c", LISTEN, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield sample_runs.profile(target=(f"http://127.0.0.1:{process.stdout.readline().strip()}",))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("llama-server",), True),
        (("ollama", "runner"), True),
        (("llama-server", "--threads", str(CORES)), True),
        (("llama-server", "-t", "64"), True),
        (("llama-server", "--threads=64"), True),
        (("llama-server", "--threads", "1"), CORES == 1),
        (("llama-server", "--pin"), CORES == 1),
        (("some-server",), False),
    ],
)
def test_an_engine_on_all_cores_is_told_before_the_load(words: tuple[str, ...], said: bool) -> None:
    with engine(*words) as profile:
        note = Neighbour(profile).note()
    assert bool(note) == said
    if note:
        assert f"may use all {CORES} cores" in note
        assert "engine.num_thread" in note


def test_what_spins_while_it_is_asked_is_told_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour, "BUSY", 0.05 / CORES)  # of all cores: others may use them, too
    with engine("some-server", "--spin") as profile:
        look = Neighbour(profile)
        time.sleep(0.5)
        assert look.note()


def test_threads_that_the_profile_asks_for_count() -> None:
    with engine("ollama") as profile:
        for threads, said in ((1, CORES == 1), (CORES, True)):
            asked = sample_runs.profile(target=profile.target, engine=Engine(kind="ollama", num_thread=threads))
            assert bool(Neighbour(asked).note()) == said


def test_an_engine_elsewhere_is_none_of_ours() -> None:
    assert Neighbour(sample_runs.profile(target=("http://192.0.2.7:8000",))).note() is None
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    assert Neighbour(sample_runs.profile(target=(f"http://127.0.0.1:{port}",))).note() is None


@pytest.mark.parametrize("spins", [True, False])
def test_what_the_engine_used_while_the_load_ran_is_its_own(spins: bool) -> None:
    """Beside another process that spins: the kernel's account of the process that listens tells them apart."""
    with engine(*["--spin"] * spins) as profile, engine("--spin") as other:
        look = Neighbour(profile)
        spinner = psutil.Process(listening(profile if spins else other))
        look.begin()
        began_s, before_s = time.monotonic(), sum(spinner.cpu_times()[:2])
        while sum(spinner.cpu_times()[:2]) - before_s < 0.3 and time.monotonic() - began_s < 30:
            time.sleep(0.1)
        beside, seconds = look.beside(), time.monotonic() - began_s
    assert beside is not None
    assert (beside.host, beside.of) == (socket.gethostname(), CORES)
    assert (beside.cores * seconds > 0.2) == spins  # CPU seconds


def test_an_engine_that_was_started_again_is_found() -> None:
    """The one before it is dead, and nobody has asked how it ended."""
    with engine() as profile:
        look = Neighbour(profile)
        os.kill(listening(profile), signal.SIGKILL)
        port = profile.target[0].rpartition(":")[2]
        while connects(int(port)):
            time.sleep(0.01)
        with engine("--spin", "--at", port):
            spinner = psutil.Process(listening(profile))
            look.begin()
            while sum(spinner.cpu_times()[:2]) < 0.3:
                time.sleep(0.05)
            beside = look.beside()
    assert beside is not None
    assert beside.cores > 0


def connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def listening(profile: Profile) -> int:
    port = int(profile.target[0].rpartition(":")[2])
    return next(one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port)


@pytest.mark.parametrize(
    ("beside", "target", "said"),
    [
        (
            Beside("here", 1.6, 2),
            "http://127.0.0.1:1",
            "The engine on this machine used 1.6 of 2 cores and kept",
        ),
        (Beside("here", 0.4, 2), "http://127.0.0.1:1", "and not the engine, which used 0.4 of 2 cores"),
        (Beside("there", 1.6, 2), "http://127.0.0.1:1", "Something on this machine kept worker 0 waiting for 30%"),
        (None, "http://127.0.0.1:1", "Something on this machine kept worker 0 waiting for 30% of the time. If it is"),
        (None, "http://192.0.2.7:1", "Something else on its machine kept worker 0"),
    ],
)
def test_the_engine_is_blamed_only_where_it_was_seen(beside: Beside | None, target: str, said: str) -> None:
    evidence = Evidence(
        merged=Merged(run_id="x"), expected_workers=1, profile=sample_runs.profile(target=(target,)), beside=beside
    )
    summary = summarize(SyntheticRun(workers=1).play())
    (worker,) = summary.instrument.workers
    summary.instrument.workers = [msgspec.structs.replace(worker, host="here", waited_ratio=0.3)]
    (sentence,) = causes(evidence, summary)
    assert said in sentence
