"""What a path did to answers: the same question asked past it and through it, beside the engine's own truth.

Pure: pairs of answers in, findings out. A finding is of what the path changed; what the engine does is in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.rules.evidence import ms
from tokenswarm.measure.captured import Captured, Seen
from tokenswarm.record import Outcome
from tokenswarm.result.path import WORDS, Finding, Level, Side, Trace, Word

ROUNDS = 3
CUT_S = 1.0  # sooner, no time-out ends a healthy answer
"""In each of so many a delay must show again, against a way that does nothing: a busy machine makes some by itself."""

HELD_RATIO = 0.2  # more merged events than past the path, from here on
SAID_MAX = 300  # letters of a sentence, which may quote a server
LATE_S, LATE_SHARE = 0.01, 0.1  # added to the first token by the path: absolute, and of the engine's own TTFT
LOADED_LATE_S = 0.05  # the same at many streams, on a machine that all of it shares

Row = dict[str, Any]
"""A row of the engine's truth."""


class Answer(msgspec.Struct, frozen=True):
    """One question on one way: what came, what it says, and what the engine knows of it (each attempt a row)."""

    captured: Captured
    seen: Seen
    rows: tuple[Row, ...]

    @property
    def row(self) -> Row | None:
        return self.rows[-1] if self.rows else None


class Pair(msgspec.Struct, frozen=True):
    """The same question past the path and through it. `fault`: what the engine was asked to do wrong; "": nothing."""

    fault: str
    direct: Answer
    via: Answer


def _finding(code: str, word: Word, message: str) -> Finding:
    return Finding(code=code, word=word, message=message if len(message) <= SAID_MAX else message[:SAID_MAX] + "…")


def verdict(findings: Sequence[Finding]) -> Word:
    return max((finding.word for finding in findings), key=WORDS.index, default="transparent")


# -- one answer ----------------------------------------------------------------------------------------------------


def altered(pair: Pair) -> list[Finding]:
    """What is other in a healthy answer, or in what the engine was asked."""
    direct, via = pair.direct.seen, pair.via.seen
    if not via.ok:
        return [_finding("answers-lost", "loses", f"A healthy answer failed through the path: {via.sentence}.")]
    return [found for look in (_text, _usage, _end, _names, _keys, _request) for found in look(pair, direct, via)]


def _text(_pair: Pair, direct: Seen, via: Seen) -> list[Finding]:
    if direct.text == via.text:
        return []
    if sorted(direct.text) == sorted(via.text):
        return [_finding("tokens-reordered", "loses", "The text of an answer came in another order than it was sent.")]
    if len(via.text) < len(direct.text):
        lost = len(direct.stamps_ns) - len(via.stamps_ns)
        text = f"Text is lost: {len(via.text)} of {len(direct.text)} letters came, in {max(0, lost)} events fewer."
        return [_finding("tokens-lost", "loses", text)]
    return [_finding("text-altered", "loses", "The text of an answer is not what the engine sent.")]


def _usage(_pair: Pair, direct: Seen, via: Seen) -> list[Finding]:
    if direct.usage is not None and via.usage is None:
        text = "Usage was asked for and sent, and did not come: tokens can only be counted by events behind this path."
        return [_finding("usage-dropped", "alters", text)]
    if direct.usage is None or via.usage is None:
        return []
    counts = [(one.prompt_tokens, one.output_tokens) for one in (direct.usage, via.usage)]
    if counts[0] == counts[1]:
        return []
    text = f"Usage says {counts[1]} prompt and output tokens, the engine said {counts[0]}: the count is the path's own."
    return [_finding("usage-changed", "alters", text)]


def _end(_pair: Pair, direct: Seen, via: Seen) -> list[Finding]:
    found = []
    if direct.done and not via.done:
        found.append(
            _finding("done-dropped", "alters", "The end of the protocol ([DONE], `done`) does not come through.")
        )
    if direct.finish != via.finish:
        text = f"The finish reason is {via.finish!r}, the engine said {direct.finish!r}."
        found.append(_finding("finish-changed", "alters", text))
    return found


def _names(pair: Pair, direct: Seen, via: Seen) -> list[Finding]:
    found = []
    if direct.models != via.models:
        told = f"{', '.join(via.models) or 'none'}, the engine said {', '.join(direct.models) or 'none'}"
        found.append(_finding("model-changed", "alters", f"The model's name in the answer is {told}."))
    row = pair.via.row or {}
    if bool(direct.ids) != bool(via.ids) or _shape(direct.ids) != _shape(via.ids):
        text = f"Answers have ids of another kind ({', '.join(via.ids[:2]) or 'none'}): the engine's log has others."
        found.append(_finding("id-changed", "alters", text))
    elif row and not direct.ids and via.ids:
        found.append(_finding("id-changed", "alters", "Answers have ids that the engine did not give."))
    return found


