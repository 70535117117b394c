"""`target` and `tls`: where requests go, and whom to trust there."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse

import msgspec

from tokenswarm.profile.typed_yaml import shown

_HOST_LABELS = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")  # beyond it getaddrinfo has no OSError


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verify: bool = True
    ca_file: str | None = None


def check_url(url: str) -> urllib.parse.SplitResult:
    """The parts of a target's base URL. Raises ValueError with the mend; the sentence repeats no password."""
    if "@" in url.split("//", 1)[-1].split("/", 1)[0]:
        raise ValueError("`target` holds a user or password; name a variable under `engine.headers_from_env` instead")
    if url != url.strip() or " " in url:
        raise ValueError(f"`target: {shown(url)}` holds white space; leave it out")
    if not url.isascii() or not url.isprintable():
        raise ValueError(f"`target: {shown(url)}` may hold ASCII only: write xn--… names and %-escapes")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
        if ":" in host:
            ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(f"`target: {shown(url)}` is no valid URL: {error}") from None
    if parts.scheme not in ("http", "https") or not (":" in host or _HOST_LABELS.fullmatch(host)):
        raise ValueError(f"`target: {shown(url)}` must look like http://host:port or https://host")
    if parts.query or parts.fragment or port == 0:
        raise ValueError(f"`target: {shown(url)}` must be a base URL without query and with a real port")
    return parts
