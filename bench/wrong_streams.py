"""A server that answers each request with one and the same stream, right or wrong: what do clients make of it?"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

GAP_S = 0.01
TOKENS = 10


class Stream(NamedTuple):
    """`events`: data of SSE, in turn. `end`: the body's last chunk is sent. `status`: other than 200, no stream."""

    events: tuple[str, ...] = ()
    end: bool = True
    status: int = 200


def _event(**delta: object) -> str:
    finish = delta.pop("finish", None)
    return json.dumps(_chunk([{"index": 0, "delta": delta, "finish_reason": finish}]))


def _chunk(choices: list[Any], **more: object) -> dict[str, object]:
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "sim", "choices": choices, **more}


ROLE, FINISH, DONE = _event(role="assistant", content=""), _event(finish="length"), "[DONE]"
ERROR = json.dumps({"error": {"message": "the engine is dead", "type": "InternalServerError", "code": 500}})
USAGE = json.dumps(_chunk([], usage={"prompt_tokens": 3, "completion_tokens": TOKENS, "total_tokens": TOKENS + 3}))


def _words(events: int, each: int = 1) -> tuple[str, ...]:
    return (ROLE, *(_event(content=" hello" * each) for _ in range(events)))


WRONG = {
    "an error object alone": Stream((ERROR, DONE)),
    "an error object after 5 tokens": Stream((*_words(5), ERROR, DONE)),
    "a clean end after 5 tokens": Stream(_words(5)),
    "connection closed after 5 tokens": Stream(_words(5), end=False),
    "an empty body": Stream(),
    "503": Stream(status=503),
}
"""Right is: no answer is a success."""
ODD = {
    "no usage": Stream((*_words(TOKENS), FINISH, DONE)),
    "two tokens an event": Stream((*_words(TOKENS // 2, 2), FINISH, USAGE, DONE)),
}
"""Right is: all answers are successes, of 10 tokens each."""


def as_completions(events: tuple[str, ...]) -> tuple[str, ...]:
    """The same for who asks /v1/completions: text in place of a delta, and no event for the role."""
    return tuple(_as_text(event) for event in events if event != ROLE)


def _as_text(event: str) -> str:
    said = json.loads(event) if event != DONE else {}
    for choice in said.get("choices", ()):
        choice["text"] = choice.pop("delta").get("content", "")
    return json.dumps(said | {"object": "text_completion"}) if "choices" in said else event


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no business of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._plain(200, {"object": "list", "data": [{"id": "sim", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        stream = self.server.stream
        if stream.status != 200:
            self._plain(stream.status, {"error": {"message": "not now", "code": stream.status}})
            return
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in stream.events if self.path.endswith("/chat/completions") else as_completions(stream.events):
            time.sleep(GAP_S)
            line = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        if stream.end:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _plain(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(stream: Stream) -> Iterator[str]:
    """The URL of a server of this stream on a free port."""
    server = _Server(stream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
