"""This machine and the engine's processes, from psutil and /proc: to tell a slow GPU from a slow host.

Counters, not percentages, so that any window can be asked. In a container psutil shows the whole machine, so the
limits of the control group are told beside it. A source that this system lacks is absent; one that fails is counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from exporters.families import Family, Readings, Sum
from exporters.gpu import powercap
from tokenswarm.clock import NS_PER_S, Clock, monotonic_ns
from tokenswarm.untold import UNTOLD

FAMILIES = {
    "tokenswarm_host_cpu_seconds_total": Family("counter", "CPU time of the machine, over all CPUs.", ("mode",)),
    "tokenswarm_host_core_busy_seconds_total": Family(
        "counter",
        "CPU time of each core but idle and waiting for I/O: one that is full holds up what runs on it.",
        ("core",),
    ),
    "tokenswarm_host_cpus": Family("gauge", "CPUs of the machine that are online."),
    "tokenswarm_host_memory_total_bytes": Family("gauge", "Memory of the machine."),
    "tokenswarm_host_memory_available_bytes": Family("gauge", "Memory that programs could have without swapping."),
    "tokenswarm_host_swap_used_bytes": Family("gauge", "Swap in use."),
    "tokenswarm_host_network_bytes_total": Family(
        "counter", "Bytes over all network interfaces but loopback.", ("direction",)
    ),
    "tokenswarm_host_disk_bytes_total": Family("counter", "Bytes from and to all disks.", ("direction",)),
    "tokenswarm_host_load1": Family("gauge", "Load average of the last minute."),
    "tokenswarm_host_context_switches_total": Family("counter", "Context switches."),
    "tokenswarm_host_pressure_seconds_total": Family(
        "counter",
        "Time in which some or all (full) tasks waited for a resource (Linux pressure stall information).",
        ("resource", "share"),
    ),
    "tokenswarm_host_cgroup_memory_limit_bytes": Family(
        "gauge", "Memory limit of the exporter's control group; absent if there is none."
    ),
    "tokenswarm_host_cgroup_memory_used_bytes": Family("gauge", "Memory in use in the exporter's control group."),
    "tokenswarm_host_cgroup_cpu_limit_cpus": Family(
        "gauge", "CPU limit of the exporter's control group in CPUs; absent if there is none."
    ),
    "tokenswarm_host_cgroup_throttled_seconds_total": Family(
        "counter", "Time for which the control group's tasks were held back by its CPU limit."
    ),
    "tokenswarm_host_read_errors_total": Family(
        "counter", "Sources of host metrics that could not be read.", ("source",)
    ),
    **powercap.FAMILIES,
    "tokenswarm_processes": Family("gauge", "Processes in the watched tree; 0 while it is not running.", ("role",)),
    "tokenswarm_process_cpu_seconds_total": Family(
        "counter", "CPU time of the watched process tree, ended children included.", ("role",)
    ),
    "tokenswarm_process_resident_memory_bytes": Family(
        "gauge", "Resident memory of the watched process tree; shared pages count once a process.", ("role",)
    ),
    "tokenswarm_process_open_fds": Family("gauge", "Open file descriptors of the watched process tree.", ("role",)),
    "tokenswarm_process_threads": Family("gauge", "Threads of the watched process tree.", ("role",)),
    "tokenswarm_process_restarts_total": Family(
        "counter", "Times the watched process came back as another process.", ("role",)
    ),
}

CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Without guest times, which Linux counts in user and nice already."""

BUSY_MODES = tuple(mode for mode in CPU_MODES if mode not in ("idle", "iowait"))

ROLE = "engine"
LOOK_AGAIN_S = 5.0
"""Walking all processes costs about 20 µs each; the tree is looked up this often, or at once when a root has gone."""

UNLIMITED_BYTES = 2**60
"""Version 1 of the control groups writes "no limit" as a number just below 2^63."""


