"""The import rules of docs/architecture.md, read from the source: who may import whom, and who may ask the world.

ruff's TID251 says the same while one types; it can't tell a folder from another folder's point of view, so it is this
test that decides. A rule is a row of RULES; `violations` is a pure function, tested below on sources that break it.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
ROOTS = ("tokenswarm", "exporters", "locustfiles")
WORKSHOPS = ("grafana", "bench")  # make what we ship or publish; they have a floor, and no other rule
PATHS = [path for root in ROOTS for path in sorted(REPO.glob(f"{root}/**/*.py"))]
SOURCES = {str(path.relative_to(REPO)): path.read_text("utf-8") for path in PATHS}
WORKSHOP_PATHS = [path for root in WORKSHOPS for path in sorted(REPO.glob(f"{root}/**/*.py"))]
EVERYTHING = SOURCES | {str(path.relative_to(REPO)): path.read_text("utf-8") for path in WORKSHOP_PATHS}

parse = functools.cache(ast.parse)

LOOPS = ("asyncio", "gevent", "locust", "select", "selectors", "threading")
NETWORK = ("aiohttp", "flask", "http", "httptools", "prometheus_client", "socket", "ssl", "urllib.request", "zmq")
MACHINE = ("ctypes", "multiprocessing", "psutil", "pynvml", "signal", "subprocess", "time")
WORLD = frozenset({*LOOPS, *NETWORK, *MACHINE})
"""What the core must not know: sockets, processes, clocks, event loops."""

FLOORS: tuple[tuple[str, ...], ...] = (
    ("locustfiles", "tokenswarm.cli", "grafana", "bench"),
    ("tokenswarm.commands",),
    ("tokenswarm.cluster",),
    ("tokenswarm.reports", "tokenswarm.judge"),
    ("tokenswarm.telemetry", "exporters"),
    ("tokenswarm.result", "tokenswarm.client", "tokenswarm.simulator"),
    ("tokenswarm.measure",),
    ("tokenswarm.engines",),
    ("tokenswarm.prompts", "tokenswarm.load"),
    ("tokenswarm.profile", "tokenswarm.kv_cache"),
    (
        "tokenswarm.record",
        "tokenswarm.clock",
        "tokenswarm.compiled",
        "tokenswarm.descriptors",
        "tokenswarm.errors",
        "tokenswarm.own_process",
        "tokenswarm.terminal",
        "tokenswarm.untold",
    ),
)
"""The rooms from the top floor to the ground; a room imports only what stands below it (docs/architecture.md)."""

HEIGHT = {room: len(FLOORS) - number for number, floor in enumerate(FLOORS) for room in floor}
IO = (
    "tokenswarm/client/",
    "tokenswarm/cluster/",
    "tokenswarm/commands/",
    "tokenswarm/simulator/",
    "tokenswarm/clock.py",
    "tokenswarm/terminal.py",
    "tokenswarm/untold.py",
)
"""Who may ask the world; every other file of tokenswarm/ is the core."""


def room_of(module: str) -> str | None:
    """The room that a module stands in; None for the package itself, which holds only the version."""
    return next((room for room in HEIGHT if below(module, (room,))), None)


def arrows_up(sources: dict[str, str]) -> list[str]:
    """`path:line imports name` for each import of a room that does not stand below the importer's."""
    modules = MODULES | {module_of(path) for path in sources}
    found = []
    for path, source in sources.items():
        here = room_of(module_of(path))
        for name, line in imports(parse(source), modules):
            there = room_of(absolute(name, path))
            if here and there and here != there and HEIGHT[there] >= HEIGHT[here]:
                found.append(f"{path}:{line} imports {name}")
    return found


