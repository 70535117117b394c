"""What the system does not tell: the /proc of a sandbox, a container or another kernel has less than psutil expects."""

from __future__ import annotations

import psutil

UNTOLD = (OSError, psutil.Error, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""All that psutil raises where a file is missing, forbidden, empty or shorter than Linux documents: it takes lines and
columns for granted, and has no function where a system has no such thing. What is not told ends no run, no exporter."""
