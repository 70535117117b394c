"""The prompts of one conversation: history, template, lengths."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tokenswarm.profile.dataset import Dataset, OutputTokens
from tokenswarm.prompts import Conversation, Message, Prompt, Turn
from tokenswarm.prompts.from_profile import prompt_policy
from tokenswarm.prompts.lengths import LengthLaw
from tokenswarm.prompts.replay import OutputLength, PromptPolicy, Replay, of_round, output_tokens

TWO = Conversation("c", (Turn("q1", "a1"), Turn("q2", "a2"), Turn("q3", None)), system="s")
NONE = OutputLength(source="none")
DATASET = PromptPolicy(history="dataset", output=NONE)
MODEL = PromptPolicy(history="model", output=NONE)


def contents(prompt: Prompt | None) -> list[tuple[str, str]]:
    assert prompt is not None
    return [(message.role, message.content) for message in prompt.messages]


def walk(conversation: Conversation, policy: PromptPolicy, answers: list[str | None]) -> tuple[list[Prompt], Replay]:
    replay = Replay(conversation, policy)
    prompts = [replay.next_prompt()]
    for answer in answers:
        prompts.append(replay.next_prompt(answer))
    return [prompt for prompt in prompts if prompt is not None], replay


def test_history_from_the_data_set_is_the_same_whatever_the_model_says() -> None:
    prompts, _ = walk(TWO, DATASET, ["m1", "m2", "m3"])
    assert [contents(prompt) for prompt in prompts] == [
        [("system", "s"), ("user", "q1")],
        [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")],
        [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q3")],
    ]
    assert [(prompt.id, prompt.conversation, prompt.turn) for prompt in prompts] == [
        ("c#0", "c", 0),
        ("c#1", "c", 1),
        ("c#2", "c", 2),
    ]


def test_history_from_the_model_is_what_it_said() -> None:
    prompts, _ = walk(TWO, MODEL, ["m1", "m2", "m3"])
    assert contents(prompts[2]) == [
        ("system", "s"),
        ("user", "q1"),
        ("assistant", "m1"),
        ("user", "q2"),
        ("assistant", "m2"),
        ("user", "q3"),
    ]


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_the_other_source_stands_in(nothing: str | None) -> None:
    prompts, _ = walk(TWO, MODEL, [nothing])
    assert contents(prompts[1])[2] == ("assistant", "a1")
    bare = Conversation("c", (Turn("q1"), Turn("q2")))
    prompts, _ = walk(bare, DATASET, ["m1"])
    assert contents(prompts[1]) == [("user", "q1"), ("assistant", "m1"), ("user", "q2")]


def test_without_any_answer_the_questions_are_joined_so_that_roles_alternate() -> None:
    bare = Conversation("c", (Turn("q1"), Turn("q2"), Turn("q3")))
    prompts, _ = walk(bare, DATASET, [None, None])
    assert contents(prompts[2]) == [("user", "q1\n\nq2\n\nq3")]
    for prompt in walk(TWO, MODEL, [None, None, None])[0]:
        roles = [message.role for message in prompt.messages if message.role != "system"]
        assert all(left != right for left, right in itertools.pairwise(roles))
        assert roles[-1] == "user"


def test_a_replay_ends_after_the_last_turn() -> None:
    prompts, replay = walk(TWO, DATASET, ["x"] * 5)
    assert len(prompts) == 3
    assert replay.next_prompt("x") is None


def test_text_endpoints_get_the_template_or_the_plain_history() -> None:
    alpaca = Conversation("a", (Turn("do\n\nthis", "x"),), template="### Instruction:\ndo ... ### Response:")
    prompt = Replay(alpaca, DATASET).next_prompt()
    assert prompt is not None
    assert prompt.text == "### Instruction:\ndo ... ### Response:"
    assert prompt.messages == (Message("user", "do\n\nthis"),)
    prompts, _ = walk(TWO, DATASET, ["m"])
    assert [prompt.text for prompt in prompts] == ["s\n\nq1", "s\n\nq1\n\na1\n\nq2"]


def test_a_round_begins_in_its_own_way_wherever_the_prompt_begins() -> None:
    plain = Conversation("p", (Turn("q1", "a1"), Turn("q2", "a2")))
    assert of_round(plain, 0) is plain
    prompts, _ = walk(of_round(plain, 1), DATASET, ["m"])
    assert [contents(prompt)[0] for prompt in prompts] == [("user", "[2] q1")] * 2
    assert contents(Replay(of_round(TWO, 2), DATASET).next_prompt()) == [("system", "[3] s"), ("user", "q1")]
    text = Replay(of_round(Conversation("a", (Turn("do", "x"),), template="### do"), 1), DATASET).next_prompt()
    assert text is not None
    assert text.text == "[2] ### do"
    assert text.messages == (Message("user", "[2] do"),)


def test_a_models_answer_can_always_be_sent_back() -> None:
    prompts, _ = walk(TWO, MODEL, ["half \ud83d"])
    assert contents(prompts[1])[2] == ("assistant", "half \ufffd")


LONG = Conversation("c", (Turn("q", "x" * 400), Turn("q", "x", 77), Turn("q", None)))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (NONE, [None, None, None]),
        (OutputLength(source="dataset"), [100, 77, None]),
        (OutputLength(source="dataset", min=80, max=90), [90, 80, None]),
        (OutputLength(source="fixed", tokens=64), [64, 64, 64]),
        (OutputLength(source="fixed", tokens=64, max=32), [32, 32, 32]),
    ],
)
def test_output_lengths(output: OutputLength, expected: list[int | None]) -> None:
    assert [output_tokens(LONG, turn, output) for turn in range(3)] == expected


def test_a_tokenizer_counts_answers_and_prompts() -> None:
    replay = Replay(LONG, PromptPolicy(history="dataset", output=OutputLength(source="dataset")), count_tokens=len)
    first, second = replay.next_prompt(), replay.next_prompt()
    assert first is not None
    assert second is not None
    assert (first.output_tokens_max, first.input_tokens) == (400, 1)
    assert (second.output_tokens_max, second.input_tokens) == (77, 1 + 400 + 1)
    estimated = Replay(LONG, DATASET).next_prompt()
    assert estimated is not None
    assert estimated.input_tokens is None


def test_drawn_lengths_depend_on_the_turn_alone() -> None:
    law = LengthLaw(kind="uniform", min=10, max=1000)
    output = OutputLength(source="law", law=law, seed=3)
    drawn = [output_tokens(LONG, turn, output) for turn in (0, 1, 2)]
    assert [output_tokens(LONG, turn, output) for turn in (2, 1, 0)] == drawn[::-1]
    assert len(set(drawn)) == 3
    assert output_tokens(LONG, 0, OutputLength(source="law", law=law, seed=4)) != drawn[0]


@pytest.mark.parametrize("source", ["fixed", "law"])
def test_a_length_policy_needs_its_value(source: str) -> None:
    with pytest.raises(ValueError, match="needs its value"):
        OutputLength(source=source)  # type: ignore[arg-type]  # a plain str from the table


@pytest.mark.parametrize("source", ["dataset", "none"])
def test_without_a_length_the_bound_is_sent_and_the_answer_may_end_itself(source: str) -> None:
    """With `ignore_eos` the bound would otherwise make each such answer as long as it."""
    policy = PromptPolicy(history="dataset", output=OutputLength(source=source, bound=512))  # type: ignore[arg-type]
    prompts, _ = walk(Conversation("c", (Turn("q"), Turn("q"))), policy, [None])
    assert [(prompt.output_tokens_max, prompt.ends_itself) for prompt in prompts] == [(512, True)] * 2
    known = Replay(LONG, PromptPolicy(history="dataset", output=OutputLength(source="dataset"))).next_prompt()
    assert known is not None
    assert not known.ends_itself


@pytest.mark.parametrize(
    ("wanted", "lengths"),
    [
        ({}, [100, 77, None]),
        ({"max": 50}, [50, 50, 50]),
        ({"from_dataset": False}, [None] * 3),
        ({"from_dataset": False, "max": 50}, [50] * 3),
        ({"fixed": 9000}, [9000] * 3),
        ({"fixed": 40, "max": 50}, [40] * 3),
        ({"mean": 40.0, "max": 50}, [40] * 3),
        ({"mean": 9000.0}, [4096] * 3),
    ],
)
def test_the_maximum_bounds_every_row_wherever_its_length_comes_from(wanted: Any, lengths: list[int | None]) -> None:
    policy = prompt_policy(Dataset(path="x", output_tokens=OutputTokens(**wanted)))
    prompts, _ = walk(LONG, policy, [None, None])
    assert [prompt.output_tokens_max for prompt in prompts] == lengths


@pytest.mark.parametrize("wanted", [{"fixed": 51}, {"mean": 50.5}])
def test_a_length_beyond_the_maximum_is_refused(wanted: Any) -> None:
    with pytest.raises(ValueError, match=r"`output_tokens.max` 50 allows no answers of 5"):
        OutputTokens(max=50, **wanted)
