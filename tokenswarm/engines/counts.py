"""Numbers as servers state them, checked: a count or a duration that can't be true counts as not stated.

A wrong number (negative, true, 3.0, 10^12) must not fail a good answer, nor enter a sum: it is None, and the record
falls back to its own count of events, labelled so.
"""

from __future__ import annotations

from tokenswarm.engines import Sampling
from tokenswarm.prompts import Prompt

LENGTH_MAX = 4096  # asked for where nobody said how much; where the data set's own lengths are cut, too

TOKENS_MAX = 10**9  # no answer has a billion tokens
NS_MAX = 10**16  # 115 days

_NS_PER_MS = 1_000_000


def tokens(value: object) -> int | None:
    """Return a token count, or None where it is no integer in 0..10^9."""
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else None


def ns(value: object) -> int | None:
    """Return a duration stated in ns, or None where it is no integer in 0..10^16."""
    return value if type(value) is int and 0 <= value <= NS_MAX else None


def ms_as_ns(value: object) -> int | None:
    """Return a duration stated in ms (integer or real) in ns, or None where it can't be one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= NS_MAX / _NS_PER_MS:
        return round(value * _NS_PER_MS)
    return None


def limit(prompt: Prompt, sampling: Sampling, *, always: bool = False) -> int | None:
    """Return the length that a request asks for: the prompt's own, else the run's; None where neither has one.

    `always`: then LENGTH_MAX, and never less than 1. Ollama takes 0 for no limit on one of its paths, for 1 on the
    other, and without a limit goes on to ten times its context; Anthropic's protocol wants one.
    """
    length = prompt.output_tokens_max if prompt.output_tokens_max is not None else sampling.max_tokens
    if not always:
        return length
    return LENGTH_MAX if length is None else max(1, length)
