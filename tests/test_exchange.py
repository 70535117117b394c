"""The streaming client against real sockets: framings, outcomes, time-outs, keep-alive, TLS, stamps."""

from __future__ import annotations

import gzip
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from exchanges import ANSWER, READERS, Setup, ask, make_certificate, one, server_tls
from raw_server import (
    AGAIN,
    CLOSE,
    DONE,
    HANG_UP,
    LAST_CHUNK,
    RESET,
    UNREAD,
    Step,
    chunk,
    content,
    head,
    raw_server,
)

from tokenswarm.client import broken
from tokenswarm.client.response import Response, TransportError
from tokenswarm.client.transport import PAUSE_BYTES
from tokenswarm.clock import monotonic_ns
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.record import BROKEN_OUTCOMES, Outcome, TokenSource


@pytest.fixture(params=READERS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    found = Setup(request.param)
    yield found
    found.close()


FRAMINGS: dict[str, tuple[Step, ...]] = {
    "chunked": (head(), *(chunk(piece) for piece in ANSWER.splitlines(keepends=True)), LAST_CHUNK),
    "one chunk": (head(), chunk(ANSWER), LAST_CHUNK),
    "trailers": (head(), chunk(ANSWER), b"0\r\nx-checksum: 1\r\n\r\n"),
    "content-length": (head("text/event-stream", f"content-length: {len(ANSWER)}", chunked=False), ANSWER),
    "close-delimited": (head(chunked=False), ANSWER[:40], 0.05, ANSWER[40:], CLOSE),
    "http 1.0": (b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", ANSWER, CLOSE),
    "gzip": (
        head("text/event-stream", "content-encoding: gzip"),
        chunk(gzip.compress(ANSWER)[:20]),
        chunk(gzip.compress(ANSWER)[20:]),
        LAST_CHUNK,
    ),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", head(), chunk(ANSWER), LAST_CHUNK),
    "byte by byte": (*(bytes([b]) for b in head() + chunk(ANSWER) + LAST_CHUNK),),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_every_framing_gives_the_same_answer(setup: Setup, name: str) -> None:
    record = one(setup, *FRAMINGS[name])

    assert (record.outcome, record.error) == (Outcome.OK, "")
    assert (record.text, record.output_tokens, record.token_source) == ("abc", 3, TokenSource.SERVER)
    assert record.finish_reason == "stop"
    assert record.intended_ns <= record.sent_ns <= record.headers_ns <= record.first_ns <= record.done_ns


FAILURES: dict[str, tuple[Outcome, tuple[Step, ...]]] = {
    "clean end without a finish": (Outcome.TRUNCATED, (head(), chunk(content("a")), chunk(DONE), LAST_CHUNK)),
    "close-delimited cut": (Outcome.TRUNCATED, (head(chunked=False), content("a"), content("b")[:20], CLOSE)),
    "gzip without its end": (
        Outcome.TRUNCATED,
        (head("text/event-stream", "content-encoding: gzip"), chunk(gzip.compress(ANSWER)[:-9]), LAST_CHUNK),
    ),
    "closed inside the chunks": (Outcome.RESET, (head(), chunk(content("a")), CLOSE)),
    "short content-length": (Outcome.RESET, (head("text/event-stream", "content-length: 999", chunked=False), CLOSE)),
    "reset mid-stream": (Outcome.RESET, (head(), chunk(content("a")), 0.1, RESET)),
    "reset before the answer": (Outcome.RESET, (RESET,)),
    "closed before the answer": (Outcome.RESET, (CLOSE,)),
    "reset of a close-delimited stream": (Outcome.RESET, (head(chunked=False), content("a"), 0.1, RESET)),
    "no token": (Outcome.TIMEOUT, (head(), chunk(b": ping\n\n"), 5.0)),
    "headers never come": (Outcome.TIMEOUT, (5.0,)),
    "stall after a token": (Outcome.STALLED, (head(), chunk(content("a")), 5.0)),
    "pings do not reset the stall": (
        Outcome.STALLED,
        (head(), chunk(content("a")), *([0.02, chunk(b": ping\n\n")] * 150)),
    ),
    "404": (
        Outcome.HTTP_4XX,
        (head("application/json", status="404 Not Found"), chunk(b'{"error":{"message":"no"}}'), LAST_CHUNK),
    ),
    "429": (
        Outcome.RATE_LIMITED,
        (head("text/plain", "retry-after: 7", status="429 Slow"), chunk(b"slow"), LAST_CHUNK),
    ),
    "500": (Outcome.HTTP_5XX, (head("text/html", status="500 Oops"), chunk(b"<h1>oops</h1>"), LAST_CHUNK)),
    "redirect": (Outcome.PROTOCOL, (head("text/html", "location: http://[::1]:9/", status="302 Found"), LAST_CHUNK)),
    "login page": (Outcome.PROTOCOL, (head("text/html"), chunk(b"<html>log in</html>"), LAST_CHUNK)),
    "no http": (Outcome.PROTOCOL, (b"SSH-2.0-OpenSSH_9.2p1\r\n", CLOSE)),
    "bad chunk size": (Outcome.PROTOCOL, (head(), chunk(content("a")), b"zz\r\nhello\r\n")),
    "bad json": (Outcome.PROTOCOL, (head(), chunk(content("a")), chunk(b"data: {nope\n\n"), LAST_CHUNK)),
    "unknown encoding": (
        Outcome.PROTOCOL,
        (head("text/event-stream", "content-encoding: br"), chunk(b"x"), LAST_CHUNK),
    ),
    "error object, then [DONE]": (
        Outcome.ERROR_OBJECT,
        (
            head(),
            chunk(content("a")),
            chunk(b'data: {"error": {"message": "engine died"}}\n\n'),
            chunk(DONE),
            LAST_CHUNK,
        ),
    ),
    "error object, then a dead connection": (
        Outcome.ERROR_OBJECT,
        (head(), chunk(b'data: {"error": {"message": "engine died"}}\n\n'), RESET),
    ),
    "error object instead of a stream": (
        Outcome.ERROR_OBJECT,
        (head("application/json"), chunk(b'{"error": "model crashed"}'), LAST_CHUNK),
    ),
    "empty stream": (Outcome.EMPTY, (head(), LAST_CHUNK)),
    "no body": (Outcome.EMPTY, (b"HTTP/1.1 204 No Content\r\n\r\n",)),
    "only [DONE]": (Outcome.EMPTY, (head(), chunk(DONE), LAST_CHUNK)),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_has_its_outcome(setup: Setup, name: str) -> None:
    outcome, script = FAILURES[name]

    record = one(setup, *script)

    assert record.outcome is outcome, record.error
    assert record.error
    assert record.error_kind
    assert setup.records == [record]
    assert (setup.recorder.in_flight, setup.recorder.decoding, len(setup.decoder)) == (0, 0, 0)


PINGED: tuple[Step, ...] = (0.02, chunk(b": ping\n\n")) * 300


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ((head(), *PINGED), "first token timeout"),
        ((head(), chunk(content("")), *PINGED), "first token timeout"),
        ((head(), chunk(content("a")), *PINGED), "idle timeout"),
    ],
    ids=["before the first token", "after a role", "between tokens"],
)
def test_pings_put_no_time_out_off(setup: Setup, script: tuple[Step, ...], kind: str) -> None:
    """Six seconds of them: put off, it would be the limit of the whole answer that ends it."""
    record = one(setup, *script)

    assert record.error_kind == kind


REFUSALS = ("429 Too Many Requests", "503 Service Unavailable", "500 Oops", "408 Request Timeout", "425 Too Early")


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("kept", [False, True], ids=["first request", "kept connection"])
def test_a_refused_request_is_never_sent_again(setup: Setup, status: str, kept: bool) -> None:
    """Neither on its connection nor on another one: that would be load that nobody asked for."""
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    refusal = head("application/json", "retry-after: 0", status=status) + chunk(b'{"error":"slow"}') + LAST_CHUNK
    before: tuple[Step, ...] = (answer, AGAIN) if kept else ()
    with raw_server((*before, refusal, AGAIN, answer)) as server:
        client = setup.client(server)
        records = [ask(client, number) for number in range(1 + kept)]
        gevent.sleep(0.1)

        assert (len(server.requests), server.connections) == (1 + kept, 1)
    assert records[-1].status == int(status[:3])
    assert (records[-1].ok, records[-1].reconnected) == (False, False)


@pytest.mark.parametrize("end", [RESET, CLOSE])
def test_a_kept_connection_that_dies_inside_the_answer_is_not_replaced(setup: Setup, end: Step) -> None:
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, AGAIN, b"HTTP/1.1", 0.05, end), (answer,)) as server:
        client = setup.client(server)
        records = [ask(client, number) for number in range(2)]

        assert (len(server.requests), server.connections) == (2, 1)
    assert [r.outcome for r in records] == [Outcome.OK, Outcome.RESET]


