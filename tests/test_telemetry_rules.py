"""What telemetry says about the verdict: each fault its own doubt, alone, and none where nothing was watched."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import sample_runs

from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.judge.rules.telemetry import RULES
from tokenswarm.profile.telemetry import Telemetry
from tokenswarm.result.summary import Doubt, Summary
from tokenswarm.telemetry import engines
from tokenswarm.telemetry.exposition import PageError

COVERED = {
    "window_s": 100.0, "covered_s": 100.0, "samples": 101, "gaps": {}, "hole_s": 1.05, "resets": 0, "empty_windows": 0,
}  # fmt: skip
COMPARED = {
    "server_per_s": 72.5, "client_per_s": 72.0, "difference_ratio": 0.007, "tolerance_ratio": 0.02, "agree": True,
}  # fmt: skip


def source(**more: Any) -> dict[str, Any]:
    return {"url": "http://x/metrics", "good": 101, "looks": 101, "gaps": {}, "problem": "", **more}


def gpu(**more: Any) -> dict[str, Any]:
    return {"gpu": "A", "lost": False, "observed_s": 100.0, "throttle_s": {"sw_thermal": 0.0}, "xids": {}, **more}


class Case:
    """A good run in which all was watched; faults change it."""

    def __init__(self) -> None:
        self.summary: Summary = sample_runs.summary(sample_runs.run(ok=50))
        self.metrics: dict[str, Any] = {
            "sources": [source()], "coverage": dict(COVERED), "output_tokens_compared": dict(COMPARED),
        }  # fmt: skip
        self.summary.server["metrics"] = self.metrics
        self.gpu = self.summary.gpu
        self.gpu.update({"sources": [source()], "coverage": dict(COVERED), "gpus": [gpu(), gpu(gpu="B")]})
        self.telemetry = Telemetry(gpu_exporters=("http://g/metrics",))

    def doubts(self) -> list[Doubt]:
        evidence = Evidence(
            merged=sample_runs.run(ok=1), expected_workers=1, profile=sample_runs.profile(telemetry=self.telemetry)
        )
        return [doubt for rule in RULES if (doubt := rule(evidence, self.summary)) is not None]


def test_a_run_that_was_watched_all_the_time_has_no_doubt() -> None:
    assert Case().doubts() == []


def test_what_a_source_said_last_is_told_whole() -> None:
    case = Case()
    with pytest.raises(PageError) as nobody:
        engines.read(b"up 1\n")
    case.metrics["sources"].append(source(good=0, gaps={"not_metrics": 9}, problem=str(nobody.value)))
    (found,) = case.doubts()
    assert f"({nobody.value}): that part" in found.message


def test_several_processes_at_one_address_are_one_doubt_that_says_what_to_give() -> None:
    case = Case()
    case.metrics["sources"] = [source(gaps={"several_processes": 9})]
    case.metrics["coverage"]["empty_windows"] = 1
    (found,) = case.doubts()
    assert (found.code, found.severity) == ("engine-telemetry-gaps", "degraded")
    assert "Several processes answer at http://x/metrics in turn" in found.message
    assert "`telemetry.engine_metrics` each engine's own address" in found.message


def test_old_pages_of_a_cache_are_one_doubt_that_says_what_to_give() -> None:
    case = Case()
    for sources in (case.metrics["sources"], case.gpu["sources"]):
        sources[:] = [source(gaps={"cached": 9})]
    engine, gpus = case.doubts()
    assert (engine.code, gpus.code) == ("engine-telemetry-gaps", "gpu-telemetry-gaps")
    assert "A cache on the path answers at http://x/metrics with old pages" in engine.message
    assert "`telemetry.engine_metrics` each engine's own address" in engine.message
    assert "`telemetry.gpu_exporters` the address behind it" in gpus.message


def test_a_run_that_was_not_watched_has_none_either() -> None:
    case = Case()
    case.summary.server, case.summary.gpu = {}, {}
    assert case.doubts() == []


FAULTS: dict[str, tuple[str, str, Any]] = {
    "three looks in a row were missed": (
        "engine-telemetry-gaps", "note", lambda c: c.metrics["coverage"].update(hole_s=4.0, gaps={"timeout": 3}),
    ),
    "a fifth of the time was missed": ("engine-telemetry-gaps", "degraded", lambda c: c.metrics["coverage"].update(
        hole_s=20.0)),
    "a window without readings": ("engine-telemetry-gaps", "degraded", lambda c: c.metrics["coverage"].update(
        empty_windows=1)),
    "one of two replicas has no metrics": (
        "engine-telemetry-gaps", "degraded", lambda c: c.metrics["sources"].append(source(good=0, problem="HTTP 404")),
    ),
    "the engine restarted": ("engine-restarted", "degraded", lambda c: c.metrics["coverage"].update(resets=1)),
    "4 % more tokens": (
        "server-tokens-disagree", "note",
        lambda c: c.metrics["output_tokens_compared"].update(difference_ratio=0.04, agree=False),
    ),
    "half the tokens": (
        "server-tokens-disagree", "degraded",
        lambda c: c.metrics["output_tokens_compared"].update(difference_ratio=-0.5, agree=False),
    ),
    "the exporter was silent for 5 s": (
        "gpu-telemetry-gaps", "note", lambda c: c.gpu["coverage"].update(hole_s=5.0),
    ),
    "the exporter was never there": (
        "gpu-telemetry-gaps", "degraded", lambda c: c.gpu["sources"][0].update(good=0, problem="can't connect"),
    ),
    "the exporter restarted": ("gpu-telemetry-gaps", "note", lambda c: c.gpu["coverage"].update(resets=2)),
    "a GPU went": ("gpu-lost", "degraded", lambda c: c.gpu["gpus"][1].update(lost=True)),
    "an XID": ("gpu-error", "degraded", lambda c: c.gpu["gpus"][0].update(xids={"79": 1, "8": 2})),
    "too hot for 5 % of the time": (
        "gpu-throttled", "degraded", lambda c: c.gpu["gpus"][0].update(throttle_s={"sw_thermal": 5.0}),
    ),
    "the clocks are locked": ("gpu-clocks-held", "degraded", lambda c: c.gpu["gpus"][0].update(
        clock_sm_hz_max=1.2e9, clock_sm_hz_limit=1.98e9, utilization_ratio_mean=0.9)),
    "at the power limit": (
        "gpu-throttled", "note", lambda c: c.gpu["gpus"][0].update(throttle_s={"sw_power_cap": 80.0}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_one_doubt(fault: str) -> None:
    code, severity, inject = FAULTS[fault]
    case = Case()
    inject(case)
    (doubt,) = case.doubts()
    assert (doubt.code, doubt.severity) == (code, severity)
    assert doubt.message.endswith(".")
    assert len(doubt.message) < 400
    assert msgspec.json.decode(msgspec.json.encode(doubt), type=Doubt) == doubt


def test_every_rule_has_a_fault() -> None:
    assert len({code for code, _, _ in FAULTS.values()}) == len(RULES)


def test_a_target_where_auto_found_no_metrics_is_no_fault() -> None:
    case = Case()
    case.metrics["sources"] = [source(good=0, problem="/metrics answered HTTP 404")]
    case.metrics["coverage"].update(empty_windows=1, hole_s=100.0)
    case.metrics["output_tokens_compared"] = None
    assert case.doubts() == []
    case.telemetry = Telemetry(engine_metrics=("http://x/metrics",), gpu_exporters=("http://g/metrics",))
    assert [doubt.code for doubt in case.doubts()] == ["engine-telemetry-gaps"]


def test_a_blip_is_no_throttling_and_a_wider_interval_no_gap() -> None:
    case = Case()
    case.gpu["gpus"][0].update(throttle_s={"sw_thermal": 0.9})
    case.telemetry = Telemetry(gpu_exporters=("http://g/metrics",), interval=10.0)  # type: ignore[arg-type]
    case.metrics["coverage"].update(hole_s=20.0)
    assert case.doubts() == []


def test_locked_clocks_are_named_and_those_of_an_idle_card_are_not() -> None:
    case = Case()
    locked = {"clock_sm_hz_max": 1.2e9, "clock_sm_hz_limit": 1.98e9, "utilization_ratio_mean": 0.97}
    case.gpu["gpus"][1].update(locked | {"utilization_ratio_mean": 0.1})
    assert case.doubts() == []
    case.gpu["gpus"][1].update(locked)
    (found,) = case.doubts()
    assert (found.code, found.severity) == ("gpu-clocks-held", "degraded")
    assert "1 of 2 GPUs never ran faster than 61% of their highest SM clock" in found.message
    case.gpu["gpus"][1].update(clock_sm_hz_max=1.9e9)
    assert case.doubts() == []
