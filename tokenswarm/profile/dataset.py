"""`dataset`: which prompts are replayed, and how long the answers are asked to be."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

LENGTH_MAX = 4096  # tokens of an answer, unless the profile says so: the data set's longest would hold a slot for hours
ROWS_MAX = 10_000_000  # the order of rows takes 4 bytes each in every worker


Format = Literal["auto", "sharegpt", "alpaca", "jsonl", "synthetic"]
FORMATS: tuple[str, ...] = get_args(Format)


class TokenRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds in tokens, inclusive; None: no bound."""

    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        low, high = self.min or 0, self.max
        if low < 0 or (high is not None and high < max(low, 1)):
            raise ValueError(f"the range min {self.min}, max {self.max} holds nothing")


class OutputTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long each answer is asked to be. `fixed` wins, then `mean` (a seeded normal), then the data set's answer.

    `max` bounds every answer. None: the data set's and drawn lengths are cut at LENGTH_MAX, and nothing else is.
    """

    from_dataset: bool = True
    fixed: int | None = None
    mean: float | None = None
    stddev: float = 0.0
    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        if self.fixed is not None and self.fixed < 1:
            raise ValueError(f"`fixed: {self.fixed}` must be 1 or more")
        if self.stddev < 0:
            raise ValueError(f"`stddev: {self.stddev:g}` must be 0 or more")
        if self.min < 1 or (self.max is not None and self.max < self.min):
            raise ValueError(f"`min: {self.min}` must be 1 or more, and not above max ({self.max})")
        if self.mean is not None and self.mean < 1:
            raise ValueError("`output_tokens.mean` must be 1 or more")
        if self.max is not None and max(self.fixed or 0, self.mean or 0) > self.max:
            asked = f"{self.fixed or self.mean:g} tokens"
            raise ValueError(f"`output_tokens.max` {self.max} allows no answers of {asked}: raise it, or ask for less")


class Synthetic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The seeded generator: lengths in (estimated) tokens."""

    conversations: int = 1000
    turns: int = 1
    input_mean: float = 128.0
    input_stddev: float = 0.0
    output_mean: float = 128.0
    output_stddev: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            least = 0 if name.endswith("stddev") else 1
            if getattr(self, name) < least:
                raise ValueError(f"`{name}: {getattr(self, name):g}` must be {least} or more")
        if max(self.input_mean, self.output_mean, self.input_stddev, self.output_stddev) > 1_000_000:
            raise ValueError("`dataset.synthetic` takes lengths of 1000000 tokens at most")
        if self.conversations > ROWS_MAX or self.turns > 1000:
            raise ValueError(f"`dataset.synthetic` takes {ROWS_MAX} conversations of 1000 turns at most")


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str | None = None  # None only with format synthetic
    format: Format = "auto"
    conversations: Literal["single", "multi"] = "multi"
    history: Literal["dataset", "model"] = "dataset"  # whose answers are replayed as history in multi-turn
    length_filter: Literal["none", "vllm"] = "none"
    input_tokens: TokenRange = TokenRange()
    answer_tokens: TokenRange = TokenRange()
    output_tokens: OutputTokens = OutputTokens()
    ignore_eos: bool = True
    system: Literal["keep", "drop"] = "keep"
    leading_assistant: Literal["trim", "drop"] = "trim"
    duplicates: Literal["keep", "drop"] = "keep"
    skip_bad_ratio: float = 0.0
    shuffle: bool = True
    shuffle_seed: int = 1
    rounds: Literal["same", "distinct"] = "same"  # whether a prefix cache may know what is sent again
    synthetic: Synthetic = Synthetic()

    def __post_init__(self) -> None:
        if self.path is None and self.format != "synthetic":
            raise ValueError("`dataset.path` is missing (or set `dataset.format: synthetic`)")
        if not 0 <= self.skip_bad_ratio < 1:
            raise ValueError("`dataset.skip_bad_ratio` must be at least 0 and below 1")