def absolute(name: str, path: str) -> str:
    """The dotted name without leading dots, as seen from the file."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parts = module_of(path).split(".")
    package = parts if path.endswith("__init__.py") else parts[:-1]
    return ".".join([*package[: len(package) - dots + 1], name.lstrip(".")])


@dataclass(frozen=True)
class Rule:
    """Files of `folders` (but not of `but`) import nothing of `banned`, nor, with `only`, anything else of ours."""

    name: str
    folders: tuple[str, ...]
    banned: frozenset[str]
    but: tuple[str, ...] = ()
    only: frozenset[str] | None = None  # names that stand for themselves and what is below them


LEAVES = (
    "tokenswarm/clock.py",
    "tokenswarm/descriptors.py",
    "tokenswarm/errors.py",
    "tokenswarm/engines/framing.py",
    "tokenswarm/record.py",
    "tokenswarm/measure/sketch.py",
    "tokenswarm/measure/statistics.py",
)

RULES = (
    Rule("the core is pure", ("tokenswarm/",), WORLD, but=(*IO, "tokenswarm/cli.py")),
    Rule("the clock is the one file with `time`", ("tokenswarm/clock.py",), WORLD - {"time"}),
    Rule("leaves know nothing of ours", LEAVES, frozenset(), only=frozenset({"tokenswarm.clock"})),
    Rule(
        "a dialect knows prompts and records",
        ("tokenswarm/engines/",),
        frozenset(),
        only=frozenset({"tokenswarm.engines", "tokenswarm.prompts", "tokenswarm.record"}),
    ),
    Rule(
        "prompts know the profile in one file",
        ("tokenswarm/prompts/",),
        frozenset(),
        but=("tokenswarm/prompts/from_profile.py",),
        only=frozenset({"tokenswarm.prompts", "tokenswarm.errors"}),
    ),
    Rule("reports read results", ("tokenswarm/reports/",), frozenset({"tokenswarm.measure.recorder", "exporters"})),
    Rule("nobody imports an exporter", ("tokenswarm/",), frozenset({"exporters"})),
    Rule(
        "exporters read pushes",
        ("exporters/",),
        frozenset({"tokenswarm.client", "tokenswarm.simulator", "tokenswarm.telemetry", "gevent", "locust"}),
    ),
    Rule("the simulator is a server", ("tokenswarm/simulator/",), frozenset({"gevent", "locust"})),
    Rule("Locust is the business of a run", ("tokenswarm/client/", "tokenswarm/commands/"), frozenset({"locust"})),
    Rule(
        "a locustfile is a workload", ("locustfiles/",), frozenset(), only=frozenset({"tokenswarm.cluster", "locust"})
    ),
)

THIRD_PARTY = {
    "msgspec": ("tokenswarm/", "exporters/"),
    "yaml": ("tokenswarm/profile/", "tokenswarm/cluster/master.py", "tokenswarm/cluster/plugin.py"),
    "rich": ("tokenswarm/reports/", "tokenswarm/cluster/", "tokenswarm/commands/"),
    "gevent": ("tokenswarm/client/", "tokenswarm/cluster/"),
    "locust": ("tokenswarm/cluster/", "locustfiles/"),
    "flask": ("tokenswarm/cluster/web_tab.py", "tokenswarm/cluster/web_edits.py"),
    "httptools": ("tokenswarm/client/response.py",),
    "psutil": (
        "tokenswarm/untold.py",
        "tokenswarm/cluster/probes.py",
        "tokenswarm/cluster/neighbour.py",
        "exporters/",
    ),
    "aiohttp": ("tokenswarm/simulator/", "exporters/"),
    "prometheus_client": ("exporters/",),
    "pynvml": ("exporters/",),
}
"""Each dependency, and where it may be imported."""

ENVIRONMENT = {
    "tokenswarm/profile/environment.py": "reads it",
    "tokenswarm/cluster/launch.py": "hands it on, whole, to the worker processes that it starts",
}

WALL_CLOCK = {
    "tokenswarm/cluster/conclusion.py": "names the moment of a run",
    "tokenswarm/cluster/calibration.py": "names the moment of a calibration",
    "tokenswarm/commands/repeat.py": "names the moment of a group of runs",
    "tokenswarm/simulator/routes.py": "plays a server that states dates",
}


def imports(tree: ast.AST, modules: frozenset[str], *, at_import: bool = False) -> Iterator[tuple[str, int]]:
    """(dotted name of each module imported, line); with `at_import`, only those that importing the file imports."""
    for node in _outside_functions(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules else base, node.lineno


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _outside_functions(node)


def below(name: str, roots: frozenset[str] | tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = frozenset(map(module_of, EVERYTHING))


def violations(sources: dict[str, str], rule: Rule) -> list[str]:
    """`path:line imports name` for each import that the rule forbids."""
    modules = MODULES | {module_of(path) for path in sources}
    found = []
    for path, source in sources.items():
        if not path.startswith(rule.folders) or path.startswith(rule.but or ("\0",)):
            continue
        for name, line in imports(parse(source), modules):
            ours = below(name, ("tokenswarm", "exporters")) or name.startswith(".")
            foreign = rule.only is not None and ours and not below(name, rule.only)
            if below(name, rule.banned) or foreign:
                found.append(f"{path}:{line} imports {name}")
    return found


def test_every_file_stands_in_a_room_and_no_import_runs_up() -> None:
    homeless = [path for path in EVERYTHING if room_of(module_of(path)) is None]
    assert homeless == ["tokenswarm/__init__.py"]
    assert arrows_up(EVERYTHING) == []
    assert all(any(below(module_of(path), (room,)) for path in EVERYTHING) for room in HEIGHT), "a room that is gone"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_layers(rule: Rule) -> None:
    assert not violations(SOURCES, rule), rule.name
    assert any(path.startswith(rule.folders) for path in SOURCES), "the rule is about files that are gone"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tokenswarm/result/summary.py", "import time"),
        ("tokenswarm/measure/timeline.py", "from gevent import socket"),
        ("tokenswarm/engines/x.py", "import socket as s"),
        ("tokenswarm/judge/rules/x.py", "def f():\n    from locust.env import Environment"),
        ("tokenswarm/judge/gates.py", "from tokenswarm import cluster"),
        ("tokenswarm/judge/verdict.py", "from tokenswarm.cluster.users import ReplayUser"),
        ("tokenswarm/clock.py", "import socket"),
        ("tokenswarm/clock.py", "from tokenswarm.profile import profile"),
        ("tokenswarm/engines/x.py", "from tokenswarm.profile.engine import Engine"),
        ("tokenswarm/engines/x.py", "from ..profile.engine import Engine"),
        ("tokenswarm/prompts/alpaca.py", "import tokenswarm.profile.load"),
        ("tokenswarm/measure/recorder.py", "from tokenswarm.reports import jsonl"),
        ("tokenswarm/measure/recorder.py", "def f():\n    from tokenswarm.result.summary import Summary"),
        ("tokenswarm/reports/x.py", "import tokenswarm.cluster.push"),
        ("tokenswarm/reports/x.py", "from tokenswarm.judge import verdict"),
        ("tokenswarm/client/x.py", "from tokenswarm.cluster.worker import Worker"),
        ("tokenswarm/client/x.py", "import locust"),
        ("tokenswarm/cluster/x.py", "from tokenswarm.commands import run"),
        ("tokenswarm/commands/x.py", "from tokenswarm import cli"),
        ("tokenswarm/telemetry/x.py", "import exporters.gpu.table"),
        ("exporters/x.py", "from tokenswarm.cluster import push"),
        ("exporters/x.py", "from tokenswarm.client import page"),
        ("tokenswarm/simulator/x.py", "import gevent"),
        ("tokenswarm/simulator/x.py", "from tokenswarm.client import page"),
        ("locustfiles/x.py", "from tokenswarm.profile.profile import load"),
    ],
)
def test_a_broken_layer_is_found(path: str, source: str) -> None:
    sources = {path: source}
    found = [*arrows_up(sources), *(text for rule in RULES for text in violations(sources, rule))]
    assert [text for text in found if text.startswith(f"{path}:")]


def test_dependencies_are_imported_where_they_belong() -> None:
    modules = MODULES
    for path, source in SOURCES.items():
        for name, line in imports(parse(source), modules):
            root = name.split(".")[0]
            if root in sys.stdlib_module_names or root in ("tokenswarm", "exporters"):
                continue
            assert path.startswith(THIRD_PARTY.get(root, ("\0",))), f"{path}:{line} imports {name}"


def environment_reads(tree: ast.AST) -> Iterator[int]:
    """Lines that touch os.environ, os.environb, os.getenv, os.putenv, by whatever name os has."""
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names}:
            yield node.lineno


def test_the_environment_is_read_in_the_profile_alone() -> None:
    found = {path for path, source in SOURCES.items() if any(environment_reads(parse(source)))}
    assert found == set(ENVIRONMENT)


def wall_clock_reads(tree: ast.AST) -> Iterator[int]:
    """Lines that ask the datetime or date class for now."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today"):
            asked = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if asked in ("datetime", "date"):
                yield node.lineno


def test_modules_of_ours_are_started_in_one_way() -> None:
    """Who writes the command by hand forgets `-P`, and a `yaml.py` beside the user is taken for the library."""
    by_hand = [path for path, source in SOURCES.items() if "sys.executable" in source and '"-m"' in source]
    assert by_hand == ["tokenswarm/own_process.py"]


def test_nobody_asks_what_time_it_is_but_a_run_and_the_simulator() -> None:
    found = {path for path, source in SOURCES.items() if any(wall_clock_reads(parse(source)))}
    assert found == set(WALL_CLOCK)


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os as o\no.getenv('A')", "from os import environ"]
)
def test_a_look_at_the_environment_is_found(source: str) -> None:
    assert list(environment_reads(parse(source)))


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of imports, as the modules on it; [] where there is none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (visit(other, [*trail, name]) for other in sorted(graph[name]))), [])
        done.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in sorted(graph))), [])


def test_no_import_cycles() -> None:
    modules = MODULES
    graph = {
        module_of(path): {name for name, _ in imports(parse(source), modules, at_import=True) if name in modules}
        for path, source in SOURCES.items()
    }
    assert cycle(graph) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
