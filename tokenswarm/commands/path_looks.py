"""All that `tokenswarm path` tries on a path, and how what it found is told."""

from __future__ import annotations

import argparse
import functools
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console

from tokenswarm.client.transport import Target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.commands.path_bench import PATIENCE_S, Bench
from tokenswarm.errors import ResultsError, TargetError
from tokenswarm.judge import path as judge
from tokenswarm.judge.path import Pair
from tokenswarm.judge.rules.evidence import ms
from tokenswarm.measure.captured import Captured
from tokenswarm.reports import between
from tokenswarm.result.path import Finding, Level, PathReport, Side

FAULTS = ("error_mid:4", "truncate:4", "reset_mid:4", "killed:4", "reset_before", "http_429:1", "http_503")
"""Refusals come last: routers that try again on them count them, too, and close the way after some."""
LEAVE_S = 4.0  # what the engine may take to hear that a client left; the answer would last twice as long


def measure(bench: Bench, given: argparse.Namespace, say: Callable[[str], None]) -> PathReport:
    """All that is tried, in order: what might close a router's circuit comes last."""
    run = secrets.token_hex(3)
    findings: list[Finding] = []
    levels: list[Level] = []
    checks: list[tuple[str, str]] = []
    say("one stream …")
    first = _first(bench, run)
    findings += judge.altered(first)
    if not first.via.seen.ok:
        return _report(bench, findings, levels, first, [("all else", "not tried: no healthy answer comes through")])
    for streams in given.streams:
        say(f"{streams} stream{'s' * (streams != 1)} at a time …")
        level, found = at_once(bench, run, streams)
        levels.append(level)
        findings += found
    say("gzip, silence, length, a client that leaves …")
    for look in (_gzip, _leaving, functools.partial(_slow, silence_s=given.silence, length_s=given.length)):
        found, came = look(bench, run)
        if any(finding.word != "transparent" for finding in found):  # it must show again: some machines are busy
            again, came = look(bench, f"{run}-again")
            found = confirmed(found, again)
        findings += found
        checks += came
    say("engines that fail …")
    for fault in FAULTS:
        (pair,) = bench.both([f"{run}-{fault.partition(':')[0]}"], fault)
        findings += judge.faults(pair)
        outcomes = f"{pair.direct.seen.outcome.value} past the path, {pair.via.seen.outcome.value} through it"
        checks.append((f"engine: {fault}", outcomes))
    (after,) = bench.both([f"{run}-after"])
    findings = judge.with_closing(findings, after)
    return _report(bench, findings, levels, first, checks)


def confirmed(found: list[Finding], again: list[Finding]) -> list[Finding]:
    """What was found twice, by what it does: a lost answer is one, whatever it is called the second time."""
    return [finding for finding in again if finding.word in {one.word for one in found}]


def _first(bench: Bench, run: str) -> Pair:
    """A healthy answer, in some tries. Raises TargetError where the engine itself gives none."""
    for turn in range(3):
        (pair,) = bench.both([f"{run}-one-{turn}"])
        if not pair.direct.seen.ok:
            raise TargetError(f"the embedded engine itself gave no whole answer: {pair.direct.seen.sentence}")
        if pair.via.seen.ok:
            break
    return pair


def _report(
    bench: Bench, findings: list[Finding], levels: list[Level], first: Pair, checks: list[tuple[str, str]]
) -> PathReport:
    kept = judge.distinct(findings)
    return PathReport(
        via=bench.ways.via.url,
        upstream=bench.ways.direct.url,
        api=bench.ways.dialect.name,
        verdict=judge.verdict(kept),
        findings=kept,
        levels=tuple(levels),
        trace=judge.trace(first.via),
        marks=_marks(first),
        checks=tuple(checks),
    )


def _marks(pair: Pair) -> dict[str, str]:
    """Headers that the path sets, or sets otherwise; what tells nothing of it is left out."""
    mine, theirs = pair.direct.captured.headers, pair.via.captured.headers
    dull = ("date", "content-length", "connection", "keep-alive", "set-cookie")
    return {name: said for name, said in theirs.items() if mine.get(name) != said and name not in dull}


def at_once(bench: Bench, run: str, streams: int) -> tuple[Level, list[Finding]]:
    """So many streams at a time. A delay must show again in rounds that take turns with a way that does nothing."""
    level, pairs = _level(bench, f"{run}-{streams}", streams)
    found = judge.of_level(level, bench.pace.ttft_s)
    if any(finding.word == "delays" for finding in found):
        rounds = []
        for turn in range(judge.ROUNDS):
            again, more = _level(bench, f"{run}-{streams}-again-{turn}", streams, past=bench.ways.relay)
            rounds.append(again)
            pairs += more
        found = [finding for finding in found if finding.word != "delays"]
        found += judge.confirmed(rounds, bench.pace.ttft_s)
    for pair in pairs:
        if pair.via.seen.ok:
            found += judge.altered(pair)
    return level, found


