"""report.html on engine and GPUs, the tables: by value, and what stands there instead of one."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from test_report_html import parse, sweep
from test_report_html_telemetry import metrics, text, watched

from tokenswarm.reports.html import page as html
from tokenswarm.reports.html import units
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry.histogram import Split

FIGURES = (
    "throughput-over-engine-batch", "batch-over-concurrency", "first-token-over-concurrency",
    "kv-cache-over-concurrency", "energy-over-concurrency", "tokens-per-watt-over-concurrency",
)  # fmt: skip


@pytest.fixture(scope="module")
def summary() -> Summary:
    return watched()


@pytest.fixture(scope="module")
def page(summary: Summary) -> ElementTree.Element:
    return parse(html.render(summary, {}, None))


def table(page: ElementTree.Element, section: str, title: str) -> dict[str, dict[str, list[str]]]:
    """Row name -> column -> the lines of its cell, of the table under a heading ("": the last one of the section)."""
    inside = list(page.iterfind(f".//section[@id='{section}']")).pop()
    flat = [item for item in inside.iter() if item.tag in ("h3", "table")]
    if title:
        flat = flat[[item.text for item in flat].index(title) + 1 :][:1]
    head, *lines = [[lines_of(cell) for cell in line] for line in flat[-1].iter("tr")]
    names = [" ".join(cell) for cell in head]
    return {line[0][0]: dict(zip(names, line, strict=True)) for line in lines}


def lines_of(cell: ElementTree.Element) -> list[str]:
    return [cell.text or "", *(small.text or "" for small in cell.iter("small"))]


def test_without_telemetry_two_sentences_say_how_to_get_it() -> None:
    page = parse(html.render(sweep(), {}, None))
    for section, option in (("engine", "telemetry.engine_metrics"), ("gpus", "telemetry.gpu_exporters")):
        assert option in text(page, section)
        assert page.find(f".//section[@id='{section}']//table") is None
    assert page.find(".//section[@id='kv-cache']") is None
    assert page.find(".//section[@id='sources']") is None
    for name in FIGURES:
        assert page.find(f".//figure[@id='{name}']") is None
    told = text(page, "telemetry")
    assert "KV-cache in use over concurrency, because the engine's metrics were not read." in told
    assert "Tokens/s/W over concurrency, because no GPU exporter was read." in told


def test_one_stage_has_tables_but_no_lines() -> None:
    page = parse(html.render(watched(stages=1), {}, None))
    assert list(table(page, "engine", "In the engine")) == ["8 users"]
    assert list(table(page, "gpus", "Energy and cost")) == ["8 users"]
    assert page.find(".//section[@id='telemetry']//figure") is None
    assert "because the run has one stage" in text(page, "telemetry")


def test_pages_that_never_answered_are_told_without_empty_tables() -> None:
    summary = watched()
    for part in (summary, *summary.stages):
        metrics(part)["coverage"]["samples"] = 0
        part.gpu["coverage"]["samples"] = part.gpu["count"] = 0
        part.gpu["gpus"] = []
    page = parse(html.render(summary, {}, None))
    assert "gave nothing (see below)" in text(page, "engine")
    assert "gave nothing in the steady windows" in text(page, "gpus")
    assert page.find(".//section[@id='engine']//table") is None
    assert "did not answer within 1 s" in text(page, "sources")


def test_what_an_engine_does_not_report_is_a_sentence_instead_of_a_column() -> None:
    """llama.cpp has no preemptions, no cached prompt tokens, no histograms but a mean TPOT."""
    summary = watched()
    for part in (summary, *summary.stages):
        block = metrics(part)
        for name in (
            "preemptions",
            "prefix_cache_hit_ratio",
            "tokens_per_step_mean",
            "models_loaded",
            "vram_ratio_mean",
        ):
            block[name] = None
        block |= {"finished": {}, "rejected": {}, "kv_cache_usage": {"mean": None, "max": None}}
        block["latency"] = {"tpot_s": {"n": 10, "mean": 0.025, "p50": None, "p90": None, "p99": None, "ranges": {}}}
        block["kv_cache"] = {"context_tokens_mean": 50.0, "context_tokens_end": 60.0}
    page = parse(html.render(summary, {}, None))
    assert list(table(page, "engine", "In the engine")["8 users"]) == ["", "in the batch mean", "waiting mean"]
    assert list(table(page, "engine", "After it, engine beside client")["8 users"]) == [
        "",
        "TPOT engine",
        "TPOT client",
    ]
    assert (
        "Not reported by the engine: KV-cache in use, preemptions, tokens a step, ended, refused, from the prefix "
        "cache, queue, prefill, TTFT, ITL, decode, E2E."
    ) in text(page, "engine")
    assert "The engine says nothing of its KV-cache." in text(page, "kv-cache")
    assert page.find(".//section[@id='kv-cache']//table") is None
    told = text(page, "telemetry")
    assert "because the engine's metrics told nothing of the KV-cache in use." in told
    assert "because the engine's metrics told nothing of the time to the first token, queue or prefill." in told


def test_recorded_values_are_marked_as_such_wherever_they_are() -> None:
    summary = watched()
    assert "ecorded values" not in html.render(summary, {}, None)
    for part in (summary, *summary.stages):
        part.gpu["gpus"][1]["backend"] = "replay"
    page = parse(html.render(summary, {}, None))
    assert "Recorded values: an exporter replays a file" in text(page, "gpus")
    assert table(page, "gpus", "Each GPU")["GPU 1, NVIDIA H200"]["state"] == ["recorded values", "backend replay"]
    assert table(page, "gpus", "Each GPU")["GPU 0, NVIDIA H200"]["state"] == ["answered", "backend nvml"]
    for name in ("energy-over-concurrency", "tokens-per-watt-over-concurrency"):
        assert "Recorded values" in (page.findtext(f".//figure[@id='{name}']/figcaption") or "")


def test_a_lost_gpu_leaves_no_sums() -> None:
    summary = watched()
    summary.gpu["gpus"][1]["lost"] = True
    summary.gpu |= dict.fromkeys(("energy_j", "power_w_mean", "j_per_output_token", "output_tokens_per_s_per_w"))
    page = parse(html.render(summary, {}, None))
    assert "1 of 2 GPUs did not answer throughout" in text(page, "gpus")
    assert table(page, "gpus", "Each GPU")["GPU 1, NVIDIA H200"]["state"][0] == "lost"
    assert table(page, "gpus", "Energy and cost")["all stages"]["power mean, all GPUs"] == ["–"]


def test_a_price_alone_gives_the_cost_alone() -> None:
    summary = watched()
    for part in (summary, *summary.stages):
        cost = part.gpu["cost_per_million_output_tokens"]
        coverage = {**part.gpu["coverage"], "samples": 0}
        part.gpu = {"coverage": coverage, "count": 0, "cost_per_million_output_tokens": cost, "currency": "EUR"}
    page = parse(html.render(summary, {}, None))
    assert list(table(page, "gpus", "Energy and cost")["8 users"]) == ["", "cost, EUR 1M output tokens"]
    assert "only the price is known" in text(page, "gpus")


def test_the_engines_tables_by_value(page: ElementTree.Element) -> None:
    """The stage of 16 users: 14.4 in the batch, and all else as sample_runs has it in proportion."""
    engine = table(page, "engine", "In the engine")
    assert list(engine) == ["8 users", "16 users", "32 users", "64 users", "all stages"]
    assert engine["16 users"] == {
        "": ["16 users"], "in the batch mean": ["14.4", "max 17.4"], "waiting mean": ["3.60", "max 7.2"],
        "KV-cache in use mean": ["28.8%", "max 31.3%"], "preemptions": ["2"],
        "tokens a step prefill, decode": ["25.2"], "ended by reason": ["490", "length 432, stop 58"],
        "refused by reason": ["5", "max_num_queued_reqs 5"], "models loaded mean": ["0.72", "max 1.44"],
        "on the GPU of the models": ["22.5%"],
    }  # fmt: skip
    tokens = table(page, "engine", "Tokens, engine beside client")
    assert tokens["16 users"] == {
        "": ["16 users"], "prompt tokens/s and tokens": ["166", "14,400"],
        "from the prefix cache of prompt tokens": ["11.2%"], "output tokens/s and tokens": ["324", "28,800"],
        "client's output tokens/s": ["200"],
        "difference engine − client": ["+1.44%", "agree: up to ±2.01% is nothing"],
    }  # fmt: skip
    assert tokens["32 users"]["difference engine − client"] == ["+2.88%", "DIFFER: up to ±2.03% is nothing"]


def test_each_of_several_engines_by_value(page: ElementTree.Element) -> None:
    """The second of two while 16 users ran."""
    assert table(page, "engine", "Each engine by itself")["16 users"] == {
        "": ["16 users"], "engine": ["http://gpu1:8000/metrics", "vllm, 21.5s read"],
        "in the batch mean": ["4.80", "max 15.4"], "waiting mean": ["1.80", "max 5.8"],
        "KV-cache in use mean": ["14.4%", "max 28.8%"], "preemptions": ["18"], "ended by reason": ["length 217"],
    }  # fmt: skip
    assert table(page, "engine", "Tokens of each engine")["16 users"] == {
        "": ["16 users"], "engine": ["http://gpu1:8000/metrics"], "output tokens of all": ["14.4k", "50.0%"],
        "prompt tokens": ["7215"], "from the prefix cache of prompt tokens": ["11.0%"], "TTFT mean": ["14.4ms"],
    }  # fmt: skip


def test_latencies_are_given_as_far_as_the_buckets_know_them(page: ElementTree.Element, summary: Summary) -> None:
    first = table(page, "engine", "Until the first token, engine beside client")["16 users"]
    assert first["queue"] == ["72.0ms", "p99 > 216ms"]
    assert first["TTFT engine"] == ["14.4ms", "p99 > 43.2ms"]
    stat = summary.stages[1].latency.ttft_s
    assert first["TTFT client"] == [html.duration(stat.mean), f"p99 {html.duration(stat.p99)}"]
    after = table(page, "engine", "After it, engine beside client")["16 users"]
    assert list(after)[1:] == [
        "ITL engine",
        "ITL client",
        "TPOT engine",
        "TPOT client",
        "decode",
        "E2E engine",
        "E2E client",
    ]
    whole = table(page, "engine", "The engine's distributions, all stages together")
    assert list(whole) == ["queue", "prefill", "TTFT", "ITL", "TPOT", "decode", "E2E"]
    assert whole["queue"] == {
        "": ["queue"], "n": ["137,500"], "mean": ["138ms"], "p50": ["≤ 68.8ms"],
        "p90": ["206ms", "68.8ms … 275ms"], "p99": ["> 413ms"],
    }  # fmt: skip


def test_the_tables_of_the_cache_by_value(page: ElementTree.Element) -> None:
    cells = [lines_of(cell)[0] for cell in page.iterfind(".//section[@id='kv-cache']/div[@class='narrow']//td")]
    assert cells == ["holds, tokens", "34,864", "–", "its size", "3.73 GiB", "–", "bytes a token", "114,732", "114,688"]
    assert table(page, "kv-cache", "")["64 users"] == {
        "": ["64 users"], "in use mean": ["66.0%", "23,010 tokens"], "in use fullest": ["68.5%", "23,882 tokens"],
        "bytes in use mean": ["2.46 GiB"], "predicted for the mean batch": ["2.34 GiB"],
        "context mean, tokens": ["77.5", "82.0 when it ends"], "in the batch mean": ["33.0", "max 36"],
        "full at a batch of predicted": ["43.8", "39.8 if all are about to end"], "preemptions": ["4"],
    }  # fmt: skip
    assert "Note: layers with a window." in text(page, "kv-cache")


def test_a_size_that_the_engine_does_not_tell_is_a_prediction() -> None:
    summary = watched()
    metrics(summary)["kv_cache"]["bytes_per_token"] = None
    cells = parse(html.render(summary, {}, None)).iterfind(".//section[@id='kv-cache']/div[@class='narrow']//td")
    assert [cell.text for cell in cells][3:6] == ["its size", "–", "3.73 GiB"]


def test_a_prediction_alone_is_shown_alone() -> None:
    """Ollama with a model's configuration: the client's streams stand for the batch."""
    summary = watched()
    for part in (summary, *summary.stages):
        block = metrics(part)
        block["running"] = block["kv_cache_usage"] = {"mean": None, "max": None}
        block["preemptions"] = None
        notes = ["the engine does not tell its batch"]
        block["kv_cache"] = {"predicted_bytes_per_token": 131_072.0, "predicted_bytes_mean": 2.0**30, "notes": notes}
    page = parse(html.render(summary, {}, None))
    cells = [cell.text for cell in page.iterfind(".//section[@id='kv-cache']/div[@class='narrow']//td")]
    assert cells == ["bytes a token", "–", "131,072"]
    assert table(page, "kv-cache", "")["8 users"] == {"": ["8 users"], "predicted for the mean batch": ["1.00 GiB"]}
    told = text(page, "kv-cache")
    assert "Note: the engine does not tell its batch." in told
    assert "The engine does not say how large its cache is" in told


def test_the_gpus_tables_by_value(page: ElementTree.Element) -> None:
    assert table(page, "gpus", "Energy and cost")["32 users"] == {
        "": ["32 users"], "power mean, all GPUs": ["440 W"], "energy all GPUs": ["44.0 kJ"],
        "utilization kernels ran": ["55.0%"], "memory used highest, all GPUs": ["110 GiB"],
        "J/token output tokens": ["0.917"], "tokens/s/W = tokens/J": ["1.09"], "cost, EUR 1M output tokens": ["4.05"],
        "clocks held down the GPU with the most": ["13.5s, 13.3%", "sw_power_cap", "hw_thermal 2.50s, 2.47%"],
        "GPUs": ["2"],
    }  # fmt: skip
    assert "Cost: 3.5 EUR a GPU and hour." in text(page, "gpus")
    each = table(page, "gpus", "Each GPU")
    assert list(each) == ["GPU 0, NVIDIA H200", "GPU 1, NVIDIA H200"]
    assert each["GPU 1, NVIDIA H200"] == {
        "GPU": ["GPU 1, NVIDIA H200", "GPU-1ab"], "state": ["answered", "backend nvml"],
        "power mean": ["211 W", "max 242 W"], "energy observed": ["21.1 kJ", "in 101s"],
        "utilization kernels ran": ["92.5%"], "memory used highest": ["26.3 GiB", "of 142 GiB"],
        "temperature highest": ["65 °C", "memory 82 °C"],
            "SM clock lowest, highest": ["1.85 GHz to 2.06 GHz", "of 2.08 GHz", "memory 3.30 GHz"],
        "clocks held down by reason": ["13.5s, 13.3%", "sw_power_cap", "hw_thermal 2.50s, 2.47%"],
        "XIDs driver's errors": ["79 (2×)"],
    }  # fmt: skip


def test_how_it_was_read_by_value(page: ElementTree.Element) -> None:
    lines = [[lines_of(cell) for cell in line] for line in page.iterfind(".//div[@class='pages']//tbody/tr")]
    assert lines == [
        [["http://gpu:8000/metrics"], ["vllm", "0.33.1"], ["450"], ["447"], ["timeout 3"],
         ["did not answer within 1 s"], ["num_gpu_blocks 2179, cache_dtype fp8"], ["itl_s"]],
        [["http://gpu:9647/metrics"], ["gpu"], ["451"], ["449"], ["connect 2"], ["gone"], ["–"], ["–"]],
    ]  # fmt: skip
    covered = table(page, "sources", "")
    assert len(covered) == 10
    assert covered["engine, 64 users"] == {
        "": ["engine, 64 users"], "steady windows": ["134s"], "covered first to last reading": ["132s, 99.06%"],
        "readings": ["330"], "gaps": ["timeout 1"], "longest hole no reading": ["3.08s"], "restarts": ["5"],
        "windows without readings": ["3"],
    }  # fmt: skip


def test_durations_that_came_with_answers() -> None:
    summary = sweep(stages=1)
    stat = {"n": 12_345, "mean": 0.25, "p50": 0.2, "p90": 0.5, "p95": 0.75, "p99": None, "max": 1.5}
    summary.server = {"odd_s": stat, "tokens_per_s": {**stat, "mean": 31.25}, "load_s": stat}
    found = table(parse(html.render(summary, {}, None)), "engine", "Durations that came with the answers")
    assert list(found) == ["load", "tokens/s of a request", "odd_s"]
    assert [cell for (cell,) in found["load"].values()] == [
        "load", "12.3k", "250ms", "200ms", "500ms", "750ms", "–", "1.50s",
    ]  # fmt: skip
    assert found["tokens/s of a request"]["mean"] == ["31.2"]


def test_tokens_that_came_with_answers() -> None:
    summary = sweep(stages=2)
    assert not table_titled(summary, "Tokens that came with the answers")
    for part, scale in ((summary, 3), (summary.stages[0], 1), (summary.stages[1], 2)):
        part.tokens.input, part.tokens.output = 1000 * scale, 500 * scale
        part.tokens.cached, part.tokens.reasoning, part.tokens.reasoning_events = 250 * scale, 125 * scale, 90 * scale
        part.tokens.drafted, part.tokens.accepted = 400 * scale, 300 * scale
    found = table_titled(summary, "Tokens that came with the answers")
    assert len(found) == 3
    assert found["all stages"] == {
        "": ["all stages"], "prompt": ["3,000"], "from the prefix cache of the prompt": ["750", "25.0%"],
        "output": ["1,500"], "reasoning tokens": ["375", "25.0%"], "reasoning events before the answer": ["270"],
        "drafted": ["1,200"], "accepted of the drafted": ["900", "75.0%"],
    }  # fmt: skip


def table_titled(summary: Summary, title: str) -> dict[str, Any]:
    page = html.render(summary, {}, None)
    return table(parse(page), "engine", title) if title in page else {}


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (units.size, 143881404416.0, "134 GiB"), (units.size, 1023.6, "1.00 KiB"),
        (units.size, 512.0, "512 B"), (units.size, 0.0, "0 B"), (units.size, None, "–"),
        (units.watts, 631.2, "631 W"), (units.watts, 5040.0, "5.04 kW"),
        (units.joules, 0.5781, "0.578 J"), (units.joules, 18_931.0, "18.9 kJ"),
        (units.hertz, 1.905e9, "1.91 GHz"), (units.celsius, 53.6, "54 °C"),
        (units.three, 0.0012345, "0.00123"), (units.three, 12_345.0, "12.3k"),
        (units.exact, 34_864.0, "34,864"), (units.top, 64.0, "64"), (units.three, float("inf"), "–"),
    ],
)  # fmt: skip
def test_units(show: Any, value: float | None, expected: str) -> None:
    assert show(value) == expected


def test_a_bucket_is_said_as_far_as_it_is_known() -> None:
    split = Split(n=100, p90=0.25, ranges={"p50": (0.0, 0.01), "p90": (0.2, 0.3), "p99": (2.5, None)})
    assert units.percentile(split, "p50") == ("≤ 10ms", "")
    assert units.percentile(split, "p90") == ("250ms", "200ms … 300ms")
    assert units.percentile(split, "p99") == ("> 2.5s", "")
    assert units.percentile(Split(n=3), "p99") == ("–", "")


def test_clocks_that_were_never_held_down_are_none_and_unknown_ones_are_missing() -> None:
    assert units.throttled({"hw_thermal": 0.0}, 10.0) == ("none",)
    assert units.throttled({}, 10.0) == ("–",)
    assert units.throttled({"a": 1.0, "b": 4.0}, None) == ("4.00s", "b", "a 1.00s")
