"""What is compiled where a C compiler was there at install: is it here, and of the source beside it?"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path


@functools.cache
def compiled(module: str) -> bool:
    """Whether a module in C can be had; not where it is older than its source: after a pull it would speak another
    language than what stands above it."""
    spec = importlib.util.find_spec(module) if sys.platform.startswith("linux") else None
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin)
    built_ns = library.stat().st_mtime_ns
    return all(source.stat().st_mtime_ns <= built_ns for source in library.parent.glob("_*.[ch]"))
