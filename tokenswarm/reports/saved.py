"""A finished run, read back from its results folder. Raises ConfigError in one sentence."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenswarm.errors import ConfigError
from tokenswarm.summary import SCHEMA_VERSION, Summary, from_json


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
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{path}: has schema version {version}, this program reads {SCHEMA_VERSION}")
        return from_json(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no summary of a run: {error}") from None
