"""Runs as a recorder would have counted them, with known faults: material for the tests of gates, verdict, reports."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tokenswarm.clock import NS_PER_S
from tokenswarm.gates import request_limits
from tokenswarm.profile import Dataset, Profile, Slo
from tokenswarm.record import Outcome, RequestRecord, TokenSource
from tokenswarm.recorder import Recorder
from tokenswarm.snapshot import Inbox, Merged
from tokenswarm.summary import StagePlan, Summary, summarize

RUN_ID = "20261124-001500-ab12"
MS = NS_PER_S // 1000

Ttft = Callable[[int], float]


def profile(slo: Slo | None = None, **changes: Any) -> Profile:
    """A profile of a synthetic data set; `changes` replace its fields."""
    fields: dict[str, Any] = {"target": ("http://127.0.0.1:8000",), "dataset": Dataset(format="synthetic")}
    return Profile(**{**fields, "slo": slo or Slo(), **changes})


def request(
    number: int, intended_ns: int, *, ttft_s: float = 0.1, itl_s: float = 0.02, **changes: Any
) -> RequestRecord:
    """A successful request of 9 tokens."""
    first_ns = intended_ns + int(ttft_s * NS_PER_S)
    gaps_ns = tuple(int((itl_s + 0.0001 * (i % 3)) * NS_PER_S) for i in range(8))
    stamps_ns = [first_ns]
    for gap_ns in gaps_ns:
        stamps_ns.append(stamps_ns[-1] + gap_ns)
    fields: dict[str, Any] = {
        "id": f"0-{number}",
        "outcome": Outcome.OK,
        "stage": 0,
        "phase": "steady",
        "intended_ns": intended_ns,
        "sent_ns": intended_ns + 50_000,
        "headers_ns": first_ns - 1000,
        "first_ns": first_ns,
        "first_answer_ns": first_ns,
        "last_ns": stamps_ns[-1],
        "done_ns": stamps_ns[-1] + 1000,
        "status": 200,
        "finish_reason": "length",
        "conversation": f"c{number}",
        "prompt_tokens": 40,
        "output_tokens": 9,
        "token_source": TokenSource.SERVER,
        "events": 9,
        "reads": 9,
        "bytes_received": 1800,
        "gaps_ns": gaps_ns,
        "token_stamps_ns": tuple(stamps_ns),
        "rx_lag_max_ns": 100_000,
        "stamp": "kernel",
    }
    return RequestRecord(**{**fields, **changes})


def failure(number: int, intended_ns: int, outcome: Outcome, kind: str, **changes: Any) -> RequestRecord:
    """A request that got nothing."""
    fields: dict[str, Any] = {
        "outcome": outcome,
        "first_ns": 0,
        "first_answer_ns": 0,
        "last_ns": 0,
        "done_ns": intended_ns + 5 * MS,
        "status": 503,
        "error": "service unavailable",
        "error_kind": kind,
        "output_tokens": 0,
        "events": 0,
        "gaps_ns": (),
        "token_stamps_ns": (),
    }
    return request(number, intended_ns, **{**fields, **changes})


def lognormal(median_s: float = 0.1, sigma: float = 0.1, seed: int = 7) -> Ttft:
    """Independent values around a median."""
    draw = random.Random(seed)
    return lambda _number: median_s * draw.lognormvariate(0.0, sigma)


def run(
    ok: int = 800,
    *,
    window_s: float = 100.0,
    slo: Slo | None = None,
    ttft: Ttft | None = None,
    ends: dict[Outcome, int] | None = None,
    stages: int = 1,
    workers: int = 1,
    prepare: Callable[[Recorder], None] = lambda _recorder: None,
    **changes: Any,
) -> Merged:
    """A finished run: `ok` successes and `ends` further requests in each stage's window, spread evenly over workers."""
    inbox = Inbox(RUN_ID)
    values = ttft or lognormal()
    for worker in range(workers):
        recorder = Recorder(RUN_ID, worker, request_limits(slo or Slo()), start_ns=0, host="host", pid=100 + worker)
        for tick in range(1000):
            recorder.instrument.loop_lag.add(0.0002 + 0.000001 * (tick % 100))
        recorder.instrument.loop_lag_ns_max = 300_000
        recorder.instrument.cpu_ratio_max = recorder.instrument.cpu_ratio_last = 0.3
        recorder.instrument.rx_lag.add(0.0001, 1000)
        for stage in range(stages):
            _fill(recorder, stage, range(worker, ok, workers), window_s, values, ends if worker == 0 else None, changes)
        prepare(recorder)
        inbox.put(recorder.snapshot(int((stages * (window_s + 10)) * NS_PER_S), final=True))
    return inbox.merged()


def _fill(
    recorder: Recorder,
    stage: int,
    numbers: range,
    window_s: float,
    ttft: Ttft,
    ends: dict[Outcome, int] | None,
    changes: dict[str, Any],
) -> None:
    open_ns = int((5 + stage * (window_s + 10)) * NS_PER_S)
    window_ns = int(window_s * NS_PER_S)
    recorder.open_window(stage, open_ns)
    records = [
        request(n, open_ns + window_ns * n // numbers.stop, ttft_s=ttft(n), stage=stage, **changes) for n in numbers
    ]
    for outcome, count in (ends or {}).items():
        for n in range(count):
            records.append(failure(10_000 + n, open_ns + window_ns * n // count, outcome, outcome.value, stage=stage))
    for record in sorted(records, key=lambda record: record.intended_ns):
        recorder.intended(stage, record.phase)
        recorder.started(stage, record.phase)
        recorder.ended(decoding=False)
        recorder.live_tokens(record.output_tokens)
        recorder.add(record)
    recorder.close_window(stage, open_ns + window_ns)


def summary(merged: Merged, *, users: int = 8, partial: bool = False) -> Summary:
    """The summary of the run, with twice the users in each further stage."""
    numbers = sorted({block.stage for block in merged.blocks})
    plan = [StagePlan(stage=number, concurrency=users << number) for number in numbers]
    return summarize(merged, plan=plan, partial=partial)
