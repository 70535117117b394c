"""What a read of several events hides: none of them came before the look that still found nothing."""

from __future__ import annotations

import errno
import random
import socket
import struct
import sys
import time
from array import array
from itertools import groupby, pairwise
from typing import Any

import pytest
from exchanges import BUILT, Setup, stamping
from raw_server import CLOSE, LAST_CHUNK, RESET, chunk, content
from test_readers import tcp_pair
from two_readers import Play

from tokenswarm.client.native import HAS_FAILED, HEAD_CAME, HEAD_ENDED
from tokenswarm.client.stamps import ask_for_stamps
from tokenswarm.client.transport import READ_BYTES, Connection
from tokenswarm.clock import monotonic_ns

pytestmark = pytest.mark.skipif(not BUILT, reason="only the reader in C notes it")

SHAPE = b'=\x07\x00data: "' + b't\x03\x00"\n\n'
CLOCKS_NS = 100_000  # STACK_NS of _reader.c
READ_AT_ONCE = 256  # streams that one look tells of: BATCH of _reader.c
FEW = 64  # as there: streams that are read token by token where they are looked at late


def event(bytes_more: int = 0) -> bytes:
    return b'data: "a%s"\n\n' % (b"b" * bytes_more)


def a_reader(asked: list[object] | None = None) -> Any:
    """`asked`: of which streams a stamp was not plain."""
    from tokenswarm.client import _reader

    stamping()

    def place(key: object, stamp_ns: int, floor_ns: int, low_ns: int, now_ns: int) -> tuple[int, ...]:
        clocks = Connection.clocks
        if asked is not None:
            asked.append(key)
        at_ns, _ = clocks.place(stamp_ns, floor_ns, now_ns, low_ns)
        return at_ns, clocks.offset_ns, clocks.low_ns, clocks.high_ns, clocks.set_ns

    return _reader.Reader(place)


class Stream:
    """One open stream of a reader, what was sent on it and what is told of it."""

    def __init__(self, reader: Any, pair: tuple[socket.socket, socket.socket]) -> None:
        self.reader, (self.ours, self.peer) = reader, pair
        self.ours.setblocking(False)
        ask_for_stamps(self.ours)
        self.fd = self.ours.fileno()
        self.floor_ns = monotonic_ns()
        clocks = Connection.clocks
        now = clocks.offset_ns, clocks.low_ns, clocks.high_ns, clocks.set_ns
        reader.open(self.fd, self, self.floor_ns, 1 << 22, *now)
        self.unread: list[int] = []  # when the events were sent that no read has told of, at the latest
        self.told: list[tuple[int, int, int, int]] = []  # of reads: low (0: none), first sent, stamp, stamp before

    def begin(self) -> None:
        self.peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        arrived(self.ours)
        assert [row[:2] for row in self.reader.drain()] == [(self, HEAD_CAME | HEAD_ENDED)]
        self.take_body()

    def take_body(self) -> None:
        self.reader.fetch(self.fd, False)
        self.reader.split(self.fd, SHAPE, 2, 0)
        self.reader.body(self.fd, -2, 1 << 20)

    def send(self, events: int = 1, bytes_more: int = 0) -> None:
        for _ in range(events):
            self.peer.sendall(event(bytes_more))
            self.unread.append(monotonic_ns())

    def look(self) -> None:
        assert self.reader.drain() == []

    def note(self) -> None:
        """Hold what it tells of all reads against what was sent."""
        stamps, odd, pieces, lows, *_ = self.reader.take(self.fd)
        assert (odd, pieces) == (None, None)
        lows_of = {stamp: low for low, stamp in lows or ()}
        for stamp, shared in groupby(array("q", stamps)):
            first, events = self.unread[0], len(list(shared))
            del self.unread[:events]
            assert events > 1 or stamp not in lows_of
            self.told.append((lows_of.pop(stamp, 0), first, stamp, self.floor_ns))
            self.floor_ns = stamp
        assert lows_of == {}

    def close(self) -> None:
        self.reader.close(self.fd)
        self.ours.close()
        self.peer.close()


