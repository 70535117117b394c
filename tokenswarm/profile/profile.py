"""The profile of a run: YAML (and command-line overrides) -> one frozen, typed value. All defaults live here.

The environment is read here and nowhere else: secrets for headers, the cache folder. A profile never holds a secret, so
it can be written to the manifest and sent to workers as it is.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from yaml.nodes import Node

from tokenswarm import typed_yaml
from tokenswarm.errors import ConfigError
from tokenswarm.typed_yaml import Seconds, shown

EngineKind = Literal["openai", "ollama"]
Api = Literal["chat", "completions", "generate"]

_SECRET_NAME = re.compile(r"auth|token|secret|passw|credential|cookie|api[-_]?key", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "upgrade", "x-request-id"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST_LABELS = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")  # beyond it getaddrinfo has no OSError

CHOICES_MAX = 128  # OpenAI's own bound of `n`
STAGES_MAX = 200  # a report of 40 stages is 2 MiB, and 16 MiB is the most that the master reads
ROWS_MAX = 10_000_000  # the order of rows takes 4 bytes each in every worker


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's dialect and what each request asks for."""

    kind: EngineKind = "openai"
    api: Api = "chat"
    model: str | None = None  # None: the only model that the server lists
    headers: dict[str, str] = {}
    headers_from_env: dict[str, str] = {}
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    include_usage: bool = True
    continuous_usage: bool = False
    extra_body: dict[str, object] = {}

    def __post_init__(self) -> None:
        if (self.kind, self.api) not in APIS:
            known = ", ".join(api for kind, api in APIS if kind == self.kind)
            raise ValueError(f"`engine.api: {self.api}` is not spoken by kind {self.kind}; it has: {known}")
        if not 1 <= self.choices <= CHOICES_MAX or (self.choices > 1 and self.kind == "ollama"):
            raise ValueError(f"`engine.choices` must be between 1 and {CHOICES_MAX}, and 1 for ollama")
        for name, value in self.headers.items():
            if not value.isascii() or not value.isprintable():
                raise ValueError(f"the value of header `{shown(name)}` may hold printable ASCII only")
        for name, variable in self.headers_from_env.items():
            if not _VARIABLE.fullmatch(variable):  # and don't repeat it: it may be the secret itself
                raise ValueError(f"`headers_from_env.{shown(name)}` names a variable; it is not the value itself")
        for name in (*self.headers, *self.headers_from_env):
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
                raise ValueError(f"`{shown(name)}` is no valid header, or one that tokenswarm sets itself")
        for name in self.headers:
            if _SECRET_NAME.search(name):
                raise ValueError(
                    f"header `{shown(name)}` looks like a secret: name a variable under `headers_from_env`"
                )


APIS: tuple[tuple[EngineKind, Api], ...] = (
    ("openai", "chat"),
    ("openai", "completions"),
    ("ollama", "chat"),
    ("ollama", "generate"),
)


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verify: bool = True
    ca_file: str | None = None


class TokenRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds in tokens, inclusive; None: no bound."""

    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        low, high = self.min or 0, self.max
        if low < 0 or (high is not None and high < max(low, 1)):
            raise ValueError(f"the range min {self.min}, max {self.max} holds nothing")


class OutputTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long each answer is asked to be. `fixed` wins, then `mean` (a seeded normal), then the data set's answer."""

    from_dataset: bool = True
    fixed: int | None = None
    mean: float | None = None
    stddev: float = 0.0
    min: int = 1
    max: int = 4096

    def __post_init__(self) -> None:
        if (self.fixed is not None and self.fixed < 1) or self.min < 1 or self.max < self.min or self.stddev < 0:
            raise ValueError("`output_tokens` needs fixed >= 1, 1 <= min <= max, stddev >= 0")
        if self.mean is not None and self.mean < 1:
            raise ValueError("`output_tokens.mean` must be 1 or more")


