"""How good this machine is as an instrument: its own error and capacity, against a sender that knows when it sent.

The sender of the bench, in C, where it and a compiler are there; else the embedded engine, which is late itself at some
thousand tokens a second. One worker's client at a ladder of streams, alone and beside busy neighbours. What came out is
kept in a file, and every run on this machine has it in its manifest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
import msgspec

from tokenswarm import __version__
from tokenswarm.client.decoding import Decoder
from tokenswarm.client.pool import Pool
from tokenswarm.client.sending import Client, Request
from tokenswarm.client.transport import make_target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.cluster.probes import Probes, calm_garbage_collection
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.errors import ConfigError, ResultsError
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.snapshot import Inbox
from tokenswarm.own_process import command_of
from tokenswarm.profile.environment import cache_folder
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.prompts import Message, Prompt
from tokenswarm.result.stat import half_width, latency, stamp_error_s

SENDER = Path(__file__).resolve().parent.parent.parent / "bench" / "paced_sender.c"
TTFT_MS, ITL_MS, TOKENS = 100.0, 20.0, 40
TOLERATED_S = 0.001  # TTFT p99 may be off by so much at a rung that counts as held
FILE_BYTES_MAX = 1 << 20


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """A number of streams, beside busy neighbours or not. Errors: seen − sent, s; bars: half of an interval / value."""

    streams: int
    busy: bool
    events_per_s: float
    cpu_ratio: float
    waited_ratio: float
    ttft_p50_error_s: float | None
    ttft_p99_error_s: float | None
    ttft_p50_bar: float | None
    itl_p99_bar: float | None
    merged_ratio: float
    held: bool  # TTFT p99 within a millisecond, and every answer whole


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept in the file and shown in the manifest."""

    version: str
    at: str
    host: str
    cpus: int
    sender: str
    rungs: list[Rung]

    @property
    def held_events_per_s(self) -> float | None:
        """The most that one worker held with the machine to itself."""
        return max((rung.events_per_s for rung in self.rungs if rung.held and not rung.busy), default=None)


def path() -> Path:
    return cache_folder() / "calibration.json"


def kept() -> Calibration | None:
    """What the last calibration of this machine found; None where there was none that can be read."""
    try:
        with path().open("rb") as file:
            found = msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Calibration)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None
    return found if (found.host, found.cpus) == (platform.node(), os.cpu_count()) else None


def keep(found: Calibration) -> Path:
    """Write it. Raises ResultsError."""
    at = path()
    fresh = at.with_suffix(f".{os.getpid()}")
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
        fresh.replace(at)
    except OSError as error:
        raise ResultsError(f"{at}: can't be written: {error.strerror or error}") from None
    return at


def calibrate(ladder: Sequence[int], seconds: float, say: Callable[[Rung], None]) -> Calibration:
    """Climb the ladder twice. Raises ConfigError where no sender starts."""
    rungs, senders = [], []
    calm_garbage_collection()
    for busy in (False, True):
        for streams in ladder:
            with _sender() as (name, port, truth), _neighbours(busy):
                rung = _rung(streams, busy, seconds, port, truth)
            rungs.append(rung)
            senders.append(name)
            say(rung)
    return Calibration(
        version=__version__,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=platform.node(),
        cpus=os.cpu_count() or 1,
        sender=senders[-1],
        rungs=rungs,
    )


Truth = Callable[[], dict[str, float]]
"""What was sent: the percentiles of TTFT, s, and `finished`."""


