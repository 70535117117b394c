"""Mistakes that a user can make and mend: each is one sentence that names the place and the mend, and an exit code.

They are raised before any load is sent and printed without a traceback. Anything else that is raised is a bug.
"""

from __future__ import annotations

import enum

import msgspec

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading bytes as JSON raises: they are none, of another shape, no UTF-8, or nested without an end."""

_NOT_TEXT = (
    (b"version https://git-lfs", "this is a Git LFS pointer, not the data: fetch the real file (git lfs pull)"),
    (b"<!doctype", "this is an HTML page, not a data set: download the raw file instead of its web page"),
    (b"<html", "this is an HTML page, not a data set: download the raw file instead of its web page"),
    (b"<", "this is HTML or XML, not the data: download the raw file instead of its web page"),
    (b"\x1f\x8b", "this is compressed (gzip): unpack it first"),
    (b"bzh", "this is compressed (bzip2): unpack it first"),
    (b"\xfd7zxz", "this is compressed (xz): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "this is compressed (zstd): unpack it first"),
    (b"pk\x03\x04", "this is a ZIP archive: unpack it first"),
    (b"par1", "this is a Parquet file: convert it to JSON or JSONL first"),
    (b"arrow1", "this is an Arrow file: convert it to JSON or JSONL first"),
    (b"\xff\xfe", "this is UTF-16, not UTF-8: convert it first"),
    (b"\xfe\xff", "this is UTF-16, not UTF-8: convert it first"),
)
"""First bytes, lower case, that tell what a data file is in place of text, and the mend."""


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


def not_text(head: bytes) -> str:
    """What a data file that begins so is in place of text, and the mend; "" where it may be text."""
    if b"\0\0" in (head[0:4:2], head[1:4:2]) and any(head[:4]):  # every other byte of ASCII, without a mark
        head = b"\xff\xfe"
    return next((said for magic, said in _NOT_TEXT if head[:64].lower().startswith(magic)), "")
