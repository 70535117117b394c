"""The environment, read here and nowhere else: secrets for headers, the cache folder, the run's token.

A profile names variables and never holds their values, so it can be written to the manifest and sent to workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tokenswarm.errors import ConfigError
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.telemetry import Telemetry

RUN_TOKEN_CHARS_MAX = 2000  # as many as a hello takes


def secret_headers(profile: Profile, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Headers whose values stand in environment variables. A missing or empty variable is an error."""
    headers = {}
    for name, variable in profile.engine.headers_from_env.items():
        value = environ.get(variable, "")
        if not value:
            raise ConfigError(f"the environment variable {variable} (for header {name}) is not set")
        if not value.isascii() or not value.isprintable():
            raise ConfigError(f"the environment variable {variable} holds a line break, or is not ASCII")
        headers[name] = value
    return headers


def has_openai_key(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the variable is set that everybody has and that nothing here reads: a hint may name it."""
    return bool(environ.get("OPENAI_API_KEY"))


def push_headers(telemetry: Telemetry, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header that lets a push in; {} without a token. ConfigError where the variable is missing or empty."""
    return {} if telemetry.push is None else _bearer("push_token_env", telemetry.push_token_env, environ)


def gpu_headers(telemetry: Telemetry, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header that lets us read the GPU exporters; errors as `push_headers`."""
    return _bearer("gpu_token_env", telemetry.gpu_token_env, environ) if telemetry.gpu_exporters else {}


def _bearer(name: str, variable: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    if variable is None:
        return {}
    token = environ.get(variable, "")
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(f"the environment variable {variable} (telemetry.{name}) is not set to a token")
    return {"authorization": f"Bearer {token}"}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where indexes of data sets are kept: $XDG_CACHE_HOME/tokenswarm or ~/.cache/tokenswarm."""
    root = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "/tmp")) / ".cache")
    return Path(root) / "tokenswarm"


def forget_no_width() -> None:
    """A terminal 0 columns wide, as some containers say, is one of unknown width: in it nothing would be shown."""
    if not os.environ.get("COLUMNS", "1").strip(" 0"):
        del os.environ["COLUMNS"]


def wanted_reader(environ: Mapping[str, str] = os.environ) -> str:
    """Which reader of streams was asked for: `native`, `python`, or "" (the best that is there)."""
    return environ.get("TOKENSWARM_READER", "")


def in_github(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a step of a workflow of GitHub Actions, whose runner obeys what is printed."""
    return environ.get("GITHUB_ACTIONS") == "true"


def github_summary(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file that a job's summary is appended to, in a workflow of GitHub Actions."""
    name = environ.get("GITHUB_STEP_SUMMARY", "")
    return Path(name) if name else None


def run_token(environ: Mapping[str, str] = os.environ) -> str:
    """The word that a worker must say to join the master of this run ("" where none was given).

    ConfigError where it can't be said: a hello takes so many characters, and text.
    """
    token = environ.get("TOKENSWARM_RUN_TOKEN", "")
    if len(token) > RUN_TOKEN_CHARS_MAX or token != token.encode("utf-8", "replace").decode():
        raise ConfigError(
            f"the environment variable TOKENSWARM_RUN_TOKEN has more than {RUN_TOKEN_CHARS_MAX} characters, or some "
            "that are no UTF-8: take a random word, such as `openssl rand -hex 16` makes"
        )
    return token