def _level(bench: Bench, name: str, streams: int, past: Target | None = None) -> tuple[Level, list[Pair]]:
    """One round; a few where streams are few."""
    pairs: list[Pair] = []
    for turn in range(3 if streams < 4 else 1):
        pairs += bench.both([f"{name}-{turn}-{n}" for n in range(streams)], past=past)
    sides: list[Side] = [judge.side([pair.direct for pair in pairs]), judge.side([pair.via for pair in pairs])]
    return Level(streams=streams, answers=len(pairs), direct=sides[0], via=sides[1]), pairs


def _gzip(bench: Bench, run: str) -> tuple[list[Finding], list[tuple[str, str]]]:
    found = []
    for gzip in (False, True):
        ident = f"{run}-gzip-{gzip}"
        found += bench.ask(bench.ways.via, [functools.partial(bench.send, bench.ways.via, ident, gzip=gzip)], [ident])
    plain, packed = found
    came = "packed" if packed.seen.packed else "not packed"
    told = f"{came}, {packed.seen.merged_ratio:.0%} of the tokens share a read"
    return judge.of_gzip(plain, packed), [("asked for gzip", told)]


def _leaving(bench: Bench, run: str) -> tuple[list[Finding], list[tuple[str, str]]]:
    """Leave after some tokens, and see when the engine's row is there."""
    heard: list[float | None] = []
    came: list[Captured] = []
    for number, target in enumerate((bench.ways.direct, bench.ways.via)):
        ident = f"{run}-leaves-{number}"
        length = int(2 * LEAVE_S / bench.pace.itl_s)
        came.append(bench.send(target, ident, tokens=length, leave_s=2 * bench.pace.ttft_s))
        left_ns = monotonic_ns()
        rows = bench.truth([ident], LEAVE_S).get(ident, [])
        gone = bool(rows) and rows[-1]["outcome"] == "disconnected"
        heard.append((monotonic_ns() - left_ns) / NS_PER_S if gone else None)
    via_s = heard[1]
    if came[1].end != "left":
        return [], [("a client that leaves", f"not tried: {came[1].said or 'the answer was over before'}")]
    told = f"the engine hears of it within {ms(via_s)}" if via_s is not None else f"not heard of for {LEAVE_S:g} s"
    return judge.of_leaving(heard[0], via_s, LEAVE_S), [("a client that leaves", told)]


def _slow(bench: Bench, run: str, *, silence_s: float, length_s: float) -> tuple[list[Finding], list[tuple[str, str]]]:
    """Silence before the first token and inside an answer, and a long answer: side by side."""
    kinds = []
    if silence_s:
        kinds += [("silent before the first token", silence_s, f"slow_first:{silence_s:g}", 4)]
        kinds += [("silent after two tokens", silence_s, f"pause:{silence_s:g}", 4)]
    if length_s:
        kinds.append(("as long as", length_s, "", max(2, int(length_s / bench.pace.itl_s))))
    idents = [f"{run}-slow-{number}" for number in range(len(kinds))]
    patience_s = max(silence_s, length_s) + PATIENCE_S
    calls = [
        functools.partial(bench.send, bench.ways.via, ident, fault, tokens=tokens, timeout_s=patience_s)
        for ident, (_, _, fault, tokens) in zip(idents, kinds, strict=True)
    ]
    found: list[Finding] = []
    checks = []
    for (what, seconds, _, _), answer in zip(kinds, bench.ask(bench.ways.via, calls, idents), strict=True):
        found += judge.of_silence(what, seconds, answer)
        checks.append((f"an answer {what} {seconds:g} s", "kept" if answer.seen.ok else answer.seen.sentence))
    return found, checks


def publish(report: PathReport, given: argparse.Namespace, out: Console) -> None:
    """Print it, and write it where that was asked for. Raises ResultsError."""
    data = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    if given.json:
        print(data.decode(), end="")
    else:
        out.print(between.console(report))
    if given.results:
        folder = Path(given.results)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "path.json").write_bytes(data)
            (folder / "report.html").write_text(between.page(report), encoding="utf-8")
        except OSError as error:
            raise ResultsError(f"{folder}: can't be written: {error.strerror or error}") from None
        out.print(f"report: {folder / 'report.html'}")
