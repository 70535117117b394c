"""A long-lived program of ours as a process beside a run: the embedded engine, an exporter. Ends by its process id."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from types import TracebackType

from tokenswarm.cluster import parent
from tokenswarm.errors import TargetError
from tokenswarm.own_process import command_of

STOP_S = 5.0
_URL = re.compile(r"http://[^/\s]+")


def die_with_us() -> None:
    """In a process that is about to become a service: it ends in order when we are gone, killed or not."""
    parent.die_with_it(signal.SIGTERM)


class Service:
    """`with Service("tokenswarm.simulator", "--port", "0") as url`: started, listening, and stopped at the end."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._command = command_of(module, *arguments)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> str:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_us,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:  # each of them says where it listens; a failed one closes its output
            if found := _URL.search(line):
                return found[0]
        self._stop()
        raise TargetError(f"{self._module} did not start; its own message stands above")

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
