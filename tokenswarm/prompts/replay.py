"""One conversation as the prompts that are sent, turn after turn. Pure; the only state is which turn is next.

History comes from the data set's answers (every run sends the same bytes) or from the model's own (a real dialogue,
whose lengths differ from run to run). Where the wanted answer is missing the other stands in; where both are, the two
user messages are sent as one, since chat templates refuse roles that don't alternate.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from tokenswarm.prompts import Conversation, Message, Prompt, Turn
from tokenswarm.prompts.lengths import CountTokens, LengthLaw, estimate_tokens, sample_length
from tokenswarm.prompts.reading import is_empty, safe_text


class OutputLength(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens to ask for, and the bounds it is clipped to.

    `dataset`: as long as the data set's answer; `fixed`: `tokens`; `law`: drawn, the same for the same turn in every
    run; `none`: no length. A turn without an answer has no length under `dataset`. Where there is no length `bound` is
    sent, if there is one.
    """

    source: Literal["dataset", "fixed", "law", "none"]
    tokens: int | None = None
    law: LengthLaw | None = None
    seed: int = 0
    min: int = 1
    max: int | None = None
    bound: int | None = None

    def __post_init__(self) -> None:
        if (self.source == "fixed" and self.tokens is None) or (self.source == "law" and self.law is None):
            raise ValueError(f"an output length that is {self.source} needs its value")


class PromptPolicy(msgspec.Struct, frozen=True, kw_only=True):
    history: Literal["dataset", "model"]
    output: OutputLength


def of_round(conversation: Conversation, number: int) -> Conversation:
    """The conversation as round `number` sends it (from 0) where rounds are to differ: from the second on it begins
    with `[2] `, so that no prefix cache knows the rest of it. One system message for all stays one for all of a round.
    """
    if not number:
        return conversation
    mark = f"[{number + 1}] "
    first, *more = conversation.turns
    system, template = conversation.system, conversation.template
    if not system:
        first = msgspec.structs.replace(first, user=mark + first.user)
    return msgspec.structs.replace(
        conversation,
        turns=(first, *more),
        system=mark + system if system else system,
        template=template if template is None else mark + template,
    )


class Replay:
    """Walks one conversation."""

    def __init__(
        self, conversation: Conversation, policy: PromptPolicy, count_tokens: CountTokens | None = None
    ) -> None:
        self._conversation = conversation
        self._policy = policy
        self._count_tokens = count_tokens
        self._turn = 0
        self._answers: list[str | None] = []

    def next_prompt(self, answer: str | None = None) -> Prompt | None:
        """The next turn's prompt; None after the last. `answer`: what the model said to the one before."""
        if self._turn > 0:
            turn = self._conversation.turns[self._turn - 1]
            self._answers.append(history_answer(turn, answer, self._policy.history))
        if self._turn >= len(self._conversation.turns):
            return None
        prompt = build_prompt(self._conversation, self._turn, self._answers, self._policy.output, self._count_tokens)
        self._turn += 1
        return prompt


def history_answer(turn: Turn, model: str | None, history: str) -> str | None:
    """The answer that stands in the history after `turn`: of the wanted source, else of the other."""
    said = None if model is None or is_empty(model) else safe_text(model)
    wanted, other = (turn.answer, said) if history == "dataset" else (said, turn.answer)
    return other if wanted is None else wanted


def build_prompt(
    conversation: Conversation,
    turn: int,
    answers: Sequence[str | None],
    output: OutputLength,
    count_tokens: CountTokens | None = None,
) -> Prompt:
    """The prompt of `turn` (from 0) after `answers`, one for each earlier turn, None where there is none.

    `text`, for completion endpoints: the conversation's template where it has one and this is its first turn, else the
    contents of all messages with an empty line between them, without role names.
    """
    messages: list[Message] = []
    if conversation.system:
        messages.append(Message("system", conversation.system))
    asked: list[str] = []
    for earlier, answer in zip(conversation.turns[:turn], answers, strict=True):
        asked.append(earlier.user)
        if answer is not None:
            messages.append(Message("user", "\n\n".join(asked)))
            messages.append(Message("assistant", answer))
            asked = []
    asked.append(conversation.turns[turn].user)
    messages.append(Message("user", "\n\n".join(asked)))
    if turn == 0 and conversation.template is not None:
        text = conversation.template
    else:
        text = "\n\n".join(message.content for message in messages)
    length = output_tokens(conversation, turn, output, count_tokens)
    return Prompt(
        id=f"{conversation.id}#{turn}",
        messages=tuple(messages),
        text=text,
        conversation=conversation.id,
        turn=turn,
        output_tokens_max=output.bound if length is None else length,
        ends_itself=length is None,
        input_tokens=None if count_tokens is None else sum(count_tokens(message.content) for message in messages),
    )


def output_tokens(
    conversation: Conversation, turn: int, output: OutputLength, count_tokens: CountTokens | None = None
) -> int | None:
    """How many tokens to ask for; None: it is not known. Estimated from the answer's characters without a tokenizer."""
    wanted = _wanted_tokens(conversation, turn, output, count_tokens)
    if wanted is None:
        return None
    wanted = max(output.min, wanted)
    return wanted if output.max is None else min(output.max, wanted)


def _wanted_tokens(
    conversation: Conversation, turn: int, output: OutputLength, count_tokens: CountTokens | None
) -> int | None:
    if output.source == "fixed":
        return output.tokens
    if output.source == "law" and output.law is not None:
        # by conversation and turn, not by a running generator: no worker's share or retry changes another's lengths
        source = random.Random(f"tokenswarm output {output.seed} {conversation.id} {turn}")
        return sample_length(output.law, source)
    said = conversation.turns[turn]
    if output.source == "none" or (said.output_tokens is None and said.answer is None):
        return None
    return said.output_tokens or (count_tokens or estimate_tokens)(said.answer or "")
