"""`python -m exporters.ollama`: what Ollama has loaded, on http://127.0.0.1:9648/metrics. It has no /metrics itself.

Polls /api/version, /api/ps and /api/tags every 5 s; never a proxy, so no measured request passes here. If Ollama is
unreachable or talks nonsense, `tokenswarm_ollama_up` is 0, the reason is counted, the models' series vanish at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from exporters import serving
from exporters.families import LABEL_CHARS_MAX, Family, Readings, render
from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.engines.ollama_ps import Loaded, loaded, tagged
from tokenswarm.errors import ConfigError, ExitCode

PORT = 9648
PROG = "python -m exporters.ollama"
BODY_BYTES_MAX = 4 << 20
"""/api/tags of a machine with a thousand models is about 0.5 MB."""
POLL_S_MAX = 3.0
MODELS_MAX = 32
"""Loaded models with series of their own; OLLAMA_MAX_LOADED_MODELS is 3 a GPU. More are counted, not shown."""

REASONS = ("connect", "timeout", "http_status", "not_json", "wrong_shape", "too_large", "truncated")
MODEL = ("model",)
FAMILIES = {
    **serving.FAMILIES,
    "tokenswarm_ollama_up": Family("gauge", "1 if the last poll got a valid answer to /api/version and /api/ps."),
    "tokenswarm_ollama_version_info": Family("gauge", "The version of Ollama, always 1.", ("version",)),
    "tokenswarm_ollama_target_info": Family(
        "gauge", "The address of the Ollama that is polled, always 1.", ("target",)
    ),
    "tokenswarm_ollama_models_loaded": Family("gauge", "Models that are in memory."),
    "tokenswarm_ollama_models_dropped": Family("gauge", f"Loaded models without series: those beyond {MODELS_MAX}."),
    "tokenswarm_ollama_models_available": Family("gauge", "Models on disk (/api/tags)."),
    "tokenswarm_ollama_model_available": Family(
        "gauge", "1 if the model of --model is on disk, else 0; with its tag.", MODEL
    ),
    "tokenswarm_ollama_model_loaded_info": Family(
        "gauge", "A model in memory, always 1.", ("model", "quantization", "parameter_size", "context_length")
    ),
    "tokenswarm_ollama_model_size_bytes": Family("gauge", "Memory of the loaded model, on GPU and host.", MODEL),
    "tokenswarm_ollama_model_vram_bytes": Family("gauge", "The part of it that is on the GPU.", MODEL),
    "tokenswarm_ollama_model_vram_ratio": Family(
        "gauge", "Share of the loaded model that is on the GPU; below 1, the CPU does part of the work.", MODEL
    ),
    "tokenswarm_ollama_model_context_length": Family(
        "gauge", "Context length the model was loaded with, tokens.", MODEL
    ),
    "tokenswarm_ollama_model_expires_timestamp_seconds": Family(
        "gauge", "When Ollama will unload the model if it stays idle.", MODEL
    ),
    "tokenswarm_ollama_polls_total": Family("counter", "Polls made; a poll asks all three endpoints."),
    "tokenswarm_ollama_poll_errors_total": Family("counter", "Requests of polls that failed, by reason.", ("reason",)),
    "tokenswarm_ollama_poll_duration_seconds": Family("gauge", "Time the last request took.", ("endpoint",)),
    "tokenswarm_ollama_last_success_timestamp_seconds": Family("gauge", "When the last valid poll ended."),
}


class PollError(Exception):
    """A request of a poll failed; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class State:
    """What the poller knows: the readings of the last poll and its own counters. `seq` numbers the polls."""

    readings: Readings = field(default_factory=Readings)
    seq: int = 0
    up: bool = False
    errors: Counter[str] = field(default_factory=Counter)
    durations_s: dict[str, float] = field(default_factory=dict)
    success_s: float | None = None

    def page(self) -> Readings:
        readings = Readings()
        readings.extend(self.readings)
        readings.add("tokenswarm_ollama_up", self.up)
        readings.add("tokenswarm_ollama_polls_total", self.seq)
        for reason in REASONS:
            readings.add("tokenswarm_ollama_poll_errors_total", self.errors[reason], reason)
        for endpoint, duration_s in self.durations_s.items():
            readings.add("tokenswarm_ollama_poll_duration_seconds", duration_s, endpoint)
        readings.add("tokenswarm_ollama_last_success_timestamp_seconds", self.success_s)
        return readings


