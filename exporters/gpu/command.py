"""`python -m exporters.gpu`: NVML and host metrics on http://127.0.0.1:9647/metrics. Needs no GPU: it then says so.

Two plain threads sample once a second, one the GPUs, one the host; others wait for XIDs and count PCIe bytes. Scrapes
get the newest sample. If an NVML call hangs, the GPU series are dropped after 10 s and the host's go on. `--record`
writes what NVML answers to a file that `--gpu-backend replay:FILE` serves again. Exit 0 after SIGTERM, 13 where that
ended a recording, which is kept; 16 if it can't be written; 15 for a mistake, 14 if NVML was required and is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from exporters import serving
from exporters.families import Readings, render
from exporters.gpu import host, replay, sysfs, table
from exporters.gpu.nvml import GPU_LOST, LIBRARY_LOST, UNSUPPORTED, Driver, NvmlError, Session
from exporters.gpu.pcie import PcieWatch
from exporters.gpu.readings import STARTING, GpuReader, Sample
from exporters.sampling import Sampler
from tokenswarm.clock import NS_PER_S
from tokenswarm.errors import ConfigError, ExitCode, ResultsError, TargetError
from tokenswarm.terminal import end_signals

RECORD_S = 60.0
SYSFS = Path("/sys")
PORT = 9647
PROG = "python -m exporters.gpu"
FAMILIES = {**table.FAMILIES, **host.FAMILIES, **serving.FAMILIES}
EVENT_WAIT_S = 1.0
PROGRESS_S = 10.0
OFF = Sample(Readings(), {}, "off")


class XidWatch:
    """Waits for critical errors in a thread of its own, since waiting blocks. `start` and `stop` pair."""

    def __init__(self, session: Session, note: Callable[[int, int], None], failed: Callable[[str], None]) -> None:
        self._session = session
        self._note = note
        self._failed = failed
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="xid", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End the wait; False if the thread is stuck inside NVML, which must not be closed then."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(3 * EVENT_WAIT_S)
            if self._thread.is_alive():
                return False
        self._thread = None
        return True

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                event = self._session.event(EVENT_WAIT_S)
            except NvmlError as error:
                self._failed(error.name)
                if error.name in UNSUPPORTED | GPU_LOST | LIBRARY_LOST:
                    return  # opening the session again starts a new wait
                stopping.wait(EVENT_WAIT_S)
                continue
            if event is not None:
                self._note(*event)


class GpuWatch:
    """The reader, its thread, and the eye on that thread."""

    def __init__(
        self, session: Session, reader: GpuReader, pcie: PcieWatch | None, interval_s: float, timeout_s: float
    ) -> None:
        self.timed_out = False
        self.timeouts = 0
        self.sampler = Sampler("nvml", reader.read, interval_s, serving.end_this_process)
        self._session = session
        self._reader = reader
        self._timeout_s = timeout_s
        self._xids = XidWatch(session, reader.note_xid, reader.note_event_error)
        self.pcie = pcie
        reader.on_open = self._opened
        reader.on_close = self._closing

    def _opened(self, gpus: int) -> None:
        self._xids.start()
        if self.pcie is not None:
            self.pcie.start(gpus)

    def _closing(self) -> bool:
        stopped = [self._xids.stop(), self.pcie is None or self.pcie.stop()]
        return all(stopped)

    def look(self) -> None:
        """Notice that a call hangs, or that it came back. Called by the host's thread, so that no scrape is needed."""
        late = self.sampler.reading_for_s() > self._timeout_s
        self.timeouts += late and not self.timed_out
        self.timed_out = late

    def readings(self) -> Readings:
        sample = self.sampler.newest or STARTING
        timed_out = self.timed_out
        readings = Readings()
        if not timed_out:
            readings.extend(sample.readings)
        readings.extend(self._reader.health(sample, timeouts=self.timeouts, timed_out=timed_out))
        if self.pcie is not None:
            readings.add("tokenswarm_gpu_exporter_calls_total", self.pcie.looks, "pcie")
            readings.add("tokenswarm_gpu_exporter_call_seconds_total", self.pcie.look_ns / NS_PER_S, "pcie")
        return readings

    def stop(self) -> None:
        if self.sampler.stop():
            self.close()

    def close(self) -> None:
        """End the side threads and the session; a session that one of them is stuck in stays open."""
        if self._closing():
            self._session.close()


