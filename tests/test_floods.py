"""A target that refuses is not flooded: users step back, think time holds, a load that only fails ends by itself."""

from __future__ import annotations

import email.utils
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Finished, run, tokenswarm
from small_server import GOOD, MODELS, Answer, Asked, Backend, backend, refusal, routes

from tokenswarm.cluster.patience import FirstAnswers, StepBack, hopeless, retry_after_s
from tokenswarm.measure.snapshot import Block, Instrument, Merged, WorkerState
from tokenswarm.profile.load import AbortOnFail
from tokenswarm.record import Outcome, RequestRecord

BUSY = refusal(503, {"error": "server busy, please try again"})
PROFILE = """
target: http://127.0.0.1:9
engine: {probe: false}
dataset: {format: synthetic}
load: {stages: [{users: %d, duration: %s}], think_time: %s}
phases: {warmup: 0s, drain: 1s}
telemetry: {engine_metrics: off}
"""


def ended(outcome: Outcome, took_s: float = 0.0, retry_after: str = "") -> RequestRecord:
    return RequestRecord(
        "r", outcome, 0, "steady", intended_ns=1, done_ns=1 + int(took_s * 1e9), retry_after=retry_after
    )


# -- one user ------------------------------------------------------------------------------------------------------

REFUSALS = sorted({Outcome(name) for name in Outcome} - {Outcome.OK, Outcome.CANCELLED, Outcome.CENSORED})


@pytest.mark.parametrize("outcome", REFUSALS)
def test_each_failure_in_a_row_doubles_the_step_back_and_a_success_ends_it(outcome: Outcome) -> None:
    user = StepBack(0.0, "1 0 1")
    waits = [user.after(ended(outcome)) for _ in range(9)]

    bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True)), waits
    assert user.after(ended(Outcome.OK)) == 0.0
    assert user.after(ended(outcome)) <= 0.1


def test_the_step_back_is_drawn_by_the_seed() -> None:
    draws = [
        [StepBack(0.0, seed).after(ended(Outcome.RESET)) for _ in range(3)] for seed in ("1 0 1", "1 0 1", "1 0 2")
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_think_time_holds_after_a_failure() -> None:
    user = StepBack(1.0, "1 0 1")
    assert user.after(ended(Outcome.OK)) == 1.0
    assert user.after(ended(Outcome.HTTP_5XX)) == 1.0


def test_a_failure_that_took_its_time_needs_no_step_back() -> None:
    assert StepBack(0.0, "1").after(ended(Outcome.STALLED, took_s=60)) == 0.0
    assert 0.0 < StepBack(0.0, "1").after(ended(Outcome.HTTP_5XX, took_s=0.01)) <= 0.09


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.CENSORED])
def test_what_we_cut_off_ourselves_is_no_failure(outcome: Outcome) -> None:
    assert StepBack(0.0, "1").after(ended(outcome)) == 0.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3), (" 1.5 ", 1.5), ("3600", 30), ("", 0), ("soon", 0), ("-5", 0), ("1e9", 0), ("٣", 0), ("9" * 40, 30)],
)
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after_s(header) == seconds
    assert StepBack(0.0, "1").after(ended(Outcome.RATE_LIMITED, retry_after=header)) >= seconds


def test_retry_after_as_a_date() -> None:
    assert 5 < retry_after_s(email.utils.formatdate(time.time() + 10, usegmt=True)) <= 10
    assert retry_after_s(email.utils.formatdate(time.time() - 10, usegmt=True)) == 0


# -- the whole load ------------------------------------------------------------------------------------------------


def test_first_answers_are_those_that_were_sent_first() -> None:
    first = FirstAnswers(4)
    seen = []
    for number in (2, 1, 3, 0, 4, 5):
        first.ended(number, ended(Outcome.HTTP_5XX))
        seen.append(first.failed)
    assert seen == [0, 0, 0, 4, 4, 4]


def test_one_that_runs_or_succeeds_holds_the_row() -> None:
    first = FirstAnswers(100)
    for number in range(50):
        first.ended(number, ended(Outcome.OK if number == 7 else Outcome.RATE_LIMITED))
    assert first.failed == 7


