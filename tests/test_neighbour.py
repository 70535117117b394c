"""Before the load it is said that the engine on this machine may take all cores; not where it leaves one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import sample_runs

from tokenswarm.cluster import neighbour
from tokenswarm.cluster.neighbour import Neighbour
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.profile import Profile

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

LISTEN = """
import os, socket, sys
if "--pin" in sys.argv:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sock = socket.create_server(("127.0.0.1", 0))
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
        note = Neighbour(profile).note(1.0)
    assert bool(note) == said
    if note:
        assert f"may use all {CORES} cores" in note
        assert "engine.num_thread" in note


def test_what_spins_while_it_is_asked_is_told_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour, "BUSY", 0.05 / CORES)  # of all cores: others may use them, too
    with engine("some-server", "--spin") as profile:
        look, began_s = Neighbour(profile), time.monotonic()
        time.sleep(0.5)
        assert look.note(time.monotonic() - began_s)


def test_threads_that_the_profile_asks_for_count() -> None:
    with engine("ollama") as profile:
        for threads, said in ((1, CORES == 1), (CORES, True)):
            asked = sample_runs.profile(target=profile.target, engine=Engine(kind="ollama", num_thread=threads))
            assert bool(Neighbour(asked).note(1.0)) == said


def test_an_engine_elsewhere_is_none_of_ours() -> None:
    assert Neighbour(sample_runs.profile(target=("http://192.0.2.7:8000",))).note(1.0) is None
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    assert Neighbour(sample_runs.profile(target=(f"http://127.0.0.1:{port}",))).note(1.0) is None
