"""How a module of ours is started as a process of its own."""

from __future__ import annotations

import sys


def command_of(module: str, *words: str) -> list[str]:
    """The command; `-P`: without the folder that we stand in, where a user may have a `yaml.py`, `locust.py`, …"""
    return [sys.executable, "-P", "-m", module, *words]
