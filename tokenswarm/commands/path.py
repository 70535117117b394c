"""`tokenswarm path --via URL --upstream-port N`: what does it do to answers? The embedded engine behind, us in front.

Each question is asked past the path and through it, on one machine and one clock, and laid beside the engine's truth.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.commands.services import Service
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.failure import secret_words
from tokenswarm.errors import ConfigError, ExitCode, ResultsError, TargetError
from tokenswarm.judge import path as judge
from tokenswarm.judge.path import Pair
from tokenswarm.judge.rules.evidence import ms
from tokenswarm.profile import options
from tokenswarm.profile.dataset import Dataset
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.environment import secret_headers
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.target import Tls, check_url
from tokenswarm.result.path import WORDS, Finding, Level, PathReport, Side

if TYPE_CHECKING:
    from tokenswarm.client.transport import Target
    from tokenswarm.commands.path_bench import Bench
    from tokenswarm.measure.captured import Captured

FAULTS = ("error_mid:4", "truncate:4", "reset_mid:4", "killed:4", "reset_before", "http_429:1", "http_503")
"""Refusals come last: routers that try again on them count them, too, and close the way after some."""
LEAVE_S = 4.0  # what the engine may take to hear that a client left; the answer would last twice as long
STREAMS_MAX = 512

BOUNDS = (
    ("wait", 0, 3600), ("silence", 0, 900), ("length", 0, 900),
    ("ttft_ms", 1, 10_000), ("itl_ms", 1, 10_000), ("tokens", 16, 1000),
)  # fmt: skip
"""Least and most of each number."""

CODES = {
    "transparent": ExitCode.OK,
    "delays": ExitCode.DELAYS,
    "alters": ExitCode.ALTERS,
    "loses": ExitCode.LOSES,
}
APIS = {"-".join(key): key for key in DIALECTS}
EPILOG = """\
exit codes: 0 transparent (or --accept'ed), 30 delays, 31 alters, 32 loses, 14 the path does not lead to the engine
example:    tokenswarm path --via http://127.0.0.1:8080 --upstream-port 8800
"""


def main(words: list[str]) -> int:
    """Measure; raises ConfigError, TargetError, ResultsError."""
    given = _parse(words)
    from tokenswarm.client.preflight import make_checked_target  # after the words: gevent takes a while
    from tokenswarm.commands.path_bench import Bench, Pace, Ways, await_path

    profile = _profile(given)
    host = given.listen
    with _free_port(host, given.upstream_port) as port:
        arguments = ["--host", host, "--port", str(port), "--preset", "paced", "--allow-fault-prompt"]
    arguments += ["--ttft-ms", str(given.ttft_ms), "--itl-ms", str(given.itl_ms), "--model", given.upstream_model]
    out = Console(stderr=given.json, soft_wrap=True)
    near = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    with (
        Service("tokenswarm.simulator", *arguments) as engine,
        Service("tokenswarm.commands.relay", near, str(port)) as relay,
    ):
        local = make_checked_target(profile, f"http://{near}:{port}")
        secret = secret_headers(profile)
        via = make_checked_target(profile, given.via)
        relayed = make_checked_target(profile, relay)
        ways = Ways(via, local, relayed, DIALECTS[APIS[given.api]], secret, given.model or given.upstream_model)
        out.print(
            f"Point the path's upstream at {engine} (model `{given.upstream_model}`); it is asked at {given.via}."
        )
        bench = Bench(ways, given.upstream_model, Pace(given.ttft_ms / 1e3, given.itl_ms / 1e3, given.tokens))
        await_path(bench, given.wait, secret_words(secret), lambda text: out.print(text, style="dim"))
        report = measure(bench, given, lambda text: out.print(text, style="dim"))
    _publish(report, given, out)
    return int(ExitCode.OK if report.verdict in given.accept else CODES[report.verdict])


def _parse(words: list[str]) -> argparse.Namespace:
    parser = options.parser_of("path")
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--via", required=True, metavar="URL", help="the path's base URL: what clients are given")
    parser.add_argument("--upstream-port", type=int, required=True, metavar="N", help="where the engine is to listen")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="address of the engine (127.0.0.1)")
    parser.add_argument("--api", default="openai-chat", choices=sorted(APIS), help="what is spoken (openai-chat)")
    parser.add_argument("--model", metavar="NAME", help="the name that the path wants (the engine's)")
    parser.add_argument("--upstream-model", default="sim", metavar="NAME", help="the engine's name of its model (sim)")
    parser.add_argument("--streams", default="1,16,64", metavar="N,…", help="how many at a time (1,16,64)")
    parser.add_argument("--ttft-ms", type=float, default=100.0, metavar="MS", help="the engine's first token (100)")
    parser.add_argument("--itl-ms", type=float, default=20.0, metavar="MS", help="... and the gap between tokens (20)")
    parser.add_argument("--tokens", type=int, default=48, metavar="N", help="of an answer (48)")
    parser.add_argument("--wait", type=float, default=60.0, metavar="S", help="until the path leads to the engine (60)")
    parser.add_argument("--silence", type=float, default=5.0, metavar="S", help="of a healthy engine; 0: not tried (5)")
    parser.add_argument("--length", type=float, default=10.0, metavar="S", help="of a long answer; 0: not tried (10)")
    parser.add_argument(
        "--header-from-env", action="append", default=[], metavar="NAME=VARIABLE", help="a key (may be repeated)"
    )
    parser.add_argument("--ca-file", metavar="FILE", help="whom to trust behind https://")
    parser.add_argument("--insecure", action="store_true", help="trust anybody")
    parser.add_argument("--accept", default="", metavar="WORD,…", help="verdicts that end with exit code 0")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--results", metavar="DIR", help="write path.json and report.html there")
    given = parser.parse_args(words)
    given.streams = _numbers(given.streams)
    given.accept = [word for word in given.accept.split(",") if word]
    if wrong := [word for word in given.accept if word not in WORDS]:
        raise ConfigError(f"--accept {wrong[0]}: the verdicts are {', '.join(WORDS)}")
    for name, least, most in BOUNDS:
        if not least <= getattr(given, name) <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(given, name):g} must be from {least:g} to {most:g}")
    return given


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 0 < int(word) <= STREAMS_MAX for word in words):
        raise ConfigError(f"--streams {text}: numbers from 1 to {STREAMS_MAX}, with commas between them")
    return [int(word) for word in words]


def _profile(given: argparse.Namespace) -> Profile:
    """What the client's own parts want to know: whom to trust, and which variables hold keys."""
    try:
        check_url(given.via)
    except ValueError as error:
        raise ConfigError(f"--via: {error}".replace("`target: ", "`")) from None
    pairs = [text.partition("=") for text in given.header_from_env]
    if wrong := [name for name, equals, variable in pairs if not (name and equals and variable)]:
        raise ConfigError(f"--header-from-env {wrong[0]}: write NAME=VARIABLE, for example authorization=MY_KEY")
    kind, api = APIS[given.api]
    engine = Engine(kind=kind, api=api, headers_from_env={name.lower(): variable for name, _, variable in pairs})
    tls = Tls(verify=not given.insecure, ca_file=given.ca_file)
    return Profile(target=(given.via,), dataset=Dataset(format="synthetic"), engine=engine, tls=tls)


@contextlib.contextmanager
def _free_port(host: str, port: int) -> Any:
    """The port, which was free a moment ago. Raises ConfigError."""
    if not 1 <= port <= 65_535:
        raise ConfigError(f"--upstream-port {port} must be from 1 to 65535: the path has to be told it")
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ConfigError(
            f"the engine can't listen on {host}:{port} ({error.strerror or error}): end what listens there, or give "
            f"another --upstream-port (and --listen)"
        ) from None
    yield port


# -- the measurements ----------------------------------------------------------------------------------------------


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
        say(f"{streams} streams at a time …")
        level, found = at_once(bench, run, streams)
        levels.append(level)
        findings += found
    say("gzip, silence, length, a client that leaves …")
    for look in (_gzip, _leaving, functools.partial(_slow, silence_s=given.silence, length_s=given.length)):
        found, came = look(bench, run)
        if any(finding.word != "transparent" for finding in found):  # it must show again: some machines are busy
            again, came = look(bench, f"{run}-again")
            found = [finding for finding in again if finding.code in {one.code for one in found}]
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
    from tokenswarm.commands.path_bench import PATIENCE_S

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


def _publish(report: PathReport, given: argparse.Namespace, out: Console) -> None:
    """Print it, and write it where that was asked for. Raises ResultsError."""
    from tokenswarm.reports import between

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
