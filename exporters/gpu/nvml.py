"""NVML, one call at a time, as plain values: numbers, strings, small tables. No metric names, no threads.

`Driver` asks the real library through nvidia-ml-py (never the dead `pynvml` distribution). Every answer is a value that
JSON can hold, so that a session can be recorded on one machine and replayed on another (see replay.py).
Errors are `NvmlError` with NVML's own name, for example GPU_IS_LOST. What a driver or binding lacks is NOT_SUPPORTED.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import pynvml

Json: TypeAlias = Any
"""None, a number, a string, or a list or table of these."""

LIBRARY_LOST = frozenset({"UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH", "LIBRARY_NOT_FOUND"})
"""The whole session is over; no GPU can be asked before it is opened again."""

GPU_LOST = frozenset({"GPU_IS_LOST", "GPU_NOT_FOUND", "RESET_REQUIRED"})
"""This GPU is over until the session is opened again; others may go on."""

UNSUPPORTED = frozenset({"NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED"})
"""This card, driver or binding has no such answer: the metric is absent, which is no error."""

RESTING = UNSUPPORTED | {"NO_PERMISSION", "INVALID_ARGUMENT", "NOT_FOUND"}
"""Asking again at once is no use."""

SUM_OF_LINKS = 0xFFFFFFFF
SCOPES = {138: SUM_OF_LINKS, 139: SUM_OF_LINKS}
"""Fields that need a scope: NVLink data counters, summed over the links of the GPU."""

SENTINELS = frozenset({2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1})
"""NVML's "not available" in each width. As numbers they are nonsense (dcgm-exporter has shown 9.2e18 for years)."""

GPM_METRICS = {"sm_active": 2, "sm_occupancy": 3, "tensor_active": 5, "dram_active": 10}
"""NVML_GPM_METRIC_*: SM_UTIL, SM_OCCUPANCY, ANY_TENSOR_UTIL, DRAM_BW_UTIL; percent, Hopper and newer."""

_ERROR_NAMES = {
    value: name.removeprefix("NVML_ERROR_") for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")
}
# Which member of nvmlValue_t holds the value, by nvmlValueType_t.
_VALUE_MEMBERS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


class NvmlError(Exception):
    """NVML said no. `name` is its error without the prefix: NOT_SUPPORTED, GPU_IS_LOST, UNKNOWN …"""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Session(Protocol):
    """What the GPU reader needs; `Driver`, `Replay` and `Recorder` have it."""

    backend: str

    def open(self) -> int:
        """Start; the number of GPUs. NvmlError."""

    def close(self) -> None:
        """End; never raises."""

    def ask(self, gpu: int, call: str) -> Json:
        """One answer. `gpu` is the index, or SYSTEM. NvmlError."""

    def fields(self, gpu: int, ids: Sequence[int]) -> Mapping[int, float | NvmlError]:
        """Many field values by one call. NvmlError if the call as a whole fails."""

    def event(self, wait_s: float) -> tuple[int, int] | None:
        """Wait for a critical error of any GPU: (index, XID), or None if none came. NvmlError. From any thread."""


SYSTEM = -1


def _function(name: str) -> Callable[..., Any]:
    """A function of the binding. An older binding that lacks it says what an older driver would say."""
    function = getattr(pynvml, name, None)
    if function is None:
        raise NvmlError("FUNCTION_NOT_FOUND")
    return _translated(function)


