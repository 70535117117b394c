"""The Prometheus configuration that we ship: promtool accepts it, and every rule has a unit test that it passes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import tool

from exporters import ollama
from exporters.gpu import host, table
from exporters.load.table import FAMILIES, HISTOGRAM_HELP, HISTOGRAMS, OWN_FAMILIES, REASONS, SUMMARIES
from tokenswarm.telemetry import names

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "prometheus"
RULE_FILES = sorted((FOLDER / "rules").glob("*.yml"))
TEST_FILES = sorted((FOLDER / "tests").glob("*.yml"))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def promtool() -> Run:
    program = tool("promtool")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *args], capture_output=True, text=True, timeout=300, check=False)

    return run


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULE_FILES for group in read(path)["groups"] for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    return [case for path in TEST_FILES for case in read(path)["tests"]]


def recorded() -> list[str]:
    """The labels of every sample that a test expects, as promtool writes them."""
    tests = [test for case in cases() for test in case.get("promql_expr_test", ())]
    return [sample["labels"] for test in tests for sample in test["exp_samples"]]


def test_promtool_accepts_the_configuration(promtool: Run) -> None:
    checked = promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "3 rule files found" in checked.stdout


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_the_unit_tests_of_the_rules_pass(promtool: Run, path: Path) -> None:
    tested = promtool("test", "rules", str(path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("name", ["tokenswarm:requests:rate30s", "LLMGpuXid"])
def test_a_rule_that_changes_fails_its_unit_test(promtool: Run, tmp_path: Path, name: str) -> None:
    for kind, paths in (("rules", RULE_FILES), ("tests", TEST_FILES)):
        (tmp_path / kind).mkdir()
        for path in paths:
            text = path.read_text().replace("(rate(tokenswarm_requests_total[30s]))", "(tokenswarm_requests_total)")
            (tmp_path / kind / path.name).write_text(text.replace("< 600", "< 60") if kind == "rules" else text)
    file = "load" if ":" in name else "alerts"
    assert promtool("test", "rules", str(tmp_path / "tests" / f"{file}.yml")).returncode != 0


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "record" in rule], ids=lambda rule: f"{rule['record']}{rule.get('labels', '')}"
)
def test_every_recording_rule_has_an_expected_value(rule: dict[str, Any]) -> None:
    wanted = [f'{name}="{value}"' for name, value in rule.get("labels", {}).items()]
    named = [labels for labels in recorded() if labels.split("{")[0] == rule["record"]]
    assert any(all(label in labels for label in wanted) for labels in named)


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: f"{rule['alert']} {rule['labels']}"
)
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_quiet(rule: dict[str, Any]) -> None:
    tests = [t for case in cases() for t in case.get("alert_rule_test", ()) if t["alertname"] == rule["alert"]]
    fired = [alert["exp_labels"] for test in tests for alert in test["exp_alerts"]]
    assert any(rule["labels"].items() <= labels.items() for labels in fired)
    assert any(not test["exp_alerts"] for test in tests)
    assert {"summary", "action"} == set(rule["annotations"])


EXAMPLES = re.findall(r"```yaml\n# (\S+\.yml)(.*)\n((?:.+\n)+)```", (FOLDER / "targets" / "README.md").read_text())


CONFIGS = ("configs/prometheus/prometheus.yml", "configs/prometheus/prometheus-3.yml", "grafana/prometheus.yml")


@pytest.mark.parametrize("config", CONFIGS)
def test_each_example_of_a_target_is_one_that_a_job_scrapes(promtool: Run, tmp_path: Path, config: str) -> None:
    """For each engine and router that a run reads, in every configuration that we ship."""
    told = " ".join(name + more for name, more, _ in EXAMPLES).lower()
    titles = [engine.title.split("'")[0] for kind, engine in names.ENGINES.items() if kind != "ollama"]
    assert [title for title in titles if title.lower() not in told] == []
    text = (FOLDER.parents[1] / config).read_text().replace("/run/tokenswarm/push-token", "token")
    text = re.sub(r".*_histograms: true\n", "", text)  # which 2.42 does not know
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    files = [glob for job in jobs.values() for sd in job.get("file_sd_configs", ()) for glob in sd["files"]]
    (tmp_path / "targets").mkdir()
    for name, _, example in EXAMPLES:
        assert len([glob for glob in files if Path("targets", name).match(glob)]) == 1, name
        (tmp_path / "targets" / name).write_text(example)
    (tmp_path / "token").write_text("x")
    shutil.copytree(FOLDER / "rules", tmp_path / "rules")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({**yaml.safe_load(text), "global": {}}))
    checked = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_start_time_that_wobbles_is_no_restart_of_the_soak_dashboard(promtool: Run, tmp_path: Path) -> None:
    page = json.loads((FOLDER.parents[1] / "grafana" / "dashboards" / "c-soak.json").read_text())
    asked = [target["expr"] for panel in page["panels"] for target in panel.get("targets", ())]
    (expr,) = (expr for expr in asked if "changes(process_start_time_seconds" in expr)
    told = {"constant": "100x9", "wobbles": "100 101 100 100 101 100 101 100 100 100", "restarted": "100x4 700x4"}
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f'process_start_time_seconds{{instance="{name}"}}', "values": values}
            for name, values in told.items()
        ],
        "promql_expr_test": [
            {
                "expr": re.sub(r"\{.*?\}", "", expr),
                "eval_time": "9m",
                "exp_samples": [
                    {"labels": f'{{instance="{name}"}}', "value": int(name == "restarted")} for name in told
                ],
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"tests": [case]}))
    tested = promtool("test", "rules", str(tmp_path / "tests.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_alerts_about_a_run_have_no_instance() -> None:
    """It would be the exporter's, which no dashboard takes for a part of the run. As scraped, all series have one."""
    alerting = [case for case in cases() if "alert_rule_test" in case]
    series = [one["series"] for case in alerting for one in case["input_series"]]
    assert [one for one in series if "tokenswarm:" not in one and "instance=" not in one] == []
    fired = [alert for case in alerting for test in case["alert_rule_test"] for alert in test["exp_alerts"]]
    assert [one for one in fired if {"run_id", "instance"} <= one["exp_labels"].keys()] == []