class Synthetic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The seeded generator: lengths in (estimated) tokens."""

    conversations: int = 1000
    turns: int = 1
    input_mean: float = 128.0
    input_stddev: float = 0.0
    output_mean: float = 128.0
    output_stddev: float = 0.0

    def __post_init__(self) -> None:
        if min(self.conversations, self.turns, self.input_mean, self.output_mean) < 1:
            raise ValueError("`dataset.synthetic` needs conversations, turns and means of 1 or more")
        if min(self.input_stddev, self.output_stddev) < 0:
            raise ValueError("`dataset.synthetic` needs stddevs of 0 or more")
        if max(self.input_mean, self.output_mean, self.input_stddev, self.output_stddev) > 1_000_000:
            raise ValueError("`dataset.synthetic` takes lengths of 1000000 tokens at most")
        if self.conversations > ROWS_MAX or self.turns > 1000:
            raise ValueError(f"`dataset.synthetic` takes {ROWS_MAX} conversations of 1000 turns at most")


class Dataset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str | None = None  # None only with format synthetic
    format: Literal["auto", "sharegpt", "alpaca", "jsonl", "synthetic"] = "auto"
    conversations: Literal["single", "multi"] = "multi"
    history: Literal["dataset", "model"] = "dataset"  # whose answers are replayed as history in multi-turn
    length_filter: Literal["none", "vllm"] = "none"
    input_tokens: TokenRange = TokenRange()
    answer_tokens: TokenRange = TokenRange()
    output_tokens: OutputTokens = OutputTokens()
    ignore_eos: bool = True
    system: Literal["keep", "drop"] = "keep"
    leading_assistant: Literal["trim", "drop"] = "trim"
    duplicates: Literal["keep", "drop"] = "keep"
    skip_bad_ratio: float = 0.0
    shuffle: bool = True
    shuffle_seed: int = 1
    synthetic: Synthetic = Synthetic()

    def __post_init__(self) -> None:
        if self.path is None and self.format != "synthetic":
            raise ValueError("`dataset.path` is missing (or set `dataset.format: synthetic`)")
        if not 0 <= self.skip_bad_ratio < 1:
            raise ValueError("`dataset.skip_bad_ratio` must be at least 0 and below 1")


ENDLESS_S = typed_yaml.SECONDS_MAX
"""The duration of a stage that only a signal or the stop button ends."""


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    users: int
    duration: Seconds = Seconds(30.0)

    def __post_init__(self) -> None:
        if not 1 <= self.users <= 1_000_000:
            raise ValueError(f"`users: {self.users}` must be between 1 and 1000000")
        if self.duration <= 0:
            raise ValueError("`duration` must be longer than 0s")


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["closed"] = "closed"
    stages: tuple[Stage, ...] = (Stage(users=1),)
    spawn_rate: float | None = None  # users a second; None: all of a stage within a second
    think_time: Seconds = Seconds(0.0)  # between the end of an answer and the next prompt of the same user

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`load.stages` is empty")
        if len(self.stages) > STAGES_MAX:
            raise ValueError(f"`load.stages` has {len(self.stages)} stages; {STAGES_MAX} are the most")
        if self.spawn_rate is not None and self.spawn_rate < 0.001:
            raise ValueError("`load.spawn_rate` must be 0.001 users a second or more")


class Phases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    warmup: Seconds = Seconds(5.0)  # before the first stage's window
    settle: Seconds = Seconds(2.0)  # after each later change of users
    drain: Seconds = Seconds(60.0)  # how long open streams may run on after the last window


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    connect: Seconds = Seconds(5.0)
    first_token: Seconds = Seconds(120.0)
    idle_token: Seconds = Seconds(60.0)
    total: Seconds = Seconds(600.0)

    def __post_init__(self) -> None:
        if min(self.connect, self.first_token, self.idle_token, self.total) <= 0:
            raise ValueError("time-outs must be longer than 0s")


class Percentiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits in seconds for percentiles of one latency."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    mean: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if any(v is not None and v < 0 for v in msgspec.structs.astuple(self)):
            raise ValueError("a limit must not be negative")


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must hold. Ratios are 0 to 1; `goodput_ratio` and the rates are lower bounds, all else upper bounds."""

    ttft_s: Percentiles | None = None
    ttft_intended_s: Percentiles | None = None
    ttfat_s: Percentiles | None = None
    itl_s: Percentiles | None = None
    tpot_s: Percentiles | None = None
    e2e_s: Percentiles | None = None
    stall_s: Percentiles | None = None
    goodput_ratio: float | None = None
    failed_ratio: float | None = None
    output_tokens_per_s: float | None = None
    requests_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("goodput_ratio", "failed_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"`slo.{name}: {value}` must lie between 0 and 1")


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    engine_metrics: tuple[str, ...] = ("auto",)  # auto: of each target; off; or URLs of the engine's /metrics
    gpu_exporters: tuple[str, ...] = ()  # URLs of `python -m exporters.gpu`'s /metrics
    gpu_token_env: str | None = None  # the environment variable that holds the bearer token of the GPU exporters
    interval: Seconds = Seconds(1.0)  # between two looks at each of them
    price_per_gpu_hour: float | None = None
    gpus: int | None = None  # how many are paid for; None: those that the exporters see
    currency: str = "USD"  # a label only
    model_config: str | None = None  # the model's config.json, to predict its KV-cache
    kv_dtype: str | None = None  # of the KV-cache, where it is not the model's: fp8, int8 …
    push: str | None = None  # base URL of a load exporter
    push_token_env: str | None = None  # the environment variable that holds its bearer token

    def __post_init__(self) -> None:
        for name in ("push_token_env", "gpu_token_env"):
            if (variable := getattr(self, name)) is not None and not _VARIABLE.fullmatch(variable):
                raise ValueError(f"`telemetry.{name}` names an environment variable; it is not the token itself")
        engine = () if self.engine_metrics == ("off",) else tuple(u for u in self.engine_metrics if u != "auto")
        push = () if self.push is None else (self.push,)
        for name, urls in (("engine_metrics", engine), ("gpu_exporters", self.gpu_exporters), ("push", push)):
            try:
                for url in urls:
                    check_url(url)
            except ValueError:
                example = (
                    "a base URL such as http://127.0.0.1:9646" if name == "push" else "URLs (http://gpu:9647/metrics)"
                )
                raise ValueError(f"`telemetry.{name}` must be {example}, without user, password or query") from None
        if not 0.1 <= self.interval <= 60:
            raise ValueError("`telemetry.interval` must lie between 100ms and 1m")
        if (self.price_per_gpu_hour or 0.0) < 0 or (self.gpus is not None and self.gpus < 1):
            raise ValueError("`telemetry.price_per_gpu_hour` must not be negative, `telemetry.gpus` 1 or more")

    def push_headers(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The header that lets a push in; {} without a token. ConfigError where the variable is missing or empty."""
        return {} if self.push is None else _bearer("push_token_env", self.push_token_env, environ)

    def gpu_headers(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The header that lets us read the GPU exporters; errors as `push_headers`."""
        return _bearer("gpu_token_env", self.gpu_token_env, environ) if self.gpu_exporters else {}


def _bearer(name: str, variable: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    if variable is None:
        return {}
    token = environ.get(variable, "")
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(f"the environment variable {variable} (telemetry.{name}) is not set to a token")
    return {"authorization": f"Bearer {token}"}


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    target: tuple[str, ...]
    dataset: Dataset
    name: str = "run"  # the scenario's name in results and metrics
    engine: Engine = Engine()
    tls: Tls = Tls()
    load: Load = Load()
    phases: Phases = Phases()
    timeouts: Timeouts = Timeouts()
    connections: Literal["pooled", "fresh"] = "pooled"
    event_bytes_max: int = 1 << 20  # one event or line; vLLM's own logprob events stay far below
    slo: Slo = Slo()
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
        if self.event_bytes_max < 1024:
            raise ValueError("`event_bytes_max` must be 1024 or more")


def check_url(url: str) -> urllib.parse.SplitResult:
    """The parts of a target's base URL. Raises ValueError with the mend; the sentence repeats no password."""
    if "@" in url.split("//", 1)[-1].split("/", 1)[0]:
        raise ValueError("`target` holds a user or password; name a variable under `engine.headers_from_env` instead")
    if not url.isascii() or not url.isprintable() or " " in url:
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
    return typed_yaml.read(root, Profile)


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


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where indexes of data sets are kept: $XDG_CACHE_HOME/tokenswarm or ~/.cache/tokenswarm."""
    root = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "/tmp")) / ".cache")
    return Path(root) / "tokenswarm"


def run_token(environ: Mapping[str, str] = os.environ) -> str:
    """The word that a worker must say to join the master of this run ("" where none was given)."""
    return environ.get("TOKENSWARM_RUN_TOKEN", "")


def encode(profile: Profile) -> bytes:
    """JSON, for the manifest and for workers."""
    return msgspec.json.encode(profile)


def decode(data: bytes) -> Profile:
    """The inverse of `encode`."""
    return msgspec.json.decode(data, type=Profile)


def seconds(text: str, origin: str) -> float:
    """A duration as a user writes it (`30s`, `1h30m`, `5`), in seconds. Raises ConfigError."""
    return typed_yaml.read(typed_yaml.literal(text, origin), Seconds, origin)
