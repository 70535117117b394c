"""Runs of a number of requests: exactly so many are sent, over any number of workers, and the run ends with them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import SAMPLES, Finished, free_port, locust, program, run, tokenswarm
from simulator_process import Server, simulator

from tokenswarm.load.schedule import counted, share, share_by_users
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.load import ENDLESS_S, Load, Stage
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.prompts.order import Shard

SHORT = ("--max-tokens", "4", "--drain", "20s", "--no-probe")
WRONG = {"accounting-mismatch", "arrivals-missing", "dropped-arrivals", "requests-missing", "run-trouble", "users-idle",
         "users-differ", "cancelled-requests"}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "40", "--itl-ms", "5") as server:
        yield server


def served(engine: Server) -> int:
    return int(engine.truth()["totals"]["received"])


def exact(finished: Finished, requests: int, workers: int) -> None:
    """So many, each measured, in equal shares where users are; whatever a busy machine makes of the times."""
    assert finished.code in (0, 11), finished.out
    assert not finished.doubts() & WRONG, finished.out
    summary = finished.summary
    assert len({row["id"] for row in finished.rows}) == len(finished.rows) == requests
    assert summary["requests"]["ok"] == summary["requests_steady"]["intended"] == requests
    shares = Counter(row["worker"] for row in finished.rows)
    assert max(shares.values()) - min(shares.values()) <= 1
    assert set(shares) == set(range(min(workers, requests)))


@pytest.mark.parametrize(("words", "workers"), [(("--users", "6"), 3), (("--rate", "40", "--arrivals", "gamma"), 2)])
def test_exactly_so_many_are_sent(engine: Server, tmp_path: Path, words: tuple[str, ...], workers: int) -> None:
    before = served(engine)
    command = ("run", "--host", engine.url, "--requests", "31", *words, "--workers", str(workers), *SHORT)
    finished = run(tokenswarm(*command), tmp_path)
    exact(finished, 31, workers)
    assert served(engine) - before == 31
    assert "31 requests" in finished.out
    (stage,) = finished.summary["stages"]
    ends = [row["intended_s"] + row["e2e_intended_s"] for row in finished.rows]
    if "--users" in words:  # the window is over with the last answer
        assert stage["steady_window"]["length_s"] < max(ends) - min(row["intended_s"] for row in finished.rows) + 5
    else:
        assert stage["arrivals"] == 31
        assert sorted(int(row["id"].rpartition("-0.")[2]) for row in finished.rows) == list(range(31))


@pytest.mark.parametrize(("requests", "wraps"), [("12", 0), ("13", 1)])
def test_a_data_set_that_is_sent_once_is_not_used_up(engine: Server, tmp_path: Path, requests: str, wraps: int) -> None:
    data = ("--dataset-format", "synthetic", "--set", "dataset.synthetic.conversations=12")
    command = ("run", "--host", engine.url, "--users", "3", "--requests", requests, *data, *SHORT)
    finished = run(tokenswarm(*command), tmp_path)
    exact(finished, int(requests), 1)
    assert finished.summary["instrument"]["dataset_wraps"] == wraps
    assert ("dataset-wrapped" in finished.doubts()) == bool(wraps)


@pytest.mark.parametrize(("users", "workers", "shares"), [(1, 3, {0: 12}), (3, 2, {0: 8, 1: 4})])
def test_each_user_has_as_much_to_do(
    engine: Server, tmp_path: Path, users: int, workers: int, shares: dict[int, int]
) -> None:
    """A worker without users ends with the others, and the data set is sent once, whoever sends how much of it."""
    load = ("--users", str(users), "--workers", str(workers), "--requests", "12")
    data = ("--dataset-format", "synthetic", "--set", "dataset.synthetic.conversations=12")
    finished = run(tokenswarm("run", "--host", engine.url, *load, *data, *SHORT), tmp_path)
    assert finished.code in (0, 11), finished.out
    assert not finished.doubts() & {*WRONG, "dataset-wrapped"}, finished.out
    assert Counter(row["worker"] for row in finished.rows) == shares
    assert len({row["conversation"] for row in finished.rows}) == 12


def test_fewer_requests_than_users_and_workers(engine: Server, tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(
        f"target: {engine.url}\ndataset: {{path: {SAMPLES}/sharegpt.json, output_tokens: {{fixed: 4}}}}\n"
        "load: {stages: [{users: 8}], requests: 2}\nworkers: 3\n",
        encoding="utf-8",
    )
    finished = run(tokenswarm("run", str(profile), "--no-probe"), tmp_path)
    exact(finished, 2, 3)
    assert finished.summary["instrument"]["workers"][2]["worker"] == 2


def test_plain_locust_master_and_workers(engine: Server, tmp_path: Path) -> None:
    port = str(free_port())
    worker = locust("chat.py", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    master = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2")
    load = ("--headless", "--host", engine.url, "--dataset", str(SAMPLES / "sharegpt.json"), "-u", "4", "-r", "4")
    before = served(engine)
    with program(worker, tmp_path), program(worker, tmp_path):
        finished = run(locust("chat.py", *master, *load, "--requests", "21", *SHORT), tmp_path)
    exact(finished, 21, 2)
    assert served(engine) - before == 21


ORDER = """
import random
from types import SimpleNamespace
from locust import User
from locust.dispatch import UsersDispatcher
from tokenswarm.cluster.members import Cluster, Member

