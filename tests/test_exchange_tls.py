"""TLS as terminators speak it: the last bytes and close_notify in one segment, closes without one, broken records."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from exchanges import ANSWER, Setup, ask, make_certificate, server_tls
from raw_server import AGAIN, CLOSE, LAST_CHUNK, Broken, Farewell, RawServer, Step, chunk, content, head, raw_server

from tokenswarm.client import page
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import make_target
from tokenswarm.profile.target import Tls
from tokenswarm.record import Outcome

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
STREAM = head() + chunk(ANSWER) + LAST_CHUNK
BODY = b"# TYPE a counter\na 1\n"
PAGE = head("text/plain", f"content-length: {len(BODY)}", "connection: close", chunked=False) + BODY


@pytest.fixture
def setup() -> Iterator[Setup]:
    found = Setup()
    yield found
    found.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=VERSIONS)
def context(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return server_tls(certificate, VERSIONS[request.param])


def url_of(server: RawServer) -> str:
    return f"https://localhost:{server.port}"


ANSWERS: dict[str, tuple[Step, ...]] = {
    "all in one segment": (Farewell(STREAM),),
    "the last chunk and the end": (head(), 0.02, chunk(ANSWER), 0.02, Farewell(LAST_CHUNK)),
    "close-delimited": (Farewell(head(chunked=False) + ANSWER),),
    "close-delimited, the last event and the end": (head(chunked=False) + ANSWER[:60], 0.02, Farewell(ANSWER[60:])),
    "content-length, then closed without close_notify": (
        head("text/event-stream", f"content-length: {len(ANSWER)}", chunked=False) + ANSWER,
        CLOSE,
    ),
    "close-delimited, closed without close_notify": (head(chunked=False) + ANSWER, CLOSE),
    "a broken record behind a whole answer": (Broken(STREAM),),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_shares_a_segment_with_the_end_of_tls_is_read(setup: Setup, context: ssl.SSLContext, name: str) -> None:
    with raw_server(ANSWERS[name], tls=context) as server:
        client = setup.client(server, url="https://localhost:{}", tls=Tls(verify=False))
        records = [ask(client, number) for number in range(3)]

        assert [(r.outcome, r.text, r.error) for r in records] == [(Outcome.OK, "abc", "")] * 3
        assert server.connections == 3, "a connection that has ended must not be used again"
    if CLOSE not in ANSWERS[name]:  # else the FIN comes a moment after the answer, and may meet the next request
        assert not any(r.reconnected for r in records)


def test_fresh_connections_over_tls(setup: Setup, context: ssl.SSLContext) -> None:
    with raw_server((Farewell(STREAM),), tls=context) as server:
        client = setup.client(server, url="https://localhost:{}", tls=Tls(verify=False), fresh=True)
        records = [ask(client, number) for number in range(5)]

    assert [r.outcome for r in records] == [Outcome.OK] * 5
    assert all(r.connect_ns > 0 and r.sent_ns <= r.first_ns <= r.done_ns for r in records)


def test_session_tickets_between_answers_do_not_cost_the_connection(setup: Setup, context: ssl.SSLContext) -> None:
    with raw_server((STREAM, AGAIN, STREAM, AGAIN, Farewell(STREAM)), tls=context) as server:
        client = setup.client(server, url="https://localhost:{}", tls=Tls(verify=False))
        assert [ask(client, number).outcome for number in range(3)] == [Outcome.OK] * 3
        assert server.connections == 1


CUT: dict[str, tuple[Outcome, str, tuple[Step, ...]]] = {
    "the end inside the chunks": (Outcome.RESET, "inside the answer", (Farewell(head() + chunk(content("a"))),)),
    "the end before the answer": (Outcome.RESET, "before the answer", (Farewell(b""),)),
    "the end of a close-delimited answer without a finish": (
        Outcome.TRUNCATED,
        "without a finish reason, after 1 content event",
        (Farewell(head(chunked=False) + content("a")),),
    ),
    "a broken record inside the answer": (Outcome.RESET, "TLS broke", (Broken(head() + chunk(content("a"))),)),
    "an error object and the end": (
        Outcome.ERROR_OBJECT,
        "engine died",
        (Farewell(head() + chunk(b'data: {"error": {"message": "engine died"}}\n\n')),),
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_what_came_before_an_early_end_is_counted(setup: Setup, context: ssl.SSLContext, name: str) -> None:
    outcome, said, script = CUT[name]
    with raw_server(script, tls=context) as server:
        record = ask(setup.client(server, url="https://localhost:{}", tls=Tls(verify=False)))

    assert (record.outcome, said in record.error) == (outcome, True), record.error
    assert record.events == (1 if content("a") in b"".join(s for s in script if isinstance(s, bytes)) else 0)


PAGES: dict[str, tuple[Step, ...]] = {
    "content-length": (Farewell(PAGE),),
    "chunked": (Farewell(head("text/plain", "connection: close") + chunk(BODY) + LAST_CHUNK),),
    "close-delimited": (Farewell(head("text/plain", chunked=False) + BODY),),
    "closed without close_notify": (PAGE, CLOSE),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_and_close_notify_in_one_segment(
    certificate: tuple[Path, Path], context: ssl.SSLContext, name: str
) -> None:
    """Model lists, metrics pages and pushes go this way."""
    with raw_server(PAGES[name], tls=context) as server:
        target = make_target(url_of(server), Tls(ca_file=str(certificate[1])))
        got = [page.request(target, method, "/metrics", {}, timeout_s=10) for method in ("GET", "POST", "GET")]

    assert [(answer.status, answer.body) for answer in got] == [(200, BODY)] * 3


def test_a_page_that_is_cut_is_no_page(context: ssl.SSLContext) -> None:
    with raw_server((Farewell(PAGE[:-3]),), tls=context) as server, pytest.raises(TransportError) as caught:
        page.request(make_target(url_of(server), Tls(verify=False)), "GET", "/metrics", {}, timeout_s=10)

    assert caught.value.kind == "closed early"


@pytest.mark.parametrize("name", ["all in one segment", "close-delimited, the last event and the end"])
def test_plain_answers_whose_fin_shares_a_segment(setup: Setup, name: str) -> None:
    with raw_server(ANSWERS[name]) as server:
        client = setup.client(server)
        assert [ask(client, number).outcome for number in range(3)] == [Outcome.OK] * 3
        assert server.connections == 3
