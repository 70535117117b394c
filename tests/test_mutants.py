"""The lists of mutants fit the program, and the tool that tries them kills, spares and bounds as it says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tokenswarm.judge.verdict import RULES

TOOL = Path(__file__).resolve().parent / "mutants" / "run.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants_run", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


mutants = load_tool()
ALL = mutants.read()


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_program(mutant: object) -> None:
    """Whoever changes a guarded line changes its row, too."""
    assert mutants.fault(mutant) == ""


def test_our_tests_begin_with_the_plugins_that_the_runner_loads() -> None:
    """A hook of another plugin in conftest.py would end each of them before it began."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "pytest_timeout",
        "--collect-only",
        "tests/test_statistics.py",
    ]
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=TOOL.parents[2], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_told_apart_and_every_rule_of_the_verdict_has_a_row() -> None:
    names = [mutant.name for mutant in ALL]
    assert len(set(names)) == len(names) > 50
    asked = {mutant.guard.split()[2] for mutant in ALL if mutant.guard.startswith("the rule ")}
    assert {rule.__name__ for rule in RULES} == asked


# -- the tool, on a program of four lines --------------------------------------------------------------------------

PROGRAM = """\
def most(values, bound):
    kept = values[:bound]
    return kept


def least(values):
    return min(values)
"""
TESTS = """\
import subprocess, sys
from thing import most

def test_most():
    assert most([1, 2, 3], 2) == [1, 2]

def test_most_in_a_process_with_a_clean_environment():
    code = "from thing import most; print(most([1, 2, 3], 2))"
    said = subprocess.run([sys.executable, "-c", code], env={}, cwd="/", capture_output=True, text=True, check=True)
    assert said.stdout == "[1, 2]\\n"

def test_red():
    assert False
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repo"
    (root / "tests").mkdir(parents=True)
    (root / "thing.py").write_text(PROGRAM)
    (root / "tests" / "test_thing.py").write_text(TESTS)
    monkeypatch.setattr(mutants, "REPO", root)
    monkeypatch.setattr(mutants.copy_tree, "__defaults__", (root,))
    monkeypatch.setattr(mutants.fault, "__defaults__", (root,))
    return root


Try = Callable[..., tuple[int, str]]


@pytest.fixture
def attempt(
    repo: Path,  # noqa: ARG001 - what is tried
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Try:
    """Try mutants given as (old, new, test); the exit code and what was printed."""

    def go(*rows: tuple[str, str, str], minutes: str = "5") -> tuple[int, str]:
        made = [
            mutants.Mutant("things", f"row {number}", "thing.py", old, new, (f"tests/test_thing.py::{test}",))
            for number, (old, new, test) in enumerate(rows)
        ]
        monkeypatch.setattr(mutants, "read", lambda: made)
        code = mutants.main(["--jobs", "1", "--minutes", minutes])
        return code, capsys.readouterr().out

    return go


BITES = ("values[:bound]", "values", "test_most")


def test_killed_by_a_test_and_by_one_that_starts_the_program(attempt: Try, repo: Path) -> None:
    code, said = attempt(BITES, ("values[:bound]", "values", "test_most_in_a_process_with_a_clean_environment"))
    assert code == 0, said
    assert "2 mutants, 2 killed" in said
    assert (repo / "thing.py").read_text() == PROGRAM, "nothing is changed in place"
    assert not (repo / ".venv").exists()


def test_a_survivor_fails_and_so_does_what_can_not_be_tried(attempt: Try) -> None:
    rows = (
        BITES,
        ("min(values)", "max(values)", "test_most"),  # nobody asks for it
        ("values[:limit]", "values", "test_most"),  # that line is gone
        ("values", "things", "test_most"),  # more than once
        ("min(values)", "min(values", "test_most"),  # no Python
        ("min(values)", "min( values )", "test_most"),  # the same program
        ("min(values)", "max(values)", "test_least"),  # no such test
        ("min(values)", "max(values)", "test_red"),  # red without it, so that it kills everything
    )
    code, said = attempt(*rows)
    assert code == 1
    assert "8 mutants, 1 killed" in said
    found = ["SURVIVED", "0 times", "times, not once", "no Python", "same program", "no test", "fail without a mutant"]
    for number, words in enumerate(found, 1):
        line = next(line for line in said.splitlines() if line.startswith(f"  things: row {number}: "))
        assert words in line


def test_a_bound_that_is_over_says_so(attempt: Try) -> None:
    code, said = attempt(BITES, minutes="0")
    assert code == 1
    assert "time is up" in said
