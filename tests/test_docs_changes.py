"""docs/changes.md is so: what it names exists, and most of its changes are made in a copy of the program and work.

The copy gets all changes at once, each as the page says: a new file, a row in a table. Then each is used from outside.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from test_docs_tables import page, rows, words

REPO = Path(__file__).resolve().parent.parent
CHANGES = {cells[0]: cells[1:] for cells in rows(page("changes")) if len(cells) == 4}


def test_the_everyday_changes() -> None:
    assert [name.split(" ", 1)[1].split(" of ")[0] for name in CHANGES] == [
        "dialect",
        "load kind",
        "trace's format",
        "data format",
        "verdict rule",
        "gate",
        "column",
        "panel",
        "metric",
        "recording rule",
        "format",
        "tool",
        "command",
        "option",
        "chart",
    ]


def names_of(path: str) -> set[str]:
    """What a file defines at its top, and the fields of its classes."""
    tree = ast.parse((REPO / path).read_text("utf-8"))
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    found = set()
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                found.add(target.id)
    return found


def tables_of(cell: str) -> list[tuple[str, str]]:
    """(name, path) of each "`NAME` of `path`" in a cell; "`A`, `B` or `C` of `path`" are three."""
    found = []
    for part in re.finditer(r"((?:`\w+`(?:, | or )?)+) of `([\w./]+)`", cell):
        found += [(name, part[2]) for name in words(part[1])]
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_touches_exists(change: str) -> None:
    cells = CHANGES[change]
    paths = [word for cell in cells for word in words(cell) if "/" in word and "NAME" not in word]
    assert paths
    assert [path for path in paths if not (REPO / path).exists()] == []
    assert [
        path for cell in cells for path in words(cell) if "NAME" in path and not (REPO / path).parent.is_dir()
    ] == []
    tables = [table for cell in cells for table in tables_of(cell)]
    assert tables or change == "a recording rule"
    for name, path in tables:
        assert name in names_of(path), f"{path} has no {name}"


# -- the changes, made -------------------------------------------------------------------------------------------------

FILES = {
    "tokenswarm/prompts/quiz.py": """\
from tokenswarm.prompts import Conversation, Turn
from tokenswarm.prompts.reading import Reading, dropped


def matches(row):
    return isinstance(row, dict) and "riddle" in row


def read(row, row_name, rules):
    if not row["riddle"]:
        return dropped("empty_value")
    return Reading(Conversation(row_name, (Turn(row["riddle"], row.get("solution")),)))
""",
    "tokenswarm/load/pairs.py": """\
import itertools


def gaps(draw, burstiness):
    return itertools.cycle((2.0, 0.0))
""",
    "tokenswarm/commands/greet.py": """\
def main(words):
    print("hello", *words)
    return 0