def _options() -> serving.Parser:
    options = serving.parser(PROG, "Serve GPU (NVML) and host metrics to Prometheus.", PORT)
    add = options.add_argument
    add(
        "--gpu-backend",
        metavar="auto|nvml|none|replay:FILE",
        default="auto",
        help="auto: NVML if it is there; nvml: refuse to start without it; replay: serve a record (default auto)",
    )
    add("--interval", metavar="SECONDS", type=float, default=1.0, help="between two samples (default %(default)s)")
    add(
        "--gpu-timeout",
        metavar="SECONDS",
        type=float,
        default=10.0,
        help="drop the GPU series when NVML has not answered for so long (default %(default)s)",
    )
    add("--gpm", action="store_true", help="also read SM, tensor and DRAM activity (Hopper and newer)")
    add("--no-pcie", action="store_true", help="do not count PCIe bytes, which takes about 30 readings a second")
    add("--engine-pid", metavar="PID", type=int, help="watch this process and its children as the engine")
    add("--engine-name", metavar="NAME", help="the same, by name or by a word of the command line, e.g. vllm")
    add(
        "--sysfs",
        metavar="DIR",
        type=Path,
        default=SYSFS,
        help="the machine's /sys, for the CPU's energy and for GPUs without NVML (default %(default)s)",
    )
    add("--record", metavar="FILE", type=Path, help="do not serve; write what NVML answers to FILE")
    add("--seconds", metavar="N", type=float, help=f"how long to record (default {RECORD_S:g})")
    return options


def _parse(argv: list[str]) -> argparse.Namespace:
    args = _options().parse_args(argv)
    if args.seconds is not None and args.record is None:
        raise ConfigError("--seconds says how long to record; give --record FILE, too")
    args.seconds = RECORD_S if args.seconds is None else args.seconds
    if args.sysfs != SYSFS and not args.sysfs.is_dir():
        raise ConfigError(f"--sysfs {args.sysfs} is no folder; give where the machine's /sys is mounted here")
    for name, low, high in (("interval", 0.05, 60), ("gpu_timeout", 0.1, 600), ("seconds", 0.1, 86400)):
        if not low <= getattr(args, name) <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(args, name)} must be {low} to {high} seconds")
    if args.engine_pid is not None and args.engine_name is not None:
        raise ConfigError("--engine-pid and --engine-name name the same thing; give one of them")
    return args


def _session(backend: str) -> Session | None:
    kind, colon, path = backend.partition(":")
    if kind == "replay" and path:
        return replay.Replay(replay.load(Path(path)))
    if colon or kind not in ("auto", "nvml", "none"):
        raise ConfigError(f"--gpu-backend {backend!r} is none of auto, nvml, none, replay:FILE")
    if kind == "none":
        return None
    if kind == "nvml":
        _require(Driver())
    return Driver()


def _require(session: Session) -> None:
    try:
        count = session.open()
    except NvmlError as error:
        raise TargetError(
            f"NVML does not answer ({error.name}); is the NVIDIA driver loaded and visible here?"
        ) from None
    session.close()
    if count == 0:
        raise TargetError("NVML sees no GPU; is the device passed into this container?")


