"""Answers that are whole by their protocol while HTTP still owes the end of the body: [DONE], or Ollama's `done`."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from exchanges import QUICK, READERS, SAMPLING, Setup, ask, make_certificate, server_tls
from raw_server import AGAIN, CLOSE, DONE, LAST_CHUNK, RESET, Step, chunk, content, head, raw_server, usage

from tokenswarm.client.exchange import LEFT_OPEN_S
from tokenswarm.client.sending import Request
from tokenswarm.clock import monotonic_ns
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import Outcome

CHAT = content("a") + content("b") + content("", "stop") + usage(7, 2)
COMPLETION = b'data: {"choices":[{"index":0,"text":"ab","finish_reason":"stop"}]}\n\n'
OLLAMA_CHAT = b'{"message":{"content":"ab"},"done":false}\n'
OLLAMA_GENERATE = b'{"response":"ab","done":false}\n'
OLLAMA_END = b'{"done":true,"done_reason":"stop","prompt_eval_count":7,"eval_count":2}\n'
OLLAMA_LAST = b'{"response":"b","done":true,"done_reason":"stop","prompt_eval_count":7,"eval_count":2}\n'
NDJSON = head("application/x-ndjson")
OPEN = 30.0
SLOW = Timeouts(connect=Seconds(2), first_token=Seconds(20), idle_token=Seconds(20), total=Seconds(40))


@pytest.fixture(params=READERS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    found = Setup(request.param)
    yield found
    found.close()


LEFT_OPEN: dict[str, tuple[tuple[str, str], tuple[Step, ...]]] = {
    "chat": (("openai", "chat"), (head(), chunk(CHAT), 0.05, chunk(DONE), OPEN)),
    "chat, close-delimited": (("openai", "chat"), (head(chunked=False), CHAT + DONE, OPEN)),
    "chat, content-length too long": (
        ("openai", "chat"),
        (head("text/event-stream", "content-length: 9999", chunked=False), CHAT + DONE, OPEN),
    ),
    "chat, pings behind the end": (
        ("openai", "chat"),
        (head(), chunk(CHAT + DONE), *([0.1, chunk(b": ping\n\n")] * 100)),
    ),
    "completions": (("openai", "completions"), (head(), chunk(COMPLETION + usage(7, 2) + DONE), OPEN)),
    "ollama chat": (("ollama", "chat"), (NDJSON, chunk(OLLAMA_CHAT), 0.05, chunk(OLLAMA_END), OPEN)),
    "ollama generate": (("ollama", "generate"), (NDJSON, chunk(OLLAMA_GENERATE), chunk(OLLAMA_END), OPEN)),
    "ollama, text in the last line": (("ollama", "generate"), (NDJSON, chunk(OLLAMA_GENERATE + OLLAMA_LAST), OPEN)),
}


def test_a_whole_answer_whose_body_stays_open_is_ok(setup: Setup) -> None:
    """All of them at once, two requests each: they would take long one by one."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(raw_server(script)) for name, (_, script) in LEFT_OPEN.items()}
        clients = {n: setup.client(server, kind=LEFT_OPEN[n][0], timeouts=SLOW) for n, server in servers.items()}
        tasks = {n: gevent.spawn(lambda c: [ask(c, 0), ask(c, 1)], client) for n, client in clients.items()}
        answers = {name: task.get(timeout=30) for name, task in tasks.items()}

        assert {n: server.connections for n, server in servers.items()} == dict.fromkeys(servers, 2), "used again"
    for name, record in [(name, record) for name, records in answers.items() for record in records]:
        assert (record.outcome, record.error, record.error_kind) == (Outcome.OK, "", ""), name
        assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (7, 2, "stop"), name
        assert record.e2e_ns is not None
        assert record.e2e_ns < LEFT_OPEN_S * 0.9e9, f"{name}: E2E ends at the last event"
        assert not record.reconnected, name
    assert (setup.recorder.in_flight, len(setup.decoder)) == (0, 0)


