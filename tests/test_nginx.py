"""Behind a real TLS terminator: many starts, each a whole run, and no look at the engine is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from exchanges import make_certificate
from nginx_server import nginx
from running import SAMPLES, program, tokenswarm
from simulator_process import simulator

from tokenswarm.client import page, preflight
from tokenswarm.client.transport import make_target
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.target import Tls

PROFILE = """
name: tls
target: {url}
tls: {{ca_file: {ca}}}
dataset: {{path: {data}, output_tokens: {{max: 8}}}}
load: {{stages: [{{users: 4, duration: 2s}}]}}
phases: {{warmup: 0s, settle: 0s, drain: 20s}}
connections: {connections}
workers: 1
"""
LOOKS = 40  # with the last bytes thrown away, half of them failed


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    with (
        simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as engine,
        nginx(tmp_path_factory.mktemp("nginx"), certificate, engine.url) as found,
    ):
        yield found


def text(url: str, certificate: tuple[Path, Path], connections: str = "pooled") -> str:
    return PROFILE.format(url=url, ca=certificate[1], data=SAMPLES / "sharegpt.json", connections=connections)


@pytest.mark.parametrize("kind", [0, 1], ids=["keeps connections", "closes after each answer"])
def test_every_look_before_a_run_succeeds(urls: tuple[str, str], certificate: tuple[Path, Path], kind: int) -> None:
    profile = profiles.load(text(urls[kind], certificate), "p.yaml")

    assert [preflight.check(profile).models for _ in range(LOOKS)] == [["sim"]] * LOOKS


@pytest.mark.parametrize("kind", [0, 1], ids=["keeps connections", "closes after each answer"])
def test_every_look_at_the_metrics_succeeds(urls: tuple[str, str], certificate: tuple[Path, Path], kind: int) -> None:
    target = make_target(urls[kind], Tls(ca_file=str(certificate[1])))
    pages = [page.request(target, "GET", "/metrics", {}, timeout_s=10) for _ in range(LOOKS)]

    assert [got.status for got in pages] == [200] * LOOKS
    assert all(got.body.endswith(b"\n") for got in pages)


def test_whole_runs(urls: tuple[str, str], certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """Kept connections, fresh ones, and a server that closes: side by side, for three answers of one question."""
    cases = {"pooled": (urls[0], "pooled"), "fresh": (urls[0], "fresh"), "closing": (urls[1], "pooled")}
    with ExitStack() as stack:
        started = {}
        for name, (url, connections) in cases.items():
            home = tmp_path / name
            home.mkdir()
            (home / "p.yaml").write_text(text(url, certificate, connections), encoding="utf-8")
            started[name] = stack.enter_context(program(tokenswarm("run", "p.yaml"), home))
        finished = {name: run.finish() for name, run in started.items()}

    for name, run in finished.items():
        assert run.folder is not None, (name, run.out)
        requests, (source,) = run.summary["requests"], run.summary["server"]["metrics"]["sources"]
        assert (requests["failed"], requests["ok"] >= 20) == (0, True), (name, requests)
        assert source["looks"] == source["good"] > 0, (name, source)
        assert "engine-telemetry-gaps" not in run.doubts(), name
