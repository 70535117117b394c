"""How one answer is read: the seam between the reader in C (native.py) and the one in Python (transport.py).

Both hand over the same reads in the same order, with the same stamps; which_reader.py says which of them reads. The one
in Python reads what C does not: TLS, single pages, and everything where C is not there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

from tokenswarm.client.response import Response
from tokenswarm.client.shape import Shape
from tokenswarm.client.transport import Connection
from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.snapshot import Instrument

Read = tuple[int, int, int]
"""(stamp, lag, pieces so far), ns."""

Reads = Sequence[Read]
Pieces = Sequence["bytes | array[int]"]
"""Bytes of the body; or the stamps of events that have the stream's shape, which nobody needs to look at."""

TAIL_BYTES = 16_384  # some forty events of Ollama's

NOTHING: tuple[Reads, Pieces] = ((), ())  # what most streams have to drain most of the time


class Reading(Protocol):
    """One answer while it arrives."""

    reads: int  # so far
    lag_ns_max: int  # the largest distance of a read from its stamp
    shape: Shape | None  # of the events that came as stamps alone
    can_split: bool  # whether it is of use to call `split`
    splitting: bool  # whether events of the shape come as stamps now
    tail: bytes | None  # the last bytes of the body that was drained; None: nobody wants them

    @property
    def bytes_received(self) -> int: ...

    def start(self, done: Callable[[], None], full: Callable[[], None]) -> None:
        """Read from now on. From the hub `done()` is called once, when the answer has ended; `full()` each time that
        somebody should drain soon."""
        ...

    def drain(self) -> tuple[Reads, Pieces]:
        """Hand over what came since the last call."""
        ...

    def split(self, shape: Shape) -> None:
        """What comes next begins an event; those of this shape are to come as stamps."""
        ...

    def stop(self) -> None:
        """Read no more. What came can still be drained."""
        ...


class PythonReading:
    """An answer that the connection itself reads.

    It has no look at all streams at once, so a read of several events hides whatever came since the read before.
    """

    __slots__ = ("_connection", "_instrument", "_response", "lag_ns_max", "reads", "shape", "tail")

    can_split = splitting = False

    def __init__(self, connection: Connection, response: Response, instrument: Instrument) -> None:
        self._connection = connection
        self._response = response
        self._instrument = instrument
        self.reads = self.lag_ns_max = 0
        self.shape: Shape | None = None
        self.tail: bytes | None = b""

    @property
    def bytes_received(self) -> int:
        return self._response.bytes_received

    def start(self, done: Callable[[], None], full: Callable[[], None]) -> None:
        self._connection.receive(self._response, done, full)

    def drain(self) -> tuple[Reads, Pieces]:
        reads, pieces = self._response.drain()
        self._connection.resume()
        if self.tail is not None:
            self.tail = longer(self.tail, pieces)
        if reads:
            add, instrument = self._instrument.rx_lag.add, self._instrument
            for _, lag_ns, _ in reads:
                add(lag_ns / NS_PER_S)
            self.lag_ns_max = max(self.lag_ns_max, max(reads, key=_lag)[1])
            instrument.rx_lag_ns_max = max(instrument.rx_lag_ns_max, self.lag_ns_max)
            self.reads += len(reads)
        return reads, pieces

    def split(self, shape: Shape) -> None:
        raise NotImplementedError("Python's reader takes no shapes")

    def stop(self) -> None:
        self._connection.stop()


def longer(tail: bytes, pieces: Pieces) -> bytes:
    """The last bytes of what came so far and these pieces of the body."""
    return (tail + b"".join(piece for piece in pieces if isinstance(piece, bytes)))[-TAIL_BYTES:]


def _lag(read: tuple[int, int, int]) -> int:
    return read[1]
