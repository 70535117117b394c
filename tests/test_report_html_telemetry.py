"""report.html on engine and GPUs, the charts: their points are the numbers of the stages."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import sample_runs
from test_report_html import THROUGHPUTS, dots, figure, parse, sweep

from tokenswarm.reports.html import page as html
from tokenswarm.result.summary import Stage, Summary

USERS = [8.0, 16.0, 32.0, 64.0]


def watched(stages: int = 4) -> Summary:
    return sample_runs.watched(sweep(stages))


@pytest.fixture(scope="module")
def summary() -> Summary:
    return watched()


@pytest.fixture(scope="module")
def page(summary: Summary) -> ElementTree.Element:
    return parse(html.render(summary, {}, None))


def metrics(stage: Stage | Summary) -> dict[str, Any]:
    found: dict[str, Any] = stage.server["metrics"]
    return found


def over_users(values: list[Any]) -> list[tuple[float, Any]]:
    return list(zip(USERS, values, strict=True))


def text(page: ElementTree.Element, section: str) -> str:
    found = page.find(f".//section[@id='{section}']")
    return "" if found is None else " ".join("".join(found.itertext()).split())


def test_batch_and_queue_are_those_of_the_stages(page: ElementTree.Element, summary: Summary) -> None:
    found = dots(figure(page, "batch-over-concurrency"))
    stages = summary.stages
    assert found[:4] == over_users([stage.batch_mean for stage in stages])
    assert found[4:8] == over_users([metrics(stage)["running"]["mean"] for stage in stages])
    assert found[8:] == over_users([metrics(stage)["waiting"]["mean"] for stage in stages])
    assert found[4:8] == over_users([7.2, 14.4, 28.8, 33.0])
    titles = [title.text for title in figure(page, "batch-over-concurrency").iter("title")]
    assert titles[7] == "64 users: running 33.0"


def test_throughput_over_the_engines_batch(page: ElementTree.Element, summary: Summary) -> None:
    chart = figure(page, "throughput-over-engine-batch")
    assert dots(chart) == list(zip([7.2, 14.4, 28.8, 33.0], THROUGHPUTS, strict=True))
    names = [item.text for item in chart.iter("text") if "name" in item.attrib["class"]]
    assert "requests in the engine's batch, mean" in names
    client = dots(figure(page, "throughput-over-batch"))
    assert [x for x, _ in client] == [stage.batch_mean for stage in summary.stages]


def test_speed_is_over_the_engines_batch_only_where_each_stage_has_one() -> None:
    summary = watched()
    chart = figure(parse(html.render(summary, {}, None)), "speed-over-batch")
    assert [x for x, _ in dots(chart)] == [7.2, 14.4, 28.8, 33.0]
    metrics(summary.stages[2])["running"] = {"mean": None, "max": None}
    text_ = html.render(summary, {}, None)
    page = parse(text_)
    chart = figure(page, "speed-over-batch")
    assert [x for x, _ in dots(chart)] == [stage.batch_mean for stage in summary.stages]
    assert "requests in flight, mean" in [item.text for item in chart.iter("text")]
    assert page.find(".//figure[@id='throughput-over-engine-batch']") is None
    assert "Throughput over the engine&#x27;s batch, because the engine&#x27;s metrics told nothing" in text_


def test_time_to_the_first_token_is_engine_beside_client(page: ElementTree.Element, summary: Summary) -> None:
    found = dots(figure(page, "first-token-over-concurrency"))
    expected = over_users([stage.latency.ttft_s.mean for stage in summary.stages])
    for name in ("ttft_s", "queue_s", "prefill_s"):
        expected += over_users([metrics(stage)["latency"][name]["mean"] for stage in summary.stages])
    assert found == expected


def test_use_of_the_kv_cache_and_its_prediction(page: ElementTree.Element, summary: Summary) -> None:
    found = dots(figure(page, "kv-cache-over-concurrency"))
    uses = [metrics(stage)["kv_cache_usage"] for stage in summary.stages]
    caches = [metrics(stage)["kv_cache"] for stage in summary.stages]
    assert found[:8] == over_users([use["mean"] for use in uses]) + over_users([use["max"] for use in uses])
    assert found[8:] == over_users([kv["predicted_bytes_mean"] / kv["capacity_bytes"] for kv in caches])
    caption = page.findtext(".//figure[@id='kv-cache-over-concurrency']/figcaption") or ""
    assert f"put out of the batch: {sum(metrics(stage)['preemptions'] for stage in summary.stages)} here" in caption


def test_energy_is_that_of_the_stages(page: ElementTree.Element, summary: Summary) -> None:
    energy = dots(figure(page, "energy-over-concurrency"))
    assert energy == over_users([stage.gpu["j_per_output_token"] for stage in summary.stages])
    efficiency = dots(figure(page, "tokens-per-watt-over-concurrency"))
    assert efficiency == over_users([stage.gpu["output_tokens_per_s_per_w"] for stage in summary.stages])
    for (_, joules), (_, tokens) in zip(energy, efficiency, strict=True):
        assert joules * tokens == pytest.approx(1)


def test_the_batch_that_fills_the_cache_is_drawn_where_it_is_near(page: ElementTree.Element, summary: Summary) -> None:
    chart = figure(page, "batch-over-concurrency")
    assert "cache full at 43.8, predicted" in [item.text for item in chart.iter("text")]
    ticks = {
        item.text: float(item.attrib["y"]) - 4 for item in chart.iter("text") if item.attrib["class"] == "tick end"
    }
    mark = next(path for path in chart.iter("path") if path.attrib["class"] == "knee")
    full = metrics(summary.stages[3])["kv_cache"]["batch_at_full"]
    height = ticks["0"] + (ticks["20"] - ticks["0"]) * full / 20
    assert float(mark.attrib["d"].split()[1].partition("H")[0]) == pytest.approx(height, abs=0.2)
    far = watched()
    metrics(far.stages[3])["kv_cache"]["batch_at_full"] = 500.0
    chart = figure(parse(html.render(far, {}, None)), "batch-over-concurrency")
    assert not [path for path in chart.iter("path") if path.attrib["class"] == "knee"]
    assert "full at a batch of 500" in html.render(far, {}, None)
