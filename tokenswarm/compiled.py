"""What is compiled where a C compiler was there at install: is it here, and of the source beside it?"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


@functools.cache
def compiled(module: str) -> ModuleType | None:
    """A module in C. None where there is none; where it is older than its source: after a pull it would speak another
    language than what stands above it; and where it is for another system, as in a wheel from a newer one."""
    spec = importlib.util.find_spec(module) if sys.platform.startswith("linux") else None
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin)
    built_ns = library.stat().st_mtime_ns
    if not all(source.stat().st_mtime_ns <= built_ns for source in library.parent.glob("_*.[ch]")):
        return None
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
