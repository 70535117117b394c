"""One streamed answer kept whole, with the stamp of every read: what `tokenswarm path` looks at. And many at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gevent
from gevent.event import Event

from tokenswarm.client.head import request_head
from tokenswarm.client.opening import open_connection
from tokenswarm.client.response import Response, TransportError
from tokenswarm.client.transport import Connection, Target
from tokenswarm.clock import monotonic_ns
from tokenswarm.measure.captured import Captured, End
from tokenswarm.record import Outcome

HEADERS_MAX, HEADER_CHARS = 64, 200


class _Headed(Response):
    """A response that keeps all its headers."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) < HEADERS_MAX:
            self.headers[name.lower().decode("latin-1")[:HEADER_CHARS]] = value.decode("latin-1")[:HEADER_CHARS]
        super().on_header(name, value)


def capture(
    target: Target, path: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float, leave_s: float = 0.0
) -> Captured:
    """POST, and everything that comes of it within `timeout_s`. With `leave_s`, leave after so long."""
    lines = {"content-type": "application/json", "connection": "close", **headers, "content-length": str(len(body))}
    response, sent_ns = _Headed(), monotonic_ns()
    said, end = "", "whole"
    try:
        connection = open_connection(target, min(timeout_s, 10.0))
    except TransportError as error:
        return Captured(end="none", said=error.sentence, sent_ns=sent_ns, done_ns=monotonic_ns())
    try:
        sent_ns = response.last_read_ns = monotonic_ns()
        connection.send(request_head(target, "POST", path, lines) + b"\r\n" + body, timeout_s)
        end = _await(connection, response, timeout_s, leave_s)
    except TransportError as error:
        response.error = error
    finally:
        connection.close()
    if response.error is not None:
        said, end = response.error.sentence, "silent" if response.error.outcome is Outcome.TIMEOUT else "broken"
    elif end == "silent":
        said = f"no end of the answer within {timeout_s:g} s"
    return _captured(response, end, said, sent_ns)  # type: ignore[arg-type]  # the words of `End`


def _await(connection: Connection, response: Response, timeout_s: float, leave_s: float) -> End:
    done = Event()
    connection.receive(response, done.set, done.set)
    if done.wait(leave_s or timeout_s):
        return "whole"
    return "left" if leave_s else "silent"


def _captured(response: _Headed, end: End, said: str, sent_ns: int) -> Captured:
    reads, pieces = response.drain()
    found, at = [], 0
    for recv_ns, _, upto in reads:
        data = b"".join(pieces[at:upto])
        at = upto
        if data:
            found.append((recv_ns, data))
    return Captured(
        end=end,
        said=said,
        status=response.status,
        content_type=response.content_type,
        headers=response.headers,
        sent_ns=sent_ns,
        head_ns=response.headers_ns,
        done_ns=response.last_read_ns if end == "whole" else monotonic_ns(),
        reads=tuple(found),
    )


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make all calls at once, each in a greenlet; their results in order. What one raises is raised."""
    tasks = [gevent.spawn(call) for call in calls]
    try:
        gevent.joinall(tasks, raise_error=True)
    finally:
        gevent.killall(tasks, block=False)
    return [task.value for task in tasks]


def pause(seconds: float) -> None:
    gevent.sleep(seconds)
