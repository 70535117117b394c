"""The kernel says when a request left; where it can't, the send lies between two looks at the clock, and is counted."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from exchanges import ANSWER, PROMPT, Setup, ask, make_certificate, server_tls
from raw_server import AGAIN, LAST_CHUNK, Step, chunk, content, head, raw_server

from tokenswarm.client import transport
from tokenswarm.client.sending import Client, Request
from tokenswarm.client.stamps import SO_TIMESTAMPING, take_sent_stamps
from tokenswarm.client.transport import Connection
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines import Sampling
from tokenswarm.profile.target import Tls
from tokenswarm.prompts import Message
from tokenswarm.record import Outcome, RequestRecord

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's stamps are Linux's")
MS = 1_000_000
SCRIPT: tuple[Step, ...] = (0.02, head(), chunk(ANSWER), LAST_CHUNK, AGAIN) * 5


@pytest.fixture
def setup() -> Iterator[Setup]:
    found = Setup()
    yield found
    found.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_tls(make_certificate(tmp_path_factory.mktemp("tls")))


def counts(setup: Setup) -> tuple[int, int]:
    return setup.recorder.instrument.sends_stamped, setup.recorder.instrument.sends_unstamped


def stamped(setup: Setup, n: int) -> bool:
    """Whether `n` requests were sent, all but one stamped at least: a busy machine may spoil a look at the clocks."""
    by_kernel, others = counts(setup)
    return by_kernel + others == n and by_kernel >= n - 1


@pytest.mark.parametrize("fresh", [False, True])
def test_each_send_has_a_stamp_of_the_kernel(setup: Setup, fresh: bool) -> None:
    with raw_server(SCRIPT) as server:
        client = setup.client(server, fresh=fresh)
        before_ns = monotonic_ns()
        records = [ask(client, number) for number in range(5)]

    assert [r.outcome for r in records] == [Outcome.OK] * 5
    assert stamped(setup, 5)
    for record in records:
        assert before_ns < record.sent_ns <= record.sent_high_ns < record.headers_ns
        assert (record.ttft_ns or 0) >= 20 * MS
        before_ns = record.done_ns


def test_over_tls_too(setup: Setup, tls: ssl.SSLContext) -> None:
    with raw_server(SCRIPT, tls=tls) as server:
        client = setup.client(server, url="https://localhost:{}", tls=Tls(verify=False))
        records = [ask(client, number) for number in range(3)]
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert stamped(setup, 3)


@pytest.mark.parametrize("kilobytes", [1, 31, 40, 200, 3000])
def test_a_request_in_several_segments_left_with_its_last_byte(setup: Setup, kilobytes: int) -> None:
    """The server begins to read late, so that the last bytes of a large request wait for room."""
    prompt = msgspec.structs.replace(PROMPT, messages=(Message("user", "x" * kilobytes * 1024),))
    with raw_server(SCRIPT) as server:
        client = setup.client(server)
        record = client.send(Request("0-0", prompt, 0, "steady", monotonic_ns()), Sampling(model="m", max_tokens=4))
        asked = server.requests[0]
    assert record.outcome is Outcome.OK
    assert (asked[-1:], asked.count(b"x" * kilobytes * 1024)) == (b"}", 1)
    assert record.sent_ns <= record.sent_high_ns < record.headers_ns
    assert sum(counts(setup)) == 1


def looked(setup: Setup, monkeypatch: pytest.MonkeyPatch, queue: Callable[..., list[int]]) -> tuple[RequestRecord, int]:
    """One answer that takes 0.3 s, and how often its watcher woke; `queue` stands for the look at the error queue."""
    woken = 0

    def counting(wake: Callable[[Connection], None]) -> Callable[[Connection], None]:
        def counted(connection: Connection) -> None:
            nonlocal woken
            woken += 1
            wake(connection)

        return counted

    monkeypatch.setattr(transport, "take_sent_stamps", queue)
    for name in ("_on_readable", "on_nothing"):  # of Python's reader, of both
        monkeypatch.setattr(Connection, name, counting(getattr(Connection, name)))
    with raw_server((0.3, head(), chunk(ANSWER), LAST_CHUNK)) as server:
        record = ask(setup.client(server))
    return record, woken


def test_a_stamp_that_is_late_wakes_the_reader_once(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left in the error queue it would wake the reader again and again: a core for each stream that waits."""
    calls = 0

    def late(recvmsg: Callable[..., Any], *, one: bool = False) -> list[int]:
        nonlocal calls
        calls += 1
        return [] if calls == 1 else take_sent_stamps(recvmsg, one=one)

    record, woken = looked(setup, monkeypatch, late)
    assert record.outcome is Outcome.OK
    assert counts(setup) == (1, 0)
    assert record.sent_ns == record.sent_high_ns
    assert woken <= 6


