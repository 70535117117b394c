"""Where a run was started from may go: a terminal closes, a reader leaves or stands still. It costs no result.

A terminal that closes sends SIGHUP, which asks for the end as SIGTERM does, and takes no more words: those of the
conclusion go nowhere, its files are written. Who reads a pipe (`| head`) may leave at any moment, or read no more (a
pager, Ctrl-S, a log collector that hangs): then a write would never return, and with it the load and every signal.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # nobody reads any more; a terminal that has closed
_PIECE = 512  # what a pipe or a terminal that takes something takes at once
PATIENCE_S = 2.0  # for a reader of words that are no result; then they are dropped, until it reads again


def end_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask for the end in order; not SIGHUP and SIGQUIT (Ctrl-\\) where they are ignored, as the
    first is under nohup.
    """
    asked = (signal.SIGINT, signal.SIGTERM)
    more = (signal.SIGHUP, signal.SIGQUIT)
    return (*asked, *(number for number in more if signal.getsignal(number) is not signal.SIG_IGN))


def leave_the_end_to_our_parent() -> None:
    """Who asks all processes of a run for the end means its master, which waits for us, and ends us if it must."""
    for number in end_signals():
        signal.signal(number, signal.SIG_IGN)


def outlive_listeners(*, result: bool = True) -> None:
    """Words to stdout and stderr fail no more, and hold nobody up, because nobody is there to read them.

    A full disk under stdout stays an OSError, and its reader is waited for, where that may be the result. What is said
    on stderr is never worth a run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        spares = name == "stderr" or not result
        if stream is None:  # closed before we began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 -- as long as we live
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            outlet: Any = _Outlet(stream.fileno(), spares=spares)
            lines = stream.line_buffering
            errors = "replace" if name == "stdout" else stream.errors  # a dash in ASCII, a file name that is no text
            setattr(sys, name, io.TextIOWrapper(outlet, stream.encoding, errors, line_buffering=lines))
        elif isinstance(outlet := getattr(stream, "buffer", None), _Outlet):  # a command that has no result
            outlet.spares = outlet.spares or spares


def wait_for_nobody() -> None:
    """From now on: whoever asked for the end does not want to wait for a reader of stdout."""
    _Outlet.hurry = True


class _Outlet(io.FileIO):
    """A descriptor whose listener may leave, or stand still. `spares`: it fails of nothing, and waits for nobody.

    Without a buffer of io's, whose lock would fail every greenlet that writes while another one waits.
    """

    hurry = False  # of all of them

    def __init__(self, descriptor: int, *, spares: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.spares = spares
        self._deaf = False  # the listener stands still

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        while left and self._takes_some():
            left = left[self._write(left[:_PIECE]) :]
        return memoryview(data).nbytes

    def _write(self, data: memoryview) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno in _GONE:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            elif not self.spares:
                raise
            return data.nbytes

    def _takes_some(self) -> bool:
        """Wait until a write returns; False where nobody is waited for. Greenlets and signals have their turn."""
        while not _at_once()((), (self.fileno(),), (), 0)[1]:
            try:
                ready = not self._deaf and bool(select.select((), (self.fileno(),), (), PATIENCE_S)[1])
            except AssertionError:  # gevent's hub must not wait
                return False
            self._deaf = (self.spares or self.hurry) and not ready
            if self._deaf:
                return False
        self._deaf = False
        return True


def _at_once() -> Any:
    """The system's own select, which gives no other greenlet a turn in the middle of a line."""
    monkey = sys.modules.get("gevent.monkey")
    return select.select if monkey is None else monkey.get_original("select", "select")