def _shape(ids: Sequence[str]) -> tuple[str, int]:
    """How an engine names its answers: what stands before the number, and the length."""
    return (ids[0].partition("-")[0], len(ids[0])) if ids else ("", 0)


def _keys(_pair: Pair, direct: Seen, via: Seen) -> list[Finding]:
    found = []
    if dropped := sorted(direct.keys - via.keys - {"usage", "id", "model"}):
        found.append(
            _finding("fields-dropped", "alters", f"Fields of the events don't come through: {', '.join(dropped)}.")
        )
    if added := sorted(via.keys - direct.keys):
        found.append(
            _finding("fields-added", "alters", f"Events have fields that the engine did not send: {_some(added)}.")
        )
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _request(pair: Pair, _direct: Seen, _via: Seen) -> list[Finding]:
    """What of the request did not reach the engine, and when it did."""
    mine, theirs = ((answer.row or {}).get("asked", "").split() for answer in (pair.direct, pair.via))
    found = []
    if lost := [word for word in ("usage", "ignore_eos", "stream") if word in mine and word not in theirs]:
        names = ", ".join({"usage": "stream_options.include_usage"}.get(word, word) for word in lost)
        found.append(_finding("options-dropped", "alters", f"Fields of the request don't reach the engine: {names}."))
    if "x-request-id" in mine and "x-request-id" not in theirs:
        text = "x-request-id does not reach the engine: its log can't be laid beside this client's rows."
        found.append(_finding("request-id-lost", "transparent", text))
    if "HTTP/1.0" in theirs:
        text = (
            "The engine is asked with HTTP/1.0: it sends no chunks, so a killed engine's answer ends like a whole one."
        )
        found.append(_finding("http-1.0", "transparent", text))
    received_ns = (pair.via.row or {}).get("received_mono_ns", 0)
    if 0 < pair.via.captured.head_ns < received_ns:
        text = "Status 200 comes before the engine was asked: the engine's own refusals can't come as such any more."
        found.append(_finding("early-head", "alters", text))
    if len(pair.via.rows) > len(pair.direct.rows):
        found.append(
            _finding("asked-twice", "alters", f"The engine was asked {len(pair.via.rows)} times for one answer.")
        )
    return found


# -- faults --------------------------------------------------------------------------------------------------------


def faults(pair: Pair) -> list[Finding]:
    """What became of an engine's failure on the way."""
    direct, via, kind = pair.direct.seen, pair.via.seen, pair.fault.partition(":")[0]
    found = []
    attempts = len(pair.via.rows)
    if attempts > 1:
        text = f"Where the engine says {kind} it is asked {attempts} times: retries, of which the client hears nothing."
        found.append(_finding("retries", "alters", text))
    if via.ok and not direct.ok:
        if kind.startswith(("http_", "reset_before")) and attempts > 1:
            return found
        text = f"An answer that the engine broke off ({kind}) comes out as a whole one: nothing is left to see."
        return [*found, _finding("failures-hidden", "loses", text)]
    if direct.ok or via.outcome is Outcome.OK:
        return found
    if pair.direct.captured.end == "broken" and pair.via.captured.end == "whole" and pair.via.captured.status == 200:
        text = f"What the engine broke off ({kind}) ends as a whole body: only the missing end of the protocol tells."
        found.append(_finding("broken-ends-whole", "transparent", text))
    if kind.startswith("http_") and via.outcome is not direct.outcome:
        before, after = pair.direct.captured.status, pair.via.captured.status
        text = f"The engine's HTTP {before} comes as HTTP {after} ({via.outcome.value}: {via.sentence or 'no words'})."
        found.append(_finding("status-changed", "alters", text))
    elif (
        direct.sentence
        and kind in ("error_mid", "http_503", "http_429")
        and _words(direct.sentence) not in via.sentence
    ):
        said = direct.sentence.rstrip(".")
        text = f"The engine's words don't come through: {via.sentence or 'nothing'} in place of {said}."
        found.append(_finding("error-text-lost", "alters", text[:300]))
    retry = pair.direct.captured.headers.get("retry-after")
    if retry is not None and "retry-after" not in pair.via.captured.headers:
        found.append(_finding("retry-after-dropped", "alters", "Retry-After does not come through."))
    return found