@contextlib.contextmanager
def _sender() -> Iterator[tuple[str, int, Truth]]:
    """(name, port, truth) of a sender that runs until the end of the block."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if SENDER.is_file() and compiler and sys.platform.startswith("linux"):
        command, name = [str(_built(compiler)), "--ttft-ms", f"{TTFT_MS:g}", "--itl-ms", f"{ITL_MS:g}"], "paced sender"
    else:
        command = command_of("tokenswarm.simulator", "--port", "0", "--preset", "paced")
        command += ["--ttft-ms", f"{TTFT_MS:g}", "--itl-ms", f"{ITL_MS:g}"]
        name = "embedded engine"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = _port(process.stdout.readline())
        if port is None:
            raise ConfigError(f"the {name} did not start; its own message stands above")
        yield name, port, lambda: _paced(port) if name == "paced sender" else _simulated(port)
    finally:
        process.terminate()
        process.wait()


def _built(compiler: str) -> Path:
    """The sender, compiled once for each version of its source."""
    program = cache_folder() / f"paced_sender-{int(SENDER.stat().st_mtime)}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run([compiler, "-O2", "-o", str(fresh), str(SENDER), "-lm"], capture_output=True, check=False)
        if done.returncode:
            raise ConfigError(
                f"{SENDER} does not compile with {compiler}: {done.stderr.decode(errors='replace')[:300]}"
            )
        fresh.replace(program)
    return program


def _port(line: str) -> int | None:
    digits = line.strip().rstrip("/").rpartition(":")[2].split("/")[0].split()
    return int(digits[0]) if digits and digits[0].isdigit() else None


def _get(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{what}", timeout=10) as answer:
        return json.load(answer)


def _paced(port: int) -> dict[str, float]:
    told = _get(port, "/truth")
    return {
        "finished": told["finished"],
        "events": told["tokens"],
        **{name: told["ttft_ns"][name] / NS_PER_S for name in ("p50", "p99")},
    }


def _simulated(port: int) -> dict[str, float]:
    told = _get(port, "/sim/truth")
    rows = [row for row in told["requests"] if row["outcome"] == "completed"]
    waited = sorted((row["first_sent_real_ns"] - row["received_real_ns"]) / NS_PER_S for row in rows)
    ranks = {name: waited[max(0, math.ceil(p * len(waited)) - 1)] for name, p in (("p50", 0.5), ("p99", 0.99))}
    return {"finished": len(rows), "events": told["totals"]["tokens_sent"], **ranks}


@contextlib.contextmanager
def _neighbours(busy: bool) -> Iterator[None]:
    """One spinning process a core, each a session, so a scheduling group, of its own."""
    command = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(command, start_new_session=True) for _ in range((os.cpu_count() or 1) * busy)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _rung(streams: int, busy: bool, seconds: float, port: int, truth: Truth) -> Rung:
    recorder = Recorder("calibrate", 0, start_ns=monotonic_ns(), host=platform.node(), pid=os.getpid())
    probes, decoder = Probes(recorder.instrument), Decoder(lambda: sys.exit("the decoder crashed"))
    pool = Pool(make_target(f"http://127.0.0.1:{port}", Tls()), 5.0, fresh=False)
    client = Client(
        DIALECTS["openai", "chat"], pool, decoder, recorder, timeouts=Timeouts(), headers={},
        event_bytes_max=1 << 20, keep_text=False, on_record=recorder.add,
    )  # fmt: skip
    probes.start()
    began_ns, cpu_s = monotonic_ns(), time.process_time()
    recorder.open_window(0, began_ns)
    ends_ns = began_ns + int(seconds * NS_PER_S)
    gevent.joinall([gevent.spawn(_user, number, streams, client, ends_ns) for number in range(streams)])
    took_s, used_s = (monotonic_ns() - began_ns) / NS_PER_S, time.process_time() - cpu_s
    probes.sample()
    probes.stop()
    inbox = Inbox("calibrate")
    inbox.put(recorder.snapshot(monotonic_ns(), final=True))
    decoder.close()
    pool.close()
    return _judged(streams, busy, took_s, used_s, inbox, truth())


def _judged(streams: int, busy: bool, took_s: float, used_s: float, inbox: Inbox, sent: dict[str, float]) -> Rung:
    merged = inbox.merged()
    block, error_s = merged.block(0), stamp_error_s(merged.workers)
    ttft, itl = latency(block, "ttft", error_s), latency(block, "itl", error_s)
    own = merged.workers[0].instrument
    errors = {which: None if (seen := getattr(ttft, which)) is None else seen - sent[which] for which in ("p50", "p99")}
    p99 = errors["p99"] if errors["p99"] is not None else errors["p50"]
    return Rung(
        streams=streams,
        busy=busy,
        events_per_s=block.events / took_s,
        cpu_ratio=used_s / took_s,
        waited_ratio=own.run_delay_ns / NS_PER_S / took_s,
        ttft_p50_error_s=errors["p50"],
        ttft_p99_error_s=errors["p99"],
        ttft_p50_bar=_bar(ttft.p50, ttft.low.get("p50"), ttft.high.get("p50")),
        itl_p99_bar=_bar(itl.p99, itl.low.get("p99"), itl.high.get("p99")) or itl.withheld.get("p99"),
        merged_ratio=block.merged_share("itl"),
        held=p99 is not None and abs(p99) <= TOLERATED_S and block.ok == sent["finished"],
    )


def _bar(value: float | None, low: float | None, high: float | None) -> float | None:
    share = math.inf if value is None or low is None else half_width(value, low, high)
    return share if math.isfinite(share) else None


def _user(number: int, streams: int, client: Client, ends_ns: int) -> None:
    gevent.sleep((TTFT_MS + ITL_MS * TOKENS) / 1000 * number / streams)
    sent = 0
    while monotonic_ns() < ends_ns or not sent:
        prompt = Prompt(str(number), (Message("user", "hello"),), "hello", str(number), sent)
        client.recorder.intended(0, "steady")
        request = Request(f"{number}-{sent}", prompt, 0, "steady", monotonic_ns())
        client.send(request, Sampling(model="sim", max_tokens=TOKENS))
        sent += 1
