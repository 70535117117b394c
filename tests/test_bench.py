"""The bench: its sender tells the truth, its clients count all that was sent, its report believes no late sender."""

from __future__ import annotations

import http.client
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from bench import comparison, sender
from bench.clients.measure import quantiles
from bench.experiments import QUICK, Climb
from bench.goals import CLIENTS, Spread, met, spread
from bench.results import OWN, missed_at, own_sections, render, with_section
from bench.runs import REPO, Run, run
from bench.sender import Pace, Sender

needs_sender = pytest.mark.skipif(
    not sys.platform.startswith("linux") or sender.compiler() is None,
    reason="the paced sender needs Linux and a C compiler (cc)",
)

TOKENS = 40
FAST = Pace(ttft_ms=10, itl_ms=2, tokens=TOKENS, jitter=0.5)
PATHS = ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate")


@pytest.fixture
def paced() -> Iterator[Sender]:
    with sender.started(FAST) as process:
        yield process


def ask(connection: http.client.HTTPConnection, path: str, **fields: object) -> list[dict[str, Any]]:
    """All events of one answer."""
    connection.request("POST", path, json.dumps({"stream": True, **fields}))
    response = connection.getresponse()
    assert response.status == 200
    lines = response.read().decode().split("\n")
    if path.startswith("/v1"):
        assert lines[-3:] == ["data: [DONE]", "", ""]
        lines = [line.removeprefix("data: ") for line in lines[:-3]]
    return [json.loads(line) for line in lines if line]


def stamps_of(path: str, events: list[dict[str, Any]]) -> list[int]:
    """The true send times that the tokens carry."""
    texts = {
        "/v1/chat/completions": lambda event: event["choices"] and event["choices"][0]["delta"].get("content"),
        "/v1/completions": lambda event: event["choices"] and event["choices"][0]["text"],
        "/api/chat": lambda event: event["message"]["content"],
        "/api/generate": lambda event: event["response"],
    }
    return [int(text) for event in events if (text := texts[path](event))]


