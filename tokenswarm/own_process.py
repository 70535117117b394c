"""How a module of ours is started as a process of its own, and what it loads."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


def command_of(module: str, *words: str) -> list[str]:
    """The command; `-P`: without the folder that we stand in, where a user may have a `yaml.py`, `locust.py`, …"""
    return [sys.executable, "-P", "-m", module, *words]


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """What is loaded here stays: the collector looks at none of it, now, in the middle of a load or at the very end."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
