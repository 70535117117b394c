"""Other tools' commands in our words: a command line in, a profile out, and what of it has no equal here.

A tool is a table of its options (as of November 2026): each sets a key of the profile by a function, is void here for a
reason, or is not known, which is said. docs/comparability.md is held to these tables.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import yaml

from tokenswarm.errors import ConfigError
from tokenswarm.profile.typed_yaml import shown

Set = Callable[[str], Any]


class Option(msgspec.Struct, frozen=True):
    """A row. `key`: of the profile, or `~name` of what `finish` makes of several; "" where there is none: `why`."""

    key: str
    read: Set | None = str  # None: a flag without a value
    why: str = ""


class Tool(msgspec.Struct, frozen=True):
    """`start`: the words that its command begins with."""

    start: tuple[str, ...]
    options: dict[str, Option]
    finish: Callable[[dict[str, Any], dict[str, Any], list[str]], None]  # (plain names, profile, remarks)


class Translated(msgspec.Struct, frozen=True):
    """`profile`: nested keys. `lacks`: what has no equal, by option. `remarks`: what is not quite the same."""

    tool: str
    profile: dict[str, Any]
    lacks: dict[str, str]
    remarks: list[str]

    def text(self) -> str:
        """The profile as YAML, with what it lacks as comments. No word of the command is repeated: it may be a key."""
        told = [f"# Of a command of {self.tool}."]
        told += [f"# not quite the same: {remark}" for remark in self.remarks]
        told += [f"# has no equal here: {shown(option)}: {why}" for option, why in self.lacks.items()]
        return "\n".join(told) + "\n" + yaml.safe_dump(self.profile, sort_keys=False, allow_unicode=True, width=1000)


def translate(command: str) -> Translated:
    """Raises ConfigError where it is no command of a tool that is known, or a value can't be read."""
    try:
        words = [word for word in shlex.split(command) if word != "\n"]
    except ValueError as error:
        raise ConfigError(f"translate: the command can't be split into words: {error}") from None
    tool = next((tool for tool in TOOLS.values() if tuple(words[: len(tool.start)]) == tool.start), None)
    if tool is None:
        known = ", ".join(f"`{' '.join(tool.start)} …`" for tool in TOOLS.values())
        raise ConfigError(f"translate: give one command in quotes, of {known}")
    plain: dict[str, Any] = {}
    profile: dict[str, Any] = {"name": "translated", "target": "http://127.0.0.1:8000"}
    lacks: dict[str, str] = {}
    for option, value in _pairs(words[len(tool.start) :], tool.options):
        row = tool.options.get(option)
        if row is None:
            close = difflib.get_close_matches(option, tool.options, n=1)
            lacks[option] = f"not known; did you mean `{close[0]}`?" if close else "not known"
        elif not row.key:
            lacks[option] = row.why
        else:
            made = _read(option, row, value)
            if row.key.startswith("~"):
                plain[row.key[1:]] = made
            else:
                put(profile, row.key, made)
    remarks: list[str] = []
    tool.finish(plain, profile, remarks)
    return Translated(" ".join(tool.start), profile, lacks, remarks)


