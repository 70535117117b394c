"""A wall clock that steps while a program runs: put this folder on PYTHONPATH, and the seconds into $STEPPED_CLOCK.

The file holds a number; whatever of Python asks for the time of day gets so many seconds more. Monotonic clocks go on.
Python imports a module of this name by itself at its start.
"""

import os
import time

_PATH = os.environ.get("STEPPED_CLOCK", "")
_time, _time_ns = time.time, time.time_ns


def _step_s() -> float:
    try:
        with open(_PATH, encoding="ascii") as file:  # noqa: PTH123  # pathlib asks for the time while it is imported
            return float(file.read() or 0)
    except OSError:
        return 0.0


if _PATH:
    time.time = lambda: _time() + _step_s()
    time.time_ns = lambda: _time_ns() + int(_step_s() * 1e9)
