"""One worker's side of a run: load the data, send requests for the users, count, report each second, drain, hand over.

The master announces stages and phases; this file turns them into the windows of its own clock. Rows go to a local spool
file while the load runs and to the master afterwards, so that nothing per request crosses the network meanwhile.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from typing import Any

import gevent
import msgspec
from gevent.event import Event
from locust.env import Environment

from tokenswarm.client.decoding import Decoder
from tokenswarm.client.exchange import Exchange
from tokenswarm.client.from_profile import make_client, sampling_of
from tokenswarm.client.native import open_native
from tokenswarm.client.pool import check_descriptors
from tokenswarm.client.preflight import make_checked_target
from tokenswarm.client.resolving import resolve
from tokenswarm.client.response import TransportError
from tokenswarm.client.sending import Request
from tokenswarm.client.which_reader import reader_name
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.hand_over import HandOver, open_spool
from tokenswarm.cluster.lane import Due, Lane
from tokenswarm.cluster.locust_event import fire_request
from tokenswarm.cluster.material import load_library, traced
from tokenswarm.cluster.messages import ToMaster, ToWorker
from tokenswarm.cluster.patience import FirstAnswers, StepBack
from tokenswarm.cluster.probes import Probes, calm_garbage_collection, forget_spawners
from tokenswarm.cluster.runners import SILENCE_S, hello
from tokenswarm.cluster.runners import Worker as Runner
from tokenswarm.errors import DatasetError, ExitCode, UserError
from tokenswarm.judge.gates import request_limits
from tokenswarm.load.schedule import share_by_users
from tokenswarm.measure import snapshot
from tokenswarm.measure.prompt_cut import PromptWatch
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile import profile as profiles
from tokenswarm.prompts import Prompt
from tokenswarm.prompts.from_profile import prompt_policy
from tokenswarm.prompts.info import UNANSWERED
from tokenswarm.prompts.replay import Replay, of_round
from tokenswarm.record import Outcome, RequestRecord
from tokenswarm.reports.jsonl import row
from tokenswarm.reports.spool import Owner, Spool

REPORT_S = 1.0
CANCEL_S = 2.0
"""After the drain bound, how long cut-off requests may take to be counted."""
INTERRUPT_DRAIN_S = 5.0  # a signal does not wait for long answers


class Worker:
    """The load side of one process. Users call `ready.wait()`, `replay()`, `send()`; an open loop has none."""

    def __init__(self, environment: Environment, token: str) -> None:
        self._environment = environment
        self._token = token
        self._spool: Spool | None = None  # until its rows are in the master's hands
        self._hand_over: HandOver | None = None
        self._told = self._lost = False  # that rows can't be written; its data set
        self._ended = ""  # the signal that ended this worker
        self._drain_by_ns = 0
        self._reporter: gevent.Greenlet | None = None
        self._sending: set[gevent.Greenlet] = set()
        self._numbers = itertools.count()
        self.ready = Event()  # data loaded, in the run
        self.begun = Event()  # and the first stage is announced: users may begin
        self.draining = Event()  # users send no more
        self.stage, self.phase = 0, "warmup"
        self.gone = Event()  # the master is gone or refused us
        self.exit_code, self.message = ExitCode.TARGET, "the master ended before its run began, and says why"
        handlers: dict[ToWorker, Callable[[Any], None]] = {
            ToWorker.RUN: lambda data: self._spawn(self._prepare, data) and None,
            ToWorker.PHASE: self._enter,
            ToWorker.DRAIN: lambda data: self._spawn(self._drain, float(data["bound_s"])) and None,
            ToWorker.ACK: self._on_ack,
            ToWorker.REFUSED: self._on_refused,
        }
        for kind, handler in handlers.items():
            environment.runner.register_message(kind.value, _listener(handler))

    # -- joining -------------------------------------------------------------------------------------------------

    def hello(self) -> None:
        """Ask for a place in the run: within this process. Over the port, the runner asked before it was there."""
        if isinstance(self._environment.runner, Runner):
            self._environment.runner.attend()
            self._spawn(self._watch_master)
        else:
            self._tell(ToMaster.HELLO, hello(self._token))

    def _tell(self, kind: ToMaster, data: Any) -> None:
        self._environment.runner.send_message(kind.value, data)

    def _prepare(self, data: dict[str, Any]) -> None:
        try:
            self._open(data)
            return
        except UserError as error:
            self.exit_code, self.message = error.exit_code, str(error)
        except TransportError as error:
            self.exit_code, self.message = ExitCode.TARGET, error.sentence
        self._tell(ToMaster.FAILED, {"code": int(self.exit_code), "sentence": self.message})

    def _open(self, data: dict[str, Any]) -> None:
        self.draining.clear()  # the web UI may start several runs in one process
        self.stage, self.phase = 0, "warmup"
        self.profile = profile = profiles.decode(data["profile"])
        self.index, count = int(data["index"]), int(data["count"])
        self._users = self._sent = 0
        self._first = FirstAnswers(profile.load.abort_on_fail.after)
        self._left = share_by_users(profile.load, self.index, count)  # an open loop's lane counts by itself
        check_descriptors(profile.load.under_way, count)
        self._library = load_library(profile.dataset, lambda text: self._tell(ToMaster.PROGRESS, {"text": text}))
        self._stock = self._library.shard(self.index, count, profile.load.users_most)
        self._policy = prompt_policy(profile.dataset)
        limits = request_limits(profile.slo)
        self.recorder = Recorder(
            data["run_id"], self.index, limits, start_ns=monotonic_ns(), host=socket.gethostname(), pid=os.getpid()
        )
        self.recorder.describes_closed = bool(profile.search.rate or profile.search.users)
        place = (self.index, count, traced(profile, self._library))
        self._lane = Lane(profile.load, self.recorder, *place, self.replay, self._depart, self.draining, self.lose_data)
        self._watch = PromptWatch(counts_cached=profile.engine.kind == "ollama")
        self._probes = Probes(self.recorder.instrument)
        self._decoder = Decoder(self._crashed, open_native(self.recorder.instrument, self._crashed))
        self._clients = []
        for url in profile.target:
            target = make_checked_target(profile, url)
            resolve(target)
            target.turn = self.index  # workers begin with different addresses of a name
            self._clients.append(make_client(profile, target, self._decoder, self.recorder, self._record))
            self._clients[-1].keep_text |= UNANSWERED in self._library.info.notes  # it stands in the history
        self._spool = open_spool(
            data.get("spool"),
            Owner(run_id=data["run_id"], worker=self.index, workers=count, host=socket.gethostname(), pid=os.getpid()),
            parts=profile.soak.rotate_bytes is not None,
        )
        self._hand_over = HandOver(self._spool, self._tell, self.gone)
        if profile.soak.rotate_bytes is not None:
            self._hand_over.begin()
        self._told = self._lost = False
        calm_garbage_collection()
        forget_spawners()
        self._probes.start()
        self._reporter = self._spawn(self._report_forever)
        self._tell(ToMaster.PREPARED, {"dataset": msgspec.to_builtins(self._library.info), "reader": reader_name()})
        self._drain_by_ns, self.exit_code, self.message = 0, ExitCode.OK, ""
        self.ready.set()

    # -- sending -------------------------------------------------------------------------------------------------

    def new_step_back(self) -> StepBack:
        """For one more user; what it waits depends on the profile's seed, the worker and the user's number alone."""
        self._users += 1
        seed = f"{self.profile.dataset.shuffle_seed} {self.index} {self._users}"
        return StepBack(self.profile.load.think_time, seed)

    def replay(self) -> Replay:
        """The next conversation of this worker's share."""
        conversation = next(self._stock)
        number = self._stock.wraps if self.profile.dataset.rounds == "distinct" else 0
        return Replay(of_round(conversation, number), self._policy)

    def send(self, prompt: Prompt) -> RequestRecord | None:
        """Send one prompt now and wait for its end. None where the run is draining, or all its requests were sent."""
        if self.draining.is_set() or self._left == 0:
            return None
        self._left = None if self._left is None else self._left - 1
        name = f"{self.recorder.run_id}-{self.index}-{next(self._numbers)}"  # unique over workers, and over runs
        self.recorder.intended(self.stage, self.phase)
        return self._send(prompt, Due(name, self.stage, self.phase, monotonic_ns()))

    def _send(self, prompt: Prompt, due: Due) -> RequestRecord:
        place = self._sent
        self._sent += 1
        self.recorder.wraps = self._stock.wraps  # of what is sent: who finds the load over has drawn one more
        size = prompt.size(chat=self.profile.engine.api == "chat")
        request = Request(due.id, prompt, due.stage, due.phase, due.at_ns, size)
        greenlet = gevent.getcurrent()
        self._sending.add(greenlet)
        try:
            record = self._clients[place % len(self._clients)].send(request, sampling_of(self.profile, prompt))
            self._first.ended(place, record)
            self.recorder.first_failed = self._first.failed
            return record
        finally:
            self._sending.discard(greenlet)
            self._end_if_spent()

    def _end_if_spent(self) -> None:
        """Where the run ends with its requests: the window is over with the last of this worker's."""
        if self._left == 0 and not self._sending and self.phase == "steady" and not self.recorder.spent:
            self.recorder.close_window(self.stage, monotonic_ns())
            self.recorder.spent = True
            self._spawn(self._report)

    def _depart(self, prompt: Prompt, due: Due) -> gevent.Greenlet:
        """The greenlet that sends an arrival."""
        greenlet = gevent.Greenlet(self._send, prompt, due)
        self._sending.add(greenlet)
        return greenlet

    def _record(self, record: RequestRecord) -> None:
        """Every request passes here exactly once, however it ended."""
        if needed := self._watch.needed(record):
            record = msgspec.structs.replace(record, prompt_needed=needed)
        self.recorder.add(record)
        spool, profile, start_ns = self._spool, self.profile, self.recorder.start_ns
        assert spool is not None
        spool.write(row(record, self.index, start_ns, save_text=profile.save_text, asked=profile.engine.asked_model))
        fire_request(self._environment, profile, record)

    # -- phases, reports, the end --------------------------------------------------------------------------------

    def _enter(self, data: dict[str, Any]) -> None:
        now_ns = monotonic_ns()
        stage, phase = int(data["stage"]), str(data["phase"])
        if phase != "steady":
            self.recorder.close_window(self.stage, now_ns)
        elif self._lane.course is None:
            self.recorder.open_window(stage, now_ns)
        self.stage, self.phase = stage, phase
        self.begun.set()
        self._end_if_spent()
        if data.get("course") is not None:
            course = self._lane.begin(stage, now_ns, data["course"])
            self.recorder.open_window(stage, course.open_ns, course.close_ns)
        elif phase == "drain":
            self._lane.end()

    def _report_forever(self) -> None:
        while True:
            gevent.sleep(REPORT_S)
            self._report()

    def _report(self, *, final: bool = False) -> None:
        self._probes.sample()
        self._decoder.count_lags()
        self.recorder.users = self._environment.runner.user_count
        report = self.recorder.snapshot(monotonic_ns(), final=final)
        encoded = snapshot.encode(report)
        self._tell(ToMaster.REPORT, encoded)
        self._save(report, encoded)

    def _save(self, report: snapshot.Snapshot, encoded: bytes) -> None:
        """Onto the disk what came since the last report: more than a second is never lost."""
        if self._spool is None:
            return
        self._spool.flush()
        self._spool.keep(report, encoded)
        if self._spool.failure is not None and not self._told:
            self._told = True
            sentence = f"{socket.gethostname()}: {self._spool.failure}"
            self._tell(ToMaster.TROUBLE, {"code": int(ExitCode.RESULTS), "sentence": sentence})

    def _drain(self, bound_s: float) -> None:
        """Send no more; wait for open streams up to the bound; count the rest as censored; hand everything over.

        Told again, by a signal, it only has less time.
        """
        began_ns = monotonic_ns()
        by_ns = began_ns + int(bound_s * NS_PER_S)
        self._drain_by_ns = min(self._drain_by_ns or by_ns, by_ns)
        if self.draining.is_set() or not self.ready.is_set():
            self.draining.set()
            return
        self._enter({"stage": self.stage, "phase": "drain"})
        self.draining.set()
        self._wait_idle()
        bound_s = (self._drain_by_ns - began_ns) / NS_PER_S
        for stream in self._decoder.streams():
            if isinstance(stream, Exchange):
                stream.fail(Outcome.CENSORED, f"still running {bound_s:.3g} s after the last window", "drain bound")
                self._decoder.queue(stream)
        self._wait_idle(CANCEL_S)
        for greenlet in list(self._sending):  # still connecting: no stream to fail
            greenlet.kill(block=False)
        self._wait_idle(CANCEL_S)
        self._finish()

    def _wait_idle(self, bound_s: float | None = None) -> None:
        """Until nothing is in flight; without a bound, until the drain's, which may move."""
        deadline_ns = None if bound_s is None else monotonic_ns() + int(bound_s * NS_PER_S)
        while self._sending and monotonic_ns() < (deadline_ns or self._drain_by_ns):
            gevent.sleep(0.02)

    def end(self, name: str) -> None:
        """A signal ends this worker alone: open streams get a few seconds, rows are handed over. A second one: now."""
        how = f"ended by a signal{f' ({name})' if name else ''}"  # "": not known
        if self._ended or self.gone.is_set():
            self._leave(ExitCode.INTERRUPTED, f"{how}, at once")
            return
        self._ended = how
        if self._sending or not self.draining.is_set():  # else it had ended, and nothing is missing
            self._tell(ToMaster.LEAVING, {"sentence": f"was {how}"})
        if self._spool is None:
            self._leave(ExitCode.INTERRUPTED, how)
        else:
            self._spawn(self._drain, INTERRUPT_DRAIN_S)

    def lose_data(self, error: DatasetError) -> None:
        """It does not hold what was indexed: no prompt is to be trusted. The worker drains, and the verdict has why."""
        if not self._lost:
            self._lost = True
            self._tell(ToMaster.LEAVING, {"sentence": f"lost its data set: {error}"})
            self._spawn(self._drain, INTERRUPT_DRAIN_S)

    def _finish(self) -> None:
        self.ready.clear()
        self.begun.clear()
        if self._reporter is not None:
            self._reporter.kill()  # and wait: a report behind the final one would undo it
        self._probes.stop()
        runner = self._environment.runner
        if isinstance(runner, Runner):
            runner._send_stats()  # Locust's own table is then complete, too
        self._report(final=True)
        self._decoder.close()
        for client in self._clients:
            client.pool.close()
        assert self._hand_over is not None
        if self._hand_over.run():
            self._spool = None
        if self._ended:
            self._leave(ExitCode.INTERRUPTED, f"{self._ended}: its streams were drained")

    @property
    def busy(self) -> bool:
        """Whether it has rows that the master lacks."""
        return self._spool is not None

    def last_words(self) -> str:
        """What the user should know when this worker leaves: why, and where rows are that nobody took over."""
        if self._spool is None:
            return self.message
        self._spool.flush()
        if self.exit_code is ExitCode.OK and self._hand_over is not None:
            self.exit_code, self.message = self._hand_over.reproach()
        if not self._spool.rows:
            self._spool.remove()
            return self.message
        where = self._spool.path.parent
        return f"{self.message}; its rows are in {where}: `tokenswarm report --merge RESULTS {where}` brings them back"

    def _on_ack(self, data: dict[str, Any]) -> None:
        if self._hand_over is not None:
            self._hand_over.on_ack(data)

    def _on_refused(self, data: dict[str, Any]) -> None:
        self._leave(ExitCode.CONFIG, str(data["sentence"]))

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> gevent.Greenlet:
        """A greenlet whose bug ends this worker: one that went silent would have the master wait for it."""
        greenlet = gevent.spawn(function, *arguments)
        greenlet.link_exception(lambda _: self._crashed())
        return greenlet

    def _crashed(self) -> None:
        self._leave(ExitCode.INTERNAL, "a bug in tokenswarm stopped this worker; the log has the traceback")

    def _leave(self, code: ExitCode, message: str) -> None:
        self.exit_code, self.message = code, message
        self.draining.set()
        self.gone.set()

    def _watch_master(self) -> None:
        """The dead man's switch: no word of the master, no load.

        In seconds that this worker lived through: one that stood still can't tell who was silent. No clock is asked.
        """
        runner, heard, silent_s = self._environment.runner, -1, 0
        while not self.gone.is_set():
            gevent.sleep(1.0)
            silent_s = silent_s + 1 if runner.heard == heard else 0
            heard = runner.heard
            if silent_s >= SILENCE_S:
                self._leave(
                    ExitCode.INVALID, f"no word from the master for {SILENCE_S:g} s: this worker stops its load"
                )
                for greenlet in list(self._sending):
                    greenlet.kill(block=False)
                if self._spool is not None:
                    self._spool.flush()


def _listener(handler: Callable[[Any], None]) -> Callable[..., None]:
    def listen(msg: Any, **_: Any) -> None:
        handler(msg.data)

    return listen
