"""Between master and workers: the messages, the handshake, and who is here. Aggregates only; nothing per request.

Messages travel as Locust custom messages, so one TCP port serves both; with a local runner the same calls stay in the
process. A worker is in the run once it said hello with the run's token and the same version; all others get no load.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec
from locust.env import Environment
from locust.runners import MasterRunner

from tokenswarm import __version__
from tokenswarm.clock import NS_PER_S, monotonic_ns


class ToMaster(enum.StrEnum):
    HELLO = "tokenswarm-hello"  # {version, token, host, pid}
    PREPARED = "tokenswarm-prepared"  # {dataset: {...}}
    PROGRESS = "tokenswarm-progress"  # {text}
    FAILED = "tokenswarm-failed"  # {code, sentence}
    REPORT = "tokenswarm-report"  # an encoded Snapshot
    TROUBLE = "tokenswarm-trouble"  # {code, sentence}: something fails, the load goes on
    LEAVING = "tokenswarm-leaving"  # {sentence}: why it drains now and leaves the run
    ROWS = "tokenswarm-rows"  # {seq, data}: rows of requests.jsonl after the load, compressed
    DONE = "tokenswarm-done"  # {rows, seq}: all that this worker has to say


class ToWorker(enum.StrEnum):
    RUN = "tokenswarm-run"  # {run_id, profile, index, count, spool}
    PHASE = "tokenswarm-phase"  # {stage, phase}
    DRAIN = "tokenswarm-drain"  # {bound_s}
    ACK = "tokenswarm-ack"  # {seq, written}: rows arrived, send more
    REFUSED = "tokenswarm-refused"  # {sentence}


class Member(msgspec.Struct):
    """A worker as the master sees it."""

    client_id: str
    host: str
    pid: int
    index: int = -1
    prepared: bool = False
    done: bool = False
    lost: str = ""  # why it is gone; "" while it is here
    dead: bool = False  # its process ended
    left: str = ""  # why it drained and handed over before the run's end
    left_ns: int = 0
    dataset: dict[str, Any] = {}
    progress: str = ""
    heard_ns: int = 0
    rows: int = 0

    @property
    def name(self) -> str:
        return f"worker {self.index} ({self.host}, pid {self.pid})"


class Cluster:
    """The master's side: members, and sending to them. Handlers are called as handler(member, data)."""

    def __init__(self, environment: Environment, token: str) -> None:
        self._environment = environment
        self._token = token
        self._handlers: dict[str, Callable[[Member, Any], None]] = {}
        self.members: dict[str, Member] = {}
        self.refused: list[str] = []
        self.closed = False  # once the run began: late workers are refused
        for kind in ToMaster:
            environment.runner.register_message(kind.value, self._receive)

    def on(self, kind: ToMaster, handler: Callable[[Member, Any], None]) -> None:
        self._handlers[kind.value] = handler

    def send(self, member: Member, kind: ToWorker, data: Any) -> None:
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            runner.send_message(kind.value, data, member.client_id)
        else:
            runner.send_message(kind.value, data)

    def begin(self) -> None:
        """Forget what members did in an earlier run of this process."""
        self.closed = False
        for member in self.members.values():
            member.index, member.prepared, member.done, member.rows, member.lost = -1, False, False, 0, ""
            member.left = ""

    def broadcast(self, kind: ToWorker, data: Any) -> None:
        for member in self.in_run:
            if not member.lost:
                self.send(member, kind, data)

    @property
    def in_run(self) -> list[Member]:
        """Members with a place in the run, by index; lost ones too."""
        return sorted((m for m in self.members.values() if m.index >= 0), key=lambda m: m.index)

    def find_lost(self, silence_s: float) -> list[Member]:
        """Members that went missing since the last call: Locust lost their heartbeat, or their reports stopped."""
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            return []
        found, now_ns = [], monotonic_ns()
        for member in self.in_run:
            if member.lost or member.done:
                continue
            client = runner.clients.get(member.client_id)
            if client is None or client.state == "missing":
                member.lost = "its heartbeat stopped"
            elif member.heard_ns and now_ns - member.heard_ns > silence_s * NS_PER_S:
                member.lost = f"no report for {silence_s:g} s"
            if member.lost:
                found.append(member)
        return found

    def _receive(self, msg: Any, **_: Any) -> None:
        kind, data = str(msg.type), msg.data
        client_id = str(getattr(msg, "node_id", "local"))
        if kind == ToMaster.HELLO.value:
            self._hello(client_id, data)
            return
        member = self.members.get(client_id)
        if member is None:
            return  # never said hello: none of its words count
        member.heard_ns = monotonic_ns()
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(member, data)

    def _hello(self, client_id: str, data: Any) -> None:
        if not isinstance(data, dict):
            return
        member = Member(client_id, host=str(data.get("host"))[:100], pid=int(data.get("pid") or 0))
        version = str(data.get("version"))[:40]
        if data.get("token", "") != self._token:
            reason = "it does not know this run's token (TOKENSWARM_RUN_TOKEN)"
        elif version != __version__:
            reason = f"it runs tokenswarm {version}, the master {__version__}: install the same version"
        elif self.closed:
            reason = "the run had already begun"
        else:
            self.members[client_id] = member
            return
        self.refused.append(f"a worker on {member.host} (pid {member.pid}) was refused: {reason}")
        self.send(member, ToWorker.REFUSED, {"sentence": f"the master refused this worker: {reason}"})
        self._evict(client_id)

    def evict_strangers(self) -> None:
        """Take Locust workers that never said hello out of the dispatch: they'd be given users that never send."""
        runner = self._environment.runner
        for client in list(runner.clients.all) if isinstance(runner, MasterRunner) else []:
            if client.id not in self.members:
                self.refused.append(f"the worker {client.id} is none of tokenswarm and gets no load")
                self._evict(client.id)

    def _evict(self, client_id: str) -> None:
        runner = self._environment.runner
        if isinstance(runner, MasterRunner) and runner.clients.get(client_id) is not None:
            del runner.clients[client_id]
