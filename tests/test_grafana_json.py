"""The committed dashboards: they are what build.py makes, hold to the dashboard linter's rules, and ask for real names.

The rules are those of github.com/grafana/dashboard-linter, ported: template-datasource, panel-datasource, panel-title-
description, panel-units, panel-no-targets, target-rate-interval, target-counter-agg, target-job, target-instance,
template-on-time-change-reload, uneditable.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_frames import DASHBOARDS, FOLDER, all_targets, panels

from grafana import catalogue

REPO = FOLDER.parent.parent
PROVISIONING = FOLDER.parent / "provisioning"
TARGETS = all_targets()
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in panels(dashboard)]
UNITS = {
    "s", "short", "percentunit", "cps", "reqps", "ops", "bytes", "Bps", "binBps", "watt", "joule", "celsius", "hertz",
}  # fmt: skip
COUNTER = re.compile(r"\b([\w:]+_total|[\w:]+_(?:bucket|sum|count))\b")


def label(name: str, panel: dict[str, Any]) -> str:
    return f"{name}: {panel['title']}"


def ids(of: list[Any]) -> list[str]:
    return [f"{one[0]}-{one[1]['title']}-{one[2]['refId'] if len(one) > 2 else ''}" for one in of]


@pytest.fixture
def sdk() -> None:
    """The generator needs grafana-foundation-sdk (the extra dev); on CI it is a must."""
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("grafana-foundation-sdk is not installed")
        pytest.skip("grafana-foundation-sdk is not installed (extra dev)")


@pytest.mark.usefixtures("sdk")
def test_the_committed_dashboards_are_what_build_makes() -> None:
    from grafana import build

    assert sorted(build.DASHBOARDS) == sorted(DASHBOARDS)
    for name, make in build.DASHBOARDS.items():
        assert (FOLDER / f"{name}.json").read_text() == build.text(make()), f"{name}: run python -m grafana.build"


@pytest.mark.usefixtures("sdk")
def test_check_says_what_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grafana import build

    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0
    (tmp_path / "c-soak.json").write_text("{}")
    capsys.readouterr()
    assert build.main(["--check"]) == 1
    assert capsys.readouterr().out == "out of date, run python -m grafana.build: c-soak.json\n"


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_typed_model_loses_no_key(name: str) -> None:
    """A misspelt or misplaced option is one that Grafana's own model does not know: a round trip drops it."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARDS[name])))
    assert _missing(DASHBOARDS[name], again) == []
    spoilt = json.loads(json.dumps(DASHBOARDS[name]))
    next(panels(spoilt))["options"]["spanNulls"] = True
    assert _missing(spoilt, json.loads(JSONEncoder().encode(Dashboard.from_json(spoilt)))) != []


def _missing(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict):
        if not isinstance(after, dict):
            return [path]
        return [m for key, old in before.items() for m in _missing(old, after.get(key), f"{path}.{key}")]
    if isinstance(before, list):
        if not isinstance(after, list) or len(after) != len(before):
            return [path]
        return [
            m
            for i, (old, new) in enumerate(zip(before, after, strict=True))
            for m in _missing(old, new, f"{path}[{i}]")
        ]
    return [] if before == after else [path]


