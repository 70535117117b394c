"""The Ollama exporter against a server that is Ollama, is broken in every way, or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from exporter_process import names, parse, promtool_findings, running, value

from exporters import ollama
from exporters.families import Readings, render

PS = {
    "models": [
        {
            "name": "llama3.2:latest",
            "model": "llama3.2:latest",
            "size": 4000,
            "digest": "a80c",
            "details": {"family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
            "expires_at": "2026-11-23T10:00:00.123456789Z",
            "size_vram": 3000,
            "context_length": 4096,
        },
        {"name": "old:1b", "size": 500, "size_vram": 0, "expires_at": "0001-01-01T00:00:00Z"},
    ]
}
TAGS = {"models": [{"name": "llama3.2:latest"}, {"name": "old:1b"}, {"name": "unused:7b"}]}
HEALTHY: dict[str, Any] = {"/api/version": {"version": "0.33.0"}, "/api/ps": PS, "/api/tags": TAGS}

Answer = Callable[[web.Request], Any]


class FakeOllama:
    """An Ollama over a real socket, in a thread. `fault` answers instead, where it is set."""

    def __init__(self) -> None:
        self.fault: dict[str, Answer] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in self.fault:
            answer: web.StreamResponse = await self.fault[request.path](request)
            return answer
        return web.json_response(HEALTHY[request.path])

    async def _run(self) -> None:
        app = web.Application()
        app.add_routes([web.get(path, self._answer) for path in HEALTHY])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def __enter__(self) -> FakeOllama:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_details: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeOllama]:
    with FakeOllama() as started:
        yield started


def test_what_ollama_has_loaded_is_told(server: FakeOllama) -> None:
    options = ("--ollama", server.url, "--interval", "0.2", "--model", "llama3.2", "--model", "gone:7b")
    with running("ollama", *options) as exporter:
        page = exporter.wait_for(lambda page: value(page, "tokenswarm_ollama_up"))
        model = {"model": "llama3.2:latest"}
        assert value(page, "tokenswarm_ollama_version_info", version="0.33.0") == 1
        details = {"quantization": "Q4_K_M", "parameter_size": "3.2B", "context_length": "4096"}
        assert value(page, "tokenswarm_ollama_model_loaded_info", **model, **details) == 1
        assert value(page, "tokenswarm_ollama_models_loaded") == 2
        assert value(page, "tokenswarm_ollama_models_dropped") == 0
        assert value(page, "tokenswarm_ollama_model_size_bytes", **model) == 4000
        assert value(page, "tokenswarm_ollama_model_vram_bytes", **model) == 3000
        assert value(page, "tokenswarm_ollama_model_vram_ratio", **model) == 0.75
        assert value(page, "tokenswarm_ollama_model_context_length", **model) == 4096
        expires_s = value(page, "tokenswarm_ollama_model_expires_timestamp_seconds", **model)
        assert expires_s == pytest.approx(1795428000.123456)
        assert value(page, "tokenswarm_ollama_model_vram_ratio", model="old:1b") == 0
        assert value(page, "tokenswarm_ollama_model_context_length", model="old:1b") is None
        assert value(page, "tokenswarm_ollama_model_expires_timestamp_seconds", model="old:1b") is None
        assert value(page, "tokenswarm_ollama_models_available") == 3
        assert value(page, "tokenswarm_ollama_model_available", model="llama3.2:latest") == 1
        assert value(page, "tokenswarm_ollama_model_available", model="gone:7b") == 0
        assert names(page) == set(ollama.FAMILIES)
        assert promtool_findings(exporter.text()) == ""
        assert exporter.stop() == 0


async def _slow(_request: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


async def _drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _part in range(300):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _part in range(64):
        await response.write(b" " * (1 << 20))
    return response


async def _cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"models": [')
    assert request.transport is not None
    request.transport.abort()
    return response


def _says(status: int, body: str, **headers: str) -> Answer:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers=headers)

    return answer


FAULTS = [
    ("html", "not_json", _says(200, "<html>login</html>")),
    ("empty", "not_json", _says(200, "")),
    ("half a JSON", "not_json", _says(200, json.dumps(PS)[:40])),
    ("deep JSON", "not_json", _says(200, "[" * 100_000)),
    ("wrong shape", "wrong_shape", _says(200, '{"models": {"a": 1}}')),
    ("wrong model", "wrong_shape", _says(200, '{"models": [7]}')),
    ("nameless", "wrong_shape", _says(200, '{"models": [{"size": 1}]}')),
    ("a list", "wrong_shape", _says(200, "[]")),
    ("500", "http_status", _says(500, json.dumps(PS))),
    ("redirect", "http_status", _says(302, "", Location="/api/version")),
    ("slow", "timeout", _slow),
    ("drip", "timeout", _drip),
    ("endless", "too_large", _endless),
    ("cut off", "truncated", _cut_off),
]


@pytest.mark.parametrize(("reason", "fault"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_nonsense_is_counted_and_the_models_vanish_until_it_is_over(
    server: FakeOllama, reason: str, fault: Answer
) -> None:
    with running("ollama", "--ollama", server.url, "--interval", "0.5") as exporter:
        exporter.wait_for(lambda page: value(page, "tokenswarm_ollama_up"))
        server.fault["/api/ps"] = fault
        try:
            page = exporter.wait_for(
                lambda page: (
                    value(page, "tokenswarm_ollama_up") == 0
                    and value(page, "tokenswarm_ollama_poll_errors_total", reason=reason)
                )
            )
            others = set(ollama.REASONS) - {reason, "timeout"}  # a busy machine may be too slow for a look
            assert {value(page, "tokenswarm_ollama_poll_errors_total", reason=one) for one in others} == {0}
            assert not any(name.startswith("tokenswarm_ollama_model") for name in names(page))
            assert not any(name.endswith("version_info") for name in names(page))
        finally:
            del server.fault["/api/ps"]
        page = exporter.wait_for(lambda page: value(page, "tokenswarm_ollama_up"))
        assert value(page, "tokenswarm_ollama_models_loaded") == 2


def test_tags_may_fail_alone(server: FakeOllama) -> None:
    server.fault["/api/tags"] = _says(404, "")
    try:
        with running("ollama", "--ollama", server.url, "--interval", "0.2", "--model", "llama3.2") as exporter:
            page = exporter.wait_for(
                lambda page: value(page, "tokenswarm_ollama_poll_errors_total", reason="http_status")
            )
            assert value(page, "tokenswarm_ollama_up") == 1
            assert value(page, "tokenswarm_ollama_models_loaded") == 2
            assert value(page, "tokenswarm_ollama_models_available") is None
            assert "tokenswarm_ollama_model_available" not in {name for name, _labels in page}
    finally:
        del server.fault["/api/tags"]


def test_an_ollama_that_is_away_and_comes() -> None:
    with contextlib.ExitStack() as stack:
        with FakeOllama() as first:
            url = first.url
            exporter = stack.enter_context(running("ollama", "--ollama", url, "--interval", "0.2"))
            exporter.wait_for(lambda page: value(page, "tokenswarm_ollama_up"))
        page = exporter.wait_for(lambda page: value(page, "tokenswarm_ollama_up") == 0)
        assert value(page, "tokenswarm_ollama_poll_errors_total", reason="connect")
        assert value(page, "tokenswarm_ollama_models_loaded") is None
        assert value(page, "tokenswarm_ollama_last_success_timestamp_seconds")
        assert promtool_findings(exporter.text()) == ""


def test_something_that_does_not_speak_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closing = threading.Event()

        def talk() -> None:
            listener.settimeout(0.2)
            while not closing.is_set():
                with contextlib.suppress(OSError):
                    peer, _address = listener.accept()
                    peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                    peer.close()

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with running("ollama", "--ollama", url, "--interval", "0.2") as exporter:
                page = exporter.wait_for(lambda page: (value(page, "tokenswarm_ollama_polls_total") or 0) >= 2)
                counted = {
                    one: value(page, "tokenswarm_ollama_poll_errors_total", reason=one) for one in ollama.REASONS
                }
                assert value(page, "tokenswarm_ollama_up") == 0
                assert (counted["not_json"] or 0) + (counted["connect"] or 0) >= 2
        finally:
            closing.set()
            thread.join(10)


def test_models_beyond_the_limit_and_models_of_one_name_do_not_spoil_the_page() -> None:
    models: list[Any] = [{"name": f"m{number}", "size": 1, "size_vram": 1} for number in range(ollama.MODELS_MAX + 5)]
    readings = Readings()
    ollama.read_ps({"models": [models[0], *models]}, readings)
    page = parse(render(ollama.FAMILIES, readings).decode())
    assert value(page, "tokenswarm_ollama_models_loaded") == ollama.MODELS_MAX + 6
    assert value(page, "tokenswarm_ollama_models_dropped") == 6
    assert sum(name == "tokenswarm_ollama_model_size_bytes" for name, _labels in page) == ollama.MODELS_MAX - 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-5", '"7"', "null", "true", "1" + "0" * 400])
def test_a_number_that_is_none_is_absent(number: str) -> None:
    readings = Readings()
    answer = json.loads(
        f'{{"models": [{{"name": "m", "size": {number}, "size_vram": {number}, "context_length": {number}}}]}}'
    )
    ollama.read_ps(answer, readings)
    assert set(readings.rows) == {
        "tokenswarm_ollama_models_loaded",
        "tokenswarm_ollama_models_dropped",
        "tokenswarm_ollama_model_loaded_info",
    }


@pytest.mark.parametrize(
    ("asked", "listed", "label", "there"),
    [
        ("words", "words:latest", "words:latest", 1),
        ("words:latest", "words", "words:latest", 1),
        ("words:7b", "words:latest", "words:7b", 0),
        ("host:5000/me/words", "host:5000/me/words:latest", "host:5000/me/words:latest", 1),
        ("hf.co/me/words:Q4_K_M", "hf.co/me/words:Q4_K_M", "hf.co/me/words:Q4_K_M", 1),
    ],
)
def test_a_model_has_one_name_in_all_series(asked: str, listed: str, label: str, there: int) -> None:
    readings = Readings()
    ollama.read_tags({"models": [{"name": listed}]}, [asked, label], readings)
    ollama.read_ps({"models": [{"name": listed, "size": 5, "context_length": 7}]}, readings)
    page = parse(render(ollama.FAMILIES, readings).decode())
    assert value(page, "tokenswarm_ollama_model_available", model=label) == there
    loaded = {dict(labels)["model"] for name, labels in page if name == "tokenswarm_ollama_model_size_bytes"}
    assert loaded == ({label} if there else {"words:latest"})
