"""Which reader of streams this process has: the one in C where it was built, else the one in Python."""

from __future__ import annotations

import functools
from typing import Literal

from tokenswarm.compiled import compiled
from tokenswarm.errors import ConfigError
from tokenswarm.profile.environment import wanted_reader


@functools.cache
def reader_name() -> Literal["native", "python"]:
    """Chosen once a process. Raises ConfigError where TOKENSWARM_READER asks for what is not there."""
    wanted = wanted_reader()
    if wanted not in ("", "native", "python"):
        raise ConfigError(f"TOKENSWARM_READER is `{wanted}`; it may be `native` or `python`")
    built = wanted != "python" and all(map(compiled, ("tokenswarm.client._reader", "tokenswarm.measure._counting")))
    if wanted == "native" and not built:
        raise ConfigError(
            "TOKENSWARM_READER is `native`, and the reader in C is not there, or older than its source, or built for "
            "another system: it is built where tokenswarm is installed on Linux with a C compiler; install it again"
        )
    return "native" if built else "python"
