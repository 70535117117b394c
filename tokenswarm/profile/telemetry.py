"""`telemetry`: whom to ask beside the load, and where the run's counts go."""

from __future__ import annotations

from math import inf

import msgspec

from tokenswarm.profile.engine import VARIABLE
from tokenswarm.profile.target import check_url
from tokenswarm.profile.typed_yaml import Seconds, shown

INSTANCES_MAX = 64  # each is a series of the run
EXAMPLES = {
    "engine_metrics": "http://engine:8000/metrics",
    "gpu_exporters": "http://gpu:9647/metrics",
    "push": "http://127.0.0.1:9646",
}


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    engine_metrics: tuple[str, ...] = ("auto",)  # auto: of each target; off; or URLs of the engine's /metrics
    gpu_exporters: tuple[str, ...] = ()  # URLs of `python -m exporters.gpu`'s /metrics
    gpu_token_env: str | None = None  # the environment variable that holds the bearer token of the GPU exporters
    engine_instances: tuple[str, ...] = ()  # label `instance` of the engines in Prometheus; else their addresses
    host_instances: tuple[str, ...] = ()  # the same of the GPU exporters
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
            if (variable := getattr(self, name)) is not None and not VARIABLE.fullmatch(variable):
                raise ValueError(f"`telemetry.{name}` names an environment variable; it is not the token itself")
        engine = () if self.engine_metrics == ("off",) else tuple(u for u in self.engine_metrics if u != "auto")
        push = () if self.push is None else (self.push,)
        for name, urls in (("engine_metrics", engine), ("gpu_exporters", self.gpu_exporters), ("push", push)):
            for url in urls:
                _check(name, url)
        for name in ("engine_instances", "host_instances"):
            told = getattr(self, name)
            if len(told) > INSTANCES_MAX or not all(0 < len(one) <= 128 and one.isprintable() for one in told):
                raise ValueError(f"`telemetry.{name}` holds up to {INSTANCES_MAX} values of 1 to 128 characters")
        if not 0.1 <= self.interval <= 60:
            raise ValueError("`telemetry.interval` must lie between 100ms and 1m")
        if not 0 <= (self.price_per_gpu_hour or 0.0) < inf or (self.gpus is not None and self.gpus < 1):
            raise ValueError("`telemetry.price_per_gpu_hour` must be a number of 0 or more, `telemetry.gpus` 1 or more")


def _check(name: str, url: str) -> None:
    """Raises ValueError with the mend; it repeats nothing that may be a secret."""
    try:
        check_url(url)
    except ValueError:
        if set("@?#") & set(url):
            what = "a base URL" if name == "push" else "URLs"
            told = f"`telemetry.{name}` must be {what} such as {EXAMPLES[name]}, without user, password or query"
        else:
            told = f"`telemetry.{name}: {shown(url)}` must look like {EXAMPLES[name]}"
        raise ValueError(told) from None
