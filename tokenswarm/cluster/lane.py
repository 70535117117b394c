"""One worker's lane of an open loop: a greenlet an arrival, on an absolute clock, never waiting for an answer.

A stage begins where the master's word arrives; from then on the schedule alone says when each arrival is due, and to
which phase it belongs. What comes late is sent late and counted from when it was due; what finds `most` requests under
way is counted as dropped. Neither waits in silence.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gevent
from gevent import getcurrent
from gevent.event import Event
from gevent.hub import get_hub

from tokenswarm.client.pool import room
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.alarm import Alarm
from tokenswarm.errors import ConfigError, DatasetError
from tokenswarm.load import Arrival
from tokenswarm.load.rate import Rate
from tokenswarm.load.schedule import schedule, share, stripe
from tokenswarm.load.trace import Trace
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile.load import Load
from tokenswarm.prompts import Prompt
from tokenswarm.prompts.replay import Replay
from tokenswarm.prompts.traced import TracedPrompts

TAIL_S = 0.1
"""How long the master waits behind a stage, so that a worker that heard of its begin later ends it as well."""

BREATH = 8  # late arrivals that are sent at once before everything else gets its turn: answers, or none would end


class Due(NamedTuple):
    """A request that is due: what it counts for, and from when it is measured."""

    id: str
    stage: int
    phase: str
    at_ns: int


class Course(NamedTuple):
    """A stage of an open loop on this worker's clock."""

    stage: int
    begin_ns: int
    lead_s: float  # warm-up or settling, before the window
    length_s: float  # of the window

    @property
    def open_ns(self) -> int:
        return self.begin_ns + int(self.lead_s * NS_PER_S)

    @property
    def close_ns(self) -> int:
        return self.begin_ns + int((self.lead_s + self.length_s) * NS_PER_S)

    def due(self, arrival: Arrival, run_id: str) -> Due | None:
        """None behind the stage's end. The id is the same whichever worker sends it."""
        if arrival.at_s >= self.lead_s + self.length_s:
            return None
        phase = "warmup" if arrival.at_s < self.lead_s else "steady"
        at_ns = self.begin_ns + int(arrival.at_s * NS_PER_S)
        return Due(f"{run_id}-{self.stage}.{arrival.number}", self.stage, phase, at_ns)


class Traced(NamedTuple):
    """What a trace says of arrivals, and what makes their prompts."""

    trace: Trace
    prompts: TracedPrompts


class Lane:
    """Sends this worker's share of the arrivals until `draining`. `depart` makes the greenlet of a request."""

    def __init__(
        self,
        load: Load,
        recorder: Recorder,
        index: int,
        count: int,
        traced: Traced | None,
        replay: Callable[[], Replay],
        depart: Callable[[Prompt, Due], gevent.Greenlet],
        draining: Event,
        lost: Callable[[DatasetError], None],
    ) -> None:
        self.course: Course | None = None
        self._load = load
        self._recorder = recorder
        self._index, self._count = index, count
        self._most = share(load.max_in_flight or room() * count, index, count)
        if load.max_in_flight is not None and not self._most:
            raise ConfigError(
                f"`load.max_in_flight: {load.max_in_flight}` must be at least 1 for each of {count} workers"
            )
        self._under_way = 0
        self._replay = replay
        self._depart = depart
        self._draining = draining
        self._lost = lost
        self._traced = traced
        self._conversation: Replay | None = None

    def begin(self, stage: int, now_ns: int, data: dict[str, Any]) -> Course:
        """A stage begins now; another that went on ends."""
        self.course = Course(stage, now_ns, float(data["lead_s"]), float(data["length_s"]))
        gevent.spawn(self._run, self.course, self._arrivals(self.course, data["rate"]))
        return self.course

    def end(self) -> None:
        """Send no more until another stage begins."""
        self.course = None

    def _arrivals(self, course: Course, rate: list[float]) -> Iterator[Arrival]:
        load = self._load
        if self._traced is not None and load.trace is not None:
            return self._traced.trace.arrivals(load.trace.time_scale, loop=load.trace.loop)
        over_time = Rate(rate[0], rate[-1], course.lead_s, course.length_s if len(rate) > 1 else 0.0)
        return schedule(load.kind, over_time, seed=load.seed, stage=course.stage, burstiness=load.burstiness or 1.0)

    def _run(self, course: Course, arrivals: Iterator[Arrival]) -> None:
        with contextlib.closing(Alarm()) as alarm:
            try:
                self._send_all(course, arrivals, alarm)
            except DatasetError as error:
                self._lost(error)

    def _send_all(self, course: Course, arrivals: Iterator[Arrival], alarm: Alarm) -> None:
        behind = 0
        for arrival in stripe(itertools.islice(arrivals, self._load.requests), self._index, self._count):
            due = course.due(arrival, self._recorder.run_id)
            if due is None:
                return
            prompt = self._prompt_of(arrival, due)  # before it is due, since reading it takes a while
            behind = behind + 1 if due.at_ns <= monotonic_ns() else 0
            if not behind or behind % BREATH == 0:
                alarm.wait_until(due.at_ns)
            if self.course is not course or self._draining.is_set():
                return
            self._send(prompt, due)

    def _send(self, prompt: Prompt, due: Due) -> None:
        self._recorder.intended(due.stage, due.phase)
        if self._under_way >= self._most:
            self._recorder.dropped(due.stage, due.phase)
            return
        self._under_way += 1
        greenlet = self._depart(prompt, due)
        greenlet.rawlink(self._arrived)
        get_hub().loop.run_callback(getcurrent().switch)  # and this one goes on
        greenlet.switch()  # now: a greenlet that is started runs only after what else is ready, such as decoding

    def _arrived(self, _greenlet: gevent.Greenlet) -> None:
        self._under_way -= 1

    def _prompt_of(self, arrival: Arrival, due: Due) -> Prompt:
        if self._traced is None or arrival.input_tokens is None or arrival.output_tokens is None:
            return self._next_prompt()
        return self._traced.prompts.prompt(due.id, arrival.input_tokens, arrival.output_tokens, arrival.prefix)

    def _next_prompt(self) -> Prompt:
        """Turn after turn of one conversation after another, each with the data set's own history."""
        while True:
            self._conversation = self._conversation or self._replay()
            prompt = self._conversation.next_prompt()
            if prompt is not None:
                return prompt
            self._conversation = None
