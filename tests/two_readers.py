"""One answer, read step by step by one of the two readers, without a server: what came, and with which of the reads."""

from __future__ import annotations

import select
import socket
import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import gevent
from exchanges import SAMPLING, Setup
from raw_server import CLOSE, RESET, Step

from tokenswarm.client.exchange import Exchange
from tokenswarm.client.sending import Client
from tokenswarm.client.shape import Shape
from tokenswarm.client.transport import READ_BYTES, Connection
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines import Delta
from tokenswarm.engines.failure import clean_line
from tokenswarm.measure.timeline import Timeline

PIECE_BYTES = READ_BYTES // 4  # what a socket hands out in one read, whatever its buffers look like


def slices(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]


class Play:
    """Reads what `say` sends, at once. `told` is everything that a user could see of it."""

    def __init__(
        self, client: Client, *, keep_text: bool = False, choices: int = 1, pair: tuple[Any, Any] | None = None
    ) -> None:
        ours, self._peer = pair or socket.socketpair()
        self._native = client.native
        self.connection = Connection(gevent.socket.socket(fileno=ours.detach()), None, (None, None), 0)
        self.timeline = Timeline(keep_text=keep_text, choices=choices)
        self.exchange = Exchange(client, self.connection, self.timeline)
        self.moments: list[int] = []  # one behind each read
        self.ends = 0
        self.timeline.sent_ns = self.exchange.response.last_read_ns = monotonic_ns()
        self.exchange.reading.start(self._ended, self._full)
        if self._native is None:
            self.connection._io.stop()  # nobody but `read` reads

    def _ended(self) -> None:
        self.ends += 1
        self.exchange.ended = True

    def _full(self) -> None:
        """Somebody should decode: `say` does."""

    def arrived(self) -> None:
        """Wait for what was sent: on a busy machine even loopback hands it over a moment later."""
        sock = self.connection.sock
        assert sock.fileno() < 0 or select.select([sock], [], [], 10)[0]

    def read(self) -> None:
        if self._native is not None:
            self._native.poll()
        else:
            self.connection._on_readable()
        self.moments.append(monotonic_ns())

    def say(self, step: Step, *, decode: bool = True) -> None:
        if self.exchange.ended:
            return
        if isinstance(step, bytes):
            for piece in slices(step):
                self._peer.sendall(piece)
                self.arrived()
                self.read()
                if decode:
                    self.decode()
        elif step in (CLOSE, RESET):
            if step == RESET:
                self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._peer.close()
            self.arrived()
            self.read()

    def decode(self) -> None:
        for _ in range(100_000):
            if self.exchange.decode(32):
                return
        raise AssertionError("it is never done")

    def told(self) -> dict[str, Any]:
        """End it as the client would; stamps as numbers of the reads."""
        self.decode()
        exchange, response = self.exchange, self.exchange.response
        exchange.reading.stop()
        self.decode()
        ended = exchange.ended and exchange.failure is None
        outcome, sentence, kind = exchange.conclude() if exchange.ended else (None, "", "")
        timeline = self.timeline
        record = timeline.finish(
            outcome or exchange.timeline.judge()[0], id="", stage=0, phase="", conversation="", turn=0, error=sentence
        )
        seen = {
            "outcome": outcome,
            "error": clean_line(sentence),
            "kind": kind,
            "stamps": self._reads(record.token_stamps_ns),
            "moments": self._reads(
                (record.first_answer_ns, record.first_event_ns, record.last_event_ns, record.last_ns, timeline.over_ns)
            ),
            "head": self._reads((response.headers_ns,)),
            "last read": self._reads((response.last_read_ns,)) if response.complete else None,
            "record": (record.finish_reason, record.output_tokens, record.token_source, record.prompt_tokens),
            "counts": (record.events, record.merged_events, record.reasoning_tokens, record.tokens_told, record.engine),
            "gap tokens": record.gap_tokens,
            "reads": (timeline.reads, exchange.reading.bytes_received),
            "ends": (self.ends, ended, response.complete, response.closed_by_peer, response.trailing),
            "kept": response.complete and response.keep_alive,
            "text": record.text,
        }
        self.close()
        return seen

    def _reads(self, stamps: Sequence[int]) -> list[int]:
        return [bisect_left(self.moments, stamp) if stamp else -1 for stamp in stamps]

    def close(self) -> None:
        self.exchange.reading.stop()
        self.connection.close()
        self._peer.close()


def play(client: Client, steps: Sequence[Step], *, lazily: bool = False, **options: Any) -> dict[str, Any]:
    """What comes of an answer of these steps; `lazily`: decoded in the end alone."""
    playing = Play(client, **options)
    for step in steps:
        playing.say(step, decode=not lazily)
    return playing.told()


def clients(setups: Sequence[Setup], **options: Any) -> list[Client]:
    return [setup.client(1, keep_text=False, **options) for setup in setups]


__all__ = ["SAMPLING", "Delta", "Play", "clients", "play", "slices"]


def same(pair: list[Client], steps: tuple[Step, ...] | list[Step], **options: Any) -> dict[str, Any]:
    """What both tell of these steps; they must tell the same."""
    python, native = (play(client, steps, **options) for client in pair)
    differing = {name: (python[name], native[name]) for name in python if python[name] != native[name]}
    assert not differing, steps
    return native


def shaped(client: Client) -> Shape | None:
    assert client.shapes is not None
    return client.shapes.newest
