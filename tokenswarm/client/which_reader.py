"""Which reader of streams this process has: the one in C where it was built, else the one in Python."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Literal

from tokenswarm.errors import ConfigError
from tokenswarm.profile.environment import wanted_reader

SOURCES = ("_reader.c", "_shape.h")


@functools.cache
def reader_name() -> Literal["native", "python"]:
    """Chosen once a process. Raises ConfigError where TOKENSWARM_READER asks for what is not there."""
    wanted = wanted_reader()
    if wanted not in ("", "native", "python"):
        raise ConfigError(f"TOKENSWARM_READER is `{wanted}`; it may be `native` or `python`")
    built = sys.platform.startswith("linux") and _is_built()
    if wanted == "native" and not built:
        raise ConfigError(
            "TOKENSWARM_READER is `native`, and the reader in C is not there, or older than its source: it is built "
            "where tokenswarm is installed on Linux with a C compiler; install it again"
        )
    return "native" if built and wanted != "python" else "python"


def _is_built() -> bool:
    """Whether it is there, and of the source beside it: after a pull the old one would speak another language."""
    spec = importlib.util.find_spec("tokenswarm.client._reader")
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin)
    sources = [library.with_name(name) for name in SOURCES]
    return all(source.stat().st_mtime <= library.stat().st_mtime for source in sources if source.exists())
