"""report.html on engine and GPUs: no number of their blocks is missing silently, and foreign text is only text."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from test_report_html import ATTRIBUTES, CORPUS, ELEMENTS, parse
from test_report_html_telemetry import metrics, text, watched

from tokenswarm.reports.html import page as html
from tokenswarm.result.summary import Stage, Summary

NOT_OF_A_STAGE = re.compile(
    r"\.latency\.\w+\.(n|p50|p90|p99|ranges)\b|^gpu\.gpus\b|capacity|bytes_per_token|price|currency"
)
"""Left to summary.json, and the page says so; or told once, of the run."""

SAME = {
    "output_tokens_per_j": "output_tokens_per_s_per_w",
    "server_per_s": "generation_tokens_per_s",
}
"""Two names of one number, of which one is shown."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all single values inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield from leaves(inside, (*path, key))
    if not isinstance(value, dict | list):
        yield path


def changed(value: Any) -> Any:
    """Another value of its type."""
    if isinstance(value, bool) or value is None:
        return not value if isinstance(value, bool) else 123.5
    return f"{value}x" if isinstance(value, str) else value * 3 + 7


def missing(summary: Summary, part: Summary | Stage, name: str) -> list[str]:
    """The values of a block that can change without any change of the page."""
    block = msgspec.json.decode(msgspec.json.encode(getattr(part, name)))  # as read from summary.json: lists, no tuples
    setattr(part, name, block)
    before = html.render(summary, {}, None)
    found = []
    for path in leaves(block):
        *way, last = path
        inside: Any = block
        for key in way:
            inside = inside[key]
        old = inside[last]
        inside[last] = changed(old)
        if html.render(summary, {}, None) == before:
            found.append(".".join(map(str, (name, *path))))
        inside[last] = old
    return [name for name in found if name.rpartition(".")[2] not in SAME]


@pytest.mark.parametrize("name", ["server", "gpu"])
def test_no_number_of_the_run_is_missing(name: str) -> None:
    summary = watched(stages=1)
    summary.stages = []
    summary.server = {"load_s": {"n": 3, "mean": 0.25, "max": 0.5}} | summary.server
    assert missing(summary, summary, name) == []


@pytest.mark.parametrize("name", ["server", "gpu"])
def test_no_number_of_a_stage_is_missing(name: str) -> None:
    """But for those that the page says are in summary.json."""
    summary = watched(stages=2)
    lost = missing(summary, summary.stages[1], name)
    assert [path for path in lost if not NOT_OF_A_STAGE.search(path)] == []
    page = html.render(summary, {}, None)
    assert "stages[].server.metrics.latency in summary.json" in page
    assert "stages[].gpu.gpus in summary.json" in page


def test_a_number_that_the_page_does_not_show_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two tests above can fail."""
    monkeypatch.setattr(html.gpu, "celsius", lambda _: "–")
    summary = watched(stages=1)
    summary.stages = []
    lost = missing(summary, summary, "gpu")
    assert {path.rpartition(".")[2] for path in lost} == {"temperature_c_max", "temperature_memory_c_max"}


def test_names_that_are_not_known_are_listed() -> None:
    summary = watched()
    summary.server |= {"strange": 7, "odd": {"n": "many"}}
    metrics(summary)["speculation"] = {"accepted": 0.5}
    summary.stages[0].gpu["gpus"][0]["fan_ratio"] = 0.5
    told = text(parse(html.render(summary, {}, None)), "sources")
    names = "server.strange, server.odd, server.metrics.speculation, stages[].gpu.gpus[].fan_ratio"
    assert f"Not shown here, see summary.json: {names}." in told
    assert "see summary.json:" not in html.render(watched(), {}, None)


@pytest.mark.parametrize("damage", [[], "x", 3, {"running": 1}, {"coverage": {}}, {"coverage": None}])
def test_a_damaged_block_is_named_and_the_page_is_made(damage: Any) -> None:
    summary = watched()
    summary.server["metrics"] = damage or [1]
    summary.gpu = {"count": damage}
    told = text(parse(html.render(summary, {}, None)), "sources")
    assert "Not shown here, see summary.json: server.metrics, gpu." in told


@pytest.mark.parametrize("evil", CORPUS)
def test_foreign_text_of_engine_and_gpus_is_only_text(evil: str) -> None:
    evil = evil.replace("\ud800", "")  # no page that was read as UTF-8 has it
    summary = watched(stages=2)
    for part in (summary, *summary.stages):
        block = metrics(part)
        block["finished"] = block["rejected"] = block["coverage"]["gaps"] = {evil: 3}
        block["kv_cache"]["notes"] = [evil]
        block["latency"][evil] = block["latency"]["ttft_s"]
        part.gpu["currency"] = evil
        for gpu in part.gpu["gpus"]:
            gpu |= {"name": evil, "gpu": evil, "index": evil, "backend": evil}
            gpu |= {"throttle_s": {evil: 1.0}, "xids": {evil: 1}}
    for source in (metrics(summary)["sources"][0], summary.gpu["sources"][0]):
        source |= {"url": evil, "kind": evil, "version": evil, "problem": evil, "facts": {evil: evil}}
        source |= {"gaps": {evil: 1}}
    metrics(summary)[evil] = 1
    summary.server[evil] = {"n": 1, "mean": 1.0}
    made = html.render(summary, {}, None)
    made.encode("utf-8")
    page = parse(made)
    assert {element.tag for element in page.iter()} <= ELEMENTS
    assert {name for element in page.iter() for name in element.attrib} <= ATTRIBUTES
    shown = " ".join("".join(c if c.isprintable() else " " for c in evil).split())
    for section in ("engine", "kv-cache", "gpus", "sources"):
        assert shown in text(page, section), section


def test_the_page_does_not_change_what_it_shows() -> None:
    summary = watched()
    before = copy.deepcopy(summary)
    html.render(summary, {}, None)
    assert summary == before
