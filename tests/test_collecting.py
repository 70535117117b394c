"""Reading by a clock: where it begins, where it ends, and that nothing is lost or told otherwise by it."""

from __future__ import annotations

import contextlib
import socket
import time
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gevent
import pytest
from exchanges import BUILT, stamping
from test_merged_reads import SHAPE, event
from test_readers import tcp_pair

from tokenswarm.client import collecting
from tokenswarm.client.collecting import PERIOD_MAX_NS, PERIOD_MIN_NS, TICKS, WAKES, Collecting, Seen
from tokenswarm.client.native import HAS_CLOSED, HEAD_CAME, NativeReader, open_native
from tokenswarm.client.stamps import ask_for_stamps
from tokenswarm.client.transport import Connection
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.measure.watched import Instrument

MS = 1_000_000
needs_c = pytest.mark.skipif(not BUILT, reason="only the reader in C collects")


def seen(
    *, wakes: int = WAKES, per_s: float = 20_000, reads: int = 600, gap_ms: float = 20, near: int = 0, ends: int = 5,
    alike: int | None = None,
) -> Seen:  # fmt: skip
    alike = reads if alike is None else alike
    return Seen(wakes, int(wakes / per_s * NS_PER_S), reads, alike, near, ends, int(alike * gap_ms * MS))


def ticked(**said: Any) -> Seen:
    return seen(**{"wakes": TICKS, "per_s": 3_200, **said})


def test_it_collects_for_a_small_part_of_the_gaps() -> None:
    for gap_ms in (13, 20, 26, 500):
        pace = Collecting()
        pace.look(NS_PER_S, seen(gap_ms=gap_ms))
        assert PERIOD_MIN_NS <= pace.period_ns <= min(PERIOD_MAX_NS, gap_ms * MS / 64)
        assert pace.period_ns > 0.9 * min(PERIOD_MAX_NS, gap_ms * MS / 64)


@pytest.mark.parametrize(
    "said",
    [
        {"per_s": 2_000},  # woken seldom enough
        {"gap_ms": 12},  # a part of such a gap that is small enough saves nothing
        {"near": 2},  # tokens come in bursts, or without a stamp of the kernel's
        {"alike": 0},  # nobody knows which of the events are tokens
        {"alike": 200},
        {"ends": 100},  # short answers: each end would be late
    ],
)
def test_it_does_not_where_it_would_cost_more_than_it_saves(said: dict[str, Any]) -> None:
    pace = Collecting()
    for number in range(1, 50):
        pace.look(number * NS_PER_S, seen(**said))
        assert pace.period_ns == 0


def test_it_stops_when_the_rate_falls_and_begins_again_when_it_rises() -> None:
    pace = Collecting()
    for number in range(1, 20):
        pace.look(number * NS_PER_S, seen())
        assert pace.period_ns
        pace.look(number * NS_PER_S + 20 * MS, ticked())
        assert pace.period_ns
        pace.look(number * NS_PER_S + 40 * MS, ticked(reads=30))
        assert pace.period_ns == 0


def test_where_tokens_merge_it_stays_away_for_longer_each_time() -> None:
    pace = Collecting()
    now_ns, aways = 10**12, []
    for _ in range(10):
        pace.look(now_ns, seen())
        assert pace.period_ns
        pace.look(now_ns + 20 * MS, ticked(near=30))
        assert pace.period_ns == 0
        left_ns = now_ns = now_ns + 20 * MS
        while not pace.period_ns:
            now_ns += 100 * MS
            pace.look(now_ns, seen())
        aways.append((now_ns - left_ns) / NS_PER_S)
        pace.look(now_ns + 10 * MS, ticked(reads=0, alike=0))
    assert aways[0] >= 2
    assert all(later >= min(before * 1.9, 60) for before, later in pairwise(aways))
    assert aways[-1] < 61


def test_a_token_that_came_near_by_chance_ends_nothing() -> None:
    pace = Collecting()
    pace.look(NS_PER_S, seen())
    for _ in range(100):
        pace.look(NS_PER_S, ticked(near=1))
    assert pace.period_ns


def test_the_period_follows_the_gaps() -> None:
    pace = Collecting()
    pace.look(NS_PER_S, seen(gap_ms=30))
    wide_ns = pace.period_ns
    pace.look(NS_PER_S, ticked(gap_ms=29))
    pace.look(NS_PER_S, ticked(gap_ms=14))
    assert 0 < pace.period_ns <= 14 * MS / 64 < wide_ns
    pace.look(NS_PER_S, ticked(gap_ms=5))
    assert pace.period_ns == 0


# -- with the reader, the hub and a kernel that stamps ------------------------------------------------------------


