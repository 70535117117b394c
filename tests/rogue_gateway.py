"""A gateway that does one thing to answers, for tests: it forwards event by event, but for what its mode says."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Edit = Callable[[dict[str, Any]], "dict[str, Any] | None"]


def _without_usage(event: dict[str, Any]) -> dict[str, Any] | None:
    return None if event.get("usage") else event


def _renamed(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "id": "gen_0123456789abcdef", "model": "alias", "provider": "us"}


def _without_finish(event: dict[str, Any]) -> dict[str, Any]:
    choices = [{**choice, "finish_reason": None} for choice in event.get("choices", ())]
    return {**event, "choices": choices} if choices else event


EDITS: dict[str, Edit] = {"drops-usage": _without_usage, "renames": _renamed, "drops-finish": _without_finish}
"""Modes that change events one by one."""


class Gateway:
    def __init__(self, url: str) -> None:
        self.url = url


@contextlib.contextmanager
def gateway(mode: str, upstream: tuple[str, int]) -> Iterator[Gateway]:
    """Modes: plain, those of EDITS, and those that `forward` and `_stream` know by name."""

    failed = [0]  # answers of the engine, for the mode `closes`

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if mode == "shuts" and b"-one-" in body:  # the first question that is measured
                threading.Thread(target=lambda: (server.shutdown(), server.server_close()), daemon=True).start()
            if mode == "breaks":  # the engine answers, and nobody hears of it
                _ask(self, upstream, body, 1).read()
            if mode == "breaks" or failed[0] >= 2:
                _refuse(self, 500 if mode == "breaks" else 503)
                return
            failed[0] += mode == "closes" and (b"x-sim-fault=http_503" in body or b"x-sim-fault=http_429" in body)
            with contextlib.suppress(OSError, http.client.HTTPException):
                forward(self, mode, upstream, body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is no news
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Gateway(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()


def forward(handler: BaseHTTPRequestHandler, mode: str, upstream: tuple[str, int], body: bytes) -> None:
    if mode == "early-head":
        _head(handler, 200, "text/event-stream")
        time.sleep(0.05)
    if mode == "drops-options":
        kept = json.loads(body)
        body = json.dumps({k: v for k, v in kept.items() if k not in ("ignore_eos", "stream_options")}).encode()
    answer = _ask(handler, upstream, body, 3 if mode == "retries" else 1)
    status, kind = answer.status, answer.headers.get("content-type", "")
    if mode == "hides-status":
        status = 200
    if mode != "early-head":
        retry = answer.headers.get("retry-after")
        _head(handler, status, kind, *([("retry-after", retry)] if retry else []))
    if answer.status != 200:
        _chunk(handler, answer.read())
    else:
        _stream(handler, mode, answer)
    _chunk(handler, b"")


def _ask(handler: BaseHTTPRequestHandler, upstream: tuple[str, int], body: bytes, attempts: int) -> Any:
    kept = ("content-type", "x-request-id", "accept")
    headers = {name: value for name, value in handler.headers.items() if name.lower() in kept}
    for attempt in range(attempts):
        connection = http.client.HTTPConnection(*upstream, timeout=30)
        connection.request("POST", handler.path, body, headers)
        answer = connection.getresponse()
        if answer.status < 500 or attempt == attempts - 1:
            break
    return answer


def _stream(handler: BaseHTTPRequestHandler, mode: str, answer: Any) -> None:
    held, n = b"", 0
    gone = done = False
    try:
        for line in answer:
            if not line.strip():
                continue
            n += 1
            done = done or b"[DONE]" in line
            event = line + b"\n"
            if mode in EDITS and line.startswith(b"data: {"):
                edited = EDITS[mode](json.loads(line[6:]))
                if edited is None:
                    continue
                event = b"data: " + json.dumps(edited).encode() + b"\n\n"
            if mode == "loses" and n == 4:
                continue
            if mode == "reorders" and n == 4:
                held = event
                continue
            if mode == "dies" and n == 6:
                handler.connection.close()
                return
            if mode == "goes-on" and gone:
                continue
            try:
                _chunk(handler, event + held)
            except OSError:
                gone = True
                if mode != "goes-on":
                    answer.close()
                    raise
            held = b""
    except (http.client.HTTPException, ConnectionError):
        if mode != "ends-whole":
            handler.connection.close()
            raise
    if mode == "ends-whole" and not done:
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        _chunk(handler, b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\ndata: [DONE]\n\n")


def _refuse(handler: BaseHTTPRequestHandler, status: int) -> None:
    _head(handler, status, "application/json")
    _chunk(handler, b'{"error": {"message": "nobody is there"}}')
    _chunk(handler, b"")
    handler.close_connection = True


def _head(handler: BaseHTTPRequestHandler, status: int, kind: str, *more: tuple[str, str]) -> None:
    handler.send_response_only(status)
    for name, value in (("content-type", kind), ("transfer-encoding", "chunked"), ("via", "1.1 rogue"), *more):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.flush()


def _chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
    handler.wfile.flush()
