"""Everything needed to repeat a run, as one dict: a pure function of what the caller found out. No secrets.

A profile can't hold a secret by its type; what users may write freely (the command line, `extra_body`, URLs) is cleaned
here, so that a literal that slipped in does not end up in a file that is passed around.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from tokenswarm.profile.profile import Profile

SCHEMA_VERSION = 1
HIDDEN = "***"

_SECRET = re.compile(r"auth|token$|secret|passw|credential|cookie|api[-_]?key|bearer", re.IGNORECASE)
_LOOKS_SECRET = re.compile(r"^(sk-|hf_|ghp_|Bearer\s|Basic\s|eyJ[A-Za-z0-9_-]{10,}\.)", re.IGNORECASE)


def build(
    *,
    run_id: str,
    started: datetime,
    profile: Profile,
    command: Sequence[str],
    versions: Mapping[str, str],
    git_revision: str | None,
    engine: Mapping[str, Any],
    host: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest as it stands before the load. `started` must have a time zone (ValueError)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "started": _moment(started),
        "ended": None,
        "command": redact_command(command),
        "profile": redact(msgspec.to_builtins(profile)),
        "seeds": {"shuffle": profile.dataset.shuffle_seed, "sampling": profile.engine.seed},
        "dataset": None,
        "engine": redact(dict(engine)),
        "versions": dict(versions),
        "git_revision": git_revision,
        "host": dict(host),
        "calibration": None if calibration is None else dict(calibration),
        "workers": [],
    }


def finish(
    manifest: Mapping[str, Any],
    *,
    ended: datetime,
    dataset: Mapping[str, Any],
    workers: Sequence[Mapping[str, Any]],
    stamps: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest with what is known only at the end. `stamps`: whose clock says when requests left, tokens came."""
    known = {"dataset": dict(dataset), "workers": [dict(w) for w in workers], "stamps": dict(stamps or {})}
    return {**manifest, "ended": _moment(ended), **known}


def marks(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The headers of the first answer that tell what stands between; {} without a probe, or of an older manifest."""
    probes = (manifest.get("engine") or {}).get("probes") or [{}]
    found = probes[0].get("marks") if isinstance(probes[0], dict) else None
    return {str(name): str(said) for name, said in found.items()} if isinstance(found, dict) else {}


def redact(value: Any, name: str = "") -> Any:
    """A copy in which texts under a name that means a secret, or that look like one, and users in URLs are hidden.

    Under `headers_from_env` stand names of variables, not values: they stay.
    """
    if isinstance(value, Mapping):
        return {key: inner if key == "headers_from_env" else redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    if (name and _SECRET.search(name)) or _LOOKS_SECRET.search(value):
        return HIDDEN
    return _clean_url(value)


def redact_command(command: Sequence[str]) -> list[str]:
    """The command line, with the value of every option or assignment that is named like a secret hidden."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        name, equals, value = word.partition("=")
        is_option = word.startswith("-")
        if hide_next and not is_option:
            shown.append(HIDDEN)
        elif equals:
            shown.append(f"{name}={redact(value, name)}")
        else:
            shown.append(word if is_option else redact(word))
        hide_next = is_option and not equals and _SECRET.search(word) is not None
    return shown


def _clean_url(text: str) -> str:
    """An URL without user, password and query; other text as it is."""
    if not text.startswith(("http://", "https://")):
        return text
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        return HIDDEN
    netloc = parts.netloc.rpartition("@")
    host = f"{HIDDEN}@{netloc[2]}" if netloc[1] else parts.netloc
    return urllib.parse.urlunsplit(parts._replace(netloc=host, query=HIDDEN if parts.query else ""))


def _moment(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone names no moment")
    return moment.isoformat(timespec="seconds")
