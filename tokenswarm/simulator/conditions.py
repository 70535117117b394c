"""What an engine may be like all the time, and what then gets into a measurement: `--condition KIND[:PARAM]`.

A fault strikes a request; a condition is the server's own. Each kind is a row of CONDITIONS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import isfinite

from tokenswarm.errors import ConfigError
from tokenswarm.simulator.batching import Sequence

COLD_AGAIN = 10  # requests after which all is cold again
FOREIGN_PROMPT, FOREIGN_OUTPUT = 64, 64  # tokens of a request of the other tenant


@dataclass(frozen=True, slots=True)
class Row:
    """`param` is the default."""

    param: float
    about: str


CONDITIONS = {
    "prefix_cache": Row(0, "a prompt that was seen before is read from the cache, but for its last token"),
    "cold": Row(0.5, "the first batch of each size (to a power of two) takes param s longer; again after 10 requests"),
    "ageing": Row(0.1, "each step takes this share longer for each hour that the server has run"),
    "leak": Row(8, "its memory grows by param MiB a minute"),
    "tenant": Row(4, "param requests of somebody else run all the time"),
    "fallback": Row(0.1, "this share of the answers names another model, as behind a router that falls back"),
}


def parse(texts: Many[str]) -> dict[str, float]:
    """Kind -> param. ConfigError names the kinds that there are."""
    found = {}
    for text in texts:
        kind, colon, given = text.partition(":")
        if kind not in CONDITIONS:
            raise ConfigError(f"there is no condition `{kind}`; there are: {', '.join(CONDITIONS)}")
        try:
            value = float(given) if colon else CONDITIONS[kind].param
        except ValueError:
            value = -1.0
        if not (isfinite(value) and 0 <= value <= 1000):
            raise ConfigError(f"`{given}` in condition `{text}` must be a number from 0 to 1000")
        found[kind] = value
    return found


class Seen:
    """The prompts that a prefix cache without bounds holds, by their digests."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def cached(self, key: bytes, tokens: int) -> int:
        """How many tokens of this prompt are there already; from now on all of them are."""
        digest = hashlib.blake2b(key, digest_size=8).digest()
        if digest in self._digests:
            return max(0, tokens - 1)
        self._digests.add(digest)
        return 0


FALLBACK = "smaller"  # the other model's name


class Fallback:
    """A share of the requests, evenly spread: which of them another model answers."""

    def __init__(self, share: float) -> None:
        self._share = min(1.0, share)
        self._asked = 0

    def model(self, asked: str) -> str:
        """The name in the next answer to a request for this model."""
        before = int(self._asked * self._share)
        self._asked += 1
        return FALLBACK if int(self._asked * self._share) > before else asked


class Tenant:
    """Somebody else, as the owner of a sequence: its tokens go nowhere."""

    def ask(self, now_ns: int) -> Sequence:
        """Its next request."""
        return Sequence(FOREIGN_PROMPT, FOREIGN_OUTPUT, arrived_ns=now_ns)


class Leak:
    """Memory that is held and never used again."""

    def __init__(self, mib_per_minute: float) -> None:
        self._per_s = mib_per_minute / 60
        self._held: list[bytearray] = []

    def grow(self, age_s: float) -> None:
        """Hold what a server of this age has leaked."""
        while len(self._held) < int(age_s * self._per_s):
            self._held.append(bytearray(b"x") * (1 << 20))
