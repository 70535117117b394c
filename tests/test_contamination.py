"""What gets into a measurement beside the load: each injected into the embedded engine and named, none when clean."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sample_runs
from retrying_router import retrying_router
from running import SAMPLES, Finished, run, tokenswarm
from simulator_process import simulator

from tokenswarm.errors import ConfigError
from tokenswarm.judge.rules import contamination
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.measure.statistics import slow_first
from tokenswarm.profile.engine import Engine
from tokenswarm.record import Outcome
from tokenswarm.result.summary import Doubt, Summary
from tokenswarm.simulator import conditions
from tokenswarm.simulator.batching import Cold

CODES = {rule.__name__.replace("_", "-") for rule in contamination.RULES}
PROFILE = """
target: [TARGET]
engine: {model: sim}
dataset: {path: SAMPLES, conversations: single, rounds: ROUNDS, output_tokens: {fixed: 10}}
load: {stages: [STAGES]}
phases: {warmup: WARMUP, settle: 0s, drain: 5s}
telemetry: {engine_metrics: [METRICS], interval: 500ms}
"""
PACE = ("--preset", "paced", "--ttft-ms", "100", "--itl-ms", "5")


def judged(
    target: str,
    home: Path,
    *,
    metrics: str,
    stages: str = "{users: 4, duration: 4s}",
    warmup: str = "500ms",
    rounds: str = "same",
) -> Finished:
    text = PROFILE.replace("SAMPLES", str(SAMPLES / "sharegpt.json")).replace("STAGES", stages)
    for word, value in (("TARGET", target), ("WARMUP", warmup), ("METRICS", metrics), ("ROUNDS", rounds)):
        text = text.replace(word, value)
    (home / "profile.yaml").write_text(text, encoding="utf-8")
    return run(tokenswarm("run", str(home / "profile.yaml"), "--workers", "1"), home)


def named(finished: Finished) -> dict[str, dict[str, Any]]:
    doubts = finished.summary["verdict"]["doubts"]
    return {doubt["code"]: doubt for doubt in doubts if doubt["code"] in CODES | {"server-tokens-disagree"}}


# -- injected into the embedded engine ---------------------------------------------------------------------------------

WORLDS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "clean": (("--condition", "prefix_cache"), {}),
    "tenant": (("--condition", "tenant:6"), {}),
    "prefix cache": (
        ("--condition", "prefix_cache"), {"stages": "{users: 1, duration: 2s}, {users: 4, duration: 4s}"},
    ),
    "distinct rounds": (
        ("--condition", "prefix_cache"),
        {"stages": "{users: 1, duration: 2s}, {users: 4, duration: 4s}", "rounds": "distinct"},
    ),
    "cold": (
        ("--condition", "cold:2", "--ttft-ms", "40", "--itl-ms", "2"),
        {"warmup": "0s", "stages": "{users: 1, duration: 8s}"},  # more users: chance says when a batch size is new
    ),
    "router": (("--fault", "http_503:0.3"), {}),
    "another replica": ((), {"stages": "{users: 8, duration: 4s}"}),
}  # fmt: skip


def _world(name: str, home: Path) -> Finished:
    options, told = WORLDS[name]
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(simulator(*PACE, *options))
        target = engine.url
        if name == "router":
            target = stack.enter_context(retrying_router(engine.url))
        elif name == "another replica":
            target = f"{engine.url}, {stack.enter_context(simulator(*PACE)).url}"
        return judged(target, home, metrics=f"{engine.url}/metrics", **told)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Finished]]]:
    """Every run, three at a time: each mostly waits."""
    with ThreadPoolExecutor(3) as pool:
        homes = {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in WORLDS}
        yield {name: pool.submit(_world, name, home) for name, home in homes.items()}


Worlds = dict[str, "Future[Finished]"]


def test_another_tenant_is_named_with_his_share(worlds: Worlds) -> None:
    found = named(worlds["tenant"].result())
    assert set(found) == {"foreign-load"}
    assert found["foreign-load"]["severity"] == "degraded"
    # 4 users have 27 answers a second; 6 foreign streams of 64 tokens, 415 ms each, 14.
    assert found["foreign-load"]["evidence"]["share"] == pytest.approx(14 / 41, abs=0.15)
    assert "Keep others off it" in found["foreign-load"]["message"]


def test_a_cache_that_fills_up_over_a_sweep_is_named_with_its_shares(worlds: Worlds) -> None:
    finished = worlds["prefix cache"].result()
    found = named(finished)
    assert set(found) == {"prefix-cache-warmed"}
    shares = found["prefix-cache-warmed"]["evidence"]["cached_by_stage"]
    assert shares["1"] - shares["0"] > 0.1
    assert shares["1"] == finished.summary["stages"][1]["server"]["metrics"]["prefix_cache_hit_ratio"]


def test_no_cache_knows_what_begins_anew_in_each_round(worlds: Worlds) -> None:
    """The samples are through after 43 requests, and the engine knows each prompt that it had before."""
    summary = worlds["distinct rounds"].result().summary
    assert summary["instrument"]["dataset_wraps"] > 0
    assert [stage["server"]["metrics"]["prefix_cache_hit_ratio"] for stage in summary["stages"]] == [0.0, 0.0]
    assert {doubt["code"] for doubt in summary["verdict"]["doubts"]}.isdisjoint({"dataset-wrapped", *CODES})


def test_what_is_cold_inside_a_window_is_named_with_its_requests(worlds: Worlds) -> None:
    cold = named(worlds["cold"].result())
    assert set(cold) == {"cold-start"}
    evidence = cold["cold-start"]["evidence"]
    assert evidence["requests"] == 1
    assert 2 < evidence["longest_s"] < 20
    assert "Lengthen `phases.warmup`" in cold["cold-start"]["message"]


def test_a_routers_second_attempts_are_named_without_its_own_counters(worlds: Worlds) -> None:
    finished = worlds["router"].result()
    assert finished.summary["requests"]["failed"] <= 2
    found = named(finished)
    assert set(found) == {"router-retries"}
    share = found["router-retries"]["evidence"]["retries"] / found["router-retries"]["evidence"]["sent"]
    assert share == pytest.approx(0.3 / 0.7, abs=0.2)


def test_answers_of_a_replica_that_nobody_watches_are_named(worlds: Worlds) -> None:
    found = named(worlds["another replica"].result())
    assert set(found) == {"requests-elsewhere"}
    assert found["requests-elsewhere"]["evidence"]["share"] == pytest.approx(0.5, abs=0.15)


def test_a_clean_run_has_none_of_them(worlds: Worlds) -> None:
    finished = worlds["clean"].result()
    assert named(finished) == {}
    compared = finished.summary["server"]["metrics"]["requests_compared"]
    assert abs(compared["server_good"] - compared["client_ok"]) <= compared["tolerance"] < compared["client_ok"] / 2


# -- by value ----------------------------------------------------------------------------------------------------------


COVERAGE = {"samples": 100, "window_s": 100.0, "covered_s": 99.0, "hole_s": 1.1, "gaps": {}}


def metrics(**more: Any) -> dict[str, Any]:
    compared = {"server_good": 1000, "server_bad": 0, "client_ok": 1000.0, "client_failed": 0.0, "tolerance": 20.0}
    return {
        "requests_compared": compared | more, "coverage": COVERAGE, "running": {"mean": 7.0}, "routers": [],
    }  # fmt: skip


def doubts(
    summary: Summary, merged: Any = None, dataset: dict[str, Any] | None = None, **profile: Any
) -> dict[str, Doubt]:
    evidence = Evidence(
        merged=merged or sample_runs.run(ok=1),
        expected_workers=1,
        profile=sample_runs.profile(**profile),
        dataset=dataset or {},
    )
    found = [rule(evidence, summary) for rule in contamination.RULES]
    return {doubt.code: doubt for doubt in found if doubt is not None}


def summary(told: dict[str, Any], **run: Any) -> Summary:
    made = sample_runs.summary(sample_runs.run(**{"ok": 1000, **run}))
    made.batch_mean = 8.0
    made.server["metrics"] = told
    return made


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str, float]] = {
    "200 answers for others": (metrics(server_good=1200), {}, "foreign-load", 200 / 1200),
    "requests that nobody reads": (metrics() | {"running": {"mean": 16.0}}, {}, "foreign-load", 0.5),
    "a replica that is not watched": (metrics(server_good=500), {}, "requests-elsewhere", 0.5),
    "a router's own counter": (
        metrics() | {"routers": [{"kind": "vllm_router", "url": "http://r", "retries": 40, "retries_exhausted": 2}]},
        {}, "router-retries", 40 / 1000,
    ),
    "errors that the client never saw": (metrics(server_bad=90), {}, "router-retries", 90 / 1000),
    "refusals that no engine saw": (
        metrics(client_failed=60.0), {"ends": {Outcome.HTTP_5XX: 60}}, "requests-lost", 60 / 1060,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_has_its_own_name_and_its_share(fault: str) -> None:
    told, run, code, share = FAULTS[fault]
    found = doubts(summary(told, **run))
    assert set(found) == {code}
    evidence = found[code].evidence
    shown = evidence.get("share", evidence.get("retries", evidence.get("lost", 0)) / max(1, evidence.get("sent", 1)))
    assert shown == pytest.approx(share)
    assert len(found[code].message) < 400


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"covered_s": 40.0, "hole_s": 60.0, "gaps": {"connect": 60}}, set()),
        ({"hole_s": 30.0, "gaps": {"connect": 30}}, set()),
        ({"covered_s": 40.0, "hole_s": 5.0}, set()),
        ({"hole_s": 2.0, "gaps": {"timeout": 1}}, {"foreign-load"}),
    ],
    ids=["died", "away and back", "restarted", "one look missed"],
)
def test_what_an_engine_ran_before_it_died_is_nobody_elses(part: dict[str, Any], found: set[str]) -> None:
    told = metrics() | {"requests_compared": None, "running": {"mean": 16.0}, "coverage": COVERAGE | part}
    assert set(doubts(summary(told))) == found


def test_several_choices_are_not_compared_with_requests() -> None:
    assert doubts(summary(metrics(server_good=3000)), engine=Engine(choices=3)) == {}


def test_a_conversations_own_history_in_the_cache_is_no_repeat() -> None:
    """Follow-ups find their history there: a window that holds more of them is no cache that filled up."""
    merged = sample_runs.run(ok=1000, stages=2)
    first, last = merged.blocks
    first.prompt_tokens = last.prompt_tokens = 100_000
    first.cached_tokens, last.cached_tokens = 50_000, 80_000
    first.first_prompt_tokens, last.first_prompt_tokens = 40_000, 10_000
    assert doubts(sample_runs.summary(merged), merged) == {}
    last.first_cached_tokens = 2_000
    found = doubts(sample_runs.summary(merged), merged)["prefix-cache-warmed"]
    assert found.evidence["cached_by_stage"] == {"0": 0.0, "1": 0.2}
    assert "0% of the prompt tokens of first turns came from it in the first, 20% in the last" in found.message


@pytest.mark.parametrize(
    ("cached", "first_cached", "first_prompt", "engine", "share"),
    [
        (60_000, 30_000, 40_000, None, 0.75),  # answers tell
        (60_000, 19_000, 40_000, 0.9, None),  # of first turns less than half
        (0, 0, 40_000, 0.9, 0.75),  # the engine tells: 60 % of the tokens are of later turns
        (0, 0, 40_000, 0.7, None),
        (0, 0, 100_000, 0.7, 0.7),
        (0, 0, 0, 1.0, None),
        (0, 0, 100_000, None, None),
    ],
)
def test_what_an_earlier_run_left_in_the_cache_is_told(
    cached: int, first_cached: int, first_prompt: int, engine: float | None, share: float | None
) -> None:
    merged = sample_runs.run(ok=1000)
    (block,) = merged.blocks
    block.prompt_tokens, block.cached_tokens = 100_000, cached
    block.first_prompt_tokens, block.first_cached_tokens = first_prompt, first_cached
    told = sample_runs.summary(merged)
    told.server["metrics"] = metrics() | {"prefix_cache_hit_ratio": engine, "running": {}}
    found = doubts(told, merged)
    assert set(found) == ({"prefix-cache-hits"} if share else set())
    assert [doubt.evidence["share"] for doubt in found.values()] == [pytest.approx(share)] * len(found)
    assert set(doubts(told, merged, {"rows_kept": 100, "duplicates": 3})) == set(found), "they are too few to be it"
    assert doubts(told, merged, {"rows_kept": 10, "duplicates": 9}) == {}, "another doubt says why"
    told.instrument.dataset_wraps = 1
    assert doubts(told, merged) == {}, "another doubt says why"


def test_a_cold_model_of_ollama_is_named_by_its_own_durations() -> None:
    merged = sample_runs.run(ok=1000)
    merged.blocks[-1].engine_load.add(0.005, 980)
    merged.blocks[-1].engine_load.add(4.3, 20)
    found = doubts(sample_runs.summary(merged), merged)
    assert (found["cold-start"].severity, found["cold-start"].evidence["requests"]) == ("degraded", 20)
    assert "waited up to 4.3 s for the model to be loaded" in found["cold-start"].message


def test_the_first_values_are_slow_only_where_they_are_of_another_kind() -> None:
    usual = [0.1 + 0.001 * (n % 7) for n in range(40)]
    assert slow_first([1.0, 0.9, *usual]) == slow_first([*usual[:3], 1.0, 0.9, *usual]) == [1.0, 0.9]
    assert slow_first([1.0, 0.9, *usual, 1.1]) == [1.0, 0.9, 1.1]
    assert slow_first(usual) == slow_first([0.3, *usual]) == slow_first([0.001 * n for n in range(40)]) == []
    assert slow_first([*usual, 1.0]) == slow_first([1.0, *usual, 0.9, 1.2]) == []  # no start
    assert slow_first([1.0, *usual, 0.4]) == []  # a tail
    spell = [2.0, 1.8, 1.5, 1.3, 1.0, 0.7]  # they came one after another while something was made ready
    assert slow_first([*usual[:2], *spell, 0.4, 0.2, *usual]) == spell
    assert slow_first([*spell[1:], 0.4, 0.2, *usual]) == slow_first([*spell, 0.4, *usual, 0.7]) == []
    assert slow_first([*(0.6 + 0.01 * n for n in range(6)), 0.4, *usual]) == []  # of one kind with the rest
    assert slow_first([5.0] * 9 + usual[:19]) == slow_first([9.0]) == []


def test_a_hundred_clean_runs_name_nothing() -> None:
    """Tails, failures, edges, sampled levels and a cache that is equally warm throughout, drawn a hundred times."""
    for seed in range(100):
        draw = random.Random(seed)
        n, failed = draw.randint(60, 600), draw.choice((0, 0, 3))
        merged = sample_runs.run(
            ok=n, stages=2, ttft=sample_runs.lognormal(0.1, draw.uniform(0.05, 1.0), seed),
            ends={Outcome.HTTP_5XX: failed} if failed else None,
        )  # fmt: skip
        made = sample_runs.summary(merged)
        made.batch_mean = batch = draw.uniform(1, 64)
        edge = 2 * batch
        made.server["metrics"] = metrics(
            server_good=2 * n + draw.randint(-int(edge), int(edge)), server_bad=2 * failed, client_ok=2.0 * n,
            client_failed=2.0 * failed, tolerance=edge + 0.02 * n + 2,
        ) | {"running": {"mean": draw.uniform(0.7, 1.0) * batch + draw.gauss(0, batch / 10)}}  # fmt: skip
        warm = draw.random()
        for stage in made.stages:
            stage.server["metrics"] = {"prefix_cache_hit_ratio": warm + draw.uniform(-0.04, 0.04)}
        assert doubts(made, merged) == {}, seed


# -- the embedded engine's conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hot", "there is no condition `hot`; there are: prefix_cache, cold, ageing, leak, tenant, fallback"),
        ("cold:x", "`x` in condition `cold:x` must be a number from 0 to 1000"),
        ("tenant:-1", "`-1` in condition `tenant:-1` must be a number from 0 to 1000"),
    ],
)
def test_a_wrong_condition_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        conditions.parse([text])
    assert str(caught.value) == sentence


def test_each_batch_size_is_cold_once() -> None:
    cold = Cold(7)
    assert [cold.of(n) for n in (1, 1, 2, 3, 4, 2, 5, 8, 9)] == [7, 0, 7, 7, 0, 0, 7, 0, 7]
    cold.forget()
    assert [cold.of(n) for n in (4, 4)] == [7, 0]
    assert Cold().of(1) == 0