def with_closing(findings: list[Finding], pair: Pair) -> list[Finding]:
    """And what a healthy question behind all the failures tells. Words of a closed way are not of those before it."""
    said = pair.via.seen.sentence
    if pair.via.seen.ok or not pair.direct.seen.ok:
        return findings
    text = f"After these failures the path asks no more, though the engine is well again: {said}."
    kept = [one for one in findings if one.code != "error-text-lost" or said not in one.message]
    return [*kept, _finding("circuit-open", "alters", text)]


def _words(sentence: str) -> str:
    """The beginning of an engine's own words, without what our client puts before them."""
    return sentence.partition(": ")[2][:30] if sentence.startswith("HTTP ") else sentence[:30]


# -- many answers --------------------------------------------------------------------------------------------------


def side(answers: Sequence[Answer]) -> Side:
    """One way at one number of streams."""
    good = [answer for answer in answers if answer.seen.ok]
    gaps = sorted(gap for answer in good for gap in _gaps(answer.seen.stamps_ns))
    return Side(
        ok=len(good),
        added_ttft_s=_median(good, _added_first),
        added_e2e_s=_median(good, _added_last),
        gap_p50_s=gaps[len(gaps) // 2] / NS_PER_S if gaps else None,
        gap_p99_s=gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)] / NS_PER_S if gaps else None,
        merged_ratio=sum(answer.seen.merged_ratio for answer in good) / len(good) if good else 0.0,
    )


def _gaps(stamps_ns: Sequence[int]) -> list[int]:
    distinct = sorted(set(stamps_ns))
    return [b - a for a, b in pairwise(distinct)]


def _median(answers: Sequence[Answer], of: Callable[[Answer], float | None]) -> float | None:
    values = [value for answer in answers if (value := of(answer)) is not None]
    return median(values) if values else None


def _added_first(answer: Answer) -> float | None:
    """Client's TTFT − the engine's, s."""
    row, stamps = answer.row, answer.seen.stamps_ns
    if row is None or row.get("first_sent_mono_ns") is None or not stamps:
        return None
    own: int = row["first_sent_mono_ns"] - row["received_mono_ns"]
    return (stamps[0] - answer.captured.sent_ns - own) / NS_PER_S


def _added_last(answer: Answer) -> float | None:
    row, stamps = answer.row, answer.seen.stamps_ns
    if row is None or row.get("last_sent_mono_ns") is None or not stamps:
        return None
    own: int = row["last_sent_mono_ns"] - row["received_mono_ns"]
    return (stamps[-1] - answer.captured.sent_ns - own) / NS_PER_S


def of_level(level: Level, ttft_s: float, sure_s: float = 0.0) -> list[Finding]:
    """What the path adds at this number of streams. `sure_s`: how far two rounds past it lie apart."""
    direct, via, found = level.direct, level.via, []
    at = f"at {level.streams} stream{'s' * (level.streams != 1)}"
    if via.ok < direct.ok:
        text = f"{direct.ok - via.ok} of {level.answers} healthy answers failed {at}, and none past the path."
        found.append(_finding("answers-lost", "loses", text))
    own_s = direct.added_ttft_s or 0.0
    late_s = (via.added_ttft_s or 0.0) - own_s
    allowed_s = max(LATE_S if level.streams == 1 else LOADED_LATE_S, LATE_SHARE * ttft_s, own_s, 2 * sure_s)
    if direct.merged_ratio > HELD_RATIO and via.merged_ratio < direct.merged_ratio + 2 * HELD_RATIO:
        return [*found, _busy(level.streams, f"past the path {direct.merged_ratio:.0%} of the tokens share a read")]
    if via.merged_ratio > direct.merged_ratio + HELD_RATIO and late_s > allowed_s:
        gap = f", {ms(via.gap_p50_s)} apart" if via.gap_p50_s else ""
        text = (
            f"Tokens are held back {at}: {via.merged_ratio:.0%} share a read with an earlier one{gap}, and the first "
            f"is {ms(late_s)} late."
        )
        found.append(_finding("tokens-held-back", "delays", text))
    elif late_s > allowed_s:
        end_s = (via.added_e2e_s or 0.0) - (direct.added_e2e_s or 0.0)
        text = f"The first token is {ms(late_s)} late {at}, the last {ms(max(0.0, end_s))}."
        found.append(_finding("first-token-late", "delays", text))
    elif via.merged_ratio > direct.merged_ratio + HELD_RATIO:
        text = f"{via.merged_ratio:.0%} of the tokens share a read {at}; past the path {direct.merged_ratio:.0%}."
        found.append(_finding("tokens-merged", "delays", text))
    return found


def _busy(streams: int, why: str) -> Finding:
    at = f"at {streams} stream{'s' * (streams != 1)}"
    return _finding("machine-busy", "transparent", f"This machine is too busy to tell what the path adds {at}: {why}.")


