"""`tokenswarm calibrate`: this machine's own error and capacity, kept for the manifests of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import options
from tokenswarm.profile import profile as profiles
from tokenswarm.reports.folder import check_folder
from tokenswarm.reports.numbers import MISSING, duration, quantity

if TYPE_CHECKING:
    from rich.table import Table

    from tokenswarm.cluster.calibration import Calibration, Rung

LADDER = (25, 50, 100, 200, 400, 800)
SECONDS = 4.0
STREAMS_MAX = 10_000
ROOM = 0.5  # of what was held: what a worker is planned with, so that a bad second does not show


def main(words: list[str]) -> int:
    """Run `calibrate …`; raises ConfigError, ResultsError."""
    parser = options.parser_of("calibrate")
    parser.add_argument("--streams", metavar="N,N,…", help=f"the ladder ({','.join(map(str, LADDER))})")
    parser.add_argument("--seconds", metavar="S", help=f"of each rung ({SECONDS:g})")
    given = parser.parse_args(words)
    ladder, seconds = _ladder(given.streams), _seconds(given.seconds)
    from rich.console import Console  # after the words: these take a while, gevent above all

    from tokenswarm.cluster import calibration

    check_folder(calibration.path().parent)
    console = Console(soft_wrap=True)

    def say(rung: Rung) -> None:
        where = "beside busy neighbours" if rung.busy else "alone"
        console.print(
            f"{rung.streams} streams {where}: {quantity(rung.events_per_s)} events/s, {rung.cpu_ratio:.0%} of a core, "
            f"TTFT off by {duration(rung.ttft_p50_error_s)} / {duration(rung.ttft_p99_error_s)} (p50 / p99)"
        )

    found = calibration.calibrate(ladder, seconds, say)
    console.print(_table(found))
    console.print(advice(found))
    console.print(f"kept in {calibration.keep(found)}")
    return int(ExitCode.OK)


def _ladder(text: str | None) -> tuple[int, ...]:
    if text is None:
        return LADDER
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= STREAMS_MAX for word in words):
        raise ConfigError(f"--streams {text[:60]}: write whole numbers from 1 to {STREAMS_MAX}, as in --streams 50,200")
    return tuple(sorted({int(word) for word in words}))


def _seconds(text: str | None) -> float:
    if text is None:
        return SECONDS
    seconds = profiles.seconds(text, "--seconds")
    if not 0.5 <= seconds <= 600:
        raise ConfigError(f"--seconds {text[:60]}: must lie between 0.5 and 600")
    return seconds


def advice(found: Calibration) -> str:
    """How many workers a load takes on this machine, in a sentence."""
    held = found.held_events_per_s
    if held is None:
        return "No rung was held: TTFT p99 was off by more than a millisecond at each. This machine is too busy."
    planned = held * ROOM
    return (
        f"One worker held {quantity(held)} events/s. Workers = users × tokens per second of one stream / "
        f"{quantity(planned)}, half of that."
    )


def _table(found: Calibration) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, title=f"against the {found.sender}")
    told = ("TTFT\np50 off", "TTFT\np99 off", "± TTFT\np50", "± ITL\np99")
    for head in ("streams", "neighbours", "events/s", "CPU", "waited", *told):
        table.add_column(head, justify="right", overflow="fold")  # a number that is cut would be another one
    for rung in found.rungs:
        table.add_row(
            f"{rung.streams}{'' if rung.held else ' ✗'}",
            "busy" if rung.busy else "none",
            quantity(rung.events_per_s),
            f"{rung.cpu_ratio:.0%}",
            f"{rung.waited_ratio:.0%}",
            duration(rung.ttft_p50_error_s),
            duration(rung.ttft_p99_error_s),
            _percent(rung.ttft_p50_bar),
            _percent(rung.itl_p99_bar),
        )
    return table


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"
