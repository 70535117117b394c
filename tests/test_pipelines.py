"""What pipelines read: junit.xml, metrics.txt, GitHub's summary and annotations, the action and the component.

All are held to their schemas; text of servers and models gives no commands and breaks no document.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import running
import sample_runs
import small_server
import test_compare
import yaml
from running import REPO, run, tokenswarm
from schema_check import json_schema, junit_problems, problems
from simulator_process import simulator
from test_reports_text import EVIL, evil_run, judged

from tokenswarm.reports.pipelines import github, gitlab, junit
from tokenswarm.result.summary import Doubt, Gate, Summary

BIN = Path(sys.executable).parent
COMMAND = EVIL + "\n::error title=x::y\n##[add-mask]z ::add-path::/evil %0A::stop-commands::t \ufffe\ud83d"


def cases(text: str) -> dict[str, str]:
    """{name of a case: what it came to}."""
    suite = ElementTree.fromstring(text).find("testsuite")
    assert suite is not None
    found = {}
    for case in suite.findall("testcase"):
        kinds = [child.tag for child in case if child.tag != "system-out"]
        found[str(case.get("name")).split()[0]] = kinds[0] if kinds else "passed"
    assert suite.get("tests") == str(len(found))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert suite.get(attribute) == str(list(found.values()).count(kind))
    return found


def evil_summary() -> Summary:
    summary = judged(evil_run())
    summary.verdict.doubts.append(Doubt(code="evil", severity="degraded", message=COMMAND))
    summary.gates.append(Gate(metric="e2e_s.p95", op="<=", limit=1.0, value=2.0, result="fail", reason=COMMAND))
    return summary


# -- JUnit -------------------------------------------------------------------------------------------------------------


def test_a_gate_is_a_case_and_so_is_the_verdict() -> None:
    summary = judged(sample_runs.run(120, window_s=10))
    summary.verdict.status = "DEGRADED"
    for gate, result in zip(summary.gates, ("pass", "inconclusive", "fail", "pass"), strict=False):
        gate.result = result  # type: ignore[assignment]
    text = junit.render(summary, {"profile": {"name": "smoke"}, "started": "2026-11-24T10:00:00+00:00"})
    assert junit_problems(text) == []
    expected = [{"pass": "passed"}.get(gate.result, "failure") for gate in summary.gates]
    assert list(cases(text).values()) == ["passed", *expected]
    assert {"failure", "passed"} <= set(expected)


@pytest.mark.parametrize(("status", "partial"), [("INVALID", False), ("VALID", True), (None, False)])
def test_gates_of_what_cant_be_believed_are_skipped(status: Any, partial: bool) -> None:
    summary = judged(sample_runs.run(120, window_s=10), partial=partial)
    summary.verdict.status = status
    text = junit.render(summary, {})
    assert junit_problems(text) == []
    found = cases(text)
    assert found.pop("verdict") == "error"
    assert set(found.values()) == {"skipped"}


def test_text_of_a_server_breaks_no_document() -> None:
    text = junit.render(evil_summary(), {"profile": {"name": COMMAND}, "started": COMMAND[:19]})
    assert junit_problems(text) == []
    assert "\x1b" not in text
    assert "<script" not in text
    assert text.encode("utf-8")


def test_the_junit_schema_is_not_blind() -> None:
    for broken in (
        "<testsuite/>",
        '<testsuites><case name="x"/></testsuites>',
        '<testcase name="x"><failure at="1"/></testcase>',
        '<testcase name="x">text</testcase>',
        '<testsuites time="soon"/>',
    ):
        assert junit_problems(broken), broken


# -- GitLab ------------------------------------------------------------------------------------------------------------


def test_metrics_are_lines_of_a_name_and_a_number() -> None:
    summary = judged(sample_runs.run(1000, window_s=10, stages=2))
    lines = gitlab.render(summary).splitlines()
    for line in lines:
        assert re.fullmatch(r'tokenswarm_[a-z0-9_]+(\{stage="\d+",users="\d+"\})? -?[\d.]+(e[+-]\d+)?', line), line
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert float(values["tokenswarm_ttft_s_p50"]) == pytest.approx(summary.latency.ttft_s.p50, rel=1e-5)
    assert float(values['tokenswarm_requests_per_s{stage="1",users="16"}']) == pytest.approx(
        summary.stages[1].throughput.requests_per_s, rel=1e-5
    )
    assert len(values) == len(lines)


# -- GitHub ------------------------------------------------------------------------------------------------------------


def obeyed(text: str) -> list[str]:
    """What GitHub's runner takes for a command: a line that begins with `::name …::`, or `##[name …]` anywhere."""
    lines = re.split(r"\r\n|\n|\r", text)
    return [line for line in lines if re.match(r"\s*::\S.*?::", line) or "##[" in line]


def test_an_annotation_is_one_command_whatever_it_says() -> None:
    for line in github.annotations_of(evil_summary()):
        assert obeyed(line) == [line]
        assert re.fullmatch(r"::(error|warning) title=[^:,]*::.*", line)
        assert "\n" not in line
        assert "\r" not in line


