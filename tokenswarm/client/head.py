"""The head of a request, as text: one way to write it for the load and for single pages."""

from __future__ import annotations

from collections.abc import Mapping

from tokenswarm import __version__
from tokenswarm.client.transport import Target


def request_head(target: Target, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """Everything up to where more lines may follow. Header names and values were checked by the profile."""
    lines = {
        "host": target.host_header,
        "user-agent": f"tokenswarm/{__version__}",
        "accept-encoding": "identity",
        **{name.lower(): value for name, value in headers.items()},
    }
    text = f"{method} {target.base_path}{path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
    return text.encode("latin-1")
