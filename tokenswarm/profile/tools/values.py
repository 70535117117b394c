"""What an option of another tool means, and what several of them make together: a load, lengths, a target."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Set = Callable[[str], Any]


class Refused(ValueError):
    """A value that has no equal here, in a sentence's end."""


class Option(msgspec.Struct, frozen=True):
    """A row. `key`: of the profile, or `~name` of what `finish` makes of several; "" where there is none: `why`."""

    key: str
    read: Set | None = str  # None: a flag without a value
    why: str = ""
    adds: bool = False  # given again, it adds to the list instead of taking its place


class Tool(msgspec.Struct, frozen=True):
    """`starts`: the words that its command begins with, one way or another."""

    starts: tuple[tuple[str, ...], ...]
    options: dict[str, Option]
    finish: Callable[[dict[str, Any], dict[str, Any], list[str]], None]  # (plain names, profile, remarks)
    shortens: bool = False  # argparse: the beginning of an option is taken for the whole


def put(profile: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *folders, last = key.split(".")
    for name in folders:
        profile = profile.setdefault(name, {})
    profile[last] = value


# -- what values mean ------------------------------------------------------------------------------------------------

NO_TEXT = re.compile("embed|rank|audio|pool|image|video|score|transcri|translat")
APIS = ("responses", "messages", "chat")


def whole(text: str) -> int:
    value = float(text)
    if value != int(value):
        raise ValueError
    return int(value)


def rate(text: str) -> float:
    value = float(text)
    if math.isnan(value) or value <= 0:
        raise ValueError
    return value


def several(read: Callable[[str], Any]) -> Set:
    """Values with commas or spaces between them, also in brackets."""
    return lambda text: [read(part) for part in re.split(r"[,\s]+", text.strip("[] "))]


def api(text: str) -> str:
    """Of a backend's name or an endpoint's path; OpenAI's completions where it names no other."""
    if NO_TEXT.search(text.lower()):
        raise Refused("asks for no text, and only text is asked for here")
    return next((name for name in APIS if name in text.lower()), "completions")


def spoken(text: str) -> str:
    """The same, of a tool that names what it speaks."""
    if not any(name in text for name in (*APIS, "completions")) and not NO_TEXT.search(text):
        raise Refused("is a dialect that is not spoken here")
    return api(text)


def seconds(text: str) -> str:
    return f"{float(text.removesuffix('s')):g}s"


def share_of(text: str) -> float:
    """Above 0 lengths vary; a share for each of prompt and answer is not told apart here."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def api_name(text: str) -> str:
    api(text)
    return text


def one_model(text: str) -> str:
    if "," in text or " " in text:
        raise Refused("names several models; a run has one")
    return text


def load(profile: dict[str, Any], wanted: Mapping[str, Any], remarks: list[str]) -> None:
    """`load`, of rates, concurrencies, a number of requests, a duration: whichever were given."""
    rates = [per_s for per_s in wanted.get("rate", []) if math.isfinite(per_s)]
    levels, many, ramp = wanted.get("concurrency", []), wanted.get("requests"), wanted.get("ramp")
    stages: list[dict[str, Any]]
    if rates or ramp:
        burst = wanted.get("burstiness", 1.0)
        kind = wanted.get("kind") or ("poisson" if burst == 1.0 else "gamma")
        put(profile, "load.kind", kind)
        stages = [{"rate": ramp}] if ramp else [{"rate": per_s} for per_s in rates]
        if kind == "gamma":
            put(profile, "load.burstiness", burst)
        if levels:
            put(profile, "load.max_in_flight", max(levels))
            remarks.append("beyond max_in_flight an arrival is dropped and counted, and does not wait in a queue")
    else:
        put(profile, "load.kind", "closed")
        stages = [{"users": level} for level in levels or [many or 1]]
        if not levels and many:
            remarks.append(f"all {many} requests at once are {many} users")
    if ramp and many:
        stages[0]["duration"] = f"{2 * many / sum(ramp):.6g}s"
        put(profile, "phases.warmup", "0s")  # which would send more, at the first rate
        remarks.append(f"the ramp ends with its time, in which about {many} requests are due")
    elif many and len(stages) > 1:
        remarks.append(f"each of the {len(stages)} loads is a stage with a time of its own, not of {many} requests")
    elif many:
        put(profile, "load.requests", many)
    if "duration" in wanted:
        stages = [{**stage, "duration": wanted["duration"]} for stage in stages]
    put(profile, "load.stages", stages)


def lengths(profile: dict[str, Any], wanted: Mapping[str, Any], remarks: list[str]) -> None:
    """`dataset.synthetic`, of lengths of prompts and answers."""
    put(profile, "dataset.format", "synthetic")
    for name in ("input", "output"):
        if f"{name}_len" in wanted:
            put(profile, f"dataset.synthetic.{name}_mean", wanted[f"{name}_len"])
        if wanted.get(f"{name}_std"):
            put(profile, f"dataset.synthetic.{name}_stddev", wanted[f"{name}_std"])
    if "conversations" in wanted or "requests" in wanted:
        put(profile, "dataset.synthetic.conversations", wanted.get("conversations", wanted.get("requests")))
    remarks.append("lengths of synthetic prompts are estimates: the server's own count is in the results")


def stands(remarks: list[str], what: str) -> None:
    remarks.append(f"{what}: synthetic prompts stand for it")


def sharegpt(profile: dict[str, Any], path: str | None) -> None:
    put(profile, "dataset.format", "sharegpt")
    put(profile, "dataset.path", path or "ShareGPT_V3_unfiltered_cleaned_split.json")


def target(profile: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    urls = wanted.get("base_url", [])
    if not urls and ("host" in wanted or "port" in wanted):
        host = wanted.get("host", "127.0.0.1")
        host = f"[{host}]" if re.fullmatch("[0-9a-fA-F:]*:[0-9a-fA-F:]*", host) else host
        urls = [host if "://" in host else f"{host}:{wanted.get('port', 8000)}"]
    urls = [re.sub(r"/v1/?$", "", url.rstrip("/")) for url in urls]
    urls = [url if "://" in url else f"http://{url}" for url in urls]
    if urls:
        profile["target"] = urls[0] if len(urls) == 1 else urls


# -- the tools ---------------------------------------------------------------------------------------------------------

ALWAYS = "results are always kept, with a row a request"
CHART = "report.html has its own charts"
SERVER = "of the server's side"
SECRET = "a value may be a secret: name its variable in `engine.headers_from_env`"
PREFIX = "synthetic prompts share no prefix; rows with one `system` message do, or a Mooncake trace"
BODY = "`engine.extra_body`"
COUNT = "the server's own count of tokens is taken"
URL = Option("~base_url", several(str), adds=True)
LEVELS = Option("~concurrency", several(whole))
RATES = Option("~rate", several(rate))
