"""Locust without what a process of `tokenswarm run` never uses: its web UI, and hooks into gevent's patching.

The UI is loaded where one is made: Flask is 0.1 s and 8 MB a process. For hooks gevent reads the metadata of all
installed packages 25 times, another 0.07 s; no package that is known to us has one.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

NAME = "locust.web"


def put_off() -> None:
    """Before Locust is imported; where it has been, nothing changes."""
    if "locust" not in sys.modules:
        from gevent import events  # after mistakes

        events.notify_and_call_entry_points = events.notify
        sys.modules[NAME] = _Later(NAME)


class _Later(ModuleType):
    """Stands where the module will be. Locust itself asks for the class alone, to make one of it some day."""

    def WebUI(self, *arguments: Any, **options: Any) -> Any:
        return _load().WebUI(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system and inspect ask of any module
            raise AttributeError(name)
        return getattr(_load(), name)


def _load() -> ModuleType:
    if isinstance(sys.modules.get(NAME), _Later):
        del sys.modules[NAME]
    return importlib.import_module(NAME)
