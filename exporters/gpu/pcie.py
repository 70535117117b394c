"""Bytes over PCIe. NVML's two counters have 32 bits: at full speed they turn over every 70 ms; once a second won't do.

A thread of its own reads them at least twice a turn. Where it came later than a turn of the fastest possible transfer
takes, the difference could be any of several: that piece is left out of the bytes, and of the seconds they cover. On an
H100 the two fields cost 0.5 ms a reading; a reading that costs more makes the thread rest longer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from exporters.gpu.nvml import GPU_LOST, LIBRARY_LOST, RESTING, Json, NvmlError, Session, number
from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns

DIRECTIONS = {197: "tx", 198: "rx"}
"""NVML_FI_DEV_PCIE_COUNT_TX_BYTES and …_RX_BYTES, seen from the GPU."""

TURN_BYTES = 2**32
LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""One lane, one direction, by generation: the line rate less its coding. Headers of packets are inside."""

HOPELESS = RESTING | GPU_LOST | LIBRARY_LOST
LINK_UNKNOWN = (5, 16)
LOOKS_A_TURN = 2.5
TICK_MAX_S = 0.25
REST = 4
"""A thread that would be busy for more than a fifth of its time looks less often."""


@dataclass
class _Link:
    """One GPU's counters."""

    bytes_per_s: float  # no transfer is faster
    raw: dict[int, int] = field(default_factory=dict)
    read_ns: int | None = None
    over: bool = False  # lost, or without such counters: not asked again in this session

    @property
    def turn_s(self) -> float:
        return TURN_BYTES / self.bytes_per_s


@dataclass
class Traffic:
    """Bytes by direction since the exporter began, and the time that they cover."""

    bytes: dict[str, int] = field(default_factory=dict)
    observed_ns: int = 0


class PcieWatch:
    """`start` and `stop` pair with the opening and closing of the session; what was counted outlives both."""

    def __init__(self, session: Session, clock: Clock = monotonic_ns) -> None:
        self.looks = self.look_ns = 0
        self._session = session
        self._clock = clock
        self._links: dict[int, _Link] = {}
        self._uuids: dict[int, str] = {}
        self._traffic: dict[str, Traffic] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, gpus: int) -> None:
        """Begin to read; `gpus`: how many there are."""
        self.attach(gpus)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="pcie", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End; False if the thread is stuck inside NVML, which must not be closed then."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(1.0)
            if self._thread.is_alive():
                return False
        self._thread = None
        return True

    def traffic(self, uuid: str) -> Traffic | None:
        """What went over the link of a GPU; None where its counters were never read twice."""
        return self._traffic.get(uuid)

    def attach(self, gpus: int) -> None:
        """Know the GPUs of a session that was opened; their counters may have begun again."""
        self._links, self._uuids = {}, {}
        for gpu in range(gpus):
            try:
                self._uuids[gpu] = str(self._session.ask(gpu, "uuid"))
                self._links[gpu] = _Link(self._fastest(gpu))
            except NvmlError:
                continue  # a lost one: the session will be opened again

    def _fastest(self, gpu: int) -> float:
        """Bytes a second that the link can carry at its best: when idle it falls back to less."""
        generation, width = map(float, LINK_UNKNOWN)
        try:
            link: Json = self._session.ask(gpu, "pcie_link_max")
            generation = number(link["generation"]) or generation
            width = number(link["width"]) or width
        except NvmlError as error:
            if error.name in GPU_LOST | LIBRARY_LOST:
                raise
        newest = max(LANE_BYTES_PER_S)
        return LANE_BYTES_PER_S.get(int(generation), LANE_BYTES_PER_S[newest]) * width

    @property
    def tick_s(self) -> float:
        """Time between two looks, by the fastest link."""
        turns = [link.turn_s for link in self._links.values() if not link.over]
        return min([TICK_MAX_S, *(turn_s / LOOKS_A_TURN for turn_s in turns)])

    def _run(self, stopping: threading.Event) -> None:
        while any(not link.over for link in self._links.values()):
            began_ns = self._clock()
            self.look()
            took_s = (self._clock() - began_ns) / NS_PER_S
            if stopping.wait(max(self.tick_s - took_s, REST * took_s)):
                return

    def look(self) -> None:
        """Read all links once."""
        began_ns = self._clock()
        for gpu, link in self._links.items():
            if not link.over:
                self._look(gpu, link)
        self.looks += 1
        self.look_ns += self._clock() - began_ns

    def _look(self, gpu: int, link: _Link) -> None:
        asked_ns = self._clock()
        try:
            told = self._session.fields(gpu, tuple(DIRECTIONS))
        except NvmlError as error:
            link.over, link.read_ns = error.name in HOPELESS, None
            return
        raw = dict(_counters(told))
        if not raw:
            link.over = all(isinstance(value, NvmlError) and value.name in HOPELESS for value in told.values())
            link.read_ns = None
            return
        if link.read_ns is not None and raw.keys() == link.raw.keys():
            steps = {DIRECTIONS[which]: (value - link.raw[which]) % TURN_BYTES for which, value in raw.items()}
            most = link.bytes_per_s * (self._clock() - link.read_ns) / NS_PER_S
            # More than a turn may have passed, or more came than can have: the counters began again.
            if max(steps.values()) <= most < TURN_BYTES:
                traffic = self._traffic.setdefault(self._uuids[gpu], Traffic())
                for direction, step in steps.items():
                    traffic.bytes[direction] = traffic.bytes.get(direction, 0) + step
                traffic.observed_ns += asked_ns - link.read_ns
        link.raw, link.read_ns = raw, asked_ns


def _counters(told: Mapping[int, float | NvmlError]) -> Iterator[tuple[int, int]]:
    for field_number, value in told.items():
        known = None if isinstance(value, NvmlError) else number(value)
        if known is not None:
            yield field_number, int(known)
