"""The tables of what lies between client and engine: requests as both count them, and what a router did."""

from __future__ import annotations

from collections.abc import Callable

from tokenswarm.reports.html.reported import by_stage, engine
from tokenswarm.reports.html.tables import Cell, Filled, count, filled, titled
from tokenswarm.reports.html.units import counts, top
from tokenswarm.reports.numbers import MISSING, duration, quantity, ratio
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry.server import LevelBlock

Show = Callable[[float | None], str]

_REQUESTS_HEAD: tuple[Cell, ...] = (
    "", ("answers", "engine"), ("answers", "client"), ("failed or refused", "engine"), ("failed", "client"),
    ("nothing", "up to"),
)  # fmt: skip
_REPLICAS_HEAD: tuple[Cell, ...] = (
    "", "engine", ("in the batch", "mean"), ("waiting", "mean"), ("KV-cache in use", "mean"), "preemptions",
    ("from the prefix cache", "of prompt tokens"), "prompt tokens", ("output tokens", "of all"), ("ended", "by reason"),
    ("TTFT", "mean"),
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


def replicas(summary: Summary) -> Filled:
    """By stage and engine, where there are several."""
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, engine):
        told = [one.generation_tokens for one in block.replicas if one.generation_tokens is not None]
        everything = sum(told)
        for one in block.replicas:
            tokens = one.generation_tokens
            share = ratio(tokens / everything) if tokens is not None and everything else ""
            lines.append(
                [
                    name,
                    (one.url, f"{one.kind}, {duration(one.covered_s)} read" if one.kind else "did not answer"),
                    _level(one.running),
                    _level(one.waiting),
                    _level(one.kv_cache_usage, ratio, ratio),
                    MISSING if one.preemptions is None else count(one.preemptions),
                    ratio(one.prefix_cache_hit_ratio),
                    MISSING if one.prompt_tokens is None else count(one.prompt_tokens),
                    MISSING if tokens is None else (count(tokens), share),
                    counts(one.finished) or MISSING,
                    duration(one.ttft_s_mean),
                ]
            )
    note = "Each engine by itself. Unlike shares of the output: what hands the requests out does not share them evenly."
    return titled("Replicas", filled(_REPLICAS_HEAD, lines, (0, 1, 9)), note) if lines else ("", [])


def _level(found: LevelBlock, mean: Show = quantity, most: Show = top) -> Cell:
    return MISSING if found.mean is None else (mean(found.mean), f"max {most(found.max)}")


def routers(summary: Summary) -> Filled:
    """By stage and router."""
    lines: list[list[Cell]] = []
    for name, _, block in by_stage(summary, engine):
        for one in block.routers:
            tried = MISSING if one.retries is None else count(one.retries)
            given_up = "" if one.retries_exhausted is None else f"{count(one.retries_exhausted)} given up"
            lines.append(
                [
                    name,
                    (one.kind, one.url),
                    MISSING if one.requests is None else count(one.requests),
                    (tried, given_up) if given_up else tried,
                    counts(one.errors) or "none",
                    _level(one.held),
                ]
            )
    note = "A router's numbers stand by themselves: no sum of the engines' holds them."
    return titled("Routers", filled(_ROUTERS_HEAD, lines, (0, 1, 4)), note) if lines else ("", [])
