"""`tokenswarm simulate`: options -> a running server. Once it listens it prints `simulating MODEL on http://HOST:PORT`.

Every field of the preset is an option. Mistakes end with one sentence on stderr and exit code 15; a signal that
asks for the end is its normal end: code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import math
import ssl
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from tokenswarm.errors import ConfigError, UserError
from tokenswarm.simulator import conditions
from tokenswarm.simulator.conditions import CONDITIONS
from tokenswarm.simulator.faults import FAULTS, Lottery
from tokenswarm.simulator.presets import MEANS, PRESETS, Preset, build
from tokenswarm.terminal import outlive_listeners

if TYPE_CHECKING:
    from tokenswarm.simulator.server import Settings

PRESET = "small-gpu"  # where none is named
PACE = ("ttft_ms", "itl_ms")
EVERYWHERE = ("max_model_len", "speed")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tokenswarm simulate",
        description="An inference engine without a model: vLLM's and Ollama's wire formats over a batching model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="presets:\n"
        + "".join(f"  {name:<10} {preset.about}\n" for name, preset in PRESETS.items())
        + "\nfaults:\n"
        + "".join(f"  {kind:<16} {row.about}\n" for kind, row in FAULTS.items())
        + "\nconditions:\n"
        + "".join(f"  {kind:<16} {row.about}\n" for kind, row in CONDITIONS.items())
        + "\nfor example:\n  tokenswarm simulate --preset paced --port 8000 --fault http_500:0.01\n"
        + "\nexit codes: 0 ended by a signal, 15 a wrong option, or the port is taken\n",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0: any (8000)")
    parser.add_argument("--tls-cert", metavar="FILE", help="speak HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="... and its key")
    parser.add_argument("--preset", "--profile", default=PRESET, metavar="NAME", help=f"what to be ({PRESET})")
    parser.add_argument("--model", default="sim", help="the model's name (sim)")
    parser.add_argument("--seed", type=int, default=0, help="of texts, lengths and faults (0)")
    parser.add_argument(
        "--reasoning-tokens", type=int, default=0, metavar="N", help="the first N tokens are reasoning (0)"
    )
    parser.add_argument("--fault", action="append", default=[], metavar="KIND[:RATIO[:PARAM]]", help="may be repeated")
    parser.add_argument(
        "--allow-fault-header", action="store_true", help="let x-sim-fault: KIND[:PARAM] ask for a fault"
    )
    parser.add_argument("--condition", action="append", default=[], metavar="KIND[:PARAM]", help="may be repeated")
    parser.add_argument(
        "--allow-fault-prompt",
        action="store_true",
        help="let the prompt's words x-sim-fault=KIND[:PARAM] ask for a fault, x-sim-id=NAME for an id",
    )
    engine = parser.add_argument_group(f"values of the preset, in place of its own (those of {PRESET})")
    for field in dataclasses.fields(Preset):
        if field.name != "about":
            kind = int if str(field.type).startswith("int") else float
            default = getattr(PRESETS[PRESET], field.name)
            shown = f" ({default:g})" if default is not None else ""
            engine.add_argument(_option(field.name), type=kind, metavar="X", help=MEANS[field.name] + shown)
    return parser


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def preset_of(options: argparse.Namespace) -> Preset:
    """The named preset with the options laid over it. ConfigError for a value that can't be or that has no effect."""
    if options.preset not in PRESETS:
        raise ConfigError(f"there is no preset `{options.preset}`; there are: {', '.join(PRESETS)}")
    preset = PRESETS[options.preset]
    paced = preset.ttft_ms is not None
    changed: dict[str, float] = {}
    for field in dataclasses.fields(Preset):
        value = getattr(options, field.name, None)
        if value is None or field.name == "about":
            continue
        if field.name not in EVERYWHERE and (field.name in PACE) != paced:
            raise ConfigError(f"{_option(field.name)} has no meaning for preset `{options.preset}`")
        floor_ok = value >= 0 if field.name in (*PACE, "step_overhead_ms") else value > 0
        if not floor_ok or not math.isfinite(value):
            raise ConfigError(f"{_option(field.name)} {value} must be more than 0")
        changed[field.name] = value
    return dataclasses.replace(preset, **changed)  # type: ignore[arg-type] # each has been parsed as its field's type


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    """ConfigError for files that hold no certificate and key."""
    if options.tls_cert is None and options.tls_key is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ConfigError("--tls-cert and --tls-key belong together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as error:  # also what OpenSSL says
        why = error.strerror or error.args[-1]
        raise ConfigError(f"--tls-cert {options.tls_cert} with --tls-key {options.tls_key}: {why}") from None
    return context


def settings_of(argv: Sequence[str] | None) -> tuple[Settings, str, int]:
    """Options -> settings, host, port; everything that can be checked before listening is checked here."""
    options = _parser().parse_args(argv)
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"--port {options.port} must be from 0 to 65535")
    if not options.host:
        raise ConfigError("--host is empty: is a variable unset? (an empty one would listen everywhere)")
    if options.reasoning_tokens < 0:
        raise ConfigError(f"--reasoning-tokens {options.reasoning_tokens} must be 0 or more")
    preset = preset_of(options)
    build(preset)
    Lottery(options.fault, options.seed)
    conditions.parse(options.condition)
    tls = _tls(options)
    from tokenswarm.simulator.server import Settings  # after all mistakes: the server's library takes a while

    settings = Settings(
        model=options.model,
        preset=preset,
        seed=options.seed,
        reasoning_tokens=options.reasoning_tokens,
        faults=tuple(options.fault),
        conditions=tuple(options.condition),
        allow_fault_header=options.allow_fault_header,
        allow_fault_prompt=options.allow_fault_prompt,
        tls=tls,
    )
    return settings, options.host, options.port


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    outlive_listeners(result=False)
    try:
        settings, host, port = settings_of(argv)
        from tokenswarm.simulator.listening import serve
        from tokenswarm.simulator.pacer import Pacer

        pacer = Pacer()
        loop = functools.partial(asyncio.SelectorEventLoop, pacer)
        with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop) as runner:
            runner.run(serve(settings, pacer, host, port))
    except UserError as error:
        print(f"tokenswarm simulate: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0
