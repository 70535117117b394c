"""A real Prometheus scrapes the load exporter while a run is pushed: what it stores is what the report says."""

from __future__ import annotations

import math
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from agreement import (
    HISTOGRAMS,
    Buckets,
    assert_counters_are_exact,
    assert_gauges_are_equal,
    assert_native_percentiles_agree,
    assert_percentiles_agree,
    broken_rules,
    within,
)
from exporter_process import promtool_findings, running
from grafana_frames import all_targets
from load_run import SyntheticRun, post
from prometheus_server import Prometheus, natives_only, serving, tool, version

from exporters.load.render import le
from exporters.load.table import HISTOGRAMS as TABLE
from tokenswarm.measure.sketch import Sketch
from tokenswarm.result.envelope import Judgement
from tokenswarm.result.summary import Summary, summarize

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "prometheus"


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    tool("prometheus")
    tool("promtool")


def own_configuration(port: int, folder: Path) -> dict[str, Any]:
    """The project's configuration, at the ports and times of this test."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    load = next(job for job in config["scrape_configs"] if job["job_name"] == "tokenswarm-load")
    load["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    config["scrape_configs"] = [load]
    shutil.copytree(FOLDER / "rules", folder / "rules")
    return config


def caught_up(prometheus: Prometheus, played: SyntheticRun, summary: Summary) -> None:
    """Wait until the last push was scraped: then every number of that scrape is there."""
    sent, run_id = summary.requests.sent, played.state.run_id
    prometheus.wait_for(f'tokenswarm_requests_started_total{{run_id="{run_id}"}} == {sent}')
    prometheus.wait_for(f'tokenswarm_run_end_timestamp_seconds{{run_id="{run_id}"}}')  # all were sent a push before


def test_prometheus_stores_what_the_report_says_across_a_kill_of_the_exporter(tmp_path: Path) -> None:
    played = SyntheticRun("run-live", seconds=6, requests_per_s=160)
    with running("load") as exporter:
        port = exporter.port
        with serving(tmp_path, own_configuration(port, tmp_path)) as prometheus:
            while played.second < 6:
                play_a_second(played, exporter.url)
            page = exporter.text()
            prometheus.wait_for('tokenswarm_requests_started_total{run_id="run-live"} > 0')
            exporter.process.send_signal(signal.SIGKILL)
            exporter.process.wait(timeout=60)
            prometheus.wait_for('up{job="tokenswarm-load"} == 0')
            assert prometheus.query('tokenswarm_requests_started_total{run_id="run-live"}') == {}  # the gap shows
            with running("load", "--listen", f"127.0.0.1:{port}") as again:
                while not played.over:
                    play_a_second(played, again.url)
                merged = played.finish()
                summary = summarize(merged, plan=played.state.stages)
                assert post(again.url, played.body(merged))[0] == 204
                caught_up(prometheus, played, summary)
                assert_counters_are_exact(prometheus, summary)
                assert_percentiles_agree(prometheus, summary)
                assert_gauges_are_equal(prometheus, summary)
                assert_rules_have_data(prometheus, summary)
                assert promtool_findings(page) == ""
                assert promtool_findings(again.text()) == ""


def play_a_second(played: SyntheticRun, url: str, second_s: float = 1.0) -> None:
    began = time.monotonic()
    played.advance()
    assert post(url, played.body())[0] == 204
    time.sleep(max(0.0, second_s - (time.monotonic() - began)))


def assert_rules_have_data(prometheus: Prometheus, summary: Summary) -> None:
    run = f'{{run_id="{summary.run_id}"}}'
    prometheus.wait_for(f"tokenswarm:latency_seconds:run{run}")
    for name in ("requests:rate30s", "output_tokens:rate30s", "goodput:ratio5m", "request_errors:ratio5m"):
        assert prometheus.wait_for(f"tokenswarm:{name}{run}"), name
    p95 = f'tokenswarm:latency_seconds:run{{run_id="{summary.run_id}",metric="ttft",quantile="0.95"}}'
    prometheus.wait_for(f"abs({p95} / {summary.latency.ttft_s.p95} - 1) < 0.03")  # rules run every 5 s
    assert broken_rules(prometheus) == []


def test_native_histograms_are_scraped_as_protobuf(tmp_path: Path) -> None:
    played = SyntheticRun("run-native", requests_per_s=160)
    merged = played.play()
    summary = summarize(merged, plan=played.state.stages)
    with running("load") as exporter:
        post(exporter.url, SyntheticRun("run-empty").body())
        post(exporter.url, played.body(merged))
        config = own_configuration(exporter.port, tmp_path)
        with serving(tmp_path, config, *natives_only(config)) as prometheus:
            caught_up(prometheus, played, summary)
            assert_counters_are_exact(prometheus, summary)
            assert_native_percentiles_agree(prometheus, summary, merged)
            assert prometheus.query(HISTOGRAMS["ttft"]) == {}  # 2.42 keeps the native ones only
            ttft = 'tokenswarm_time_to_first_token_seconds{run_id="run-native"}'
            assert prometheus.value(f"histogram_count({ttft})") == summary.latency.ttft_s.n
            assert prometheus.value(f"histogram_sum({ttft})") == pytest.approx(
                summary.latency.ttft_s.n * (summary.latency.ttft_s.mean or 0)
            )
            assert prometheus.value(f"histogram_count({ttft.replace('native', 'empty')})") == 0
            p95 = 'tokenswarm_latency_quantile_seconds{run_id="run-native",metric="ttft",window="run",quantile="0.95"}'
            assert prometheus.value(p95) == summary.latency.ttft_s.p95
            assert prometheus.value("tokenswarm_exporter_pushes_total") == 2


AT_S = 1_700_000_000


def gapped() -> list[tuple[float, list[float]]]:
    """(p, values): most near 20 ms, the rest near 2 s, the gap between them at the rank of p or at one beside it."""
    chance = random.Random(7)
    found = []
    for p in (0.5, 0.9, 0.95, 0.99):
        for n in (100, 140, 1000, 1111, 3700):
            for step in (-1, 0, 1):
                low = math.ceil(p * n - 1e-9) + step
                values = [chance.uniform(0.018, 0.022) for _ in range(low)]
                found.append((p, values + [chance.uniform(1.8, 2.2) for _ in range(n - low)]))
    return found


def openmetrics(cases: list[tuple[float, list[float]]]) -> str:
    """Each case as a histogram with our buckets: 0 at first, all of its values a minute later."""
    (histogram,) = TABLE["tokenswarm_time_to_first_token_seconds"]
    lines = ["# TYPE x histogram"]
    for case, (_, values) in enumerate(cases):
        edges = [le(key, histogram.schema) for key in histogram.keys]
        counts = dict(zip(edges, histogram.cumulative(Sketch(values)), strict=True)) | {"+Inf": len(values)}
        for edge, count in counts.items():
            for at, shown in ((AT_S - 60, 0), (AT_S, count)):
                lines.append(f'x_bucket{{case="{case}",le="{edge}"}} {shown} {at}')
    return "\n".join([*lines, "# EOF", ""])


def test_a_percentile_beside_a_gap_is_that_of_its_rank_or_of_one_beside_it(tmp_path: Path) -> None:
    """The rank decides, not the value: a rate scales the counts, and rounding may move a whole rank to the next one."""
    cases = gapped()
    (tmp_path / "x.txt").write_text(openmetrics(cases))
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", "x.txt", "data"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    keep = "--storage.tsdb.retention.time=100y"
    with serving(tmp_path, {"scrape_configs": []}, keep) as prometheus:

        def answers(p: float, counts: str) -> dict[int, float]:
            asked = f"histogram_quantile({p}, sum by (le, case) ({counts}))"
            found = prometheus.api("query", query=asked, time=str(AT_S))["result"]
            return {int(one["metric"]["case"]): float(one["value"][1]) for one in found}

        for p in {p for p, _ in cases}:
            totals, rates = answers(p, "x_bucket"), answers(p, "rate(x_bucket[2m])")
            assert len(totals) == len(rates) == len(cases)
            for case, values in ((case, values) for case, (asked, values) in enumerate(cases) if asked == p):
                buckets = of_values(values)
                nearest, *beside = buckets.around(p)
                exact = Sketch(values).quantile(p)
                assert exact is not None
                assert within(exact, nearest)
                assert within(totals[case], nearest), (p, len(values), totals[case], nearest)
                assert any(within(rates[case], place) for place in (nearest, *beside)), (p, rates[case], nearest)


def of_values(values: list[float]) -> Buckets:
    (histogram,) = TABLE["tokenswarm_time_to_first_token_seconds"]
    edges = [float(le(key, histogram.schema)) for key in histogram.keys]
    return Buckets(edges, [float(count) for count in histogram.cumulative(Sketch(values))])


ASKED = {
    "$__rate_interval": "10s", "$__range": "1h", "$run_id": "late", "$run_a": "late", "$run_b": "good",
}  # fmt: skip
TILE = ("a-live", "Can it be believed?")


def ask(prometheus: Prometheus, dashboard: str, title: str, ref: str = "A", **other: str) -> dict[Any, float]:
    """What a target of a panel says now."""
    (target,) = (
        target["expr"]
        for name, panel, target in all_targets()
        if (name, panel["title"], target["refId"]) == (dashboard, title, ref) and panel["type"] != "heatmap"
    )
    for name, value in {**ASKED, **other}.items():
        target = target.replace(name, value)
    return prometheus.query(target)


def rules_at_once(folder: Path) -> None:
    for path in (folder / "rules").glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule.pop("for", None)
        path.write_text(yaml.safe_dump(rules))


@pytest.mark.parametrize("kept", ["buckets", "natives"])
def test_doubts_and_alerts_are_told_whatever_histograms_are_kept(tmp_path: Path, kept: str) -> None:
    """A run whose loop was 20 ms late has one doubt, if that moves a percentile; a good one has none; where the lag is
    not stored, nobody knows."""
    late, exact, good = (
        SyntheticRun(name, loop_lag_s=lag) for name, lag in (("late", 0.02), ("exact", 0.02), ("good", 0.0005))
    )
    for recorder in exact.recorders:
        recorder.instrument.kernel_stamped = 10**9  # the kernel's stamps, which no loop makes late
    with running("load") as exporter:
        for run in (late, exact, good):
            run.state.workers = {"running": 2}
            post(exporter.url, run.body())
        config = own_configuration(exporter.port, tmp_path)
        rules_at_once(tmp_path)
        (tmp_path / "without").mkdir()
        without = own_configuration(exporter.port, tmp_path / "without")
        drop = {"source_labels": ["__name__"], "regex": "tokenswarm_event_loop_lag_seconds.*", "action": "drop"}
        without["scrape_configs"][0]["metric_relabel_configs"] = [drop]
        flags = natives_only(config) if kept == "natives" else ()
        with serving(tmp_path, config, *flags) as server, serving(tmp_path / "without", without) as blind:
            for _ in range(8):
                for run in (exact, good, late):
                    play_a_second(run, exporter.url, 1 / 3)
            loop = "tokenswarm_event_loop_lag_seconds"
            assert bool(server.query(f"{loop}_bucket")) == (kept == "buckets")
            firing = {"alertname": "LLMMeasurementDoubtful", "why": "event_loop_lag", "run_id": "late"}
            wanted = ",".join(f'{key}="{value}"' for key, value in firing.items())
            server.wait_for(f"ALERTS{{{wanted}}}")
            assert server.query('ALERTS{why="event_loop_lag",run_id=~"good|exact"}') == {}
            late_now, good_now = ask(server, *TILE), ask(server, *TILE, **{"$run_id": "good"})
            assert ask(server, *TILE, **{"$run_id": "exact"}) == good_now
            # The machine itself may be late with a push: that doubt is counted, too, and for both.
            assert late_now[()] - good_now[()] == 1
            assert ask(blind, *TILE) == {}
            lag = ask(server, "a-live", "Event-loop lag", "B")[()]
            assert 0.03 < lag < 0.06
            assert broken_rules(server) == []


def test_an_exporter_that_is_scraped_twice_counts_once(tmp_path: Path) -> None:
    """By a job of ours and by one that finds its pod, or from another address since it moved."""
    run = SyntheticRun("late", workers=2)
    run.state.workers = {"running": 2}
    with running("load") as exporter:
        config = own_configuration(exporter.port, tmp_path)
        rules_at_once(tmp_path)
        relabel = [{"target_label": "instance", "replacement": "10.0.0.7:9646"}]
        config["scrape_configs"] += [{**config["scrape_configs"][0], "job_name": "pods", "relabel_configs": relabel}]
        with serving(tmp_path, config) as server:
            for _ in range(8):
                play_a_second(run, exporter.url)
            assert ask(server, "a-live", "Users", "B")[(("state", "running"),)] == run.stages[0]
            for title, of_each in (("Requests", 1), ("Output", 12)):
                assert 0 < ask(server, "a-live", title)[()] < 1.6 * of_each * run.requests_per_s, title
            verdict = {"status": "INVALID", "doubts": {"worker-lost": "invalid"}}
            run.state.verdict = msgspec.convert(verdict, Judgement)
            merged = run.finish()
            post(exporter.url, run.body(merged))
            caught_up(server, run, summarize(merged, plan=run.state.stages))
            server.wait_for("count(tokenswarm_run_end_timestamp_seconds) == 2")
            totals = ask(server, "e-compare-runs", "Throughput and outcomes")
            requests = summarize(merged, plan=run.state.stages).requests
            assert totals[(("what", "Requests ok"),)] == requests.ok
            assert totals[(("what", "Output tokens"),)] == sum(b.output_tokens for b in merged.blocks)
            told = [dict(row) for row in ask(server, "a-live", "Verdict and doubts")]
            assert sorted(told, key=len) == [
                {"run_id": "late", "status": "INVALID"},
                {"run_id": "late", "code": "worker-lost", "severity": "invalid"},
            ]
            assert ask(server, *TILE)[()] == 1  # whatever else there was: it says itself that it can't be believed
            assert ask(server, "a-live", "Age of the newest report", "A") == {}
            assert ask(server, "a-live", "Age of the newest report", "B") == {}


@pytest.mark.parametrize("kept", ["buckets", "natives"])
def test_a_run_that_is_over_is_compared_whatever_histograms_are_kept(tmp_path: Path, kept: str) -> None:
    """Percentiles, the curve of all requests and the heatmap's rows: by value, from either kind."""
    a, b = SyntheticRun("late", requests_per_s=160), SyntheticRun("good", requests_per_s=160, seed=2)
    merged = a.play()
    summary = summarize(merged, plan=a.state.stages)
    with running("load") as exporter:
        post(exporter.url, a.body(merged))
        post(exporter.url, b.body(b.play()))
        config = own_configuration(exporter.port, tmp_path)
        flags = natives_only(config) if kept == "natives" else ()
        if kept == "natives" and version() < (3, 0):
            pytest.skip("last_over_time of a native histogram: Prometheus before 3 gives none")
        rules_at_once(tmp_path)  # the percentiles are those that rules record
        with serving(tmp_path, config, *flags) as server:
            caught_up(server, a, summary)
            server.wait_for('count(tokenswarm:latency_seconds:run{metric="e2e",quantile="0.99"}) == 2')
            told = ask(server, "e-compare-runs", "Latency of the whole run", "A")
            for name, exact in {
                "TTFT p50": summary.latency.ttft_s.p50, "TTFT p99": summary.latency.ttft_s.p99,
                "ITL p95": summary.latency.itl_s.p95, "TPOT p95": summary.latency.tpot_s.p95,
                "E2E p99": summary.latency.e2e_s.p99,
            }.items():  # fmt: skip
                assert told[(("what", name),)] == pytest.approx(exact, rel=0.05), name
            curve = {float(dict(labels)["le"]): share for labels, share in curve_of(server).items()}
            assert len(curve) >= 20
            assert curve[0.25] == pytest.approx(curve_of(server, exact=True)[()], rel=0.03)
            assert sorted(curve.values()) == [share for _, share in sorted(curve.items())]
            assert (min(curve.values()), max(curve.values())) == (0, 1)


def curve_of(server: Prometheus, *, exact: bool = False) -> dict[Any, float]:
    """The share of requests up to each TTFT; `exact`: up to 0.25 s, asked plainly of what is kept."""
    if not exact:
        return ask(server, "e-compare-runs", "TTFT", "A")
    name = "tokenswarm_time_to_first_token_seconds"
    run = 'run_id="late"'
    buckets = f'sum({name}_bucket{{{run},le="0.25"}}) / sum({name}_count{{{run}}})'
    return server.query(f"{buckets} or histogram_fraction(0, 0.25, sum({name}{{{run}}}))")
