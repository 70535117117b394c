"""The id that a request carries is its own, over workers and over runs that share a server, and stands in its row."""

from __future__ import annotations

from pathlib import Path

from running import SAMPLES, program, tokenswarm
from simulator_process import simulator

PROFILE = f"""
name: ids
target: http://127.0.0.1:9
dataset: {{path: {SAMPLES / "sharegpt.json"}, output_tokens: {{max: 2}}}}
load: {{stages: [{{users: 4, duration: 1s}}]}}
phases: {{warmup: 0s, settle: 0s, drain: 10s}}
workers: 2
"""


def test_no_id_comes_twice(tmp_path: Path) -> None:
    """Two runs with two workers each, at the same time: their numbers begin at 0 in all four."""
    (tmp_path / "p.yaml").write_text(PROFILE, encoding="utf-8")
    command = tokenswarm("run", "p.yaml", "--host")
    with simulator("--preset", "paced", "--ttft-ms", "100", "--itl-ms", "10") as server:
        words = [*command, server.url]
        with program(words, tmp_path) as one, program(words, tmp_path) as two:
            runs = [one.finish(), two.finish()]
        seen = [request["id"] for request in server.truth()["requests"] if not request["id"].startswith("probe-")]

    rows = [row for run in runs for row in run.rows]
    assert {row["worker"] for row in rows} == {0, 1}
    assert len(rows) > 40
    assert len(set(seen)) == len(seen)
    assert sorted(row["id"] for row in rows) == sorted(seen), "what was sent is what is found in the server's log"
    for run in runs:
        assert {row["id"].rpartition("-")[0].rpartition("-")[0] for row in run.rows} == {run.summary["run_id"]}
