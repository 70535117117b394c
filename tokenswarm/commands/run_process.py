"""`tokenswarm run` as a process of its own, of a command that goes on behind it: it gets our signals from us alone."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator

from tokenswarm.errors import ExitCode
from tokenswarm.own_process import command_of
from tokenswarm.terminal import end_signals

COMMAND = tuple(command_of("tokenswarm.cli", "run"))


@contextlib.contextmanager
def signals_to(ask: Callable[..., None]) -> Iterator[None]:
    """Meanwhile `ask` is called for each signal that asks for the end, instead of what else would be."""
    before = {number: signal.signal(number, ask) for number in end_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def see_out(process: subprocess.Popen[bytes], asked: Callable[[], int]) -> int:
    """Wait for the end of a run, started in a session of its own; its exit code.

    `asked`: how often somebody asked for the end so far. The run hears of each: the first ends it in order, the second
    at once.
    """
    told = 0
    while process.poll() is None:
        if asked() > told:
            told += 1
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    code = process.returncode
    return code if code >= 0 else int(ExitCode.INTERRUPTED if code == -signal.SIGINT else ExitCode.INTERNAL)
