"""windows.jsonl: a line a window of a run, written as they close; read back for a run that goes on, or never ended."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec

from tokenswarm.errors import MALFORMED
from tokenswarm.measure.windows import Restart, Window
from tokenswarm.result.soak import Soak, WindowTold, soak, told

WINDOWS_NAME = "windows.jsonl"
LINE_BYTES_MAX = 1 << 20

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Window)


def encode(window: Window) -> bytes:
    """The window as one line."""
    return _ENCODER.encode(window) + b"\n"


def read_soak(folder: Path, window_s: float, changing: Collection[int] = ()) -> Soak | None:
    """`soak` of the summary from the windows that are on disk. A line that is none is told in its note.

    `changing`: stages in which the load was not meant to be even.
    """
    windows: list[WindowTold] = []
    restarts: list[Restart] = []
    note, path = "", folder / WINDOWS_NAME
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX):
                number += 1
                try:
                    window = _DECODER.decode(line)
                    windows.append(told(window))
                    restarts += window.restarts
                except (*MALFORMED, ValueError) as error:
                    note = note or f"{path}:{number}: is no window ({error}); it is left out"
    except FileNotFoundError:
        return None
    except OSError as error:
        note = f"{path}: can't be read: {error.strerror}"
    return soak(windows, restarts, window_s, note, changing)
