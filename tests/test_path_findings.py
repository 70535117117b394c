"""What pairs of answers come to, without a clock or a socket: each finding by its sign, and none without one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenswarm.commands.path_looks import confirmed
from tokenswarm.engines import Usage
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.judge import path as judge
from tokenswarm.judge.path import Answer, Pair
from tokenswarm.measure.captured import Captured, Seen, seen
from tokenswarm.record import Outcome
from tokenswarm.result.path import WORDS, Finding, Level, Side

MS = 1_000_000
CHAT = DIALECTS["openai", "chat"]


def said(**more: Any) -> Seen:
    fields: dict[str, Any] = {
        "outcome": Outcome.OK, "sentence": "", "stamps_ns": tuple(range(MS, 9 * MS, MS)), "first_event_ns": MS,
        "text": "a tale of eight words", "finish": "length", "done": True,
        "usage": Usage(prompt_tokens=3, output_tokens=8),
        "ids": ("chatcmpl-0123",), "models": ("sim",), "keys": frozenset({"id", "model", "choices"}), "packed": False,
    }  # fmt: skip
    return Seen(**{**fields, **more})


def answer(
    came: dict[str, Any] | None = None, rows: int = 1, asked: str = "HTTP/1.1 usage ignore_eos", **more: Any
) -> Answer:
    captured = Captured(
        **{"end": "whole", "status": 200, "sent_ns": 1, "head_ns": 3, "done_ns": 9 * MS, **(came or {})}
    )
    row = {"asked": asked, "received_mono_ns": 2}
    return Answer(captured, said(**more), tuple(row for _ in range(rows)))


def codes(via: Answer, fault: str = "", direct: Answer | None = None) -> dict[str, str]:
    pair = Pair(fault, direct or answer(), via)
    return {one.code: one.word for one in (judge.faults if fault else judge.altered)(pair)}


ALTERED: dict[str, tuple[Answer, dict[str, str]]] = {
    "the same": (answer(), {}),
    "other ids of the same kind": (answer(ids=("chatcmpl-9999",)), {}),
    "no answer": (answer(outcome=Outcome.RESET, sentence="gone"), {"answers-lost": "loses"}),
    "a word less": (answer(text="a tale of words"), {"tokens-lost": "loses"}),
    "another order": (answer(text="a tale of words eight"), {"tokens-reordered": "loses"}),
    "another text": (answer(text="a tale of eight wordz"), {"text-altered": "loses"}),
    "no usage": (answer(usage=None), {"usage-dropped": "alters"}),
    "own usage": (answer(usage=Usage(prompt_tokens=3, output_tokens=11)), {"usage-changed": "alters"}),
    "no end": (answer(done=False), {"done-dropped": "alters"}),
    "another finish": (answer(finish="stop"), {"finish-changed": "alters"}),
    "another model": (answer(models=("vllm/sim",)), {"model-changed": "alters"}),
    "own ids": (answer(ids=("gen-1",)), {"id-changed": "alters"}),
    "a field less": (answer(keys=frozenset({"id", "model"})), {"fields-dropped": "alters"}),
    "a field more": (answer(keys=frozenset({"id", "model", "choices", "provider"})), {"fields-added": "alters"}),
    "no ignore_eos": (answer(asked="HTTP/1.1 usage"), {"options-dropped": "alters"}),
    "HTTP/1.0": (answer(asked="HTTP/1.0 usage ignore_eos"), {"http-1.0": "transparent"}),
    "a head before the engine": (answer({"head_ns": 1}), {"early-head": "alters"}),
    "asked twice": (answer(rows=2), {"asked-twice": "alters"}),
}


@pytest.mark.parametrize("name", ALTERED)
def test_what_is_other_in_an_answer(name: str) -> None:
    via, wanted = ALTERED[name]
    assert codes(via) == wanted


BROKEN = answer({"end": "broken"}, outcome=Outcome.RESET, sentence="the server closed the connection")
REFUSED = answer({"status": 503, "headers": {"retry-after": "7"}}, outcome=Outcome.HTTP_5XX, sentence="HTTP 503: busy")
ERROR = answer(outcome=Outcome.ERROR_OBJECT, sentence="EngineCore encountered an issue")

FAILED: dict[str, tuple[str, Answer, Answer, dict[str, str]]] = {
    "as it was": ("reset_mid:4", BROKEN, BROKEN, {}),
    "looks whole": ("reset_mid:4", BROKEN, answer(), {"failures-hidden": "loses"}),
    "ends whole": ("killed:4", BROKEN, answer(outcome=Outcome.TRUNCATED), {"broken-ends-whole": "transparent"}),
    "refused likewise": ("http_503", REFUSED, REFUSED, {}),
    "200 and an error": ("http_503", REFUSED, answer({"headers": {"retry-after": "7"}}, outcome=Outcome.ERROR_OBJECT,
                         sentence="busy"), {"status-changed": "alters"}),
    "no Retry-After": ("http_503", REFUSED, answer({"status": 503}, outcome=Outcome.HTTP_5XX,
                       sentence="HTTP 503: busy"), {"retry-after-dropped": "alters"}),
    "tried again, in vain": ("http_503", REFUSED, answer({"status": 503, "headers": {"retry-after": "7"}}, rows=3,
                             outcome=Outcome.HTTP_5XX, sentence="HTTP 503: busy"), {"retries": "alters"}),
    "tried again, with luck": ("http_503", REFUSED, answer(rows=2), {"retries": "alters"}),
    "other words": ("error_mid:4", ERROR, answer(outcome=Outcome.ERROR_OBJECT, sentence="Internal server error"),
                    {"error-text-lost": "alters"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILED)
def test_what_became_of_a_failure(name: str) -> None:
    fault, direct, via, wanted = FAILED[name]
    assert codes(via, fault, direct) == wanted


def level(streams: int = 1, direct: dict[str, Any] | None = None, **via: Any) -> dict[str, str]:
    good = {"ok": 8, "added_ttft_s": 0.001, "added_e2e_s": 0.001, "gap_p50_s": 0.02, "merged_ratio": 0.0}
    sides = Side(**{**good, **(direct or {})}), Side(**{**good, **via})
    found = judge.of_level(Level(streams=streams, answers=8, direct=sides[0], via=sides[1]), 0.1)
    return {one.code: one.word for one in found}


def test_what_a_level_adds() -> None:
    assert level() == level(added_ttft_s=0.009) == level(16, added_ttft_s=0.04) == level(merged_ratio=0.15) == {}
    assert level(added_ttft_s=0.3, merged_ratio=0.9) == {"tokens-held-back": "delays"}
    assert level(added_ttft_s=0.03, added_e2e_s=0.03) == level(16, added_ttft_s=0.2) == {"first-token-late": "delays"}
    assert level(merged_ratio=0.5) == {"tokens-merged": "delays"}
    assert level(ok=6) == {"answers-lost": "loses"}


def test_a_machine_that_is_too_busy_judges_no_delay() -> None:
    assert level(direct={"merged_ratio": 0.4}, merged_ratio=0.95, added_ttft_s=0.3) == {"tokens-held-back": "delays"}
    assert level(direct={"merged_ratio": 0.4}, merged_ratio=0.7) == {"machine-busy": "transparent"}
    assert level(direct={"added_ttft_s": 0.1}, added_ttft_s=0.18) == {}
    assert level(direct={"merged_ratio": 0.4}, ok=7) == {"answers-lost": "loses", "machine-busy": "transparent"}


def rounds(*sides: tuple[float, float, float, float]) -> dict[str, str]:
    """Of each: ms that the first token is late past the path and through it, and the share of merged tokens."""
    levels = [
        Level(
            streams=16,
            answers=8,
            direct=Side(ok=8, added_ttft_s=own / 1e3, merged_ratio=mine),
            via=Side(ok=8, added_ttft_s=late / 1e3, merged_ratio=theirs),
        )
        for own, late, mine, theirs in sides
    ]
    return {one.code: one.word for one in judge.confirmed(levels, 0.1)}


BUSY = {"machine-busy": "transparent"}


def test_a_delay_must_show_in_each_round_and_beyond_what_the_machine_does_itself() -> None:
    assert rounds((1, 340, 0, 0.96), (2, 350, 0.02, 0.96), (26, 420, 0.04, 0.96)) == {"tokens-held-back": "delays"}
    assert rounds((1, 108, 0, 0), (2, 110, 0, 0), (1, 112, 0, 0)) == {"first-token-late": "delays"}
    assert rounds((1, 2, 0, 0.6), (2, 3, 0, 0.6), (1, 2, 0, 0.6)) == {"tokens-merged": "delays"}
    assert rounds((1, 108, 0, 0), (2, 10, 0, 0), (1, 112, 0, 0)) == BUSY, "not in each round"
    assert rounds((1, 2, 0, 0), (2, 10, 0, 0), (1, 12, 0, 0)) == {}, "in none"
    assert rounds((1, 108, 0, 0), (90, 110, 0, 0), (1, 112, 0, 0)) == {}, "the next round past it was as slow"
    assert rounds((1, 108, 0, 0), (2, 110, 0, 0), (70, 112, 0, 0)) == {}, "rounds past it lie too far apart"
    assert rounds((1, 108, 0.3, 0.5), (2, 110, 0, 0), (1, 112, 0, 0)) == BUSY, "a burst past it, too"
    assert rounds((9, 408, 0.3, 0.96), (9, 410, 0.3, 0.96), (9, 412, 0.3, 0.96)) == {"tokens-held-back": "delays"}


def test_what_is_lost_twice_is_lost_however_it_is_called() -> None:
    def of(after_s: float) -> list[Finding]:
        came = {"end": "broken", "sent_ns": 0, "done_ns": int(after_s * 1e9)}
        return judge.of_silence("silent", 5, answer(came, outcome=Outcome.RESET, sentence="gone"))

    held = [Finding(code="gzip-holds-back", word="delays", message="")]
    assert [one.code for one in confirmed(of(0.9), of(1.1))] == ["time-out"]
    assert confirmed(held, of(1.1)) == confirmed([], held) == []


def test_what_ended_before_it_was_silent_was_not_cut_for_silence() -> None:
    def cut(after_s: float) -> list[str]:
        came = {"end": "broken", "sent_ns": 0, "done_ns": int(after_s * 1e9)}
        return [one.code for one in judge.of_silence("silent", 5, answer(came, outcome=Outcome.RESET, sentence="gone"))]

    assert (cut(0.1), cut(2.0), cut(4.8)) == (["answers-lost"], ["time-out"], ["time-out"])


def test_the_verdict_is_the_worst_and_each_code_stands_once() -> None:
    found = [judge._finding(f"c{n}", word, "x") for n, word in enumerate(WORDS)]
    assert [judge.verdict(found[: n + 1]) for n in range(4)] == list(WORDS)
    assert judge.verdict([]) == "transparent"
    assert [one.word for one in judge.distinct([*found, *found])] == list(reversed(WORDS))


def test_a_captured_stream_is_read_as_the_client_reads_it() -> None:
    def event(text: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        return b"data: " + json.dumps({"id": "i", "model": "m", "choices": [choice]}).encode() + b"\n\n"

    last = event("c", "stop")
    reads = ((10, event("a") + event("b")), (20, last[:30]), (30, last[30:] + b"data: [DONE]\n\n"))
    found = seen(Captured(end="whole", status=200, sent_ns=1, done_ns=30, reads=reads), CHAT)
    assert (found.outcome, found.text, found.stamps_ns, found.done, found.ids, found.models) == (
        Outcome.OK, "abc", (10, 10, 30), True, ("i",), ("m",),
    )  # fmt: skip
    assert found.keys == {"id", "model", "choices"}
    assert found.merged_ratio == 0.5
    cut = seen(Captured(end="broken", said="gone", status=200, reads=reads[:1]), CHAT)
    assert (cut.outcome, cut.sentence) == (Outcome.RESET, "gone")
    refused = seen(Captured(end="whole", status=429, reads=((1, b'{"error":{"message":"slow down"}}'),)), CHAT)
    assert (refused.outcome, refused.sentence) == (Outcome.RATE_LIMITED, "HTTP 429: slow down")
    assert seen(Captured(end="none", said="refused"), CHAT).outcome is Outcome.CONNECT
