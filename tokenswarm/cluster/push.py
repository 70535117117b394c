"""Pushes the run's counts to a load exporter each second. A watcher of the controller that never holds the run up.

One greenlet pushes; the controller only leaves its newest sums here. A push may take 2 s, then it is dropped and
counted: the next one holds everything. That nothing arrives is said once a run. The last push carries the end and the
verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import gevent

from tokenswarm import __version__
from tokenswarm.client import preflight
from tokenswarm.client.page import request
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import Target
from tokenswarm.clock import NS_PER_S, monotonic_ns, realtime_ns
from tokenswarm.load.rate import Rate
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.environment import push_headers
from tokenswarm.profile.load import Stage
from tokenswarm.profile.profile import Profile
from tokenswarm.result import envelope
from tokenswarm.result.envelope import Envelope, Judgement, KvState, Parts, RunState, StageState
from tokenswarm.result.summary import Verdict, plan_of
from tokenswarm.telemetry.join import StageTold
from tokenswarm.telemetry.kv import KvBlock

if TYPE_CHECKING:
    from tokenswarm.cluster.members import Member  # at run time it would bring all of Locust along

INTERVAL_S = 1.0
PATIENCE_S = 2.0  # for one push, from connecting to the answer
TEXT_MAX = 512  # of a name in the envelope


class Teller(Protocol):
    """Who knows what engine and GPUs tell while the run goes on."""

    def kv(self, merged: Merged) -> KvBlock | None: ...
    def stages(self, merged: Merged) -> Mapping[int, StageTold]: ...
    def targets(self) -> dict[str, list[str]]: ...


class Push:
    """Use it as a context around the run; `finish` in it sends the last push. Without a target it does nothing."""

    def __init__(
        self,
        state: RunState,
        target: Target | None,
        headers: Mapping[str, str],
        members: Callable[[], Iterable[Member]],
        say: Callable[[str], None],
        teller: Teller | None = None,
    ) -> None:
        self.pushed = 0
        self._state = state
        self._target = target
        self._headers = {"content-type": envelope.CONTENT_TYPE, **headers}
        self._members = members
        self._say = say
        self._teller = teller
        self._said = False
        self._merged = Merged(run_id=state.run_id)
        self._parts = Parts()
        self._seq = 0
        self._rate: Rate | None = None  # of an open loop's stage,
        self._rate_ns = 0  # and since when
        self._greenlet: gevent.Greenlet | None = None
        self._finished = target is None

    @property
    def dropped(self) -> int:
        """Pushes that did not arrive."""
        return self._state.pushes_dropped

    # What the controller says.

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None:
        """Another phase begins."""
        self._state.stage = number
        self._state.target_users = stage.users or 0 if stage else 0
        rate = stage.rate if stage is not None else None
        if rate is None:
            self._rate = None
        elif phase == "warmup":
            ramp_s = stage.duration if stage is not None and len(rate) > 1 else 0.0
            self._rate, self._rate_ns = Rate(rate[0], rate[-1], lead_s=seconds, ramp_s=ramp_s), monotonic_ns()
        if stage is not None:  # which an interrupted run may come to the drain without
            self._state.stages[number : number + 1] = [plan_of(number, stage)]
            self._state.stage_starts.setdefault(number, realtime_ns() / NS_PER_S)
        self._state.phase = phase  # type: ignore[assignment]  # the controller's phases are those of the envelope

    def tick(self, merged: Merged) -> None:
        """The newest sums. They are not changed afterwards, so the greenlet may read them when it likes."""
        self._merged = merged

    def note(self, text: str) -> None:
        """Nothing: notes go to the console."""

    # Pushing.

    def __enter__(self) -> Push:
        if self._target is not None:
            self._greenlet = gevent.spawn(self._push_forever)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):
            self.finish(self._merged)
        self._stop()  # else the user wants to be gone at once

    def finish(self, merged: Merged, verdict: Verdict | None = None) -> None:
        """The last push, with the end of the run and its verdict. Waits up to 2 s; does nothing a second time."""
        if self._finished:
            return
        self._finished = True
        self._stop()
        self._merged = merged
        self._state.phase, self._state.target_users, self._rate = "ended", 0, None
        self._state.end_timestamp_s = realtime_ns() / NS_PER_S
        if verdict is not None and verdict.status is not None:
            self._state.verdict = Judgement(verdict.status, {doubt.code: doubt.severity for doubt in verdict.doubts})
        self._push()

    def _stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _push_forever(self) -> None:
        while True:
            began_ns = monotonic_ns()
            self._push()
            gevent.sleep(max(0.0, INTERVAL_S - (monotonic_ns() - began_ns) / NS_PER_S))

    def _push(self) -> None:
        assert self._target is not None  # else nothing is started
        self._seq += 1
        self._state.workers = _count(self._members(), begun=self._state.stage >= 0)
        rate, since_s = self._rate, (monotonic_ns() - self._rate_ns) / NS_PER_S
        self._state.target_rate = None if rate is None else rate.at(since_s)
        if self._teller is not None:
            self._state.targets = self._teller.targets()
            self._state.kv_cache = _kv_state(self._teller.kv(self._merged))
            self._state.stage_telemetry = {
                stage: StageState(
                    engine_batch=told.engine_batch, engine_waiting=told.engine_waiting, power_watts=told.power_w_mean
                )
                for stage, told in self._teller.stages(self._merged).items()
            }
        parts = self._parts.of(self._merged)
        body = envelope.encode(Envelope(seq=self._seq, run=self._state, merged=parts))
        try:
            page = request(self._target, "POST", envelope.PATH, self._headers, body, timeout_s=PATIENCE_S)
            text = page.body.decode(errors="replace").strip()
            problem = "" if page.status == 204 else f"HTTP {page.status}, {text[:200] or 'no reason given'}"
            problem += "; is that the address of `python -m exporters.load`?" if page.status in (404, 405) else ""
        except TransportError as error:
            problem = error.sentence
        if not problem:
            self.pushed += 1
            return
        self._state.pushes_dropped += 1
        if not self._said:
            self._said = True
            self._say(f"nothing is pushed to {self._target.url}: {problem}; the run goes on without it")


def base_of(url: str) -> str:
    """The exporter's base URL, where what it says when it starts was given: the address of its page."""
    return url.rstrip("/").removesuffix(envelope.PATH).removesuffix("/metrics")


