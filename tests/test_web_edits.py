"""A run that goes on has one target and one workload, whatever the web UI's form says; its load may be changed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import REPO, SAMPLES, Program, eventually, free_port, locust, program
from simulator_process import simulator
from test_web_ui import log_and_exceptions, post, reached

PACED = ("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5")


@contextlib.contextmanager
def page(home: Path, *words: str, workers: bool = False) -> Iterator[tuple[Program, str]]:
    """Plain Locust with a web UI, and its address; with `workers`, a master and one of them."""
    port, inner = str(free_port()), str(free_port())
    said = ("--web-port", port, "--max-tokens", "10", "--warmup", "1s", "--dataset", str(SAMPLES / "sharegpt.json"))
    master = ("--master", "--master-bind-port", inner) if workers else ()
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(program(locust("chat.py", *said, *master, *words), home))
        started.await_output("Starting web interface")
        assert eventually(lambda: reached(f"http://127.0.0.1:{port}"), 20)
        if workers:
            stack.enter_context(program(locust("chat.py", "--worker", "--master-port", inner), home))
            started.await_output("is now connected|reported as ready")
        yield started, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("workers", [False, True])
def test_a_run_that_goes_on_keeps_its_target(workers: bool, tmp_path: Path) -> None:
    with simulator(*PACED) as engine, simulator(*PACED) as other, page(tmp_path, workers=workers) as (started, base):
        assert post(f"{base}/swarm", user_count="2", spawn_rate="2", host=engine.url)["success"]
        started.await_output("steady, 2 users")
        refused = post(f"{base}/swarm", user_count="4", spawn_rate="4", host=other.url)
        edited = post(f"{base}/swarm", user_count="3", spawn_rate="3", host=f"{engine.url}/")
        started.await_output("users were changed to 3")
        _, said = log_and_exceptions(base)
        meanwhile = other.truth()["totals"]["received"]
        post(f"{base}/stop")
        started.await_output("verdict: ")
        assert eventually(lambda: "the run is over" in log_and_exceptions(base)[0]), started.output
        before = len(started.output)
        assert post(f"{base}/swarm", user_count="2", spawn_rate="2", host=other.url)["success"]
        assert eventually(lambda: "steady, 2 users" in started.output[before:], 60), started.output
        post(f"{base}/stop")

    assert (refused["success"], edited["success"]) == (False, True)
    assert "its host can't be changed while it runs; stop it and begin another one" in refused["message"]
    assert said == [refused["message"]]
    assert refused["host"] == engine.url
    assert meanwhile == 0
    first = min((tmp_path / "results").glob("2*"))
    changed = json.loads((first / "summary.json").read_bytes())["verdict"]["doubts"]
    assert [doubt["evidence"]["changed"] for doubt in changed if doubt["code"] == "users-changed"] == [{"0": [2, 3]}]


def test_and_its_workload(tmp_path: Path) -> None:
    words = ("--class-picker", "-f", str(REPO / "locustfiles"))
    load = {"user_count": "2", "spawn_rate": "2"}
    with simulator(*PACED) as engine, page(tmp_path, "--host", engine.url, *words) as (started, base):
        assert post(f"{base}/swarm", **load, user_classes="Chat")["success"]
        started.await_output("steady, 2 users")
        refused = post(f"{base}/swarm", **load, user_classes="Completions")
        everything = {"user_classes": ["Arrivals", "Chat", "Completions"]}
        edited = post(f"{base}/swarm", **{**load, "user_count": "3"}, **everything)
        started.await_output("users were changed to 3")
        post(f"{base}/stop")

    assert "its user classes can't be changed while it runs" in refused["message"]
    assert (edited["success"], edited["user_classes"]) == (True, ["Chat"])