OLLAMA = (b'{"message":{"content":"a"},"done":false}\n', b'{"message":{"content":"b"},"done":false}\n')


@pytest.mark.parametrize(
    ("kind", "head_of", "events"),
    [
        (("openai", "chat"), head(), (content("a"), content("b"))),
        (("openai", "chat"), head(chunked=False), (content("a"), content("b"))),
        (("ollama", "chat"), head("application/x-ndjson"), OLLAMA),
    ],
    ids=["chunked", "until closed", "ndjson"],
)
def test_how_long_nothing_had_come_of_what_was_broken_off(
    setup: Setup, kind: tuple[str, str], head_of: bytes, events: tuple[bytes, bytes]
) -> None:
    """From the last event, not from the sending: that of a way that cuts what is silent is the same at every age."""
    first, last = (chunk(one) if b"chunked" in head_of else one for one in events)
    record = one(setup, head_of, first, 0.3, last, 0.4, CLOSE, kind=kind)
    early = one(setup, 0.3, CLOSE, kind=kind)

    assert record.outcome in BROKEN_OUTCOMES
    assert record.silent_ns is not None
    assert record.e2e_ns is not None
    assert record.silent_ns > 390_000_000
    assert record.e2e_ns - record.silent_ns > 290_000_000
    assert early.silent_ns == early.e2e_ns


