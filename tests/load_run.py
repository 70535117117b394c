"""A synthetic run, made with the real recorder and inbox in virtual time, for tests of what becomes of it."""

from __future__ import annotations

import random
import urllib.error
import urllib.request
from itertools import pairwise
from typing import Any

from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.slo import Slo
from tokenswarm.measure.snapshot import Inbox, Merged
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource
from tokenswarm.result import envelope
from tokenswarm.result.envelope import Envelope, Parts, RunState
from tokenswarm.result.summary import StagePlan

MS = 1_000_000
S = 1000 * MS
START_NS = 7_000 * S

FAILURES = (Outcome.RESET, Outcome.HTTP_5XX, Outcome.STALLED, Outcome.CANCELLED, Outcome.CENSORED)


class SyntheticRun:
    """Stages of `seconds` each, the first one second of each warm-up. `advance` plays one second on all workers."""

    def __init__(
        self,
        run_id: str = "20261123-142233-a1b2",
        *,
        stages: tuple[int, ...] = (4, 8),
        seconds: int = 8,
        workers: int = 2,
        requests_per_s: int = 60,
        seed: int = 1,
        loop_lag_s: float = 0.0005,
        **state: Any,
    ) -> None:
        self.random, self.loop_lag_s = random.Random(seed), loop_lag_s
        self.stages, self.seconds, self.requests_per_s = stages, seconds, requests_per_s
        self.recorders = [
            Recorder(run_id, index, Slo(ttft_s=0.3), start_ns=START_NS, host="host", pid=100 + index)
            for index in range(workers)
        ]
        self.inbox = Inbox(run_id)
        self.second = self.seq = self._requests = 0
        self._parts = Parts()
        self.state = RunState(
            **{
                "run_id": run_id,
                "engine": "openai",
                "model": "small",
                "scenario": "sweep",
                "start_timestamp_s": 1_800_000_000.0,
                "stages": [StagePlan(stage=number, concurrency=users) for number, users in enumerate(stages)],
                "workers": {"running": workers},
                "info": {"dataset": "sharegpt.json", "version": "0.1.0"},
                **state,
            }
        )

    @property
    def over(self) -> bool:
        return self.second >= self.seconds * len(self.stages)

    def advance(self) -> None:
        """One second of requests on every worker, then their reports."""
        stage, second = divmod(self.second, self.seconds)
        now_ns = START_NS + self.second * S
        if second <= 1:
            for recorder in self.recorders:
                if second == 0 and stage:
                    recorder.close_window(stage - 1, now_ns)
                if second == 1:
                    recorder.open_window(stage, now_ns)
        self.state.stage, self.state.phase = stage, "steady" if second else "warmup"
        self.state.target_users = self.stages[stage]
        for index, recorder in enumerate(self.recorders):
            for _ in range(self.requests_per_s // len(self.recorders)):
                self._request(recorder, stage, now_ns + self.random.randrange(S))
            recorder.users = self.stages[stage] // len(self.recorders)
            recorder.instrument.loop_lag.add(self.loop_lag_s * (index + 1))
            recorder.instrument.rss_bytes = 90_000_000
            self.inbox.put(recorder.snapshot(now_ns + S))
        self.second += 1

    def _request(self, recorder: Recorder, stage: int, at_ns: int) -> None:
        self._requests += 1
        phase = self.state.phase
        ttft_ns = int(self.random.lognormvariate(-1.7, 0.6) * S)
        stamps = [at_ns + ttft_ns]
        for _ in range(self.random.randrange(2, 20)):
            stamps.append(stamps[-1] + int(self.random.lognormvariate(-4, 0.5) * S))
        outcome = FAILURES[self._requests // 25 % len(FAILURES)] if self._requests % 25 == 0 else Outcome.OK
        recorder.intended(stage, phase)
        recorder.started(stage, phase)
        recorder.first_token()
        recorder.live_tokens(len(stamps))
        recorder.ended(decoding=True)
        recorder.add(
            RequestRecord(
                id=f"r{self._requests}",
                outcome=outcome,
                stage=stage,
                phase=phase,
                intended_ns=at_ns - 2 * MS,
                sent_ns=at_ns,
                first_ns=stamps[0],
                first_answer_ns=stamps[0],
                last_ns=stamps[-1],
                done_ns=stamps[-1] + MS,
                prompt_tokens=self.random.randrange(1, 2000),
                output_tokens=len(stamps),
                token_source=TokenSource.SERVER,
                events=len(stamps),
                reads=len(stamps),
                gaps_ns=tuple(b - a for a, b in pairwise(stamps)),
                token_stamps_ns=tuple(stamps),
                engine=EngineTimes(queue_ns=5 * MS, prefill_ns=50 * MS, ttft_ns=60 * MS),
                draft_tokens=8,
                accepted_tokens=6,
            )
        )

    def finish(self) -> Merged:
        """The drain and the final reports."""
        now_ns = START_NS + self.second * S
        for recorder in self.recorders:
            recorder.close_window(len(self.stages) - 1, now_ns)
            recorder.users = 0
            self.inbox.put(recorder.snapshot(now_ns + S, final=True))
        self.state.phase, self.state.target_users = "ended", 0
        self.state.end_timestamp_s = self.state.start_timestamp_s + self.second + 1
        self.state.workers = {"done": len(self.recorders)}
        return self.inbox.merged()

    def play(self) -> Merged:
        """All of it at once."""
        while not self.over:
            self.advance()
        return self.finish()

    def envelope(self, merged: Merged | None = None) -> Envelope:
        """The next push."""
        self.seq += 1
        return Envelope(seq=self.seq, run=self.state, merged=self._parts.of(merged or self.inbox.merged()))

    def body(self, merged: Merged | None = None) -> bytes:
        return envelope.encode(self.envelope(merged))


def post(url: str, body: bytes, **headers: str) -> tuple[int, str]:
    """POST a push to an exporter's base or /metrics URL: status and text."""
    url = url.removesuffix("/metrics") + envelope.PATH
    told = {"Content-Type": envelope.CONTENT_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(url, data=body, headers=told, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
