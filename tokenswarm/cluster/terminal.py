"""Where a run was started from may go: a terminal closes, the reader of a pipe leaves. Neither costs a result.

A terminal that closes sends SIGHUP, which asks for the end as SIGTERM does, and takes no more words: those of the
conclusion go nowhere, its files are written. Who reads a pipe (`| head`) may leave at any moment.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # nobody reads any more; a terminal that has closed


def end_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask for the end in order; not SIGHUP where it is ignored, as under nohup."""
    asked = (signal.SIGINT, signal.SIGTERM)
    return asked if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*asked, signal.SIGHUP)


def outlive_listeners() -> None:
    """Words to stdout and stderr fail no more because nobody is there to read them.

    A full disk under stdout stays an OSError: it may be the result. What is said on stderr is never worth a run.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before we began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 -- as long as we live
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            outlet = io.BufferedWriter(_Outlet(stream.fileno(), spares=name == "stderr"))
            lines = stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(outlet, stream.encoding, stream.errors, line_buffering=lines))


class _Outlet(io.FileIO):
    """A descriptor whose listener may leave. `spares`: it fails of nothing at all."""

    def __init__(self, descriptor: int, *, spares: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._spares = spares

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno in _GONE:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            elif not self._spares:
                raise
            return memoryview(data).nbytes
