"""The first day of a stranger: names in place of paths, help that says enough, completion, output for scripts."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sample_runs
from running import REPO, environ, run, tokenswarm
from simulator_process import simulator
from test_reports_text import EVIL, evil_run, judged

from tokenswarm import cli
from tokenswarm.commands import run as run_command
from tokenswarm.errors import ConfigError
from tokenswarm.judge.verdict import Evidence, judge
from tokenswarm.profile import bundled, options, plan
from tokenswarm.profile import profile as profiles
from tokenswarm.reports import output
from tokenswarm.reports.cells import per_user

SHORT = ["--set", "load.stages.0.duration=2s", "--warmup", "0s"]


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with simulator("--preset", "paced") as server:
        yield server.url


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_run_by_name_from_any_folder(engine: str, tmp_path: Path) -> None:
    done = run(tokenswarm("run", "smoke", "--host", engine, "--slo", "batch", *SHORT), tmp_path)
    assert done.code == 12, (
        done.out
    )  # a p95 of so few answers is undecided: the limits of batch.yaml are those that count
    assert done.manifest["profile"]["name"] == "smoke"
    assert done.manifest["profile"]["slo"]["e2e_s"]["p95"] == 120.0
    assert done.manifest["command"][:3] == ["tokenswarm", "run", "smoke"]
    plan_at, load_at = done.out.index("plan: 4 users, 2 s"), done.out.index("stage 1 steady")
    assert plan_at < load_at
    assert re.search(r"stage 1 steady, 4 users, \d/2 s, [0-2] s left", done.out)


def test_every_bundled_name_is_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in bundled.named("profile"):
        options.read_profile(name, {}, [])
    for name in bundled.named("SLO file"):
        options.read_profile("smoke", {"slo": name}, [])
    assert set(bundled.named("locustfile")) >= {"chat", "completions"}
    assert {path.name for path in (REPO / "configs/profiles").iterdir()} == {
        f"{name}.yaml" for name in bundled.named("profile")
    }


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ci").mkdir()
    (tmp_path / "smoke").write_text("name: mine\n", "utf-8")
    assert bundled.find("profile", "smoke") == "smoke"
    assert bundled.find("profile", "ci") == str(bundled.named("profile")["ci"])
    assert bundled.find("profile", "./ci") == "./ci"


@pytest.mark.parametrize(
    ("kind", "word", "hint"), [("profile", "smok", "`smoke`"), ("SLO file", "chat-interactiv", "`chat-interactive`")]
)
def test_a_name_that_there_is_not_says_what_there_is(kind: str, word: str, hint: str, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as told:
        bundled.find(kind, word)
    assert f"no bundled {kind} has that name" in str(told.value)
    assert hint in str(told.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("run http://me:secret@gpu:8000", "the profile is an address, where a file or a name stands: give"),
        ("search https://gpu", "give the target as --host URL"),
        ("smoke --host http://gpu:8000", "there is no command `smoke`; did you mean `tokenswarm run smoke`?"),
        ("serch", "did you mean `search`?"),
    ],
)
def test_a_word_in_the_wrong_place_is_told_its_own(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 15
    said = capsys.readouterr().err
    assert told in said
    assert "secret" not in said


def test_profiles_and_locustfile_print_what_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profiles"]) == 0
    listed = capsys.readouterr().out
    for kind in bundled.KINDS:
        for name in bundled.named(kind):
            assert re.search(rf"^  {name} +\S", listed, re.MULTILINE), name
    needing = re.findall(r"^  (\S+) .*; needs ShareGPT", listed, re.MULTILINE)
    assert {"ci", "sweep", "search", "trace-azure"} <= set(needing)
    assert not {"demo", "smoke", "ollama"} & set(needing)
    assert cli.main(["profiles", "smoke"]) == 0
    assert profiles.load(capsys.readouterr().out, "smoke").name == "smoke"
    assert cli.main(["locustfile", "chat"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(REPO / "locustfiles/chat.py")
    assert cli.main(["locustfile", "chatt"]) == 15
    assert "did you mean `chat`?" in capsys.readouterr().err


# -- help --------------------------------------------------------------------------------------------------------------


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        code = cli.main([command, "--help"])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    assert re.search(r"^(for )?example:", text, re.MULTILINE)
    assert "exit codes" in text
    assert max(map(len, text.splitlines())) <= 200


def test_help_names_the_defaults_of_the_profile(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of("run", capsys).split())
    for default in (
        "speaks (default: openai)",
        "(default: chat)",
        "(default: 5s)",
        "(default: 60s)",
        "go (default: results)",
        "spread (default: poisson)",
    ):
        assert default in text, default
    assert "None" not in text


def test_a_worker_names_the_codes_that_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    text, page = help_of("worker", capsys), (REPO / "docs" / "scale-out.md").read_text("utf-8")
    said = re.search(r"serves one run and exits: (.+?)\. Then", page, re.DOTALL)
    assert said is not None
    codes = re.findall(r"(?<![-\w])(\d\d?) (?=if|the|told|no|a\b)|: (0)(?=;)", said[0])
    assert {one or other for one, other in codes} == set(re.findall(r"\b(\d\d?) \w+", text.partition("exit codes:")[2]))


HEAVY = ("gevent", "locust", "aiohttp", "rich", "tokenswarm.reports.html.page", "tokenswarm.judge.path")


MISTAKES = [
    "kv missing --batch 1",
    "path --via http://127.0.0.1:1 --upstream-port 1 --accept nope",
    "run missing.yaml",
    "run smoke --sett",
    "run smoke --dataset missing.json",
    "run smoke --expect-workers 0",
    "run smoke --expect-workers 1 --bind 0.0.0.0:5557",
    "search rate",
    "simulate --preset nope",
    "simulate --tls-cert missing.pem --tls-key missing.pem",
    "trend missing.jsonl",
    "report missing",
    "compare a --against b",
    "data info missing",
    "bogus",
]


@pytest.mark.parametrize("words", [*(f"{command} --help" for command in cli.COMMANDS), *MISTAKES])
def test_help_and_mistakes_wait_for_no_heavy_import(words: str, tmp_path: Path) -> None:
    """Each of these takes longer than all the rest: counted by what is imported, which no busy machine changes."""
    code = (
        "import sys\nfrom tokenswarm import cli\ntry: cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print('\\n' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environ(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout


LATER = ("locust", "flask", "aiohttp", "psutil", "rich", "subprocess", "tokenswarm.commands.groups",
         "tokenswarm.judge.compare")  # fmt: skip
OWN_MAX = 147  # modules of ours; 140 are what a look at a target takes where a search is to follow


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("run smoke", "is the server running there?"),
        ("search smoke --rate 1,4", "is the server running there?"),
        ("run --users 1", "is the server running there?"),
        ("run smoke --model nope", "has no model nope; it has sim"),
        ("run smoke --against-host http://127.0.0.1:1", "is the server running there?"),
    ],
)
def test_a_target_that_will_not_do_is_told_before_what_a_run_takes_is_loaded(
    words: str, told: str, engine: str, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom tokenswarm import cli\ncode = cli.main(sys.argv[1:])\n"
        f"print(code, [name for name in {LATER!r} if name in sys.modules])\n"
        "print(sum(name.startswith('tokenswarm') for name in sys.modules))"
    )
    host = engine if "--model" in words else "http://127.0.0.1:1"
    slo = REPO / "configs/slo/batch.yaml"
    command = [sys.executable, "-c", code, *words.split(), "--slo", str(slo), "--host", host]
    done = subprocess.run(command, cwd=tmp_path, env=environ(tmp_path), capture_output=True, text=True, check=True)
    ended, own = done.stdout.splitlines()
    assert ended == f"14 {['subprocess'] if '--against-host' in words else []}", done.stdout + done.stderr
    assert int(own) <= OWN_MAX
    assert told in done.stderr


def test_a_run_loads_no_web_ui(engine: str, tmp_path: Path) -> None:
    """Neither its master nor its worker, whose imports Python writes to the same stderr."""
    command = tokenswarm("run", "--host", engine, "--users", "1", "--duration", "1s", "--warmup", "0s")
    done = run(command, tmp_path, PYTHONPROFILEIMPORTTIME="1")
    loaded = [line.rpartition("|")[2].strip() for line in done.out.splitlines() if line.startswith("import time:")]
    assert loaded.count("tokenswarm.cluster.runners") == 2, done.out
    assert not {"flask", "werkzeug", "locust.web"} & set(loaded)


def test_what_a_run_loads_is_out_of_the_collectors_sight(tmp_path: Path) -> None:
    code = (
        "import gc\nfrom tokenswarm.own_process import loading\n"
        "with loading():\n    import decimal\n    assert not gc.isenabled()\n"
        "assert gc.isenabled()\nassert gc.get_freeze_count() > 1000 > len(gc.get_objects())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ(tmp_path), check=True, timeout=60)


def test_a_web_ui_is_loaded_where_one_is_made(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom importlib import metadata\nfrom tokenswarm.cluster import web_later\nweb_later.put_off()\n"
        "metadata.entry_points = None  # gevent would ask it for hooks\n"
        "from locust.env import Environment\nassert 'flask' not in sys.modules\n"
        "ui = Environment().create_web_ui('127.0.0.1', 0)\n"
        "from locust.web import WebUI, get_html_report\nassert type(ui) is WebUI\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ(tmp_path), check=True, timeout=60)


def test_the_page_of_options_has_each_as_it_is() -> None:
    page = (REPO / "docs/options.md").read_text("utf-8")
    rows = {cells[0]: cells[1:] for line in page.splitlines() if line.startswith("| `--")
            for cells in [[cell.strip() for cell in line.strip("|").split(" | ")]]}  # fmt: skip
    for option, (key, _, _) in options.OPTIONS.items():
        assert rows[f"`{option}`"][0] == f"`{key}`"
        assert rows[f"`{option}`"][1]


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [("tokenswarm ru", "run"), ("tokenswarm run sm", "smoke"), ("tokenswarm run smoke --slo chat", "chat-interactive"),
     ("tokenswarm report --cs", "--csv"), ("tokenswarm completion f", "fish"), ("tokenswarm observe --fo", "--for")],
)  # fmt: skip
def test_bash_completes(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    parts = words.split()
    script += f"COMP_WORDS=({words}); COMP_CWORD={len(parts) - 1}; _tokenswarm; printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    done = subprocess.run([bash, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"]), ("bash", ["-n"])])
def test_scripts_are_what_their_shell_reads(shell: str, check: list[str], tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command in text
    assert "--run-time" not in text  # stands within the explanation of another
    if (found := shutil.which(shell)) is not None:
        (tmp_path / "script").write_text(text, "utf-8")
        subprocess.run([found, *check, str(tmp_path / "script")], timeout=60, check=True)


# -- output for scripts ------------------------------------------------------------------------------------------------


def test_json_and_csv_are_all_that_is_on_stdout(engine: str, tmp_path: Path) -> None:
    def out(*words: str) -> str:
        command = tokenswarm("run", "smoke", "--host", engine, *SHORT, *words)
        done = subprocess.run(
            command, cwd=tmp_path, env=environ(tmp_path), capture_output=True, text=True, timeout=90, check=True
        )
        assert ("stage 1" in done.stderr) == ("--quiet" not in words)
        return done.stdout

    summary = json.loads(out("--json", "--quiet"))
    folder = tmp_path / "results" / summary["run_id"]
    assert summary == json.loads((folder / "summary.json").read_bytes())
    table = list(csv.DictReader(io.StringIO(out("--csv"))))
    assert [row["stage"] for row in table] == ["1", "all"]
    kept = json.loads((tmp_path / "results" / table[0]["run_id"] / "summary.json").read_bytes())
    assert float(table[0]["itl_s_p50"]) == kept["stages"][0]["latency"]["itl_s"]["p50"]
    assert int(table[1]["ok"]) == kept["requests_steady"]["ok"]
    assert table[0]["ttft_s_p99"] == ""  # too few for it, and no 0
    report = subprocess.run(
        tokenswarm("report", str(folder), "--quiet"), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"(VALID|DEGRADED)  results: \S+\n", report.stdout)


def test_text_of_a_server_begins_no_formula_and_no_command() -> None:
    summary = judged(evil_run())
    summary.requests.error_says = {"x": "::error title=a::" + EVIL}
    summary.run_id = "=cmd|'/c calc'!A1"
    assert "::" not in output.as_json(summary)
    assert json.loads(output.as_json(summary))["requests"]["error_says"]["x"].startswith("::error")
    for row in csv.reader(io.StringIO(output.as_csv(summary))):
        for cell in row:
            assert not cell.startswith(output.FORMULA) or re.fullmatch(r"-[\d.e-]+", cell), cell
    assert "\x1b" not in output.as_csv(summary)


def test_tokens_of_a_user() -> None:
    summary = sample_runs.summary(sample_runs.run(120, window_s=10, stages=2))
    for stage in summary.stages:
        assert per_user(stage) == pytest.approx(stage.throughput.output_tokens_per_s / stage.concurrency)


# -- a smoke test that is meant as one; the plan -----------------------------------------------------------------------


def test_a_smoke_test_is_valid_as_one_and_forgives_nothing_else() -> None:
    merged = sample_runs.run(40, window_s=10)
    summary = sample_runs.summary(merged)
    measured = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile())
    smoke = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile(purpose="smoke"))
    assert judge(measured, summary).status == "DEGRADED"
    verdict = judge(smoke, summary)
    assert verdict.status == "VALID"
    assert [(doubt.code, doubt.severity) for doubt in verdict.doubts] == [("short-run", "note")]
    assert "which it was meant to be" in verdict.doubts[0].message
    lost = Evidence(merged=merged, expected_workers=2, profile=sample_runs.profile(purpose="smoke"))
    assert judge(lost, summary).status == "INVALID"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: [{users: 1, duration: 10s}]", "plan: 1 user, 12 s with warm-up, then 60 s at most for open streams"),
        ("stages: [{users: 1, duration: 10m}, {users: 8, duration: 1h}]",
         "plan: 2 stages (1, 8 users), 1 h 10 min with warm-up, then 60 s at most for open streams"),
    ],
)  # fmt: skip
def test_the_plan_is_told_in_a_sentence(text: str, said: str) -> None:
    made = profiles.load(
        f"{{target: http://a, dataset: {{path: x}}, phases: {{warmup: 2s}}, load: {{{text}}}}}", "test"
    )
    assert plan.plan(made) == said


def test_the_demo_ends_with_a_command_as_it_is_typed_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    demo = importlib.import_module("tokenswarm.commands.demo")
    program = Path(sys.executable).parent / "tokenswarm"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(program.parent.parent.parent)
    assert demo.own_name() == str(program.relative_to(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    assert demo.own_name() == str(program)
    monkeypatch.setenv("PATH", str(program.parent))
    assert demo.own_name() == "tokenswarm"


@pytest.mark.parametrize(
    ("words", "bundled"),
    [
        ([], True),
        (["dataset.ignore_eos=false", "dataset.output_tokens={max: 8}"], True),  # what of it, not which
        (["dataset.path=x.json"], False),
        (["dataset.format=synthetic"], False),
        (["dataset.synthetic.input_mean=9"], False),
        (["dataset={format: synthetic}"], False),
    ],
)
def test_the_bundled_samples_are_sent_where_nothing_says_which(words: list[str], bundled: bool) -> None:
    given: dict[str, Any] = {"profile": None, "dataset": None, "set": words}
    run_command._data_set(given)
    assert (given["dataset"] is not None) == bundled
    assert given["set"] == (["dataset.rounds=distinct", *words] if bundled else words), "43 are soon sent"


def test_generated_prompts_are_no_bundled_samples(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"profile": None, "dataset": None, "dataset_format": "synthetic", "set": []}
    run_command._data_set(given)
    assert given["dataset"] is None
    assert "bundled" not in capsys.readouterr().err
