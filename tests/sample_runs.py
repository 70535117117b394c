"""Runs as a recorder would have counted them, with known faults: material for the tests of gates, verdict, reports."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.gates import request_limits
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.snapshot import Inbox, Merged, add_into
from tokenswarm.profile.dataset import Dataset
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.slo import Slo
from tokenswarm.record import Outcome, RequestRecord, TokenSource
from tokenswarm.result.summary import Part, StagePlan, Summary, summarize
from tokenswarm.telemetry.gpu import CpuBlock, Gpu, GpuBlock
from tokenswarm.telemetry.histogram import Split
from tokenswarm.telemetry.join import Source
from tokenswarm.telemetry.kv import KvBlock
from tokenswarm.telemetry.server import (
    LATENCIES,
    Covered,
    LevelBlock,
    ReplicaBlock,
    RequestsCompared,
    RouterBlock,
    ServerBlock,
    TokensCompared,
    to_dict,
)

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


def shared_reads(share: float, ok: int = 8000, **more: Any) -> Merged:
    """A run in which `share` of the gaps of 20 ms are hidden: their read is that of the next event."""
    merged, due = run(0, **{"ends": {}, **more}), 0.0
    recorder = Recorder(RUN_ID, 9, request_limits(more.get("slo") or Slo()), start_ns=0, host="host", pid=109)
    recorder.open_window(0, 0)
    for number in range(ok):
        record, due = request(number, (number + 1) * NS_PER_S // 100), due + 8 * share
        if due >= 1:
            due -= 1
            gaps, stamps = record.gaps_ns, list(record.token_stamps_ns)
            stamps[4] = stamps[5]
            record = msgspec.structs.replace(
                record,
                gaps_ns=(*gaps[:3], gaps[3] + gaps[4], *gaps[5:]),
                gap_events=(1, 1, 1, 2, 1, 1, 1),
                merged_events=1,
                token_stamps_ns=tuple(stamps),
            )
        recorder.intended(0, "steady")
        recorder.started(0, "steady")
        recorder.ended(decoding=False)
        recorder.add(record)
    recorder.close_window(0, 100 * NS_PER_S)
    inbox = Inbox(RUN_ID)
    inbox.put(recorder.snapshot(200 * NS_PER_S, final=True))
    for block in inbox.merged().blocks:
        add_into(merged.block(block.stage, block.phase), block)
    for block in merged.blocks:
        block.rho_weighted = {}
    return merged


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


def watched(summary: Summary) -> Summary:
    """The summary with what an engine and two GPUs would have said: other numbers in each stage and of the run."""
    summary.server["metrics"] = {"sources": to_dict([_engine_page()]), **_engine_block(summary, 27.5)}
    summary.gpu = {"sources": to_dict([_gpu_page()]), **_gpu_block(summary, 401.5)}
    for n, stage in enumerate(summary.stages):
        stage.server["metrics"] = _engine_block(stage, min(0.9 * (stage.concurrency or 0), 30.0 + n))
        stage.gpu = _gpu_block(stage, 300.25 + 70 * n)
    return summary


def _engine_page() -> Source:
    return Source(
        url="http://gpu:8000/metrics", kind="vllm", version="0.33.1", looks=450, good=447, gaps={"timeout": 3},
        problem="did not answer within 1 s", facts={"num_gpu_blocks": "2179", "cache_dtype": "fp8"},
        missing=["itl_s"],
    )  # fmt: skip


def _gpu_page() -> Source:
    return Source(url="http://gpu:9647/metrics", kind="gpu", looks=451, good=449, gaps={"connect": 2}, problem="gone")


def _engine_block(part: Part, running: float) -> dict[str, Any]:
    """Everything that vLLM tells, with the batch given and all else in proportion to it."""
    client_per_s = part.throughput.output_tokens_per_s or 1.0
    use, preemptions = min(0.02 * running, 0.97), round(running / 9)
    block = ServerBlock(
        coverage=Covered(
            window_s=100.5 + running, covered_s=99.25 + running, samples=round(10 * running), gaps={"timeout": 1},
            hole_s=2.75 + running / 100, resets=round(running / 7), empty_windows=round(running / 12),
        ),
        running=LevelBlock(mean=running, max=running + 3),
        waiting=LevelBlock(mean=running / 4, max=running / 2),
        kv_cache_usage=LevelBlock(mean=use, max=use + 0.025),
        preemptions=preemptions,
        prefix_cache_hit_ratio=running / 128,
        prompt_tokens=round(1000 * running),
        generation_tokens=round(2000 * running),
        prompt_tokens_per_s=11.5 * running,
        generation_tokens_per_s=22.5 * running,
        output_tokens_compared=TokensCompared(
            server_per_s=22.5 * running, client_per_s=client_per_s, difference_ratio=running / 1000,
            tolerance_ratio=0.02 + running / 1e5, agree=running < 25,
        ),
        tokens_per_step_mean=running * 1.75,
        finished={"length": round(30 * running), "stop": round(4 * running), "abort": 0},
        rejected={"max_num_queued_reqs": round(running / 3)},
        latency={name: _split((k + 1) * running / 1000) for k, name in enumerate(LATENCIES)},
        requests_compared=RequestsCompared(
            server_good=round(34 * running), server_bad=round(running / 3) + 1, client_ok=34.5 * running,
            client_failed=running / 5, tolerance=running / 2,
        ),
        replicas=[
            ReplicaBlock(
                url=f"http://gpu{n}:8000/metrics", kind="vllm", covered_s=20.5 + n,
                running=LevelBlock(mean=running / (2 + n), max=running + n),
                waiting=LevelBlock(mean=running / (7 + n), max=running / 3 + n),
                kv_cache_usage=LevelBlock(mean=use / (1 + n), max=use), preemptions=round(running) + 3 + n,
                prefix_cache_hit_ratio=running / (130 + n), prompt_tokens=round(501 * running) + n,
                generation_tokens=round(1003 * running) + n, finished={"length": round(15 * running) + n},
                ttft_s_mean=running / (1001 + n),
            )
            for n in range(2)
        ],
        routers=[
            RouterBlock(
                url="http://router:29000/metrics", kind="vllm_router", requests=round(35 * running),
                retries=round(running) + 2, retries_exhausted=1, errors={"timeout": round(running / 4)},
                held=LevelBlock(mean=running / 2, max=running + 1),
            )
        ],
        models_loaded=LevelBlock(mean=running / 20, max=running / 10),
        vram_ratio_mean=running / 64,
    )  # fmt: skip
    kv = KvBlock(
        capacity_tokens=34_864, capacity_bytes=4.0e9, bytes_per_token=114_731.5, used_tokens_mean=use * 34_864,
        used_tokens_max=(use + 0.025) * 34_864, used_bytes_mean=use * 4e9, predicted_bytes_per_token=114_688.0,
        predicted_bytes_mean=use * 3.8e9, context_tokens_mean=44.5 + running, context_tokens_end=49.0 + running,
        batch_at_full=40.5 + running / 10, batch_at_full_end=36.5 + running / 10, notes=["layers with a window"],
    )  # fmt: skip
    return {**to_dict(block), "kv_cache": to_dict(kv)}


def _split(mean: float) -> Split:
    """p50 in the lowest bucket, p90 in one of the others, p99 beyond the highest."""
    n, bounds = round(1e6 * mean), (mean / 2, 2 * mean)
    return Split(
        n=n, mean=mean, p90=1.5 * mean, ranges={"p50": (0.0, mean / 2), "p90": bounds, "p99": (3 * mean, None)}
    )


def _gpu_block(part: Part, power_w: float) -> dict[str, Any]:
    gpus = [_gpu(n, power_w / 2 - 10 + 20 * n) for n in (0, 1)]
    per_s = part.throughput.output_tokens_per_s or 1.0
    block = GpuBlock(
        coverage=Covered(
            window_s=100.5 + power_w, covered_s=98.5 + power_w, samples=round(power_w), gaps={"connect": 2},
            hole_s=3.25, resets=round(power_w / 90), empty_windows=round(power_w / 200),
        ),
        count=2,
        gpus=gpus,
        energy_j=power_w * 100,
        power_w_mean=power_w,
        utilization_ratio_mean=power_w / 800,
        memory_used_bytes_max=power_w * 2**28,
        output_tokens_per_j=per_s / power_w,
        output_tokens_per_s_per_w=per_s / power_w,
        j_per_output_token=power_w / per_s,
        cost_per_million_output_tokens=2 * 3.5 / 3600 * 1e6 / per_s,
        price_per_gpu_hour=3.5,
        currency="EUR",
        cpu=CpuBlock(
            energy_j=power_w * 40, power_w_mean=power_w * 0.4, dram_energy_j=power_w * 5,
            j_per_output_token=0.4 * power_w / per_s, output_tokens_per_j=per_s / (0.4 * power_w),
        ),
    )  # fmt: skip
    return to_dict(block)


def _gpu(n: int, power_w: float) -> Gpu:
    return Gpu(
        gpu=f"GPU-{n}ab", index=str(n), name="NVIDIA H200", backend="nvml", observed_s=100.25 + n,
        energy_j=power_w * 100, power_w_mean=power_w, power_w_max=power_w + 31.5, utilization_ratio_mean=0.875 + n / 20,
        memory_used_bytes_max=power_w * 2**27, memory_total_bytes=(140.5 + n) * 2**30,
        clock_sm_hz_min=1.755e9 + n * 1e8, clock_sm_hz_max=1.965e9 + n * 1e8, clock_sm_hz_limit=1.98e9 + n * 1e8,
        clock_mem_hz_min=3.201e9 + n * 1e8,
        temperature_c_max=64.0 + n, temperature_memory_c_max=81.0 + n,
        throttle_s={"sw_power_cap": 12.5 + n, "hw_thermal": 1.5 + n, "sync_boost": 0.0}, xids={"79": 1 + n},
    )  # fmt: skip