class HostReader:
    """Reads the machine and, with a watch, the engine. `proc` and `cgroup` are where Linux mounts them."""

    def __init__(
        self,
        watch: EngineWatch | None = None,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        sysfs: Path = Path("/sys"),
    ) -> None:
        self._proc = proc
        self._cgroup = cgroup
        self._energy = powercap.PowercapReader(sysfs / "class" / "powercap")
        self._network_sums = {"tx": Sum(), "rx": Sum()}
        self._errors: Counter[str] = Counter()
        self._sources: dict[str, Callable[[Readings], None]] = {
            "cpu": self._cpu,
            "memory": self._memory,
            "network": self._network,
            "disk": self._disk,
            "system": self._system,
            "pressure": self._pressure,
            "cgroup": self._groups,
            "energy": lambda readings: readings.extend(self._energy.read()),
        }
        if watch is not None:
            self._sources["engine"] = lambda readings: readings.extend(watch.read())

    def read(self) -> Readings:
        """One sample of everything; no source can spoil another."""
        readings = Readings()
        for name, source in self._sources.items():
            try:
                source(readings)
            except UNTOLD:
                self._errors[name] += 1
        for name in self._sources:
            readings.add("tokenswarm_host_read_errors_total", self._errors[name], name)
        return readings

    def _cpu(self, readings: Readings) -> None:
        times = psutil.cpu_times()
        for mode in CPU_MODES:
            readings.add("tokenswarm_host_cpu_seconds_total", getattr(times, mode, None), mode)
        readings.add("tokenswarm_host_cpus", psutil.cpu_count())
        for core, one in enumerate(psutil.cpu_times(percpu=True)):
            busy_s = sum(getattr(one, mode, 0.0) for mode in BUSY_MODES)
            readings.add("tokenswarm_host_core_busy_seconds_total", busy_s, str(core))

    def _memory(self, readings: Readings) -> None:
        memory = psutil.virtual_memory()
        readings.add("tokenswarm_host_memory_total_bytes", memory.total)
        readings.add("tokenswarm_host_memory_available_bytes", memory.available)
        readings.add("tokenswarm_host_swap_used_bytes", psutil.swap_memory().used)

    def _network(self, readings: Readings) -> None:
        # Interface by interface: when one goes (a container's veth), the sum of psutil would step backwards.
        nics = self._machines_nics()
        if nics is None:
            told = psutil.net_io_counters(pernic=True, nowrap=True)
            nics = {nic: (counts.bytes_sent, counts.bytes_recv) for nic, counts in told.items()}
        for place, direction in enumerate(("tx", "rx")):
            counts: dict[object, float] = {nic: both[place] for nic, both in nics.items() if not nic.startswith("lo")}
            total = self._network_sums[direction].advance(counts)
            readings.add("tokenswarm_host_network_bytes_total", total, direction)

    def _machines_nics(self) -> dict[str, tuple[int, int]] | None:
        """Bytes (sent, received) of the network of process 1, where that is another than ours; else None.

        So it is in a container that shares the machine's processes (`pid: host`) and not its network. Each network has
        an inode of its own for the file; reading it takes no right, unlike `ns/net`.
        """
        theirs = self._proc / "1" / "net" / "dev"
        try:
            if theirs.stat().st_ino == (self._proc / "self" / "net" / "dev").stat().st_ino:
                return None
            lines = theirs.read_text().splitlines()[2:]
        except OSError:
            return None
        rows = {name.strip(): counts.split() for name, _, counts in (line.rpartition(":") for line in lines)}
        return {name: (int(counts[8]), int(counts[0])) for name, counts in rows.items()}

    def _disk(self, readings: Readings) -> None:
        counters = psutil.disk_io_counters(nowrap=True)
        if counters is not None:  # a machine or container without disks of its own
            readings.add("tokenswarm_host_disk_bytes_total", counters.read_bytes, "read")
            readings.add("tokenswarm_host_disk_bytes_total", counters.write_bytes, "write")

    def _system(self, readings: Readings) -> None:
        readings.add("tokenswarm_host_load1", os.getloadavg()[0])
        readings.add("tokenswarm_host_context_switches_total", psutil.cpu_stats().ctx_switches)

    def _pressure(self, readings: Readings) -> None:
        for resource in ("cpu", "memory", "io"):
            text = _text(self._proc / "pressure" / resource) or ""
            for line in text.splitlines():
                share, *pairs = line.split()
                total_us = dict(pair.split("=", 1) for pair in pairs)["total"]
                readings.add("tokenswarm_host_pressure_seconds_total", int(total_us) / 1e6, resource, share)

    def _groups(self, readings: Readings) -> None:
        paths = dict(
            line.split(":", 2)[1:] for line in (_text(self._proc / "self" / "cgroup") or "").splitlines() if ":" in line
        )
        unified = self._cgroup / paths.get("", "/").lstrip("/")
        limits = _version_2(unified) if (unified / "memory.max").exists() else _version_1(self._cgroup, paths)
        for family, value in limits.items():
            readings.add(f"tokenswarm_host_cgroup_{family}", value)


def _text(path: Path) -> str | None:
    """The text of a small file of the kernel; None where the kernel has no such file."""
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except OSError as error:
        # Pressure files exist but refuse to be read where the kernel was started without psi=1.
        if error.errno in (95, 524):  # EOPNOTSUPP, ENOTSUPP
            return None
        raise


def _number(text: str | None) -> float | None:
    return None if text is None or text.strip() in ("", "max", "-1") else float(text)