def put(profile: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *folders, last = key.split(".")
    for name in folders:
        profile = profile.setdefault(name, {})
    profile[last] = value


def _pairs(words: Sequence[str], options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """(option, its value) of a command's words; several values of one option are joined by a space."""
    found: list[tuple[str, str]] = []
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            option, _, value = word.partition("=")
            found.append((option.replace("_", "-") if option not in options else option, value))
        elif found and (row := options.get(found[-1][0])) is not None and row.read is None:
            raise ConfigError(f"translate: `{shown(word)}`: {found[-1][0]} takes no value")
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {word}".strip())
        else:
            raise ConfigError(f"translate: `{shown(word)}` is no option")
    return found


def _read(option: str, row: Option, value: str) -> Any:
    if row.read is None:
        return True
    try:
        if not value:
            raise ValueError
        return row.read(value)
    except (ValueError, OverflowError):
        raise ConfigError(f"translate: {option} {shown(value)}: can't be read as its value") from None


# -- what values mean ------------------------------------------------------------------------------------------------


def whole(text: str) -> int:
    return int(float(text))


def rate(text: str) -> float:
    value = float(text)
    if math.isnan(value) or value <= 0:
        raise ValueError
    return value


def api(text: str) -> str:
    """`chat` or `completions`, of a backend's name or an endpoint's path."""
    return "chat" if "chat" in text else "completions"


def seconds(text: str) -> str:
    return f"{float(text.removesuffix('s')):g}s"


def words_of(text: str) -> str:
    return text.split()[0]


def load(profile: dict[str, Any], wanted: Mapping[str, Any], remarks: list[str]) -> None:
    """`load`, of a rate, a concurrency, a number of requests, a duration: whichever were given."""
    per_s, many, most = wanted.get("rate", math.inf), wanted.get("requests"), wanted.get("concurrency")
    stage: dict[str, Any] = {}
    if math.isfinite(per_s):
        burst = wanted.get("burstiness", 1.0)
        kind = wanted.get("kind") or ("poisson" if burst == 1.0 else "gamma")
        put(profile, "load.kind", kind)
        stage["rate"] = per_s
        if kind == "gamma":
            put(profile, "load.burstiness", burst)
        if most is not None:
            put(profile, "load.max_in_flight", most)
            remarks.append("beyond max_in_flight an arrival is dropped and counted, and does not wait in a queue")
    else:
        put(profile, "load.kind", "closed")
        stage["users"] = most or many or 1
        if most is None and many:
            remarks.append(f"all {many} requests at once are {many} users")
    if "duration" in wanted:
        stage["duration"] = wanted["duration"]
    if many:
        put(profile, "load.requests", many)
    put(profile, "load.stages", [stage])


def lengths(profile: dict[str, Any], wanted: Mapping[str, Any], remarks: list[str]) -> None:
    """`dataset.synthetic`, of lengths of prompts and answers."""
    put(profile, "dataset.format", "synthetic")
    for name in ("input", "output"):
        if f"{name}_len" in wanted:
            put(profile, f"dataset.synthetic.{name}_mean", wanted[f"{name}_len"])
        if wanted.get(f"{name}_std"):
            put(profile, f"dataset.synthetic.{name}_stddev", wanted[f"{name}_std"])
    if "requests" in wanted:
        put(profile, "dataset.synthetic.conversations", wanted["requests"])
    remarks.append("lengths of synthetic prompts are estimates: the server's own count is in the results")


def target(profile: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    if "base_url" in wanted:
        url = re.sub(r"/v1/?$", "", wanted["base_url"].rstrip("/"))
        profile["target"] = url if "://" in url else f"http://{url}"
    elif "host" in wanted or "port" in wanted:
        profile["target"] = f"http://{wanted.get('host', '127.0.0.1')}:{wanted.get('port', 8000)}"


# -- the tools ---------------------------------------------------------------------------------------------------------

ALWAYS = "results are always kept, with a row a request"
CHART = "report.html has its own charts"
SERVER = "of the server's side"


def _vllm(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, plain)
    kind = plain.get("dataset", "random")
    plain.setdefault("requests", 1000)
    if "engine" not in profile or "api" not in profile["engine"]:
        put(profile, "engine.api", "completions")
    if plain.get("served_model"):
        put(profile, "engine.model", plain["served_model"])
    if kind == "sharegpt":
        put(profile, "dataset.format", "sharegpt")
        put(profile, "dataset.path", plain.get("path", "ShareGPT_V3_unfiltered_cleaned_split.json"))
        put(profile, "dataset.conversations", "single")
        put(profile, "dataset.length_filter", "vllm")
        if "output_len" in plain:
            put(profile, "dataset.output_tokens.fixed", plain["output_len"])
    else:
        if kind != "random":
            remarks.append(f"the data set `{shown(kind)}` is not here: synthetic prompts stand for it")
        lengths(profile, {"input_len": 1024, "output_len": 128, **plain}, remarks)
    put(profile, "dataset.ignore_eos", bool(plain.get("ignore_eos", kind == "random")))
    load(profile, plain, remarks)


VLLM = {
    "--model": Option("engine.model"),
    "--served-model-name": Option("~served_model"),
    "--backend": Option("engine.api", api),
    "--endpoint-type": Option("engine.api", api),
    "--endpoint": Option("engine.api", api),
    "--base-url": Option("~base_url"),
    "--host": Option("~host"),
    "--port": Option("~port", whole),
    "--dataset-name": Option("~dataset"),
    "--dataset-path": Option("~path"),
    "--num-prompts": Option("~requests", whole),
    "--request-rate": Option("~rate", rate),
    "--burstiness": Option("~burstiness", rate),
    "--max-concurrency": Option("~concurrency", whole),
    "--input-len": Option("~input_len", whole),
    "--output-len": Option("~output_len", whole),
    "--random-input-len": Option("~input_len", whole),
    "--random-output-len": Option("~output_len", whole),
    "--sharegpt-output-len": Option("~output_len", whole),
    "--ignore-eos": Option("~ignore_eos", None),
    "--seed": Option("dataset.shuffle_seed", whole),
    "--temperature": Option("engine.temperature", float),
    "--top-p": Option("engine.top_p", float),
    "--random-range-ratio": Option("", why="lengths vary by `dataset.synthetic.input_stddev` and `output_stddev` here"),
    "--random-prefix-len": Option(
        "", why="synthetic prompts share no prefix; rows with one `system` message do, or a Mooncake trace"
    ),
    "--num-warmups": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--ready-check-timeout-sec": Option("", why="`timeouts.ready` waits for a server that still loads"),
    "--goodput": Option("", why="limits are `slo`, as `slo: {ttft_s: {p95: 0.5}, goodput_ratio: 0.95}`"),
    "--header": Option("", why="a value may be a secret: name its variable in `engine.headers_from_env`"),
    "--tokenizer": Option("", why="the server's own count of tokens is taken"),
    "--percentile-metrics": Option("", why="all are measured"),
    "--metric-percentiles": Option("", why="p50, p90, p95, p99 and p99.9, where the sample carries them"),
    "--save-result": Option("", None, ALWAYS),
    "--save-detailed": Option("", None, ALWAYS),
    "--append-result": Option("", None, ALWAYS),
    "--result-dir": Option("", why="`--results DIR`"),
    "--result-filename": Option("", why="a run has a folder of its own"),
    "--label": Option("", why="`name` of the profile"),
    "--metadata": Option("", why="the manifest has what was run"),
    "--plot-timeline": Option("", None, CHART),
    "--profile": Option("", None, SERVER),
    "--trust-remote-code": Option("", None, "no tokenizer is loaded"),
    "--ramp-up-strategy": Option("", why="a ramp is two rates of a stage: `rate: [1, 20]`"),
    "--ramp-up-start-rps": Option("", why="a ramp is two rates of a stage: `rate: [1, 20]`"),
    "--ramp-up-end-rps": Option("", why="a ramp is two rates of a stage: `rate: [1, 20]`"),
    "--top-k": Option("", why="`engine.extra_body: {top_k: …}`"),
    "--min-p": Option("", why="`engine.extra_body: {min_p: …}`"),
    "--extra-body": Option("", why="`engine.extra_body`"),
    "--insecure": Option("", None, "certificates are checked; name yours in `tls.ca_file`"),
    "--lora-modules": Option("", why="one model a run"),
    "--disable-tqdm": Option("", None, "`--quiet`"),
}


def _aiperf(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, plain)
    put(profile, "engine.api", plain.get("api", "chat"))
    lengths(profile, {"input_len": 550, **plain}, remarks)
    if "rate" in plain and plain.get("kind") not in (None, "constant", "poisson", "gamma"):
        remarks.append(f"arrivals `{shown(str(plain['kind']))}` are not here: poisson stands for them")
        plain["kind"] = "poisson"
    load(profile, plain, remarks)


AIPERF = {
    "--model": Option("engine.model", words_of),
    "-m": Option("engine.model", words_of),
    "--url": Option("~base_url", words_of),
    "-u": Option("~base_url", words_of),
    "--endpoint-type": Option("~api", api),
    "--concurrency": Option("~concurrency", whole),
    "--request-rate": Option("~rate", rate),
    "--request-rate-mode": Option("~kind"),
    "--arrival-pattern": Option("~kind"),
    "--request-count": Option("~requests", whole),
    "--benchmark-duration": Option("~duration", seconds),
    "--isl": Option("~input_len", whole),
    "--synthetic-input-tokens-mean": Option("~input_len", whole),
    "--synthetic-input-tokens-stddev": Option("~input_std", float),
    "--osl": Option("~output_len", whole),
    "--output-tokens-mean": Option("~output_len", whole),
    "--output-tokens-stddev": Option("~output_std", float),
    "--random-seed": Option("dataset.shuffle_seed", whole),
    "--streaming": Option("", None, "requests are always streamed"),
    "--tokenizer": Option("", why="the server's own count of tokens is taken"),
    "--warmup-request-count": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--goodput": Option("", why="limits are `slo`"),
    "--header": Option("", why="a value may be a secret: name its variable in `engine.headers_from_env`"),
    "--api-key": Option("", why="name its variable in `engine.headers_from_env`"),
    "--extra-inputs": Option("", why="`engine.extra_body`"),
}


def _guidellm(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, plain)
    put(profile, "engine.api", plain.get("api", "chat"))
    data = dict(part.split("=", 1) for part in str(plain.get("data", "")).split(",") if "=" in part)
    known = {"prompt_tokens": "input_len", "output_tokens": "output_len", "prompt_tokens_stdev": "input_std",
             "output_tokens_stdev": "output_std"}  # fmt: skip
    found = {known[name]: whole(value) for name, value in data.items() if name in known and value.strip().isdigit()}
    if plain.get("data") and not found:
        remarks.append("the data are not those of --data: synthetic prompts stand for them")
    lengths(profile, {**found, **({"requests": plain["requests"]} if "requests" in plain else {})}, remarks)
    kind, value = plain.get("profile", "sweep"), str(plain.get("rate", "")).split(",")[0] or None
    if kind in ("constant", "poisson", "async") and value:
        plain |= {"rate": rate(value), "kind": "constant" if kind != "poisson" else "poisson"}
    else:
        plain.pop("rate", None)
        plain["concurrency"] = whole(value) if kind == "concurrent" and value else 1
        if kind not in ("concurrent", "synchronous"):
            remarks.append(f"its `{shown(kind)}` looks for its own loads: write the stages that you want")
    load(profile, plain, remarks)


GUIDELLM = {
    "--target": Option("~base_url"),
    "--model": Option("engine.model"),
    "--profile": Option("~profile"),
    "--rate-type": Option("~profile"),
    "--rate": Option("~rate"),
    "--max-seconds": Option("~duration", seconds),
    "--max-requests": Option("~requests", whole),
    "--data": Option("~data"),
    "--request-type": Option("~api", api),
    "--random-seed": Option("dataset.shuffle_seed", whole),
    "--processor": Option("", why="the server's own count of tokens is taken"),
    "--output-path": Option("", why="`--results DIR`"),
    "--outputs": Option("", why=ALWAYS),
    "--warmup": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--cooldown": Option("", why="the window ends before the drain"),
    "--max-errors": Option("", why="`load.abort_on_fail`"),
}

TOOLS = {
    "vllm bench serve": Tool(("vllm", "bench", "serve"), VLLM, _vllm),
    "aiperf profile": Tool(("aiperf", "profile"), AIPERF, _aiperf),
    "guidellm benchmark": Tool(("guidellm", "benchmark"), GUIDELLM, _guidellm),
}
"""A row a tool whose commands are translated."""
