"""`make mutants`: break each guard in a copy of the program, one line at a time, and see that a test notices.

The lists are beside this file, one a subject: each row has a file, a line of it as it is and as it is broken, and the
tests that must fail then. A row that no test kills, whose line is gone, or whose tests fail as it is, fails the whole.
Nothing is changed in place. `python tests/mutants/run.py [SUBJECT …]`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import itertools
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
LEFT_OUT = (".git", ".venv*", "__pycache__", "results", ".*_cache", "node_modules")
BUILDER = ".ci/build_reader.py"  # of all files in C
TEST_S = 300.0  # one mutant; a test that hangs because of it has noticed


@dataclass(frozen=True)
class Mutant:
    """One line of one file, broken."""

    subject: str
    guard: str  # what the line promises
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.subject}: {self.guard}"


def read(folder: Path = HERE) -> list[Mutant]:
    """All rows of the lists in a folder, by subject. Raises KeyError, TypeError where a row is not complete."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for row in tomllib.loads(path.read_text("utf-8"))["mutant"]:
            tests, table = tuple(row.pop("tests")), row.pop("rows_of", None)
            if table is None:
                found.append(Mutant(subject=path.stem, tests=tests, **row))
            for name, texts in rows_of(table, row["file"]) if table else ():
                guard = row["guard"].replace("NAME", name)
                found.append(Mutant(subject=path.stem, tests=tests, guard=guard, **texts))
    return found


def rows_of(table: str, pattern: str) -> list[tuple[str, dict[str, str]]]:
    """(name, file, old and new text) for each row, where a row is a name, of the tables of that name in some files."""
    found = []
    for path in sorted(REPO.glob(pattern)):
        text = path.read_text("utf-8")
        for node in ast.parse(text).body:
            target = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == table and isinstance(node.value, ast.Tuple):
                old = ast.get_source_segment(text, node) or ""
                head = old[: old.index("(")]
                names = [row.id for row in node.value.elts if isinstance(row, ast.Name)]
                for name in names:
                    new = f"{head}({' '.join(f'{other},' for other in names if other != name)})"
                    found.append((name, {"file": str(path.relative_to(REPO)), "old": old, "new": new}))
    return found


@functools.cache
def meaning(text: str) -> str:
    """The program, whatever its spaces. Raises SyntaxError."""
    return ast.dump(ast.parse(text))


def fault(mutant: Mutant, root: Path = REPO) -> str:
    """What is wrong with a row itself, in words; "" where nothing is."""
    path = root / mutant.file
    text = path.read_text("utf-8") if path.is_file() else None
    if text is None:
        return f"there is no {mutant.file}"
    if (count := text.count(mutant.old)) != 1:
        return f"{mutant.file} has the line {count} times, not once: {mutant.old!r}"
    before, after = text, text.replace(mutant.old, mutant.new)
    if path.suffix == ".py":
        try:
            before, after = meaning(before), meaning(after)
        except SyntaxError as error:
            return f"{mutant.file} is no Python then: {error}"
    if before == after:
        return f"{mutant.file} is the same program then"
    for test in mutant.tests:
        name, *parts = test.split("::")
        source = (root / name).read_text("utf-8") if (root / name).is_file() else ""
        if not source or any(f"def {part.split('[')[0]}(" not in source for part in parts):
            return f"there is no test {test}"
    return "" if mutant.tests else "no test is named"


# -- a copy of the program, with an interpreter that imports the copy ------------------------------------------------


