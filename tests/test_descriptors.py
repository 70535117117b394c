"""Descriptors: the soft limit is raised, what the hard one can't carry is refused, running out is a failed request."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from exchanges import Setup, ask
from running import SAMPLES, locust, run, tokenswarm
from simulator_process import Server, simulator

from tokenswarm import descriptors
from tokenswarm.client.opening import SPARE
from tokenswarm.client.pool import RESERVE
from tokenswarm.cluster.probes import Probes
from tokenswarm.measure.snapshot import Instrument
from tokenswarm.profile.phases import Timeouts
from tokenswarm.record import Outcome

PROFILE = f"""
name: many
target: http://127.0.0.1:9
dataset: {{path: {SAMPLES / "sharegpt.json"}, output_tokens: {{max: 2}}}}
load: {{stages: [{{users: 230, duration: 2s}}], spawn_rate: 200}}
phases: {{warmup: 0s, settle: 0s, drain: 20s}}
workers: 1
"""


def limited(soft: int, hard: int, command: list[str]) -> list[str]:
    return ["sh", "-c", f'ulimit -S -n {soft}; ulimit -H -n {hard}; exec "$@"', "-", *command]


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "300", "--itl-ms", "300", "--model", "m") as server:
        yield server


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "p.yaml"
    path.write_text(PROFILE, encoding="utf-8")
    return str(path)


def test_the_usual_soft_limit_is_no_limit(engine: Server, profile: str, tmp_path: Path) -> None:
    """230 connections at once where 128 descriptors are the soft limit of everybody."""
    command = tokenswarm("run", profile, "--host", engine.url)
    finished = run(limited(128, 4096, command), tmp_path)

    assert finished.folder is not None, finished.out
    assert "Traceback" not in finished.out
    assert finished.summary["requests"]["failed"] == 0
    assert finished.summary["requests"]["ok"] >= 230
    assert finished.doubts().isdisjoint({"worker-lost", "run-trouble"})


@pytest.mark.parametrize("how", ["run", "locust"])
def test_what_the_hard_limit_can_not_carry_is_refused_before_the_load(
    engine: Server, profile: str, tmp_path: Path, how: str
) -> None:
    before = engine.truth()["totals"]["received"]
    if how == "run":
        command = tokenswarm("run", profile, "--host", engine.url)
    else:
        command = locust("chat.py", "--headless", "--run-profile", profile, "--host", engine.url, "--only-summary")
    finished = run(limited(128, 256, command), tmp_path)

    assert finished.code == 15, finished.out
    need = 230 + RESERVE
    assert f"230 users of one worker need {need} file descriptors, and this process may have 256" in finished.out
    assert f"`ulimit -Hn {need}`" in finished.out
    assert "use 2 workers or more" in finished.out
    assert "Traceback" not in finished.out
    assert engine.truth()["totals"]["received"] == before


def test_two_workers_carry_what_one_can_not(engine: Server, profile: str, tmp_path: Path) -> None:
    finished = run(limited(128, 256, tokenswarm("run", profile, "--host", engine.url, "--workers", "2")), tmp_path)

    assert finished.folder is not None, finished.out
    assert finished.summary["requests"]["failed"] == 0
    assert finished.summary["requests"]["ok"] >= 230


@contextlib.contextmanager
def soft_limit(number: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[list[int]]:
    """This process may open so many more; `held` are those that were opened to fill the gaps below."""
    highest = max(int(link.name) for link in Path("/proc/self/fd").iterdir())
    held = [os.open("/dev/null", os.O_RDONLY)]
    while held[-1] < highest:
        held.append(os.open("/dev/null", os.O_RDONLY))
    try:
        with soft_limit(held[-1] + 1 + count):
            yield held
    finally:
        for number in held:
            os.close(number)


def test_running_out_is_a_failed_request(engine: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """As many as fit are served, the others fail with a word for it; and what else the process opens still opens."""
    setup = Setup()
    client = setup.client(engine.address[1], timeouts=Timeouts())
    with free_descriptors(SPARE + 20):
        gevent.joinall([gevent.spawn(ask, client, n) for n in range(60)], timeout=30)
        Path("/proc/self/status").read_text(encoding="utf-8")
        for pool in setup.pools:
            pool.close()
        assert ask(client).outcome is Outcome.OK, "it is no state that stays"
    setup.close()
    failed = [r for r in setup.records if r.outcome is not Outcome.OK]

    assert len(setup.records) == 61
    assert 40 <= len(failed) <= 50, "20 had a connection, less what the test itself opened"
    assert {(r.outcome, r.error_kind) for r in failed} == {(Outcome.CONNECT, "no descriptors")}
    assert all("ulimit -Hn" in r.error for r in failed)
    assert "Traceback" not in capfd.readouterr().err


def test_no_descriptor_at_all_neither_for_a_socket_nor_for_a_probe() -> None:
    setup = Setup()
    instrument = Instrument()
    probes = Probes(instrument)
    probes._sampled_ns -= 10**9  # a report ago
    instrument.rss_bytes, instrument.throttled_ns = 7, 5
    client = setup.client(9)
    with free_descriptors(8) as held:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        record = ask(client)
        probes.sample()
    setup.close()

    assert (record.outcome, record.error_kind) == (Outcome.CONNECT, "no descriptors")
    assert (instrument.rss_bytes, instrument.throttled_ns) == (7, 5), "the last that was known"


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with soft_limit(min(hard, 512)):
        assert descriptors.raise_limit() == descriptors.limit() == min(hard, descriptors.SOFT_MAX)
