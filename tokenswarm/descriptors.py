"""The file descriptors of this process: a connection needs one, and the usual soft limit of 1 024 is no limit of the
machine. Every process that opens sockets raises it to the hard one before it does anything else."""

from __future__ import annotations

import contextlib
import resource

SOFT_MAX = 1 << 20  # some containers have a hard limit of a thousand millions, and programs that count up to it


def raise_limit() -> int:
    """Raise the soft limit as far as we may; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOFT_MAX if hard == resource.RLIM_INFINITY else min(hard, SOFT_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS promises more than it gives
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def limit() -> int:
    """How many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SOFT_MAX if soft == resource.RLIM_INFINITY else soft
