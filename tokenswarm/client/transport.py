"""One HTTP/1.1 connection over gevent. Every receive is stamped here, before anything else is done with the bytes.

A hub watcher reads (no greenlet switch a read); on Linux the stamp is the kernel's (SO_TIMESTAMPNS), turned into the
monotonic clock at the read, so a step of the wall clock does not matter. The send has a stamp of the same clock, from
the socket's error queue (SO_TIMESTAMPING), so that what is measured between them is the kernel's on both ends. TLS runs
over memory buffers on the same reads, so it has the same stamps. HTTP framing is httptools' (llhttp): half a
microsecond a chunk.
"""

from __future__ import annotations

import _socket
import socket as stdlib_socket
import ssl
from collections.abc import Callable
from typing import Any

import msgspec
from gevent import socket
from gevent.hub import Hub, get_hub

from tokenswarm.client.broken import broken, client_bug, over_tls, refused_early
from tokenswarm.client.response import Response
from tokenswarm.client.stamps import (
    STAMP_THIS,
    ClockPair,
    Sent,
    ask_for_sent_stamps,
    ask_for_stamps,
    cant_stamp,
    segments_in,
    take_sent_stamps,
    unpack_timespec,
)
from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.profile.target import Tls, check_url

Hub.NOT_ERROR = (*Hub.NOT_ERROR, KeyboardInterrupt)  # who waits is told in a sentence, and not by gevent before

READ_BYTES = 16_384  # below malloc's mmap threshold: a larger buffer costs a page fault a read
PAUSE_BYTES = 4 << 20  # undecoded bytes of one stream beyond which reading waits for the decoder
STAMP_BYTES = 32  # of ancillary data: one stamp, and no room for the kernel to tell it twice
TAIL_BYTES = 1024  # of a request beyond WHOLE_BYTES: sent last and by itself, so that there is one stamp
WHOLE_BYTES = 32_768  # a request up to here goes out with one call
READABLE = 1  # libev's EV_READ
STALL_NS = (
    50_000_000  # a loop that has not looked for so long stood still: `polled_ns` is 20 to 30 ms ago in a free one
)
NO_DESCRIPTORS = "this machine has no file descriptors left; raise the hard limit (`ulimit -Hn`), or use more workers"
_CLOSED = ""  # the end of a connection that nobody has to be told of


Address = tuple[Any, ...]  # a row of getaddrinfo: family, kind, protocol, canonical name, address


class Target(msgspec.Struct):
    """Where requests go: a base URL taken apart, its TLS context, and the addresses its name has.

    Connections take the addresses in `turn`; those in `avoided` (until a moment, ns) failed lately and come last.
    """

    url: str
    host: str
    port: int
    base_path: str
    tls: ssl.SSLContext | None
    addresses: list[Address] = []
    turn: int = 0
    avoided: dict[Any, int] = {}

    def in_turn(self, now_ns: int) -> list[Address]:
        """The addresses in the order in which the next connection tries them.

        Only those of the first family take turns: the other family of a name is another way to the same server.
        """
        family, avoided = self.addresses[0][0], self.avoided
        able = [a for a in self.addresses if a[0] == family and avoided.get(a[4], 0) <= now_ns]
        start, self.turn = self.turn % max(1, len(able)), self.turn + 1
        return able[start:] + able[:start] + [a for a in self.addresses if a not in able]

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        return host if self.port == default else f"{host}:{self.port}"


def make_target(url: str, tls: Tls) -> Target:
    """Take a base URL apart and load the certificates once (35 ms if done for each connection)."""
    parts = check_url(url)
    context = None
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.set_alpn_protocols(["http/1.1"])
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    port = parts.port or (443 if context else 80)
    return Target(url=url, host=parts.hostname or "", port=port, base_path=parts.path.rstrip("/"), tls=context)


