"""Networks that can be cut, for programs that join a master: relays of this process, or namespaces of the kernel.

In namespaces packets are really lost: no reset, no close, and TCP that tries again less and less often.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from link import Link
from running import free_port
from simulator_process import simulator

ENGINE_PORT = 18_000
ENGINE = ("--preset", "paced", "--ttft-ms", "50", "--itl-ms", "20")


class Relays:
    """All in one network; each of the workers afar comes over a relay."""

    host = "127.0.0.1"
    environment: dict[str, str] = {}  # noqa: RUF012  # never written to

    def __init__(self, stack: ExitStack, afar: int) -> None:
        self.engine = stack.enter_context(simulator(*ENGINE)).url
        self.port = free_port()
        self._links: list[Link] = []
        self._stack, self._afar = stack, afar

    def at_home(self, command: list[str]) -> list[str]:
        return command

    def afar(self, _place: int, command: list[str]) -> list[str]:
        """The command of a worker there; `address` is where its master is."""
        return command

    def address(self, place: int) -> tuple[str, int]:
        while not self._links:  # only now does the master listen
            self._links += [self._stack.enter_context(Link(self.port)) for _ in range(self._afar)]
        return self.host, self._links[place].port

    def cut(self, place: int) -> None:
        self._links[place].cut()

    def heal(self, place: int) -> None:
        self._links[place].heal()


class Namespaces:
    """A network for the master, and one for each worker afar, with a cable to the master's and an engine of its own."""

    host = "0.0.0.0"
    port = 5557
    engine = f"http://127.0.0.1:{ENGINE_PORT}"
    environment = {"TOKENSWARM_RUN_TOKEN": "of-this-test"}  # noqa: RUF012  # never written to

    def __init__(self, stack: ExitStack, afar: int) -> None:
        if os.geteuid() or shutil.which("ip") is None:
            pytest.skip("network namespaces need root, and ip of iproute2")
        self._names = [f"tokenswarm-{os.getpid()}-{number}" for number in range(afar + 1)]
        for name in self._names:
            if (made := _ip("netns", "add", name)).returncode:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
            stack.callback(_ip, "netns", "del", name)
            _must("-n", name, "link", "set", "lo", "up")
            stack.enter_context(_engine(name))
        for place, name in enumerate(self._names[1:]):
            _must("-n", self._names[0], "link", "add", f"to{place}", "type", "veth", "peer", "home", "netns", name)
            for where, end, number in ((self._names[0], f"to{place}", 1), (name, "home", 2)):
                _must("-n", where, "address", "add", f"10.77.{place}.{number}/24", "dev", end)
                _must("-n", where, "link", "set", end, "up")

    def at_home(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._names[0], *command]

    def afar(self, place: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self._names[place + 1], *command]

    def address(self, place: int) -> tuple[str, int]:
        return f"10.77.{place}.1", self.port

    def cut(self, place: int) -> None:
        _must("-n", self._names[0], "link", "set", f"to{place}", "down")

    def heal(self, place: int) -> None:
        _must("-n", self._names[0], "link", "set", f"to{place}", "up")


WAYS = {"relays": Relays, "namespaces": Namespaces}


@contextlib.contextmanager
def _engine(name: str) -> Iterator[None]:
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "tokenswarm.simulator"]
    with subprocess.Popen([*command, "--port", str(ENGINE_PORT), *ENGINE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith(b"simulating ")
            yield
        finally:
            process.kill()


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60, check=False)


def _must(*words: str) -> None:
    done = _ip(*words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