def test_messages_of_failures(setup: Setup) -> None:
    assert "no" in one(setup, *FAILURES["404"][1]).error
    assert "Retry-After: 7" in one(setup, *FAILURES["429"][1]).error
    assert "redirects are not followed" in one(setup, *FAILURES["redirect"][1]).error
    assert one(setup, *FAILURES["error object, then [DONE]"][1]).error == "engine died"
    assert "text/html" in one(setup, *FAILURES["login page"][1]).error


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_bug_of_ours_ends_its_answer_at_once_and_no_other(
    setup: Setup, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    fed = Response.feed
    odd = True

    def feed(response: Response, data: bytes, recv_ns: int, lag_ns: int) -> bool:
        nonlocal odd
        if odd:
            odd = False
            raise LookupError("an odd head")
        return fed(response, data, recv_ns, lag_ns)

    monkeypatch.setattr(Response, "feed", feed)
    script = (head() + chunk(ANSWER), 5.0)
    good = (head() + chunk(ANSWER) + LAST_CHUNK,)
    with raw_server(script, good, tls=server_tls(certificate) if tls else None) as server:
        client = setup.client(server, url=f"http{'s' * tls}://localhost:{{}}", tls=Tls(verify=False))
        first, second = ask(client, 0), ask(client, 1)

    assert (first.outcome, first.error_kind) == (Outcome.PROTOCOL, "client bug")
    assert re.match(
        r"a bug of this client, please report it: LookupError at test_exchange\.py:\d+: an odd", first.error
    )
    assert (second.outcome, second.text) == (Outcome.OK, "abc")
    assert (setup.recorder.in_flight, len(setup.decoder)) == (0, 0)


def test_an_oversized_event_ends_its_request_in_bounded_memory(setup: Setup) -> None:
    line = b"data: " + b"x" * 200_000
    record = one(setup, head(chunked=False), *([line] + [b"x" * 200_000] * 40), CLOSE, event_bytes_max=100_000)

    assert record.outcome is Outcome.OVERSIZE


def test_reading_waits_for_the_decoder(setup: Setup) -> None:
    """A server that floods is held back by the socket, not by our memory."""
    filler = b": " + b"x" * 60_000 + b"\n\n"
    with raw_server((head(chunked=False), *([filler] * 400), ANSWER, CLOSE)) as server:
        client = setup.client(server)
        largest = 0

        def watch() -> None:
            nonlocal largest
            while True:
                for stream in setup.decoder.streams():
                    largest = max(largest, stream.response.pending_bytes)  # type: ignore[attr-defined]
                gevent.sleep(0.0005)

        watcher = gevent.spawn(watch)
        record = ask(client)
        watcher.kill()

    assert record.outcome is Outcome.OK
    assert largest <= PAUSE_BYTES + 65_536


def test_connect_failures(setup: Setup) -> None:
    with raw_server((CLOSE,)) as server:
        port = server.port
    refused = ask(setup.client(port))

    assert (refused.outcome, refused.error_kind) == (Outcome.CONNECT, "ConnectionRefusedError")
    assert refused.sent_ns == 0
    with pytest.raises(TransportError) as caught:
        setup.client(1, url="http://no-such-host.invalid:{}")
    assert caught.value.outcome is Outcome.DNS


def test_keep_alive_reuses_one_connection_and_tells_set_up_apart(setup: Setup) -> None:
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, AGAIN, answer, AGAIN, answer)) as server:
        client = setup.client(server)
        records = [ask(client, n) for n in range(3)]

        assert [r.outcome for r in records] == [Outcome.OK] * 3
        assert server.connections == 1
    assert records[0].connect_ns > 0
    assert [r.connect_ns for r in records[1:]] == [0, 0]


