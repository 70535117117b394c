"""`tokenswarm path --via URL --upstream-port N`: what does it do to answers? The embedded engine behind, us in front.

Each question is asked past the path and through it, on one machine and one clock, and laid beside the engine's truth.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from pathlib import Path
from typing import Any

from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import options
from tokenswarm.profile.dataset import Dataset
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.target import Tls, check_url
from tokenswarm.reports.folder import check_folder
from tokenswarm.result.path import WORDS

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
exit codes: 0 transparent (or --accept'ed), 30 delays, 31 alters, 32 loses, 14 the path does not lead to the engine,
            15 a mistake in the command, 16 not written
example:    tokenswarm path --via http://127.0.0.1:8080 --upstream-port 8800
"""


def main(words: list[str]) -> int:
    """Measure; raises ConfigError, TargetError, ResultsError."""
    given = _parse(words)
    from rich.console import Console  # after the words: these take a while, gevent above all

    from tokenswarm.client.preflight import make_checked_target
    from tokenswarm.commands.path_bench import Bench, Pace, Ways, await_path
    from tokenswarm.commands.path_looks import measure, publish
    from tokenswarm.commands.services import Service
    from tokenswarm.engines.failure import secret_words
    from tokenswarm.profile.environment import secret_headers

    profile = _profile(given)
    if given.results:
        check_folder(Path(given.results))
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
    publish(report, given, out)
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
