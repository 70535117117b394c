"""A run of a minute that everything watches: all exporters, and Debian's Prometheus with the shipped configuration.

The load exporter is killed in the middle and started again. Afterwards Prometheus must tell what the report tells.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from agreement import (
    assert_counters_are_exact,
    assert_gauges_are_equal,
    assert_percentiles_agree,
    broken_rules,
)
from exporter_process import REPO, Exporter, parse, promtool_findings, running
from prometheus_server import Prometheus, serving, tool
from running import SAMPLES, Finished, program, tokenswarm
from simulator_process import simulator

from grafana import catalogue
from tokenswarm.commands import observe
from tokenswarm.result.summary import Summary, from_json

pytestmark = pytest.mark.timeout(300)  # the first test waits for the whole run
RULES = [
    rule
    for path in sorted((REPO / "configs" / "prometheus" / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
RECORDS = sorted({rule["record"] for rule in RULES if "record" in rule})
ALERTS = [rule for rule in RULES if "alert" in rule]
H100 = REPO / "tests" / "nvml" / "h100_recorded.json"

# The engine pretends to be this model on an H200: what the KV-cache is predicted from.
MODEL = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "dtype": "bfloat16",
}

PROFILE = """
name: watched
engine: {kind: openai, api: chat}
target: TARGET
dataset: {path: SAMPLES, format: sharegpt, conversations: single, output_tokens: {max: 24}}
load:
  stages:
    - {users: 4, duration: 15s}
    - {users: 12, duration: 20s}
    - {users: 24, duration: 24s}
