"""From NVML answers to readings, one `read()` a second, which blocks as long as NVML does.

Counters are kept in a `Tally`, so they never run backwards, whatever the driver does. A GPU that is lost is dropped at
once: everything about it vanishes but `gpu_up 0` and the XIDs it has reported, until it answers again.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from exporters.families import Readings, Tally
from exporters.gpu.nvml import GPU_LOST, LIBRARY_LOST, RESTING, SYSTEM, UNSUPPORTED, Json, NvmlError, Session, number
from exporters.gpu.pcie import Traffic
from exporters.gpu.table import ASKED_ONCE, FAMILIES, FIELDS, GPM_ROWS, ROWS, THROTTLE_BITS, Row, Source
from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns, realtime_ns

REOPEN_MAX_S = 30.0
"""A lost GPU makes us open NVML again, next time and then ever less often: opening can take seconds."""

ASK_AGAIN_S = 60.0
"""What a card does not support (or permit) is asked again this often, since MIG or ECC may have been switched."""

GAP_INTERVALS = 5
"""A longer silence of a GPU is a gap: its last utilization says nothing about it, so neither busy nor observed grow."""


@dataclass
class _Gpu:
    """What is remembered of a GPU while the session is open."""

    uuid: str = ""
    constants: dict[str, Json] = field(default_factory=dict)
    resting_until_ns: dict[str, int] = field(default_factory=dict)
    sampled_ns: int | None = None
    lost: bool = False


@dataclass(frozen=True)
class Sample:
    """One sample: its readings; every GPU that ever answered → whether it did now; why NVML can't be asked, or ""."""

    readings: Readings
    known: Mapping[str, bool]
    reason: str


STARTING = Sample(Readings(), {}, "STARTING")