def arrived(sock: socket.socket) -> None:
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        try:
            if sock.recv(1, socket.MSG_PEEK):
                return
        except BlockingIOError:
            time.sleep(0.0002)
    raise AssertionError("it never came")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
@pytest.mark.parametrize("seed", range(4))
def test_nothing_of_a_read_came_before_what_it_says(seed: int) -> None:
    """Bursts of known moments; looks between them; pauses; more than one read takes; the truth lies within, always."""
    dice = random.Random(seed)
    stream = Stream(a_reader(), tcp_pair())
    stream.begin()
    for _ in range(150):
        match dice.randrange(9):
            case 0 | 1 | 2:
                stream.look()
            case 3 | 4:
                stream.send(dice.choice((1, 1, 2, 5)))
            case 5:
                time.sleep(dice.choice((0.0003, 0.001, 0.003)))
            case 6:  # more than a read's worth: what is left lies there while the reader looks
                stream.send(3, READ_BYTES // 2)
                stream.look()
            case 7:
                stream.reader.watch(stream.fd, False)
                stream.send(dice.choice((1, 2)))
                time.sleep(0.0005)
                stream.look()
                stream.reader.watch(stream.fd, True)
                if dice.random() < 0.5:
                    stream.look()
            case 8:  # what this is for: nothing, then a burst
                stream.look()
                time.sleep(0.002)
                stream.look()
                stream.send(2)
    time.sleep(0.05)
    for _ in range(9):
        stream.look()
    stream.note()
    stream.close()
    assert not stream.unread
    for low, first, stamp, before in stream.told:
        assert low <= first, "an event was sent before the moment that nothing came before"
        assert low == 0 or before < low < stamp, "no narrower than the read before says"
    assert sum(low > 0 for low, *_ in stream.told) > 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
@pytest.mark.parametrize("seed", range(4))
def test_segments_that_the_kernel_did_not_join_have_their_own_stamps(seed: int) -> None:
    """Events, whole and in halves, that wait together: whoever has a stamp alone came before the next was begun."""
    dice = random.Random(seed)
    stream = Stream(a_reader(), tcp_pair())
    stream.begin()
    apart = 0
    for _ in range(60):
        stream.look()
        if dice.random() < 0.5:  # acknowledged at once, which lets the kernel join what comes next
            stream.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, dice.randrange(2))
        begun = []
        for _ in range(dice.choice((2, 3, 5))):
            time.sleep(dice.choice((0.0, 0.0006)))
            text, cut = event(dice.choice((0, 30, 300))), dice.choice((0, 0, 9))
            begun.append(monotonic_ns())
            for half in (text[:cut], text[cut:]):
                if half:
                    time.sleep(0.0006 if half != text else 0.0)
                    stream.peer.sendall(half)
        time.sleep(0.0006)
        stream.look()
        stamps = array("q", stream.reader.take(stream.fd)[0])
        assert len(stamps) == len(begun)
        for number, (stamp, after) in enumerate(pairwise(stamps)):
            assert begun[number] - CLOCKS_NS < stamp
            if stamp != after:
                apart += 1
                assert stamp < begun[number + 1] + CLOCKS_NS, "it came before the next one was begun"
    stream.close()
    assert apart


def reads_of_three(changed_ns: int) -> int:
    """As how many reads three events are taken that waited, if the clocks are others from before them on."""
    stream, other = Stream(a_reader(), tcp_pair()), socket.socketpair()
    stream.begin()
    stream.send()
    arrived(stream.ours)
    stream.look()
    set_ns = monotonic_ns() if changed_ns else 0
    clocks = (Connection.clocks.offset_ns - changed_ns, -(1 << 62), 1 << 62, set_ns)
    stream.reader.open(other[0].fileno(), None, 0, 1 << 20, *clocks)
    stream.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)  # what is not acknowledged is not joined
    for _ in range(3):
        time.sleep(0.001)
        stream.send()
    time.sleep(0.001)
    stream.look()
    stamps = array("q", stream.reader.take(stream.fd)[0])
    stream.reader.close(other[0].fileno())
    stream.close()
    for sock in other:
        sock.close()
    return len(set(stamps[1:]))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
