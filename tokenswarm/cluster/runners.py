"""Locust's master and worker, with a door: only well-formed messages of admitted workers reach Locust's handlers.

Locust serves whoever reaches its port: a `client_ready` from anybody takes users away from a test that runs, one
message of another shape ends the listener, and its heartbeats are measured on the wall clock. Here a worker says our
hello *first*; its `client_ready` is what the master makes of a hello that it accepted. All else is dropped and counted.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Collection
from typing import Any, NoReturn, Protocol

import gevent
from gevent.event import Event
from locust import __version__ as locust_version
from locust import runners
from locust.env import Environment
from locust.exception import RPCError
from locust.rpc import Message
from locust.rpc.zmqrpc import zmqerr
from locust.stats import RequestStats

from tokenswarm import __version__
from tokenswarm.cluster import messages, port
from tokenswarm.cluster.entrance import check_port
from tokenswarm.cluster.messages import ToMaster, ToWorker
from tokenswarm.errors import ConfigError, TargetError
from tokenswarm.untold import UNTOLD

SILENCE_S = 10
"""Without a word for so long a worker is lost, here and there: the master gives it up, and its dead man's switch ends
its load. Both sides agree, so a partition that heals sooner costs nothing."""

LEAVE_S = 0.5  # for workers that were told to quit
HELLO_S = 5.0  # before a worker says hello again: the master may not be there yet
HELLOS_MAX = 60
SAID_MAX = 16  # different messages that are none, of which a worker tells
BREATH = 64  # messages between two looks at everything else: a flood must not starve the run

runners.rpc = port  # sockets with bounds
runners.HEARTBEAT_LIVENESS = SILENCE_S  # heartbeats that may stay away, one a second; Locust gives up after 3

_monitor = runners.Runner.monitor_cpu_and_memory


def _monitor_where_it_is_told(runner: runners.Runner) -> None:
    with contextlib.suppress(*UNTOLD):  # a warning of Locust's less; else plain Locust would exit with 2 for it
        _monitor(runner)


runners.Runner.monitor_cpu_and_memory = _monitor_where_it_is_told

log = logging.getLogger("tokenswarm")


class Gate(Protocol):
    """Who decides what comes in, and hears of what did not."""

    def admit(self, message: Message) -> Message | None:
        """Take a well-formed message; what is returned is for Locust's handlers."""

    def malformed(self, error: messages.Malformed) -> None: ...
    def trouble(self, sentence: str) -> None: ...


class Master(runners.MasterRunner):  # type: ignore[misc]  # Locust is untyped for us, see pyproject.toml
    """Nobody is heard until `attend` says who decides. ConfigError where the address can't be had."""

    def __init__(self, environment: Environment, host: str, port_number: int) -> None:
        self._gate: Gate | None = None
        self._attended = Event()
        try:
            super().__init__(environment, host, port_number)
        except RPCError as error:
            raise ConfigError(str(error)) from None

    def attend(self, gate: Gate) -> None:
        self._gate = gate
        self._attended.set()

    def quit(self) -> None:
        """As Locust, which waits for half a second, whoever is there: until the last worker said that it leaves."""
        self.stop(send_stop_to_client=False)
        for worker in self.clients.all:
            self.server.send_to_client(Message("quit", None, worker.id))
        with gevent.Timeout(LEAVE_S, False):
            while self.clients.all:
                gevent.sleep(0.01)
        self.greenlet.kill(block=True)

    def client_listener(self) -> NoReturn:
        self._attended.wait()
        assert self._gate is not None
        for number in itertools.count(1):
            if number % BREATH == 0:
                gevent.sleep(0)
            try:
                frames = self.server.socket.recv_multipart()
            except zmqerr.ZMQError as error:
                self._gate.trouble(f"the master's port broke ({error}); workers that were connected had to come back")
                self.connection_broken = True  # Locust opens it again
                gevent.sleep(runners.FALLBACK_INTERVAL)
                continue
            self._take(self._gate, frames)
        raise AssertionError("not reached")

    def _take(self, gate: Gate, frames: list[bytes]) -> None:
        try:
            message = Message(*messages.from_worker(frames, _own_types(self)))
        except messages.Malformed as error:
            gate.malformed(error)
            return
        try:
            admitted = gate.admit(message)
            if admitted is not None:
                self.handle_message(admitted.node_id, admitted)
        except Exception as error:
            # A bug of ours or Locust's. The listener has to live: without it every worker would seem lost.
            log.exception("a message could not be handled")
            gate.trouble(f"a message {message.type!r} of {message.node_id} could not be handled ({error!r})")


