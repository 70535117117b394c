"""What prometheus_client tells of any process, for /metrics: when it began, and its resident memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ABOUT = {
    "process_start_time_seconds": "Start time of the process since unix epoch in seconds.",
    "process_resident_memory_bytes": "Resident memory size in bytes.",
}


def process_metrics(born_s: float) -> dict[str, float]:
    """`born_s`: s since 1970. Memory (bytes) where the system tells."""
    found = {"process_start_time_seconds": born_s}
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        found["process_resident_memory_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    return found