async def _serve(args: argparse.Namespace) -> int:
    session = _session(args.gpu_backend)
    point = serving.endpoint(args)
    watched = args.engine_pid is not None or args.engine_name is not None
    engine = host.EngineWatch(args.engine_pid, args.engine_name) if watched else None
    gpu: GpuWatch | None = None
    if session is not None:
        pids = (lambda: engine.pids) if engine is not None else tuple
        pcie = None if args.no_pcie else PcieWatch(session)
        traffic = (lambda _uuid: None) if pcie is None else pcie.traffic
        reader = GpuReader(session, args.interval, gpm=args.gpm, engine_pids=pids, pcie=traffic)
        gpu = GpuWatch(session, reader, pcie, args.interval, args.gpu_timeout)
    host_reader = host.HostReader(engine, sysfs=args.sysfs)
    cards = sysfs.SysfsReader(socket.gethostname(), args.sysfs / "class" / "drm")

    def read_host() -> Readings:
        readings = host_reader.read()
        if args.gpu_backend == "auto":
            readings.extend(cards.read())
        if gpu is not None:
            gpu.look()
        return readings

    hosts = Sampler("host", read_host, args.interval, serving.end_this_process)

    def version() -> object:
        return hosts.seq, (gpu.sampler.seq, gpu.timed_out) if gpu is not None else None

    def page() -> bytes:
        readings = gpu.readings() if gpu is not None else _without_gpu()
        sampled = hosts.newest or Readings()
        readings.extend(sampled)
        readings.extend(server.own("gpu"))
        _count_cards(readings, len(sampled.rows.get("tokenswarm_gpu_up", ())))
        return render(FAMILIES, readings)

    server = serving.Server(point, "tokenswarm GPU and host exporter", serving.Page(version, page))
    stop = serving.stop_on_signals()
    samplers: list[Sampler[Readings] | Sampler[Sample]] = [hosts] if gpu is None else [gpu.sampler, hosts]
    for sampler in samplers:
        sampler.start()
    await server.run(stop)
    hosts.stop()
    if gpu is not None:
        gpu.stop()
    return ExitCode.INTERNAL if any(sampler.crashed for sampler in samplers) else ExitCode.OK


def _count_cards(readings: Readings, cards: int) -> None:
    """Add the cards of sysfs to NVML's."""
    ((labels, gpus),) = readings.rows["tokenswarm_gpus"]
    readings.rows["tokenswarm_gpus"] = [(labels, gpus + cards)]


def _without_gpu() -> Readings:
    readings = Readings()
    readings.add("tokenswarm_gpu_nvml_available", 0)
    readings.add("tokenswarm_gpu_nvml_unavailable_info", 1, OFF.reason)
    readings.add("tokenswarm_gpus", 0)
    return readings


def _record(args: argparse.Namespace) -> int:
    session = _session(args.gpu_backend)
    if session is None:
        raise ConfigError("--record needs a GPU backend; leave --gpu-backend out")
    recorder = replay.Recorder(session)
    reader = GpuReader(recorder, args.interval, gpm=args.gpm)
    watch = GpuWatch(recorder, reader, None if args.no_pcie else PcieWatch(recorder), args.interval, args.gpu_timeout)
    stopped = threading.Event()
    for number in end_signals():  # what is recorded by then is kept
        signal.signal(number, lambda *_: stopped.set())
    began_s = told_s = time.monotonic()
    sample = reader.read()
    if sample.known:
        _keep(args.record, "a", "")  # better told now than after the recording
    while (now_s := time.monotonic()) < began_s + args.seconds and sample.known and not stopped.is_set():
        if now_s - told_s >= PROGRESS_S:
            told_s = now_s
            print(f"{PROG}: recorded {now_s - began_s:.0f} of {args.seconds:g} s", file=sys.stderr, flush=True)
        stopped.wait(args.interval)
        sample = reader.read()
    watch.close()
    if not sample.known:
        raise TargetError(f"NVML does not answer ({sample.reason}); nothing was recorded")
    _keep(args.record, "w", replay.text(recorder.record("recorded by exporters.gpu --record")))
    seconds = min(now_s - began_s, args.seconds)
    print(f"recorded {seconds:.3g} s of {len(sample.known)} GPUs to {args.record}")
    return ExitCode.INTERRUPTED if stopped.is_set() else ExitCode.OK


def _keep(path: Path, mode: str, text: str) -> None:
    """Write the record, or nothing. Raises ResultsError."""
    try:
        file = path.open(mode, encoding="utf-8")
        try:
            with file:
                file.write(text)
        except OSError:
            if path.is_file():
                path.unlink()  # half a record is none
            raise
    except OSError as error:
        raise ResultsError(f"{path} can't be written: {error.strerror}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""

    def run() -> int:
        args = _parse(sys.argv[1:] if argv is None else argv)
        return int(_record(args) if args.record is not None else asyncio.run(_serve(args)))

    return serving.command(PROG, run)
