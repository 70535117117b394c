"""The search for the largest load that keeps its limits: its steps in virtual time, and runs of it."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Program, free_port, program, run, tokenswarm
from simulator_process import simulator
from small_server import GOOD, MODELS, Answer, Asked, Backend, backend, refusal

from tokenswarm.client import preflight
from tokenswarm.cluster.stages import Searching
from tokenswarm.errors import ConfigError
from tokenswarm.judge.search import Probe, Queue, Search, away, gone
from tokenswarm.measure.periods import Periods
from tokenswarm.measure.snapshot import Block, Merged
from tokenswarm.measure.stills import Still
from tokenswarm.profile import profile


def searched(capacity: float, low: float, high: float, resolution: float = 0.05, *, whole: bool = False) -> Search:
    """A server that passes up to `capacity`."""
    found = Search(low, high, resolution, whole=whole)
    while (load := found.next()) is not None:
        assert low <= load <= high
        assert not whole or load == int(load)
        result = "pass" if load <= capacity else "fail"
        found.put(
            Probe(
                stage=len(found.probes),
                load=load,
                result=result,
                within=result == "pass",
                reason="",
                seconds=1,
                requests=1,
            )
        )
        assert len(found.probes) < 60
    return found


@given(st.floats(0.5, 3000), st.floats(0.5, 100), st.floats(1.1, 100), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_answer_is_within_a_step_and_within_the_bounds(
    capacity: float, low: float, more: float, step: float
) -> None:
    found = searched(capacity, low, low * more, step)
    if capacity < low:
        assert (found.passed, found.failed, len(found.probes)) == (None, low, 1)
    elif capacity >= low * more:
        assert (found.passed, found.failed) == (low * more, None)
    else:
        assert found.passed is not None
        assert found.failed is not None
        assert found.passed <= capacity < found.failed <= found.passed * (1 + step) * 1.0001


@given(st.integers(1, 5000), st.integers(1, 50), st.integers(2, 100))
def test_users_are_whole_numbers(capacity: int, low: int, more: int) -> None:
    found = searched(capacity, low, low * more, 0.005, whole=True)
    if low <= capacity < low * more:
        assert found.passed is not None
        assert found.failed is not None
        assert found.passed <= capacity < found.failed <= found.passed + max(1, 0.005 * found.passed)


def test_it_takes_a_third_of_a_sweep_of_the_same_resolution() -> None:
    found = searched(37.0, 1, 128)
    sweep = 100  # loads between 1 and 128 that lie 5 % apart
    assert len(found.probes) < sweep / 3


def test_a_load_that_passes_above_one_that_failed_does_not_count() -> None:
    found = Search(1, 64, 0.05, whole=False)
    for load, result in ((1, "pass"), (2, "fail"), (4, "pass")):
        found.put(Probe(stage=0, load=load, result=result, within=result == "pass", reason="", seconds=1, requests=1))  # type: ignore[arg-type]
    assert (found.passed, found.failed) == (1, 2)


def test_a_queue_that_grows_is_seen_and_one_that_is_long_is_not() -> None:
    draw = random.Random(3)
    steady, closed = Queue(50.0), Queue(None)
    assert not any(steady.look(200 + draw.randrange(-40, 40)) for _ in range(300))
    assert not any(closed.look(10 * second) for second in range(100))
    growing = Queue(50.0)
    seen = [growing.look(10 + 10 * second) for second in range(60)]
    assert any(seen[:30])
    assert not any(Queue(50.0).look(min(20 * second, 150)) for second in range(60))


@pytest.mark.parametrize("looks", [5, 15])
def test_a_queue_is_not_judged_at_once(looks: int) -> None:
    queue = Queue(10.0)
    assert not any(queue.look(100 * second) for second in range(looks))


# -- runs --------------------------------------------------------------------------------------------------------------

PROFILE = """\
target: http://127.0.0.1:1
dataset: {format: synthetic, synthetic: {conversations: 100000, input_mean: 16}, output_tokens: {fixed: 8}}
phases: {warmup: 1s, settle: 1s, drain: 20s}
slo: {ttft_intended_s: {p50: 0.6}, failed_ratio: 0.1}
search: {rate: [8, 256], resolution: 0.5, shortest: 3s, longest: 12s}
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("warmup", "steady", "drain", "told"),
    [
        ((0, 3), (0, 6), (0, 1), True),
        ((19, 2), (0, 6), (0, 4), True),  # it died before the window
        ((19, 0), (1, 600), (0, 4), False),  # it is too slow, and answers some
        ((19, 0), (0, 0), (0, 0), False),  # nothing fell into the window
    ],
)
def test_a_try_without_a_success_in_its_window_is_no_answer(
    warmup: tuple[int, int], steady: tuple[int, int], drain: tuple[int, int], told: bool
) -> None:
    search = Search(1, 8, 0.5, whole=True)
    for stage in (0, 1):
        search.put(Probe(stage=stage, load=stage + 1, result="pass", within=True, reason="", seconds=4, requests=9))
    counts = {(0, "steady"): (111, 0), (1, "warmup"): warmup, (1, "steady"): steady, (1, "drain"): drain}
    blocks = [
        Block(stage=stage, phase=phase, ok=ok, failed=failed, by_error={"refused": failed})
        for (stage, phase), (ok, failed) in counts.items()
    ]
    said = gone(search, Merged(run_id="r", blocks=blocks, workers=[]))
    assert said == (
        "the last try, at 2, had no success in 6 requests (refused): the server was gone, and how much it carries is "
        "not known" if told else ""
    )  # fmt: skip