def test_annotations_name_the_gates_and_stay_within_the_limit() -> None:
    summary = judged(sample_runs.run(120, window_s=10))
    summary.verdict.status = "VALID"
    gate = Gate(metric="e2e_s.p95", op="<=", limit=1.0, value=2.0, result="fail", reason="many")
    summary.gates = [gate] * 3
    assert (
        github.annotations_of(summary)
        == ["::error title=tokenswarm%3A gate e2e_s.p95 fail::2.00s, the limit is ≤ 1s: many"] * 3
    )
    summary.gates = [gate] * 30
    shown = github.annotations_of(summary)
    assert len(shown) == 10
    assert "21 further gates" in shown[-1]
    summary.gates = []
    assert github.annotations_of(summary) == []


@pytest.mark.parametrize("parts", [[COMMAND], list(COMMAND), [COMMAND[:40], COMMAND[40:]], ["a:", ":error ::", "b"]])
def test_disarmed_output_gives_no_commands(parts: list[str], tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+", encoding="utf-8", errors="replace", newline="") as file:
        stream = github.Disarmed(file)
        for part in parts:
            assert stream.write(part) == len(part)
        stream.flush()
        file.seek(0)
        text = file.read()
    assert obeyed("".join(parts)) or parts[0] == "a:"
    assert obeyed(text) == []
    assert text.replace("\u200b", "") == "".join(parts).replace("\ud83d", "?")


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with simulator("--preset", "paced") as server:
        yield server.url


def in_workflow(home: Path) -> dict[str, str]:
    return {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(home / "summary.md")}


SHORT = ["--set", "load.stages.0.duration=2s", "--warmup", "0s"]


def test_a_run_in_a_workflow_tells_its_summary_and_annotations(engine: str, tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text("before\n", "utf-8")
    slo = tmp_path / "slo.yaml"
    slo.write_text("slo: {ttft_s: {p50: 0.0000001}, failed_ratio: 0.0}\n", "utf-8")
    words = ["run", str(REPO / "configs/profiles/smoke.yaml"), "--host", engine, "--slo", str(slo), *SHORT]
    done = run(tokenswarm(*words), tmp_path, **in_workflow(tmp_path))
    assert done.code == 10, done.out
    assert done.folder is not None
    assert obeyed(done.out) == re.findall(r"^::.*$", done.out, re.MULTILINE)
    assert re.search(r"^::error title=tokenswarm%3A gate ttft_s.p50 fail::", done.out, re.MULTILINE)
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert summary == f"before\n{(done.folder / 'report.md').read_text('utf-8')}\n"
    text = (done.folder / "junit.xml").read_text("utf-8")
    assert junit_problems(text) == []
    assert cases(text)["ttft_s.p50"] == "failure"
    assert cases(text)["failed_ratio"] == "passed"
    assert "tokenswarm_itl_s_p50 " in (done.folder / "metrics.txt").read_text("utf-8")


def test_outside_a_workflow_nothing_is_annotated(engine: str, tmp_path: Path) -> None:
    done = run(tokenswarm("run", str(REPO / "configs/profiles/smoke.yaml"), "--host", engine, *SHORT), tmp_path)
    assert done.went_well, done.out
    assert "::" not in done.out


@pytest.mark.parametrize(
    "program", [tokenswarm("run"), running.locust("chat.py", "--headless", "-t", "3s", "--run-profile")]
)
def test_a_server_gives_the_runner_no_command(program: list[str], tmp_path: Path) -> None:
    """It says one in its error, which is printed in sentences, in tables, by Locust too."""
    evil = {"error": {"message": "::error title=a::b ##[error]c ::add-path::/evil", "type": "::add-path::/evil"}}
    with small_server.backend(lambda _: small_server.refusal(500, evil)) as server:
        words = [str(REPO / "configs/profiles/smoke.yaml"), "--host", server.url, "--model", "m", "--no-probe"]
        command = [*program, *words, "--dataset", str(REPO / "configs/samples/sharegpt.json"), "--warmup", "0s"]
        done = run(command, tmp_path, **in_workflow(tmp_path))
    assert "add-path" in done.out
    commands = obeyed(done.out)
    assert all(re.match(r"::(error|warning) title=tokenswarm", line) for line in commands), commands
    assert commands


def test_a_mistake_before_the_load_is_annotated(tmp_path: Path) -> None:
    done = run(tokenswarm("run", "missing%.yaml"), tmp_path, **in_workflow(tmp_path))
    assert done.code == 15
    assert re.search(r"^::error title=tokenswarm run::missing%25.yaml: no such file", done.out, re.MULTILINE), done.out


def test_a_comparison_in_a_workflow_tells_its_summary(
    tmp_path: Path,
) -> None:
    for number in range(5):
        test_compare.write(tmp_path / "a", f"a-{number}", scale=1 + 0.003 * number)
        test_compare.write(tmp_path / "b", f"b-{number}", scale=1.5 + 0.003 * number)
    command = tokenswarm("compare", str(tmp_path / "a"), "--against", str(tmp_path / "b"))
    done = run(command, tmp_path, **in_workflow(tmp_path))
    assert done.code == 20, done.out
    assert re.search(
        r"^::error title=tokenswarm%3A worse::the new runs are worse in ttft_s.p50", done.out, re.MULTILINE
    )
    assert "ttft_s.p50" in (tmp_path / "summary.md").read_text("utf-8").replace("&#95;", "_")


# -- the action, the component, the docs -------------------------------------------------------------------------------


def on_is_a_word(document: Any) -> Any:
    return {("on" if key is True else key): value for key, value in document.items()}


def action() -> dict[str, Any]:
    return yaml.safe_load((REPO / "docs/ci/github-action/action.yml").read_text("utf-8"))


def component() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPO / "docs/ci/gitlab-component.yml").read_text("utf-8")))