async def _get(client: aiohttp.ClientSession, url: str) -> Any:
    """One JSON answer, bounded in size and time. PollError."""
    try:
        async with client.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise PollError("http_status")
            body = await response.content.read(BODY_BYTES_MAX + 1)
            while len(body) <= BODY_BYTES_MAX and (more := await response.content.read(BODY_BYTES_MAX + 1)):
                body += more
    except TimeoutError:
        raise PollError("timeout") from None
    except aiohttp.ClientPayloadError:
        raise PollError("truncated") from None
    except aiohttp.ClientResponseError:
        raise PollError("not_json") from None  # what answers there does not even speak HTTP
    except (aiohttp.ClientError, OSError):
        raise PollError("connect") from None
    if len(body) > BODY_BYTES_MAX:
        raise PollError("too_large")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise PollError("not_json") from None


def read_version(answer: Any, readings: Readings) -> None:
    """/api/version. PollError("wrong_shape")."""
    readings.add("tokenswarm_ollama_version_info", 1, _want(_want(answer, dict).get("version"), str))


def read_ps(answer: Any, readings: Readings) -> None:
    """/api/ps: the models in memory. PollError("wrong_shape")."""
    try:
        models = loaded(answer)
    except ValueError:
        raise PollError("wrong_shape") from None
    readings.add("tokenswarm_ollama_models_loaded", len(models))
    readings.add("tokenswarm_ollama_models_dropped", max(0, len(models) - MODELS_MAX))
    shown: set[str] = set()
    for model in models[:MODELS_MAX]:
        name = model.name[:LABEL_CHARS_MAX]
        if name in shown:
            continue  # two series of one name would spoil the whole scrape
        shown.add(name)
        _read_model(name, model, readings)


def _read_model(name: str, model: Loaded, readings: Readings) -> None:
    told_details = model.told.get("details")
    details = told_details if isinstance(told_details, dict) else {}
    told = [str(details.get(key) or "") for key in ("quantization_level", "parameter_size")]
    length = "" if model.context is None else str(model.context)
    readings.add("tokenswarm_ollama_model_loaded_info", 1, name, *told, length)
    readings.add("tokenswarm_ollama_model_size_bytes", model.size_bytes, name)
    readings.add("tokenswarm_ollama_model_vram_bytes", model.vram_bytes, name)
    readings.add("tokenswarm_ollama_model_vram_ratio", model.vram_ratio, name)
    readings.add("tokenswarm_ollama_model_context_length", model.context, name)
    readings.add("tokenswarm_ollama_model_expires_timestamp_seconds", _timestamp(model.told.get("expires_at")), name)


def read_tags(answer: Any, wanted: list[str], readings: Readings) -> None:
    """/api/tags: the models on disk, and whether those of --model are among them. PollError("wrong_shape")."""
    models = [_want(model, dict) for model in _want(_want(answer, dict).get("models"), list)]
    names = {tagged(str(model.get(key))) for model in models for key in ("name", "model") if model.get(key)}
    readings.add("tokenswarm_ollama_models_available", len(models))
    for name in dict.fromkeys(tagged(name) for name in wanted):
        readings.add("tokenswarm_ollama_model_available", name in names, name[:LABEL_CHARS_MAX])


