"""A finished run, read back from its results folder, and its page made again. Errors are one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.errors import MALFORMED, ConfigError
from tokenswarm.reports.folder import ResultsFolder
from tokenswarm.reports.rows import row_files
from tokenswarm.result.summary import SCHEMA_VERSION, VERSIONS_READ, Summary, from_json

LEAVE_OUT = "; leave it out, or run it again"


class _Head(msgspec.Struct):
    schema_version: int


def read_summary(folder: Path) -> Summary:
    """summary.json of a results folder (or the file itself). Raises ConfigError."""
    path = folder / "summary.json" if folder.is_dir() else folder
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name the folder of a finished run, such as results/latest") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    try:
        version = msgspec.json.decode(data, type=_Head).schema_version
        if version not in VERSIONS_READ:
            raise ConfigError(f"{path}: has schema version {version}, this program reads {SCHEMA_VERSION}")
        return from_json(data)
    except MALFORMED as error:
        raise ConfigError(f"{path}: is no summary of a run: {error}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a results folder; {} where there is none. Raises ConfigError."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict) if path.exists() else {}
    except MALFORMED as error:
        raise ConfigError(f"{path}: is no manifest of a run: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    return manifest


def read_finished(folder: Path) -> tuple[Path, Summary, dict[str, Any]]:
    """(folder, summary, manifest) of a run that may stand for what was measured. Raises ConfigError for any other."""
    summary = read_summary(folder)
    folder = folder if folder.is_dir() else folder.parent
    if summary.partial:
        raise ConfigError(f"{folder}: is partial: the run was interrupted{LEAVE_OUT}")
    if summary.verdict.status == "INVALID":
        codes = ", ".join(doubt.code for doubt in summary.verdict.doubts if doubt.severity == "invalid")
        raise ConfigError(f"{folder}: is INVALID ({codes}): its numbers can't be believed{LEAVE_OUT}")
    manifest = read_manifest(folder)
    if not manifest:
        raise ConfigError(f"{folder}: has no manifest.json, so nobody knows what was run{LEAVE_OUT}")
    return folder, summary, manifest


def runs_in(folder: Path) -> list[Path]:
    """The results folders in a folder, in order of their names."""
    return sorted({path.parent.resolve() for path in folder.glob("*/summary.json")})


def write_page(folder: Path, summary: Summary, more: Sequence[Path] = ()) -> list[str]:
    """report.html again, from the files of the run; `more`: further rows. What of the rows could not be read, in
    sentences. Raises ConfigError, ResultsError."""
    from tokenswarm.reports.html import page  # here: reading a summary shouldn't wait for it

    manifest = read_manifest(folder)
    rows, problems = [*row_files(folder), *more], list[str]()
    ResultsFolder(folder).write_pieces("report.html", page.pieces(summary, manifest, rows or None, problems))
    return [f"{folder}/{problem}" for problem in problems]
