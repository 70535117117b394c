"""Locust's web UI, loaded where one is made: `tokenswarm run` makes none, and Flask is 0.1 s and 8 MB a process."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

NAME = "locust.web"


def put_off() -> None:
    """Before Locust is imported; where it has been, nothing changes."""
    if "locust" not in sys.modules:
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