def copy_tree(into: Path, root: Path = REPO) -> Path:
    """The program in a folder of its own; what tests start there, by whatever way, is the copy. Returns its python."""
    shutil.copytree(root, into, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    home, here, base = into / ".venv", Path(sys.executable).parent, Path(os.path.realpath(sys.executable))
    theirs = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin" / "python").symlink_to(base)
    (home / "pyvenv.cfg").write_text(f"home = {base.parent}\n", "utf-8")  # what `python -m venv` would write
    # Our packages first, then those that are installed: the copy wins over the checkout that is among these.
    (site / "copy.pth").write_text(f"{into}\nimport site; site.addsitedir({str(theirs)!r})\n", "utf-8")
    for script in here.iterdir():
        if script.is_file() and not (home / "bin" / script.name).exists():
            head, _, rest = script.read_bytes().partition(b"\n")
            if head.startswith(b"#!") and b"python" in head:
                target = home / "bin" / script.name
                target.write_bytes(b"#!" + str(home / "bin" / "python").encode() + b"\n" + rest)
                target.chmod(0o755)
    return home / "bin" / "python"


def built(python: Path, root: Path, file: str) -> str:
    """Build the copy's files in C anew where one was changed; why they could not be, or ""."""
    if not file.endswith((".c", ".h")):
        return ""
    done = subprocess.run([str(python), BUILDER], cwd=root, capture_output=True, text=True, check=False, timeout=TEST_S)
    return f"it is not built: {done.stderr.strip()[-200:]}" if done.returncode else ""


def end_those_of(root: Path) -> None:
    """What a broken guard left running: workers that outlive their master are sessions of their own."""
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if other.pid != os.getpid() and any(word.startswith(f"{root}/") for word in other.cmdline()):
                other.kill()


def passes(python: Path, root: Path, tests: Sequence[str], bound_s: float = TEST_S) -> bool | str:
    """Whether the tests pass there: True, False, or in words why nobody can say. A hang is False."""
    command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", *tests]
    shared = os.environ.get("TOKENSWARM_SHARED", str(REPO.parent / "shared"))
    quick = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a second for each start
    environ = {**os.environ, **quick, "TOKENSWARM_SHARED": shared}
    log = root / "mutant.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=bound_s)
        except subprocess.TimeoutExpired:
            code = 1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            end_those_of(root)
    if code in (0, 1):
        return code == 0
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return f"pytest ended with {code}: {lines[-1] if lines else 'it said nothing'}"


# -- all of them, on all cores ----------------------------------------------------------------------------------------


Item = Mutant | tuple[str, ...]
"""A mutant, or a set of tests that must pass without one."""


def work(mutants: Sequence[Mutant], jobs: int, bound_s: float) -> Iterator[tuple[Item, str, float]]:
    """(item, what is wrong or "", seconds) of each set of tests without a mutant, then of each mutant, as they end."""
    end_s = time.monotonic() + bound_s
    todo: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, str, float]] = queue.SimpleQueue()
    sets = list(dict.fromkeys(mutant.tests for mutant in mutants))
    for item in itertools.chain(sets, mutants, [None] * jobs):
        todo.put(item)

    def one(python: Path, root: Path, item: Item) -> str:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return "time is up: not tried"
        if isinstance(item, tuple):
            found = passes(python, root, item, min(TEST_S, left_s))
            return "" if found is True else "they fail without a mutant" if found is False else found
        path = root / item.file
        text = path.read_text("utf-8")
        path.write_text(text.replace(item.old, item.new), "utf-8")
        try:
            found = built(python, root, item.file) or passes(python, root, item.tests, min(TEST_S, left_s))
        finally:
            path.write_text(text, "utf-8")
            built(python, root, item.file)
        return "" if found is False else "SURVIVED" if found is True else found

    def worker(folder: Path) -> None:
        root = folder / "copy"
        python = copy_tree(root)
        while (item := todo.get()) is not None:
            began_s = time.monotonic()
            done.put((item, one(python, root, item), time.monotonic() - began_s))

    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        for number in range(jobs):
            folder = Path(place) / str(number)
            folder.mkdir()
            threading.Thread(target=worker, args=(folder,), daemon=True).start()
        for _ in range(len(sets) + len(mutants)):
            yield done.get()


def main(words: Sequence[str]) -> int:
    """Try the mutants of the subjects given, or all; 0 if each was killed."""
    parser = argparse.ArgumentParser(prog="make mutants", description="break each guard and see a test notice")
    parser.add_argument("subjects", nargs="*", help="names of lists in tests/mutants/; all of them if none is given")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at a time (the cores)")
    parser.add_argument("--minutes", type=float, default=45.0, help="bound of the whole")
    given = parser.parse_args(words)
    mutants = [mutant for mutant in read() if not given.subjects or mutant.subject in given.subjects]
    if not mutants:
        print(f"there is no mutant of {' '.join(given.subjects)}")
        return 1
    wrong = {mutant.name: why for mutant in mutants if (why := fault(mutant))}
    sound = [mutant for mutant in mutants if mutant.name not in wrong]
    total = len(sound) + len({mutant.tests for mutant in sound})
    red = {}
    for number, (item, why, seconds) in enumerate(work(sound, given.jobs, given.minutes * 60), 1):
        name = item.name if isinstance(item, Mutant) else f"as it is: {' '.join(item)}"
        print(f"{number:3} of {total}  {seconds:5.1f} s  {'BAD' if why else 'ok '}  {name}", flush=True)
        if why and isinstance(item, Mutant):
            wrong[name] = why
        elif why:
            red[item] = why
    wrong |= {mutant.name: red[mutant.tests] for mutant in sound if mutant.tests in red}
    print(f"{len(mutants)} mutants, {len(mutants) - len(wrong)} killed")
    for name, why in wrong.items():
        print(f"  {name}: {why}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