def test_a_stamp_that_never_comes_leaves_the_bracket(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(recvmsg: Callable[..., Any], *, one: bool = False) -> list[int]:
        take_sent_stamps(recvmsg, one=one)
        return []

    before_ns = monotonic_ns()
    record, woken = looked(setup, monkeypatch, lost)
    assert record.outcome is Outcome.OK
    assert counts(setup) == (0, 1)
    assert before_ns < record.sent_ns < record.sent_high_ns < record.headers_ns
    assert woken <= 6


def test_a_stamp_of_another_send_is_not_taken(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a segment that was sent again, or of the request before: it lies outside of the bracket."""

    def stale(recvmsg: Callable[..., Any], *, one: bool = False) -> list[int]:
        take_sent_stamps(recvmsg, one=one)
        return [time.time_ns() - 50 * MS]

    record, _ = looked(setup, monkeypatch, stale)
    assert record.outcome is Outcome.OK
    assert counts(setup) == (0, 1)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.ENOPROTOOPT])
@pytest.mark.parametrize("where", ["option", "send"])
def test_a_kernel_that_refuses_is_asked_no_more(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    """Then the request goes out without a stamp, once, and the run goes on."""
    refused = 0

    def refuse(*_: object) -> None:
        nonlocal refused
        refused += 1
        raise OSError(code, "no")

    made = Connection.__init__

    def make(connection: Connection, *arguments: Any) -> None:
        made(connection, *arguments)
        if where == "send":
            connection.sock = type("Refusing", (socket.socket,), {"sendmsg": refuse})(fileno=connection.sock.detach())
            connection._recvmsg = connection.sock.recvmsg

    monkeypatch.setattr(Connection, "__init__", make)
    if where == "option":
        monkeypatch.setattr(transport, "ask_for_sent_stamps", lambda _sock: False)
    with raw_server(SCRIPT) as server:
        client = setup.client(server)
        records = [ask(client, number) for number in range(3)]
        assert len(server.requests) == 3
    assert [r.outcome for r in records] == [Outcome.OK] * 3
    assert refused == (1 if where == "send" else 0)
    assert counts(setup) == (0, 3)
    assert all(r.sent_ns < min(r.sent_high_ns, r.first_ns) for r in records)  # busy, it may read after the answer came


def entry(origin: int, stamp_ns: int) -> list[tuple[int, int, bytes]]:
    """The ancillary data of an entry of the error queue."""
    stamps = struct.pack("6q", *divmod(stamp_ns, 10**9), 0, 0, 0, 0)
    error = struct.pack("IBBBBII", errno.ENOMSG, origin, 0, 0, 0, 1, 99) + bytes(16)
    return [(socket.SOL_SOCKET, SO_TIMESTAMPING, stamps), (socket.IPPROTO_IP, 11, error)]


def test_what_else_lies_in_the_error_queue_is_thrown_away() -> None:
    entries = [entry(2, 1), entry(4, 7_000_000_001), [], entry(3, 2), [(socket.IPPROTO_IP, 11, b"short")]]

    def recvmsg(*_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        if not entries:
            raise BlockingIOError
        return b"", entries.pop(0), socket.MSG_ERRQUEUE, None

    assert take_sent_stamps(recvmsg) == [7_000_000_001]
    assert entries == []


def test_one_stamp_is_enough_where_there_is_one() -> None:
    """Looking on would cost as much as the stamp; what lies behind it wakes whoever reads."""
    entries = [entry(2, 1), entry(4, 7_000_000_001), entry(4, 8_000_000_001)]
    assert take_sent_stamps(lambda *_: (b"", entries.pop(0), socket.MSG_ERRQUEUE, None), one=True) == [7_000_000_001]
    assert entries == [entry(4, 8_000_000_001)]


def test_a_flood_of_errors_does_not_keep_the_reader() -> None:
    calls = 0

    def recvmsg(*_: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        nonlocal calls
        calls += 1
        return b"", entry(2, 1), socket.MSG_ERRQUEUE, None

    assert take_sent_stamps(recvmsg) == []
    assert calls < 100


def test_tokens_of_one_segment_came_at_once_and_those_of_several_may_not_have(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read in one piece; only of the first is it known that its first token came with the last."""
    tokens = [chunk(content(word)) for word in "abc"] + [chunk(content("d", "stop")) + LAST_CHUNK]
    with raw_server((0.05, head() + b"".join(tokens))) as server:
        whole = ask(setup.client(server))
    sent = threading.Event()

    def script() -> Iterator[Step]:
        yield head()
        yield from tokens
        sent.set()

    with raw_server(script()) as server:  # type: ignore[arg-type]  # played once
        pieces = _read_late(setup, setup.client(server), sent, monkeypatch)
    assert (whole.events, whole.first_low_ns) == (4, 0)
    assert pieces.events == 4
    assert pieces.merged_events == 3
    assert 0 < pieces.first_low_ns < pieces.first_ns


def _read_late(setup: Setup, client: Client, sent: threading.Event, monkeypatch: pytest.MonkeyPatch) -> RequestRecord:
    """Ask, and let the loop stand still until all of the answer was sent."""

    def late(read: Callable[..., None]) -> Callable[..., None]:
        def reading(*reader: Connection) -> None:
            assert sent.wait(20)
            time.sleep(0.02)  # loopback may hand the last segment over a moment later
            read(*reader)

        return reading

    monkeypatch.setattr(Connection, "_on_first", late(Connection._on_first))
    if (native := setup.decoder.native) is not None:
        native._watcher.callback = late(native.poll)
    return ask(client)