phases: {warmup: 2s, settle: 1s, drain: 10s}
slo: {ttft_s: {p99: 1.0}, goodput_ratio: 0.5}
telemetry: {push: PUSH, gpu_exporters: [GPU], price_per_gpu_hour: 3.0, model_config: CONFIG}
workers: 2
"""

NO_METRIC = {
    "DCGM_FI_": "another's GPU exporter, which does not run here",
    "tokenswarm_gpu_xid_": "no XID was reported",
}
"""Metrics that alerts ask for and that rightly have no data in this world, by prefix."""

NO_RECORD = {"tokenswarm:cpu_power:watts": 'tokenswarm_host_energy_unavailable_info{reason=~"absent|permission"}'}
"""Recording rules that have no data on some machines, and what an exporter says then, and only then."""


@dataclass
class World:
    prometheus: Prometheus
    finished: Finished
    summary: Summary
    begin: float
    killed: float
    restarted: float
    end: float
    pages: dict[str, str]


def _profile(folder: Path, **values: str) -> Path:
    text = PROFILE.replace("SAMPLES", str(SAMPLES / "sharegpt.json"))
    (folder / "config.json").write_text(json.dumps(MODEL))
    for name, value in {**values, "CONFIG": str(folder / "config.json")}.items():
        text = text.replace(name, value)
    path = folder / "watched.yaml"
    path.write_text(text)
    return path


def _restarted(
    exporter: Exporter, prometheus: Prometheus, stack: contextlib.ExitStack
) -> tuple[float, float, Exporter]:
    """kill -9, wait until Prometheus has noticed, start it again at the same address."""
    exporter.process.send_signal(signal.SIGKILL)
    exporter.process.wait(timeout=60)
    killed = time.time()
    prometheus.wait_for('up{job="tokenswarm-load"} == 0')
    time.sleep(2)
    again = stack.enter_context(running("load", "--listen", f"127.0.0.1:{exporter.port}"))
    return killed, time.time(), again


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tool("prometheus")
    home = tmp_path_factory.mktemp("home")
    data = tmp_path_factory.mktemp("prometheus")
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(simulator("--preset", "h200-8b"))
        exporters = {
            "load": stack.enter_context(running("load")),
            "gpu": stack.enter_context(
                running("gpu", "--gpu-backend", f"replay:{H100}", "--gpm", "--engine-pid", str(engine.process.pid))
            ),
            "ollama": stack.enter_context(running("ollama", "--ollama", engine.url, "--interval", "1")),
        }
        addresses = {name: f"http://127.0.0.1:{exporter.port}" for name, exporter in exporters.items()}
        shipped = observe.configure(data / "shipped", (2, 42), addresses, engine.url)
        config: dict[str, Any] = yaml.safe_load(shipped.read_text())
        prometheus = stack.enter_context(serving(shipped.parent, config))
        prometheus.wait_for("count(up == 1) == 4")
        profile = _profile(home, TARGET=engine.url, PUSH=addresses["load"], GPU=addresses["gpu"])
        begin = time.time()
        with program(tokenswarm("run", str(profile), "--results", str(home / "results")), home) as started:
            started.await_output("stage 2 steady", 60)
            killed, restarted, exporters["load"] = _restarted(exporters["load"], prometheus, stack)
            finished = started.finish(120)
        end = time.time()
        assert finished.folder is not None, finished.out
        summary = from_json((finished.folder / "summary.json").read_bytes())
        over = f'tokenswarm_run_end_timestamp_seconds{{run_id="{summary.run_id}"}}'
        prometheus.wait_for(over)
        time.sleep(11)  # two scrapes of the slow jobs and two evaluations of the rules
        pages = {name: exporter.text() for name, exporter in exporters.items()}
        yield World(prometheus, finished, summary, begin, killed, restarted, end, pages)


def test_it_lasted_a_minute_and_all_of_it_succeeded(world: World) -> None:
    assert world.end - world.begin > 60
    assert world.summary.requests.ok == world.summary.requests.sent > 300, world.finished.out
    assert world.summary.steady_window.length_s == pytest.approx(59, rel=0.1)


def test_counters_are_exactly_the_reports(world: World) -> None:
    assert_counters_are_exact(world.prometheus, world.summary)
    rows = [row for row in world.finished.rows if row["outcome"] == "ok"]
    run = f'run_id="{world.summary.run_id}"'
    tokens = world.prometheus.value(f'tokenswarm_output_tokens_total{{{run},token_source="server"}}')
    assert tokens == sum(row["output_tokens"] for row in rows)
    assert world.prometheus.value(f"tokenswarm_prompt_tokens_total{{{run}}}") == sum(r["prompt_tokens"] for r in rows)
    assert world.prometheus.value(f"tokenswarm_chunks_total{{{run}}}") == sum(row["events"] for row in rows)
    assert world.prometheus.value(f"tokenswarm_response_bytes_total{{{run}}}") == sum(r["bytes_received"] for r in rows)


def test_percentiles_agree_with_the_report(world: World) -> None:
    assert world.summary.latency.ttft_s.p90 is not None  # p99 may be withheld, on a busy machine
    assert_percentiles_agree(world.prometheus, world.summary)
    assert_gauges_are_equal(world.prometheus, world.summary)


def test_the_gap_of_the_killed_exporter_shows_and_nothing_else_does(world: World) -> None:
    begin, end = world.begin + 5, world.end - 1
    seen = world.prometheus.api(
        "query_range",
        query=f'tokenswarm_requests_started_total{{run_id="{world.summary.run_id}"}}',
        start=f"{begin:.0f}",
        end=f"{end:.0f}",
        step="1",
    )["result"]
    assert len(seen) == 1, "one series before and after"
    moments = [moment for moment, _ in seen[0]["values"]]
    counts = [float(value) for _, value in seen[0]["values"]]
    holes = [(a, b) for a, b in itertools.pairwise(moments) if b - a > 1]
    assert len(holes) == 1
    assert world.killed - 1 <= holes[0][0] <= world.killed + 2
    assert world.restarted - 1 <= holes[0][1] <= world.restarted + 5
    assert counts == sorted(counts), "the new process knows every total after the first push"
    dropped = world.prometheus.value(f'tokenswarm_run_pushes_dropped_total{{run_id="{world.summary.run_id}"}}')
    assert dropped is not None
    assert 1 <= dropped <= world.restarted - world.killed + 3
    assert world.finished.out.count("nothing is pushed to") == 1


def test_stages_are_what_the_report_says(world: World) -> None:
    for stage in world.summary.stages:
        which = f'run_id="{world.summary.run_id}",stage="{stage.stage}"'
        got = world.prometheus.value(f"tokenswarm_stage_output_tokens_per_second{{{which}}}")
        assert got == pytest.approx(stage.throughput.output_tokens_per_s, rel=1e-9)
        p50 = f'tokenswarm_stage_latency_seconds{{{which},metric="ttft",quantile="0.5"}}'
        assert world.prometheus.value(p50) == stage.latency.ttft_s.p50
        batch = world.prometheus.value(f"tokenswarm_stage_engine_batch{{{which}}}")
        assert batch == pytest.approx(stage.server["metrics"]["running"]["mean"], rel=1e-9)
        waiting = world.prometheus.value(f"tokenswarm_stage_engine_waiting{{{which}}}")
        assert waiting == pytest.approx(stage.server["metrics"]["waiting"]["mean"], rel=1e-9)
        joules = world.prometheus.value(f"tokenswarm_stage_joules_per_output_token{{{which}}}")
        assert joules == pytest.approx(stage.gpu["j_per_output_token"], rel=1e-9)
        began = world.prometheus.value(f"tokenswarm_stage_start_timestamp_seconds{{{which}}}")
        assert began is not None
        assert world.begin < began < world.end


def test_engine_gpu_and_cache_are_joined_into_the_report(world: World) -> None:
    metrics = world.summary.server["metrics"]
    assert metrics["output_tokens_compared"]["agree"] is True
    assert metrics["running"]["mean"] <= (world.summary.batch_mean or 0) * 1.05
    for stage in world.summary.stages:
        assert stage.gpu["gpus"][0]["name"] == "NVIDIA H100 80GB HBM3"
        assert stage.gpu["gpus"][0]["backend"] == "replay"
        assert stage.gpu["power_w_mean"] * stage.gpu["output_tokens_per_s_per_w"] == pytest.approx(
            stage.throughput.output_tokens_per_s
        )
        assert stage.gpu["cost_per_million_output_tokens"] > 0
    cache = metrics["kv_cache"]
    assert cache["predicted_bytes_per_token"] == 131_072
    run = f'run_id="{world.summary.run_id}"'
    assert world.prometheus.value(f'tokenswarm_kv_cache_bytes_per_token{{{run},source="predicted"}}') == 131_072
    assert world.prometheus.value(f"tokenswarm_kv_cache_capacity_bytes{{{run}}}") == cache["capacity_bytes"]
    assert world.prometheus.query(f"max_over_time(tokenswarm_kv_cache_predicted_bytes{{{run}}}[1h]) > 0")
    assert world.prometheus.query(f"max_over_time(tokenswarm_kv_cache_used_bytes{{{run}}}[1h]) > 0")


@pytest.mark.parametrize("name", ["load", "gpu", "ollama"])
def test_promtool_finds_nothing_in_the_page(world: World, name: str) -> None:
    assert promtool_findings(world.pages[name]) == ""
    assert len(parse(world.pages[name])) > 20


def test_every_scrape_but_those_of_the_killed_one_succeeded(world: World) -> None:
    minutes = f"{int(world.end - world.begin) + 15}s"
    for job in ("tokenswarm-gpu", "tokenswarm-ollama", "vllm"):
        assert world.prometheus.value(f'min_over_time(up{{job="{job}"}}[{minutes}])') == 1, job
    assert broken_rules(world.prometheus) == []


@pytest.mark.parametrize("record", RECORDS)
def test_a_recording_rule_has_data(world: World, record: str) -> None:
    found = world.prometheus.query(f"last_over_time({record}[1h])")
    if record in NO_RECORD:
        reason = world.prometheus.query(f"last_over_time({NO_RECORD[record]}[1h])")
        assert bool(found) != bool(reason), "data, or the reason why there is none"
    else:
        assert found
    assert all(value == value for value in found.values()), "NaN"


def test_alerts_ask_for_metrics_that_are_there_or_have_a_reason(world: World) -> None:
    excused = set()
    for rule in ALERTS:
        asked = catalogue.used(rule["expr"])
        # A native histogram is asked for where there are no buckets: the buckets must be there, then.
        for metric in {metric for metric in asked if f"{metric}_bucket" not in asked}:
            if world.prometheus.query(f"last_over_time({metric}[1h])"):
                continue
            reasons = [prefix for prefix in NO_METRIC if metric.startswith(prefix)]
            assert reasons, f"{rule['alert']} asks for {metric}, which has no data"
            excused.update(reasons)
    assert excused == set(NO_METRIC), "a reason that excuses nothing"


def test_no_alert_fires_that_is_about_the_server_or_a_card(world: World) -> None:
    """Those about the load generator may, on a busy machine; the killed exporter was away for less than 30 s."""
    firing = {dict(labels)["alertname"] for labels in world.prometheus.query('ALERTS{alertstate="firing"}')}
    assert {name for name in firing if not re.match("LLMMeasurementDoubtful", name)} == set()
