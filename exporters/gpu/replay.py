"""A recorded NVML session: record it on a machine with a GPU, replay it anywhere (tests, dashboards, documentation).

A record is JSON: `{"format": "tokenswarm-nvml-record/1", "note": …, "seconds": …, "answers": {KEY: [[t_s, answer], …]},
"events": [[t_s, gpu, xid], …]}`. KEY is `system/CALL`, `GPU_INDEX/CALL` or `GPU_INDEX/field.ID`, with nvml.py's calls;
`GPU_INDEX/device` stands for all calls of a GPU, `system/count` is the opening. An answer holds until the next one.
`{"error": NAME}` is an NVML error, `{"hang_s": s}` a call that blocks. After `seconds` the record starts again.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from exporters.gpu.nvml import SYSTEM, Json, NvmlError, Session
from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns
from tokenswarm.errors import ConfigError

FORMAT = "tokenswarm-nvml-record/1"


def _key(gpu: int, call: str) -> str:
    return f"system/{call}" if gpu == SYSTEM else f"{gpu}/{call}"


def load(path: Path) -> dict[str, Json]:
    """Read a record. ConfigError names the file and what is wrong with it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not a record of NVML: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(f'{path} is not a record of NVML: its "format" is not "{FORMAT}"')
    answers = record.get("answers")
    timed = isinstance(answers, dict) and all(map(_is_timed, answers.values()))
    if not timed or not isinstance(record.get("seconds"), int | float) or record["seconds"] <= 0:
        raise ConfigError(f'{path}: "answers" must map each call to [[seconds, answer], …] and "seconds" be its length')
    return record


def _is_timed(entries: Json) -> bool:
    if not isinstance(entries, list) or not entries:
        return False
    if not all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int | float) for entry in entries):
        return False
    return all(a[0] < b[0] for a, b in itertools.pairwise(entries))


def text(record: Mapping[str, Json]) -> str:
    """The file of a record: JSON with one call a line, so that people can read it and versions can be compared."""
    answers = ",\n".join(f" {json.dumps(key)}: {json.dumps(entries)}" for key, entries in record["answers"].items())
    rest = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items() if key != "answers")
    return f'{{{rest},\n"answers": {{\n{answers}\n}}}}\n'


class Replay:
    """A session that answers from a record, by the time since it was made."""

    backend = "replay"

    def __init__(
        self, record: Mapping[str, Json], clock: Clock = monotonic_ns, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._answers: Mapping[str, list[Json]] = record["answers"]
        self._events = [tuple(event) for event in record.get("events", [])]
        self._seconds = record["seconds"]
        self._clock = clock
        self._sleep = sleep
        self._started_ns = clock()
        self._told = 0
        self._closed = threading.Event()

    def _elapsed_s(self) -> float:
        return (self._clock() - self._started_ns) / NS_PER_S

    def _look_up(self, key: str) -> Json:
        """The newest answer of this call; NOT_SUPPORTED where the record has none."""
        now_s = self._elapsed_s() % self._seconds
        found: Json = {"error": "NOT_SUPPORTED"}
        for since_s, answer in self._answers.get(key, ()):
            if since_s > now_s:
                break
            found = answer
        if isinstance(found, dict) and "hang_s" in found:
            self._sleep(found["hang_s"])
            raise NvmlError("TIMEOUT")
        if isinstance(found, dict) and "error" in found:
            raise NvmlError(found["error"])
        return found

    def open(self) -> int:
        count = int(self._look_up("system/count"))
        self._closed.clear()
        return count

    def close(self) -> None:
        self._closed.set()

    def _touch(self, gpu: int) -> None:
        """Raise or block, if the record says that the whole GPU does."""
        if _key(gpu, "device") in self._answers:
            self._look_up(_key(gpu, "device"))

    def ask(self, gpu: int, call: str) -> Json:
        self._touch(gpu)
        return self._look_up(_key(gpu, call))

    def fields(self, gpu: int, ids: Sequence[int]) -> Mapping[int, float | NvmlError]:
        self._touch(gpu)
        values: dict[int, float | NvmlError] = {}
        for field in ids:
            try:
                values[field] = self._look_up(_key(gpu, f"field.{field}"))
            except NvmlError as error:
                values[field] = error
        return values

    def event(self, wait_s: float) -> tuple[int, int] | None:
        """Events are told once, in order; they are not repeated when the record starts again."""
        if self._told < len(self._events) and self._events[self._told][0] <= self._elapsed_s():
            self._told += 1
            _since, gpu, xid = self._events[self._told - 1]
            return int(gpu), int(xid)
        self._closed.wait(wait_s)
        return None


class Recorder:
    """A session that writes down what another one answers; an answer that repeats is written once."""

    def __init__(self, session: Session, clock: Clock = monotonic_ns) -> None:
        self.backend = session.backend
        self._session = session
        self._clock = clock
        self._started_ns = clock()
        self._answers: dict[str, list[Json]] = {}
        self._events: list[Json] = []

    def _note(self, key: str, answer: Json) -> None:
        entries = self._answers.setdefault(key, [])
        if entries and entries[-1][1] == answer:
            return
        # The first answer of a call holds from the start, so that a replay knows it however early it asks.
        at_s = round((self._clock() - self._started_ns) / NS_PER_S, 3) if entries else 0
        if entries and entries[-1][0] >= at_s:
            entries[-1] = [entries[-1][0], answer]
        else:
            entries.append([at_s, answer])

    def _asked(self, key: str, call: Callable[[], Json]) -> Json:
        try:
            answer = call()
        except NvmlError as error:
            self._note(key, {"error": error.name})
            raise
        self._note(key, answer)
        return answer

    def open(self) -> int:
        count: int = self._asked("system/count", self._session.open)
        return count

    def close(self) -> None:
        self._session.close()

    def ask(self, gpu: int, call: str) -> Json:
        return self._asked(_key(gpu, call), lambda: self._session.ask(gpu, call))

    def fields(self, gpu: int, ids: Sequence[int]) -> Mapping[int, float | NvmlError]:
        try:
            values = self._session.fields(gpu, ids)
        except NvmlError as error:
            values = dict.fromkeys(ids, error)
            raise
        finally:
            for field, value in values.items():
                answer = {"error": value.name} if isinstance(value, NvmlError) else value
                self._note(_key(gpu, f"field.{field}"), answer)
        return values

    def event(self, wait_s: float) -> tuple[int, int] | None:
        event = self._session.event(wait_s)
        if event is not None:
            self._events.append([round((self._clock() - self._started_ns) / NS_PER_S, 3), *event])
        return event

    def record(self, note: str) -> dict[str, Json]:
        """What was recorded so far, ready to be written as JSON."""
        seconds = max(1.0, round((self._clock() - self._started_ns) / NS_PER_S, 3))
        return {"format": FORMAT, "note": note, "seconds": seconds, "answers": self._answers, "events": self._events}