class Connection:
    """One open connection. `send`, then `receive` until it calls back; then it may be used again if `reusable`."""

    __slots__ = (
        "_done",
        "_full",
        "_in",
        "_io",
        "_out",
        "_paused",
        "_recvmsg",
        "_response",
        "_segments",
        "_stamp_owed",
        "_tls",
        "connect_ns",
        "sent",
        "sock",
        "stamp",
        "stamps_sends",
        "used",
    )

    clocks = ClockPair()
    polled_ns = 0  # what a read finds came after this moment: the loop has looked since (set by the probes' timer)

    def __init__(self, sock: Any, tls: ssl.SSLObject | None, bio: tuple[Any, Any], connect_ns: int) -> None:
        # gevent's own socket has watchers for each direction; nobody here needs them once it is connected.
        self.sock = _socket.socket(fileno=sock.detach())
        self.sock.setblocking(False)
        self._tls = tls
        self._in, self._out = bio
        self._io: Any = None  # of whoever reads here: not of the reader in C
        self._recvmsg = self.sock.recvmsg
        self._segments: int | None = None  # with data that had come before the request was sent
        self._stamp_owed = False
        self.sent = Sent(0, 0, 0)  # when the last request left; may become surer until its answer has ended
        self._response: Response | None = None
        self._done: Callable[[], None] | None = None
        self._full: Callable[[], None] | None = None
        self._paused = False
        self.connect_ns = connect_ns
        self.used = False
        self.stamp = "kernel" if ask_for_stamps(self.sock) else "user"
        self.stamps_sends = self.stamp == "kernel" and ask_for_sent_stamps(self.sock)

    def send(self, data: bytes, timeout_s: float) -> None:
        """Write all bytes; `sent` says when the last one left. Raises TransportError."""
        self.used, self.sent = True, Sent(0, 0, 0)
        try:
            if self._tls is not None:
                self._tls.write(data)
                data = self._out.read()
            if self.stamps_sends:
                self._segments = segments_in(self.sock)
            cut = len(data) - TAIL_BYTES if self.stamps_sends and len(data) > WHOLE_BYTES else 0
            if cut:
                self._send_all(data[:cut], timeout_s)
                data = data[cut:]
            before_ns = monotonic_ns()
            self._stamp_owed = self.stamps_sends and self._send_stamped(data, timeout_s)
            if not self._stamp_owed:
                self._send_all(data, timeout_s)
            self.sent = Sent(before_ns, before_ns, monotonic_ns())
        except OSError as error:
            raise broken(error, "sending the request", self._last_words()) from None
        self._take_stamp(self.sent.high_ns)

    def _send_stamped(self, data: bytes, timeout_s: float) -> bool:
        """Send all of `data` so that the kernel stamps its last byte. False: it went out without, or must yet."""
        try:
            try:
                done = self.sock.sendmsg([data], STAMP_THIS)
            except BlockingIOError:  # full of what went before; nothing of ours can be in the error queue yet
                socket.wait_write(self.sock.fileno(), timeout=timeout_s)
                done = self.sock.sendmsg([data], STAMP_THIS)
        except BlockingIOError:
            return False
        except OSError as error:
            if not cant_stamp(error):
                raise
            self.stamps_sends = False
            return False
        if done == len(data):
            return True
        take_sent_stamps(self._recvmsg)  # of a part; left there it would keep whoever waits for the socket spinning
        self.stamps_sends = False  # a connection so narrow would do it again
        self._send_all(data[done:], timeout_s)
        return True

    def _send_all(self, data: bytes, timeout_s: float) -> None:
        rest, until_ns = memoryview(data), monotonic_ns() + int(timeout_s * NS_PER_S)
        while rest:
            try:
                rest = rest[self.sock.send(rest) :]
            except BlockingIOError:
                left_s = (until_ns - monotonic_ns()) / NS_PER_S
                if left_s <= 0:
                    raise TimeoutError("timed out") from None
                socket.wait_write(self.sock.fileno(), timeout=left_s)

    def _take_stamp(self, latest_ns: int) -> None:
        """Read when the request was sent, if the kernel has said so by now."""
        if not self._stamp_owed:
            return
        stamps = take_sent_stamps(self._recvmsg, one=True)
        if not stamps:
            return
        self._stamp_owed = False
        if self.stamps_sends:
            self.sent = self.clocks.place_sent(stamps[0], self.sent.low_ns, latest_ns)

    def receive(self, response: Response, done: Callable[[], None], full: Callable[[], None]) -> None:
        """Read into `response` from the hub. There `done()` is called once when it has ended, and `full()` each time
        that reading pauses until `resume`, because too much waits to be drained."""
        self._response, self._done, self._full = response, done, full
        if self._io is None:
            self._io = get_hub().loop.io(self.sock.fileno(), READABLE)
        self._io.start(self._on_first)

    def resume(self) -> None:
        """Go on reading after the decoder caught up."""
        if self._paused and self._response is not None:
            self._paused = False
            self._io.start(self._on_readable)

    def stop(self) -> None:
        """Read no more for this exchange."""
        if self._io is not None:
            self._io.stop()
        self._response = self._done = self._full = None
        self._paused = False

    def close(self) -> None:
        self.stop()
        if self._io is not None:
            self._io.close()
        del self._recvmsg  # it would keep the descriptor open
        self.sock.close()

    @property
    def encrypted(self) -> bool:
        return self._tls is not None

    @property
    def idle_alive(self) -> bool:
        """Nothing to read and not closed: a kept connection that may be used again."""
        try:
            data = self.sock.recv(READ_BYTES, stdlib_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data or self._tls is None:
            return False  # closed, or bytes that nobody asked for
        self._in.write(data)
        try:
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return True  # a session ticket
        except ssl.SSLError:
            return False
        return False

    def _on_first(self) -> None:
        """The first read of an answer: it may hold all of it, so what is known of when its bytes came is kept."""
        response, io = self._response, self._io
        self._on_readable()
        if response is None or not response.reads:
            return
        if io.active:
            io.callback = self._on_readable
        response.first_low_ns = self.first_low_ns(response.reads[0][0])

    def first_low_ns(self, first_ns: int, low_ns: int | None = None) -> int:
        """No byte of the first read of an answer, just made and stamped `first_ns`, came before this (nor `low_ns`)."""
        one = self._segments is not None and segments_in(self.sock) == self._segments + 1
        return first_ns if one else min(first_ns, max(self.sent.low_ns, self.polled_ns if low_ns is None else low_ns))

    @classmethod
    def came_after_ns(cls, floor_ns: int, now_ns: int) -> int:
        """Of a read at `now_ns` that has no stamp: the moment behind which it came, where the loop stood still since,
        so that nobody knows better; else 0."""
        return max(cls.polled_ns, floor_ns) if 0 < cls.polled_ns < now_ns - STALL_NS else 0

    def on_nothing(self) -> None:
        """Woken, and nothing to read: the error queue woke us, and would again and again until it is empty."""
        if self._stamp_owed:
            self._take_stamp(monotonic_ns())
        else:
            take_sent_stamps(self._recvmsg)

    def settle(self, reads: int) -> bool:
        """The answer has ended: take the stamp of its request if it is here only now. True where each of its reads
        held one segment, so that nothing came earlier than its read says."""
        self._take_stamp(monotonic_ns())
        if self._segments is None:
            return False
        segments = segments_in(self.sock)
        return segments is not None and segments - self._segments == reads

    def _on_readable(self) -> None:
        # The hot path: runs in the hub for every read of every stream. No switch, no JSON, no timer.
        response = self._response
        if response is None:
            self._io.stop()
            return
        try:
            data, ancillary, _, _ = self._recvmsg(READ_BYTES, STAMP_BYTES)
            recv_ns = now_ns = monotonic_ns()
            if ancillary:
                clocks = self.clocks
                seconds, nanoseconds = unpack_timespec(ancillary[0][2])
                stamp_ns = seconds * 1_000_000_000 + nanoseconds
                recv_ns = stamp_ns - clocks.offset_ns
                if (
                    not clocks.low_ns <= realtime_ns() - now_ns <= clocks.high_ns
                    or not response.last_read_ns <= recv_ns <= now_ns
                    or response.last_read_ns < clocks.set_ns
                ):
                    recv_ns, sure = clocks.place(stamp_ns, response.last_read_ns, now_ns, self.polled_ns)
                    if not sure:
                        response.unsure += ((response.last_read_ns, now_ns),)
            elif low_ns := self.came_after_ns(response.last_read_ns, now_ns):
                response.unsure += ((low_ns, now_ns),)
            if self._tls is not None:
                self._on_records(response, data, recv_ns, now_ns)
            elif not data:
                response.end_of_stream(recv_ns)
                self._finish()
            elif response.feed(data, recv_ns, now_ns - recv_ns):
                self._finish()
            elif response.pending_bytes > PAUSE_BYTES:
                self._pause()
        except BlockingIOError:
            self.on_nothing()
        except OSError as error:
            response.error = broken(error, "reading the answer")
            self._finish()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """A bug of ours ends this answer, at once and by name, and no other."""
        if self._response is not None:
            self._response.error = client_bug(error)
        self._finish()

    def _on_records(self, response: Response, data: bytes, recv_ns: int, now_ns: int) -> None:
        """The same over TLS: what was said is taken first, then how the connection ended, which may share a read."""
        plain, end = self._decrypt(data) if data else (b"", _CLOSED)
        over = response.feed(plain, recv_ns, now_ns - recv_ns) if plain else False
        if end is not None:
            response.end_of_stream(recv_ns, end or None)
            over = True
        if over:
            self._finish()
        elif response.pending_bytes > PAUSE_BYTES:
            self._pause()

    def _pause(self) -> None:
        self._paused = True
        self._io.stop()
        if self._full is not None:
            self._full()

    def _finish(self) -> None:
        done = self._done
        self.stop()
        if done is not None:
            done()

    def _decrypt(self, data: bytes) -> tuple[bytes, str | None]:
        """What the records of one read say, and how they end the connection: None (they don't), "" (close_notify) or
        a sentence."""
        assert self._tls is not None
        self._in.write(data)
        plain: list[bytes] = []
        end: str | None = _CLOSED
        try:
            while piece := self._tls.read(65_536):
                plain.append(piece)
        except ssl.SSLWantReadError:
            end = None
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            end = over_tls(error)
        return b"".join(plain), end

    def _last_words(self) -> str:
        """Why the server would hear no more, if it said so before it hung up."""
        try:
            data = self.sock.recv(READ_BYTES, stdlib_socket.MSG_DONTWAIT)
        except OSError:
            return ""
        plain, end = self._decrypt(data) if data and self._tls is not None else (data, "")
        return end or refused_early(plain)
