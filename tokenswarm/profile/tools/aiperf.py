"""`aiperf profile`."""

from __future__ import annotations

from typing import Any

from tokenswarm.profile.tools.values import (
    COUNT,
    LEVELS,
    PREFIX,
    RATES,
    SECRET,
    URL,
    Option,
    Refused,
    Tool,
    lengths,
    load,
    one_model,
    put,
    rate,
    seconds,
    several,
    sharegpt,
    spoken,
    stands,
    target,
    whole,
)
from tokenswarm.profile.typed_yaml import shown


def _aiperf(plain: dict[str, Any], profile: dict[str, Any], remarks: list[str]) -> None:
    target(profile, plain)
    put(profile, "engine.api", plain.get("api", "chat"))
    form, public = plain.get("form", "single_turn"), plain.get("public")
    if "trace" in form or plain.get("fixed"):
        if "file" not in plain or form not in ("mooncake_trace", "bailian_trace", "burst_gpt_trace"):
            raise Refused("its trace is of a format that is not read here")
        blocks = {"block_tokens": plain["block"]} if "block" in plain else {}
        put(profile, "load", {"kind": "trace", "trace": {"path": plain["file"], **blocks}})
        put(profile, "dataset.format", "synthetic")
        return
    if "file" in plain:
        put(profile, "dataset.path", plain["file"])
    elif public == "sharegpt":
        sharegpt(profile, None)
    else:
        if public:
            stands(remarks, f"the data set `{shown(public)}` is not here")
        lengths(profile, {"input_len": 550, "conversations": 100, **plain}, remarks)
        if "output_len" not in plain:
            remarks.append("without --osl an answer ends when the model likes: here after 128 tokens at the latest")
    extra = " ".join(plain.get("extra", []))
    put(profile, "dataset.ignore_eos", "ignore_eos:true" in extra.lower())
    if extra:
        remarks.append("of --extra-inputs only ignore_eos is taken: the rest goes into `engine.extra_body`")
    if "rate" in plain and plain.get("kind") not in (None, "constant", "poisson", "gamma"):
        remarks.append(f"arrivals `{shown(str(plain['kind']))}` are not here: poisson stands for them")
        plain["kind"] = "poisson"
    if "duration" not in plain and "requests" not in plain:
        remarks.append("it sends max(10, 2 · concurrency) requests; here a stage has a time: `duration`, 30s")
    load(profile, plain, remarks)


AIPERF = {
    "--model": Option("engine.model", one_model),
    "--model-names": Option("engine.model", one_model),
    "-m": Option("engine.model", one_model),
    "--url": URL,
    "-u": URL,
    "--endpoint-type": Option("~api", spoken),
    "--concurrency": LEVELS,
    "--request-rate": RATES,
    "--request-rate-mode": Option("~kind"),
    "--arrival-pattern": Option("~kind"),
    "--arrival-smoothness": Option("~burstiness", rate),
    "--vllm-burstiness": Option("~burstiness", rate),
    "--request-count": Option("~requests", whole),
    "--num-requests": Option("~requests", whole),
    "--benchmark-duration": Option("~duration", seconds),
    "--benchmark-grace-period": Option("phases.drain", seconds),
    "--request-timeout-seconds": Option("timeouts.total", seconds),
    "--warmup-duration": Option("phases.warmup", seconds),
    "--num-conversations": Option("~conversations", whole),
    "--conversation-num": Option("~conversations", whole),
    "--num-sessions": Option("~conversations", whole),
    "--num-prompts": Option("~conversations", whole),
    "--num-dataset-entries": Option("~conversations", whole),
    "--session-turns-mean": Option("dataset.synthetic.turns", whole),
    "--conversation-turn-mean": Option("dataset.synthetic.turns", whole),
    "--isl": Option("~input_len", whole),
    "--prompt-input-tokens-mean": Option("~input_len", whole),
    "--synthetic-input-tokens-mean": Option("~input_len", whole),
    "--isl-stddev": Option("~input_std", float),
    "--prompt-input-tokens-stddev": Option("~input_std", float),
    "--synthetic-input-tokens-stddev": Option("~input_std", float),
    "--osl": Option("~output_len", whole),
    "--prompt-output-tokens-mean": Option("~output_len", whole),
    "--output-tokens-mean": Option("~output_len", whole),
    "--osl-stddev": Option("~output_std", float),
    "--prompt-output-tokens-stddev": Option("~output_std", float),
    "--output-tokens-stddev": Option("~output_std", float),
    "--random-seed": Option("dataset.shuffle_seed", whole),
    "--public-dataset": Option("~public"),
    "--input-file": Option("~file"),
    "--custom-dataset-type": Option("~form"),
    "--fixed-schedule": Option("~fixed", None),
    "--isl-block-size": Option("~block", whole),
    "--prompt-input-tokens-block-size": Option("~block", whole),
    "--synthetic-input-tokens-block-size": Option("~block", whole),
    "--streaming": Option("", None, "requests are always streamed"),
    "--endpoint": Option("", why="the path follows from `engine.api`"),
    "--custom-endpoint": Option("", why="the path follows from `engine.api`"),
    "--tokenizer": Option("", why=COUNT),
    "--use-server-token-count": Option("", None, COUNT),
    "--warmup-request-count": Option("", why="a warm-up is a time here: `phases.warmup`"),
    "--goodput": Option("", why="limits are `slo`"),
    "--header": Option("", why=SECRET),
    "-H": Option("", why=SECRET),
    "--api-key": Option("", why="name its variable in `engine.headers_from_env`"),
    "--extra-inputs": Option("~extra", several(str), adds=True),
    "--prefix-prompt-length": Option("", why=PREFIX),
    "--shared-system-prompt-length": Option("", why=PREFIX),
    "--user-centric-rate": Option("", why="users with pauses are `load.think_time`"),
    "--config": Option("", why="the file is not read: give its options"),
}

TOOLS = {"aiperf profile": Tool((("aiperf", "profile"),), AIPERF, _aiperf)}
