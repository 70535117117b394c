"""Lengths in tokens: an estimate where no tokenizer is at hand, limits that drop rows, and seeded distributions.

The estimate is characters / 4 for Latin text (OpenAI's and Qwen's documentation: 3 to 4 English characters a token)
and characters / 1.5 for Chinese, Japanese, Korean and emoji (Qwen: 1.5 to 1.8, DeepSeek: 1 / 0.6 characters a token).
It is a ratio over a whole data set, good to about a third; whoever shows it says that it is an estimate.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

CountTokens = Callable[[str], int]

CHARS_PER_TOKEN_LATIN = 4.0
CHARS_PER_TOKEN_WIDE = 1.5

# Hangul Jamo, CJK radicals to CJK unified, Hangul, CJK compatibility and full-width forms, emoji, CJK extensions
_WIDE = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff]+"
)


def estimate_tokens(text: str) -> int:
    """Tokens of `text`, estimated from its characters; 0 only for the empty text."""
    if text.isascii():
        return math.ceil(len(text) / CHARS_PER_TOKEN_LATIN)
    latin = len(_WIDE.sub("", text))
    return math.ceil(latin / CHARS_PER_TOKEN_LATIN + (len(text) - latin) / CHARS_PER_TOKEN_WIDE)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Token limits of one request, both ends allowed; None: no limit. A row outside is dropped and counted."""

    input_min: int | None = None
    input_max: int | None = None
    output_min: int | None = None
    output_max: int | None = None
    total_max: int | None = None  # prompt + answer


NO_LIMITS = Limits()
VLLM_LIMITS = Limits(input_min=4, input_max=1024, output_min=4, total_max=2048)
"""What `vllm bench` keeps of ShareGPT (is_valid_sequence): 4 tokens or more each, prompt <= 1024, sum <= 2048."""

LIMITS_PRESETS = {"none": NO_LIMITS, "vllm": VLLM_LIMITS}


def limits_fault(limits: Limits, system: int, turns: Sequence[tuple[int, int | None]]) -> str:
    """Why the conversation is outside the limits, or "".

    `turns` holds (user tokens, answer tokens or None) a turn. The prompt of a turn is the system message, all earlier
    messages and its own; where a length is not known (no answer) its limits don't apply, as in vLLM bench.
    """
    context = system
    for user, answer in turns:
        context += user
        if limits.input_min is not None and user < limits.input_min:
            return "prompt_too_short"
        if limits.input_max is not None and context > limits.input_max:
            return "prompt_too_long"
        if answer is None:
            continue
        context += answer
        if limits.output_min is not None and answer < limits.output_min:
            return "answer_too_short"
        if limits.output_max is not None and answer > limits.output_max:
            return "answer_too_long"
        if limits.total_max is not None and context > limits.total_max:
            return "total_too_long"
    return ""


class LengthLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of token counts. `fixed`: the mean. `uniform`: min..max. `normal`: clipped to them."""

    kind: Literal["fixed", "uniform", "normal"]
    mean: float = 0.0
    std: float = 0.0
    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "uniform" and self.max is None:
            raise ValueError("a uniform length needs a max")
        if self.kind != "uniform" and self.mean < 1:
            raise ValueError(f"a {self.kind} length needs a mean of 1 token or more")
        if self.min < 1 or self.std < 0 or (self.max is not None and self.max < self.min):
            raise ValueError("a length needs 1 <= min <= max and std >= 0")


def sample_length(law: LengthLaw, random_source: random.Random) -> int:
    """One length in tokens, at least 1. The same seed gives the same lengths on every machine."""
    if law.kind == "fixed":
        return round(law.mean)
    if law.kind == "uniform":
        assert law.max is not None  # checked when the law was made
        return law.min + int(random_source.random() * (law.max - law.min + 1))
    drawn = max(law.min, round(random_source.gauss(law.mean, law.std)))
    return drawn if law.max is None else min(law.max, drawn)
