"""Questions on two ways to one engine, past a path and through it, and what the engine's truth knows of each."""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from tokenswarm.client.capture import capture, pause, together
from tokenswarm.client.page import request
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import Target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.engines import Dialect, Sampling
from tokenswarm.engines.failure import hide
from tokenswarm.errors import TargetError
from tokenswarm.judge.path import Answer, Pair, Row
from tokenswarm.measure.captured import Captured, seen
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import Outcome

PATIENCE_S = 30.0  # for an answer beyond its own length
ROWS_S = 5.0  # until the truth has the row of an answer that is over


class Ways(NamedTuple):
    """The two ways to the engine, and how to ask."""

    via: Target
    direct: Target
    relay: Target  # straight to the engine, too, through a process that does nothing: what one more costs here
    dialect: Dialect
    headers: dict[str, str]
    model: str


class Pace(NamedTuple):
    """The engine's, and how long an answer is."""

    ttft_s: float
    itl_s: float
    tokens: int


class Bench:
    """Asks questions on both ways, and finds the rows that the engine's truth has of them."""

    def __init__(self, ways: Ways, upstream_model: str, pace: Pace) -> None:
        self.ways, self.pace = ways, pace
        self._upstream_model = upstream_model
        self.next_seq = 0

    def send(
        self, target: Target, ident: str, fault: str = "", *, tokens: int = 0, gzip: bool = False,
        timeout_s: float = 0.0, leave_s: float = 0.0,
    ) -> Captured:  # fmt: skip
        """One question. Its words name it, so that the truth knows it whatever becomes of headers."""
        ways, tokens = self.ways, tokens or self.pace.tokens
        timeout_s = timeout_s or PATIENCE_S + self.pace.ttft_s + tokens * self.pace.itl_s
        text = f"x-sim-id={ident} {f'x-sim-fault={fault} ' if fault else ''}Tell a story."
        prompt = Prompt(ident, (Message("user", text),), text, ident, 0, output_tokens_max=tokens)
        model = ways.model if target is ways.via else self._upstream_model
        body = ways.dialect.encode(prompt, Sampling(model=model, max_tokens=tokens, ignore_eos=True))
        lines = {"x-request-id": ident, **({"accept-encoding": "gzip"} if gzip else {})}
        lines |= {"accept": f"{ways.dialect.content_types[0]}, application/json"}
        lines |= ways.headers if target is ways.via else {}
        return capture(target, ways.dialect.path, lines, body, timeout_s=timeout_s, leave_s=leave_s)

    def truth(self, idents: Sequence[str], wait_s: float = ROWS_S) -> dict[str, list[Row]]:
        """The rows since the last call, by id; it waits for each of `idents`, within bounds."""
        began_ns, found = monotonic_ns(), dict[str, list[Row]]()
        while True:
            page = request(
                self.ways.direct, "GET", f"/sim/truth?tokens=1&since={self.next_seq}", {}, timeout_s=PATIENCE_S
            )
            told = json.loads(page.body)
            self.next_seq = told["next"]
            for row in told["requests"]:
                found.setdefault(row["id"], []).append(row)
            late = monotonic_ns() - began_ns > wait_s * NS_PER_S
            if late or (all(ident in found for ident in idents) and not told["totals"]["in_flight"]):
                return found
            pause(0.05)

    def ask(self, target: Target, calls: Sequence[Callable[[], Captured]], idents: Sequence[str]) -> list[Answer]:
        """Make the calls at once; the answers with their rows."""
        captured = together(calls)
        if target is self.ways.via and all(one.end == "none" for one in captured):
            self._check_there()
        rows = self.truth(() if target is self.ways.via else idents)
        return [
            Answer(one, seen(one, self.ways.dialect), tuple(rows.get(ident, ())))
            for one, ident in zip(captured, idents, strict=True)
        ]

    def know_ends(self, healthy: Captured) -> None:
        """Whether the path ends answers with [DONE] alone: that alters them, and loses none."""
        told = seen(healthy, self.ways.dialect)
        if told.outcome is Outcome.TRUNCATED and told.done and told.stamps_ns:
            dialect = msgspec.structs.replace(self.ways.dialect, done_ends=True)
            self.ways = self.ways._replace(dialect=dialect)

    def _check_there(self) -> None:
        """Raises TargetError where nobody listens any more."""
        for turn in range(3):
            pause(0.3)
            if (again := self.send(self.ways.via, f"there-{turn}", tokens=2)).end != "none":
                return
        raise TargetError(f"{self.ways.via.url} led to the engine, and died in the middle: {again.said}")

    def both(self, idents: Sequence[str], fault: str = "", *, past: Target | None = None, **more: Any) -> list[Pair]:
        """Each question past the path (`past`: by which way), then through it."""
        found = []
        for target in (past or self.ways.direct, self.ways.via):
            calls = [functools.partial(self.send, target, ident, fault, **more) for ident in idents]
            found.append(self.ask(target, calls, idents))
        return [Pair(fault, direct, via) for direct, via in zip(*found, strict=True)]


# -- until it leads there ------------------------------------------------------------------------------------------


def await_path(bench: Bench, wait_s: float, secrets_: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Return once a question through the path reaches our engine. Raises TargetError, which says what came instead."""
    began_ns, told = monotonic_ns(), ""
    url = bench.ways.via.url
    while True:
        ident = f"wait-{secrets.token_hex(4)}"
        answer = bench.send(bench.ways.via, ident, tokens=2, timeout_s=max(2.0, min(PATIENCE_S, wait_s)))
        with contextlib.suppress(TransportError):
            if ident in bench.truth((), 1.0):
                bench.know_ends(answer)
                return
        came, final = instead(answer, bench)
        came = hide(came, secrets_)
        if final:
            raise TargetError(f"{url}: {came}")
        if (monotonic_ns() - began_ns) / NS_PER_S > wait_s:
            raise TargetError(
                f"{url} did not lead to the engine at {bench.ways.direct.url} within {wait_s:g} s: {came}"
            )
        if came != told:
            say(f"waiting: {came}")
            told = came
        pause(0.5)


def instead(captured: Captured, bench: Bench) -> tuple[str, bool]:
    """What came in place of our engine's answer, in a sentence, and whether waiting can't help."""
    dialect, status = bench.ways.dialect, captured.status
    told = seen(captured, dialect)
    if status in (401, 403):
        return f"it asks for a key ({told.sentence}); give it with --header-from-env authorization=VARIABLE", True
    if captured.end == "none" or not status:
        return captured.said or "nothing came", False
    if 300 <= status < 400:
        return (
            f"HTTP {status}, a redirect to {captured.headers.get('location', 'nowhere')[:100]}; give that as --via",
            True,
        )
    if captured.body.lstrip()[:1] == b"<":
        return f"a web page came (HTTP {status}, {captured.content_type or 'no type'}), no answer of an engine", False
    if told.ok:
        model = f", model {', '.join(told.models)}" if told.models else ""
        return f"another engine answers there{model}; point the path at {bench.ways.direct.url}", False
    if status in (404, 405):
        mend = "is --api right, and does it want another --model?"
        return f"it has no {dialect.path}, or no model {bench.ways.model} ({told.sentence}); {mend}", False
    return told.sentence, False