def confirmed(rounds: Sequence[Level], ttft_s: float) -> list[Finding]:
    """The delays that each of the rounds has, which took turns with a way that does nothing (their `direct`).

    Each is held against the slower of the rounds past the path before and behind it. What only some have is the
    machine's doing, or can't be told from it.
    """
    own_s = [one.direct.added_ttft_s or 0.0 for one in rounds]
    found = []
    for one, behind in zip(rounds, [*rounds[1:], rounds[0]], strict=True):
        level = msgspec.structs.replace(one, direct=_slower(one.direct, behind.direct))
        found.append(of_level(level, ttft_s, max(own_s) - min(own_s)))
    delays = [[finding for finding in one if finding.word == "delays"] for one in found]
    lost = [finding for one in found for finding in one if finding.word == "loses"]
    if all(delays):
        return lost + delays[0]
    if not any(delays):
        return lost
    late = sum(map(bool, delays))
    return [*lost, _busy(rounds[0].streams, f"tokens were late in {late} of {len(rounds)} rounds")]


def _slower(one: Side, other: Side) -> Side:
    return msgspec.structs.replace(
        one,
        added_ttft_s=max(one.added_ttft_s or 0.0, other.added_ttft_s or 0.0),
        added_e2e_s=max(one.added_e2e_s or 0.0, other.added_e2e_s or 0.0),
        merged_ratio=max(one.merged_ratio, other.merged_ratio),
    )


def of_gzip(plain: Answer, packed: Answer) -> list[Finding]:
    """Does a client that asks for gzip get another stream?"""
    if not packed.seen.ok:
        return [
            _finding("answers-lost", "loses", f"A client that asks for gzip gets no answer: {packed.seen.sentence}.")
        ]
    held = packed.seen.merged_ratio > plain.seen.merged_ratio + 2 * HELD_RATIO
    if packed.seen.packed and (held or _waited(packed) > _waited(plain) + 2 * HELD_RATIO):
        text = (
            f"A client that asks for gzip gets its tokens in bursts: {packed.seen.merged_ratio:.0%} share a read, "
            f"{plain.seen.merged_ratio:.0%} without. No compression for this type."
        )
        return [_finding("gzip-stored", "delays", text)]
    if packed.seen.packed:
        return [
            _finding("gzip-packed", "transparent", "Answers are packed for clients that ask for gzip, event by event.")
        ]
    return []


def _waited(answer: Answer) -> float:
    """How much of the time until the last token went by before the first."""
    stamps, sent_ns = answer.seen.stamps_ns, answer.captured.sent_ns
    return (stamps[0] - sent_ns) / (stamps[-1] - sent_ns) if stamps and stamps[-1] > sent_ns else 0.0


def of_silence(what: str, seconds: float, answer: Answer) -> list[Finding]:
    """Was a slow, healthy answer cut?"""
    if answer.seen.ok:
        return []
    age_s = (answer.captured.done_ns - answer.captured.sent_ns) / NS_PER_S
    if age_s < min(CUT_S, seconds / 2):  # it was no silence that ended it
        return [_finding("answers-lost", "loses", f"A healthy answer failed through the path: {answer.seen.sentence}.")]
    text = f"An answer {what} of {seconds:g} s was cut {age_s:.1f} s after it was sent: {answer.seen.sentence}."
    return [_finding("time-out", "loses", text)]


def of_leaving(direct_s: float | None, via_s: float | None, waited_s: float) -> list[Finding]:
    """Did the engine hear that the client left? Seconds until it did; None: it did not."""
    if direct_s is None or via_s is not None:
        return []
    text = (
        f"The engine does not hear within {waited_s:g} s that a client left: abandoned answers go on there, and load "
        f"what is measured next."
    )
    return [_finding("abandoned-goes-on", "alters", text)]


def trace(answer: Answer) -> Trace:
    """The two timelines of one stream, on the moment at which it was sent."""
    row, origin = answer.row, answer.captured.sent_ns
    sent = row.get("tokens_mono_ns", ()) if row is not None else ()
    return Trace(
        sent_s=tuple((at - origin) / NS_PER_S for at in sent),
        seen_s=tuple((at - origin) / NS_PER_S for at in answer.seen.stamps_ns),
    )


def distinct(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """One of each sentence's code, the gravest and first; gravest first."""
    kept: dict[str, Finding] = {}
    for finding in findings:
        before = kept.get(finding.code)
        if before is None or WORDS.index(finding.word) > WORDS.index(before.word):
            kept[finding.code] = finding
    return tuple(sorted(kept.values(), key=lambda finding: -WORDS.index(finding.word)))
