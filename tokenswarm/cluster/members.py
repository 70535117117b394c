"""Who is in the run: the handshake, the members, what was kept out; and sending to them.

Messages travel as Locust custom messages, so one TCP port serves both; with a local runner the same calls stay in the
process. A worker is in the run once it said hello with the run's token and the same version, before the run began. Of
everybody else nothing is used, and what they sent is counted and named once (`Strangers`).
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner

from tokenswarm import __version__
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.messages import Malformed, ToMaster, ToWorker
from tokenswarm.cluster.runners import SILENCE_S, Master, ready
from tokenswarm.cluster.strangers import Strangers

HEARD_AGAIN_S = 3.0  # a lost worker that was heard so lately is back: it reports each second
NOTABLE_SILENCE_S = 3.0  # of a worker that came back: it reports each second


class Member(msgspec.Struct):
    """A worker as the master sees it."""

    client_id: str
    host: str
    pid: int
    index: int = -1
    prepared: bool = False
    spent: bool = False  # it has sent its share of a number of requests, and all of them have ended
    done: bool = False
    lost: str = ""  # why it is gone; "" while it is here
    dead: bool = False  # its process ended
    left: str = ""  # why it drained and handed over before the run's end
    left_ns: int = 0
    quit: bool = False  # it said that it leaves
    dataset: dict[str, Any] = {}
    reader: str = ""  # of streams: native or python
    heard_ns: int = 0
    silence_s: float = 0.0  # its longest silence, where that was notable and it came back
    rows: int = 0

    @property
    def name(self) -> str:
        return f"worker {self.index} ({self.host}, pid {self.pid})"

    @property
    def here(self) -> bool:
        """Not lost; or lost and heard again, such as behind a network that healed: its rows can still be fetched."""
        silence_s = (monotonic_ns() - self.heard_ns) / NS_PER_S
        return not self.lost or (not self.dead and silence_s < HEARD_AGAIN_S)


class Cluster:
    """The master's side: members, and sending to them. Handlers are called as handler(member, data)."""

    def __init__(self, environment: Environment, token: str) -> None:
        self._environment = environment
        self._token = token
        self._handlers: dict[str, Callable[[Member, Any], None]] = {}
        self.members: dict[str, Member] = {}
        self.strangers = Strangers()
        self.closed = False  # once the run began: late workers are refused
        self._left: set[str] = set()  # ids of members that were told to end before it began
        self._looked_ns = 0
        self.stood_still_s = 0.0  # this process, at most, between two looks
        if isinstance(environment.runner, Master):
            environment.runner.attend(self)
            return
        for kind in ToMaster:
            environment.runner.register_message(kind.value, self._receive_here)

    def on(self, kind: ToMaster, handler: Callable[[Member, Any], None]) -> None:
        self._handlers[kind.value] = handler

    def send(self, member: Member, kind: ToWorker, data: Any) -> None:
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            runner.send_message(kind.value, data, member.client_id)
        else:
            runner.send_message(kind.value, data)

    def begin(self) -> None:
        """Forget what members did in an earlier run of this process, and those that left since."""
        self._looked_ns, self.stood_still_s = 0, 0.0
        since_ns = monotonic_ns() - SILENCE_S * NS_PER_S
        distributed = isinstance(self._environment.runner, MasterRunner)
        for name, old in list(self.members.items()):
            del self.members[name]
            if not distributed or (not old.quit and old.heard_ns > since_ns):
                heard_ns = old.heard_ns if distributed else 0  # it says nothing where there is no run
                self.members[name] = Member(old.client_id, old.host, old.pid, heard_ns=heard_ns)

    def leave(self, member: Member) -> None:
        """It was told to end, and has no place in the run yet: another one may take it."""
        if self.members.pop(member.client_id, None) is not None:
            self._left.add(member.client_id)
            runner = self._environment.runner
            if isinstance(runner, MasterRunner):
                runner.clients.pop(member.client_id, None)  # else Locust gives it users, and waits a minute for them

    def broadcast(self, kind: ToWorker, data: Any) -> None:
        for member in self.in_run:
            if not member.lost:
                self.send(member, kind, data)

    @property
    def in_run(self) -> list[Member]:
        """Members with a place in the run, by index; lost ones too."""
        return sorted((m for m in self.members.values() if m.index >= 0), key=lambda m: m.index)

    @property
    def spent(self) -> bool:
        """Whether all requests that were asked for have ended."""
        members = self.in_run
        return any(m.spent for m in members) and all(m.spent or m.lost or m.left for m in members)

    def by_users(self) -> list[Member]:
        """All members in the order in which Locust hands out users: one on each host, then the second of each, …

        So the one with index i has `share(users, i, count)` of them.
        """
        on_host = Counter[str]()
        place: dict[str, tuple[int, str]] = {}
        for name in sorted(self.members):
            host = name.split("_")[0]  # as Locust takes an id apart
            place[name] = (on_host[host], name)
            on_host[host] += 1
        return sorted(self.members.values(), key=lambda member: place[member.client_id])

    def find_lost(self, silence_s: float) -> list[Member]:
        """Members that went missing since the last call: they left, or nothing came from them for so long.

        To be called each second. Where this process itself stood still, what came meanwhile is to be read first.
        """
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            return []
        found, now_ns = [], monotonic_ns()
        before_ns, self._looked_ns = self._looked_ns, now_ns
        if before_ns and now_ns - before_ns > NOTABLE_SILENCE_S * NS_PER_S:
            self.stood_still_s = max(self.stood_still_s, (now_ns - before_ns) / NS_PER_S)
            return []
        for member in self.in_run:
            if member.lost or member.done:
                continue
            if member.client_id not in runner.clients:
                member.lost = "it left the run"
            elif now_ns - member.heard_ns > silence_s * NS_PER_S:
                member.lost = f"nothing came from it for {silence_s:g} s"
            if member.lost:
                found.append(member)
        return found

    # -- what comes in -------------------------------------------------------------------------------------------

    def admit(self, message: Message) -> Message | None:
        """Handle one of our messages; return what Locust may see. Of ids that are no members: nothing."""
        if message.type == ToMaster.HELLO.value:
            new = self._hello(message.node_id, message.data)
            return ready(message.node_id) if new else None
        member = self.members.get(message.node_id)
        if member is None and message.node_id in self._left:
            return None
        if member is None:
            self.strangers.drop(message.node_id, f"{message.type!r}")
            return None
        self._hear(member)
        member.quit = member.quit or message.type == "quit"
        if message.type == "client_ready" and self.closed:
            return None  # it has its users; taken in again it would get others'
        handler = self._handlers.get(message.type)
        if handler is None:
            return message
        handler(member, message.data)
        return None

    def malformed(self, error: Malformed) -> None:
        member = self.members.get(error.sender)
        if member is None:
            self.strangers.drop(error.sender, str(error))
        else:
            self.trouble(f"{member.name} sent {error}; it was not used")

    def trouble(self, sentence: str) -> None:
        self.strangers.trouble(sentence)

    def _hear(self, member: Member) -> None:
        now_ns = monotonic_ns()
        silence_s = (now_ns - member.heard_ns) / NS_PER_S
        if member.heard_ns and silence_s > NOTABLE_SILENCE_S:
            member.silence_s = max(member.silence_s, silence_s)
        member.heard_ns = now_ns

    def _receive_here(self, msg: Any, **_: Any) -> None:
        """A message within this process, as Locust's local runner hands it on."""
        self.admit(msg)

    def _hello(self, client_id: str, hello: dict[str, Any]) -> bool:
        """True where a worker is in by it that was not in before."""
        if client_id in self.members:
            return False  # said again, since our answer took a while
        member = Member(client_id, host=hello["host"][:100], pid=hello["pid"], heard_ns=monotonic_ns())
        if not hmac.compare_digest(hello["token"].encode(), self._token.encode()):
            reason = "it does not know this run's token (TOKENSWARM_RUN_TOKEN)"
        elif hello["version"] != __version__:
            reason = f"it runs tokenswarm {hello['version'][:40]}, the master {__version__}: install the same version"
        elif self.closed:
            reason = "the run had already begun"
        else:
            self.members[client_id] = member
            return True
        self.strangers.refuse(f"a worker on {member.host} (pid {member.pid}) was refused: {reason}")
        self.send(member, ToWorker.REFUSED, {"sentence": f"the master refused this worker: {reason}"})
        return False
