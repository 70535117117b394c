"""When streams are decoded: in bounded slices of the hub, one a loop iteration, so that reading never waits long.

Every `SWEEP_S` the sweep queues the open streams, so that memory stays bounded, live counters move and time-outs are
checked; every third time is enough for one whose events come as stamps, unless its time may be up. A stream that has
ended is queued at once and its greenlet woken when it is decoded. There is no timer a request and no greenlet switch a
read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from gevent.hub import get_hub

from tokenswarm.client.native import NativeReader
from tokenswarm.clock import NS_PER_S, monotonic_ns

SLICE_READS = 32  # of one stream; about 0.2 ms of work: the price a waiting read may pay
SLICE_NS = 100_000  # a slice goes on with another stream if it took no longer so far
SWEEP_S = 0.25
REST_NS = int(2.8 * SWEEP_S * NS_PER_S)
"""How long a stream of which no time-out can be over is left alone: every third sweep finds it, late or early."""


class Stream(Protocol):
    """What the decoder needs to know of an exchange."""

    ended: bool
    queued: bool
    due_ns: int  # when the sweep is to queue it again

    def decode(self, reads_max: int) -> bool:
        """Decode at most so many reads; True when none are left."""
        ...

    def check_time(self, now_ns: int, rest_ns: int) -> None:
        """End the stream if its time is up; else it is due in `rest_ns`, or as soon as its time may be up."""
        ...

    def wake(self) -> None:
        """It has ended and is decoded: go on with the request."""
        ...


class Decoder:
    """One a worker process. Owns no stream: exchanges come and go with `open` and `wake`. `native`: the reader in C,
    which reads them where there is one."""

    def __init__(self, on_crash: Callable[[], None], native: NativeReader | None = None) -> None:
        loop = get_hub().loop
        self.native = native
        self._streams: set[Stream] = set()
        self._queue: deque[Stream] = deque()
        self._check = loop.check()  # runs after each poll: exactly one slice an iteration, reads come first
        self._idle = loop.idle()  # while it is active the poll does not block
        self._sweep = loop.timer(SWEEP_S, SWEEP_S)
        self._armed = False
        self._on_crash = on_crash
        self._sweep.start(self._on_sweep)

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, stream: Stream) -> None:
        self._streams.add(stream)

    def forget(self, stream: Stream) -> None:
        """Its greenlet is gone: never wake it."""
        self._streams.discard(stream)

    def queue(self, stream: Stream) -> None:
        """Decode it soon; called when a stream ends and by the sweep."""
        if stream.queued:
            return
        stream.queued = True
        self._queue.append(stream)
        if not self._armed:
            self._armed = True
            self._check.start(self._on_check)
            self._idle.start(_nothing)

    def streams(self) -> list[Stream]:
        """The open streams, at this moment."""
        return list(self._streams)

    def count_lags(self) -> None:
        """Move the lags of all reads so far into the instrument: what the reader in C counted, it tells only here."""
        if self.native is not None:
            self.native.count_lags()

    def close(self) -> None:
        self.count_lags()
        for watcher in (self._sweep, self._check, self._idle):
            watcher.stop()
            watcher.close()
        if self.native is not None:
            self.native.close()

    def _on_check(self) -> None:
        until_ns = monotonic_ns() + SLICE_NS
        for _ in range(len(self._queue)):
            self._decode_next()
            if monotonic_ns() > until_ns:
                break
        if not self._queue:
            self._armed = False
            self._check.stop()
            self._idle.stop()

    def _decode_next(self) -> None:
        stream = self._queue.popleft()
        stream.queued = False
        try:
            done = stream.decode(SLICE_READS)
        except BaseException:
            self._on_crash()  # a bug must end the run, not hang the streams behind it
            raise
        if not done:
            self.queue(stream)
            return
        stream.check_time(monotonic_ns(), REST_NS)  # only now: a token that waits to be decoded is no silence
        if stream.ended and stream in self._streams:
            self._streams.discard(stream)
            stream.wake()

    def _on_sweep(self) -> None:
        now_ns = monotonic_ns()
        for stream in self._streams:
            if stream.due_ns <= now_ns:
                self.queue(stream)
        self.count_lags()


def _nothing() -> None:
    """An idle watcher needs a callback."""