def test_the_kernel_sends_at_once_and_looks_after_a_kept_connection(setup: Setup) -> None:
    with raw_server((head() + chunk(ANSWER) + LAST_CHUNK,)) as server:
        client = setup.client(server)
        ask(client)
        sock = client.pool.take().sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_fresh_connections(setup: Setup) -> None:
    with raw_server((head() + chunk(ANSWER) + LAST_CHUNK,)) as server:
        client = setup.client(server, fresh=True)
        assert all(ask(client, n).connect_ns > 0 for n in range(3))
        assert server.connections == 3
    assert b"connection: close" in server.requests[0]


@pytest.mark.parametrize("end", [CLOSE, HANG_UP])
def test_a_kept_connection_that_is_closed_with_the_request_unread_is_replaced_once_and_counted(
    setup: Setup, end: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, "LINGER_NS", 0)  # later than by that, the reset alone tells
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, UNREAD, end), (answer,)) as server:
        client = setup.client(server)
        first, second = ask(client, 0), ask(client, 1)

        assert (first.outcome, first.reconnected) == (Outcome.OK, False)
        assert (second.outcome, second.reconnected) == (Outcome.OK, True)
        assert server.connections == 2


@pytest.mark.parametrize("end", [CLOSE, HANG_UP])
def test_a_server_that_reads_a_request_and_hangs_up_has_failed(
    setup: Setup, end: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a kept connection, too: asked again it would answer, and a server that drops one request in ten look well."""
    monkeypatch.setattr(broken, "LINGER_NS", 1_000_000)
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, AGAIN, 0.05, end), (answer,)) as server:
        client = setup.client(server)
        records = [ask(client, number) for number in range(2)]

        assert server.connections == 1
    assert (records[1].outcome, records[1].error_kind) == (Outcome.RESET, "closed early")
    assert not records[1].reconnected


@pytest.mark.parametrize("end", [CLOSE, HANG_UP])
def test_a_request_that_a_lingering_close_reads_and_drops_is_asked_again(
    setup: Setup, end: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp ends its side behind an answer, and reads on for a while, so that no reset takes the answer away."""
    monkeypatch.setattr(broken, "LINGER_NS", 10**10)
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, AGAIN, end), (answer,)) as server:
        client = setup.client(server)
        records = [ask(client, number) for number in range(2)]

        assert server.connections == 2
    assert (records[1].outcome, records[1].reconnected) == (Outcome.OK, True)


def test_a_reset_long_after_a_request_was_sent_is_an_answer_that_failed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, "CROSSED_NS", 1_000_000)
    answer = head() + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, AGAIN, 0.05, RESET), (answer,)) as server:
        client = setup.client(server)
        records = [ask(client, number) for number in range(2)]

    assert (records[1].outcome, records[1].reconnected) == (Outcome.RESET, False)