def _want(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PollError("wrong_shape")
    return value


def _timestamp(text: Any) -> float | None:
    """RFC 3339 with up to nanoseconds, as Go writes it; year 1 is Go's "no time". Seconds since 1970."""
    if not isinstance(text, str):
        return None
    try:
        stamp = datetime.fromisoformat(text)
        return stamp.timestamp() if stamp.tzinfo is not None and stamp.year > 1970 else None
    except (ValueError, OverflowError):
        return None


async def poll(client: aiohttp.ClientSession, base: str, wanted: list[str], state: State) -> None:
    """Ask the three endpoints and replace the readings. Without /api/version and /api/ps there are none."""
    readers: dict[str, Callable[[Any, Readings], None]] = {
        "/api/version": read_version,
        "/api/ps": read_ps,
        "/api/tags": lambda answer, readings: read_tags(answer, wanted, readings),
    }
    readings = Readings()
    failed = set()
    for endpoint, read in readers.items():
        part = Readings()
        start_ns = monotonic_ns()
        try:
            read(await _get(client, base + endpoint), part)
            readings.extend(part)
        except PollError as error:
            state.errors[error.reason] += 1
            failed.add(endpoint)
        state.durations_s[endpoint] = (monotonic_ns() - start_ns) / NS_PER_S
        if endpoint != "/api/tags" and failed:
            break  # three time-outs in a row would keep the old models on the page for as long
    state.up = failed <= {"/api/tags"}
    state.readings = readings if state.up else Readings()
    state.success_s = realtime_ns() / NS_PER_S if state.up else state.success_s
    state.seq += 1


async def _poll_forever(base: str, wanted: list[str], interval_s: float, state: State, stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    timeout = aiohttp.ClientTimeout(total=min(interval_s, POLL_S_MAX))
    # A fresh connection for each poll: a kept one may be half-open after a restart of Ollama and cost a false alarm.
    connector = aiohttp.TCPConnector(force_close=True, limit=1)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as client:
            due_s = loop.time()
            while not stop.is_set():
                await poll(client, base, wanted, state)
                due_s = max(due_s + interval_s, loop.time())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), due_s - loop.time())
    finally:
        stop.set()  # a bug in here must end the process rather than leave its last answer standing


def _parse(argv: list[str]) -> argparse.Namespace:
    options = serving.parser(PROG, "Serve what Ollama has loaded to Prometheus.", PORT)
    add = options.add_argument
    add("--ollama", metavar="URL", default="http://127.0.0.1:11434", help="where Ollama is (default %(default)s)")
    add("--interval", metavar="SECONDS", type=float, default=5.0, help="between two polls (default %(default)s)")
    add("--model", metavar="NAME", action="append", default=[], help="say whether this model is on disk; repeatable")
    args = options.parse_args(argv)
    url = urlsplit(args.ollama)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.username:
        raise ConfigError(f"--ollama {args.ollama!r} is not a plain http:// or https:// address")
    if not 0.1 <= args.interval <= 3600:
        raise ConfigError(f"--interval {args.interval} must be 0.1 to 3600 seconds")
    return args


async def _serve(args: argparse.Namespace) -> int:
    point = serving.endpoint(args)
    state = State()
    url = urlsplit(args.ollama)
    target = f"{url.netloc}" if url.port else f"{url.netloc.rstrip(':')}:{443 if url.scheme == 'https' else 80}"

    def page() -> bytes:
        readings = state.page()
        readings.add("tokenswarm_ollama_target_info", 1, target)
        readings.extend(server.own("ollama"))
        return render(FAMILIES, readings)

    server = serving.Server(point, "tokenswarm Ollama exporter", serving.Page(lambda: state.seq, page))
    stop = serving.stop_on_signals()
    models = list(dict.fromkeys(args.model))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_poll_forever(args.ollama.rstrip("/"), models, args.interval, state, stop))
        tasks.create_task(server.run(stop))
    return ExitCode.OK


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    return serving.command(PROG, lambda: asyncio.run(_serve(_parse(sys.argv[1:] if argv is None else argv))))


if __name__ == "__main__":
    sys.exit(main())
