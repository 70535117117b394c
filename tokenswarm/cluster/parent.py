"""What a process of ours takes over from the one that started it: its end, and its share of the cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from tokenswarm.errors import ExitCode

_PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_it(by: signal.Signals = signal.SIGKILL) -> None:
    """Ask Linux for a signal when the parent is gone, whatever killed it."""
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:
            sys.exit(int(ExitCode.INTERNAL))


def share_with_it() -> None:
    """Have the parent's share of the cores: Linux makes each session a group (sched_autogroup, sched(7)), and a new one
    begins at nice 0, whatever the value of the session that it came from.
    """
    with contextlib.suppress(OSError):  # not Linux, not built in, or a higher priority that may not be given
        nice = nice_of(Path(f"/proc/{os.getppid()}/autogroup").read_text(encoding="ascii"))
        if nice:
            Path("/proc/self/autogroup").write_text(nice, encoding="ascii")


def nice_of(told: str) -> str:
    """The nice value in what /proc says of a process's autogroup; "" where it is in none.

    A container whose first process never began a session is in the root's group, of which the kernel says nothing.
    """
    return told.rpartition(" nice ")[2].strip() if " nice " in told else ""
