"""The messages between master and workers, ours and Locust's, and the shape that the data of each must have.

Ours carry aggregates only, nothing per request. Locust's handlers take what comes and raise where it is something else,
which ends their listener. So whatever comes over the port is held against these types first: a handler sees well-formed
data, or nothing. Frames come from anybody who reaches the port; reading them raises nothing but Malformed.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from tokenswarm.profile.environment import RUN_TOKEN_CHARS_MAX

Word = Annotated[str, msgspec.Meta(max_length=200)]
Sentence = Annotated[str, msgspec.Meta(max_length=2000)]
Token = Annotated[str, msgspec.Meta(max_length=RUN_TOKEN_CHARS_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Number = int | float
UserCounts = dict[Word, Count]

ROWS_INFLATED_MAX = 64 * 1024 * 1024
"""Bytes that one message of rows may hold once inflated: a worker packs 512 KiB and one row, a bomb holds gigabytes."""


class ToMaster(enum.StrEnum):
    HELLO = "tokenswarm-hello"
    PREPARED = "tokenswarm-prepared"
    PROGRESS = "tokenswarm-progress"
    FAILED = "tokenswarm-failed"
    REPORT = "tokenswarm-report"  # an encoded Snapshot
    TROUBLE = "tokenswarm-trouble"  # something fails, the load goes on
    LEAVING = "tokenswarm-leaving"  # why it drains now and leaves the run
    ROWS = "tokenswarm-rows"  # rows of requests.jsonl after the load
    DONE = "tokenswarm-done"  # all that this worker has to say


class ToWorker(enum.StrEnum):
    RUN = "tokenswarm-run"
    PHASE = "tokenswarm-phase"
    DRAIN = "tokenswarm-drain"
    ACK = "tokenswarm-ack"  # rows arrived, send more
    REFUSED = "tokenswarm-refused"


class _Hello(msgspec.Struct):
    version: Word
    token: Token
    host: Word
    pid: Count


class _Prepared(msgspec.Struct):
    dataset: dict[str, Any]
    reader: Literal["native", "python", ""] = ""


class _Progress(msgspec.Struct):
    text: Sentence


class _Failed(msgspec.Struct):
    code: int
    sentence: Sentence


class _Rows(msgspec.Struct):
    seq: Count
    data: bytes  # compressed by zlib


class _Done(msgspec.Struct):
    rows: Count
    seq: Count


class _Leaving(msgspec.Struct):
    sentence: Sentence


class _Run(msgspec.Struct):
    run_id: Word
    profile: Any
    index: Count
    count: Count
    spool: bytes | None = None


class _Course(msgspec.Struct):
    lead_s: Number  # before the window
    length_s: Number  # of it
    rate: list[Number]  # arrivals a second: one, or from and to


class _Phase(msgspec.Struct):
    stage: Count
    phase: Word
    course: _Course | None = None  # of an open loop, where a stage begins


class _Drain(msgspec.Struct):
    bound_s: Number


class _Ack(msgspec.Struct):
    seq: Count
    written: bool = True


class _Refused(msgspec.Struct):
    sentence: Sentence


class _StatsEntry(msgspec.Struct):
    """A row of Locust's own table, as StatsEntry.serialize writes it."""

    name: str
    method: str | None
    last_request_timestamp: Number | None
    start_time: Number
    num_requests: Count
    num_none_requests: Count
    num_failures: Count
    total_response_time: Number
    max_response_time: Number
    min_response_time: Number | None
    total_content_length: Number
    response_times: dict[Number, Count]
    num_reqs_per_sec: dict[int, Count]
    num_fail_per_sec: dict[int, Count]


class _StatsError(msgspec.Struct):
    method: str | None
    name: str
    error: str
    occurrences: Count
    first_seen: Number | None = None
    last_seen: Number | None = None


class _Stats(msgspec.Struct):
    stats: list[_StatsEntry]
    stats_total: _StatsEntry
    errors: dict[str, _StatsError]
    user_classes_count: UserCounts
    user_count: Count


class _Heartbeat(msgspec.Struct):
    state: Literal["ready", "spawning", "running", "cleanup", "stopping", "stopped"]
    current_cpu_usage: Number
    current_memory_usage: Number


class _Spawned(msgspec.Struct):
    user_classes_count: UserCounts
    user_count: Count


