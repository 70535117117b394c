"""Workers as processes: those that `tokenswarm run` starts beside itself, and `tokenswarm worker` on other machines.

Workers on this machine die with their parent (no orphan keeps loading the target), get the run's token by environment,
and are waited for by process id.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
from collections.abc import Callable

import gevent
from locust.env import Environment
from locust.event import Events

from tokenswarm.cluster.runners import make_worker
from tokenswarm.cluster.users import ReplayUser
from tokenswarm.cluster.worker import Worker
from tokenswarm.own_process import command_of
from tokenswarm.terminal import end_signals

WAITING_S = 3.0  # before a worker says that it still waits
STOP_S = 5.0  # for a worker to end after it was asked to


class Replay(ReplayUser):
    """The user of `tokenswarm run`: what it replays is the profile's."""


def make_environment() -> Environment:
    """An environment of our own: no locust.conf, no pyproject.toml of the folder we happen to stand in."""
    return Environment(user_classes=[Replay], events=Events(), host="", catch_exceptions=True)


def new_token() -> str:
    return secrets.token_hex(16)


class LocalWorkers:
    """Worker processes on this machine, started and supervised by the master."""

    def __init__(self, count: int, port: int, token: str) -> None:
        environ = {**os.environ, "TOKENSWARM_RUN_TOKEN": token}
        command = command_of("tokenswarm.cluster", "127.0.0.1", str(port))
        self._processes = [
            subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
            for _ in range(count)
        ]

    def watch(self, on_exit: Callable[[int, int], None]) -> None:
        """Call `on_exit(pid, exit code)` when one ends."""
        for process in self._processes:
            gevent.spawn(lambda p: on_exit(p.pid, p.wait()), process)

    def stop(self) -> None:
        """End all of them, by force if need be."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_worker(master_host: str, master_port: int, token: str, *, remote: bool = True) -> int:
    """Join a master and serve its run; returns the exit code. Raises TargetError where no master answers.

    A worker that is not `remote` keeps its rows in the results folder, of which the master speaks.
    """
    environment = make_environment()
    told = f"waiting for the master at {master_host}:{master_port}"
    waiting = gevent.spawn_later(WAITING_S, print, told, file=sys.stderr, flush=True)
    try:
        runner = make_worker(environment, master_host, master_port, token)
    finally:
        waiting.kill()
    environment.parsed_options = argparse.Namespace()  # else the first users' start builds Locust's parser: 100 ms
    worker = Worker(environment, token)
    environment.tokenswarm_worker = worker
    signals = [gevent.signal_handler(number, worker.end, number.name) for number in end_signals()]
    worker.hello()
    gevent.spawn(runner.greenlet.join).link(lambda _: worker.gone.set())  # the master said quit
    worker.gone.wait()
    words = worker.last_words()
    if words and remote:
        print(f"tokenswarm worker: {words}", file=sys.stderr, flush=True)
    environment.events.quitting.fire(environment=environment, reverse=True)  # tells the master, if it is there
    runner.quit()
    for watcher in signals:
        watcher.cancel()
    return int(worker.exit_code)