def test_where_the_clocks_changed_what_waits_is_one_read() -> None:
    """What came before the change and what came after it can't be told apart by stamps."""
    assert any(reads_of_three(0) == 3 for _ in range(50)), "a kernel that is busy acknowledges sooner, now and then"
    assert {reads_of_three(500_000) for _ in range(5)} == {1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
def test_who_is_late_with_many_streams_reads_each_of_them_once() -> None:
    """A call or two more for each token that waits would make it later still."""
    reader = a_reader()
    streams = [Stream(reader, tcp_pair()) for _ in range(FEW + 1)]
    for stream in streams:
        stream.begin()
        stream.send()
        arrived(stream.ours)
        stream.look()
    for _ in range(2):
        time.sleep(0.001)
        for stream in streams:
            stream.ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            stream.send()
    time.sleep(0.001)
    reader.drain()
    stamps = [array("q", reader.take(stream.fd)[0])[-2:] for stream in streams]
    assert [len(set(two)) for two in stamps] == [1] * len(streams)
    for stream in streams:
        stream.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
def test_what_waited_when_the_clock_was_set_is_asked_for_and_what_came_later_is_not() -> None:
    """Its stamp is of the clock before, and may well lie between the read before and now by the clock after."""
    asked: list[object] = []
    reader = a_reader(asked)
    waited, later = Stream(reader, tcp_pair()), Stream(reader, tcp_pair())
    for stream in (waited, later):
        stream.begin()
        stream.send()
        arrived(stream.ours)
        stream.look()
    asked.clear()
    waited.send()
    arrived(waited.ours)
    clocks, other = Connection.clocks, socket.socketpair()
    reader.open(other[0].fileno(), None, 0, 1 << 20, clocks.offset_ns, -(1 << 62), 1 << 62, monotonic_ns())
    time.sleep(0.001)
    waited.look()
    assert asked == [waited]
    reader.drain()
    time.sleep(0.001)
    reader.open(other[1].fileno(), None, 0, 1 << 20, clocks.offset_ns, -(1 << 62), 1 << 62, clocks.set_ns)
    later.send()
    arrived(later.ours)
    later.look()
    assert asked == [waited]
    for stream in (waited, later):
        stream.close()
    for sock in other:
        reader.close(sock.fileno())
        sock.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
@pytest.mark.parametrize("waiting", [0, 2])
def test_a_reset_is_one_however_late_it_is_found(waiting: int) -> None:
    """The kernel tells it once, then it says that the stream is over: so ends a whole answer that has no length."""
    stream = Stream(a_reader(), tcp_pair())
    stream.begin()
    stream.send()
    arrived(stream.ours)
    stream.look()
    stream.send(waiting)
    stream.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.peer.close()
    time.sleep(0.003)
    told = stream.reader.drain() or stream.reader.drain()
    assert [row[1:3] for row in told] == [(HAS_FAILED, errno.ECONNRESET)]
    assert len(array("q", stream.reader.take(stream.fd)[0])) == 1 + waiting
    stream.close()


FRAMINGS = {
    "chunks": (b"transfer-encoding: chunked", chunk, LAST_CHUNK),
    "length": (b"content-length: 9999", bytes, b""),
    "until the close": (b"connection: close", bytes, b""),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
@pytest.mark.parametrize("end", [CLOSE, RESET, None])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_both_readers_tell_the_same_of_what_was_left_waiting(framing: str, end: str | None) -> None:
    """Events in segments of their own, each looked at late; then how the answer ends, found late as well."""
    field, framed, last = FRAMINGS[framing]
    steps = [framed(content(word)) for word in ("a", "b", "c", "d", "e")]
    told, reads = [], []
    for setup in (Setup("python"), Setup("native")):
        playing = Play(setup.client(1, keep_text=False), pair=tcp_pair())
        playing.say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + field + b"\r\n\r\n" + steps[0])
        for some in (steps[1:3], steps[3:], [last or b": over\n\n"]):
            playing.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            for step in some:
                time.sleep(0.001)
                playing._peer.sendall(step)
            time.sleep(0.001)
            playing.read()
            playing.decode()
        if end is not None and not playing.exchange.ended:
            if end == RESET:
                playing._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            playing._peer.close()
            time.sleep(0.001)
            playing.read()
        said = playing.told()
        reads.append(said["reads"][0])
        told.append({name: said[name] for name in ("outcome", "error", "kind", "record", "ends", "kept")})
        assert said["counts"][0] == 5
        setup.close()
    assert told[0] == told[1]
    assert (told[0]["kind"] == "ConnectionResetError") == (end == RESET and framing != "chunks")
    assert reads[0] <= reads[1]


def test_a_look_that_could_not_tell_of_all_says_nothing_of_the_others() -> None:
    reader = a_reader()
    streams = [Stream(reader, socket.socketpair()) for _ in range(READ_AT_ONCE + 20)]
    for stream in streams:
        stream.peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(3):
        for told, *_ in reader.drain():
            told.take_body()
    for stream in streams:
        stream.send()
    time.sleep(0.002)
    reader.drain()
    left_out = [stream for stream in streams if not stream.reader.take(stream.fd)[0]]
    assert len(left_out) == 20
    time.sleep(0.002)
    for stream in left_out:
        stream.send()
    assert reader.drain() == []
    for stream in left_out:
        stream.note()
        (low, first, _, _), *more = stream.told
        assert (low <= first, more) == (True, [])
    for stream in streams:
        stream.close()


def test_the_first_read_of_an_answer_has_its_look_as_well() -> None:
    reader = a_reader()
    for looks in (False, True):
        stream = Stream(reader, socket.socketpair())
        time.sleep(0.002)
        looked_ns = monotonic_ns()
        if looks:
            assert reader.drain() == []
        time.sleep(0.002)
        sent_ns = monotonic_ns()
        stream.peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + event())
        ((told, news, _, low_ns),) = reader.drain()
        assert (told, news & HEAD_CAME) == (stream, HEAD_CAME)
        assert (looked_ns - 1_000_000 < low_ns < sent_ns) if looks else low_ns == 0
        stream.close()


