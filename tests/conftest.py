"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from gevent.hub import get_hub
from hypothesis import HealthCheck, settings

REPO = Path(__file__).resolve().parent.parent

if PROMETHEUS := os.environ.get("TOKENSWARM_PROMETHEUS"):  # a folder with a prometheus and promtool to test with
    if not all(os.access(Path(PROMETHEUS, name), os.X_OK) for name in ("prometheus", "promtool")):
        raise pytest.UsageError(f"TOKENSWARM_PROMETHEUS={PROMETHEUS}: there are no prometheus and promtool")
    os.environ["PATH"] = f"{PROMETHEUS}{os.pathsep}{os.environ['PATH']}"

# A shell's `&` and nohup have some ignored by all below them; a user's terminal doesn't.
for _signal, _usual in {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}.items():
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)


# The same examples each time, however long this machine takes for one: a test that fails, fails for everybody. `make
# long` draws others.
settings.register_profile(
    "even",
    derandomize=not os.environ.get("TOKENSWARM_LONG"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("even")


class NoLocust(MetaPathFinder):
    """Locust patches sockets and threads of the whole process, pytest-xdist's too: who needs it starts one for it."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "locust":
            raise ImportError("a test imports Locust, which patches its whole process: start one for it")


sys.meta_path.insert(0, NoLocust())


# Those that take longest: begun last, one of them would keep one core busy for minutes while the others are done.
LONG = (
    *("ends", "search", "path_command", "run", "llamacpp", "watched_run", "late_signals", "judged_runs", "silence"),
    *("strangers", "pipelines", "contamination", "open_loop", "readme", "observe", "repeat", "grafana_queries"),
    *("tokens_held_back", "terminal", "bad_input", "descriptors", "prometheus_exporter", "model_names", "gateways"),
    *("compose_start", "first_day", "floods", "exporter_load", "exchange_ends", "verdict"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Each process of pytest-xdist begins to read with other files: what one has compiled, the others find."""
    worker = getattr(config, "workerinput", None)
    if worker and [Path(word).resolve() for word in config.args] == [REPO / "tests"]:
        files = sorted(str(path) for path in (REPO / "tests").glob("test_*.py"))
        first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
        config.args = [*files[first:], *files[:first]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By file, the longest first (with `--no-loadscope-reorder`: pytest-xdist goes by the number of tests)."""
    order = {f"test_{name}": number for number, name in enumerate(LONG)}
    if gone := [name for name in order if not Path(__file__).with_name(f"{name}.py").exists()]:
        raise pytest.UsageError(f"LONG of {__file__} names what is not there: {', '.join(gone)}")
    items.sort(key=lambda item: (order.get(item.path.stem, len(order)), item.path))


@pytest.hookimpl(optionalhook=True)  # `make mutants` loads no pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Three a core, and no more than the longest files keep busy: most tests wait for a run to go by."""
    cores = os.cpu_count() or 1
    return min(3 * cores, cores + 4)


@pytest.fixture(autouse=True)
def _now() -> None:
    """Tell gevent what time it is: after minutes of tests without it, its time-outs would be over at once."""
    get_hub().loop.update_now()


@pytest.fixture(scope="module")
def setups() -> Iterator[list[Any]]:
    """A client of each reader: Python's, then the one in C."""
    from exchanges import Setup  # it loads the client, which few files need

    found = [Setup("python"), Setup("native")]
    yield found
    for setup in found:
        setup.close()


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Find a real data set or capture that is kept outside the project; skip the test, by name, where it is absent."""

    def find(name: str) -> Path:
        root = Path(os.environ.get("TOKENSWARM_SHARED", REPO.parent / "shared"))
        path = root / name
        if not path.exists():
            pytest.skip(f"{name} is not on this machine (it is kept outside the project)")
        return path

    return find