def page_block(kind: str, first: str) -> str:
    page = (REPO / "docs/ci.md").read_text("utf-8")
    return next(
        t for t in re.findall(rf"^```{kind}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if t.startswith(first)
    )


def documents() -> list[tuple[str, str, Any]]:
    header, jobs = component()
    return [
        ("action", "github-actions", action()),
        ("workflow", "github-workflows", on_is_a_word(yaml.safe_load(page_block("yaml", "# .github")))),
        ("gitlab", "gitlab-ci", yaml.safe_load(page_block("yaml", "# .gitlab-ci"))),
        ("component header", "gitlab-ci", header),
        ("component", "gitlab-ci", jobs),
    ]


@pytest.mark.parametrize(
    ("name", "schema", "document"), documents(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_pipelines_copy_fits_its_schema(name: str, schema: str, document: Any) -> None:
    rules = json_schema(schema)
    filled = json.loads(re.sub(r'"\$\[\[ inputs\.tags \]\]"', "[]", json.dumps(document)))  # as GitLab fills it in
    assert problems(filled, rules, rules) == [], name
    broken = {**filled, "runs": 1, "jobs": [], "load": {"script": 1}, "load-test": {"scripts": []}, "spec": {"no": 1}}
    assert problems(broken, rules, rules)


def test_every_action_is_pinned_to_a_commit() -> None:
    text = page_block("yaml", "# .github") + (REPO / "docs/ci/github-action/action.yml").read_text("utf-8")
    uses = re.findall(r"uses: (\S+)", text)
    assert len(uses) >= 6
    pinned = r"actions/[\w-]+@[0-9a-f]{40}|`?OWNER/tokenswarm/docs/ci/github-action@REF`?\.?"
    assert [one for one in uses if not re.fullmatch(pinned, one)] == []


def test_inputs_are_not_written_into_scripts() -> None:
    for step in action()["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), "an input would be read as shell"
    for line in [*component()[1]["load-test"]["before_script"], *component()[1]["load-test"]["script"]]:
        assert "$[[" not in line, "an input would be read as shell"


def shell(script: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**running.environ(folder, **more), "PATH": os.environ["PATH"]}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize(("host", "code"), [("", 14), ("$(touch evil)", 15)])
def test_the_script_of_the_action_runs_and_keeps_the_code(host: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "tokenswarm").mkdir()
    (tmp_path / "tokenswarm" / "bin").symlink_to(BIN)
    script = next(step["run"] for step in action()["runs"]["steps"] if step.get("id") == "run")
    dead = f"target=http://127.0.0.1:{running.free_port()}" if not host else "load.think_time=0s"
    more = {"PROFILE": str(REPO / "configs/profiles/smoke.yaml"), "HOST": host, "SLO": "", "RESULTS": "my results"}
    told = {"RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "out"), "ARGS": f"--set\n{dead}\n"}
    done = shell(script, tmp_path, **more, **told)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "out").read_text() == f"exit-code={code}\n"
    assert not (tmp_path / "evil").exists()


def test_the_script_of_the_component_runs(tmp_path: Path) -> None:
    (tmp_path / ".tokenswarm" / "venv").mkdir(parents=True)
    (tmp_path / ".tokenswarm" / "venv" / "bin").symlink_to(BIN)
    job = component()[1]["load-test"]
    told = {"TOKENSWARM_PROFILE": str(REPO / "configs/profiles/smoke.yaml"), "TOKENSWARM_SLO": ""}
    done = shell("\n".join(job["script"]), tmp_path, TOKENSWARM_HOST=f"http://127.0.0.1:{running.free_port()}", **told)
    assert done.returncode == 14, done.stderr


def test_the_pytest_example_passes_and_fails(engine: str, tmp_path: Path) -> None:
    shutil.copytree(REPO / "configs", tmp_path / "configs")
    text = page_block("python", "# test_load.py")
    (tmp_path / "test_load.py").write_text(text, "utf-8")
    path = f"{BIN}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_load.py"]
    for url, code, said in (
        (engine, 0, "1 passed"),
        (f"http://127.0.0.1:{running.free_port()}", 1, "is the server running"),
    ):
        environ = {**running.environ(tmp_path), "LLM_URL": url, "PATH": path}
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == code, done.stdout
        assert said in done.stdout