class Stream:
    """One stream of the reader, as NativeReading is to it; the server's end is ours as well."""

    def __init__(self, native: NativeReader, pair: tuple[socket.socket, socket.socket], stamped: bool) -> None:
        self.reader, (self.ours, self.peer) = native.reader, pair
        self.ours.setblocking(False)
        if stamped:
            assert ask_for_stamps(self.ours)
        self.fd, self.closed, self.sent = self.ours.fileno(), False, 0
        self.reader.open(self.fd, self, monotonic_ns(), 1 << 22, *native.clocks())
        self.peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        self.stamps: list[int] = []

    def on_news(self, news: int, _recv_ns: int, _low_ns: int) -> None:
        if news & HEAD_CAME:
            self.reader.fetch(self.fd, False)
            self.reader.split(self.fd, SHAPE, 2, 0)
            self.reader.body(self.fd, -2, 1 << 20)
        self.closed = self.closed or bool(news & HAS_CLOSED)

    def unsure(self, _low_ns: int, _at_ns: int) -> None:
        """A clock that was set."""

    def send(self, *together: int) -> None:
        """So many events in a segment each."""
        for events in together or (1,):
            self.peer.sendall(event() * events)
            self.sent += events

    def take(self) -> list[int]:
        stamps, odd, pieces, *_ = self.reader.take(self.fd)
        assert (odd, pieces) == (None, None)
        self.stamps += array("q", stamps)
        return self.stamps

    def close(self) -> None:
        self.reader.close(self.fd)
        self.ours.close()
        self.peer.close()


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeReader]:
    monkeypatch.setattr(collecting, "WAKES_PER_S", 20)  # a busy machine has no thousands
    monkeypatch.setattr(collecting, "READS_PER_S", 10)
    monkeypatch.setattr("tokenswarm.client.native.WAKES", 32)
    Connection.clocks.look()
    stamping()
    reader = open_native(Instrument(), lambda: None, "native")
    assert reader is not None
    with contextlib.closing(reader):
        yield reader


def turn(streams: list[Stream], *burst: int) -> None:
    """Each stream in turn, so that none gets its next token within some tens of ms; but every fourth gets a burst."""
    for number, stream in enumerate(streams):
        stream.send(*(() if number % 4 else burst))
        gevent.sleep(0.001)


def collected(native: NativeReader) -> list[Stream]:
    """So many streams out of step that they are read by the clock."""
    streams = [Stream(native, tcp_pair(), True) for _ in range(40)]
    for _ in range(40):
        turn(streams)
        if native.collecting.period_ns:
            return streams
    raise AssertionError("they are still read at each arrival")


@needs_c
@pytest.mark.parametrize("burst", [(2,), (1, 1)], ids=["one segment", "two segments"])
def test_many_wake_ups_make_it_collect_and_bursts_end_that(native: NativeReader, burst: tuple[int, ...]) -> None:
    streams = collected(native)
    assert not native._watcher.active
    turn(streams)
    for _ in range(40):
        turn(streams, *burst)
        if not native.collecting.period_ns:
            break
    assert native.collecting.period_ns == 0
    assert native._watcher.active
    for stream in streams:
        stream.peer.close()
    with gevent.Timeout(20):
        while not all(stream.closed for stream in streams):
            gevent.sleep(0.001)
    for stream in streams:
        assert len(stream.take()) == stream.sent, "nothing is lost on the way in or out"
        assert stream.stamps == sorted(stream.stamps)
        stream.close()


@needs_c
def test_an_end_is_read_by_the_next_tick(native: NativeReader) -> None:
    streams = collected(native)
    polls, poll = 0, native.poll

    def counting() -> None:
        nonlocal polls
        polls += 1
        poll()

    native.poll = counting  # type: ignore[method-assign]  # counted, and done
    for stream in streams[:10]:
        assert native.collecting.period_ns
        stream.peer.close()
        time.sleep(0.005)  # loopback may hand it over a moment later
        before = polls
        with gevent.Timeout(20):
            while not stream.closed:
                gevent.sleep(0)
        assert polls - before <= 2
        turn(streams[10:])
    for stream in streams:
        stream.close()


@needs_c
def test_without_stamps_of_the_kernel_it_reads_at_each_arrival(native: NativeReader) -> None:
    streams = [Stream(native, tcp_pair(), False) for _ in range(20)]
    looks: list[Seen] = []
    look = native.collecting.look
    native.collecting.look = lambda now_ns, said: (looks.append(said), look(now_ns, said))[1]  # type: ignore[method-assign]
    for _ in range(20):
        turn(streams)
        assert native.collecting.period_ns == 0
    assert sum(said.alike for said in looks) > 100
    assert all(said.near == said.alike for said in looks[1:])
    for stream in streams:
        stream.close()


@needs_c
def test_when_nothing_comes_any_more_the_clock_stops(native: NativeReader) -> None:
    streams = collected(native)
    with gevent.Timeout(20):
        while native.collecting.period_ns:
            gevent.sleep(0.01)
    assert native._watcher.active
    streams[0].send()
    with gevent.Timeout(20):
        while len(streams[0].take()) < streams[0].sent:
            gevent.sleep(0.001)
    for stream in streams:
        stream.close()
