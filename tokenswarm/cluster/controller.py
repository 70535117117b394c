"""The run: gather workers, warm up, stages, drain, finals. Runs on the master (or in the one process).

Locust's own end of a run loses requests that are still streaming, so this file ends it: users stop sending, open
streams end or meet the drain bound, every worker hands its last report over, and only then is Locust told to quit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment

from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.cluster.draining import drain
from tokenswarm.cluster.intake import Intake
from tokenswarm.cluster.lane import TAIL_S
from tokenswarm.cluster.members import Cluster, Member
from tokenswarm.cluster.messages import ToMaster, ToWorker
from tokenswarm.cluster.patience import hopeless
from tokenswarm.cluster.run_end import RunEnd
from tokenswarm.cluster.runners import SILENCE_S
from tokenswarm.cluster.stages import Fixed, Stages
from tokenswarm.cluster.strangers import Strangers
from tokenswarm.cluster.watchers import Watcher, Watchers
from tokenswarm.cluster.worker import INTERRUPT_DRAIN_S
from tokenswarm.errors import DatasetError, TargetError
from tokenswarm.judge.rules.evidence import UsersSeen
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.load import Stage
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.reports.folder import ResultsFolder

JOIN_S = 60.0  # for workers to say hello
PREPARE_S = 900.0  # for the slowest worker to index its data set
SPAWN_S = 120.0  # for users to be there, beyond what the spawn rate takes
SAME_STOP_S = 2.0  # a worker and the master that get a signal within so long were told of one and the same stop
SPENT_LOOK_S = 0.05  # between two looks whether all requests have ended
UNSENT = "before the load began: none was sent"
LONGER = "no request began within the window of stage {}, which is shorter than an answer"
REPORTED_S, REPORTED_LOOKS = 2.5, 2  # until every worker has told what was so; in looks, one a second


class Controller:
    """Drives one run to its end. `run()` returns what is known; the caller writes the reports."""

    def __init__(
        self,
        environment: Environment,
        cluster: Cluster,
        profile: Profile,
        folder: ResultsFolder,
        watchers: list[Watcher],
        stages: Stages | None = None,
    ) -> None:
        self._environment = environment
        self._cluster = cluster
        self._profile = profile
        self._folder = folder
        self._watchers = Watchers(watchers)
        self._stages: Stages = stages or Fixed(profile.load.stages)
        self._intake = Intake(cluster, folder, self._watchers)
        self._stop = Event()
        self.asked = False  # for the end, by a signal
        self.interrupted = False  # and it cut the load short
        self._changed: dict[int, tuple[int, int]] = {}
        self._phase = ""
        self._draining = False
        self._aborted = ""
        self._stages_begun: list[Stage] = []
        self._users: list[UsersSeen] = []
        self._rate_users = 0  # Locust's users in an open loop; in the web UI it changes the rate
        self._new_rate: int | None = None
        self._left_s = 0.0
        self._offset_ns = realtime_ns() - monotonic_ns()
        self._clock_step_ns = 0
        self.active = False
        cluster.on(ToMaster.LEAVING, self._on_leaving)

    # -- from outside --------------------------------------------------------------------------------------------

    def interrupt(self, *, signal: bool) -> None:
        """End the run early: by a signal (the results are partial) or by the web UI's stop button (they are not).

        Once all requests have ended and only rows are under way, nothing is left to cut short.
        """
        self.asked = self.asked or signal
        if self._draining and self._intake.merged().final and not any(m.left for m in self._cluster.in_run):
            return
        self.interrupted = self.interrupted or signal
        self._stop.set()
        if not (signal and self.active):
            return
        for member in self._cluster.in_run:
            if monotonic_ns() - member.left_ns < SAME_STOP_S * NS_PER_S:
                member.left = ""
        if self._draining:
            self._cluster.broadcast(ToWorker.DRAIN, {"bound_s": INTERRUPT_DRAIN_S})

    @property
    def ending(self) -> bool:
        """Whether no load is begun any more."""
        return self._draining or self._stop.is_set()

    def process_ended(self, pid: int, code: int) -> None:
        """A worker process of this machine ended: known at once, long before its heartbeat is missed."""
        member = next((m for m in self._cluster.members.values() if m.pid == pid), None)
        if self.active and (member is None or not (member.done or member.lost)):
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if member is None or member.index < 0:
                self._intake.fail(TargetError(f"a worker process (pid {pid}) ended with {how}, {UNSENT}"))
                return
            member.lost, member.dead = f"its process ended with {how}", True
            self._watchers.remark(f"{member.name} was lost during the run: {member.lost}")

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self, workers: int, *, start_users: bool) -> RunEnd:
        """Everything from the first hello to the last row. Raises UserError where no load could be sent."""
        self.active = True
        try:
            self._gather(workers)
            if not self._stop.is_set():
                self._prepare()
            self._run_stages(start_users=start_users)
            self._drain()
        finally:
            self.active = False
        members = self._cluster.in_run
        strangers, self._cluster.strangers = self._cluster.strangers, Strangers()
        for trouble in strangers.troubles:
            self._watchers.remark(trouble)
        return RunEnd(
            merged=self._intake.settled(),
            stages=tuple(self._stages_begun),
            members=members,
            strangers=strangers,
            rows=self._intake.rows,
            interrupted=self.interrupted,
            expected_workers=workers,
            dataset=members[0].dataset if members else {},
            remarks=self._watchers.remarks,
            changed=self._changed,
            unwritten=self._intake.unwritten,
            users=tuple(self._users),
            clock_step_s=self._clock_step_ns / NS_PER_S,
            stood_still_s=self._cluster.stood_still_s,
            aborted=self._aborted,
        )

    def _gather(self, workers: int) -> None:
        self._cluster.begin()
        deadline_ns = monotonic_ns() + int(JOIN_S * NS_PER_S)
        strangers, told = self._cluster.strangers, 0
        while len(self._cluster.members) < workers:
            self._intake.raise_failure()
            for sentence in strangers.sentences[told:]:  # a stray of another run must not end this one
                told += 1
                self._watchers.note(sentence)
            if monotonic_ns() > deadline_ns:
                raise strangers.too_few(len(self._cluster.members), workers, JOIN_S)
            if self._stop.wait(0.02):
                return
        self._cluster.closed = True

    def _prepare(self) -> None:
        members = self._cluster.by_users()
        for index, member in enumerate(members):
            member.index = index
        data = {
            "run_id": self._folder.run_id,
            "profile": profiles.encode(self._profile),
            "count": len(members),
            "spool": bytes(self._folder.spool),
        }
        for member in self._cluster.in_run:
            self._cluster.send(member, ToWorker.RUN, {**data, "index": member.index})
        deadline_ns = monotonic_ns() + int(PREPARE_S * NS_PER_S)
        while not all(m.prepared for m in self._cluster.in_run) and not self._stop.wait(0.02):
            self._intake.raise_failure()
            self._cluster.find_lost(SILENCE_S)
            for member in self._cluster.in_run:
                if member.lost or member.left:
                    how = member.left or f"was lost: {member.lost}"
                    raise TargetError(f"{member.name} {how}, {UNSENT}")
            if monotonic_ns() > deadline_ns:
                raise DatasetError(f"the workers were not ready within {PREPARE_S:g} s")
        sums = {m.dataset.get("sha256") for m in self._cluster.in_run if m.prepared}
        if len(sums) > 1:
            raise DatasetError(f"{self._profile.dataset.path}: the workers have different files under this name")

    def _run_stages(self, *, start_users: bool) -> None:
        while not self._stop.is_set():
            number = len(self._stages_begun)
            if number and self._stages.drains:
                self._let_end(number)
            stage = self._stages.next(self._intake.merged())
            if stage is None:
                return
            lead_s = self._profile.phases.settle if number else self._profile.phases.warmup
            self._stages_begun.append(stage)
            self._users.append(UsersSeen(asked=stage.users or 0))
            if self._profile.load.open:
                self._run_arrivals(number, stage, lead_s, start_users=start_users and not number)
                self._insert_changed_rate()
            else:
                self._run_users(number, stage, lead_s, start_users=start_users or number > 0)

    def _run_users(self, number: int, stage: Stage, lead_s: float, *, start_users: bool) -> None:
        """A stage of a closed loop: its time begins when all users are there."""
        assert stage.users is not None
        counts = self._profile.load.requests is not None and not lead_s  # then the first request counts, too
        self._announce(number, "steady" if counts else "warmup", stage, stage.duration if counts else lead_s)
        if start_users:
            change = abs(stage.users - self._environment.runner.user_count)
            rate = self._profile.load.spawn_rate or float(max(1, change))
            gevent.spawn(self._environment.runner.start, stage.users, rate)
        self._wait_for_users(stage.users)
        most = stage.users
        self._until(lambda: self._intake.in_flight() <= most)  # requests of users that this stage has no more
        if not self._stop.is_set() and (left := self._intake.in_flight() - most) > 0:
            self._watchers.note(f"{left} requests of stopped users still run: they load stage {number + 1}, too")
        self._pass(lead_s)
        if not counts and not self._stop.is_set():
            self._announce(number, "steady", stage, stage.duration)
        self._pass(stage.duration, self._users[number])
        self._stretch(number)

    def _stretch(self, number: int) -> None:
        """Let a window that is shorter than an answer go on until a request begins in it, as long as a drain may."""
        merged, seconds = self._intake.merged(), 0
        while not (self._stop.is_set() or self._cluster.spent or merged.block(number).intended):
            if seconds >= self._profile.phases.drain or not self._intake.in_flight():
                return
            if seconds == REPORTED_LOOKS:
                self._watchers.note(f"{LONGER.format(number + 1)}: it goes on until one does")
            self._pass(1.0, self._users[number])
            merged, seconds = self._intake.merged(), seconds + 1

    def _run_arrivals(self, number: int, stage: Stage, lead_s: float, *, start_users: bool) -> None:
        """A stage of an open loop: its time begins with the word, and the workers' lanes send by the clock.

        Locust's users send nothing here; there is one for each worker, so that Locust sees a load.
        """
        runner = self._environment.runner
        if start_users:
            workers = len(self._cluster.in_run)
            gevent.spawn(runner.start, workers, float(workers))
        if not number:
            self._wait_for_users(None)
            self._rate_users = runner.target_user_count
        course = {"rate": list(stage.rate or ()), "lead_s": lead_s, "length_s": stage.duration}
        self._announce(number, "warmup", stage, lead_s, course=course)
        self._pass(lead_s)
        if not self._stop.is_set():
            self._announce(number, "steady", stage, stage.duration)
            self._pass(stage.duration)
            if self._new_rate is None:
                self._pass(TAIL_S)

    def _let_end(self, number: int) -> None:
        """Let what the stage before `number` has under way end, and hear of it. An open loop sends nothing yet."""
        self._cluster.broadcast(ToWorker.PHASE, {"stage": number - 1, "phase": "drain"})
        self._phase = "drain"
        self._pass(REPORTED_S)
        opened, intake = self._profile.load.open, self._intake
        self._until(lambda: not (intake.in_flight() if opened else intake.merged().block(number - 1).under_way))

    def _until(self, ended: Callable[[], bool]) -> None:
        """Let what is under way end, for as long as a drain may take."""
        by_ns = monotonic_ns() + int(self._profile.phases.drain * NS_PER_S)
        while monotonic_ns() < by_ns and not self._stop.is_set() and not ended():
            self._pass(0.5)

    def _insert_changed_rate(self) -> None:
        """The stage that the web UI's user asked for: its number of users is the rate for the rest of this one."""
        rate, self._new_rate = self._new_rate, None
        if rate is None:
            return
        self._watchers.note(f"the rate was changed to {rate}/s: a new stage begins")
        self._stages.insert(Stage(rate=(float(rate),), duration=Seconds(max(self._left_s, 1.0))))

    def _wait_for_users(self, users: int | None) -> None:
        """Until so many are there; None: as many as Locust was told to start."""
        runner, rate = self._environment.runner, self._profile.load.spawn_rate or math.inf
        deadline_ns = monotonic_ns() + int((SPAWN_S + (users or 0) / rate) * NS_PER_S)
        while not self._stop.is_set():
            wanted = users or runner.target_user_count
            if wanted and runner.user_count == wanted:
                return
            self._pass(0.1)
            if monotonic_ns() > deadline_ns:
                here = runner.user_count
                self._watchers.remark(
                    f"only {here} of {wanted} users were there {SPAWN_S:g} s after they should have been"
                )
                return
            if self._cluster.spent or any(m.lost or m.left for m in self._cluster.in_run):
                return  # its users will not come, or have nothing to do

    def _announce(self, number: int, phase: str, stage: Stage, seconds: float, **course: Any) -> None:
        self._phase = phase
        self._cluster.broadcast(ToWorker.PHASE, {"stage": number, "phase": phase, **course})
        self._watchers.phase(number, phase, stage, seconds)

    def _pass(self, seconds: float, window: UsersSeen | None = None) -> None:
        """Let time go by; look after the workers each second, and in a window at their users."""
        end_ns = math.inf if seconds == math.inf else monotonic_ns() + int(seconds * NS_PER_S)
        before = {worker.worker: worker.seq for worker in self._intake.merged().workers} if window else {}
        while (left_s := (end_ns - monotonic_ns()) / NS_PER_S) > 0:
            self._left_s = left_s
            if self._wait(min(left_s, 1.0)):
                return
            merged = self._look_after()
            over = self._phase == "steady" and self._stages.over(len(self._stages_begun) - 1, merged)
            if over or self._new_rate is not None or self._cluster.spent:
                return
            self._end_if_hopeless()
            # A report that was under way when the window opened tells of the time before it.
            if window is not None and all(w.seq > before.get(w.worker, 0) + 1 for w in merged.workers):
                window.look(sum(worker.users for worker in merged.workers))

    def _wait(self, seconds: float) -> bool:
        """True where the run is to stop. A run of so many requests waits no longer than for the last of them."""
        look_s = seconds if self._profile.load.requests is None else SPENT_LOOK_S
        by_ns = monotonic_ns() + int(seconds * NS_PER_S)
        while (left_s := (by_ns - monotonic_ns()) / NS_PER_S) > 0 and not self._cluster.spent:
            if self._stop.wait(min(left_s, look_s)):
                return True
        return False

    def _look_after(self) -> Merged:
        for member in self._cluster.find_lost(SILENCE_S):
            self._watchers.remark(f"{member.name} was lost during the run: {member.lost}")
        if self._cluster.in_run and all(m.lost for m in self._cluster.in_run):
            self._watchers.remark("no worker is left")
            self._stop.set()
        elif self._cluster.in_run and all(m.lost or m.left for m in self._cluster.in_run):
            self._stop.set()
        self._look_at_users()
        self._look_at_the_clock()
        merged = self._intake.merged()
        self._watchers.tick(merged)
        return merged

    def _look_at_the_clock(self) -> None:
        offset_ns = realtime_ns() - monotonic_ns()
        self._clock_step_ns = max(self._clock_step_ns, abs(offset_ns - self._offset_ns))
        self._offset_ns = offset_ns

    def _look_at_users(self) -> None:
        """The web UI lets its user change them at any time."""
        number, target = len(self._stages_begun) - 1, self._environment.runner.target_user_count
        if self._phase != "steady" or self._stop.is_set() or self._draining or number in self._changed:
            return
        asked = self._stages_begun[number].users
        if asked is None and target and target != self._rate_users:
            self._rate_users = target
            if self._profile.load.requests is None:
                self._new_rate = target
            else:
                self._watchers.note("a run of so many requests keeps its rate: begin another one at the new rate")
        elif asked is not None and target != asked:
            self._changed[number] = (asked, target)
            self._watchers.note(
                f"the users were changed to {target} within stage {number + 1}: its window holds both loads"
            )

    def _end_if_hopeless(self) -> None:
        """A load that only fails teaches nothing after its first requests."""
        sentence = hopeless(self._profile.load.abort_on_fail, self._intake.merged())
        if sentence and not self._stop.is_set():
            self._aborted = sentence
            self._stop.set()
            self._watchers.note(sentence)

    def _drain(self) -> None:
        bound_s: float = self._profile.phases.drain
        if self.interrupted or self._aborted:
            bound_s = min(bound_s, INTERRUPT_DRAIN_S)
        ready = [m for m in self._cluster.in_run if m.prepared]
        if not ready:
            return
        self._watchers.phase(max(0, len(self._stages_begun) - 1), "drain", None, bound_s)
        self._draining = True
        drain(self._cluster, ready, self._watchers, bound_s, self._look_after)

    def _on_leaving(self, member: Member, data: dict[str, Any]) -> None:
        """A worker was told to end before the master was: it drains; the others go on."""
        reason = str(data["sentence"])[:200]
        if member.index < 0:
            self._cluster.leave(member)
        elif not self.interrupted:
            member.left, member.left_ns = reason, monotonic_ns()
            self._watchers.note(f"{member.name} {reason}: it drains and hands its rows over")
