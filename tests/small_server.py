"""A small HTTP server of threads: answers each path by a function, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
TOKENS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":" you"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\ndata: [DONE]\n\n'
)
GOOD: Answer = (200, SSE, TOKENS)
MODELS: Answer = (200, JSON, b'{"object":"list","data":[{"id":"m","object":"model"}]}')
NOT_FOUND: Answer = (404, JSON, b'{"detail":"Not Found"}')


def refusal(status: int, body: object, **headers: str) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}, text


class Asked:
    """One request that came."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.at_s = time.monotonic()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Backend:
    """`asked`: every request so far, in order."""

    def __init__(self, url: str, asked: list[Asked]) -> None:
        self.url, self.asked = url, asked

    def posts(self, path: str = "") -> list[Asked]:
        return [one for one in self.asked if one.method == "POST" and one.path.endswith(path)]


@contextlib.contextmanager
def backend(answer: Callable[[Asked], Answer]) -> Iterator[Backend]:
    """Serve on a free port of loopback; `answer` is called in a thread of each connection."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            one = Asked(self.command, self.path, headers, self.rfile.read(length))
            asked.append(one)
            status, headers, body = answer(one)
            self.send_response_only(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is no news
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Backend(f"http://127.0.0.1:{server.server_address[1]}", asked)
    finally:
        server.shutdown()
        server.server_close()


def routes(table: dict[str, Answer | Callable[[Asked], Answer]]) -> Callable[[Asked], Answer]:
    """Answers by exact path; anything else is not found."""

    def answer(one: Asked) -> Answer:
        found = table.get(one.path, NOT_FOUND)
        return found(one) if callable(found) else found

    return answer