def test_every_metric_of_ours_that_a_rule_asks_for_is_one_that_an_exporter_has() -> None:
    histograms = {f"{name}_{part}" for name in HISTOGRAM_HELP for part in ("bucket", "sum", "count")}
    known = {*FAMILIES, *SUMMARIES, *histograms, *HISTOGRAM_HELP, *table.FAMILIES, *host.FAMILIES, *ollama.FAMILIES}
    asked = {
        word
        for rule in rules()
        for word in "".join(c if c.isalnum() or c in "_:" else " " for c in rule["expr"]).split()
        if word.startswith("tokenswarm_")
    }
    assert len(asked) > 20
    assert asked <= known


def test_every_rule_that_asks_for_buckets_asks_for_the_native_histogram_where_there_are_none() -> None:
    asking = [rule["expr"] for rule in rules() if "_bucket" in rule["expr"]]
    assert len(asking) == 33
    for expr in asking:
        name, labels, window = re.search(r"(\w+)_bucket(\{[^}]*\})?(\[\w+\])?", expr).groups("")  # type: ignore[union-attr]
        assert f"({name}{labels}{window})" in expr.split("or histogram_quantile", 1)[1], expr


def test_every_recorded_name_that_a_rule_asks_for_is_recorded() -> None:
    names = {rule["record"] for rule in rules() if "record" in rule}
    asked = {
        word
        for rule in rules()
        for word in "".join(c if c.isalnum() or c in "_:" else " " for c in rule["expr"]).split()
        if word.startswith("tokenswarm:")
    }
    assert asked
    assert asked <= names


def test_the_configuration_for_3_x_differs_by_native_histograms_only() -> None:
    old, new = read(FOLDER / "prometheus.yml"), read(FOLDER / "prometheus-3.yml")
    load = new["scrape_configs"][0]
    assert load.pop("scrape_native_histograms") is True
    assert load.pop("always_scrape_classic_histograms") is True  # the dashboards' queries name the buckets
    assert new == old


DOC = Path(__file__).resolve().parent.parent / "docs" / "prometheus.md"


def test_the_page_names_every_metric_of_the_load_exporter_with_its_labels_and_help() -> None:
    page = DOC.read_text().replace("| |", "|  |")
    for name, family in {**FAMILIES, **OWN_FAMILIES}.items():
        assert f"| `{name}` | {family.kind} | {', '.join(family.labels)} | {family.help} |" in page
    for name, (text, labels) in SUMMARIES.items():
        assert f"| `{name}` | summary | {', '.join((*labels, 'quantile'))} | {text} |" in page
    for name, text in HISTOGRAM_HELP.items():
        first = HISTOGRAMS[name][0]
        low, high = first.dense or (first.first, first.last)
        buckets = f"Buckets 2^(k/{2**first.schema}), 2^{low} … 2^{high}"
        buckets += f"; 2^(k/4) outside, 2^{first.first} … 2^{first.last}." if first.dense else "."
        assert any(f"`{name}`" in line and f"{text} {buckets}" in line for line in page.splitlines())
    for reason in REASONS:
        assert f"| `{reason}` |" in page


def test_the_page_names_every_rule() -> None:
    page = DOC.read_text().replace("`:", "`tokenswarm:latency_seconds:")
    for rule in rules():
        assert f"`{rule.get('record') or rule.get('alert')}`" in page
