"""How an answer ended whose body came whole, under 2xx: the outcome, and a sentence why."""

from __future__ import annotations

from collections.abc import Iterable

from tokenswarm.record import Outcome

# The protocol's own end, but not of an answer: vLLM and SGLang end so what they gave up.
FAILED_REASONS = frozenset({"error", "abort"})


def judged(
    *,
    error: str,
    reasons: Iterable[str],
    unfinished: bool,
    missing: int,
    choices: int,
    events: int,
    began: bool,
    end: str,
) -> tuple[Outcome, str]:
    """ok, truncated, error_object or empty, and why.

    `missing` of so many choices never began; `began`: an event of the answer came, with or without content; `end`: what
    the protocol ends an answer with, in words.
    """
    if error:
        return Outcome.ERROR_OBJECT, error
    if failed := sorted(FAILED_REASONS.intersection(reasons)):
        return Outcome.ERROR_OBJECT, f"the server ended the answer with finish reason {failed[0]!r}"
    if not events and (not unfinished or not began):
        return Outcome.EMPTY, "the answer holds no content"
    if missing:
        came = f"{choices - missing} of {choices} choices came"
        return Outcome.TRUNCATED, f"{came}: the server may not know `n` (engine.choices)"
    if unfinished:
        return Outcome.TRUNCATED, f"the answer ended without {end}, after {events} content events"
    return Outcome.OK, ""
