"""A plan on a terminal: a row a kind of replica, what ends its capacity, and one line for scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenswarm.reports.numbers import MISSING, duration, harmless, of_limit, quantity, ratio
from tokenswarm.result.fleet import Capacity, Demand, Fleet, Plan

HEAD = ("kind", "one carries", "until", "replicas", "GPUs", "used", "an hour", "1M tokens", "kWh/1M")


LEAST_TELLING = ("used", "kWh/1M", "an hour", "until", "GPUs")
_SPAN = re.compile(r" (\([^)]*\))(/s|)$")


def report(plan: Plan) -> RenderableType:
    """The table, then what was asked for, and what to know of each kind."""
    notes = [Padding(Text(harmless(text, 1_000), style="dim"), (0, 1, 0, 3)) for text in told(plan)]
    return Group(Text(""), _Kinds(plan.fleets), Text(""), Text(f" {answer(plan)}"), *notes, Text(""))


class _Kinds:
    """A row a kind. Where the terminal is narrow intervals stand below their values; then columns go, by LEAST_TELLING.

    A number that lost its last digits would be another number.
    """

    def __init__(self, fleets: Sequence[Fleet]) -> None:
        self._rows = [row(fleet) for fleet in fleets]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._draw(self._rows, ())
        for gone in range(len(LEAST_TELLING) + 1):
            if Measurement.get(console, options.update(max_width=1_000), table).maximum <= options.max_width:
                break
            below = [[name, *(_SPAN.sub(r"\2\n\1", cell) for cell in cells)] for name, *cells in self._rows]
            table = self._draw(below, LEAST_TELLING[:gone])
        yield table

    def _draw(self, rows: Sequence[Sequence[str]], gone: Sequence[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, header_style="bold")
        kept = [number for number, name in enumerate(HEAD) if name not in gone]
        for number in kept:
            justify: Literal["left", "right"] = "left" if HEAD[number] in ("kind", "until") else "right"
            table.add_column(HEAD[number], justify=justify, no_wrap=True)
        for cells in rows:
            table.add_row(*(Text(cells[number]) for number in kept))
        return table


def row(fleet: Fleet) -> list[str]:
    """The cells of a kind; intervals follow from what was sure, and what was too much."""
    if fleet.capacity is None:
        return [fleet.name, "nothing", *[MISSING] * 7]
    found = fleet.capacity
    return [
        fleet.name,
        f"{rate(found.best)}{span(rate(found.low), rate(found.high), rate(found.best))}/s",
        harmless(found.limit, 40) or "not reached",
        f"{fleet.replicas}{span(count(fleet.replicas_low), count(fleet.replicas_high), str(fleet.replicas))}",
        str(fleet.gpus),
        ratio(fleet.used),
        MISSING if fleet.cost_per_hour is None else money(fleet.cost_per_hour, fleet.currency),
        MISSING if fleet.cost_per_million_output_tokens is None
        else money(fleet.cost_per_million_output_tokens, fleet.currency)
        + span(money(fleet.cost_low, ""), money(fleet.cost_high, ""), money(fleet.cost_per_million_output_tokens, "")),
        quantity(fleet.kwh_per_million_output_tokens)
        + span(quantity(fleet.kwh_low), quantity(fleet.kwh_high), quantity(fleet.kwh_per_million_output_tokens)),
    ]  # fmt: skip


def span(low: str, high: str, value: str) -> str:
    """` 8…10`, where it says more than the value."""
    low, high = (text if text != MISSING else "?" for text in (low, high))
    return "" if low == high == value or (low, high) == ("?", "?") else f" ({low}…{high})"


def rate(value: float | None) -> str:
    return quantity(value)


def count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def money(value: float | None, currency: str) -> str:
    if value is None:
        return MISSING
    return f"{value:.3g} {currency}".rstrip() if value < 100 else f"{value:.0f} {currency}".rstrip()


def answer(plan: Plan) -> str:
    """The best kind, in a sentence."""
    best = plan.fleets[0]
    if best.capacity is None:
        return "no kind keeps the limits at any load that was tried"
    return f"plan: {best.replicas} × {best.name} carry {quantity(best.demand.asked)}/s; {until(best.capacity)}"


def until(found: Capacity) -> str:
    return f"{harmless(found.limit)} is what ends it" if found.limit else "no limit was reached"


def told(plan: Plan) -> list[str]:
    """What was asked for and held to, then the notes of each kind."""
    lines = [asked(plan.fleets[0].demand)]
    limits = ", ".join(f"{name} {'≥' if name == 'goodput_ratio' else '≤'} {of_limit(name, value)}"
                       for name, value in plan.limits.items())  # fmt: skip
    lines.append(f"limits: {limits}")
    if plan.headroom:
        lines.append(f"of each replica {ratio(plan.headroom)} stays free at the peak")
    if any(fleet.cost_per_million_output_tokens is not None for fleet in plan.fleets):
        lines.append("1M tokens: of answers, at the mean load, since replicas are paid for all the time")
    for fleet in plan.fleets:
        if fleet.demand.adjusted != 1.0:
            lines.append(f"{fleet.name}: a request counts for {fleet.demand.adjusted:.3g} of the measured ones")
        lines += [f"{fleet.name}: {text}" for text in ([fleet.why] if fleet.why else []) + list(fleet.notes)]
    return lines


def asked(demand: Demand) -> str:
    lengths = ", ".join(
        f"{quantity(tokens)} tokens {way}"
        for tokens, way in ((demand.input_tokens, "in"), (demand.output_tokens, "out"))
        if tokens
    )
    if demand.start_s is None:
        return f"asked for: {quantity(demand.asked)} requests/s" + (f" of {lengths}" if lengths else "")
    end_s = demand.start_s + (demand.window_s or 0.0)
    return (
        f"asked for: {quantity(demand.asked)} requests/s of {lengths}, the busiest {duration(demand.window_s)} of the "
        f"trace, from {demand.start_s:.0f} s to {end_s:.0f} s; on average {quantity(demand.mean / demand.adjusted)}/s"
    )


def line(plan: Plan) -> str:
    """The best kind as words and numbers, `none` where there is none."""
    best = plan.fleets[0]
    found = best.capacity
    fields: dict[str, object] = {
        "replicas": best.replicas, "low": best.replicas_low, "high": best.replicas_high, "gpus": best.gpus,
        "carries": found and found.best, "peak": best.demand.peak, "cost_per_hour": best.cost_per_hour,
        "cost_per_million_output_tokens": best.cost_per_million_output_tokens,
        "kwh_per_million_output_tokens": best.kwh_per_million_output_tokens,
        "limit": (found and harmless(found.limit).replace(" ", "_")) or None,
    }  # fmt: skip
    words = (
        f"{name}={'none' if value is None else f'{value:.6g}' if isinstance(value, float) else value}"
        for name, value in fields.items()
    )
    return f"plan: {harmless(best.name, 40).replace(' ', '_')} {' '.join(words)}"
