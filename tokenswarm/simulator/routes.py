"""The routes of the APIs, and beside them: models, health, versions, Ollama's lists, /metrics, and the truth.

The truth is written in slices with a pause between them, so that reading it doesn't hold tokens up.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from aiohttp import web

from tokenswarm import __version__
from tokenswarm.simulator import asks, asks_typed
from tokenswarm.simulator.presets import hardware, limits
from tokenswarm.simulator.process import process_metrics
from tokenswarm.simulator.server import BODY_BYTES_MAX, Simulator, generate

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SLICE_BYTES = 32_768  # about 0.3 ms of rendering between two pauses


def application(sim: Simulator) -> web.Application:
    """All routes of one simulator."""
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_post("/v1/chat/completions", generate(sim, "chat", asks.parse_openai))
    app.router.add_post("/v1/completions", generate(sim, "completions", asks.parse_openai))
    app.router.add_post("/v1/responses", generate(sim, "responses", asks_typed.parse_responses))
    app.router.add_post("/v1/messages", generate(sim, "messages", asks_typed.parse_messages))
    app.router.add_post("/api/chat", generate(sim, "ollama_chat", asks.parse_ollama))
    app.router.add_post("/api/generate", generate(sim, "ollama_generate", asks.parse_ollama))
    for path, view in VIEWS.items():
        app.router.add_get(path, _json(sim, view))
    app.router.add_post("/api/show", _show(sim))
    app.router.add_get("/health", _empty)
    app.router.add_get("/metrics", _metrics(sim))
    app.router.add_get("/sim/truth", _truth(sim))
    app.router.add_post("/sim/reset", _reset(sim))
    return app


def _json(sim: Simulator, view: Callable[[Simulator], object]) -> Handler:
    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.json_response(view(sim))

    return handle


async def _empty(_request: web.Request) -> web.StreamResponse:
    return web.Response()


def _models(sim: Simulator) -> object:
    model = {
        "id": sim.settings.model,
        "object": "model",
        "created": sim.started_s,
        "owned_by": "tokenswarm",
        "root": sim.settings.model,
        "parent": None,
        "max_model_len": sim.target.max_model_len,
    }
    return {"object": "list", "data": [model]}


def _ollama_model(sim: Simulator) -> dict[str, object]:
    preset = sim.settings.preset
    name = sim.settings.model if ":" in sim.settings.model else f"{sim.settings.model}:latest"
    return {
        "name": name,
        "model": name,
        "size": int(preset.params * preset.bytes_per_param),
        "digest": hashlib.sha256(repr(preset).encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": f"{preset.params / 1e9:.1f}B",
            "quantization_level": "F16" if preset.bytes_per_param >= 2 else "Q4_K_M",
        },
    }


def _tags(sim: Simulator) -> object:
    modified = datetime.fromtimestamp(sim.started_s, UTC).isoformat()
    return {"models": [{**_ollama_model(sim), "modified_at": modified}]}


def _ps(sim: Simulator) -> object:
    model = _ollama_model(sim)
    expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # Ollama's default keep_alive
    model |= {"expires_at": expires, "size_vram": model["size"], "context_length": sim.target.max_model_len}
    return {"models": [model]}


VIEWS: dict[str, Callable[[Simulator], object]] = {
    "/v1/models": _models,
    "/version": lambda _sim: {"version": f"{__version__}+simulate"},
    "/api/version": lambda _sim: {"version": f"{__version__}-simulate"},
    "/api/tags": _tags,
    "/api/ps": _ps,
}


def _show(sim: Simulator) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            asked = json.loads(await request.read())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        name = (asked.get("model") or asked.get("name")) if isinstance(asked, dict) else None
        if str(name).removesuffix(":latest") != sim.settings.model.removesuffix(":latest"):
            return web.json_response({"error": f"model '{name}' not found"}, status=404)
        preset = sim.settings.preset
        info = {
            "general.architecture": "llama",
            "general.parameter_count": int(preset.params),
            "llama.block_count": preset.layers,
            "llama.attention.head_count": preset.heads,
            "llama.attention.head_count_kv": preset.kv_heads,
            "llama.attention.key_length": preset.head_dim,
            "llama.context_length": preset.max_model_len,
        }
        shown = {"modelfile": "", "parameters": "", "template": "", "details": _ollama_model(sim)["details"]}
        return web.json_response({**shown, "model_info": info, "capabilities": ["completion"]})

    return handle


def _metrics(sim: Simulator) -> Handler:
    preset = sim.settings.preset
    config: dict[str, object] = {"block_size": preset.block_size, "cache_dtype": "auto", "enable_prefix_caching": False}
    if preset.ttft_ms is None:
        blocks = limits(preset).num_blocks
        tokens = blocks * preset.block_size
        config |= {
            "num_gpu_blocks": blocks,
            "kv_cache_size_tokens": tokens,
            "kv_cache_memory_bytes": int(preset.kv_cache_bytes),
        }
        config |= {"kv_bytes_per_token": int(hardware(preset).kv_bytes_per_token)}

    async def handle(_request: web.Request) -> web.StreamResponse:
        engine = sim.engine
        gauges = {
            "num_requests_running": engine.num_running,
            "num_requests_waiting": engine.num_waiting,
            "kv_cache_usage_perc": engine.kv_usage,
        }
        body = sim.metrics.render(sim.settings.model, gauges, engine.preemptions, config, process_metrics(sim.born_s))
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    return handle


def _truth(sim: Simulator) -> Handler:
    """GET /sim/truth[?since=SEQ][&tokens=1]: {"totals": …, "requests": […], "next": SEQ}. `next`: the next `since`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        since = request.query.get("since", "0")
        if not since.isdecimal():
            return web.json_response({"error": "`since` must be the `next` of an earlier answer"}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        totals = json.dumps(sim.truth.totals(sim.in_flight, sim.engine.slips))
        parts = ['{"totals":', totals, ',"requests":[']
        comma, size = "", 0
        last = int(since)
        for row in sim.truth.since(int(since), request.query.get("tokens") == "1"):
            text = json.dumps(row, separators=(",", ":"))
            parts += (comma, text)
            comma, last = ",\n", int(row["seq"])  # type: ignore[call-overload] # the column holds an int
            size += len(text)
            if size >= SLICE_BYTES:
                await response.write("".join(parts).encode())
                parts, size = [], 0
                await asyncio.sleep(0)
        parts.append(f'],"next":{last}}}\n')
        await response.write("".join(parts).encode())
        await response.write_eof()
        return response

    return handle


def _reset(sim: Simulator) -> Handler:
    """POST /sim/reset: forget rows and totals; requests in flight go on, and so does /metrics."""

    async def handle(_request: web.Request) -> web.StreamResponse:
        sim.truth.reset(sim.in_flight)
        return web.json_response({"next": sim.truth.next_seq})

    return handle