def test_the_known_capacity_of_the_engine_is_found(tmp_path: Path) -> None:
    """Four at a time, nine steps of 25 ms each: 17.8 requests a second; a little more, as batches share a prefill."""
    (tmp_path / "p.yaml").write_text(PROFILE, encoding="utf-8")
    engine = ("--preset", "laptop", "--max-num-seqs", "4", "--flops-per-s", "1e15", "--bytes-per-s", "1e13")
    with simulator(*engine, "--step-overhead-ms", "25") as server:
        finished = run(tokenswarm("search", "p.yaml", "--host", server.url), tmp_path, 240)
    found = finished.summary["search"]
    assert found["of"] == "rate"
    assert 8 <= found["passed"] <= 23
    assert 15 <= found["failed"] <= 35
    assert found["failed"] <= found["passed"] * 1.51
    assert found["probes"][0]["load"] == 8.0
    assert len(finished.summary["stages"]) == len(found["probes"])
    line = f"search: rate passed={found['passed']:.6g} failed={found['failed']:.6g} probes={len(found['probes'])}"
    assert line in finished.out
    assert line in (finished.folder / "report.md").read_text("utf-8")  # type: ignore[operator]
    gates = {gate["metric"]: gate for gate in finished.summary["gates"]}
    value = gates["ttft_intended_s.p50"]["value"]  # of the answer, not of the tries that were too much
    assert value is None or value <= 0.6  # None: withheld, on a busy machine
    assert "rate-not-kept" not in finished.doubts()
    sent = {row["id"] for row in finished.rows}
    assert len(sent) == len(finished.rows) == finished.summary["requests"]["intended"]


def test_users_up_to_the_bound_all_pass(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE.replace("0.6", "5"), encoding="utf-8")
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "2") as server:
        words = ("--host", server.url, "--users", "1..2", "--set", "search.shortest=2s", "--set", "search.longest=8s")
        finished = run(tokenswarm("search", "p.yaml", *words), tmp_path, 120)
    assert "search: users passed=2 failed=none probes=" in finished.out, finished.out
    assert {stage["concurrency"] for stage in finished.summary["stages"]} == {1, 2}


BAD = "target: http://127.0.0.1:1\ndataset: {format: synthetic}\nslo: {ttft_s: {p90: 1}}\n"


@pytest.mark.parametrize(("phase", "seconds"), [("warmup", 0.0), ("steady", 1.0)])
def test_a_server_that_is_gone_is_no_answer(tmp_path: Path, phase: str, seconds: float) -> None:
    """The engine dies in the second try, before its window or in the middle of it: that is not what the load did."""
    (tmp_path / "p.yaml").write_text(PROFILE.replace("0.6", "5"), encoding="utf-8")
    told = ("search.shortest=2s", "search.longest=4s", "search.resolution=1", "phases.settle=3s")
    words = [word for setting in told for word in ("--set", setting)]
    with (
        simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "2") as server,
        program(tokenswarm("search", "p.yaml", "--host", server.url, *words), tmp_path) as started,
    ):
        started.await_output(f"stage 2 {phase}")
        time.sleep(seconds)
        server.process.kill()
        finished = started.finish(120)
    assert finished.code == 11, finished.out
    (doubt,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "run-trouble")
    assert f"{server.url}: " in doubt["message"]
    assert "after the try at 16: the server was gone, and how much it carries is not known" in doubt["message"]
    assert "search: rate passed=8 failed=none probes=2" in finished.out
    assert [probe["result"] for probe in finished.summary["search"]["probes"]][1:] == ["gone"]


