"""A server that reads less than it was sent is noticed by its own counts; one that reads all of it never is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import sample_runs
from running import SAMPLES, run, tokenswarm
from simulator_process import simulator

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.judge.verdict import judge
from tokenswarm.measure.prompt_cut import PromptWatch
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.snapshot import Inbox, decode_merged, encode
from tokenswarm.profile.engine import Engine
from tokenswarm.record import Outcome, RequestRecord
from tokenswarm.result.summary import Doubt, summarize

Server = Callable[[list[int]], tuple[int, int | None]]
"""Tokens of each message -> (prompt tokens, cached tokens) that it says."""


def doubts_of(records: list[RequestRecord], kind: str = "openai") -> dict[str, Doubt]:
    recorder = Recorder(sample_runs.RUN_ID, 0, start_ns=0)
    recorder.open_window(0, 0)
    for record in records:
        recorder.add(record)
    recorder.close_window(0, 100 * NS_PER_S)
    inbox = Inbox(sample_runs.RUN_ID)
    inbox.put(recorder.snapshot(100 * NS_PER_S, final=True))
    merged = decode_merged(encode(inbox.merged()))
    profile = sample_runs.profile(engine=Engine(kind=kind, api="chat", model="m"))  # type: ignore[arg-type]
    evidence = Evidence(merged=merged, expected_workers=1, profile=profile)
    return {doubt.code: doubt for doubt in judge(evidence, summarize(merged)).doubts}


def words(draw: random.Random, tokens: int, per_byte: float) -> int:
    """Bytes of a text of so many tokens."""
    return max(1, round(tokens / (per_byte * draw.lognormvariate(0.0, 0.08))))


def talk(
    server: Server,
    seed: int = 1,
    *,
    conversations: int = 60,
    turns: int = 5,
    per_byte: float = 0.23,
    longest: int = 900,
) -> Iterator[tuple[RequestRecord, bool]]:
    """Conversations of random lengths, and of each request whether the server left something of it out."""
    draw = random.Random(seed)
    for number in range(conversations):
        messages: list[int] = []
        nbytes = 0
        rate = per_byte * draw.choice((0.85, 1.0, 1.0, 1.0, 1.6))  # prose, code, Chinese
        for turn in range(turns):
            tokens = min(longest, max(3, round(draw.lognormvariate(4.0, 1.2))))
            messages.append(tokens)
            nbytes += words(draw, tokens, rate)
            said, cached = server(messages)
            answer = draw.randrange(8, 200)
            record = sample_runs.request(
                turn, 0, conversation=f"c{number}", turn=turn, prompt_tokens=said, cached_tokens=cached,
                prompt_bytes=nbytes, output_tokens=answer,
            )  # fmt: skip
            yield record, (said or 0) + (cached or 0) < sum(messages)
            messages.append(answer)
            nbytes += words(draw, answer, rate)


def whole(messages: list[int]) -> tuple[int, int | None]:
    return sum(messages) + 4 * len(messages) + 3, None


def with_a_system_prompt(messages: list[int]) -> tuple[int, int | None]:
    return sum(messages) + 30 + 5 * len(messages), None


def cached_inside(messages: list[int]) -> tuple[int, int | None]:
    total, _ = whole(messages)
    return total, sum(messages[:-2]) // 16 * 16


def cached_beside(messages: list[int]) -> tuple[int, int | None]:
    total, _ = whole(messages)
    cached = sum(messages[:-1]) // 16 * 16
    return total - cached, cached


def cached_left_out(messages: list[int]) -> tuple[int, int | None]:
    total, _ = whole(messages)
    return max(1, total - (sum(messages[:-2]) + 4 * len(messages[:-2])) // 16 * 16), None


@pytest.mark.parametrize("server", [whole, with_a_system_prompt, cached_inside, cached_beside, cached_left_out])
def test_100_clean_runs_raise_no_alarm(server: Server) -> None:
    for seed in range(20):  # five servers of 20 seeds
        watch = PromptWatch()
        records = [
            msgspec.structs.replace(record, prompt_needed=watch.needed(record)) for record, _ in talk(server, seed)
        ]
        assert not [record for record in records if record.prompt_needed] or server is cached_left_out
        assert "prompt-cut" not in doubts_of(records)


@pytest.mark.parametrize("kind", ["constant 10", "constant 1000", "nothing", "zero"])
def test_a_count_that_is_none_raises_no_alarm(kind: str) -> None:
    said = {"constant 10": 10, "constant 1000": 1000, "nothing": None, "zero": 0}[kind]
    watch = PromptWatch()
    found = [watch.needed(record) for record, _ in talk(lambda _: (said, None), longest=200, turns=1)]  # type: ignore[arg-type,return-value]
    assert kind == "constant 1000" or not any(found)


def drops_oldest(limit: int) -> Server:
    def server(messages: list[int]) -> tuple[int, int | None]:
        kept = list(messages)
        while len(kept) > 1 and whole(kept)[0] > limit:
            kept = kept[1:]
        total = whole(kept)[0]
        return (total if total <= limit else limit // 2 + 2), None

    return server


@pytest.mark.parametrize("limit", [256, 512, 1024])
@pytest.mark.parametrize("counts_cached", [True, False])
def test_a_conversation_that_shrinks_is_cut(limit: int, counts_cached: bool) -> None:
    watch = PromptWatch(counts_cached=counts_cached)
    seen = [(watch.needed(record), cut, record) for record, cut in talk(drops_oldest(limit))]
    assert not [record for needed, cut, record in seen if needed and not cut]
    found = sum(needed > 0 for needed, _, _ in seen)
    cuts = sum(cut for _, cut, _ in seen)
    assert found > 0.2 * cuts, (found, cuts)
    assert all(needed > limit for needed, _, _ in seen if needed)


def test_the_conversation_of_two_turns_that_was_seen_on_a_real_server() -> None:
    """118 tokens and 128 answered; then 63."""
    first = sample_runs.request(0, 0, turn=0, prompt_tokens=118, prompt_bytes=500, conversation="c")
    second = sample_runs.request(1, 0, turn=1, prompt_tokens=63, prompt_bytes=1150, conversation="c")
    watch = PromptWatch()
    assert watch.needed(first) == 0
    assert watch.needed(second) > 246


def test_one_long_message_is_half_its_context() -> None:
    """Turns of one message: nothing shrinks, but the text needs more."""
    watch = PromptWatch()
    seen = [(watch.needed(r), cut, r) for r, cut in talk(drops_oldest(400), turns=1, conversations=400, longest=4000)]
    assert not [record for needed, cut, record in seen if needed and not cut]
    far = [needed for needed, _, record in seen[40:] if record.prompt_bytes * 0.23 > 900]
    assert sum(needed > 0 for needed in far) >= 0.6 * len(far) >= 1


def test_the_same_count_for_all_lengths_gives_it_away_even_if_most_are_cut() -> None:
    watch = PromptWatch()
    found = 0
    for number in range(60):
        record = sample_runs.request(
            number, 0, prompt_tokens=1026, prompt_bytes=6000 + 400 * number, conversation=f"c{number}", turn=0
        )
        found += watch.needed(record) > 0
    assert found > 30


def test_failed_requests_and_repeats_of_a_conversation_say_nothing() -> None:
    watch = PromptWatch()
    lines = [(0, 300, 1200), (1, 500, 2000), (0, 300, 1200), (1, 500, 2000), (3, 100, 2500)]
    for turn, tokens, nbytes in lines:
        record = sample_runs.request(0, 0, turn=turn, prompt_tokens=tokens, prompt_bytes=nbytes, conversation="c")
        assert watch.needed(record) == 0
    failed = sample_runs.failure(
        0, 0, Outcome.RESET, "reset", turn=4, prompt_tokens=9, prompt_bytes=4000, conversation="c"
    )
    assert watch.needed(failed) == 0


def test_a_prompt_that_was_read_whole_before_is_in_a_cache_and_not_cut() -> None:
    """The second round of a data set, at a server that leaves cached tokens out of its count."""
    watch = PromptWatch()
    for cached in (False, True):
        for number in range(100):
            tokens = 200 + 10 * number
            record = sample_runs.request(
                number, 0, prompt_tokens=tokens // 5 if cached else tokens, prompt_bytes=4 * tokens, turn=0,
                conversation=f"c{number}",
            )  # fmt: skip
            assert watch.needed(record) == 0


def test_memory_is_bounded() -> None:
    watch = PromptWatch()
    for number in range(20_000):
        watch.needed(sample_runs.request(
            number, 0, prompt_tokens=number + 1, prompt_bytes=4 * number + 40, conversation=f"c{number}"
        ))  # fmt: skip
    assert len(watch._turns) <= 4096
    assert len(watch._values) <= 256


PROFILE = """
target: http://127.0.0.1:1
engine: {kind: %s, api: %s}
dataset: {path: %s, output_tokens: {max: 24}}
load: {stages: [{users: 6, duration: 4s}]}
phases: {warmup: 0s, drain: 10s}
"""


@pytest.mark.parametrize(("kind", "api"), [("openai", "chat"), ("ollama", "chat")])
@pytest.mark.parametrize("cut", [True, False])
def test_a_real_run_says_so_and_marks_the_requests(kind: str, api: str, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(PROFILE % (kind, api, SAMPLES / "sharegpt.json"), encoding="utf-8")
    faults = ("--fault", "prompt_cut:1:120") if cut else ()
    with simulator("--preset", "paced", "--ttft-ms", "5", "--itl-ms", "2", *faults) as server:
        finished = run(tokenswarm("run", str(path), "--host", server.url, "--workers", "1"), tmp_path)
    marked = [row for row in finished.rows if row["prompt_cut"]]
    assert bool(marked) == cut
    assert ("prompt-cut" in finished.doubts()) == cut
    assert all(row["prompt_tokens"] <= 120 for row in marked)
    if cut:
        (doubt,) = (doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == "prompt-cut")
        assert 0 < doubt["evidence"]["cut"] <= len(marked)
        assert ("num_ctx" in doubt["message"]) == (kind == "ollama")
