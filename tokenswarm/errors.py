"""Mistakes that a user can make and mend: each is one sentence that names the place and the mend, and an exit code.

They are raised before any load is sent and printed without a traceback. Anything else that is raised is a bug.
"""

from __future__ import annotations

import enum

import msgspec

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading bytes as JSON raises: they are none, of another shape, no UTF-8, or nested without an end."""


class ExitCode(enum.IntEnum):
    """The exit codes of every command and of plain `locust`. INVALID beats GATE_FAILED."""

    OK = 0
    INTERNAL = 1
    GATE_FAILED = 10
    INVALID = 11
    INCONCLUSIVE = 12
    INTERRUPTED = 13
    TARGET = 14
    CONFIG = 15
    RESULTS = 16
    WORSE = 20  # of a comparison: the new runs are worse
    CANT_TELL = 21  # of a comparison: so many runs don't tell
    DELAYS = 30  # of a path: it holds tokens back
    ALTERS = 31  # ... it changes answers, or what the engine is asked
    LOSES = 32  # ... it loses answers, tokens or failures


class UserError(Exception):
    """A mistake the user can mend. `str(error)` is the one sentence that is printed."""

    exit_code = ExitCode.CONFIG


class ConfigError(UserError):
    """The profile, an option or the environment is wrong."""


class DatasetError(UserError):
    """A data set can't be read or holds nothing to send."""


class TargetError(UserError):
    """The target can't be reached, refuses, or has no such model."""

    exit_code = ExitCode.TARGET


class ResultsError(UserError):
    """The results could not be written."""

    exit_code = ExitCode.RESULTS
