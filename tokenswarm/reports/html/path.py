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
    ("ended", "by reason"),
)  # fmt: skip
_SHARES_HEAD: tuple[Cell, ...] = (
    "", "engine", ("output tokens", "of all"), "prompt tokens", ("from the prefix cache", "of prompt tokens"),
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


def replicas(summary: Summary) -> tuple[Filled, Filled]:
    """By stage and engine, where there are several: what each did, and its share of the tokens."""
    did: list[list[Cell]] = []
    shares: list[list[Cell]] = []
    for name, _, block in by_stage(summary, engine):
        everything = sum(one.generation_tokens or 0 for one in block.replicas)
        for one in block.replicas:
            read = f"{one.kind}, {duration(one.covered_s)} read" if one.kind else "did not answer"
            did.append(
                [
                    name,
                    (one.url, read),
                    _level(one.running),
                    _level(one.waiting),
                    _level(one.kv_cache_usage, ratio, ratio),
                    MISSING if one.preemptions is None else count(one.preemptions),
                    counts(one.finished) or MISSING,
                ]
            )
            shares.append(
                [
                    name,
                    one.url,
                    _share(one.generation_tokens, everything),
                    MISSING if one.prompt_tokens is None else count(one.prompt_tokens),
                    ratio(one.prefix_cache_hit_ratio),
                    duration(one.ttft_s_mean),
                ]
            )
    if not did:
        return ("", []), ("", [])
    note = "Unlike shares of the output: what hands the requests out does not share them evenly."
    return (
        titled("Each engine by itself", filled(_REPLICAS_HEAD, did, (0, 1, 6))),
        titled("Tokens of each engine", filled(_SHARES_HEAD, shares, (0, 1)), note),
    )


def _share(tokens: int | None, everything: int) -> Cell:
    if tokens is None:
        return MISSING
    return count(tokens), ratio(tokens / everything) if everything else ""


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
