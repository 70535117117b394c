"""The end of a good run on a disk that does not take everything: 16, said once, and all else is written."""

from __future__ import annotations

import re
from pathlib import Path

from running import SAMPLES, program, tokenswarm
from simulator_process import simulator

PROFILE = """
dataset: {path: %s, output_tokens: {fixed: 4}}
load: {stages: [{users: 2, duration: 1s}]}
phases: {warmup: 500ms, drain: 5s}
telemetry: {engine_metrics: off}
"""


def test_a_report_that_can_not_be_written_is_16_and_the_others_are_there(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    with (
        simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as engine,
        program(tokenswarm("run", "p.yaml", "--host", engine.url), tmp_path) as started,
    ):
        started.await_output("stage 1")
        (folder,) = (tmp_path / "results").glob("2*")
        (folder / "report.md").mkdir()  # in its way, for root as well
        finished = started.finish(60)

    assert finished.code == 16, finished.out
    assert finished.out.count("report.md: could not be written") == 1
    assert "Traceback" not in finished.out
    assert re.search(r"verdict: (VALID|DEGRADED)", finished.out), "the table is printed all the same"
    for name in ("summary.json", "manifest.json", "requests.jsonl", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert (tmp_path / "results" / "latest").resolve() == folder
