"""docs/results.md names each field of a run's files, and none that there is not."""

from __future__ import annotations

import csv
import inspect
import io
import json
import re

import msgspec
import sample_runs
from test_docs_tables import REPO, page, rows, words

from tokenswarm.judge.search import Probe
from tokenswarm.measure.instrument import WorkerReport
from tokenswarm.measure.windows import Window
from tokenswarm.profile.load import Stage as Load
from tokenswarm.prompts.info import DataInfo
from tokenswarm.record import EngineTimes
from tokenswarm.reports import manifest, output
from tokenswarm.reports.jsonl import Row
from tokenswarm.reports.pipelines import gitlab
from tokenswarm.result.summary import Doubt, Gate, Part, Stage, SteadyWindow, Summary, Verdict, plan_of, summarize

PARTS = {match[1]: match[2] for match in re.finditer(r"^## (.+?)\n(.*?)(?=^## |\Z)", page("results"), re.M | re.S)}


def named(part: str) -> set[str]:
    """What stands in backticks in the first cells of a section's table."""
    return {name for cells in rows(PARTS[part]) for name in words(cells[0])}


def cell(part: str, name: str) -> set[str]:
    (found,) = (cells for cells in rows(PARTS[part]) if name in words(cells[0]))
    return set(words(found[1]))


def fields(struct: type[msgspec.Struct]) -> set[str]:
    return set(struct.__struct_fields__)


def test_every_field_of_a_row_is_named_and_no_other() -> None:
    said = {"token_source"}  # beside `output_tokens`
    assert named("requests.jsonl") | said == fields(Row)
    assert {f"{name[:-3]}_s" for name in fields(EngineTimes)} == cell("requests.jsonl", "engine")


def test_every_key_of_the_summary_is_named_and_no_other() -> None:
    assert named("summary.json") == fields(Summary)
    assert fields(Stage) - fields(Part) <= cell("summary.json", "stages")
    structs = {"verdict": Verdict, "gates": Gate, "steady_window": SteadyWindow}
    for name, struct in structs.items():
        assert fields(struct) <= cell("summary.json", name), name
    assert fields(Doubt) <= cell("summary.json", "verdict")
    assert fields(Probe) <= cell("summary.json", "search")
    assert fields(WorkerReport) <= set(words(PARTS["summary.json"]))


def test_every_key_of_the_manifest_is_named_and_no_other() -> None:
    begun = inspect.signature(manifest.build).parameters
    assert named("manifest.json") == {"schema_version", "ended", "seeds", "dataset", "workers", "stamps", *begun}
    assert fields(DataInfo) == cell("manifest.json", "dataset") - {"tokenswarm data info --json"}
    source = (REPO / "tokenswarm/cluster/conclusion.py").read_text("utf-8")
    for name, function in (("host", "_host_facts"), ("workers", "_workers")):
        body = source.partition(f"def {function}(")[2].partition("\ndef ")[0]
        assert set(re.findall(r'"(\w+)":', body)) == cell("manifest.json", name)
    assert f"{manifest.SCHEMA_VERSION}; " in next(c[1] for c in rows(PARTS["manifest.json"]) if "run_id" in c[0])


def test_every_key_of_a_window_is_named() -> None:
    assert fields(Window) <= set(words(PARTS["windows.jsonl"]))


def test_the_columns_of_the_csv_are_those_of_the_page_and_a_ramp_tells_both_its_rates() -> None:
    plan = [plan_of(0, Load(rate=(2.0, 8.0))), plan_of(1, Load(rate=(8.0,)))]
    summary = summarize(sample_runs.run(60, window_s=10, stages=2), plan=plan)
    table = list(csv.DictReader(io.StringIO(output.as_csv(summary))))
    ends = cell("CSV and metrics.txt", "ttft_s_…")
    told = {
        f"{name[:-1]}{end}" if name.endswith("…") else name
        for name in named("CSV and metrics.txt")
        for end in (ends - {"latency"} if name.endswith("…") else [""])
    }
    assert told == set(table[0])
    assert [(row["stage"], row["rate"], row["rate_end"]) for row in table] == [
        ("1", "2.0", "8.0"), ("2", "8.0", ""), ("all", "", "")
    ]  # fmt: skip
    lines = gitlab.render(summary)
    assert 'tokenswarm_requests_per_s{stage="0",rate="2",rate_end="8"}' in lines
    assert 'tokenswarm_requests_per_s{stage="1",rate="8"}' in lines
    metrics = {re.match(r"tokenswarm_(\w+?)(?:_p\d+)?[{ ]", line)[1] for line in lines.splitlines()}  # type: ignore[index]
    latencies = {name for name in metrics if name.endswith("_s") and not name.endswith("per_s")}
    assert metrics - latencies <= set(words(PARTS["CSV and metrics.txt"]))
    assert latencies == {"ttft_s", "itl_s", "tpot_s", "e2e_s"}
    assert json.loads(output.as_json(summary))["stages"][0]["rate_end"] == 8.0
