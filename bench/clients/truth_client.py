"""A worker under random disturbance: prints each percentile with its interval, for bench.truth to judge.

`--pauses-ms`: the loop stands still now and then, as from work of its own; `--step-ms`: the wall clock is set once. The
clock of the machine is left alone: what this process reads of it, its kernel stamps included, is moved.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent

from tokenswarm.client import transport
from tokenswarm.client.decoding import Decoder
from tokenswarm.client.native import open_native
from tokenswarm.client.pool import Pool
from tokenswarm.client.sending import Client, Request
from tokenswarm.client.stamps import ClockPair, take_sent_stamps
from tokenswarm.client.transport import Connection, make_target
from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.cluster.probes import Probes, calm_garbage_collection, forget_spawners
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.snapshot import Inbox
from tokenswarm.profile.bars import Bar, Bars
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.prompts import Message, Prompt
from tokenswarm.result.stat import PERCENTILES, latency, stamp_error_s

METRICS = ("ttft", "itl", "e2e")
ALL = Bars(
    **{name: Bar(1e9, 1e9) for name in Bars.__struct_fields__}
)  # the bench looks at what users would not see, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("port", 0), ("streams", 1), ("tokens", 20), ("seed", 1), ("core", -1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("seconds", "stream-s", "pauses-ms", "step-ms"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    chosen = parser.parse_args()
    if chosen.core >= 0:
        os.sched_setaffinity(0, {chosen.core})
    print(json.dumps(measured(chosen)), flush=True)


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """Load the sender for some seconds; (value, low, high, withheld) of each percentile, s."""
    dice = random.Random(chosen.seed)
    recorder = Recorder("truth", 0, start_ns=monotonic_ns(), host="bench", pid=os.getpid())
    native = None  # a clock can be set for what Python reads of it alone
    if not chosen.step_ms:
        native = open_native(recorder.instrument, lambda: sys.exit("the reader crashed"))
    decoder = Decoder(lambda: sys.exit("the decoder crashed"), native)
    pool = Pool(make_target(f"http://127.0.0.1:{chosen.port}", Tls()), 5.0, fresh=dice.random() < 0.2)
    client = Client(
        DIALECTS["openai", "chat"], pool, decoder, recorder, timeouts=Timeouts(), headers={},
        event_bytes_max=1 << 20, keep_text=False, on_record=recorder.add,
    )  # fmt: skip
    probes = Probes(recorder.instrument)
    calm_garbage_collection()
    forget_spawners()
    probes.start()
    recorder.open_window(0, monotonic_ns())
    if chosen.step_ms:
        _set_clock(realtime_ns() + int(chosen.seconds * NS_PER_S * dice.uniform(0.3, 0.7)), int(chosen.step_ms * 1e6))
    disturber = gevent.spawn(_pause, chosen.pauses_ms, dice) if chosen.pauses_ms else None
    ends_ns = monotonic_ns() + int(chosen.seconds * NS_PER_S)
    gevent.joinall([gevent.spawn(_user, number, chosen, client, ends_ns) for number in range(chosen.streams)])
    if disturber is not None:
        disturber.kill()
    probes.sample()
    probes.stop()
    inbox = Inbox("truth")
    inbox.put(recorder.snapshot(monotonic_ns(), final=True))
    merged = inbox.merged()
    block, error_s = merged.block(0), stamp_error_s(merged.workers)
    found = {}
    for metric in METRICS:
        stat, users = latency(block, metric, error_s, ALL), latency(block, metric, error_s)
        found[metric] = {
            which: (getattr(stat, which), stat.low[which], stat.high[which], which in users.withheld)
            for which in PERCENTILES
            if which in stat.low
        }
    own = recorder.instrument
    return {
        "found": found, "ok": block.ok, "failed": block.failed, "merged": block.merged_events / max(1, block.events),
        "stamps_unsure": own.stamps_unsure, "sends_unstamped": own.sends_unstamped,
        "waited_ratio": own.run_delay_ns / max(1, merged.workers[0].elapsed_ns),
    }  # fmt: skip


def _user(number: int, chosen: argparse.Namespace, client: Client, ends_ns: int) -> None:
    gevent.sleep(min(1.0, chosen.stream_s) * number / chosen.streams)
    sent = 0
    while monotonic_ns() < ends_ns or not sent:
        prompt = Prompt(str(number), (Message("user", "hello"),), "hello", str(number), sent)
        client.recorder.intended(0, "steady")
        request = Request(f"{number}-{sent}", prompt, 0, "steady", monotonic_ns())
        client.send(request, Sampling(model="bench", max_tokens=chosen.tokens))
        sent += 1


def _pause(pause_ms: float, dice: random.Random) -> None:
    while True:
        gevent.sleep(dice.uniform(0.1, 0.6))
        time.sleep(dice.uniform(0.2, 1.0) * pause_ms / 1000)  # the loop's, not the greenlet's


def _set_clock(at_ns: int, by_ns: int) -> None:
    """From the moment `at_ns` of the wall clock on, everything that this process reads of it is `by_ns` later."""

    def moved(stamp_ns: int) -> int:
        return stamp_ns + by_ns if stamp_ns >= at_ns else stamp_ns

    def unpacked(data: bytes) -> tuple[int, int]:
        seconds, nanoseconds = original(data)
        return divmod(moved(seconds * NS_PER_S + nanoseconds), NS_PER_S)

    def sent(recvmsg: Callable[..., Any], *, one: bool = False) -> list[int]:
        return [moved(stamp_ns) for stamp_ns in take_sent_stamps(recvmsg, one=one)]

    def wall() -> int:
        return moved(realtime_ns())

    original = transport.unpack_timespec
    for name, value in (("unpack_timespec", unpacked), ("take_sent_stamps", sent), ("realtime_ns", wall)):
        setattr(transport, name, value)
    Connection.clocks = ClockPair(monotonic_ns, wall)


if __name__ == "__main__":
    main()