""",
}

EXAMPLE = re.findall(r"^```python\n(.*?)^```$", page("add-an-engine"), re.DOTALL | re.MULTILINE)

EDITS = (
    ("tokenswarm/engines/dialects.py", "    for row in (\n", f"    for row in (\n{EXAMPLE[1].rstrip()},\n"),
    (
        "tokenswarm/engines/dialects.py",
        "    anthropic_messages,\n",
        "    anthropic_messages,\n    llamacpp_completion,\n",
    ),
    ("tokenswarm/profile/engine.py", "APIS = (\n", 'APIS = (\n    Spoken("llamacpp", "completion", text=True),\n'),
    (
        "tokenswarm/prompts/library.py",
        "READERS: dict[str, ModuleType] = {",
        'READERS: dict[str, ModuleType] = {"quiz": quiz, ',
    ),
    ("tokenswarm/prompts/library.py", "\nREADERS: ", "\nfrom tokenswarm.prompts import quiz\n\nREADERS: "),
    ("tokenswarm/load/kinds.py", "= {\n", '= {\n    "pairs": pairs.gaps,\n'),
    ("tokenswarm/load/kinds.py", "\nKINDS: ", "\nfrom tokenswarm.load import pairs\n\nKINDS: "),
    ("tokenswarm/profile/load.py", 'Kind = Literal["closed", ', 'Kind = Literal["closed", "pairs", '),
    ("tokenswarm/profile/dataset.py", 'Format = Literal["auto", ', 'Format = Literal["auto", "quiz", '),
    (
        "tokenswarm/judge/rules/sample.py",
        "\nRULES: ",
        "\ndef round_number(evidence, summary):\n"
        '    return doubt("round-number", "note", "the count is round") if summary.requests.ok % 10 == 0 else None\n\n'
        "\nRULES: ",
    ),
    ("tokenswarm/judge/rules/sample.py", "Rule, ...] = (\n", "Rule, ...] = (\n    round_number,\n"),
    (
        "tokenswarm/profile/slo.py",
        "    requests_per_s:",
        "    input_tokens_per_s: float | None = None\n    requests_per_s:",
    ),
    ("tokenswarm/judge/gates.py", "RATES = (", 'RATES = ("input_tokens_per_s", '),
    (
        "tokenswarm/reports/cells.py",
        '    "failed": lambda',
        '    "sent": lambda stage: f"{stage.requests_steady.sent} of it",\n    "failed": lambda',
    ),
    (
        "exporters/load/table.py",
        "COUNTERS_OF_BLOCK = {\n",
        'COUNTERS_OF_BLOCK = {\n    "tokenswarm_reads_total": ("reads", "Reads of answers."),\n',
    ),
    (
        "tokenswarm/commands/__init__.py",
        "]] = {\n",
        ']] = {\n    "greet": ("tokenswarm.commands.greet", {"greet NAME": "say hello"}),\n',
    ),
    (
        "tokenswarm/profile/options.py",
        "= {\n    # option",
        '= {\n    "--think-time": ("load.think_time", "TIME", "pause of a user between two prompts"),\n    # option',
    ),
    (
        "tokenswarm/reports/html/sweep.py",
        "    return [\n        _throughput_over_load(data),",
        '    return [\n        left_out("moon", "The moon over users", "there was no moon"),\n'
        "        _throughput_over_load(data),",
    ),
)
"""(file, what stands there exactly once, what stands there then)."""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with every change of the page that a test can make."""
    copy = tmp_path_factory.mktemp("changed")
    for name in ("tokenswarm", "exporters"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = {**FILES, "tokenswarm/engines/llamacpp_completion.py": EXAMPLE[0]}
    for path, text in files.items():
        (copy / path).write_text(text, "utf-8")
    for path, old, new in EDITS:
        text = (copy / path).read_text("utf-8")
        assert text.count(old) == 1, f"{path} has no longer exactly one {old!r}"
        (copy / path).write_text(text.replace(old, new), "utf-8")
    return copy


@pytest.fixture(scope="module")
def python(changed: Path) -> Callable[..., str]:
    """Run the changed program: words of a command line of Python, or one text of code; what it printed."""

    def run(*arguments: str) -> str:
        start = ["-c"] if len(arguments) == 1 else []
        path = os.pathsep.join((str(changed), str(REPO / "tests")))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *start, *arguments],
            cwd=changed,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(changed) in run("import tokenswarm; print(tokenswarm.__file__)")  # the copy, and not what is installed
    return run


def test_a_new_dialect(python: Callable[..., str]) -> None:
    stream = REPO / "tests" / "streams" / "llamacpp_completion_native.sse"
    profile = "{target: http://a, dataset: {path: x}, engine: {kind: llamacpp, api: completion}}"
    said = python(f"""if True:
        from pathlib import Path
        from tokenswarm.engines.dialects import DIALECTS
        from tokenswarm.engines.framing import sse
        from tokenswarm.profile import profile
        engine = profile.load({profile!r}, "p.yaml").engine
        row = DIALECTS[engine.kind, engine.api]
        events = [row.decode(event) for event in sse(1 << 20).feed(Path({str(stream)!r}).read_bytes())]
        print(row.path, sum(event.tokens or 0 for event in events), events[-1].finished)
        """)
    assert said == "/completion 4 ((0, 'limit'),)\n"
    assert "llamacpp or openai or ollama" in python("-m", "tokenswarm.cli", "run", "--help")


