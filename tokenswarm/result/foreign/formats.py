"""The table of formats, and a file of one of them read: JSON that may be cut, too new, or something else altogether."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.errors import ConfigError
from tokenswarm.result.comparison import Run
from tokenswarm.result.foreign import aiperf, genai_bench, guidellm, k6, sglang_bench, vllm_bench
from tokenswarm.result.foreign.found import FIELDS, RATES, Format, at, number
from tokenswarm.result.summary import Summary

FORMATS: dict[str, Format] = {
    row.tool: row
    for row in (
        vllm_bench.FORMAT,
        sglang_bench.FORMAT,
        aiperf.FORMAT,
        guidellm.FORMAT,
        genai_bench.FORMAT,
        k6.FORMAT,
    )
}
"""By tool; a row a format."""

OK_RATIO = "ok_ratio"
"""The share of the requests that succeeded, each tool by its own notion of success."""

BYTES_MAX = 1 << 29  # with --save-detailed a file holds each text


def metric_names(tool: str) -> list[str]:
    """What can be compared under a tool's definitions, as `ttft_s.p50`."""
    p = ("p50", "p95", "p99") if tool == "k6" else ("p50", "p99")
    ours = FORMATS[tool].ours
    latencies = [f"{field}.{which}" for field in FIELDS if field in ours for which in p]
    return [*latencies, *(rate for rate in RATES if rate in ours), *([OK_RATIO] if FORMATS[tool].tells_failed else [])]


def translated(summary: Summary, tool: str) -> dict[str, float | None]:
    """The numbers of a run of ours by the definitions of that tool."""
    tree = msgspec.to_builtins(summary)
    values: dict[str, float | None] = {}
    for name in metric_names(tool):
        if name == OK_RATIO:
            values[name] = summary.requests_steady.ok_ratio
            continue
        field, _, which = name.partition(".")
        path, factor = FORMATS[tool].ours[field]
        values[name] = _told(number(at(tree, *path, *([which] if which else [])), factor))
    return values


def _told(value: float | None) -> float | None:
    """Only what lies above 0: these tools write 0 for what was not measured, as a TPOT of one token, or hidden gaps."""
    return value if value is not None and value > 0 else None


def read(name: str) -> Run | None:
    """The run of a file (`FILE`, or `FILE#2` where it holds several); None where it is a summary.json of ours.

    Raises ConfigError where it can't be read, is of no known format, or is no whole run.
    """
    path, _, chosen = name.partition("#") if not Path(name).exists() else (name, "", "")
    documents = _documents(Path(path))
    row = next((row for row in FORMATS.values() if row.matches(documents[0])), None)
    if row is None:
        if "schema_version" in documents[0] and "verdict" in documents[0]:
            return None
        if isinstance(documents[0].get("runs"), list):
            raise ConfigError(f"{path}: is a stored group: give it as --baseline {path}")
        raise ConfigError(f"{path}: is of no format that compare reads: a run of ours, or {', '.join(FORMATS)}")
    parts = [(part, whole) for whole in documents if row.matches(whole) for part in row.parts(whole)]
    part, whole = parts[_choice(path, chosen, len(parts))]
    if not isinstance(part, Mapping):
        raise ConfigError(f"{path}: {row.tool}: holds something else where a result should be")
    found = row.read(part, whole)
    if found.unfinished:
        raise ConfigError(f"{path}: {row.tool}: is no whole run ({found.unfinished[:120]}); leave it out")
    if not found.completed:
        raise ConfigError(f"{path}: {row.tool}: says of no request that it succeeded; leave it out")
    values = {key: _told(found.values.get(key)) for key in metric_names(row.tool) if key != OK_RATIO}
    if all(value is None for value in values.values()):
        raise ConfigError(f"{path}: {row.tool}: has none of the numbers that compare knows: is it cut, or newer?")
    if row.tells_failed:
        ended = found.completed + max(0.0, found.failed or 0.0)
        values[OK_RATIO] = None if found.failed is None else found.completed / ended
    about: dict[str, Any] = {"model": {"engine.model": found.model}} if found.model else {}
    about |= {"load": {row.tool: found.load}} if found.load else {}
    return Run(run_id=name, values=values, about=about, status="not judged", tool=row.tool)


def _choice(path: str, chosen: str, many: int) -> int:
    if chosen:
        if not chosen.isascii() or not chosen.isdigit() or not 1 <= int(chosen) <= many:
            raise ConfigError(f"{path}#{chosen[:20]}: it holds {many} run{'s' * (many != 1)}, from #1")
        return int(chosen) - 1
    if many != 1:
        what = f"holds {many} runs; name one, as {path}#1" if many else "holds no run"
        raise ConfigError(f"{path}: {what}")
    return 0


def _documents(path: Path) -> list[Mapping[str, Any]]:
    """The JSON objects of a file: one, or several behind each other, as `--append-result` writes them."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConfigError(f"{path}: is larger than {BYTES_MAX >> 20} MiB; save it without each request's details")
        data = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no JSON of a result: not UTF-8 text") from None
    found: list[Any] = []
    at_char, decoder = 0, json.JSONDecoder()
    try:
        while (rest := data[at_char:].lstrip("\ufeff \t\r\n")) and len(found) < 10_000:
            value, used = decoder.raw_decode(rest)
            found.append(value)
            at_char = len(data) - len(rest) + used
    except (ValueError, RecursionError) as error:
        line = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise ConfigError(f"{path}: is no whole JSON ({line}); was it cut?") from None
    if not found or not all(isinstance(value, Mapping) for value in found):
        raise ConfigError(f"{path}: is no JSON object of a result")
    return found
