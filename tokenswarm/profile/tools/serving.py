"""`vllm bench serve` and `sglang.bench_serving`: both descend from vLLM's `benchmark_serving.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenswarm.profile.tools.values import (
    ALWAYS,
    BODY,
    CHART,
    COUNT,
    LEVELS,
    PREFIX,
    RATES,
    SECRET,
    SERVER,
    URL,
    Option,
    Tool,
    api,
    api_name,
    lengths,
    load,
    put,
    rate,
    share_of,
    sharegpt,
    stands,
    target,
    whole,
)
from tokenswarm.profile.typed_yaml import shown


def _vllm(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, plain)
    kind, share = plain.get("dataset", "random"), plain.get("range") or 0.0
    _serving(plain, profile, remarks, kind, {"input_len": 1024, "output_len": 128})
    if kind == "random" and share:  # between len · (1 − share) and len · (1 + share), each as likely
        for name, mean in (("input", 1024), ("output", 128)):
            mean = profile["dataset"]["synthetic"].get(f"{name}_mean", mean)
            put(profile, f"dataset.synthetic.{name}_stddev", round(mean * share / math.sqrt(3), 1))
    put(profile, "dataset.ignore_eos", bool(plain.get("ignore_eos", kind == "random")))


def _sglang(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, {"port": 30000, **plain})
    kind, share = plain.get("dataset", "sharegpt").replace("random-ids", "random"), plain.get("range") or 0.0
    if plain.get("backend") in ("sglang", "sglang-native"):
        remarks.append("its own `/generate` is not spoken here: the same server's completions stand for it")
    _serving(plain, profile, remarks, kind, {"input_len": 1024, "output_len": 1024})
    if kind == "random":  # between len · share and len, each as likely
        for name in ("input", "output"):
            most = profile["dataset"]["synthetic"][f"{name}_mean"]
            put(profile, f"dataset.synthetic.{name}_mean", most * (1 + share) / 2)
            put(profile, f"dataset.synthetic.{name}_stddev", round(most * (1 - share) / math.sqrt(12), 1))
    put(profile, "dataset.ignore_eos", not plain.get("stops"))


def _serving(
    plain: dict[str, Any], profile: dict[str, Any], remarks: list[str], kind: str, means: Mapping[str, int]
) -> None:
    """What vLLM's and SGLang's have alike. Lengths of other data sets than the one that is named mean nothing there."""
    plain.setdefault("requests", 1000)
    if "engine" not in profile or "api" not in profile["engine"]:
        put(profile, "engine.api", api(plain.get("backend", "")))
    if plain.get("served_model"):
        put(profile, "engine.model", plain["served_model"])
    names = ("input_len", "output_len")
    own = {name: plain[key] for name in names for key in (f"{kind}_{name}", name) if key in plain}
    if kind == "sharegpt":
        sharegpt(profile, plain.get("path"))
        put(profile, "dataset.conversations", "single")
        put(profile, "dataset.length_filter", "vllm")
    elif kind == "custom" and "path" in plain:
        put(profile, "dataset.format", "jsonl")
        put(profile, "dataset.path", plain["path"])
        own.setdefault("output_len", 256)
    else:
        if kind != "random":
            stands(remarks, f"the data set `{shown(kind)}` is not here")
        lengths(profile, {**means, **own, "requests": plain["requests"]}, remarks)
    if profile["dataset"]["format"] != "synthetic" and own.get("output_len", 0) > 0:
        put(profile, "dataset.output_tokens.fixed", own["output_len"])
    ends = [plain.get("ramp_start"), plain.get("ramp_end")]
    if None not in ends:
        plain["ramp"] = ends
        if plain.get("ramp_by") != "linear":
            remarks.append("its rate grows otherwise than in the straight line that it grows in here")
    load(profile, plain, remarks)


VLLM = {
    "--model": Option("engine.model"),
    "--served-model-name": Option("~served_model"),
    "--backend": Option("engine.api", api),
    "--endpoint-type": Option("engine.api", api),
    "--endpoint": Option("engine.api", api),
    "--base-url": URL,
    "--host": Option("~host"),
    "--port": Option("~port", whole),
    "--dataset-name": Option("~dataset"),
    "--dataset-path": Option("~path"),
    "--num-prompts": Option("~requests", whole),
    "--request-rate": RATES,
    "--burstiness": Option("~burstiness", rate),
    "--max-concurrency": LEVELS,
    "--ramp-up-strategy": Option("~ramp_by"),
    "--ramp-up-start-rps": Option("~ramp_start", rate),
    "--ramp-up-end-rps": Option("~ramp_end", rate),
    "--input-len": Option("~input_len", whole),
    "--output-len": Option("~output_len", whole),
    "--random-input-len": Option("~random_input_len", whole),
    "--random-output-len": Option("~random_output_len", whole),
    "--random-range-ratio": Option("~range", share_of),
    "--sharegpt-output-len": Option("~sharegpt_output_len", whole),
    "--custom-output-len": Option("~custom_output_len", whole),
    "--ignore-eos": Option("~ignore_eos", None),
    "--seed": Option("dataset.shuffle_seed", whole),
    "--temperature": Option("engine.temperature", float),
    "--top-p": Option("engine.top_p", float),
    "--top-k": Option("engine.extra_body.top_k", whole),
    "--min-p": Option("engine.extra_body.min_p", float),
    "--frequency-penalty": Option("engine.extra_body.frequency_penalty", float),
    "--presence-penalty": Option("engine.extra_body.presence_penalty", float),
    "--repetition-penalty": Option("engine.extra_body.repetition_penalty", float),
    "--random-prefix-len": Option("", why=PREFIX),
    "--num-warmups": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--ready-check-timeout-sec": Option("", why="`timeouts.ready` waits for a server that still loads"),
    "--goodput": Option("", why="limits are `slo`, as `slo: {ttft_s: {p95: 0.5}, goodput_ratio: 0.95}`"),
    "--header": Option("", why=SECRET),
    "--tokenizer": Option("", why=COUNT),
    "--tokenizer-mode": Option("", why=COUNT),
    "--percentile-metrics": Option("", why="all are measured"),
    "--metric-percentiles": Option("", why="p50, p90, p95, p99 and p99.9, where the sample carries them"),
    "--save-result": Option("", None, ALWAYS),
    "--save-detailed": Option("", None, ALWAYS),
    "--append-result": Option("", None, ALWAYS),
    "--result-dir": Option("", why="`--results DIR`"),
    "--result-filename": Option("", why="a run has a folder of its own"),
    "--label": Option("", why="`name` of the profile"),
    "--metadata": Option("", why="the manifest has what was run"),
    "--request-id-prefix": Option("", why="ids begin with that of the run"),
    "--plot-timeline": Option("", None, CHART),
    "--profile": Option("", None, SERVER),
    "--trust-remote-code": Option("", None, "no tokenizer is loaded"),
    "--disable-shuffle": Option("", None, "`dataset.shuffle: false`"),
    "--no-oversample": Option("", None, "a run is as long as its load: `dataset.rounds` says how rows come again"),
    "--no-stream": Option("", None, "of how its data set is fetched"),
    "--skip-chat-template": Option("", None, "prompts are sent as they are"),
    "--logprobs": Option("", why=BODY),
    "--use-beam-search": Option("", None, BODY),
    "--extra-body": Option("", why=BODY),
    "--insecure": Option("", None, "certificates are checked; name yours in `tls.ca_file`"),
    "--lora-modules": Option("", why="one model a run"),
    "--disable-tqdm": Option("", None, "`--quiet`"),
}

ALIKE = (
    "--model", "--served-model-name", "--base-url", "--host", "--port", "--dataset-name", "--dataset-path",
    "--num-prompts", "--request-rate", "--max-concurrency", "--random-range-ratio", "--sharegpt-output-len", "--seed",
    "--tokenizer", "--header", "--disable-tqdm", "--profile",
)  # fmt: skip
SGLANG = {
    **{name: VLLM[name] for name in ALIKE},
    "--backend": Option("~backend", api_name),
    "--random-input-len": Option("~random_input_len", whole),
    "--random-output-len": Option("~random_output_len", whole),
    "--random-input": Option("~random_input_len", whole),
    "--random-output": Option("~random_output_len", whole),
    "--disable-ignore-eos": Option("~stops", None),
    "--disable-stream": Option("", None, "requests are always streamed"),
    "--apply-chat-template": Option("", None, "`engine.api: chat`"),
    "--extra-request-body": Option("", why=BODY),
    "--warmup-requests": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--flush-cache": Option("", None, SERVER),
    "--output-file": Option("", why="`--results DIR`"),
    "--output-details": Option("", None, ALWAYS),
    "--tag": Option("", why="`name` of the profile"),
    "--return-logprob": Option("", None, BODY),
}

TOOLS = {
    "vllm bench serve": Tool(
        (("vllm", "bench", "serve"), ("vllm.entrypoints.cli.main", "bench", "serve"), ("benchmark_serving.py",)),
        VLLM,
        _vllm,
        shortens=True,
    ),
    "sglang.bench_serving": Tool((("sglang.bench_serving",), ("bench_serving.py",)), SGLANG, _sglang, shortens=True),
}
