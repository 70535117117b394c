"""docs/reliability.md: each promise names a fault and a test, and the test is there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from test_docs_tables import page, rows, words

TESTS = Path(__file__).resolve().parent
PROMISES = [cells for cells in rows(page("reliability")) if len(cells) == 3]
NAMED = sorted({name for cells in PROMISES for name in words(cells[2])})


@functools.cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("cells", PROMISES, ids=lambda cells: cells[0][:60])
def test_a_promise_has_a_fault_and_a_test(cells: list[str]) -> None:
    promise, fault, tests = cells
    assert promise.endswith(".")
    assert fault
    assert words(tests)


@pytest.mark.parametrize("name", NAMED)
def test_the_named_test_is_there(name: str) -> None:
    found = re.fullmatch(r"(test_\w+\.py)::(test_\w+)", name)
    assert found, f"{name}: write file.py::test"
    assert found[2] in functions(found[1])


def test_a_name_that_is_not_there_would_be_found() -> None:
    assert "test_a_promise_has_a_fault_and_a_test" in functions(Path(__file__).name)
    assert "test_nothing_of_that_kind" not in functions(Path(__file__).name)
