"""`make bench-peers`: other load generators against a sender that knows the truth, and on wrong streams: PEERS.md.

A peer is a file in bench/loadgens. Each is installed into a folder of its own below --cache; nothing else is touched.
One that can't be installed or run here stands in the page with the reason. Each client runs on one core, the sender on
another, in waves that begin at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench import wrong_streams
from bench.loadgens import aiperf, evalscope, genai_bench, guidellm, inference_perf, ours, sglang, vllm
from bench.loadgens.peer import Job, Late, Peer, Told, run
from bench.results import machine, table
from bench.runs import Cores, two_cores
from bench.sender import BenchError, Pace, build, started
from bench.wrong_streams import ODD, WRONG
from tokenswarm import descriptors

PAGE = Path(__file__).parent / "PEERS.md"
CACHE = Path.home() / ".cache" / "tokenswarm" / "peers"
PEERS: tuple[Peer, ...] = (
    vllm.PEER,
    sglang.PEER,
    aiperf.PEER,
    guidellm.PEER,
    evalscope.PEER,
    inference_perf.PEER,
    genai_bench.PEER,
    vllm.PYTHON,
    sglang.PYTHON,
)
OURS = ours.PEER
STREAMS = (20, 100)
WAVES = 3
TOKENS = 132
PACE = Pace(tokens=TOKENS)
RUN_S = 90  # of one run; what is asked for is sent in 8 s
PEER_S = 120  # of all runs of a peer, unless --peer-s says otherwise
LATE_MS = 10.0
REQUESTS_WRONG = 8


class Spent(BenchError):
    """A peer has had its time."""


class Tried(NamedTuple):
    """A run against the sender: what the peer says, what was sent, CPU of its whole process tree."""

    streams: int
    told: Told
    sent: dict[str, dict[str, float]]
    tokens: int
    finished: int
    cpu_s: float

    @property
    def late_ms(self) -> float:
        return self.sent["lateness_ns"]["p99"] / 1e6

    def off(self, name: str, seen: tuple[float, float] | None, *, p99: bool = True) -> str:
        if seen is None:
            return "not told"
        wide = [f"{value - self.sent[name][q] / 1e6:+.1f}" for value, q in zip(seen, ("p50", "p99"), strict=True)]
        return " / ".join(wide if p99 else [wide[0], "–"])


class Trial:
    """One peer, with a clock of its own."""

    def __init__(self, peer: Peer, cache: Path, cores: Cores, peer_s: float) -> None:
        self.peer, self.cores = peer, cores
        self._home = cache / f"{peer.name.split()[0]}-{peer.version}"
        self._folder = cache / "told"
        self._left_s = peer_s

    def install(self) -> None:
        """Once. Raises BenchError."""
        if (self._home / "ready").exists():
            return
        shutil.rmtree(self._home, ignore_errors=True)
        self._home.mkdir(parents=True)
        self.peer.install(self._home, self.peer.version)
        (self._home / "ready").touch()

    def ask(self, url: str, streams: int, requests: int, tokens: int) -> Told:
        """One run. Raises BenchError."""
        if self._left_s < 1:
            raise Spent("its time was over")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        job = Job(self._home, self._folder, url, streams, requests, tokens)
        began_s = time.monotonic()
        limit_s = min(RUN_S, self._left_s)
        try:
            said = run(self.peer.command(job), limit_s, self.cores.client)
        except Late as error:
            raise error if limit_s == RUN_S else Spent("its time was over") from None
        finally:
            self._left_s -= time.monotonic() - began_s
        try:
            return self.peer.read(job, said)
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise BenchError(f"no result that can be read ({type(error).__name__})") from None

    def truth(self, streams: int) -> Tried:
        """Raises BenchError."""
        with started(PACE, self.cores.sender) as sender:
            before = os.times()
            told = self.ask(f"http://127.0.0.1:{sender.port}", streams, WAVES * streams, TOKENS)
            after, sent = os.times(), sender.truth()
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        return Tried(streams, told, sent, sent["tokens"], sent["finished"], cpu_s)

    def streams(self) -> list[str]:
        """A row: what it makes of each wrong or odd stream."""
        return [self.peer.name, *(self._stream(stream, name in ODD) for name, stream in (WRONG | ODD).items())]

    def _stream(self, stream: wrong_streams.Stream, whole: bool) -> str:
        with wrong_streams.serving(stream) as url:
            try:
                told = self.ask(url, REQUESTS_WRONG, REQUESTS_WRONG, wrong_streams.TOKENS)
            except Spent as error:
                return str(error)
            except BenchError as error:
                return f"**F**: {str(error)[:80]}" if whole else f"F ({str(error).partition(':')[0]})"
        each = "" if told.tokens is None or not told.ok else f", {told.tokens / told.ok:g} tokens each"
        words = f"{told.ok} ok{each}" if told.ok else "F"
        all_right = told.ok >= REQUESTS_WRONG and told.tokens == told.ok * wrong_streams.TOKENS  # some send more
        right = all_right if whole else not told.ok
        return words if right else f"**{words}**"


def rows_of(peer: Peer, runs: list[Tried]) -> list[list[str]]:
    """A row a number of streams; CPU of an event as the slope between the least and the most, where there are two."""
    rows = []
    for tried in runs:
        told = tried.told
        row = [peer.name, str(tried.streams), f"{told.ok} of {tried.finished}"]
        row += [tried.off("ttft_ns", told.ttft_ms), tried.off("itl_ns", told.itl_ms, p99=not told.mean_itl)]
        row.append(f"{tried.cpu_s / max(1, tried.tokens) * 1e6:.0f}")
        events, cpu_s = tried.tokens - runs[0].tokens, tried.cpu_s - runs[0].cpu_s
        row.append("" if events <= 0 else f"{cpu_s / events * 1e6:.0f}" if cpu_s > 0 else "lost in the start's")
        row.append(f"{tried.late_ms:.1f}" if tried.late_ms <= LATE_MS else f"**{tried.late_ms:.0f}**")
        rows.append(row)
    return rows


HEAD = (
    "client",
    "streams",
    "ok, of those sent",
    "TTFT off by, p50 / p99, ms",
    "ITL off by, p50 / p99, ms",
    "CPU an event, µs",
    "without its start, µs",
    "sender late, p99, ms",
)


class Found(NamedTuple):
    truths: list[list[str]]
    streams: list[list[str]]
    missing: list[str]  # a sentence for each peer that could not be run to its end


def page(tried: list[Peer], found: Found, load: tuple[float, float, float], took_s: float) -> str:
    """PEERS.md. `load`: the load averages before it began."""
    about = [
        f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {took_s:.0f} s",
        f"machine: {machine()}",
        f"load average before the start: {', '.join(f'{each:.1f}' for each in load)}; at the end: "
        + ", ".join(f"{each:.1f}" for each in os.getloadavg()),
        "versions: " + ", ".join(f"{peer.name} {peer.version}" for peer in tried),
        f"streams: {TOKENS} tokens, first after 100 ms, a gap of 20 ms ± 20%; {WAVES} waves that begin at once",
    ]
    return "\n".join(
        [
            "# Other load generators beside this one\n",
            "Written by `make bench-peers`. Each client has one core, the sender another. On a machine that other",
            "programs use, milliseconds of a row are theirs as much as the client's: then this page tells tens of",
            "milliseconds, and who is right at all. `make bench` is for less.\n",
            *(f"* {line}" for line in about),
            "\n## Truth\n",
            "What a client's own report says, less what was sent. Each has its own definitions, and the column that is",
            "nearest to a gap between two events is taken; where a client has only a mean of each request, its p50 is",
            "held against the gaps', and its p99 is not. Connecting is not in our TTFT; in others' it is, in the first",
            "wave at least. CPU is that of the whole process tree, over the events: its start included, and as the",
            f"slope between the two numbers of streams. Bold: the sender was more than {LATE_MS:g} ms late (p99), as",
            "something took its core. What it sent is known all the same, but the client's core was hardly its own.\n",
            table(HEAD, found.truths),
            *(f"* {peer.name}: {peer.note}" for peer in tried if peer.note),
            f"\n## Wrong and odd streams, {REQUESTS_WRONG} requests each\n",
            f"`ok` is what the client counts as a success, F none. The first {len(WRONG)} are failures (status 200,",
            f"but for the last); the other {len(ODD)} are whole answers of {wrong_streams.TOKENS} tokens.",
            "Bold: not so.\n",
            table(["client", *WRONG, *ODD], found.streams),
            *(["## Not run to the end here\n", *(f"* {line}" for line in found.missing), ""] if found.missing else []),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where peers are installed")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="the first words of the peers' names; ours always")
    parser.add_argument("--streams", nargs="+", type=int, default=STREAMS, metavar="N", help="at once, in turn")
    parser.add_argument("--peer-s", type=float, default=PEER_S, help=f"for all runs of a peer, s ({PEER_S})")
    chosen = parser.parse_args()
    descriptors.raise_limit()
    cores, began_s, load = two_cores(), time.monotonic(), os.getloadavg()
    build()
    named = [peer for peer in PEERS if chosen.only is None or peer.name.split()[0] in chosen.only]
    found = Found([], [], [])
    for peer in (OURS, *named):
        _try(Trial(peer, chosen.cache, cores, chosen.peer_s), found, chosen.streams)
    text = page([OURS, *named], found, load, time.monotonic() - began_s)
    if chosen.only is None and chosen.streams == STREAMS:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


def _try(trial: Trial, found: Found, levels: Sequence[int]) -> None:
    peer, runs = trial.peer, []
    _say(f"{peer.name} {peer.version}: installing, once")
    try:
        trial.install()
        for streams in levels:
            _say(f"{peer.name}: {streams} streams")
            runs.append(trial.truth(streams))
            _say(" | ".join(rows_of(peer, runs)[-1]))
        _say(f"{peer.name}: wrong streams")
        found.streams.append(trial.streams())
        _say(" | ".join(found.streams[-1]))
    except BenchError as error:
        found.missing.append(f"{peer.name} {peer.version}: {error}")
        _say(found.missing[-1])
    found.truths.extend(rows_of(peer, runs))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