BROKEN_OFF: dict[str, tuple[tuple[str, str], tuple[Step, ...]]] = {
    "chat, closed": (("openai", "chat"), (head(), chunk(CHAT + DONE), 0.05, CLOSE)),
    "chat, reset": (("openai", "chat"), (head(), chunk(CHAT + DONE), 0.05, RESET)),
    "ollama, closed": (("ollama", "chat"), (NDJSON, chunk(OLLAMA_CHAT + OLLAMA_END), 0.05, CLOSE)),
}


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_connection_that_breaks_off_behind_the_end_takes_nothing_away(setup: Setup, name: str) -> None:
    kind, script = BROKEN_OFF[name]
    with raw_server(script) as server:
        record = ask(setup.client(server, kind=kind))

    assert (record.outcome, record.output_tokens, record.error) == (Outcome.OK, 2, "")


def test_a_last_chunk_that_comes_late_keeps_the_connection(setup: Setup) -> None:
    answer: tuple[Step, ...] = (head(), chunk(CHAT + DONE), 0.3, LAST_CHUNK)
    with raw_server((*answer, AGAIN, *answer)) as server:
        client = setup.client(server, timeouts=SLOW)
        assert [ask(client, n).outcome for n in range(2)] == [Outcome.OK] * 2
        assert server.connections == 1


NOT_WHOLE: dict[str, tuple[Outcome, str, tuple[Step, ...]]] = {
    "[DONE] without a finish": (Outcome.TRUNCATED, "made-up end", (head(), chunk(content("a") + DONE), OPEN)),
    "a cut stream": (Outcome.STALLED, "idle timeout", (head(), chunk(content("a")), OPEN)),
    "one of two choices has ended": (
        Outcome.STALLED,
        "idle timeout",
        (head(), chunk(CHAT + b'data: {"choices":[{"index":1,"delta":{"content":"x"}}]}\n\n'), OPEN),
    ),
    "an error, then [DONE]": (
        Outcome.ERROR_OBJECT,
        "error object",
        (head(), chunk(content("a") + b'data: {"error": {"message": "engine died"}}\n\n' + DONE), OPEN),
    ),
    "a finish, then a reset": (Outcome.RESET, "ConnectionResetError", (head(), chunk(CHAT), 0.05, RESET)),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_what_is_not_whole_stays_a_failure(setup: Setup, name: str) -> None:
    outcome, kind, script = NOT_WHOLE[name]
    with raw_server(script) as server:
        client = setup.client(server, timeouts=QUICK if kind == "idle timeout" else SLOW)
        record = ask(client, choices=2 if "two choices" in name else 1)

    assert (record.outcome, record.error_kind) == (outcome, kind), record.error


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        (("openai", "chat"), (head(), chunk(CHAT), OPEN)),
        (("openai", "chat"), (head(), chunk(CHAT + DONE[:-2]), OPEN)),
        (("ollama", "chat"), (NDJSON, chunk(OLLAMA_CHAT + OLLAMA_END[:-1]), OPEN)),
    ],
    ids=["no [DONE]", "[DONE] without its blank line", "a last line without its line end"],
)
def test_all_choices_have_ended_and_then_silence(setup: Setup, kind: tuple[str, str], script: tuple[Step, ...]) -> None:
    """Nobody says that it is over, but nothing is missing: when time is up, it is no stall."""
    with raw_server(script) as server:
        record = ask(setup.client(server, kind=kind, timeouts=QUICK))

    assert (record.outcome, record.output_tokens, record.error) == (Outcome.OK, 2, "")
    assert record.e2e_ns is not None
    assert record.e2e_ns < QUICK.idle_token * 0.9e9


def test_the_user_goes_on_at_once(setup: Setup) -> None:
    """Twenty users meet it at the same time; nobody waits for a time-out, no descriptor stays behind."""
    with raw_server((head(), chunk(CHAT + DONE), OPEN)) as server:
        client = setup.client(server, timeouts=SLOW)
        with gevent.Timeout(15):
            gevent.joinall([gevent.spawn(ask, client, n) for n in range(20)], raise_error=True)

    assert [r.outcome for r in setup.records] == [Outcome.OK] * 20


