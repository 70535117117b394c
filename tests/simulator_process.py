"""The embedded engine as a process of its own, and a client of bare sockets, for the tests of several files."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

HELLO = [{"role": "user", "content": "Say hello."}]
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "ollama_chat": "/api/chat",
    "ollama_generate": "/api/generate",
}


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read()

    def truth(self, query: str = "") -> dict:
        return json.loads(self.get("/sim/truth" + query))

    def await_truth(self, holds: Callable[[dict], bool]) -> dict:
        """The truth once `holds` is true of its totals. A row is written just after the last byte."""
        for _ in range(2000):
            truth = self.truth("?tokens=1")
            if holds(truth["totals"]):
                return truth
            time.sleep(0.02)
        raise AssertionError(f"it never came true of {truth['totals']}")

    def open(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)


@contextlib.contextmanager
def simulator(*options: str, errors: IO[str] | None = None) -> Iterator[Server]:
    """Start `tokenswarm simulate` on a free port, wait for its line, and end it by its process id. `errors`: where its
    words to stderr go.
    """
    command = [sys.executable, "-m", "tokenswarm.simulator", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("simulating "), line
            yield Server(line.split(" on ")[1].strip(), process)
        finally:
            process.kill()


def request_bytes(
    api: str, *, headers: dict[str, str] | None = None, tokens: int | None = 4, **fields: object
) -> bytes:
    """A streamed request of one of the APIs; `fields` go into the body."""
    body: dict[str, object] = {"model": "sim", "stream": True}
    prompts = {"responses": {"input": HELLO}, "completions": {"prompt": "Say hello."}}
    prompts["ollama_generate"] = prompts["completions"]
    body |= prompts.get(api, {"messages": HELLO})
    if tokens is not None:
        limit = {"max_output_tokens" if api == "responses" else "max_tokens": tokens}
        body |= {"options": {"num_predict": tokens}} if api.startswith("ollama") else limit
    return post(PATHS[api], json.dumps({**body, **fields}).encode(), headers)


def post(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{lines}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def receive(sock: socket.socket) -> bytes:
    """Everything up to the end of the response: the last chunk, the announced length, or the end of the connection."""
    data = b""
    while part := sock.recv(65536):
        data += part
        head, found, body = data.partition(b"\r\n\r\n")
        if not found:
            continue
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower and data.endswith(b"\r\n0\r\n\r\n"):
            break
        if b"content-length: " in lower:
            length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(body) >= length:
                break
    return data


def exchange(server: Server, request: bytes) -> tuple[bytes, bytes]:
    """One request on a connection of its own: the head, and the body without its chunked framing."""
    with server.open() as sock:
        sock.sendall(request)
        data = receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    return head, unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body


def unchunked(body: bytes) -> bytes:
    """Strict: each size is hexadecimal, each chunk ends with CRLF, the last has size 0 and ends the body."""
    data = b""
    while True:
        size_text, found, body = body.partition(b"\r\n")
        assert found, "no chunk size"
        size = int(size_text, 16)
        assert body[size : size + 2] == b"\r\n"
        if size == 0:
            assert body == b"\r\n"
            return data
        data, body = data + body[:size], body[size + 2 :]


def sse(body: bytes) -> list[object]:
    """The events of a body as vLLM writes it, strictly: `data: <JSON>` and a blank line each, then [DONE]."""
    assert body.endswith(b"data: [DONE]\n\n")
    events = body.removesuffix(b"\n\n").split(b"\n\n")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event[6:]) for event in events[:-1]]


def ndjson(body: bytes) -> list[dict]:
    """The lines of a body as Ollama writes it."""
    assert body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


def typed(body: bytes) -> list[dict]:
    """The events of an API with typed ones, strictly: `event: TYPE`, `data: <JSON>` and a blank line each."""
    assert body.endswith(b"\n\n")
    events = []
    for part in body.removesuffix(b"\n\n").split(b"\n\n"):
        name, found, data = part.partition(b"\ndata: ")
        assert found
        assert b"\n" not in data
        events.append(json.loads(data))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


def tokens(api: str, body: bytes) -> int:
    """The events with a token in a streamed body."""
    if api.startswith("ollama"):
        return len([line for line in ndjson(body) if not line.get("done")])
    if api in ("responses", "messages"):
        deltas = ("response.output_text.delta", "response.reasoning_text.delta", "content_block_delta")
        return len([event for event in typed(body) if event["type"] in deltas])
    return body.count(b"data: {") - body.count(b'"delta":{"role"')
