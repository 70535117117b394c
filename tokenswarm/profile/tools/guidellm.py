"""`guidellm benchmark`."""

from __future__ import annotations

import json
from typing import Any

from tokenswarm.profile.tools.values import (
    ALWAYS,
    COUNT,
    URL,
    Option,
    Refused,
    Tool,
    api,
    lengths,
    load,
    put,
    rate,
    seconds,
    several,
    stands,
    target,
    whole,
)
from tokenswarm.profile.typed_yaml import shown


def _guidellm(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, plain)
    put(profile, "engine.api", plain.get("api", "chat"))
    data = _data(str(plain.get("data", "")))
    known = {"prompt_tokens": "input_len", "output_tokens": "output_len", "prompt_tokens_stdev": "input_std",
             "output_tokens_stdev": "output_std"}  # fmt: skip
    found = {known[name]: _length(name, value) for name, value in data.items() if name in known}
    if str(plain.get("data", "")).endswith((".json", ".jsonl")):
        put(profile, "dataset.path", plain["data"])
    else:
        if plain.get("data") and not found:
            stands(remarks, "the data set of --data is not here")
        lengths(profile, {**found, **({"requests": plain["requests"]} if "requests" in plain else {})}, remarks)
    kind, values = plain.get("profile", "sweep"), plain.pop("rate", [])
    if kind in ("constant", "poisson", "async") and values:
        plain |= {"rate": values, "kind": "constant" if kind != "poisson" else "poisson"}
    else:
        plain["concurrency"] = [whole(str(value)) for value in values] if kind == "concurrent" and values else [1]
        if kind not in ("concurrent", "synchronous"):
            remarks.append(f"its `{shown(kind)}` looks for its own loads: write the stages that you want")
    load(profile, plain, remarks)


def _length(name: str, value: str) -> int:
    try:
        return whole(value)
    except (ValueError, OverflowError):
        raise Refused(f"--data: {name}={shown(value)}: can't be read as its value") from None


def _data(text: str) -> dict[str, str]:
    """`prompt_tokens=256,output_tokens=128`, or the same as JSON; {} of everything else."""
    if text.lstrip().startswith("{"):
        try:
            return {name: str(value) for name, value in json.loads(text).items()}
        except ValueError:
            return {}
    pairs = [part.split("=", 1) for part in text.split(",") if "=" in part]
    return {name.strip(): value.strip() for name, value in pairs}


GUIDELLM = {
    "--target": URL,
    "--model": Option("engine.model"),
    "--profile": Option("~profile"),
    "--rate-type": Option("~profile"),
    "--rate": Option("~rate", several(rate), adds=True),
    "--max-seconds": Option("~duration", seconds),
    "--max-requests": Option("~requests", whole),
    "--data": Option("~data"),
    "--request-type": Option("~api", api),
    "--request-format": Option("~api", api),
    "--random-seed": Option("dataset.shuffle_seed", whole),
    "--processor": Option("", why=COUNT),
    "--output-path": Option("", why="`--results DIR`"),
    "--output-dir": Option("", why="`--results DIR`"),
    "--outputs": Option("", why=ALWAYS),
    "--warmup": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--cooldown": Option("", why="the window ends before the drain"),
    "--max-errors": Option("", why="`load.abort_on_fail`"),
    "--scenario": Option("", why="the file is not read: give its options"),
}

TOOLS = {"guidellm benchmark": Tool((("guidellm", "benchmark", "run"), ("guidellm", "benchmark")), GUIDELLM, _guidellm)}
