"""Half an hour of scrapes of a run with eight workers, in a Prometheus, within minutes.

A real run is scraped each second, all of its exporters and the embedded engine. What they told is played once, and then
the last seconds of it again and again: counters go on from where they stood, moments are moved, all else comes back.
Recording rules are evaluated over it by promtool, the rules of one level upon those below.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bench.runs import REPO
from bench.sender import BenchError

Say = Callable[[str], None]

WORKERS = 8
RANGE_S = 1800
AGAIN_S = 20  # the last seconds of the run, which are played again and again
RUNS = (((8, 5.0), (16, 5.0)), ((8, 8.0), (32, 8.0), (64, AGAIN_S + 10.0)))
"""(users, seconds) of each stage. The first run is what the second one is compared with; the second one is scraped."""
BLOCK_S = 7200  # of Prometheus: all samples lie within one

LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
MOMENT = re.compile(r"timestamp_seconds|_start_time_seconds")
GROWS = ("counter", "histogram")

Page = dict[str, float]
"""Value by series, as it is stored: with job and instance."""


class Told(NamedTuple):
    """What was scraped: pages a second apart, the last of them at `end_s`; which series are counters, which moments."""

    pages: list[Page]
    grows: frozenset[str]
    moments: frozenset[str]
    end_s: float
    runs: tuple[str, str]
    addresses: dict[str, str]


def parsed(text: str, job: str, instance: str) -> tuple[Page, set[str]]:
    """A page, and which of its series only grow."""
    page, grows, kinds = {}, set(), {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            kinds[name] = kind
        elif line and not line.startswith("#"):
            match = LINE.match(line)
            if match is None:
                raise BenchError(f"{job}: no sample: {line!r}")
            labels = f"{match[2].rstrip(',')}," if match[2] else ""
            series = f'{match[1]}{{{labels}job="{job}",instance="{instance}"}}'
            page[series] = float(match[3])
            family = re.sub("_(bucket|sum|count)$", "", match[1])
            if kinds.get(match[1], kinds.get(family)) in GROWS:
                grows.add(series)
    return page, grows


def scraped(folder: Path, say: Say) -> Told:
    """Run the load and scrape it. Each exporter and the engine are processes of their own."""
    record = f"replay:{REPO / 'tests' / 'nvml' / 'h100_recorded.json'}"
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(_serving("tokenswarm.simulator", "--port", "0", "--preset", "h200-8b"))
        load = stack.enter_context(_serving("exporters.load"))
        gpu = stack.enter_context(_serving("exporters.gpu", "--gpu-backend", record, "--gpm"))
        ollama = stack.enter_context(_serving("exporters.ollama", "--ollama", f"http://{engine}", "--interval", "1"))
        addresses = {"tokenswarm-load": load, "tokenswarm-gpu": gpu, "tokenswarm-ollama": ollama, "vllm": engine}
        pages: list[Page] = []
        grows: set[str] = set()
        runs, end_s = [], 0.0
        for number, stages in enumerate(RUNS):
            results = folder / str(number)
            with _run(results, stages, addresses) as run:
                while run.poll() is None:
                    if number and (page := _scrape(addresses, grows)):
                        pages.append(page)
                        end_s = time.time()
                    time.sleep(1 - time.time() % 1)
            summary = json.loads((results / "latest" / "summary.json").read_bytes())
            runs.append(str(summary["run_id"]))
        steady = [n for n, page in enumerate(pages) if any(page[k] for k in page if _is_steady(k, runs[-1]))]
        if len(steady) < AGAIN_S:
            raise BenchError(f"{len(steady)} scrapes while the run was steady")
        pages = pages[: steady[-1] + 1]
        say(f"scraped {len(pages)} times, {len(pages[-1])} series in the end")
    moments = frozenset(series for page in pages for series in page if MOMENT.search(series.partition("{")[0]))
    return Told(pages, frozenset(grows) - moments, moments, end_s, (runs[0], runs[1]), addresses)


def _is_steady(series: str, run: str) -> bool:
    return series.startswith("tokenswarm_run_phase{") and f'run_id="{run}"' in series and 'phase="steady"' in series


@contextlib.contextmanager
def _serving(module: str, *options: str) -> Iterator[str]:
    """Its host:port."""
    listen = () if module == "tokenswarm.simulator" else ("--listen", "127.0.0.1:0")
    command = [sys.executable, "-m", module, *listen, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://([\d.]+:\d+)", process.stdout.readline())
            if found is None:
                raise BenchError(f"{module} did not start")
            yield found[1]
        finally:
            process.kill()


@contextlib.contextmanager
def _run(results: Path, stages: tuple[tuple[int, float], ...], of: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    written = ", ".join(f"{{users: {users}, duration: {seconds}s}}" for users, seconds in stages)
    command = [sys.executable, "-m", "tokenswarm.cli", "run", "configs/profiles/demo.yaml", "--quiet"]
    command += ["--host", f"http://{of['vllm']}", "--push", f"http://{of['tokenswarm-load']}"]
    command += ["--workers", str(WORKERS), "--results", str(results), "--set", f"load.stages=[{written}]"]
    command += ["--set", f"telemetry.gpu_exporters=[http://{of['tokenswarm-gpu']}]"]
    command += ["--set", "slo={ttft_s: {p99: 5}, tpot_s: {p99: 1}}"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, text=True) as run:
        try:
            yield run
        finally:
            run.terminate()  # over already, but for an error here


def _scrape(addresses: dict[str, str], grows: set[str]) -> Page:
    """All pages as Prometheus keeps them, with `up`."""
    found: Page = {}
    for job, address in addresses.items():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            page, more = parsed(answer.read().decode(), job, address)
        found |= page | {f'up{{job="{job}",instance="{address}"}}': 1.0}
        grows |= more
    return found


def played(told: Told, end_s: int) -> Iterator[tuple[int, Page]]:
    """(second, page) of RANGE_S seconds up to `end_s`. A series that has come stays."""
    first, *_, last = told.pages
    start = max(0, len(told.pages) - AGAIN_S)
    before = told.pages[start - 1] if start else first
    now: Page = {}
    began_s = end_s - RANGE_S
    shift_s = began_s - (told.end_s - len(told.pages) + 1)
    for second in range(RANGE_S + 1):
        rounds, place = 0, second
        if second >= len(told.pages):
            rounds, place = divmod(second - start, AGAIN_S)
            place += start
        for series, value in told.pages[place].items():
            if series in told.grows:
                now[series] = value + rounds * max(0.0, last.get(series, value) - before.get(series, 0.0))
            else:
                now[series] = value + shift_s if series in told.moments and value else value
        yield began_s + second, now


def write(told: Told, end_s: int, path: Path) -> tuple[int, int]:
    """As OpenMetrics; how many series and samples."""
    samples = 0
    names: set[str] = set()
    with path.open("w", encoding="utf-8", buffering=1 << 20) as file:
        for second, page in played(told, end_s):
            file.writelines(f"{series} {value!r} {second}\n" for series, value in page.items())
            samples += len(page)
            names |= page.keys()
        file.write("# EOF\n")
    return len(names), samples


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """An answer's data."""
        return json.loads(self._body(path, parameters))["data"]

    def account(self, path: str, **parameters: str) -> Any:
        """Its own account of what an answer took: behind the result, which may be millions of samples."""
        body = self._body(path, {**parameters, "stats": "all"})
        return json.JSONDecoder().raw_decode(body[body.rindex('"stats":') + 8 :])[0]

    def _body(self, path: str, parameters: dict[str, str]) -> str:
        data = urllib.parse.urlencode(parameters).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", data=data, timeout=120) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                raise BenchError(f"{parameters}: {error.read().decode()[:500]}") from error


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Prometheus]:
    """The Prometheus on the PATH, with the blocks under `folder`; it scrapes nothing and has no rules."""
    config = folder / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1m}\n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [_tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", "--storage.tsdb.retention.time=1y"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process:
        server = Prometheus(f"http://127.0.0.1:{port}")
        try:
            deadline_s = time.monotonic() + 120
            while True:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise BenchError(f"Prometheus did not start:\n{(folder / 'log').read_text()[-2000:]}")
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{server.url}/-/ready", timeout=5).close()
                    break
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()


def merged(folder: Path, within_s: float = 150.0) -> None:
    """Wait until Prometheus has made one block of those that overlap: it does so within a minute or two."""
    deadline_s = time.monotonic() + within_s
    while len(list((folder / "data").glob("*/meta.json"))) > 1 and time.monotonic() < deadline_s:
        time.sleep(1)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is not installed (Debian package prometheus)")
    return found


def _promtool(*arguments: str) -> None:
    environ = {**os.environ, "GOMAXPROCS": "2"}
    command = [_tool("promtool"), "tsdb", "create-blocks-from", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=600)
    if done.returncode:
        raise BenchError(f"promtool {arguments[0]}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def load(told: Told, end_s: int, folder: Path, say: Say) -> tuple[int, int]:
    """Blocks of the scrapes."""
    path = folder / "scrapes.txt"
    counts = write(told, end_s, path)
    say(f"{counts[0]} series, {counts[1]} samples, {path.stat().st_size / 1e6:.0f} MB to load")
    _promtool("openmetrics", str(path), str(folder / "data"))
    path.unlink()
    return counts


def levels(rule_folders: list[Path]) -> list[list[dict[str, Any]]]:
    """Groups of recording rules: those on scraped series, those on what these record, and so on.

    Of two that record the same series the first folder's is taken.
    """
    left: list[tuple[str, dict[str, Any]]] = []
    for folder in rule_folders:
        taken = {_of(rule) for _, rule in left}
        for path in sorted(folder.glob("*.yml")):
            for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
                every, recording = group.get("interval", "5s"), [rule for rule in group["rules"] if "record" in rule]
                left += [(every, rule) for rule in recording if _of(rule) not in taken]
    found: list[list[dict[str, Any]]] = []
    while left:
        waiting = {rule["record"] for _, rule in left}
        ready = [one for one in left if not waiting & {*re.findall(r"[\w:]+", str(one[1]["expr"]))}] or left
        groups = [
            {"name": f"every {every}", "interval": every, "rules": [rule for its, rule in ready if its == every]}
            for every in dict.fromkeys(every for every, _ in ready)
        ]
        found.append(groups)
        left = [one for one in left if one not in ready]
    return found


def _of(rule: dict[str, Any]) -> tuple[str, str]:
    return rule["record"], json.dumps(rule.get("labels", {}), sort_keys=True)


def record(rule_folders: list[Path], end_s: int, folder: Path, say: Say) -> None:
    """Blocks of what the rules record."""
    for number, groups in enumerate(levels(rule_folders)):
        path = folder / f"rules-{number}.yml"
        path.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
        with serving(folder) as prometheus:
            times = (f"--start={end_s - RANGE_S}", f"--end={end_s}", f"--url={prometheus.url}")
            _promtool("rules", *times, f"--output-dir={folder / 'data'}", str(path))
        say(f"rules of level {number}: {sum(len(group['rules']) for group in groups)}")
