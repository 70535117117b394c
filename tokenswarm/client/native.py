"""The reader in C (_reader.c) behind one watcher of the hub: its epoll set is readable when any stream is, or a clock.

What C can't take for plain comes here as news of a stream: its head, what it can't unframe, its end. See `Reading`.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable

from gevent.hub import get_hub

from tokenswarm.client.broken import broken, client_bug
from tokenswarm.client.collecting import TICKS, WAKES, Collecting, Seen
from tokenswarm.client.reading import NOTHING, TAIL_BYTES, Pieces, Read, Reads, longer
from tokenswarm.client.response import Response
from tokenswarm.client.shape import Shape
from tokenswarm.client.timer import KernelTimer
from tokenswarm.client.transport import PAUSE_BYTES, READABLE, Connection
from tokenswarm.client.which_reader import reader_name
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Instrument

# News, as in _reader.c.
HEAD_CAME, RAW_CAME, PIECES_CAME, IS_FULL, HAS_ENDED, HAS_CLOSED, HAS_FAILED, CHUNK_BROKEN, HEAD_ENDED, WOKE_EMPTY = (
    1 << bit for bit in range(10)
)
EAGER = 8  # how often a stream is decoded at once, so that its shape is known early

_CHUNKED, _UNTIL_CLOSE = -1, -2


class NativeReader:
    """One a worker process."""

    def __init__(self, instrument: Instrument, on_crash: Callable[[], None]) -> None:
        from tokenswarm.client import _reader  # not everywhere: open_native

        self.reader = _reader.Reader(self._place)
        self.instrument = instrument
        self._on_crash = on_crash
        self.collecting = Collecting()
        self._wakes = self._left = WAKES
        self._seen, self._looked_ns = [0] * 5, monotonic_ns()
        self._timer = KernelTimer(self._on_ready)
        self._watcher = get_hub().loop.io(self.reader.fileno(), READABLE)
        self._watcher.start(self._on_ready)

    def reading(
        self, connection: Connection, response: Response, event_bytes_max: int, expected: Shape | None
    ) -> NativeReading:
        return NativeReading(self, connection, response, event_bytes_max, expected)

    def _on_ready(self) -> None:
        self.poll()
        self._left -= 1
        if self._left <= 0:
            self._look()

    def _look(self) -> None:
        """Look at the pace; from now on wait for the clock, or for arrivals."""
        before_ns, now_ns = self.collecting.period_ns, monotonic_ns()
        self.count_lags()
        if self._timer.works:
            self.collecting.look(now_ns, Seen(self._wakes, now_ns - self._looked_ns, *self._seen))
        self._seen, self._looked_ns = [0] * 5, now_ns
        period_ns = self.collecting.period_ns
        self._wakes = self._left = TICKS if period_ns else WAKES
        if period_ns != before_ns:
            self._timer.every(period_ns)
            if not period_ns:
                self._watcher.start(self._on_ready)
            elif not before_ns:
                self._watcher.stop()

    def poll(self) -> None:
        """Read what there is to read."""
        try:
            for reading, news, recv_ns, low_ns in self.reader.drain():
                try:
                    reading.on_news(news, recv_ns, low_ns)
                except Exception as error:
                    reading.fail(error)
        except BaseException:
            self._on_crash()  # a bug must end the run, not hang the streams
            raise

    def count_lags(self) -> None:
        """Move the lags of all reads so far into the instrument, and what they say of the pace to what was seen."""
        counts, n, sum_ns, min_ns, max_ns, *pace = self.reader.lags()
        self._seen = [before + more for before, more in zip(self._seen, (n, *pace), strict=True)]
        if n:
            lags = Sketch()
            lags.counts.update(dict(counts))
            lags.n, lags.zero = n, n - sum(lags.counts.values())
            lags.sum, lags.min, lags.max = sum_ns / NS_PER_S, min_ns / NS_PER_S, max_ns / NS_PER_S
            self.instrument.rx_lag.merge(lags)
            self.instrument.rx_lag_ns_max = max(self.instrument.rx_lag_ns_max, max_ns)

    def close(self) -> None:
        self._timer.close()
        self._watcher.stop()
        self._watcher.close()

    def clocks(self) -> tuple[int, int, int, int]:
        clocks = Connection.clocks
        return clocks.offset_ns, clocks.low_ns, clocks.high_ns, clocks.set_ns

    def _place(
        self, reading: NativeReading, stamp_ns: int, floor_ns: int, low_ns: int, now_ns: int
    ) -> tuple[int, int, int, int, int]:
        if not stamp_ns:  # there is none
            if from_ns := Connection.came_after_ns(floor_ns, now_ns):
                reading.unsure(from_ns, now_ns)
            return now_ns, *self.clocks()
        at_ns, sure = Connection.clocks.place(stamp_ns, floor_ns, now_ns, low_ns)
        if not sure:
            reading.unsure(floor_ns, at_ns)
        return at_ns, *self.clocks()


class NativeReading:
    """An answer that C reads, on a connection without TLS."""

    __slots__ = (
        "_connection",
        "_done",
        "_eager",
        "_event_bytes_max",
        "_expected",
        "_fd",
        "_full",
        "_native",
        "_over",
        "_paused",
        "_reader",
        "_response",
        "_waiting",
        "bytes_received",
        "can_split",
        "lag_ns_max",
        "reads",
        "shape",
        "splitting",
        "tail",
    )

    def __init__(
        self,
        native: NativeReader,
        connection: Connection,
        response: Response,
        event_bytes_max: int,
        expected: Shape | None,
    ) -> None:
        """`expected`: the shape that the events will have, if they are as those of other answers."""
        self._event_bytes_max = event_bytes_max
        self._expected = expected
        self._native = native
        self._reader = native.reader
        self._fd: int = connection.sock.fileno()
        self._connection = connection
        self._response = response
        self._done: Callable[[], None] | None = None
        self._full: Callable[[], None] | None = None
        self._paused = self._over = False
        self._eager = EAGER
        self._waiting: tuple[list[Read], list[bytes | array[int]]] | None = None  # reads and pieces to be drained
        self.reads = self.bytes_received = self.lag_ns_max = 0
        self.shape: Shape | None = None
        self.tail: bytes | None = b""
        self.can_split = self.splitting = False  # not before a body whose framing is plain

    def start(self, done: Callable[[], None], full: Callable[[], None]) -> None:
        self._done, self._full = done, full
        self._reader.open(self._fd, self, self._response.last_read_ns, PAUSE_BYTES, *self._native.clocks())

    def drain(self) -> tuple[Reads, Pieces]:
        if self._done is not None:
            self._take()
            if self._paused and not self._over:
                self._paused = False
                self._reader.watch(self._fd, True)
        waiting, self._waiting = self._waiting, None
        return waiting or NOTHING

    def split(self, shape: Shape) -> None:
        self._reader.split(self._fd, shape.pattern, shape.breaks, TAIL_BYTES if shape.keeps_tail else 0)
        self.shape, self.splitting = shape, True

    def stop(self) -> None:
        if self._done is None:
            return
        self._take()
        self._reader.close(self._fd)
        self._done = self._full = None
        self.can_split = False

    def _take(self) -> None:
        response = self._response
        stamps, odd, pieces, lows, tail, reads, size, lag_ns, last_ns, trailing = self._reader.take(self._fd)
        self.reads += reads
        self.bytes_received += size
        self.lag_ns_max = max(self.lag_ns_max, lag_ns)
        response.last_read_ns = max(response.last_read_ns, last_ns)  # a close may have come behind it
        response.trailing = response.trailing or bool(trailing)
        if stamps:
            events = array("q", stamps)
            if odd is None and self._waiting is None:
                self._waiting = [(events[-1], 0, 1)], [events]
            else:
                self._add_events(events, odd or ())
        if lows is not None:
            response.lows = response.lows or array("q")
            for pair in lows:
                response.lows.extend(pair)
        if pieces is not None:
            self.splitting = False
            for recv_ns, piece in pieces:
                self._add(recv_ns, piece)
        if self.tail is not None:
            read = (tail,) if tail is not None else [piece for _, piece in (*(odd or ()), *(pieces or ()))]
            self.tail = longer(self.tail, (*read, *response.pieces))
        if response.reads:
            raw, plain = response.drain()
            reads_so_far, pieces_so_far = self._waiting = self._waiting or ([], [])
            before = len(pieces_so_far)
            pieces_so_far += plain
            reads_so_far += [(recv_ns, 0, before + upto) for recv_ns, _, upto in raw]

    def unsure(self, low_ns: int, at_ns: int) -> None:
        """The read stamped `at_ns` may have come as early as `low_ns`."""
        self._response.unsure += ((low_ns, at_ns),)

    def _add(self, recv_ns: int, piece: bytes | array[int]) -> None:
        reads, pieces = self._waiting = self._waiting or ([], [])
        pieces.append(piece)
        reads.append((recv_ns, 0, len(pieces)))

    def _add_events(self, stamps: array[int], odd: list[tuple[int, bytes]] | tuple[()]) -> None:
        at = 0
        for place, line in odd:
            if place > at:
                self._add(stamps[place - 1], stamps[at:place])
            self._add(stamps[place], line)
            at = place + 1
        if at < len(stamps):
            self._add(stamps[-1], stamps[at:] if at else stamps)

    # -- from the hub --------------------------------------------------------------------------------------------

    def on_news(self, news: int, recv_ns: int, low_ns: int) -> None:
        """Take what C could not take for plain. `recv_ns`: stamp of the read, or errno; nothing of it came before
        `low_ns`."""
        response, full = self._response, self._full
        if self._over or full is None:
            return
        if news == WOKE_EMPTY:
            self._connection.on_nothing()
            return
        if news & HEAD_CAME:
            response.first_low_ns = response.first_low_ns or self._connection.first_low_ns(recv_ns, low_ns)
            news = self._on_head(news, recv_ns)
        if news & RAW_CAME:
            self._on_raw(news, recv_ns)
        if self._over:
            return
        if news & HAS_ENDED:
            response.complete = True
            response.last_read_ns = recv_ns
            self._finish()
        elif news & HAS_CLOSED:
            response.end_of_stream(recv_ns)
            self._finish()
        elif news & HAS_FAILED:
            response.error = broken(OSError(recv_ns, os.strerror(recv_ns)), "reading the answer")
            self._finish()
        elif news & IS_FULL:
            self._paused = True
            full()
        elif news & PIECES_CAME and self._eager and self.can_split:
            self._eager -= 1
            full()

    def fail(self, error: Exception) -> None:
        """A bug of ours ends this answer, and no other."""
        self._response.error = client_bug(error)
        self._finish()

    def _on_head(self, news: int, recv_ns: int) -> int:
        """Parse the head, or as much as has come; returns the news of what stands behind it."""
        response, fd = self._response, self._fd
        if response.feed(self._reader.fetch(fd, False), recv_ns, 0):
            rest = self._reader.fetch(fd, True)
            response.trailing = response.trailing or (response.complete and bool(rest.strip(b"\r\n")))
            self._finish()
            return 0
        if not response.head_done and not news & HEAD_ENDED:
            return news & ~HEAD_CAME
        length = self._body_length() if news & HEAD_ENDED else None
        if length is None:  # more heads to come, or a body that only llhttp may judge
            return news & ~HEAD_CAME | RAW_CAME
        response.keep_alive = response.parser.should_keep_alive()
        response.release()
        self.can_split = True
        if self._expected is not None and 200 <= response.status < 300 and not response.content_encoding:
            self.split(self._expected)
        followed: int = self._reader.body(fd, length, self._event_bytes_max)
        return news & ~HEAD_CAME | followed

    def _body_length(self) -> int | None:
        """As `body` of C wants it; None where it is not plain."""
        response = self._response
        if not response.head_done:
            return None
        if not response.framing:
            return _UNTIL_CLOSE
        (name, value), *more = response.framing
        if more:
            return None
        if name == b"transfer-encoding":
            return _CHUNKED if value.strip().lower() == b"chunked" else None
        return int(value) if value.isdigit() and len(value) < 16 else None

    def _on_raw(self, news: int, recv_ns: int) -> None:
        response = self._response
        data = self._reader.fetch(self._fd, True)
        if response.parser is None:
            response.resume()
        if news & CHUNK_BROKEN:  # llhttp, which saw no body, is told of a chunk whose end is what came
            response.parser.feed_data(b"1\r\nx")
            response.pieces.pop()
        self.can_split = False
        if data and response.feed(data, recv_ns, 0):
            self._finish()
        elif response.pending_bytes > PAUSE_BYTES and not self._paused and self._full is not None:
            self._paused = True
            self._reader.watch(self._fd, False)
            self._full()

    def _finish(self) -> None:
        self._over = True
        self._reader.watch(self._fd, False)
        if self._done is not None:
            self._done()


def open_native(instrument: Instrument, on_crash: Callable[[], None], name: str | None = None) -> NativeReader | None:
    """The reader in C where this process has it, or where it is named."""
    return NativeReader(instrument, on_crash) if (name or reader_name()) == "native" else None
