"""Somebody on the master's port, or in the master's place: bare ZeroMQ and msgpack, nothing of tokenswarm or Locust."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgpack
import zmq

HEARTBEAT = {"state": "ready", "current_cpu_usage": 1.0, "current_memory_usage": 1}


class Peer:
    """A DEALER with an id of its own, as Locust's workers are."""

    def __init__(self, port: int, identity: str = "") -> None:
        self.identity = identity or f"peer_{uuid.uuid4().hex}"
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self.identity.encode())
        self._socket.setsockopt(zmq.LINGER, 2000)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(f"tcp://127.0.0.1:{port}")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, kind: Any, data: Any = None, identity: Any = None) -> None:
        self.frames(msgpack.dumps((kind, data, identity or self.identity)))

    def frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def hello(self, version: str, token: str, host: str = "elsewhere") -> None:
        self.send("tokenswarm-hello", {"version": version, "token": token, "host": host, "pid": 4711})

    def receive(self, kind: str, seconds: float = 60) -> Any:
        """The data of the next message of a type; others are passed over. AssertionError where none comes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._socket.poll(int(left * 1000)):
                got, data, _ = msgpack.loads(self._socket.recv(), strict_map_key=False)
                if got == kind:
                    return data
        raise AssertionError(f"no {kind} came")


class Impostor:
    """A ROUTER in the master's place. `worker` is the id of whoever said something last."""

    def __init__(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.worker = b""
        self.kinds: list[str] = []  # of all messages that were read

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def receive(self, kind: str, seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._socket.poll(int(left * 1000)):
                self.worker, frame = self._socket.recv_multipart()
                got, data, _ = msgpack.loads(frame, strict_map_key=False)
                self.kinds.append(got)
                if got == kind:
                    return data
        raise AssertionError(f"no {kind} came")

    def send(self, kind: Any, data: Any = None) -> None:
        self.frames(msgpack.dumps((kind, data, self.worker.decode())))

    def frames(self, *frames: bytes) -> None:
        self._socket.send_multipart([self.worker, *frames])


def _packed(*fields: Any) -> bytes:
    return msgpack.dumps(fields)


def odd_frames(identity: str) -> list[tuple[bytes, ...]]:
    """Frames that are no message of the protocol, and messages of its types that hold something else."""
    deep = b"\x91" * 5000 + b"\xc0"
    wrong = [None, 0, -1, "", "x", [], {}, b"\xff", True, [[1]], {"a": {"b": []}}, {1: 2}, 1e308, float("nan"), 2**63]
    kinds = ["client_ready", "heartbeat", "stats", "spawning_complete", "logs", "exception", "locustfile", "ack"]
    kinds += [
        "spawn",
        "quit",
        "client_stopped",
        "spawning",
        "stop",
        "reconnect",
        "update_user_class",
        "x",
        "",
    ]
    kinds += ["tokenswarm-hello", "tokenswarm-prepared", "tokenswarm-report", "tokenswarm-rows", "tokenswarm-done"]
    kinds += ["tokenswarm-run", "tokenswarm-phase", "tokenswarm-drain", "tokenswarm-ack", "tokenswarm-refused"]
    date = {"__datetime__": True, "as_str": "never"}
    return [
        (b"",), (b"\x00",), (b"\xc1",), (b"not msgpack",), (b"\xff" * 40,), (deep,), (b"", b""), (b"a", b"b", b"c"),
        tuple(b"x" for _ in range(500)), (_packed(),), (_packed("client_ready"),), (_packed(1, 2, 3),),
        (_packed("quit", None, identity, "more"),), (_packed(None, None, None),), (_packed(["quit"], None, identity),),
        (_packed("quit", None, None),), (_packed("quit", None, "somebody else"),), (_packed("quit", None, 5),),
        (msgpack.dumps({"quit": 1}),), (_packed("quit", None, identity) + b"\x00",),
        (_packed("stats", date, identity),),
        (msgpack.dumps(("stats", {"stats": msgpack.ExtType(5, b"x")}, identity)),),
        (b"\x93\xa4quit\xc0\xa2\xff\xfe",),
        *((_packed(kind, data, identity),) for kind in kinds for data in wrong),
    ]  # fmt: skip