# The dashboard


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_provisioned(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["editable"] is False
    assert re.fullmatch(r"tokenswarm-[a-z]+", dashboard["uid"])
    assert dashboard.get("id") is None
    assert "__inputs" not in dashboard, "provisioning does not resolve the form of an export"
    assert 39 <= dashboard["schemaVersion"] <= 42
    assert dashboard["refresh"]
    assert dashboard["description"]
    numbers = [panel["id"] for panel in panels(dashboard)]
    assert len(set(numbers)) == len(numbers)


def test_no_two_dashboards_have_the_same_name() -> None:
    for key in ("uid", "title"):
        assert len({dashboard[key] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables(name: str) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}
    source = variables["datasource"]
    assert (source["type"], source["query"], source["multi"]) == ("datasource", "prometheus", False)
    assert {"run_id", "run_a"} & set(variables)
    for variable in variables.values():
        if variable["type"] == "query":
            assert variable["refresh"] == 2, "reload on a change of the time range"
            assert variable["datasource"]["uid"] == "${datasource}"
            assert catalogue.used(_inner(variable["query"]["query"])) <= catalogue.names()
    text = json.dumps([DASHBOARDS[name]["panels"], DASHBOARDS[name]["annotations"], list(variables.values())])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__range", "__all", "1"}  # $1: label_replace's
    assert used == set(variables), "a variable that is not defined, or not used"


def _inner(query: str) -> str:
    found = re.fullmatch(r"(?:label_values|query_result)\((.*?)(?:, \w+)?\)", query)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_annotations_come_from_prometheus(name: str) -> None:
    notes = {note["name"]: note for note in DASHBOARDS[name]["annotations"]["list"]}
    assert set(notes) == {"Run start", "Run end", "Warm-up and drain", "Stages", "Alerts"}
    for note in notes.values():
        assert note["datasource"]["uid"] == "${datasource}"
        assert note["step"] == "5s"
        assert catalogue.used(note["expr"]) <= catalogue.names()
    for which in ("Run start", "Run end", "Stages"):
        assert notes[which]["useValueForTime"] is True
        assert "_timestamp_seconds" in notes[which]["expr"]
        assert "* 1000" in notes[which]["expr"], "Grafana wants milliseconds"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_fill_the_grid(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]


# The panels


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=ids(PANELS))
def test_a_panel_explains_itself(name: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    what, formula, bad, empty = panel["description"].split("\n\n")
    assert len(what) > 10
    assert formula.startswith("Formula: ")
    assert bad.startswith("Bad: ")
    assert empty == f"Empty: {panel['fieldConfig']['defaults']['noValue']}"
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs), label(name, panel)


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=ids(PANELS))
def test_a_panel_avoids_what_trips_grafana(name: str, panel: dict[str, Any]) -> None:
    """Each of these was seen in @grafana/data 12.4: an error or a wrong text, in a panel that looks right here."""
    where = label(name, panel)
    for step in panel.get("transformations", []):
        assert step["options"].get("mode") != "inner", f"{where}: an inner join of frames without data throws"
    overrides = panel["fieldConfig"].get("overrides", [])
    assert not any("$" in str(override["matcher"]["options"]) for override in overrides), f"{where}: is not filled in"
    assert "$" not in json.dumps([one["name"] for one in panel["options"].get("series", [])]), where
    if panel["type"] == "table":  # else an empty cell shows the reason for an empty panel
        first = overrides[0]
        assert first["matcher"] == {"id": "byRegexp", "options": "/.*/"}, where
        assert first["properties"] == [{"id": "noValue", "value": "–"}], where


def test_where_a_variable_stands_for_a_moment_it_is_never_empty() -> None:
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            if variable["name"] == "started":
                assert " or vector(0)" in variable["query"]["query"]


def test_titles_are_unique_on_a_dashboard() -> None:
    for name, dashboard in DASHBOARDS.items():
        titles = [(panel["title"], panel["type"]) for panel in panels(dashboard)]
        assert len(set(titles)) == len(titles), name


# The targets


@pytest.mark.parametrize(("name", "panel", "target"), TARGETS, ids=ids(TARGETS))
def test_a_target_asks_well(name: str, panel: dict[str, Any], target: dict[str, Any]) -> None:
    expr, where = target["expr"], label(name, panel)
    assert target["datasource"]["uid"] == "${datasource}", where
    assert catalogue.used(expr) <= catalogue.names(), sorted(catalogue.used(expr) - catalogue.names())
    said = (
        r'\b(job|instance)\s*=~?\s*"(?!\$(engine|host)\b|tokenswarm-|")'  # but for the run, and for our own exporters
    )
    assert not re.search(said, expr), "which machine is scraped is not ours to say"
    for function, window in re.findall(r"\b(rate|increase|irate)\([^\[\]]*\[([^\]]+)\]", re.sub(r'"[^"]*"', "", expr)):
        assert function != "irate"
        assert window == "$__rate_interval" or re.fullmatch(r"\d+[smh]", window), window
        assert "$__interval" not in window, "empty where a step is shorter than two scrapes"
    if target.get("format") == "heatmap":
        assert expr.startswith("sum by (le) (increase(")