def test_the_end_says_when_the_token_came_that_shares_its_read() -> None:
    """A chunked answer whose last event comes with the last chunk: one event, and something behind it."""
    reader = a_reader()
    stream = Stream(reader, socket.socketpair())
    stream.peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    reader.drain()
    reader.fetch(stream.fd, False)
    reader.split(stream.fd, SHAPE, 2, 0)
    reader.body(stream.fd, -1, 1 << 20)
    chunk = b"%x\r\n%s\r\n" % (len(event()), event())
    for last in (b"", b"0\r\n\r\n"):
        time.sleep(0.002)
        looked_ns = monotonic_ns()
        reader.drain()
        time.sleep(0.002)
        sent_ns = monotonic_ns()
        stream.peer.sendall(chunk + last)
        assert len(reader.drain()) == bool(last)
        lows = reader.take(stream.fd)[3]
        assert (lows is not None) == bool(last)
    assert looked_ns - 1_000_000 < lows[0][0] < sent_ns
    stream.close()


def test_an_open_stream_is_no_larger_for_it() -> None:
    """The row of a read of one event is its stamp alone."""
    stream = Stream(a_reader(), socket.socketpair())
    stream.begin()
    for _ in range(50):
        stream.look()
        time.sleep(0.0003)
        stream.send()
        assert stream.reader.drain() == []
        stamps, _, _, lows, *_ = stream.reader.take(stream.fd)
        assert (struct.calcsize("q"), lows) == (len(stamps), None)
        stream.unread.clear()
    stream.close()
