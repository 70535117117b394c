"""Who sees the run go on, and what they were told went wrong on the way."""

from __future__ import annotations

from typing import Protocol

from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.load import Stage

REMARKS_MAX = 50  # a worker that goes mad must not fill the report


class Watcher(Protocol):
    """Who wants to see the run go on: the console's progress, a push to the exporter."""

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None: ...
    def tick(self, merged: Merged) -> None: ...
    def note(self, text: str) -> None: ...


class Watchers:
    """All of them as one. A remark is a note that the report repeats, once."""

    def __init__(self, watchers: list[Watcher]) -> None:
        self._all = watchers
        self.remarks: list[str] = []

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None:
        for watcher in self._all:
            watcher.phase(number, phase, stage, seconds)

    def tick(self, merged: Merged) -> None:
        for watcher in self._all:
            watcher.tick(merged)

    def note(self, text: str) -> None:
        for watcher in self._all:
            watcher.note(text)

    def remark(self, sentence: str) -> None:
        if len(self.remarks) >= REMARKS_MAX or sentence in self.remarks:
            return
        self.remarks.append(sentence)
        self.note(sentence)