class _Logs(msgspec.Struct):
    worker_id: Word
    logs: list[str]


class _Exception(msgspec.Struct):
    msg: str
    traceback: str


class _Index(msgspec.Struct):
    index: int


class _Spawn(msgspec.Struct):
    timestamp: Number
    user_classes_count: UserCounts
    host: str | None
    stop_timeout: Number | None
    parsed_options: dict[str, Any]


class _Users(msgspec.Struct):
    user_count: Count


class _UserClass(msgspec.Struct):
    user_class_name: str


FROM_WORKER: dict[str, Any] = {
    ToMaster.HELLO.value: _Hello,
    ToMaster.PREPARED.value: _Prepared,
    ToMaster.PROGRESS.value: _Progress,
    ToMaster.FAILED.value: _Failed,
    ToMaster.REPORT.value: bytes,
    ToMaster.TROUBLE.value: _Failed,
    ToMaster.LEAVING.value: _Leaving,
    ToMaster.ROWS.value: _Rows,
    ToMaster.DONE.value: _Done,
    "client_ready": Word,
    "client_stopped": None,
    "quit": None,
    "heartbeat": _Heartbeat,
    "stats": _Stats,
    "spawning": None,
    "spawning_complete": _Spawned,
    "logs": _Logs,
    "exception": _Exception,
}
"""What a worker may say, by type; Locust's `locustfile` (send me your source) is not among it."""

FROM_MASTER: dict[str, Any] = {
    ToWorker.RUN.value: _Run,
    ToWorker.PHASE.value: _Phase,
    ToWorker.DRAIN.value: _Drain,
    ToWorker.ACK.value: _Ack,
    ToWorker.REFUSED.value: _Refused,
    "ack": _Index | None,
    "spawn": _Spawn,
    "stop": None,
    "quit": None,
    "reconnect": None,
    "heartbeat": None,
    "update_user_class": _UserClass,
    "spawning_complete": _Users,
}
"""What a master may say, by type."""

ID_CHARS_MAX = 300

_MESSAGE = msgspec.msgpack.Decoder(tuple[str, Any, str | None])
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, LookupError, OverflowError, RecursionError)


class Malformed(Exception):
    """Frames that are no message; str() says what they are, `sender` is the id they came from, as far as it is one."""

    def __init__(self, sender: str, what: str) -> None:
        super().__init__(what)
        self.sender = sender


class Heard(NamedTuple):
    """A well-formed message."""

    kind: str
    data: Any
    node_id: str


def from_worker(frames: list[bytes], more: Collection[str] = ()) -> Heard:
    """The message in the frames of a ROUTER socket, its node id being the sender's. Raises Malformed.

    `more`: types beyond ours and Locust's, of a locustfile's own; their data may have any shape.
    """
    sender = ascii(frames[0].decode("utf-8", "replace"))[1:-1][:ID_CHARS_MAX]
    if len(frames) != 2:
        raise Malformed(sender, f"{len(frames)} frames, where a message has 2")
    heard = _read(sender, frames[1], FROM_WORKER, more)
    if frames[0] != heard.node_id.encode("utf-8", "replace"):
        raise Malformed(sender, f"a message {heard.kind!r} under another's id")
    return heard


def from_master(frames: list[bytes], more: Collection[str] = ()) -> Heard:
    """The message in the frames of a worker's DEALER socket. Raises Malformed."""
    if len(frames) != 1:
        raise Malformed("", f"{len(frames)} frames, where a message has 1")
    return _read("", frames[0], FROM_MASTER, more)


def _read(sender: str, frame: bytes, shapes: dict[str, Any], more: Collection[str]) -> Heard:
    try:
        kind, data, node_id = _MESSAGE.decode(frame)
    except _UNREADABLE:
        raise Malformed(sender, f"{len(frame)} bytes that are no message") from None
    if kind not in shapes and kind not in more:
        raise Malformed(sender, f"a message of the unknown type {kind[:40]!a}")
    try:
        msgspec.convert(data, shapes.get(kind, Any), builtin_types=(bytes,))  # a text is none
    except _UNREADABLE as error:
        raise Malformed(sender, f"a message {kind!r} of another shape ({ascii(str(error))[1:-1][:200]})") from None
    return Heard(kind, data, node_id or "")
