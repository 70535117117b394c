"""Signals to plain Locust: until it heeds them, while it waits to begin, and a Ctrl-C in a run."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from signal import SIGINT, default_int_handler, getsignal, signal
from typing import Any, NoReturn

import gevent

from tokenswarm.errors import ExitCode
from tokenswarm.terminal import end_signals

UNBEGUN = b"tokenswarm: interrupted before the load began: none was sent\n"


def end_unbegun(*_: Any) -> NoReturn:
    """Whoever is told to end before there is a run says so, and ends. Locust's main would show where it was."""
    with contextlib.suppress(OSError):
        os.write(2, UNBEGUN)
    os._exit(int(ExitCode.INTERRUPTED))


@functools.cache  # Locust makes its parser again in a run
def heed_until_ready() -> None:
    """From now on, whatever this process is at: Locust heeds a signal once it runs, and asking a target takes long."""
    for number in end_signals():
        signal(number, end_unbegun)


class Waiting:
    """Behind that, until there is a run: Locust's master waits for workers and heeds none. `told` hears of it first."""

    def __init__(self, told: Callable[[], object]) -> None:
        def end() -> None:
            told()
            end_unbegun()

        self._watchers = [gevent.signal_handler(number, end) for number in end_signals()]

    def over(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        signal(SIGINT, default_int_handler)  # as Locust expects it


@contextlib.contextmanager
def ctrl_c(called: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a Ctrl-C comes there, and not as an exception into whatever greenlet runs (a user, one who reports)."""
    before = getsignal(SIGINT)
    watcher = gevent.signal_handler(SIGINT, called)
    try:
        yield
    finally:
        watcher.cancel()
        signal(SIGINT, before)  # libev leaves the system's behind, which ends a process without a word