def merged(ok: int, failed: int, *first_failed: int) -> Merged:
    block = Block(stage=0, phase="steady", ok=ok, failed=failed, by_error={"http 503": failed})
    block.error_says = {"http 503": "HTTP 503: busy"}
    states = [
        WorkerState(
            worker=number, host="h", pid=1, seq=1, final=False, missing=[], sent_ns=0, elapsed_ns=0, in_flight=0,
            decoding=0, users=1, live_output_tokens=0, wraps=0, first_failed=n, instrument=Instrument(),
        )
        for number, n in enumerate(first_failed)
    ]  # fmt: skip
    return Merged(run_id="r", blocks=[block], workers=states)


@pytest.mark.parametrize(
    ("rule", "state", "ends"),
    [
        (AbortOnFail(), merged(0, 50, 25, 25), True),
        (AbortOnFail(), merged(0, 900, 25, 24), False),  # 49 in a row: one of the first still runs
        (AbortOnFail(), merged(1, 900, 50, 50), False),
        (AbortOnFail(after=0), merged(0, 900, 0, 0), False),
        (AbortOnFail(after=3), merged(0, 3, 3), True),
        (AbortOnFail(after=100, ratio=0.5), merged(50, 50, 0), True),
        (AbortOnFail(after=100, ratio=0.5), merged(51, 50, 0), False),
        (AbortOnFail(after=100, ratio=0.5), merged(0, 99, 50), False),
    ],
)
def test_when_a_load_is_hopeless(rule: AbortOnFail, state: Merged, ends: bool) -> None:
    sentence = hopeless(rule, state)
    assert bool(sentence) == ends
    assert not ends or "so the load was ended; most of them: HTTP 503: busy" in sentence


# -- whole runs ----------------------------------------------------------------------------------------------------


def go(home: Path, server: Backend, users: int, duration: str, think: str, *more: str) -> Finished:
    (home / "p.yaml").write_text(PROFILE % (users, duration, think), encoding="utf-8")
    return run(tokenswarm("run", "p.yaml", "--host", server.url, *more), home, 60)


def serve(answer: Answer | Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    return routes({"/v1/models": MODELS, "/v1/chat/completions": answer})


def test_two_users_who_think_a_second_send_no_flood(tmp_path: Path) -> None:
    with backend(serve(BUSY)) as server:
        finished = go(tmp_path, server, 2, "3s", "1s")
        sent = len(server.posts())

    assert finished.code == 11, finished.out
    assert 2 <= sent <= 8
    assert finished.summary["requests"]["sent"] == sent
    assert "aborted" not in finished.doubts()


def test_retry_after_is_respected_between_two_prompts_of_a_user(tmp_path: Path) -> None:
    with backend(serve(refusal(429, {"error": "busy"}, retry_after="1"))) as server:
        go(tmp_path, server, 1, "3s", "0s")
        at = [one.at_s for one in server.posts()]

    assert len(at) >= 2
    assert all(b - a >= 0.99 for a, b in itertools.pairwise(at))


def test_a_load_of_failures_ends_by_itself_in_the_servers_words(tmp_path: Path) -> None:
    with backend(serve(BUSY)) as server:
        finished = go(tmp_path, server, 16, "300s", "0s")
        sent = len(server.posts())

    assert finished.code == 11, finished.out
    assert 50 <= sent <= 200
    said = "The first 50 requests all failed, so the load was ended; most of them: HTTP 503: server busy"
    assert said in " ".join(finished.out.split())
    [doubt] = [one for one in finished.summary["verdict"]["doubts"] if one["code"] == "aborted"]
    assert (doubt["severity"], doubt["evidence"]) == ("invalid", {"failed": sent, "ok": 0})
    assert finished.summary["partial"] is True
    assert finished.summary["requests"]["sent"] == sent


def test_a_share_of_failures_can_end_it(tmp_path: Path) -> None:
    turns = itertools.count()
    answer: Callable[[Asked], Answer] = lambda _: BUSY if next(turns) % 4 else GOOD  # noqa: E731
    with backend(serve(answer)) as server:
        finished = go(tmp_path, server, 8, "300s", "50ms", "--set", "load.abort_on_fail={after: 20, ratio: 0.5}")

    assert finished.code == 11, finished.out
    assert "(`load.abort_on_fail.ratio` is 0.5), so the load was ended" in " ".join(finished.out.split())