def test_a_request_that_met_a_closed_connection_was_not_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        listener.accept()[0].close()
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(1) == b""
        assert broken.crossed(sock, "closed early", 10**18)


def test_a_fresh_connection_that_dies_is_not_retried(setup: Setup) -> None:
    with raw_server((RESET,)) as server:
        assert ask(setup.client(server)).outcome is Outcome.RESET
        assert server.connections == 1


def test_a_server_that_closes_after_each_answer_costs_nothing(setup: Setup) -> None:
    """As llama.cpp does while it advertises keep-alive."""
    answer = head("text/event-stream", "keep-alive: timeout=5, max=100") + chunk(ANSWER) + LAST_CHUNK
    with raw_server((answer, CLOSE)) as server:
        client = setup.client(server)
        for number in range(5):
            assert ask(client, number).outcome is Outcome.OK
            gevent.sleep(0.02)
        assert server.connections == 5


def test_bytes_behind_the_answer_end_the_connection_but_not_the_request(setup: Setup) -> None:
    answer = head() + chunk(ANSWER) + LAST_CHUNK + b"HTTP/1.1 200 OK\r\n\r\n"
    with raw_server((answer,)) as server:
        client = setup.client(server)
        assert [ask(client, n).outcome for n in range(2)] == [Outcome.OK] * 2
        assert server.connections == 2


