"""Base URLs that hold a part of the API's own path (`…/v1`, as in OPENAI_BASE_URL): what they may have meant."""

from __future__ import annotations

import urllib.parse

from tokenswarm.engines.dialects import DIALECTS

TAILS = sorted(
    {
        path.rsplit("/", up)[0]
        for row in DIALECTS.values()
        for path in (row.path, row.models_path)
        for up in range(path.count("/"))
    },
    key=lambda tail: (-len(tail), tail),
)
"""The paths of all dialects, and each beginning of theirs; the longest first."""


def meanings(url: str) -> list[str]:
    """The base URLs that a user may have meant: the URL as it is, and without the API's path at its end."""
    parts = urllib.parse.urlsplit(url)
    path = parts.path.rstrip("/")
    found = [url]
    for tail in TAILS:
        if path.endswith(tail):
            found.append(urllib.parse.urlunsplit(parts._replace(path=path[: -len(tail)])))
            break
    return found


def without(url: str, path: str) -> str:
    """A base URL without the path of the API at its end."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix(path)))