class Somebody(User):
    pass

names = ["b_7", "a_3", "c_d_1", "a_9", "b_2", "c_0"]
random.shuffle(names)
cluster = Cluster.__new__(Cluster)
cluster.members = {name: Member(name, host=name[0], pid=index) for index, name in enumerate(names)}
dispatcher, shares = UsersDispatcher([SimpleNamespace(id=name) for name in names], [Somebody]), []
for users in range(1, 20):
    dispatcher.new_dispatch(users, 100.0)
    dealt = next(dispatcher)
    shares.append([dealt[member.client_id]["Somebody"] for member in cluster.by_users()])
print(shares)
"""


def test_a_worker_has_the_users_that_its_place_in_the_run_means() -> None:
    """Against Locust's own dispatcher, over workers on several hosts."""
    done = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [[share(users, index, 6) for index in range(6)] for users in range(1, 20)]


LANE = """
from tokenswarm.cluster.lane import Lane
from tokenswarm.profile.load import Load, Stage
load = Load(kind="poisson", stages=(Stage(rate=(5.0,)),), max_in_flight=2)
for index in range(3):
    Lane(load, None, index, 3, None, None, None, None, None)
"""


def test_a_worker_without_a_share_of_what_may_be_under_way_is_refused() -> None:
    """Such as remote ones, whose number no profile knows: it would drop each arrival that is its own."""
    done = subprocess.run([sys.executable, "-c", LANE], capture_output=True, text=True, check=False, timeout=60)
    assert "ConfigError: `load.max_in_flight: 2` must be at least 1 for each of 3 workers" in done.stderr


def test_requests_and_places_are_dealt_out_to_users_and_these_to_workers() -> None:
    for requests, users, workers in itertools.product((1, 7, 30, 31), (1, 2, 3, 8), (1, 2, 3, 5)):
        load = Load(requests=requests, stages=(Stage(users=users),))
        own = [share_by_users(load, index, workers) or 0 for index in range(workers)]
        assert all(bool(own[index]) <= (index < users) for index in range(workers))
        shards = [Shard(int, 1000, index, workers, None, users) for index in range(workers)]
        taken = [next(shard) for shard, n in zip(shards, own, strict=True) for _ in range(n)]
        assert sorted(taken) == list(range(requests))


