"""The tables of what lies between client and engine: requests as both count them, and what a router did."""

from __future__ import annotations

from tokenswarm.reports.html.reported import by_stage, engine
from tokenswarm.reports.html.tables import Cell, Filled, count, filled, titled
from tokenswarm.reports.html.units import counts, top
from tokenswarm.reports.numbers import MISSING, quantity
from tokenswarm.result.summary import Summary

_REQUESTS_HEAD: tuple[Cell, ...] = (
    "", ("answers", "engine"), ("answers", "client"), ("failed or refused", "engine"), ("failed", "client"),
    ("nothing", "up to"),
)  # fmt: skip
_ROUTERS_HEAD: tuple[Cell, ...] = (
    "", "router", "requests", ("tried again", "and given up"), ("errors", "by type"), ("held", "mean"),
)  # fmt: skip


def requests(summary: Summary) -> Filled:
    """By stage, where both sides count them; no one misses it elsewhere."""
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, engine):
        one = block.requests_compared
        if one is not None:
            client = quantity(one.client_ok), quantity(one.client_failed)
            lines.append(
                [name, count(one.server_good), client[0], count(one.server_bad), client[1], quantity(one.tolerance)]
            )
    note = (
        "Requests that ended while the engine was read. More answers at the engine: it serves others; fewer: another "
        "replica, or a cache. More failures at the engine: something in between tries again."
    )
    return titled("Requests, engine beside client", filled(_REQUESTS_HEAD, lines), note) if lines else ("", [])


def routers(summary: Summary) -> Filled:
    """By stage and router."""
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, engine):
        for one in block.routers:
            tried = MISSING if one.retries is None else count(one.retries)
            given_up = "" if one.retries_exhausted is None else f"{count(one.retries_exhausted)} given up"
            held = MISSING if one.held.mean is None else (quantity(one.held.mean), f"max {top(one.held.max)}")
            lines.append(
                [
                    name,
                    (one.kind, one.url),
                    MISSING if one.requests is None else count(one.requests),
                    (tried, given_up) if given_up else tried,
                    counts(one.errors) or "none",
                    held,
                ]
            )
    note = "A router's numbers stand by themselves: no sum of the engines' holds them."
    return titled("Routers", filled(_ROUTERS_HEAD, lines, (0, 1, 4)), note) if lines else ("", [])