@pytest.mark.parametrize(("name", "panel", "target"), TARGETS, ids=ids(TARGETS))
def test_counters_are_rated_or_taken_whole(name: str, panel: dict[str, Any], target: dict[str, Any]) -> None:
    """A bare counter over time is a ramp that ends in a reset. Within a run, ours start at 0: there a total is one."""
    whole = ("Output tokens since the start", "XID and memory errors", "Can it be believed?")
    if panel["title"] in whole:
        return
    outside = re.sub(r"\b(rate|increase|last_over_time|absent\(count)\([^()]*\)", "", target["expr"])
    outside = re.sub(r'"[^"]*"', "", outside)
    outside = re.sub(r"tokenswarm:[\w:]+|\bhistogram_(sum|count)\(", "", outside)
    assert not COUNTER.search(outside), (label(name, panel), outside)


def test_the_dashboards_can_follow_any_gpu_exporter() -> None:
    mapped = {"utilization_ratio", "memory_used_bytes", "memory_total_bytes", "power_watts", "energy_joules_total"}
    for name, panel, target in TARGETS:
        for metric in mapped:
            assert f"tokenswarm_gpu_{metric}" not in target["expr"], label(name, panel)


def test_heatmaps_ask_for_edges_that_the_exporter_has() -> None:
    from exporters.load.render import le
    from exporters.load.table import HISTOGRAMS

    found = 0
    for _, panel, target in TARGETS:
        if target.get("format") != "heatmap":
            continue
        found += 1
        metric, edges = re.search(r'increase\((\w+)_bucket\{.*le=~"([^"]+)"', target["expr"]).groups()  # type: ignore[union-attr]
        histogram = HISTOGRAMS[metric][0]
        wanted = [
            le(power << histogram.schema, histogram.schema) for power in range(histogram.first, histogram.last + 1)
        ]
        matching = [edge for edge in (le(k, histogram.schema) for k in histogram.keys) if re.fullmatch(edges, edge)]
        assert matching == wanted, panel["title"]
        assert re.fullmatch(edges, "1.0"), "as Prometheus 3 writes it"
    assert found == 2


# The catalogue and the provisioning


def test_the_catalogue_finds_what_an_expression_asks_for() -> None:
    expr = (
        'sum by (le) (rate(a_bucket{x="y_total"}[$__rate_interval])) / on (run_id) group_left (z) (vllm:b > 0 or c:d:e)'
    )
    assert catalogue.used(expr) == {"a_bucket", "vllm:b", "c:d:e"}
    assert catalogue.used('count({__name__=~"vllm:a|vllm:b"} @ $started offset 5m)') == {"vllm:a", "vllm:b"}
    assert "tokenswarm_gpu_up" in catalogue.names()
    assert "tokenswarm_no_such_metric" not in catalogue.names()


def test_the_engine_simulator_speaks_the_names_of_the_catalogue() -> None:
    from tokenswarm.simulator import metrics

    source = Path(metrics.__file__).read_text()
    spoken = {name for name in (*catalogue.VLLM_HISTOGRAMS, *catalogue.VLLM_COUNTERS) if f'"{name}"' in source}
    assert {"time_to_first_token_seconds", "iteration_tokens_total", "generation_tokens_total"} <= spoken


def test_the_data_source() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    for path in ("configs/prometheus/prometheus.yml", "grafana/prometheus.yml"):
        config = yaml.safe_load((REPO / path).read_text())
        assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"], path
    assert source["jsonData"]["httpMethod"] == "POST"
    assert source["editable"] is False
    for dashboard in DASHBOARDS.values():
        assert dashboard["templating"]["list"][0]["current"]["value"] == source["uid"]


def test_the_provider_is_read_only_and_finds_the_dashboards() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "tokenswarm.yml").read_text())["providers"]
    assert provider["disableDeletion"] is True
    assert provider["allowUiUpdates"] is False
    compose = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    home = compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / Path(home).name).exists()
