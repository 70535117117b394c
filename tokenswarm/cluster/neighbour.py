"""Before the load: does the engine share this machine with its workers, and may it use all of its cores?

Engines on a CPU spin on every core that they are given, and a worker beside them waits for its own. Known here are a
loopback target, the process that listens there with its children, the cores that it may run on, and how many threads it
was told to use.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
from collections.abc import Collection, Sequence

import psutil

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.judge.rules.causes import MEND_ENGINE, is_loopback
from tokenswarm.judge.rules.evidence import Beside
from tokenswarm.profile.profile import Profile
from tokenswarm.untold import UNTOLD

# Engines that take all cores unless they are told how many threads to have.
_ON_THE_CPU = re.compile(r"ollama|llama[-_.]?cpp|llama-server|llamafile|xllamacpp|koboldcpp|local-ai", re.IGNORECASE)
_THREADS = re.compile(r"(?:^|\s)(?:-t|--threads)[=\s](\d+)(?=\s|$)")
BUSY = 0.75  # of our cores: what a process had while the preflight asked it, if it is one of these


class Neighbour:
    """Look at the machine before the preflight asks the engine anything, and again when it has."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._cores = _cores()
        self._listening: list[psutil.Process] = []  # to look for them takes 20 ms, and more where many connections are
        self._before, self._began_ns = _cpu_s(self._engine()), monotonic_ns()

    def note(self) -> str | None:
        """A sentence where the engine may keep the workers waiting."""
        seconds = (monotonic_ns() - self._began_ns) / NS_PER_S
        family = self._engine()
        if not family or not self._cores <= set().union(*(_cores_of(process) for process in family)):
            return None
        used = (_cpu_s(family) - self._before) / max(seconds, 1e-3)
        threads = self._profile.engine.num_thread or _threads(family)
        if threads is not None:
            crowded = threads >= len(self._cores)
        else:
            crowded = any(_ON_THE_CPU.search(_words(process)) for process in family) or used > BUSY * len(self._cores)
        if not crowded:
            return None
        return (
            f"the engine runs on this machine and may use all {len(self._cores)} cores: its threads will keep the "
            f"workers waiting, and the bars of the numbers grow; {MEND_ENGINE}"
        )

    def begin(self) -> None:
        """The load begins."""
        self._before, self._began_ns = _cpu_s(self._engine()), monotonic_ns()

    def beside(self) -> Beside | None:
        """What the engine used since the load began; None where it is elsewhere, or nobody may see its processes."""
        family = self._engine()
        if not family:
            return None
        seconds = max((monotonic_ns() - self._began_ns) / NS_PER_S, 1e-3)
        cores = max(0.0, _cpu_s(family) - self._before) / seconds  # below 0: it was started again meanwhile
        return Beside(socket.gethostname(), cores, len(self._cores))

    def _engine(self) -> list[psutil.Process]:
        """The process that listens at a loopback target, and its children; [] where nobody tells."""
        try:
            if not (self._listening and all(map(_lives, self._listening))):
                self._listening = _listening({port for url in self._profile.target if (port := _loopback_port(url))})
            return self._listening + [child for one in self._listening for child in one.children(recursive=True)]
        except UNTOLD:
            return []


def _listening(ports: Collection[int]) -> list[psutil.Process]:
    pids = {
        one.pid
        for one in (psutil.net_connections(kind="tcp") if ports else ())
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port in ports and one.pid
    }
    return [psutil.Process(pid) for pid in pids]


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _loopback_port(url: str) -> int | None:
    parts = urllib.parse.urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        return None
    return parts.port or (443 if parts.scheme == "https" else 80)


def _cores() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cores_of(process: psutil.Process) -> set[int]:
    try:
        return set(process.cpu_affinity())
    except UNTOLD:
        return _cores()


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except UNTOLD:
        return ""


def _threads(family: Sequence[psutil.Process]) -> int | None:
    """What the command lines say; the largest, since one of them runs the model."""
    found = [int(match[1]) for process in family for match in _THREADS.finditer(_words(process))]
    return max(found, default=None)


def _cpu_s(family: Sequence[psutil.Process]) -> float:
    total_s = 0.0
    for process in family:
        try:
            times = process.cpu_times()
        except UNTOLD:
            continue
        total_s += times.user + times.system
    return total_s
