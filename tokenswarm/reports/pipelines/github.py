"""GitHub Actions: annotations of what went wrong, the job's summary, and output that can't give commands.

A line `::error ::…` or `##[…]` in a step's output is a command to the runner, and what servers and models say stands in
our output. So in a workflow everything that is printed goes through `Disarmed`, and only annotations pass beside it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

from tokenswarm.reports import cells
from tokenswarm.reports.numbers import harmless
from tokenswarm.result.summary import Summary

Level = Literal["notice", "warning", "error"]

ANNOTATIONS_MAX = 10  # of one level in a step: GitHub drops the rest
_COMMAND = re.compile(r"(?<=:)(?=:)|(?<=#)(?=#?\[)")
_BREAK = "\u200b"  # is not seen, and no command has one


def disarm(text: str) -> str:
    """The text with what could begin a command of the runner taken apart by a space that nobody sees."""
    return _COMMAND.sub(_BREAK, text)


class Disarmed:
    """A text stream for a terminal's place, whose text gives no commands; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.armed = stream
        self._last = ""

    def write(self, text: str) -> int:
        """Write it, disarmed, also where a command is cut in two writes."""
        whole = disarm(self._last + text)[len(self._last) :] if text else ""
        self._last = text[-1:] or self._last
        self.armed.write(whole)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.armed, name)


def disarm_output() -> None:
    """From now on, what this process prints gives no commands."""
    if not isinstance(sys.stdout, Disarmed):
        sys.stdout, sys.stderr = Disarmed(sys.stdout), Disarmed(sys.stderr)


def annotation(level: Level, title: str, message: str) -> str:
    """One workflow command; whatever the texts hold, they stay its title and its message."""
    return f"::{level} title={_property(harmless(title))}::{_data(harmless(message, 4_000))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def annotations_of(summary: Summary) -> list[str]:
    """The verdict, unless all is well, and each gate that did not pass."""
    found: list[tuple[Level, str, str]] = []
    status = summary.verdict.status or "not judged"
    if status != "VALID" or summary.partial:
        words = status + (", partial" if summary.partial else "")
        said = "; ".join(f"{doubt.code}: {doubt.message}" for doubt in summary.verdict.doubts[:3])
        level: Level = "warning" if status == "DEGRADED" and not summary.partial else "error"
        found.append((level, f"tokenswarm: {words}", said or words))
    for gate in summary.gates:
        metric, limit, value, result, why = cells.gate_row(gate)
        if result != "pass":
            found.append(("error", f"tokenswarm: gate {metric} {result}", f"{value}, the limit is {limit}: {why}"))
    shown = found[:ANNOTATIONS_MAX]
    if len(found) > len(shown):
        shown[-1] = ("error", "tokenswarm: more gates", f"{len(found) - len(shown) + 1} further gates did not pass")
    return [annotation(*one) for one in shown]


def tell(lines: list[str], markdown: str, step_summary: Path | None) -> str | None:
    """Print annotations, append to the job's summary; what kept the summary from being written, if anything."""
    stream = sys.stderr.armed if isinstance(sys.stderr, Disarmed) else sys.stderr
    for line in lines:
        print(line, file=stream, flush=True)
    if step_summary is None or not markdown:
        return None
    try:
        with step_summary.open("a", encoding="utf-8", errors="replace") as file:
            file.write(markdown.rstrip("\n") + "\n\n")
    except OSError as error:
        return f"{step_summary}: the job's summary could not be written: {error.strerror}"
    return None