@needs_sender
@pytest.mark.parametrize("path", PATHS)
def test_truth_is_what_a_plain_client_receives(paced: Sender, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", paced.port, timeout=60)
    answers = [stamps_of(path, ask(connection, path)) for _ in range(3)]  # one connection, kept alive
    truth = paced.truth()
    assert [len(stamps) for stamps in answers] == [TOKENS] * 3
    assert truth["tokens"] == 3 * TOKENS
    assert (truth["started"], truth["finished"], truth["aborted"]) == (3, 3, 0)
    assert truth["ttft_ns"]["n"] == truth["e2e_ns"]["n"] == 3
    gaps = quantiles([after - before for stamps in answers for before, after in pairwise(stamps)])
    assert gaps is not None
    assert truth["itl_ns"]["n"] == gaps["n"] == 3 * (TOKENS - 1)
    assert truth["itl_ns"]["max"] == gaps["max"]
    for name in ("p50", "p90", "p99", "p999"):
        assert truth["itl_ns"][name] == pytest.approx(gaps[name], rel=0.0005)


@needs_sender
def test_chat_has_a_role_first_and_usage_last_as_vllm_sends_them(paced: Sender) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", paced.port, timeout=60)
    first, *_, last, usage = ask(connection, PATHS[0], max_tokens=7)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0]["delta"]["content"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 7


@needs_sender
def test_reset_forgets_and_a_broken_stream_is_counted(paced: Sender) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", paced.port, timeout=60)
    ask(connection, PATHS[2])
    paced.reset()
    assert paced.truth()["tokens"] == 0
    connection.request("POST", PATHS[0], json.dumps({"max_tokens": 100_000}))
    connection.getresponse().read(1)
    connection.close()
    while not paced.truth()["aborted"]:
        pass
    truth = paced.truth()
    assert (truth["started"], truth["finished"], truth["aborted"]) == (1, 0, 1)


@needs_sender
@pytest.mark.parametrize("arguments", [["--jitter", "2"], ["--tokens", "x"], ["--nonsense", "1"], ["--port"]])
def test_bad_arguments_get_one_sentence(arguments: list[str]) -> None:
    done = subprocess.run([sender.build(), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("paced_sender: ")
    assert done.stderr.count("\n") == 1


@needs_sender
def test_sender_refuses_what_it_does_not_know_and_ends_on_sigterm() -> None:
    process = subprocess.Popen([sender.build()], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=60)
        for method, path, body, status in (
            ("GET", "/nothing", None, 404),
            ("POST", "/v1/chat/completionsX", "{}", 404),
            ("POST", "/v1/chat/completions", '{"max_tokens": 0}', 400),
        ):
            connection.request(method, path, body)
            response = connection.getresponse()
            assert response.status == status
            assert "error" in json.loads(response.read())
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()


@needs_sender
def test_the_sender_ends_with_who_started_it() -> None:
    """Its pipe is read to the end once both are gone."""
    start = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    command = [sys.executable, "-c", start, str(sender.build())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert int(first.stdout.readline()) > 0
        first.kill()
        assert first.communicate(timeout=60)[0] == ""


@needs_sender
@pytest.mark.parametrize("client", ["tokenswarm", "tokenswarm-python", "locust", "aiohttp", "epoll"])
def test_clients_receive_what_was_sent(client: str) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("bench needs two cores")
    done = run(client, Pace(tokens=TOKENS), 50, 2.0)
    assert done.result["errors"] == 0
    assert done.result["events"] == done.truth["tokens"] > 0
    assert done.result["requests"] == done.truth["finished"] >= 50
    assert done.exact
    assert done.result["ttft_ns"]["n"] == done.truth["ttft_ns"]["n"]
    # Nobody sees a token before it is sent; how much later is what the bench measures, and not for a test to say.
    assert 0.9 < done.result["ttft_ns"]["p50"] / done.truth["ttft_ns"]["p50"] < 10


@needs_sender
def test_single_stamps_are_compared_with_the_time_that_each_token_carries() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("bench needs two cores")
    done = run("tokenswarm", Pace(tokens=TOKENS), 20, 1.0, "--stamps")
    assert done.result["error_ns"]["n"] == done.truth["tokens"]
    assert 0 < done.result["error_ns"]["p50"] < done.truth["itl_ns"]["p50"]


def test_a_section_that_is_made_by_itself_takes_its_own_place_and_survives_the_others() -> None:
    text = with_section(with_section("# Title\n\n## Truth\n\na\n", "## Searches\n\nold\n"), "## Arrivals at 5\n\nb\n")
    text = with_section(text, "## Searches\n\nnew\n")
    assert text == "# Title\n\n## Truth\n\na\n\n## Searches\n\nnew\n\n## Arrivals at 5\n\nb\n"
    assert own_sections(text) == "## Searches\n\nnew\n\n## Arrivals at 5\n\nb\n"


# -- the report, from made-up rounds ------------------------------------------------------------------------------


def made_up(client: str, streams: int, *, off_ns: int = 0, late_ns: int = 1000, cpu_s: float = 0.1) -> Run:
    names = ("p50", "p90", "p99", "p999", "max")
    times = dict.fromkeys(names, 100_000_000)
    truth = {
        "tokens": 10,
        "finished": 1,
        "ttft_ns": times,
        "itl_ns": times,
        "lateness_ns": dict.fromkeys(names, late_ns),
    }
    truth["send_ns"] = dict.fromkeys(names, 5_000)
    seen = dict.fromkeys(names, 100_000_000 + off_ns)
    result = {"events": 10, "requests": 1, "errors": 0, "wall_s": 1.0, "waited_s": 0.0, "ttft_ns": seen, "itl_ns": seen}
    result["window"] = {"s": 1.0, "cpu_s": cpu_s, "system_s": cpu_s / 4, "events": 10_000}
    return Run(client, streams, result, truth, 0.0)


def accuracy_of(ours: Run) -> list[Run]:
    return [ours, *(made_up(client, ours.streams) for client in CLIENTS[1:])]


def test_report_says_met_and_missed() -> None:
    kept = render(QUICK, {"accuracy": accuracy_of(made_up("tokenswarm", 400))}, [], 1.0)
    assert "| tokenswarm | TTFT | 0.00 | 0.00 | yes / yes | 1 of 1 |" in kept
    missed = {"accuracy": accuracy_of(made_up("tokenswarm", 400, off_ns=-2_000_000))}
    assert "| tokenswarm | TTFT | -2.00 | -2.00 | **no** / **no** | 1 of 1 |" in render(QUICK, missed, [], 1.0)
    assert missed_at(missed) == [400]


def test_report_does_not_believe_a_late_sender() -> None:
    late = {"accuracy": accuracy_of(made_up("tokenswarm", 400, late_ns=1_100_000))}
    text = render(QUICK, late, [], 1.0)
    assert "| tokenswarm | TTFT | 0.00 | 0.00 | not usable / not usable | 0 of 1 |" in text
    assert "1.10 / 1.10 / 1.10" in text


def test_report_gives_ratios_of_the_same_round() -> None:
    rounds = accuracy_of(made_up("tokenswarm", 400, cpu_s=0.25))
    text = render(QUICK, {"accuracy": rounds}, [], 1.0)
    assert "| tokenswarm | 10000 | 25 | 25.0 | 6.2 | 2.50 | **no** | 1 of 1 |" in text
    assert "| aiohttp | 10000 | 10 | 10.0 | 2.5 | 1.00 | – |" in text
    text = render(QUICK, {"accuracy": accuracy_of(made_up("tokenswarm", 400, cpu_s=0.11))}, [], 1.0)
    assert "| tokenswarm | 10000 | 11 | 11.0 | 2.8 | 1.10 | yes | 1 of 1 |" in text


def test_more_instructions_an_event_than_were_written_down_are_told() -> None:
    held = runpy.run_path(str(REPO / "tests" / "native" / "instructions.py"))["held"]
    written = {"native": 20_000, "python": 80_000}
    assert held({"native": 20_999, "python": 60_000}, written) == {}
    assert held({"native": 21_001, "python": 83_999}, written) == {
        "native": "the native reader takes 21001 instructions an event, more than 20000 + 5 %"
    }
    assert held({"native, ollama chat": 21_001}, {"native, ollama chat": 20_000}) == {
        "native, ollama chat": "the native reader takes 21001 instructions an event of ollama chat, "
        "more than 20000 + 5 %"
    }


def test_without_clang_fuzzing_says_so_in_one_line_and_is_no_failure() -> None:
    script = REPO / "tests" / "native" / "fuzz.py"
    done = subprocess.run(
        [sys.executable, script], env={"PATH": "/nowhere"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "check-native: no fuzzing by coverage, there is no clang\n"


def test_the_least_of_some_counts_is_held_and_one_that_is_enough_is_the_last() -> None:
    least = runpy.run_path(str(REPO / "tests" / "native" / "instructions.py"))["least"]
    counts = iter([23_000.4, 22_900.0, 23_100.0, 1.0])
    assert least(lambda: next(counts), 22_800.0) == 22_900
    assert next(counts) == 1.0
    counts = iter([23_000.0, 22_700.4, 1.0])
    assert least(lambda: next(counts), 22_800.0) == 22_700
    assert next(counts) == 1.0


def test_report_gives_instructions_or_says_that_there_are_none() -> None:
    text = render(QUICK, {"instructions": {"tokenswarm": 21_000.4, "tokenswarm-python": 84_000.0}}, [], 1.0)
    assert "| tokenswarm | 21000 | 0.25 | yes |" in text
    assert "Not counted" in render(QUICK, {"instructions": {}}, [], 1.0)


def test_cpu_of_a_disturbed_round_does_not_count() -> None:
    cheap = made_up("tokenswarm", 400, cpu_s=0.01)
    cheap.result["waited_s"] = 0.5
    text = render(QUICK, {"accuracy": accuracy_of(cheap)}, [], 1.0)
    assert "| tokenswarm | 10000 | 1 | 1.0 | 0.2 | 0.10 | not usable | 0 of 1 |" in text


def test_report_names_lost_events() -> None:
    lossy = made_up("tokenswarm", 400)
    lossy.result["events"] = 9
    assert "tokenswarm at 400" in render(QUICK, {"accuracy": accuracy_of(lossy)}, [], 1.0)


def test_capacity_is_not_held_against_the_client_where_the_sender_gave_up() -> None:
    held, broke = made_up("tokenswarm", 1000), made_up("tokenswarm", 1100, off_ns=5_000_000, late_ns=9_000_000)
    text = render(QUICK, {"capacity": {"tokenswarm": Climb(held, broke, sender_limited=True)}}, [], 1.0)
    assert "not usable: the sender's limit" in text
    text = render(QUICK, {"capacity": {"tokenswarm": Climb(held, broke, sender_limited=False)}}, [], 1.0)
    assert "**no**" in text


def test_goals() -> None:
    assert spread([]) is None
    assert met(None, 1.0) == "not usable"
    assert met(Spread(1.0, 0.5, 1.0), 1.0) == "yes"
    assert met(Spread(0.9, 0.5, 1.1), 1.0) == "yes, not in each round"
    assert met(Spread(1.1, 0.5, 1.2), 1.0) == "**no**"
    assert met(Spread(60.0, 55.0, 70.0), 50.0, at_least=True) == "yes"
    assert met(Spread(math.nan, math.nan, math.nan), 1.0) == "**no**"


def test_the_section_on_comparisons_says_what_was_found() -> None:
    equal, slower = (comparison.simulated(5, 5, share, times=60) for share in (0.0, 0.1))
    assert equal.worse <= 0.05
    assert slower.worse >= 0.9
    words = ["worse"] * 9 + ["can't tell"]
    costs = comparison.Cost([0.7, 0.8, 0.9], [0.02], rows=100_000, runs=10)
    said = comparison.section([equal, slower], words, costs, 10, 60.0)
    assert said.startswith(comparison.HEAD)
    assert comparison.HEAD.startswith(OWN), "it is kept where the other sections are written anew"
    assert "9 of 10: yes." in said
    assert "0.80 (0.70..0.90) s" in said