def test_a_new_load_kind(python: Callable[..., str]) -> None:
    profile = "{target: http://a, dataset: {path: x}, load: {kind: pairs, stages: [{rate: 4}]}}"
    said = python(f"""if True:
        from itertools import islice
        from tokenswarm.load.rate import Rate
        from tokenswarm.load.schedule import schedule
        from tokenswarm.profile import profile
        load = profile.load({profile!r}, "p.yaml").load
        rate = Rate(*load.stages[0].rate * 2)
        print([arrival.at_s for arrival in islice(schedule(load.kind, rate, seed=1, stage=0), 4)])
        """)
    assert said == "[0.5, 0.5, 1.0, 1.0]\n"
    assert "pairs" in python("-m", "tokenswarm.cli", "run", "--help")


def test_a_new_data_format(python: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"riddle": "what walks on four legs?", "solution": "man"}\n{"riddle": ""}\n', "utf-8")
    for more in ([], ["--set", "format=quiz"]):
        info = json.loads(python("-m", "tokenswarm.cli", "data", "info", str(file), "--json", *more))
        assert (info["format"], info["rows_kept"], info["drops"]) == ("quiz", 1, {"empty_value": 1})
    assert "quiz" in python("-m", "tokenswarm.cli", "run", "--help")


def test_a_new_verdict_rule_and_a_new_gate(python: Callable[..., str]) -> None:
    said = python("""if True:
        import sample_runs
        from tokenswarm.judge import gates, verdict
        from tokenswarm.profile.slo import Slo
        from tokenswarm.result.summary import summarize
        slo = Slo(input_tokens_per_s=1.0)
        merged = sample_runs.run(ok=1100, workers=2)
        summary = summarize(merged, partial=False)
        evidence = verdict.Evidence(merged=merged, expected_workers=2, profile=sample_runs.profile(slo))
        print([doubt.code for doubt in verdict.judge(evidence, summary).doubts])
        print([(gate.metric, gate.result) for gate in gates.evaluate(slo, summary, merged)])
        """)
    assert said.splitlines() == ["['round-number']", "[('input_tokens_per_s', 'pass')]"]


def test_a_new_command(python: Callable[..., str]) -> None:
    assert python("-m", "tokenswarm.cli", "greet", "you") == "hello you\n"
    assert "  greet NAME         say hello\n" in python("-m", "tokenswarm.cli", "--help")


def test_a_new_option(python: Callable[..., str]) -> None:
    said = python("""if True:
        from tokenswarm.profile import options
        given = {"think_time": "250ms", "dataset": "x"}
        target = [("target", options.typed_yaml.literal("http://a", "--host"))]
        print(options.read_profile(None, given, target).load.think_time)
        """)
    assert said == "0.25\n"
    assert "--think-time TIME" in python("-m", "tokenswarm.cli", "run", "--help")


def test_a_new_column_and_a_new_chart(python: Callable[..., str]) -> None:
    said = python("""if True:
        import io
        import sample_runs
        from rich.console import Console
        from tokenswarm.reports import console, markdown
        from tokenswarm.reports.html import page
        summary = sample_runs.summary(sample_runs.run(stages=2))
        wide = Console(file=io.StringIO(), width=200)
        wide.print(console.report(summary, "x"))
        texts = (wide.file.getvalue(), markdown.render(summary, {}), page.render(summary, {}, None))
        print([" of it" in text for text in texts], "The moon over users" in texts[2])
        """)
    assert said == "[True, True, True] True\n"


def test_a_new_metric(python: Callable[..., str]) -> None:
    said = python("""if True:
        from exporters.load.runs import Runs
        from load_run import SyntheticRun
        played = SyntheticRun("a")
        merged = played.play()
        runs = Runs(900, lambda: 0)
        runs.put(played.envelope(merged))
        rows = dict(dict(runs.runs["a"].current(0))["tokenswarm_reads_total"])
        print(rows[()] == sum(block.reads for block in merged.blocks) > 0)
        """)
    assert said == "True\n"


def test_a_recording_rule_has_its_case() -> None:
    for file in ("load", "gpu"):
        rules = yaml.safe_load((REPO / f"configs/prometheus/rules/{file}.yml").read_text("utf-8"))
        names = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
        cases = (REPO / f"configs/prometheus/tests/{file}.yml").read_text("utf-8")
        assert names
        assert [name for name in names if name not in cases] == []