class Worker(runners.WorkerRunner):  # type: ignore[misc]  # as above
    """Says hello until the master answers. Raises ConfigError where it refuses, TargetError where none answers.

    Nothing is read behind the master's answer until `attend` says that somebody handles it. `heard` counts messages.
    """

    def __init__(self, environment: Environment, host: str, port_number: int, token: str) -> None:
        self._hello = hello(token)
        self._refusal = ""
        self._spawns = itertools.count(1)
        self.heard = 0
        self._attended = Event()
        self.greenlet: Any = None  # Locust's __del__ looks at it, be there a runner or not
        check_port("--master-port", port_number)
        try:
            if host.count(":") == 1:  # ZeroMQ would look for a name with a port in it, for ever
                raise zmqerr.ZMQError
            super().__init__(environment, host, port_number)
        except zmqerr.ZMQError:
            raise ConfigError(
                f"--master-host {host[:80]}: is no name and no address of a machine; write it without scheme and port, "
                "such as gpu-3 or 10.0.0.3"
            ) from None

    def attend(self) -> None:
        self._attended.set()

    def connect_to_master(self) -> None:
        for _ in range(HELLOS_MAX):
            if not self.client.connect(HELLO_S):
                continue
            self.client.send(Message(ToMaster.HELLO.value, self._hello, self.client_id))
            if self.connection_event.wait(HELLO_S):
                break
        else:
            raise TargetError(f"no master answered at {self.master_host}:{self.master_port} within 5 minutes")
        if self._refusal:
            raise ConfigError(self._refusal)
        self.connected = True

    def worker(self) -> NoReturn:
        self.last_received_spawn_timestamp = 0  # as Locust has it
        said: set[str] = set()
        for number in itertools.count(1):
            if number % BREATH == 0:
                gevent.sleep(0)
            if self.connection_event.is_set():
                self._attended.wait()  # the master may send the run before there is anybody to take it
            try:
                frames = self.client.socket.recv_multipart()
                self.handle_message(Message(*messages.from_master(frames, _own_types(self))))
            except messages.Malformed as error:
                if str(error) not in said and len(said) < SAID_MAX:  # a port of something else repeats itself
                    said.add(str(error))
                    log.warning("the master's port sent %s; dropped", error)
            except zmqerr.ZMQError as error:
                log.error("the connection to the master broke: %s", error)
                gevent.sleep(1.0)
            except Exception:
                log.exception("a message of the master could not be handled")
        raise AssertionError("not reached")

    def handle_message(self, message: Message) -> None:
        """As Locust does, on the monotonic clock: a step of either wall clock ends no load and loses no spawn."""
        self.heard += 1
        if message.type == ToWorker.REFUSED.value and not self.connected:
            self._refusal = message.data["sentence"]
            self.connection_event.set()
            return
        if message.type == "spawn":
            message.data["timestamp"] = next(self._spawns)  # in order, by TCP; Locust compares the master's wall clock
        super().handle_message(message)
        self.last_heartbeat_timestamp = None  # Locust's own check of it compares wall clocks; ours is `heard`


def hello(token: str) -> dict[str, Any]:
    """What a worker says of itself, and the word that lets it in."""
    return {"version": __version__, "token": token, "host": socket.gethostname(), "pid": os.getpid()}


def ready(client_id: str) -> Message:
    """What an accepted hello means to Locust."""
    return Message("client_ready", locust_version, client_id)


def _own_types(runner: Any) -> Collection[str]:
    """Types that a locustfile registered, beyond ours and Locust's."""
    found: Collection[str] = runner.custom_messages.keys()
    return found


def make_master(environment: Environment, host: str, port_number: int) -> Master:
    environment.runner = Master(environment, host, port_number)
    return environment.runner  # type: ignore[no-any-return]  # as above


def make_worker(environment: Environment, host: str, port_number: int, token: str) -> Worker:
    environment.stats = RequestStats(use_response_times_cache=False)  # as Locust's workers have it
    environment.runner = Worker(environment, host, port_number, token)
    return environment.runner  # type: ignore[no-any-return]  # as above