@pytest.mark.parametrize("said", ["", "http://gpu:1: connection refused"])
def test_a_try_in_which_some_were_refused_is_an_answer_of_a_server_that_is_there(said: str) -> None:
    searching = Searching(profile.load(BAD + "search: {users: [1, 8]}", "p.yaml"))
    searching.unreachable = lambda: said
    assert searching.next(Merged(run_id="r")) is not None
    blocks = [Block(stage=0, phase="steady", sent=400, ok=200, failed=200, by_error={"refused": 200})]
    assert searching.next(Merged(run_id="r", blocks=blocks)) is None
    assert (searching.answer["passed"], searching.answer["failed"]) == (None, None if said else 1)
    assert gone(searching.search, Merged(run_id="r", blocks=blocks)).startswith(said)
    assert bool(gone(searching.search, Merged(run_id="r", blocks=blocks))) == bool(said)


@contextlib.contextmanager
def server_that_leaves(answer: Callable[[], Answer]) -> Iterator[tuple[Backend, threading.Event]]:
    """While the event is set, who asks gets what `answer` says instead."""
    left = threading.Event()

    def say(asked: Asked) -> Answer:
        return answer() if left.is_set() else MODELS if asked.method == "GET" else GOOD

    with backend(say) as server:
        yield server, left


def hangs_up() -> Answer:
    raise ConnectionError


@contextlib.contextmanager
def searched_up_to_16(tmp_path: Path, url: str) -> Iterator[Program]:
    (tmp_path / "p.yaml").write_text(PROFILE.replace("0.6", "5").replace("256", "16"), encoding="utf-8")
    with program(tokenswarm("search", "p.yaml", "--host", url, "--set", "search.shortest=2s"), tmp_path) as started:
        yield started


@pytest.mark.parametrize("answer", [hangs_up, lambda: refusal(503, b"Service Unavailable")], ids=["closes", "503"])
def test_a_try_in_which_the_server_was_away_is_tried_again(answer: Callable[[], Answer], tmp_path: Path) -> None:
    with server_that_leaves(answer) as (server, left), searched_up_to_16(tmp_path, server.url) as started:
        started.await_output("stage 2 steady")
        time.sleep(1)
        left.set()
        time.sleep(4)
        left.clear()
        finished = started.finish(120)
    assert finished.code == 12 or finished.went_well, finished.out
    assert "search: rate passed=16 failed=none probes=3" in finished.out
    _, second, third = finished.summary["search"]["probes"]
    assert (second["load"], second["result"], third["load"], third["within"]) == (16, "gone", 16, True)
    assert second["reason"].startswith("the server was away in the try at 16: nothing succeeded from ")
    assert "run-trouble" not in finished.doubts()


def test_a_gateway_whose_engine_is_gone_is_no_answer(tmp_path: Path) -> None:
    with (
        server_that_leaves(lambda: refusal(502, {"error": "no engine"})) as (server, left),
        searched_up_to_16(tmp_path, server.url) as started,
    ):
        started.await_output("stage 2 steady")
        time.sleep(1)
        left.set()
        finished = started.finish(120)
    assert finished.code == 11, finished.out
    (doubt,) = (d for d in finished.summary["verdict"]["doubts"] if d["code"] == "run-trouble")
    assert f"{server.url}: HTTP 502: no engine after the try at 16: the server was gone" in doubt["message"]
    assert "search: rate passed=8 failed=none probes=2" in finished.out


@pytest.mark.parametrize(
    ("outcome", "restarts", "results"),
    [
        ("reset", 0, ["gone", "gone"]),
        ("http_5xx", 0, ["fail"]),  # it has four slots, and refuses who comes meanwhile: that is an answer
        ("timeout", 0, ["fail"]),
        ("http_5xx", 1, ["gone", "gone"]),  # by a gateway; its metrics know better
    ],
)
def test_what_is_a_server_that_was_away(outcome: str, restarts: int, results: list[str]) -> None:
    searching = Searching(profile.load(BAD + "search: {users: [1, 8]}", "p.yaml"))
    told = iter((0, restarts, restarts, 2 * restarts))
    searching.restarts = lambda: next(told)
    looks: list[str] = []
    searching.serves_nobody = lambda: looks.append("") or ""  # type: ignore[func-returns-value]
    searching.next(Merged(run_id="r"))
    blocks = []
    for stage in range(len(results)):
        block = Block(stage=stage, phase="steady", sent=60, ok=20, failed=40, by_outcome={"ok": 20, outcome: 40})
        block.periods = Periods(
            ended={stage * 9 + at: 10 for at in range(6)}, failed={stage * 9 + at: 10 for at in range(1, 5)}
        )
        blocks.append(block)
        last = searching.next(Merged(run_id="r", blocks=blocks))
    assert last is None
    assert [probe.result for probe in searching.search.probes] == results
    assert searching.answer["failed"] == (1 if results == ["fail"] else None)
    said = gone(searching.search, Merged(run_id="r", blocks=blocks))
    assert said.startswith(
        "the server was away in both tries at 1, in the last one nothing succeeded from 10 s to 14 s"
    ) == (results != ["fail"])
    assert not looks, "it succeeded again: no look is needed"


