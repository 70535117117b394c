"""The way into a run: mistakes that are told before gevent and Locust are loaded, which takes half a second."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenswarm.errors import ConfigError
from tokenswarm.profile.environment import cache_folder, run_token
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.slo import Slo
from tokenswarm.prompts.from_profile import data_settings
from tokenswarm.prompts.library import open_library

if TYPE_CHECKING:
    from tokenswarm.cluster.stages import Searching


def say(sentence: str) -> None:
    """One sentence for the user, on stderr."""
    from rich.console import Console  # once there is something to say
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("tokenswarm: ", "bold"), sentence))


def check(profile: Profile, given: dict[str, Any]) -> None:
    """What of a run's profile and of its parsed options can't be, and its data set. Raises UserError."""
    if given.get("search"):
        searching_of(profile)
    if given["expect_workers"] is None and given["bind"] is not None:
        raise ConfigError("--bind is for workers of other machines: say how many, --expect-workers 8")
    if given["expect_workers"] is not None and given.get("workers") is not None:
        raise ConfigError("--workers starts workers here, --expect-workers waits for those of others: give one of them")
    host, port, _ = address_of(given["bind"], given["expect_workers"])
    refuse_taken(host, port)
    if given["expect_workers"] is None:
        read_data_set(profile)


def searching_of(profile: Profile) -> Searching:
    """The search that the profile asks for. Raises ConfigError where it has no bounds, or nothing to keep."""
    if profile.search.rate is None and profile.search.users is None:
        raise ConfigError(
            "a search needs bounds: --rate 1,64, or --users 1,64, or `search.rate: [1, 64]` in the profile"
        )
    if profile.slo == Slo():
        raise ConfigError("a search needs limits to keep: `slo` in the profile, or --slo FILE")
    if profile.load.kind == "trace":
        raise ConfigError("`load.kind: trace` can't be searched: it has arrivals of its own; say poisson or constant")
    if profile.load.requests is not None:
        raise ConfigError("`load.requests` ends a run and no search, whose tries end once they are decided")
    from tokenswarm.cluster.stages import Searching  # what judges takes a while

    return Searching(profile)


def address_of(bind: str | None, remote: int | None) -> tuple[str, int, str]:
    """(host, port, token of the user or ""): a free port of loopback for local workers; for remote ones what is said.

    Raises ConfigError.
    """
    token = run_token()
    if remote is None:
        return "127.0.0.1", 0, token
    if remote < 1:
        raise ConfigError("--expect-workers takes 1 or more")
    host, _, port = (bind or "127.0.0.1:5557").rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and is_port(int(port))):
        raise ConfigError(f"--bind {bind}: write HOST:PORT, a port from 1 to 65535, for example 0.0.0.0:5557")
    if not token and not is_loopback(host):
        raise ConfigError(
            "remote workers need a secret: export TOKENSWARM_RUN_TOKEN with the same random word on every machine"
        )
    return host, int(port), token


def is_port(number: int) -> bool:
    """Whether workers can be told of it; ZeroMQ takes any number, and that of another port for it."""
    return 1 <= number <= 65_535


def check_port(option: str, number: int) -> None:
    """Raises ConfigError."""
    if not is_port(number):
        raise ConfigError(f"{option} {number} must be from 1 to 65535")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a port that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_taken(host: str, port: int) -> None:
    """Bind and let go: who can't have its port should ask no target first. It does not listen, so that no worker that
    waits already is heard by it and lost. Raises ConfigError.
    """
    bare = host.strip("[]")
    try:
        ways = socket.getaddrinfo(None if bare == "*" else bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # the latter: a name that none can be
        if bare not in {name for _, name in socket.if_nameindex()}:  # which ZeroMQ takes, too
            raise ConfigError(cannot_listen(host, port, [errno.ENODEV])) from None
        return
    failures = []
    for family, kind, protocol, _, address in ways:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            failures.append(error.errno or 0)
    if taken(failures, ways):
        raise ConfigError(cannot_listen(host, port, failures))


def taken(failures: Sequence[int], ways: Sequence[object]) -> bool:
    """Whether a name can't be listened to: at one of its addresses somebody else does, or none is of this machine."""
    return errno.EADDRINUSE in failures or len(failures) == len(ways)


def cannot_listen(host: str, port: int, numbers: Sequence[int]) -> str:
    """The sentence for an address that can't be had; `numbers` are the system's for why."""
    why = f"{os.strerror(numbers[0])}; name an address of this machine"
    if errno.EADDRINUSE in numbers:
        why = "something else listens there, perhaps another run; take another port or end it"
    return f"can't listen on {host}:{port}: {why}"


def read_data_set(profile: Profile) -> None:
    """Read the data set once before the workers do, so that they find its index; mistakes in it show here."""
    said = 0
    settings = data_settings(profile.dataset, cache_folder())

    def show(step: Any) -> None:
        nonlocal said
        percent = 100 * step.bytes_done // max(step.bytes_total, 1)
        if step.bytes_total > 50_000_000 and percent >= said + 10:
            said = percent
            say(f"indexing {settings.path}: {percent} %")

    open_library(settings, show)
