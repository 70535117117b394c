"""What _reader.c offers to native.py; its comments say what the values are."""

from collections.abc import Callable
from typing import Any

Clocks = tuple[int, int, int, int]
"""offset_ns, low_ns, high_ns, set_ns of stamps.ClockPair."""

class Reader:
    def __init__(self, place: Callable[[Any, int, int, int, int], tuple[int, *Clocks]], /) -> None: ...
    def fileno(self) -> int: ...
    def open(
        self, fd: int, key: object, floor_ns: int, pause_max: int, offset_ns: int, low_ns: int, high_ns: int,
        set_ns: int, /
    ) -> None: ...  # fmt: skip
    def close(self, fd: int, /) -> None: ...
    def watch(self, fd: int, on: bool, /) -> None: ...
    def drain(self) -> list[tuple[Any, int, int, int]]: ...
    def fetch(self, fd: int, raw: bool, /) -> bytes: ...
    def body(self, fd: int, length: int, event_max: int, /) -> int: ...
    def split(self, fd: int, shape: bytes, breaks: int, tail_max: int, /) -> None: ...
    def take(
        self, fd: int, /
    ) -> tuple[
        bytes,
        list[tuple[int, bytes]] | None,
        list[tuple[int, bytes]] | None,
        list[tuple[int, int]] | None,
        bytes | None,
        int,
        int,
        int,
        int,
        int,
    ]: ...
    def lags(self) -> tuple[list[tuple[int, int]], int, int, int, int, int, int, int, int]: ...