class GpuReader:
    """Reads all GPUs of a session into Readings. `engine_pids` says which processes are the engine's."""

    def __init__(
        self,
        session: Session,
        interval_s: float,
        *,
        gpm: bool = False,
        engine_pids: Callable[[], Collection[int]] = tuple,
        pcie: Callable[[str], Traffic | None] = lambda _uuid: None,
        clock: Clock = monotonic_ns,
        wall: Clock = realtime_ns,
    ) -> None:
        self.reason = "STARTING"
        self.on_open: Callable[[int], None] = lambda _gpus: None
        self.on_close: Callable[[], bool] = lambda: True
        self._session = session
        self._rows = ROWS + (GPM_ROWS if gpm else ())
        self._gap_ns = int(GAP_INTERVALS * interval_s * NS_PER_S)
        self._engine_pids = engine_pids
        self._pcie = pcie
        self._clock = clock
        self._wall = wall
        self._host = socket.gethostname()
        self._gpus: list[_Gpu] = []
        self._system: dict[str, Json] = {}
        self._known: dict[str, bool] = {}
        self._opened = False  # close before opening again
        self._usable = False
        self._announce = False
        self._open_at_ns: int | None = clock()
        self._patience_s = 0.0
        self._answers: dict[str, Json] = {}
        self._answered, self._failed = 0, ""  # calls of a GPU in a sample, and the newest error (but UNSUPPORTED)
        self._tally = Tally()
        self._xids: dict[tuple[str, str], tuple[int, float]] = {}
        self._calls: Counter[str] = Counter()
        self._call_ns: Counter[str] = Counter()
        self._last_ns: dict[str, int] = {}
        self._errors: Counter[tuple[str, str]] = Counter()
        self._collects = 0
        self._success_s: float | None = None

    # The session: opening, losing, opening again.

    def read(self) -> Sample:
        """One sample of everything."""
        if self._open_at_ns is not None and self._clock() >= self._open_at_ns:
            self._reopen()
        readings = Readings()
        known = dict.fromkeys(self._known, False)
        strangers = 0
        for index, gpu in enumerate(self._gpus):
            part = self._read_gpu(index, gpu)
            if part is not None:
                readings.extend(part)
                known[gpu.uuid] = True
            elif not self._usable:  # the driver went away in between: what was read before is of the past, too
                readings, self._gpus = Readings(), []
                known = dict.fromkeys(known, False)
                break
            elif not gpu.uuid and len(known) < len(self._gpus):
                strangers += 1
                readings.add("tokenswarm_gpu_up", 0, f"index-{index}")
        if self._announce and self._usable:  # not before the names of the GPUs are known: an XID needs one
            self._announce = False
            self.on_open(len(self._gpus))
        self._known = known
        self._collects += 1
        if self._gpus and all(known.values()) and not strangers:
            self._success_s = self._wall() / NS_PER_S
            self._patience_s = 0.0
        return Sample(readings, known, self.reason)

    def _reopen(self) -> None:
        self._open_at_ns = None
        if not self.on_close():  # someone is still inside the old session; closing it under him would crash
            self._try_later("TIMED_OUT")
            return
        if self._opened:
            self._session.close()
        self._opened = self._usable = False
        self._gpus = []
        self._system.clear()
        try:
            count = self._timed("init", self._session.open)
        except NvmlError as error:
            self._errors["init", error.name] += 1
            self._try_later(error.name)
            return
        self._opened = self._usable = True
        self._gpus = [_Gpu() for _ in range(count)]
        if count == 0:
            # A broken device mount of a container must not look like a healthy, idle machine.
            self._try_later("NO_GPU")
            return
        self.reason = ""
        self._announce = True

    def _try_later(self, reason: str) -> None:
        """Open again at the next sample, then after 1, 2, 4 … 30 s for as long as not all GPUs answer."""
        self.reason = reason
        self._open_at_ns = self._clock() + int(self._patience_s * NS_PER_S)
        self._patience_s = min(max(1.0, 2 * self._patience_s), REOPEN_MAX_S)

    def _lose(self, gpu: _Gpu, name: str) -> None:
        gpu.lost = True
        self._tally.rebase(None if name in LIBRARY_LOST else gpu.uuid)
        if name in LIBRARY_LOST:
            self._usable = False
            self._try_later(name)
        elif self._open_at_ns is None:
            self._try_later("")  # NVML itself still answers

    # One GPU.

    def _read_gpu(self, index: int, gpu: _Gpu) -> Readings | None:
        if gpu.lost:
            return None
        self._answers = {}
        self._answered, self._failed = 0, ""
        try:
            gpu.uuid = str(self._ask(index, gpu, "uuid") or "")
            if not gpu.uuid:
                self._check_alive()
                return None
            readings = Readings()
            self._read_fields(index, gpu)
            self._identify(index, gpu, readings)
            for row in self._rows:
                self._read_row(index, gpu, row, readings)
            self._integrate(index, gpu, readings)
            self._read_processes(index, gpu, readings)
            self._check_alive()
            self._read_pcie(gpu, readings)
        except NvmlError as error:
            self._lose(gpu, error.name)
            return None
        gpu.sampled_ns = self._clock()
        return readings

    def _check_alive(self) -> None:
        """Raises NvmlError where no call answered: a container that lost its device files says UNKNOWN to each."""
        if self._failed and not self._answered:
            raise NvmlError(self._failed)

    def _timed(self, call: str, ask: Callable[[], Json]) -> Json:
        """Ask, and book the time under the kind of call: `clock` for clock.sm, `once` for what is asked only once."""
        call = "once" if call in ASKED_ONCE else call.partition(".")[0]
        start_ns = self._clock()
        try:
            return ask()
        finally:
            self._last_ns[call] = self._clock() - start_ns
            self._call_ns[call] += self._last_ns[call]
            self._calls[call] += 1

    def _ask(self, index: int, gpu: _Gpu, call: str) -> Json:
        """One answer, asked at most once a sample; None if there is none. NvmlError only if the GPU is lost."""
        kept = gpu.constants if call in ASKED_ONCE else self._answers
        if call in kept:
            return kept[call]
        if gpu.resting_until_ns.get(call, 0) > self._clock():
            return None
        try:
            kept[call] = self._timed(call, lambda: self._session.ask(index, call))
        except NvmlError as error:
            self._answers[call] = None
            self._excuse(gpu, call, call, error)
            return None
        self._answered += 1
        return kept[call]

    def _read_fields(self, index: int, gpu: _Gpu) -> None:
        now_ns = self._clock()
        wanted = [number for number in FIELDS if gpu.resting_until_ns.get(f"field.{number}", 0) <= now_ns]
        self._answers.update(dict.fromkeys((f"field.{number}" for number in FIELDS), None))
        if not wanted or gpu.resting_until_ns.get("fields", 0) > now_ns:
            return
        try:
            values = self._timed("fields", lambda: self._session.fields(index, wanted))
        except NvmlError as error:
            self._excuse(gpu, "fields", "fields", error)
            return
        for field_number, value in values.items():
            call = f"field.{field_number}"
            if isinstance(value, NvmlError):
                self._excuse(gpu, call, "fields", value)
            else:
                self._answers[call] = value
                self._answered += 1

    def _excuse(self, gpu: _Gpu, call: str, label: str, error: NvmlError) -> None:
        """Count an error, let the call rest if it is hopeless, and raise what ends the GPU."""
        if error.name not in UNSUPPORTED:
            self._errors[label, error.name] += 1
            self._failed = error.name
        if error.name in RESTING:
            gpu.resting_until_ns[call] = self._clock() + int(ASK_AGAIN_S * NS_PER_S)
        if error.name in GPU_LOST | LIBRARY_LOST:
            raise error

    def _value(self, index: int, gpu: _Gpu, source: Source) -> float | None:
        answer = self._ask(index, gpu, source.call)
        if source.key is not None:
            answer = answer.get(source.key) if isinstance(answer, dict) else None
        value = number(answer)
        return None if value is None else value * source.scale

    def _read_row(self, index: int, gpu: _Gpu, row: Row, readings: Readings) -> None:
        for source in row.sources:
            value = self._value(index, gpu, source)
            if value is None:
                continue
            if row.family.endswith("_ratio"):
                if not 0 <= value <= 1.01:  # GPM overshoots 100 % by rounding
                    self._errors[source.call, "IMPLAUSIBLE"] += 1
                    continue
                value = min(value, 1.0)
            if FAMILIES[row.family].kind == "counter":
                value = self._tally.advance((gpu.uuid, row.family, *row.labels), value)
            readings.add(row.family, value, gpu.uuid, *row.labels)
            return

    def _ask_system(self, gpu: _Gpu, call: str) -> Json:
        if call not in self._system:
            self._system[call] = None
            try:
                self._system[call] = self._timed(call, partial(self._session.ask, SYSTEM, call))
            except NvmlError as error:
                self._excuse(gpu, call, call, error)
        return self._system[call]

    def _identify(self, index: int, gpu: _Gpu, readings: Readings) -> None:
        cuda = self._ask_system(gpu, "cuda")
        mig = self._ask(index, gpu, "mig_mode")
        readings.add(
            "tokenswarm_gpu_info",
            1,
            gpu.uuid,
            str(index),
            str(self._ask(index, gpu, "name") or ""),
            str(self._ask_system(gpu, "driver") or ""),
            f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else "",
            str(self._ask(index, gpu, "vbios") or ""),
            str(self._ask(index, gpu, "pci") or ""),
            {None: "unsupported", 0: "disabled"}.get(mig, "enabled"),
            self._host,
            self._session.backend,
        )
        readings.add("tokenswarm_gpu_up", 1, gpu.uuid)
        if mig:
            self._read_mig(index, gpu, readings)

    def _read_mig(self, index: int, gpu: _Gpu, readings: Readings) -> None:
        used: dict[str, float | None] = {}
        for device in self._ask(index, gpu, "mig") or ():
            gi = str(device["gi"])
            readings.add(
                "tokenswarm_gpu_mig_info", 1, gpu.uuid, gi, str(device["ci"]), device["profile"], device["uuid"]
            )
            used[gi] = number(device["used"])  # of the GPU instance: its compute instances all tell the same number
        for gi, memory in used.items():
            readings.add("tokenswarm_gpu_mig_memory_used_bytes", memory, gpu.uuid, gi)

    def _integrate(self, index: int, gpu: _Gpu, readings: Readings) -> None:
        """Counters that NVML does not keep: busy time, and throttled time where the driver only tells the moment."""
        now_ns = self._clock()
        since_ns = 0 if gpu.sampled_ns is None else now_ns - gpu.sampled_ns
        past_s = since_ns / NS_PER_S if since_ns <= self._gap_ns else 0.0
        busy = self._value(index, gpu, Source("utilization", "gpu", 0.01))
        if busy is not None and 0 <= busy <= 1:
            for family, amount in (("busy", busy * past_s), ("observed", past_s)):
                name = f"tokenswarm_gpu_{family}_seconds_total"
                readings.add(name, self._tally.add((gpu.uuid, name), amount), gpu.uuid)
        bits = self._ask(index, gpu, "event_reasons")
        if not isinstance(bits, int):
            return
        counted = {labels[1] for labels, _ in readings.rows.get("tokenswarm_gpu_throttle_seconds_total", ())}
        for reason, bit in THROTTLE_BITS.items():
            throttled = bool(bits & bit)
            readings.add("tokenswarm_gpu_throttled", throttled, gpu.uuid, reason)
            if reason not in counted:
                name = "tokenswarm_gpu_throttle_seconds_total"
                total = self._tally.add((gpu.uuid, name, reason), throttled * past_s)
                readings.add(name, total, gpu.uuid, reason)

    def _read_processes(self, index: int, gpu: _Gpu, readings: Readings) -> None:
        processes = self._ask(index, gpu, "processes")
        if processes is None:
            return
        engine = self._engine_pids()
        for pid_class in ("engine", "other"):
            members = [number(p["used"]) for p in processes if (p["pid"] in engine) == (pid_class == "engine")]
            readings.add("tokenswarm_gpu_processes", len(members), gpu.uuid, pid_class)
            told = [used for used in members if used is not None]
            if len(told) == len(members):
                readings.add("tokenswarm_gpu_process_memory_bytes", sum(told), gpu.uuid, pid_class)

    def _read_pcie(self, gpu: _Gpu, readings: Readings) -> None:
        traffic = self._pcie(gpu.uuid)
        if traffic is None:
            return
        for direction, total in traffic.bytes.items():
            readings.add("tokenswarm_gpu_pcie_bytes_total", total, gpu.uuid, direction)
        readings.add("tokenswarm_gpu_pcie_observed_seconds_total", traffic.observed_ns / NS_PER_S, gpu.uuid)

    # What the exporter says about itself.

    def note_xid(self, index: int, xid: int) -> None:
        """A critical error was reported. From any thread."""
        uuid = self._gpus[index].uuid if index < len(self._gpus) else ""
        key = (uuid or f"index-{index}", str(xid))
        self._xids[key] = (self._xids.get(key, (0, 0.0))[0] + 1, self._wall() / NS_PER_S)

    def note_event_error(self, name: str) -> None:
        """Waiting for critical errors failed. From any thread."""
        if name not in UNSUPPORTED:
            self._errors["event", name] += 1

    def health(self, sample: Sample, *, timeouts: int, timed_out: bool) -> Readings:
        """Whether NVML and each GPU answer, XIDs, and the cost of asking. `timed_out`: a call hangs right now."""
        readings = Readings()
        reason = "TIMED_OUT" if timed_out else sample.reason
        readings.add("tokenswarm_gpu_nvml_available", not reason)
        if reason:
            readings.add("tokenswarm_gpu_nvml_unavailable_info", 1, reason)
        readings.add("tokenswarm_gpus", 0 if timed_out else sum(sample.known.values()))
        for uuid, answered in sample.known.items():
            if timed_out or not answered:
                readings.add("tokenswarm_gpu_up", 0, uuid)
        for (uuid, xid), (count, last_s) in list(self._xids.items()):
            readings.add("tokenswarm_gpu_xid_errors_total", count, uuid, xid)
            readings.add("tokenswarm_gpu_xid_last_timestamp_seconds", last_s, uuid, xid)
        readings.add("tokenswarm_gpu_exporter_last_success_timestamp_seconds", self._success_s)
        readings.add("tokenswarm_gpu_exporter_collects_total", self._collects)
        readings.add("tokenswarm_gpu_exporter_collect_timeouts_total", timeouts)
        for call, last_ns in list(self._last_ns.items()):
            readings.add("tokenswarm_gpu_exporter_collect_duration_seconds", last_ns / NS_PER_S, call)
            readings.add("tokenswarm_gpu_exporter_call_seconds_total", self._call_ns[call] / NS_PER_S, call)
            readings.add("tokenswarm_gpu_exporter_calls_total", self._calls[call], call)
        for (call, name), count in list(self._errors.items()):
            readings.add("tokenswarm_gpu_exporter_errors_total", count, call, name)
        return readings
