"""How a run goes on, while it does: two live lines on a terminal, elsewhere a plain line every five seconds.

It is drawn when the run tells something and by no thread of its own, so that it takes no time from the streams.
"""

from __future__ import annotations

import math
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.load import Stage
from tokenswarm.reports.numbers import duration, harmless, quantity
from tokenswarm.result.stat import latency

PLAIN_EVERY_S = 5.0
RATE_OVER_S = 5.0  # rates are those of the last few seconds
ENDLESS_S = 365 * 86_400.0  # a phase that is meant to last so long has no end to show
BAR_CELLS = 24


class Progress:
    """A watcher of the run; use it as a context manager. `stages`: how many there will be, if known."""

    def __init__(
        self,
        console: Console,
        stages: int | None = None,
        clock: Clock = monotonic_ns,
        *,
        alone: bool = True,
        whole_s: float | None = None,
    ) -> None:
        """`alone`: nobody else writes to the terminal, so lines can be drawn over; else each is a line that stays.

        `whole_s`: how long the load is meant to last, if known.
        """
        self._whole_s, self._load_began_ns = whole_s, 0
        self._console, self._stages, self._clock = console, stages, clock
        self._drawn_over = alone and console.is_terminal
        self._live: Live | None = None
        self._phase: tuple[int, str, Stage | None, float] = (0, "", None, 0.0)  # number, phase, stage, seconds
        self._began_ns = self._said_ns = clock()
        self._seen: deque[tuple[int, int, int]] = deque()  # (ns, successful requests, output tokens)
        self._merged: Merged | None = None

    def __enter__(self) -> Self:
        if self._drawn_over:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None:
        """A phase begins: "warmup", "steady" or "drain", for so many seconds at most."""
        self._phase = (number, phase, stage, seconds)
        self._began_ns = self._clock()
        self._load_began_ns = self._load_began_ns or self._began_ns
        if seconds > 0:
            self._show(now=True)

    def tick(self, merged: Merged) -> None:
        """What is known by now; about once a second."""
        ok = sum(block.ok for block in merged.blocks)
        now_ns = self._clock()
        self._seen.append((now_ns, ok, sum(worker.live_output_tokens for worker in merged.workers)))
        while len(self._seen) > 2 and now_ns - self._seen[0][0] > RATE_OVER_S * NS_PER_S:
            self._seen.popleft()
        self._merged = merged
        self._show(now=False)

    def note(self, text: str) -> None:
        """Something that the user should read, on a line that stays."""
        self._console.print(Text(harmless(text)), soft_wrap=True)

    def _show(self, *, now: bool) -> None:
        if self._live is not None:
            width = self._console.width
            head, numbers = self._head(bar=True), self._numbers()
            for line in (head, numbers):
                line.truncate(width, overflow="ellipsis")
            self._live.update(Group(head, numbers), refresh=True)
            return
        now_ns = self._clock()
        if now or now_ns - self._said_ns >= PLAIN_EVERY_S * NS_PER_S:
            self._said_ns = now_ns
            line = Text.assemble(self._head(bar=False), ": ", self._numbers())
            self._console.print(line, soft_wrap=True, highlight=False)

    def _head(self, *, bar: bool) -> Text:
        number, phase, stage, seconds = self._phase
        if not phase:
            return Text("starting", style="bold")
        elapsed_s = (self._clock() - self._began_ns) / NS_PER_S
        of = f"/{self._stages}" if self._stages and self._stages > 1 else ""
        name = self._draining() if phase == "drain" else f"stage {number + 1}{of} {phase}"
        asked = f", {stage.told}" if stage is not None and stage.told else ""
        endless = not math.isfinite(seconds) or not 0 < seconds < ENDLESS_S
        time = f"{elapsed_s:.0f} s" if endless else f"{min(elapsed_s, seconds):.0f}/{seconds:.0f} s"
        text = Text.assemble((name, "bold"), asked)
        if bar and not endless:
            done = round(BAR_CELLS * min(1.0, elapsed_s / seconds))
            text.append("  ").append("━" * done, "cyan").append("─" * (BAR_CELLS - done), "dim")
        time += self._left() if phase != "drain" else ""
        return text.append(f"  {time}" if bar else f", {time}")

    def _left(self) -> str:
        """What is left of the whole load, where it is meant to end, and is more than this phase."""
        if self._whole_s is None or self._whole_s >= ENDLESS_S:
            return ""
        left_s = self._whole_s - (self._clock() - self._load_began_ns) / NS_PER_S
        return f", {max(0.0, left_s):.0f} s left"

    def _draining(self) -> str:
        left = sum(worker.in_flight for worker in self._merged.workers) if self._merged else 0
        return f"draining, {left} stream{'s' * (left != 1)} left"

    def _numbers(self) -> Text:
        if self._merged is None:
            return Text("no report yet", style="dim")
        number, phase, _, _ = self._phase
        blocks, workers = self._merged.blocks, self._merged.workers
        here = self._merged.block(number, "steady" if phase == "drain" else phase)
        failed = sum(block.failed for block in blocks)
        requests_per_s, tokens_per_s = self._rates()
        itl_s = None if "p50" in latency(here, "itl").withheld else here.itl.quantile(0.5)
        parts = [
            f"{quantity(requests_per_s)} req/s",
            f"{quantity(tokens_per_s)} tok/s",
            f"TTFT {duration(here.ttft.quantile(0.5))}",
            f"ITL {duration(itl_s)}",
            f"{sum(worker.in_flight for worker in workers)} in flight",
            f"{sum(block.ok for block in blocks)} ok",
        ]
        text = Text(", ".join(parts))
        return text.append(f", {failed} failed", style="red" if failed else "")

    def _rates(self) -> tuple[float | None, float | None]:
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None, None
        (then_ns, ok, tokens), (now_ns, ok_now, tokens_now) = self._seen[0], self._seen[-1]
        seconds = (now_ns - then_ns) / NS_PER_S
        return (ok_now - ok) / seconds, (tokens_now - tokens) / seconds
