"""What a tokenswarm worker does with a stream, without Locust: Client, Pool, Decoder, Recorder, probes, rows, reports.

With --stamps each event's stamp and text (its true send time) are kept, and the error of each stamp is counted.
"""

from __future__ import annotations

import cProfile
import sys
import tempfile

import gevent

from bench.clients.measure import TICK_S, Options, Tally, options
from tokenswarm.client import transport
from tokenswarm.client.decoding import Decoder
from tokenswarm.client.native import open_native
from tokenswarm.client.pool import Pool
from tokenswarm.client.sending import Client, Request
from tokenswarm.client.transport import make_target
from tokenswarm.clock import monotonic_ns, realtime_ns
from tokenswarm.cluster.probes import Probes, calm_garbage_collection, forget_spawners
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.measure import budget, snapshot
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import RequestRecord
from tokenswarm.reports.jsonl import row

REPORT_S = 1.0
APIS = {
    "/v1/chat/completions": ("openai", "chat"),
    "/v1/completions": ("openai", "completions"),
    "/api/chat": ("ollama", "chat"),
    "/api/generate": ("ollama", "generate"),
}


def main() -> None:
    chosen = options()
    if chosen.without_bars:
        transport.ask_for_sent_stamps = lambda _sock: False
        budget.add = lambda _budget, _record: None
    profiler = cProfile.Profile() if chosen.profile else None
    recorder = Recorder("bench", 0, start_ns=monotonic_ns())
    probes = Probes(recorder.instrument)
    native = open_native(recorder.instrument, lambda: print("the reader crashed", file=sys.stderr))
    decoder = Decoder(lambda: print("the decoder crashed", file=sys.stderr), native)
    pool = Pool(make_target(f"http://127.0.0.1:{chosen.port}", Tls()), 5.0, fresh=False)
    calm_garbage_collection()
    forget_spawners()
    probes.start()
    tally = Tally(chosen)
    tally.extra |= {"merged_events": 0, "output_tokens": 0}
    with tempfile.TemporaryFile(buffering=1 << 18) as spool:

        def on_record(record: RequestRecord) -> None:
            recorder.add(record)
            spool.write(row(record, 0, recorder.start_ns, save_text=False))
            _note(tally, record)

        client = Client(
            DIALECTS[APIS[chosen.path]],
            pool,
            decoder,
            recorder,
            timeouts=Timeouts(),
            headers={},
            event_bytes_max=1 << 20,
            keep_text=chosen.stamps,
            on_record=on_record,
        )
        ticker, reporter = gevent.spawn(_tick, tally, recorder), gevent.spawn(_report, recorder, probes)
        if profiler:
            profiler.enable()
        sampling = Sampling(model="bench", max_tokens=chosen.tokens)
        users = [gevent.spawn(_user, number, chosen, tally, client, sampling) for number in range(chosen.streams)]
        gevent.joinall(users)
        if profiler:
            profiler.disable()
    gevent.killall([ticker, reporter])
    probes.stop()
    decoder.count_lags()
    tally.events = recorder.live_output_tokens
    tally.extra |= {
        "loop_lag_max_ns": recorder.instrument.loop_lag_ns_max,
        "rx_lag_p99_ns": int((recorder.instrument.rx_lag.quantile(0.99) or 0) * 1e9),
    }
    tally.report()
    if profiler and chosen.profile:
        profiler.dump_stats(chosen.profile)


def _user(number: int, chosen: Options, tally: Tally, client: Client, sampling: Sampling) -> None:
    gevent.sleep(chosen.start_s(number))
    sent = 0
    while tally.more(sent):
        prompt = Prompt(str(number), (Message("user", "hello"),), "hello", str(number), sent)
        client.recorder.intended(0, "steady")
        tally.open += 1
        client.send(Request(f"{number}-{sent}", prompt, 0, "steady", monotonic_ns()), sampling)
        tally.open -= 1
        sent += 1


def _note(tally: Tally, record: RequestRecord) -> None:
    tally.requests += 1
    tally.errors += not record.ok
    tally.extra["merged_events"] += record.merged_events
    tally.extra["output_tokens"] += record.output_tokens
    if record.ttft_ns is not None:
        tally.ttft_ns.append(record.ttft_ns)
    tally.itl_ns.extend(record.gaps_ns)
    if record.text:
        offset_ns = realtime_ns() - monotonic_ns()
        pairs = zip(record.token_stamps_ns, record.text.split(), strict=True)
        tally.error_ns.extend(stamp + offset_ns - int(sent) for stamp, sent in pairs)


def _tick(tally: Tally, recorder: Recorder) -> None:
    while True:
        tally.events = recorder.live_output_tokens
        tally.tick()
        gevent.sleep(TICK_S)


def _report(recorder: Recorder, probes: Probes) -> None:
    """What goes to the master each second, but for the sending."""
    while True:
        gevent.sleep(REPORT_S)
        probes.sample()
        snapshot.encode(recorder.snapshot(monotonic_ns()))


if __name__ == "__main__":
    main()
