"""A run that goes on has one target and one workload, whatever the web UI's form says; its load may be changed."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_what_is_posted_while_a_run_ends_is_refused_or_begins(tmp_path: Path) -> None:
    """From the stop on, through the drain and the report: whoever is told yes gets a run."""
    slow = ("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "200")
    load = {"user_count": "2", "spawn_rate": "2"}
    with simulator(*slow) as engine, page(tmp_path) as (started, base):
        form = {**load, "host": engine.url}
        assert post(f"{base}/swarm", **form)["success"]
        started.await_output("steady, 2 users")
        with ThreadPoolExecutor(2) as threads:
            stops = [threads.submit(post, f"{base}/stop") for _ in range(2)]
            started.await_output("drain")
            before, refused = len(started.output), []
            while not (answer := post(f"{base}/swarm", **form))["success"]:
                refused.append(answer["message"])
                time.sleep(0.02)
            assert all(stop.result(60)["success"] for stop in stops)
        logs, _ = log_and_exceptions(base)
        assert eventually(lambda: "steady, 2 users" in started.output[before:], 60), started.output
        post(f"{base}/stop")

    (sentence,) = set(refused)
    assert "the run before is still being ended" in sentence
    assert sentence in logs
    assert len(list((tmp_path / "results").glob("2*/summary.json"))) == 2


def test_a_run_that_still_looks_keeps_its_load_and_can_be_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, page(tmp_path) as (started, base):
        form = {"user_count": "2", "spawn_rate": "2", "host": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        assert post(f"{base}/swarm", **form)["success"]
        asks, _ = silent.accept()  # who asks for its models, up to 4 s
        twice = post(f"{base}/swarm", **form)
        refused = post(f"{base}/swarm", **{**form, "user_count": "3"})
        post(f"{base}/stop")
        assert eventually(lambda: "it was stopped while it still" in log_and_exceptions(base)[0], 3), started.output
        asks.close()
        with simulator(*PACED) as engine:
            assert post(f"{base}/swarm", **{**form, "host": engine.url})["success"]
            started.await_output("steady, 2 users")
            post(f"{base}/stop")

    assert (twice["success"], refused["success"]) == (True, False)
    assert "the run still looks at its target" in refused["message"]


def test_a_reset_of_locusts_tables_in_a_run_costs_its_results_nothing(tmp_path: Path) -> None:
    with simulator(*PACED) as engine, page(tmp_path, workers=True) as (started, base):
        assert post(f"{base}/swarm", user_count="2", spawn_rate="2", host=engine.url)["success"]
        started.await_output("steady, 2 users")
        for _ in range(2):
            time.sleep(1)
            with urllib.request.urlopen(urllib.request.Request(f"{base}/stats/reset", data=b""), timeout=60) as done:
                assert done.read() == b"ok"
        post(f"{base}/stop")
        assert eventually(lambda: "the run is over" in log_and_exceptions(base)[0]), started.output
        received = engine.truth()["totals"]["received"]

    (folder,) = (tmp_path / "results").glob("2*")
    sent = json.loads((folder / "summary.json").read_bytes())["requests"]["sent"]
    probes = json.loads((folder / "manifest.json").read_bytes())["engine"]["probes"]
    assert sent == received - sum(probe["requests"] for probe in probes) > 0