SILENT = Still(stage=0, phase="steady", start_s=10.5, end_s=14.2, decoding=0)


@pytest.mark.parametrize(
    ("silences", "ttft_s", "ended", "failed", "more", "told"),
    [
        ([SILENT], 0.2, 16, range(11, 15), {}, True),  # it refuses all, and nothing else comes of it
        ([], 0.2, 16, range(11, 15), {}, False),  # it goes on with those that it took
        ([SILENT], 3.0, 16, range(11, 15), {}, False),  # they have long prompts
        ([SILENT], 0.2, 16, range(11, 15), {"rate_limited": 200}, False),  # a quota says so, and who it is for
        ([], 0.2, 13, range(11, 13), {}, True),  # the try ends with it: had it taken any, they would have ended since
        ([], 0.2, 13, range(11, 13), {"censored": 1}, False),  # they go on beyond the drain
        ([], 0.2, 13, range(11, 13), {"before": 8}, False),  # it lets in one of five
    ],
)  # fmt: skip
def test_who_refuses_everybody_has_not_too_much(
    silences: list[Still], ttft_s: float, ended: int, failed: range, more: dict[str, int], told: bool
) -> None:
    block = Block(stage=0, phase="steady", failed=40, by_outcome={"http_5xx": 40})
    block.periods = Periods(ended=dict.fromkeys(range(9, ended), 10), failed=dict.fromkeys(failed, 10))
    if more.get("before"):
        block.periods.failed |= {9: more["before"], 10: more["before"]}
    block.ttft.add(ttft_s)
    block.failed += more.get("rate_limited", 0)
    block.censored = more.get("censored", 0)
    block.sent = block.failed + block.censored
    assert bool(away(Merged(run_id="r", blocks=[block]), 0, restarted=False, silences=silences)) == told


def of_target(*urls: str) -> profile.Profile:
    return profile.load(f"{BAD}target: [{', '.join(urls)}]".replace("target: http://127.0.0.1:1\n", ""), "p.yaml")


def test_whether_a_server_is_there() -> None:
    """One that is slow to answer, or refuses, is there; who takes no connection, or hangs up without a word, is not."""
    with simulator("--preset", "paced") as server, socket.create_server(("127.0.0.1", 0)) as silent:
        addresses = (server.url, f"http://127.0.0.1:{silent.getsockname()[1]}", f"http://127.0.0.1:{free_port()}")
        looks = [preflight.reach(of_target(url)) for url in addresses]
        assert [bool(look()) for look in looks] == [False, False, True]
        assert looks[2]().startswith(f"{addresses[2]}: ")
        server.process.kill()
        server.process.wait(10)
        assert looks[0]().startswith(f"{server.url}: ")
    assert preflight.reach(of_target(addresses[0], addresses[2]))()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("search: {rate: [8, 2]}", "p.yaml:4: `search.rate: [8, 2]`: the first must be less than the second"),
        ("search: {rate: [0, 2]}", "p.yaml:4: `search.rate: [0, 2]` must lie between 0.001 and 100000"),
        ("search: {users: [1, 1e9]}", "`search.users.1: 1e9` is not a whole number"),
        ("search: {rate: [1, 2, 3]}", "p.yaml:4: `search.rate` takes two numbers, the least and the most, not 3"),
        ("search: {rate: [1, 2], users: [1, 2]}", "`search.rate` and `search.users` can't both be given"),
        ("search: {resolution: 0}", "p.yaml:4: `search.resolution: 0` must be between 0.005 and 1"),
        ("search: {shortest: 9m}", "p.yaml:4: `search.shortest` (540 s) must be 1s or more"),
    ],
)
def test_bounds_that_are_none(more: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profile.load(BAD + more, "p.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a search needs bounds: --rate 1,64, or --users 1,64, or `search.rate: [1, 64]` in the profile"),
        (("--rate", "5"), "--rate 5: a search takes two bounds, for example --rate 1,64"),
        (("--rate", "1,9", "--users", "1,9"), "--rate and --users: a search looks for one of them; give one"),
        (("--duration", "5s"), "--duration is of `tokenswarm run`"),
        (("--users", "512,1"), "--users: `search.users: [512, 1]`: the first must be less than the second"),
        (("--rate", "1,9", "--set", "slo={}"), "a search needs limits to keep: `slo` in the profile, or --slo FILE"),
    ],
)
def test_what_can_not_be_searched(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "p.yaml").write_text(BAD, encoding="utf-8")
    finished = run(tokenswarm("search", "p.yaml", *words), tmp_path, 30)
    assert finished.code == 15
    assert said in finished.out
    assert not (tmp_path / "results").exists()
