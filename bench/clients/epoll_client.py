"""The floor: `select.epoll`, `recv`, a stamp and a count of events a read. No HTTP, no JSON: nobody could use it."""

from __future__ import annotations

import json
import select
import socket
import time
from array import array

from bench.clients.measure import TICK_S, Options, Tally, options

END = b"0\r\n\r\n"


class Stream:
    """One user's connection and what came on it."""

    def __init__(self, chosen: Options) -> None:
        self.sock = socket.create_connection(("127.0.0.1", chosen.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_ns = 0
        self.stamps = array("q")
        self.tail = b""  # the end may be cut in two


def main() -> None:
    chosen = options()
    body = json.dumps(chosen.body)
    request = f"POST {chosen.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    token = b'content":"1' if "chat" in chosen.path else b'text":"1'  # its text is a time, 1... ns since 1970
    poll = select.epoll()
    waiting = [Stream(chosen) for _ in range(chosen.streams)]
    streams = {stream.sock.fileno(): stream for stream in waiting}
    waiting.reverse()
    tally = Tally(chosen)
    tick_at_s = 0.0
    while waiting or tally.open:
        elapsed_s = tally.elapsed_s()
        while waiting and chosen.start_s(chosen.streams - len(waiting)) <= elapsed_s:
            stream = waiting.pop()
            poll.register(stream.sock.fileno(), select.EPOLLIN)
            _send(stream, request, tally)
        if elapsed_s >= tick_at_s:
            tally.tick()
            tick_at_s = elapsed_s + TICK_S
        for fd, _ in poll.poll(0.001 if waiting else TICK_S):
            stream = streams[fd]
            data = stream.sock.recv(16_384)
            now_ns = time.perf_counter_ns()
            events = data.count(token)
            if events:
                stream.stamps.append(now_ns)
                tally.events += events
            ended = not data or (stream.tail + data).endswith(END)
            stream.tail = data[-4:]
            if ended:
                tally.open -= 1
                tally.errors += not data
                tally.stream(stream.sent_ns, stream.stamps)
                if data and tally.more(1):
                    _send(stream, request, tally)
                else:
                    poll.unregister(fd)
    tally.report()


def _send(stream: Stream, request: bytes, tally: Tally) -> None:
    tally.open += 1
    stream.stamps, stream.tail = array("q"), b""
    stream.sent_ns = time.perf_counter_ns()
    stream.sock.sendall(request)


if __name__ == "__main__":
    main()
