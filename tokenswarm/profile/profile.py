"""The profile of a run: YAML (and command-line overrides) -> one frozen, typed value. Its sections stand beside it.

All defaults live in this folder. A profile never holds a secret, so it can be written to the manifest and sent to
workers as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from yaml.nodes import MappingNode, Node

from tokenswarm.errors import ConfigError
from tokenswarm.profile import typed_yaml
from tokenswarm.profile.bars import Bars
from tokenswarm.profile.dataset import Dataset
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.load import ENDLESS_S, Load
from tokenswarm.profile.phases import Phases, Timeouts
from tokenswarm.profile.search import Search
from tokenswarm.profile.slo import Slo
from tokenswarm.profile.soak import Soak
from tokenswarm.profile.target import Tls, check_url
from tokenswarm.profile.telemetry import Telemetry
from tokenswarm.profile.typed_yaml import Seconds, shown


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    target: tuple[str, ...]
    dataset: Dataset
    name: str = "run"  # the scenario's name in results and metrics
    purpose: Literal["measure", "smoke"] = "measure"  # smoke: short on purpose, so that it is no doubt
    engine: Engine = Engine()
    tls: Tls = Tls()
    load: Load = Load()
    phases: Phases = Phases()
    timeouts: Timeouts = Timeouts()
    connections: Literal["pooled", "fresh"] = "pooled"
    event_bytes_max: int = 1 << 20  # one event or line; vLLM's own logprob events stay far below
    slo: Slo = Slo()
    bars: Bars = Bars()
    search: Search = Search()
    soak: Soak = Soak()
    telemetry: Telemetry = Telemetry()
    save_text: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("`target` is missing")
        for url in self.target:
            check_url(url)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ValueError(f"`name: {shown(self.name)}` may hold letters, digits, '.', '_' and '-' only, 64 at most")
        if not 1 <= self.workers <= 1024:
            raise ValueError("`workers` must be between 1 and 1024")
        self._check_arrivals()
        self._check_windows()
        if self.event_bytes_max < 1024:
            raise ValueError("`event_bytes_max` must be 1024 or more")
        if self.slo.failed_ratio == 1:
            raise ValueError("`slo.failed_ratio: 1` holds whatever fails; 1 % is 0.01")

    def _check_arrivals(self) -> None:
        if not self.load.open:
            return
        if self.dataset.history == "model":
            raise ValueError(
                f"`dataset.history: model` needs `load.kind: closed`: arrivals ({self.load.kind}) wait for no answer"
            )
        lengths = self.dataset.output_tokens
        said = next((name for name in ("fixed", "mean", "max") if getattr(lengths, name) is not None), None)
        if said is not None and self.load.kind == "trace":
            raise ValueError(
                f"`dataset.output_tokens.{said}` is not of a trace, which says how long each answer is: leave it out "
                f"(--set dataset.output_tokens.{said}=null over a profile that has it)"
            )
        if self.load.max_in_flight is not None and self.load.max_in_flight < self.workers:
            raise ValueError(
                f"`load.max_in_flight: {self.load.max_in_flight}` must be at least 1 for each of {self.workers} workers"
            )

    def _check_windows(self) -> None:
        """A window that no stage is long enough for would never close. A trace's and a search's are not known yet."""
        if self.soak.window is None or self.load.kind == "trace" or self.search.rate or self.search.users:
            return
        longest = max(stage.duration for stage in self.load.stages)
        if self.soak.window > longest:
            raise ValueError(
                f"`soak.window: {self.soak.window:g}` is longer than the longest stage, {longest:g} s, so no window "
                "would ever close: lower it, or lengthen the stage"
            )


def load(
    text: str | None, origin: str, overrides: Sequence[tuple[str, Node]] = (), slo: tuple[str, str] | None = None
) -> Profile:
    """A profile from YAML text (None: overrides alone), then an SLO file's (text, origin), then (dotted key, node)s."""
    root = typed_yaml.parse(text, origin) if text is not None else typed_yaml.parse("{}", origin)
    if slo is not None:
        limits = typed_yaml.parse(*slo)
        keys = [key.value for key, _ in limits.value]
        typed_yaml.set_value(root, "slo", limits.value[0][1] if keys == ["slo"] else limits)
    for key, node in overrides:
        typed_yaml.set_value(root, key, node)
    _end_by_requests(root)
    return typed_yaml.read(root, Profile)


def _end_by_requests(root: MappingNode) -> None:
    """With `load.requests`, what is not given of the load's time is none: no warm-up, and a stage that lasts."""
    asked = typed_yaml.find(root, "load.requests")
    if asked is None:
        return
    origin = typed_yaml.place(asked)
    if typed_yaml.find(root, "phases.warmup") is None:
        typed_yaml.set_value(root, "phases.warmup", typed_yaml.literal("0s", origin))
    for stage in ("load.stages.0", "load.stages"):  # a list of one, or the one itself
        if isinstance(typed_yaml.find(root, stage), MappingNode):
            if typed_yaml.find(root, f"{stage}.duration") is None:
                typed_yaml.set_value(root, f"{stage}.duration", typed_yaml.literal(str(ENDLESS_S), origin))
            return


def read_text(path: Path) -> str:
    """The file's text; errors in one sentence."""
    try:
        with path.open("rb") as file:  # bounded: the path may be /dev/zero
            return file.read(4 * typed_yaml.TEXT_BYTES_MAX + 1).decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, not a file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def encode(profile: Profile) -> bytes:
    """JSON, for the manifest and for workers."""
    return msgspec.json.encode(profile)


def decode(data: bytes) -> Profile:
    """The inverse of `encode`."""
    return msgspec.json.decode(data, type=Profile)


def seconds(text: str, origin: str) -> float:
    """A duration as a user writes it (`30s`, `1h30m`, `5`), in seconds. Raises ConfigError."""
    try:
        return typed_yaml.read(typed_yaml.literal(text, origin), Seconds, origin)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix(f"{origin}: ")) from None  # it is the key, too
