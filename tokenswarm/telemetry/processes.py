"""Is it one engine that answers at this address, or several in turn: a router, replicas, a cache of old pages?

A restart makes counters fall and start anew. Where several answer, a reading falls and is beyond one that was seen
before the fall: the line of another process, gone on. That is told twice before it is believed, and only between two
looks in a row: a process that restarts does not answer meanwhile. A start time that comes back needs no second one.
"""

from __future__ import annotations

from tokenswarm.telemetry.reading import Reading

EVIDENCE = 2
KEPT = 16
"""Readings that are remembered: the first and the last of each line."""


class Processes:
    """Show it every reading, and every look that brought none."""

    def __init__(self) -> None:
        self._seen: list[Reading] = []  # the last one is the newest
        self._first = True  # the newest one is the first of its line
        self._missed = False
        self._evidence = 0

    @property
    def several(self) -> bool:
        return self._evidence >= EVIDENCE

    def missed(self) -> None:
        self._missed = True

    def take(self, reading: Reading) -> None:
        newest = self._seen[-1] if self._seen else None
        if newest is None or not reading.fell(newest):
            if self._seen and not self._first:
                self._seen.pop()
            self._first = newest is None
        else:
            self._evidence += self._returned(reading)
            self._first = True
        self._seen.append(reading)
        del self._seen[:-KEPT]
        self._missed = False

    def _returned(self, reading: Reading) -> int:
        for then in self._seen[:-1]:
            if then.kind != reading.kind or reading.fell(then):
                continue
            if reading.started_s is not None and reading.started_s == then.started_s:
                return EVIDENCE
            if not self._missed and any(then.counters.values()):
                return 1
        return 0
