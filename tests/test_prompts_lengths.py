"""Token estimates, limits and length distributions."""

from __future__ import annotations

import random
import statistics

import pytest

from tokenswarm.prompts.lengths import (
    NO_LIMITS,
    VLLM_LIMITS,
    LengthLaw,
    Limits,
    estimate_tokens,
    limits_fault,
    sample_length,
)
from tokenswarm.prompts.synthetic import Synthetic, generate, make_text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("x" * 400, 100), ("é" * 8, 2), ("“quoted”", 2)],
)
def test_latin_text_is_four_characters_a_token(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"), [("潮汐是", 2), ("ひらがな漢字", 4), ("안녕하세요요", 4), ("🙂🙂🙂", 2), ("abcd潮汐是", 3)]
)
def test_wide_text_is_one_and_a_half(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@pytest.mark.parametrize(
    ("limits", "system", "turns", "fault"),
    [
        (NO_LIMITS, 0, [(0, None)], ""),
        (VLLM_LIMITS, 0, [(4, 4)], ""),
        (VLLM_LIMITS, 0, [(1024, 1024)], ""),
        (VLLM_LIMITS, 0, [(3, 4)], "prompt_too_short"),
        (VLLM_LIMITS, 0, [(4, 3)], "answer_too_short"),
        (VLLM_LIMITS, 0, [(1025, 4)], "prompt_too_long"),
        (VLLM_LIMITS, 0, [(1024, 1025)], "total_too_long"),
        (VLLM_LIMITS, 0, [(10, None)], ""),
        (VLLM_LIMITS, 1000, [(25, 10)], "prompt_too_long"),
        (VLLM_LIMITS, 0, [(500, 500), (25, 4)], "prompt_too_long"),
        (VLLM_LIMITS, 0, [(500, 500), (24, 4)], ""),
        (VLLM_LIMITS, 0, [(10, 10), (3, 10)], "prompt_too_short"),
        (Limits(output_max=5), 0, [(9, 5), (9, 6)], "answer_too_long"),
        (Limits(total_max=20), 5, [(5, 5), (3, 2)], ""),
        (Limits(total_max=19), 5, [(5, 5), (3, 2)], "total_too_long"),
    ],
)
def test_limits_count_the_history(limits: Limits, system: int, turns: list[tuple[int, int | None]], fault: str) -> None:
    assert limits_fault(limits, system, turns) == fault


def draws(law: LengthLaw, count: int = 4000) -> list[int]:
    source = random.Random(7)
    return [sample_length(law, source) for _ in range(count)]


def test_length_laws_have_the_shape_they_say() -> None:
    assert set(draws(LengthLaw(kind="fixed", mean=17), 50)) == {17}
    uniform = draws(LengthLaw(kind="uniform", min=10, max=14))
    assert set(uniform) == {10, 11, 12, 13, 14}
    normal = draws(LengthLaw(kind="normal", mean=200, std=20))
    assert statistics.fmean(normal) == pytest.approx(200, abs=2)  # 6 standard errors
    assert statistics.stdev(normal) == pytest.approx(20, rel=0.1)
    clipped = draws(LengthLaw(kind="normal", mean=5, std=50, min=2, max=9))
    assert min(clipped) == 2
    assert max(clipped) == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "uniform"},
        {"kind": "fixed"},
        {"kind": "normal", "mean": 0.5},
        {"kind": "normal", "mean": 5, "std": -1},
        {"kind": "uniform", "min": 5, "max": 4},
        {"kind": "uniform", "min": 0, "max": 4},
    ],
)
def test_laws_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        LengthLaw(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_generated_texts_have_the_wanted_length_in_words_and_repeat() -> None:
    settings = Synthetic(
        rows=10,
        turns=3,
        input_tokens=LengthLaw(kind="uniform", min=5, max=50),
        output_tokens=LengthLaw(kind="fixed", mean=64),
        seed=3,
    )
    first = generate(settings, 4)
    assert generate(settings, 4) == first
    assert generate(settings, 5) != first
    assert len(first.turns) == 3
    assert all(5 <= len(turn.user.split()) <= 50 and turn.output_tokens == 64 for turn in first.turns)
    assert len({turn.user for row in range(10) for turn in generate(settings, row).turns}) == 30


def test_generated_texts_are_cut_by_a_tokenizer() -> None:
    text = make_text(100, random.Random(1), count_tokens=lambda text: len(text) // 3)
    assert 95 <= len(text) // 3 <= 100
    assert make_text(1, random.Random(1), count_tokens=len).count(" ") == 0, "never less than a word"