GONE = b'data: {"error":{"message":"gone"}}\n\n'
FAILED = b'data: {"type":"response.failed","response":{"error":{"message":"gone"}}}\n\n'
FAILED_OPEN: dict[str, tuple[tuple[str, str], tuple[Step, ...]]] = {
    "chat": (("openai", "chat"), (head(), chunk(content("a") + GONE), OPEN)),
    "chat, before a word": (("openai", "chat"), (head(), chunk(GONE), OPEN)),
    "chat, pings behind it": (("openai", "chat"), (head(), chunk(GONE), *([0.1, chunk(b": ping\n\n")] * 100))),
    "responses": (("openai", "responses"), (head(), chunk(FAILED), OPEN)),
    "ollama chat": (("ollama", "chat"), (NDJSON, chunk(OLLAMA_CHAT + b'{"error":"gone"}\n'), OPEN)),
}


def test_nobody_waits_behind_an_error_for_the_end_of_the_body(setup: Setup) -> None:
    """All of them at once: a user who waits for the time-out sends less load than was planned."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(raw_server(script)) for name, (_, script) in FAILED_OPEN.items()}
        clients = {n: setup.client(server, kind=FAILED_OPEN[n][0], timeouts=SLOW) for n, server in servers.items()}
        tasks = {n: gevent.spawn(lambda c: (ask(c), monotonic_ns()), client) for n, client in clients.items()}
        answers = {name: task.get(timeout=15) for name, task in tasks.items()}
    for name, (got, now_ns) in answers.items():
        assert (got.outcome, got.error) == (Outcome.ERROR_OBJECT, "gone"), name
        assert now_ns - got.done_ns >= LEFT_OPEN_S * 10**9, "its end is that of the error"


BUSY = b"HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-type: text/plain\r\ncontent-length: 99\r\n\r\n"
LIMITED = head("application/json", "retry-after: 2", status="429 No") + chunk(b'{"error":{"message":"slow down"}}')


@pytest.mark.parametrize(
    ("script", "outcome", "sentence"),
    [
        ((BUSY + b"busy", CLOSE), Outcome.HTTP_5XX, "HTTP 503: busy; then the server closed the connection inside"),
        ((BUSY, 0.05, RESET), Outcome.HTTP_5XX, "HTTP 503; then the connection broke"),
        ((BUSY, OPEN), Outcome.HTTP_5XX, "HTTP 503; then no token within 1 s"),
        ((LIMITED, CLOSE), Outcome.RATE_LIMITED, "HTTP 429: slow down (Retry-After: 2); then the server closed"),
        ((LIMITED, b"zz\r\n", OPEN), Outcome.PROTOCOL, "the answer breaks HTTP/1.1 framing"),
    ],
)
def test_a_refusal_whose_body_breaks_off_is_one(
    setup: Setup, script: tuple[Step, ...], outcome: Outcome, sentence: str
) -> None:
    with raw_server(script) as server:
        got = ask(setup.client(server))
    assert (got.outcome, got.error[: len(sentence)], got.retry_after) == (outcome, sentence, "2")


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_a_server_says_that_reads_no_more_of_the_request_is_told(
    setup: Setup, tmp_path: Path, encrypted: bool
) -> None:
    """A prompt that is too long for it, and for the buffers between: the answer comes while we still send."""
    key, cert = make_certificate(tmp_path)
    context = server_tls((key, cert))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            plain, _ = listener.accept()
            sock = context.wrap_socket(plain, server_side=True) if encrypted else plain
            with sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        scheme = "https" if encrypted else "http"
        client = setup.client(
            listener.getsockname()[1], timeouts=SLOW, url=f"{scheme}://localhost:{{}}", tls=Tls(ca_file=str(cert))
        )
        request = Request("0-0", Prompt("p", (Message("user", "x" * (32 << 20)),), "", "c", 0), 0, "steady", 0)
        with gevent.Timeout(30):
            got = client.send(request, SAMPLING)
        thread.join()
    assert (got.outcome, got.error) == (
        Outcome.RESET,
        "the server hung up inside the request; it says: HTTP 413 Payload Too Large",
    )
