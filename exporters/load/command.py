"""`python -m exporters.load`: runs push their counts, Prometheus scrapes them at http://127.0.0.1:9646/metrics.

POST /push/v1 takes one `tokenswarm.result.envelope` a second from each run; all of it is cumulative, so that after a
restart the next push restores every total. A push that can't be used is refused with a sentence, counted by reason, and
changes nothing. A run is served until it has been silent for --keep. Exit 0 after SIGTERM; 15 for a mistake.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter

from aiohttp import web

from exporters import families, serving
from exporters.load import proto
from exporters.load.render import Text
from exporters.load.runs import Runs, TooManyRunsError
from exporters.load.table import OWN_FAMILIES, REASONS
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import profile
from tokenswarm.result import envelope
from tokenswarm.result.envelope import EnvelopeError

PORT = 9646
PROG = "python -m exporters.load"
BODY_S = 5.0
HELD_BYTES_MAX = 4 * envelope.BYTES_MAX
"""Bytes of pushes that are being read, over all connections: what rude pushers can make this process hold."""

_STATUS = {
    "content_type": 415,
    "oversized": 413,
    "malformed": 400,
    "schema_version": 422,
    "too_many_runs": 429,
    "busy": 429,
    "slow": 408,
    "broken": 400,
}


class Refusal(Exception):
    """A push that is not taken in: a word of REASONS and the sentence for the pusher."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Pushes:
    """Takes pushes in, and counts what became of them."""

    def __init__(self, runs: Runs) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._runs = runs
        self._held = 0

    def refuse(self, path: str) -> None:
        """A request without the token came."""
        self.refused["unauthorized"] += path == envelope.PATH

    async def take(self, request: web.Request) -> web.Response:
        """The handler of POST /push/v1."""
        try:
            body = await self._body(request)
            self._take(body)
        except Refusal as refusal:
            self.refused[refusal.reason] += 1
            return web.Response(status=_STATUS[refusal.reason], text=f"{refusal}\n")
        self.accepted += 1
        return web.Response(status=204)

    def _take(self, body: bytes) -> None:
        try:
            self._runs.put(envelope.decode(body))
        except EnvelopeError as error:
            raise Refusal(error.reason, str(error)) from error
        except TooManyRunsError as error:
            raise Refusal("too_many_runs", str(error)) from error

    async def _body(self, request: web.Request) -> bytes:
        # A type that no form can send: a browser that a web page makes post here asks for permission first.
        if request.content_type != envelope.CONTENT_TYPE or "Content-Encoding" in request.headers:
            raise Refusal("content_type", f"a push has the content type {envelope.CONTENT_TYPE} and no encoding")
        if (request.content_length or 0) > envelope.BYTES_MAX:
            raise _oversized()
        chunks: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.content.iter_any():
                    length += len(chunk)
                    self._held += len(chunk)
                    chunks.append(chunk)
                    if length > envelope.BYTES_MAX:
                        raise _oversized()
                    if self._held > HELD_BYTES_MAX:
                        raise Refusal("busy", "too many pushes at a time; the next one will do")
        except TimeoutError:
            raise Refusal("slow", f"the push did not arrive within {BODY_S:g} s") from None
        except (ConnectionError, web.RequestPayloadError):
            raise Refusal("broken", "the push broke off") from None
        finally:
            self._held -= length
        return b"".join(chunks)


def _oversized() -> Refusal:
    return Refusal("oversized", f"a push has at most {envelope.BYTES_MAX} bytes")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, float]:
    options = serving.parser(PROG, "Take in the counts of runs and serve them to Prometheus.", PORT)
    options.add_argument(
        "--keep",
        metavar="DURATION",
        default="15m",
        help="serve a run for so long after its last push (default %(default)s)",
    )
    args = options.parse_args(argv)
    keep_s = profile.seconds(args.keep, "--keep")
    if not 1 <= keep_s <= 30 * 86_400:
        raise ConfigError(f"--keep {args.keep} must be 1s to 30d")
    return args, keep_s


async def _serve(args: argparse.Namespace, keep_s: float) -> int:
    point = serving.endpoint(args, tls_suffices=False)
    runs = Runs(keep_s)
    pushes = Pushes(runs)
    text = Text()

    def version() -> object:
        return runs.version, pushes.refused.total(), monotonic_ns() // NS_PER_S

    def own() -> families.Readings:
        readings = server.own("load")
        readings.add("tokenswarm_exporter_pushes_total", pushes.accepted)
        readings.add("tokenswarm_exporter_runs", len(runs.runs))
        readings.add("tokenswarm_exporter_runs_expired_total", runs.expired)
        for reason, count in pushes.refused.items():
            readings.add("tokenswarm_exporter_push_errors_total", count, reason)
        for reason, count in runs.dropped.items():
            readings.add("tokenswarm_dropped_label_sets_total", count, reason)
        return readings

    declared = {**serving.FAMILIES, **OWN_FAMILIES}

    def text_page() -> bytes:
        return text.page(runs.runs, monotonic_ns()).encode() + families.render(declared, own())

    def proto_page() -> bytes:
        page = [proto.page(runs.runs, monotonic_ns())]
        for name, rows in own().rows.items():
            kind, names = declared[name].kind, declared[name].labels
            metrics = [proto.sample(kind, tuple(zip(names, labels, strict=True)), value) for labels, value in rows]
            page.append(proto.family(name, declared[name].help, kind, metrics))
        return b"".join(page)

    server = serving.Server(
        point,
        "tokenswarm load exporter",
        serving.Page(version, text_page),
        [web.post(envelope.PATH, pushes.take)],
        other=(proto.wanted, proto.CONTENT_TYPE, serving.Page(version, proto_page)),
        refused=pushes.refuse,
    )
    await server.run(serving.stop_on_signals())
    return ExitCode.OK


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""

    def run() -> int:
        args, keep_s = _parse(sys.argv[1:] if argv is None else argv)
        return int(asyncio.run(_serve(args, keep_s)))

    return serving.command(PROG, run)