def test_a_time_that_is_over_before_is_a_note_and_a_warmup_that_takes_all_is_none(
    engine: Server, tmp_path: Path
) -> None:
    words = ("run", "--host", engine.url, "--users", "2", *SHORT)
    finished = run(tokenswarm(*words, "--requests", "100000", "--duration", "1s"), tmp_path)
    doubts = {doubt["code"]: doubt for doubt in finished.summary["verdict"]["doubts"]}
    assert doubts["requests-missing"]["severity"] == "note"
    assert doubts["requests-missing"]["evidence"] == {"asked": 100000, "came": len(finished.rows)}
    finished = run(tokenswarm(*words, "--requests", "3", "--warmup", "2s"), tmp_path)
    doubts = {doubt["code"]: doubt for doubt in finished.summary["verdict"]["doubts"]}
    assert doubts["requests-missing"]["severity"] == "invalid"
    assert "shorten `phases.warmup`" in doubts["requests-missing"]["message"]
    assert len(finished.rows) == 3


def test_a_warmup_that_takes_all_arrivals_is_refused_before_the_load(engine: Server, tmp_path: Path) -> None:
    words = ("--requests", "5", "--rate", "100", "--arrivals", "constant", "--warmup", "3s")
    finished = run(tokenswarm("run", "--host", engine.url, *words), tmp_path)
    assert finished.code == 15
    assert "`phases.warmup: 3s` is more than the 0.04 s that all 5 requests take to arrive" in finished.out


def test_a_window_shorter_than_an_answer_goes_on_until_a_request_begins_in_it(tmp_path: Path) -> None:
    with simulator("--preset", "paced", "--ttft-ms", "40", "--itl-ms", "100") as slow:
        words = ("--host", slow.url, "--users", "1", "--warmup", "500ms", "--duration", "1s", "--max-tokens", "60")
        finished = run(tokenswarm("run", *words, "--no-probe"), tmp_path)
    assert "no request began within the window of stage 1, which is shorter than an answer: it goes on" in finished.out
    assert "no-success" not in finished.doubts()
    (stage,) = finished.summary["stages"]
    assert stage["requests_steady"]["ok"] == stage["requests_steady"]["intended"] == 1
    assert stage["steady_window"]["length_s"] > 4  # until the answer of the warm-up had ended


@pytest.mark.parametrize(
    ("load", "lead_s", "length_s", "arrivals"),
    [
        (Load(kind="constant", requests=10, stages=(Stage(rate=(5.0,), duration=Seconds(ENDLESS_S)),)), 0, 2.0, 10),
        (Load(kind="constant", requests=10, stages=(Stage(rate=(5.0,), duration=Seconds(1.0)),)), 0, 1.0, 5),
        (Load(kind="constant", requests=10, stages=(Stage(rate=(5.0,), duration=Seconds(ENDLESS_S)),)), 1, 1.0, 5),
    ],
)
def test_how_long_so_many_arrivals_take(load: Load, lead_s: float, length_s: float, arrivals: int) -> None:
    found = counted(load, lead_s)
    assert found.stage.duration == pytest.approx(length_s)
    assert found.arrivals == arrivals


@pytest.mark.parametrize(
    ("more", "warmup", "duration"),
    [
        ("load: {requests: 5}", 0, ENDLESS_S),
        ("load: {requests: 5, stages: [{users: 2}]}", 0, ENDLESS_S),
        ("load: {requests: 5, stages: {users: 2}}", 0, ENDLESS_S),
        ("load: {requests: 5, stages: [{users: 2, duration: 9s}]}\nphases: {warmup: 5s}", 5, 9),
        ("load: {requests: null, stages: [{users: 2}]}", 5, 30),
    ],
)
def test_what_is_not_said_of_the_time_is_none(more: str, warmup: float, duration: float) -> None:
    found: Any = profiles.load(f"target: http://a\ndataset: {{path: d.json}}\n{more}", "p.yaml")
    assert (found.phases.warmup, found.load.stages[0].duration) == (warmup, duration)