def _kv_state(block: KvBlock | None) -> KvState | None:
    if block is None:
        return None
    return KvState(
        predicted_bytes_per_token=block.predicted_bytes_per_token,
        engine_bytes_per_token=block.bytes_per_token,
        predicted_bytes=block.predicted_bytes_mean,
        used_bytes=block.used_bytes_mean,
        capacity_bytes=block.capacity_bytes,
        batch_at_full=block.batch_at_full,
    )


def _count(members: Iterable[Member], *, begun: bool) -> dict[str, int]:
    """Workers by state."""
    counts = dict.fromkeys(envelope.WORKER_STATES, 0)
    for member in members:
        gone = member.lost or member.left  # one that left hands its rows over, and its load is missing all the same
        state = "missing" if gone else "done" if member.done else "running" if begun else "ready"
        counts[state] += member.prepared or state == "missing"
    return counts


def of_run(
    profile: Profile,
    manifest: Mapping[str, Any],
    members: Callable[[], Iterable[Member]],
    say: Callable[[str], None],
    teller: Teller | None = None,
) -> Push:
    """What pushes this run. Raises ConfigError where the token's variable is not set or the CA file is unusable."""
    versions = (manifest.get("engine") or {}).get("version") or {}
    info = {
        "engine_version": next(iter(versions.values()), ""),
        "dataset": Path(profile.dataset.path).name if profile.dataset.path else profile.dataset.format,
        "arrival": profile.load.kind,
        "config_hash": hashlib.sha256(profiles.encode(profile)).hexdigest()[:12],
        "git_revision": (manifest.get("git_revision") or "")[:12],
        "version": __version__,
    }
    state = RunState(
        run_id=manifest["run_id"],
        engine=profile.engine.kind,
        model=(profile.engine.model or "")[:TEXT_MAX],
        scenario=profile.name,
        start_timestamp_s=realtime_ns() / NS_PER_S,
        stages=[plan_of(number, stage) for number, stage in enumerate(profile.load.stages)],
        info={name: text[:TEXT_MAX] for name, text in info.items()},
        bars=profile.bars,
    )
    url = profile.telemetry.push
    target = None if url is None else preflight.make_checked_target(profile, base_of(url))
    return Push(state, target, push_headers(profile.telemetry), members, say, teller)