def _version_2(group: Path) -> dict[str, float | None]:
    quota, _, period = (_text(group / "cpu.max") or "max 100000").partition(" ")
    cpus = _number(quota)
    stat = dict(line.split() for line in (_text(group / "cpu.stat") or "").splitlines())
    throttled_us = _number(stat.get("throttled_usec"))
    return {
        "memory_limit_bytes": _number(_text(group / "memory.max")),
        "memory_used_bytes": _number(_text(group / "memory.current")),
        "cpu_limit_cpus": None if cpus is None else cpus / float(period),
        "throttled_seconds_total": None if throttled_us is None else throttled_us / 1e6,
    }


def _version_1(root: Path, paths: dict[str, str]) -> dict[str, float | None]:
    """Version 1: a hierarchy for each controller. Inside a container the path is of the host, and the root is ours."""

    def file(controller: str, name: str) -> str | None:
        path = next((path for names, path in paths.items() if controller in names.split(",")), "/")
        ours = _text(root / controller / path.lstrip("/") / name)
        return _text(root / controller / name) if ours is None else ours

    limit = _number(file("memory", "memory.limit_in_bytes"))
    quota, period = _number(file("cpu", "cpu.cfs_quota_us")), _number(file("cpu", "cpu.cfs_period_us"))
    stat = dict(line.split() for line in (file("cpu", "cpu.stat") or "").splitlines())
    throttled_ns = _number(stat.get("throttled_time"))
    return {
        "memory_limit_bytes": None if limit is None or limit >= UNLIMITED_BYTES else limit,
        "memory_used_bytes": _number(file("memory", "memory.usage_in_bytes")),
        "cpu_limit_cpus": None if quota is None or not period else quota / period,
        "throttled_seconds_total": None if throttled_ns is None else throttled_ns / NS_PER_S,
    }


class EngineWatch:
    """The engine's process tree, by pid or by name. A name matches a process so called, or a word of its command line.

    `pids` is the newest tree, for whoever sorts processes (a frozenset: safe to read from another thread).
    """

    def __init__(self, pid: int | None = None, name: str | None = None, clock: Clock = monotonic_ns) -> None:
        self.pids: frozenset[int] = frozenset()
        self._pid = pid
        self._name = name
        self._clock = clock
        self._look_at_ns = clock()
        self._tree: list[psutil.Process] = []
        self._roots: frozenset[psutil.Process] = frozenset()
        self._restarts = 0
        self._cpu = Sum()

    def read(self) -> Readings:
        """Memory, CPU, descriptors and threads of the tree, and how often it came back."""
        if self._clock() >= self._look_at_ns or not all(process.is_running() for process in self._tree):
            self._look()
        resident = fds = threads = 0
        cpu_s: dict[object, float] = {}
        fds_known = True
        for process in self._tree:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    resident += process.memory_info().rss
                    threads += process.num_threads()
                    cpu_s[process] = times.user + times.system
                try:
                    fds += process.num_fds()
                except psutil.AccessDenied:  # another user's process
                    fds_known = False
            except psutil.Error:
                continue  # it has just ended; what it used stays in the sum
        readings = Readings()
        readings.add("tokenswarm_processes", len(cpu_s), ROLE)
        readings.add("tokenswarm_process_cpu_seconds_total", self._cpu.advance(cpu_s), ROLE)
        readings.add("tokenswarm_process_restarts_total", self._restarts, ROLE)
        if cpu_s:
            readings.add("tokenswarm_process_resident_memory_bytes", resident, ROLE)
            readings.add("tokenswarm_process_open_fds", fds if fds_known else None, ROLE)
            readings.add("tokenswarm_process_threads", threads, ROLE)
        return readings

    def _look(self) -> None:
        roots = self._find()
        tree = {process.pid: process for process in roots}
        for root in roots:
            try:
                tree.update({child.pid: child for child in root.children(recursive=True)})
            except psutil.Error:
                continue
        self._tree = list(tree.values())
        self.pids = frozenset(tree)
        if roots:
            # Another process than before, none of the old ones left: a restart, however long the gap was. They are
            # told apart by psutil: the time of day at which one began moves when the clock is set.
            self._restarts += bool(self._roots) and self._roots.isdisjoint(roots)
            self._roots = frozenset(roots)
        self._look_at_ns = self._clock() + int(LOOK_AGAIN_S * NS_PER_S)  # last: a look that failed is none

    def _find(self) -> list[psutil.Process]:
        if self._pid is not None:
            try:
                return [psutil.Process(self._pid)]
            except psutil.Error:
                return []
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}  # our command line has the name
        found = [p for p in psutil.process_iter(["name", "cmdline"]) if p.pid not in ours and self._is_called(p)]
        return [process for process in found if process.is_running()]

    def _is_called(self, process: psutil.Process) -> bool:
        words = [Path(word).name for word in process.info["cmdline"] or ()]
        return self._name in (process.info["name"], *words)