def _translated(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except pynvml.NVMLError as error:
            raise NvmlError(_ERROR_NAMES.get(error.value, f"CODE_{error.value}")) from None
        except getattr(pynvml, "NVMLLibraryMismatchError", ()):
            raise NvmlError("FUNCTION_NOT_FOUND") from None

    return call


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value  # bytes before binding 12


def _memory(handle: Any) -> Json:
    """Version 2 keeps what the driver reserves apart; version 1 counts it as used since driver 510."""
    get = _function("nvmlDeviceGetMemoryInfo")
    version = getattr(pynvml, "nvmlMemory_v2", None)
    try:
        memory = get(handle, version=version) if version else get(handle)
    except NvmlError as error:
        if error.name not in UNSUPPORTED:
            raise
        memory = get(handle)
    return {name: getattr(memory, name) for name in ("total", "reserved", "free", "used") if hasattr(memory, name)}


def _utilization(handle: Any) -> Json:
    rates = _function("nvmlDeviceGetUtilizationRates")(handle)
    return {"gpu": rates.gpu, "memory": rates.memory}


def _event_reasons(handle: Any) -> Json:
    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        try:
            return _function(name)(handle)
        except NvmlError as error:  # the first name came with driver 535
            if error.name != "FUNCTION_NOT_FOUND":
                raise
    raise NvmlError("FUNCTION_NOT_FOUND")


def _processes(handle: Any) -> Json:
    found = _function("nvmlDeviceGetComputeRunningProcesses")(handle)
    return [{"pid": process.pid, "used": process.usedGpuMemory} for process in found]


def _pcie_link(handle: Any, which: str) -> Json:
    generation = _function(f"nvmlDeviceGet{which}PcieLinkGeneration")(handle)
    return {"generation": generation, "width": _function(f"nvmlDeviceGet{which}PcieLinkWidth")(handle)}


def _mig(handle: Any) -> Json:
    """The MIG devices of a GPU: gi, ci, uuid, profile, used. Memory belongs to the GPU instance, not to the ci."""
    devices = []
    for index in range(_function("nvmlDeviceGetMaxMigDeviceCount")(handle)):
        try:
            device = _function("nvmlDeviceGetMigDeviceHandleByIndex")(handle, index)
        except NvmlError as error:
            if error.name in ("NOT_FOUND", "INVALID_ARGUMENT"):
                continue  # an empty place
            raise
        name = _text(_function("nvmlDeviceGetName")(device))
        devices.append(
            {
                "gi": _function("nvmlDeviceGetGpuInstanceId")(device),
                "ci": _function("nvmlDeviceGetComputeInstanceId")(device),
                "uuid": _text(_function("nvmlDeviceGetUUID")(device)),
                "profile": name.rpartition("MIG ")[2],
                "used": _memory(device)["used"],
            }
        )
    return devices


def _plain(name: str, *args: int) -> Callable[[Any], Json]:
    return lambda handle: _function(name)(handle, *args)


def _string(name: str) -> Callable[[Any], Json]:
    return lambda handle: _text(_function(name)(handle))


DEVICE_CALLS: dict[str, Callable[[Any], Json]] = {
    "uuid": _string("nvmlDeviceGetUUID"),
    "name": _string("nvmlDeviceGetName"),
    "vbios": _string("nvmlDeviceGetVbiosVersion"),
    "pci": lambda handle: _text(_function("nvmlDeviceGetPciInfo")(handle).busId),
    "mig_mode": lambda handle: _function("nvmlDeviceGetMigMode")(handle)[0],
    "mig": _mig,
    "utilization": _utilization,
    "memory": _memory,
    "clock.sm": _plain("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
    "clock.mem": _plain("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
    "clock.graphics": _plain("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_GRAPHICS),
    "max_clock.sm": _plain("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
    "max_clock.mem": _plain("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_MEM),
    "max_clock.graphics": _plain("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_GRAPHICS),
    "temperature": _plain("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    "temperature_limit.shutdown": _plain("nvmlDeviceGetTemperatureThreshold", 0),
    "temperature_limit.slowdown": _plain("nvmlDeviceGetTemperatureThreshold", 1),
    "temperature_limit.memory_max": _plain("nvmlDeviceGetTemperatureThreshold", 2),
    "temperature_limit.gpu_max": _plain("nvmlDeviceGetTemperatureThreshold", 3),
    "power_usage": _plain("nvmlDeviceGetPowerUsage"),
    "power_limit": _plain("nvmlDeviceGetEnforcedPowerLimit"),
    "energy": _plain("nvmlDeviceGetTotalEnergyConsumption"),
    "event_reasons": _event_reasons,
    "violation.power": lambda handle: _function("nvmlDeviceGetViolationStatus")(handle, 0).violationTime,
    "violation.thermal": lambda handle: _function("nvmlDeviceGetViolationStatus")(handle, 1).violationTime,
    "violation.sync_boost": lambda handle: _function("nvmlDeviceGetViolationStatus")(handle, 2).violationTime,
    "pcie_link": lambda handle: _pcie_link(handle, "Curr"),
    "pcie_link_max": lambda handle: _pcie_link(handle, "Max"),
    "pcie_replays": _plain("nvmlDeviceGetPcieReplayCounter"),
    "processes": _processes,
}

SYSTEM_CALLS: dict[str, Callable[[], Json]] = {
    "driver": lambda: _text(_function("nvmlSystemGetDriverVersion")()),
    "cuda": lambda: _function("nvmlSystemGetCudaDriverVersion")(),
}


class Driver:
    """The NVML of this machine. GPM is for one thread (two at a time have crashed kernels); the rest is thread-safe."""

    backend = "nvml"

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}
        self._events: Any = None
        self._gpm: dict[int, Any] = {}

    def open(self) -> int:
        _function("nvmlInit")()
        self._handles.clear()
        self._gpm.clear()
        count = int(_function("nvmlDeviceGetCount")())
        self._events = self._register_events(count)
        return count

    def _register_events(self, count: int) -> Any:
        registered = 0
        try:
            events = _function("nvmlEventSetCreate")()
            for gpu in range(count):
                try:
                    register = _function("nvmlDeviceRegisterEvents")
                    register(self._handle(gpu), pynvml.nvmlEventTypeXidCriticalError, events)
                    registered += 1
                except NvmlError:
                    continue  # this GPU (or a container without the right) reports no events; others may
        except NvmlError:
            return None
        return events if registered else None

    def close(self) -> None:
        for name, args in (("nvmlEventSetFree", (self._events,)), ("nvmlShutdown", ())):
            try:
                if args != (None,):
                    _function(name)(*args)
            except NvmlError:
                continue  # a lost driver refuses to be closed, too; opening again is what matters
        self._events = None

    def _handle(self, gpu: int) -> Any:
        if gpu not in self._handles:
            self._handles[gpu] = _function("nvmlDeviceGetHandleByIndex")(gpu)
        return self._handles[gpu]

    def ask(self, gpu: int, call: str) -> Json:
        if gpu == SYSTEM:
            return SYSTEM_CALLS[call]()
        if call == "gpm":
            return self._ask_gpm(gpu)
        return DEVICE_CALLS[call](self._handle(gpu))

    def fields(self, gpu: int, ids: Sequence[int]) -> Mapping[int, float | NvmlError]:
        values = _function("nvmlDeviceGetFieldValues")(
            self._handle(gpu), [(field, SCOPES[field]) if field in SCOPES else field for field in ids]
        )
        return {value.fieldId: _field(value) for value in values}

    def _ask_gpm(self, gpu: int) -> Json:
        """Percentages since the last call; None at the first. Two samples a GPU are kept, used in turn."""
        handle = self._handle(gpu)
        if gpu not in self._gpm:
            if not _function("nvmlGpmQueryDeviceSupport")(handle).isSupportedDevice:
                raise NvmlError("NOT_SUPPORTED")
            older, newer = _function("nvmlGpmSampleAlloc")(), _function("nvmlGpmSampleAlloc")()
            _function("nvmlGpmSampleGet")(handle, newer)
            self._gpm[gpu] = (older, newer)
            return None
        newer, older = self._gpm[gpu]  # the older sample is overwritten
        _function("nvmlGpmSampleGet")(handle, newer)
        self._gpm[gpu] = (older, newer)
        asked = pynvml.c_nvmlGpmMetricsGet_t()
        asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(GPM_METRICS)
        asked.sample1, asked.sample2 = older, newer
        for place, metric in enumerate(GPM_METRICS.values()):
            asked.metrics[place].metricId = metric
        _function("nvmlGpmMetricsGet")(asked)
        told = [asked.metrics[place] for place in range(len(GPM_METRICS))]
        return {name: m.value for name, m in zip(GPM_METRICS, told, strict=True) if m.nvmlReturn == 0}

    def event(self, wait_s: float) -> tuple[int, int] | None:
        if self._events is None:
            raise NvmlError("NOT_SUPPORTED")
        try:
            event = _function("nvmlEventSetWait_v2")(self._events, int(wait_s * 1000))
        except NvmlError as error:
            if error.name == "TIMEOUT":
                return None
            raise
        if event.eventType != pynvml.nvmlEventTypeXidCriticalError:
            return None
        address = ctypes.cast(event.device, ctypes.c_void_p).value
        for gpu, handle in list(self._handles.items()):
            if ctypes.cast(handle, ctypes.c_void_p).value == address:
                return gpu, int(event.eventData)
        return None


def _field(value: Any) -> float | NvmlError:
    if value.nvmlReturn != 0:
        return NvmlError(_ERROR_NAMES.get(value.nvmlReturn, f"CODE_{value.nvmlReturn}"))
    member = _VALUE_MEMBERS.get(value.valueType)
    if member is None or not hasattr(value.value, member):
        return NvmlError("NOT_SUPPORTED")  # a value type newer than the binding; guessing would invent numbers
    number: float = getattr(value.value, member)
    return number


def number(answer: Json) -> float | None:
    """A number that is one: no sentinel, no NaN, no text."""
    if isinstance(answer, bool) or not isinstance(answer, int | float) or answer != answer:
        return None
    return None if answer in SENTINELS else float(answer)