def test_the_request_as_sent(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no netrc of the environment; the headers that were asked for; no expect, no redirect."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with raw_server((head() + chunk(ANSWER) + LAST_CHUNK,)) as server:
        client = setup.client(server, headers={"Authorization": "Bearer k"}, url="http://127.0.0.1:{}/base/")
        ask(client)

        request = server.requests[0]
    top, _, body = request.partition(b"\r\n\r\n")
    assert top.startswith(b"POST /base/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % server.port)
    assert b"authorization: Bearer k" in top
    assert b"accept-encoding: identity" in top
    assert b'"stream":true' in body.replace(b" ", b"")


def test_ipv6(setup: Setup) -> None:
    try:
        with raw_server((head() + chunk(ANSWER) + LAST_CHUNK,), host="::1") as server:
            assert ask(setup.client(server, url="http://[::1]:{}")).outcome is Outcome.OK
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")


def test_events_of_one_read_share_one_stamp_and_are_flagged(setup: Setup) -> None:
    record = one(setup, head(), chunk(content("a") + content("b")), 0.1, chunk(content("c", "stop") + DONE), LAST_CHUNK)

    assert (record.events, record.merged_events, len(record.gaps_ns)) == (3, 1, 1)
    assert record.gaps_ns[0] > 50_000_000


def reads_a_token(setup: Setup) -> None:
    """Wait until the one stream has read and decoded an event."""
    with gevent.Timeout(20):
        while not any(stream.timeline.events for stream in setup.decoder.streams()):  # type: ignore[attr-defined]
            gevent.sleep(0.005)


def test_stamps_are_the_kernels_even_when_the_reader_is_late(setup: Setup) -> None:
    """A token is sent while the loop is blocked after the first read: its stamp is that of its sending."""
    if not sys.platform.startswith("linux"):
        pytest.skip("kernel receive stamps are Linux's")
    sent: list[int] = []

    blocked = threading.Event()

    def script() -> Iterator[Step]:
        yield head() + chunk(content("a"))
        blocked.wait(20)
        yield 0.05
        sent.append(monotonic_ns())
        yield chunk(content("b", "stop"))
        sent.append(monotonic_ns())
        yield 0.3
        yield LAST_CHUNK

    with raw_server(script()) as server:  # type: ignore[arg-type]  # played once
        client = setup.client(server)
        task = gevent.spawn(ask, client)
        reads_a_token(setup)
        blocked.set()
        while len(sent) < 2:
            os.getpid()  # nobody reads while this burns
        burn_until_ns = monotonic_ns() + 200_000_000
        while monotonic_ns() < burn_until_ns:
            os.getpid()
        record = task.get(timeout=60)

    assert record.stamp == "kernel"
    assert record.rx_lag_max_ns > 100_000_000
    assert sent[0] <= record.last_ns <= sent[1] + 50_000_000
    assert record.first_ns < sent[0]


def test_a_killed_user_leaves_a_cancelled_record(setup: Setup) -> None:
    with raw_server((head() + chunk(content("a")), 5.0)) as server:
        client = setup.client(server)
        task = gevent.spawn(ask, client)
        reads_a_token(setup)
        task.kill()

    assert [r.outcome for r in setup.records] == [Outcome.CANCELLED]
    assert setup.records[0].events == 1
    assert (setup.recorder.in_flight, len(setup.decoder)) == (0, 0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_tls_is_verified(setup: Setup, certificate: tuple[Path, Path]) -> None:
    with raw_server((head() + chunk(ANSWER) + LAST_CHUNK,), tls=server_tls(certificate)) as server:
        url = "https://localhost:{}"
        trusted = ask(setup.client(server, url=url, tls=Tls(ca_file=str(certificate[1]))))
        distrusted = ask(setup.client(server, url=url))
        careless = ask(setup.client(server, url=url, tls=Tls(verify=False)))
        wrong_name = ask(setup.client(server, url="https://127.0.0.1:{}", tls=Tls(ca_file=str(certificate[1]))))

    assert (trusted.outcome, trusted.text) == (Outcome.OK, "abc")
    assert (distrusted.outcome, distrusted.error_kind) == (Outcome.TLS, "certificate")
    assert careless.outcome is Outcome.OK
    assert wrong_name.outcome is Outcome.TLS


def test_tls_streams_and_keeps_alive(setup: Setup, certificate: tuple[Path, Path]) -> None:
    slow = (
        head(),
        *(step for letter in "abcd" for step in (chunk(content(letter)), 0.05)),
        chunk(content("e", "stop")),
    )
    script = (*slow, LAST_CHUNK, AGAIN, head() + chunk(ANSWER) + LAST_CHUNK)
    with raw_server(script, tls=server_tls(certificate)) as server:
        client = setup.client(server, url="https://localhost:{}", tls=Tls(ca_file=str(certificate[1])))
        first, second = ask(client, 0), ask(client, 1)

        assert server.connections == 1
    assert (first.text, second.text) == ("abcde", "abc")
    assert first.last_ns - first.first_ns > 100_000_000, "of 200 ms: as they come, not all at the end"


def test_plain_text_on_a_tls_port(setup: Setup) -> None:
    with raw_server((CLOSE,)) as server:
        record = ask(setup.client(server, url="https://localhost:{}"))

    assert record.outcome in (Outcome.TLS, Outcome.CONNECT)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (("openai", "completions"), b'data: {"choices":[{"index":0,"text":"hi","finish_reason":"stop"}]}\n\n' + DONE),
        (
            ("ollama", "chat"),
            b'{"message":{"content":"hi"},"done":false}\n{"done":true,"done_reason":"stop","eval_count":1}\n',
        ),
        (
            ("ollama", "generate"),
            b'{"response":"hi","done":false}\n{"done":true,"done_reason":"stop","eval_count":1}\n',
        ),
    ],
)
def test_the_other_dialects(setup: Setup, kind: tuple[str, str], body: bytes) -> None:
    content_type = "text/event-stream" if kind[0] == "openai" else "application/x-ndjson"
    record = one(setup, head(content_type), chunk(body), LAST_CHUNK, kind=kind)

    assert (record.outcome, record.output_tokens, record.error) == (Outcome.OK, 1, "")


def test_many_streams_at_once_lose_nothing(setup: Setup) -> None:
    script = (head(), *(step for _ in range(20) for step in (chunk(content("a")), 0.01)), chunk(content("z", "stop")))
    with raw_server((*script, LAST_CHUNK)) as server:
        client = setup.client(server, timeouts=Timeouts())  # 60 threads of a server on a busy machine take their time
        tasks = [gevent.spawn(ask, client, n) for n in range(60)]
        gevent.joinall(tasks, timeout=60)

    assert [r.outcome for r in setup.records] == [Outcome.OK] * 60
    assert {r.events for r in setup.records} == {21}
