"""Bytes to events, sans-IO: `sse` (WHATWG event streams) and `ndjson` (one JSON text a line).

Guarantee: after the same bytes the same events have come out, however the bytes were split into reads; an event comes
out with the read that completes it. Memory is bounded by `event_bytes_max` (plus the read that is being fed).
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from typing import Protocol

BOM = b"\xef\xbb\xbf"
LF = 0x0A
CR = 0x0D


class Oversize(Exception):
    """One event is larger than the limit. `events`: those that the same read completed before it.

    Size of an event: its data lines so far and the line being read, in bytes as sent
    without line ends. The framer is spent afterwards.
    """

    def __init__(self, event_bytes_max: int, events: list[bytes]) -> None:
        super().__init__(f"one event is larger than {event_bytes_max} bytes")
        self.events = events


class Framer(Protocol):
    """Feed it the body of one response, in order."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payload of every event that these bytes complete. Raises `Oversize`."""
        ...

    def finish(self) -> list[bytes]:
        """At the end of the body: return what a missing last line end held back (at most one event).

        WHATWG discards an SSE event without its blank line, but servers exist that end so, and the count of tokens
        must not depend on it. If such a last event is no event after all, the body was cut: it is truncated.
        """
        ...


def sse(event_bytes_max: int) -> Framer:
    """Return a framer of a WHATWG event stream: payloads are the `data` values of an event, joined by LF."""
    return _Sse(event_bytes_max)


def ndjson(event_bytes_max: int) -> Framer:
    """Return a framer of newline-delimited JSON: payloads are lines, stripped; empty ones are skipped."""
    return _Ndjson(event_bytes_max)


class _Sse:
    __slots__ = ("_after_cr", "_clean", "_event", "_event_bytes", "_event_bytes_max", "_line", "_line_first", "_spent")

    def __init__(self, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._line = bytearray()  # the line being read
        self._event = bytearray()  # data values of the event being read, each with an LF behind
        self._event_bytes = 0  # bytes of its data lines, as sent
        self._after_cr = False  # the last byte was a CR: an LF right behind belongs to it
        self._line_first = True  # a BOM may stand in front
        self._clean = True  # between two events, with nothing held back
        self._spent = False

    def feed(self, data: bytes) -> list[bytes]:
        # What servers really send is whole events, `data: ...` LF LF; that shape needs no line by line. (Slices and
        # `int in bytes` instead of startswith and `bytes in bytes`: 0.4 µs an event instead of 0.7.)
        if (
            self._clean
            and data[:6] == b"data: "
            and data[-2:] == b"\n\n"
            and CR not in data
            and len(data) <= self._event_bytes_max
        ):
            payload = data[6:-2]
            if LF not in payload:
                self._line_first = False
                return [payload]
            payloads = payload.split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(payloads):  # else: comments, other fields, several lines an event
                self._line_first = False
                return payloads
        return self._feed(data)

    def finish(self) -> list[bytes]:
        events: list[bytes] = []
        if self._line:
            self._end_line(bytes(self._line), events)
            self._line.clear()
        self._end_line(b"", events)
        return events

    def _feed(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == LF:
                data = data[1:]
        if data:
            self._after_cr = data.endswith(b"\r")
            lines = data.splitlines()  # of bytes: at LF, CR and CRLF only, as WHATWG wants
            rest = lines.pop() if not data.endswith((b"\n", b"\r")) else b""
            for line in lines:
                if self._line:
                    self._check(len(line), events)
                    self._line += line
                    line = bytes(self._line)
                    self._line.clear()
                self._end_line(line, events)
            self._check(len(rest), events)
            self._line += rest
        self._clean = not (self._line or self._event)  # an LF after CR is a blank line at worst: no event there
        return events

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        self._check(len(line), events)
        if self._line_first:
            self._line_first = False
            line = line.removeprefix(BOM)
        if not line:
            if self._event:
                events.append(bytes(self._event[:-1]))
                self._event.clear()
                self._event_bytes = 0
        elif line.startswith(b"data:"):
            self._event += line[6:] if line.startswith(b"data: ") else line[5:]
            self._event += b"\n"
            self._event_bytes += len(line)
        elif line == b"data":
            self._event += b"\n"
            self._event_bytes += len(line)
        # Comments, event, id, retry and unknown fields mean nothing to a dialect: its data says what it is.

    def _check(self, more: int, events: list[bytes]) -> None:
        if self._spent or self._event_bytes + len(self._line) + more > self._event_bytes_max:
            self._spent = True
            self._clean = False
            self._line.clear()
            self._event.clear()
            raise Oversize(self._event_bytes_max, events)


class _Ndjson:
    __slots__ = ("_event_bytes_max", "_line", "_line_first", "_spent")

    def __init__(self, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._line = bytearray()  # the line being read
        self._line_first = True  # a BOM may stand in front
        self._spent = False

    def feed(self, data: bytes) -> list[bytes]:
        # A whole line, or several, in one read: what Ollama really sends.
        if not self._line and not self._line_first and data.endswith(b"\n") and len(data) <= self._event_bytes_max:
            return [payload for line in data.split(b"\n") if (payload := line.strip())]
        events: list[bytes] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._check(len(line), events)
            if self._line:
                self._line += line
                line = bytes(self._line)
                self._line.clear()
            self._end_line(line, events)
        self._check(len(rest), events)
        self._line += rest
        return events

    def finish(self) -> list[bytes]:
        events: list[bytes] = []
        self._end_line(bytes(self._line), events)
        self._line.clear()
        return events

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if self._line_first:
            self._line_first = False
            line = line.removeprefix(BOM)
        if payload := line.strip():
            events.append(payload)

    def _check(self, more: int, events: list[bytes]) -> None:
        if self._spent or len(self._line) + more > self._event_bytes_max:
            self._spent = True
            self._line_first = True  # keeps later reads off the fast path
            self._line.clear()
            raise Oversize(self._event_bytes_max, events)
