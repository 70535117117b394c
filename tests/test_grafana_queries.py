"""Every target of every panel, asked of a real Prometheus that watched a real run; and the curves that Grafana draws.

There are the embedded engine (also as the Ollama that its exporter polls), a run of three stages against it, a second,
synthetic one with failures, the load, GPU (a replayed record) and Ollama exporters, and our recording rules.

The Prometheus is the one on the PATH, Debian's 2.42, or that of the folder TOKENSWARM_PROMETHEUS; 3.5.3 passes, too.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llamacpp
import pytest
import yaml
from agreement import buckets_of, within
from exporter_process import running
from grafana_frames import DASHBOARDS, Frame, all_targets, drawn, frames_of, panels, substitute
from load_run import SyntheticRun, post
from prometheus_server import Prometheus, natives_only, serving, tool, version
from simulator_process import simulator

pytestmark = pytest.mark.timeout(600)  # the first test waits for all of the runs
REPO = Path(__file__).resolve().parent.parent
RULES = REPO / "configs" / "prometheus" / "rules"
OTHER = "20261101-000000-0000"
USERS = (2, 8, 24)
STAGE_S = 5
TARGETS = all_targets()
AGAINST_NAMES = ("engine", "host", "gpu")
VARIABLES = [variable for variable in DASHBOARDS["a-live"]["templating"]["list"] if variable["name"] in AGAINST_NAMES]
GPUS = [
    sorted(str(answers[0][1]) for call, answers in json.loads(record.read_text())["answers"].items()
           if call.endswith("/uuid"))
    for record in (REPO / "tests" / "nvml" / "h100_recorded.json", REPO / "tests" / "nvml" / "h200_constructed.json")
]  # fmt: skip
"""The UUIDs that the two GPU exporters tell."""

RANGES = {
    "s": (0, 86_400),
    "percentunit": (0, 100),
    "cps": (0, 1e6),
    "reqps": (0, 1e5),
    "ops": (0, 1e6),
    "bytes": (0, 1e13),
    "Bps": (0, 1e12),
    "binBps": (-1e11, 1e11),
    "watt": (0, 2000),
    "celsius": (0, 120),
    "hertz": (0, 1e10),
    "joule": (0, 1e4),
    "short": (0, 1e12),
}
"""Values that make sense, by unit."""
SIGNED = {("d-client-and-server", "TTFT: client − engine"), ("e-compare-runs", "Latency of the whole run"),
          ("e-compare-runs", "Throughput and outcomes")}  # fmt: skip
"""Panels with differences, which may be below 0."""

FAR = {("c-soak", "Time until GPU memory is full")}
"""Panels with forecasts, which may be years away."""

EMPTY = {
    ("a-live", "XID and memory errors", "A"): "no XID in the record",
    **{("a-live", title, "D"): "a p99.9 takes thousands of requests" for title in ("TTFT", "TPOT", "E2E")},
}
"""Targets that rightly have no answer here."""
ALERTS = {("c-soak", "Alerts over time", "A"), ("c-soak", "Firing now", "A")}
"""Targets that have an answer if an alert fires: on a busy machine the one about the load generator does."""
if not Path("/proc/pressure").exists():
    EMPTY["a-live", "Waiting for CPU, memory or disk", "A"] = "this kernel tells no pressure"


@dataclass
class World:
    prometheus: Prometheus
    natives: Prometheus  # the same, but it keeps native histograms only
    run_id: str
    ollama_run_id: str
    earliest: float  # when the first of the runs began
    begin: float
    over: float  # when it ended, as it told
    end: float  # when the program that ran it had left
    summary: dict[str, Any]
    engine: str  # host:port of the real one
    elsewhere: str  # of the other one, which the run OTHER is against
    hosts: tuple[str, str]  # of the GPU exporters of the two
    _against: dict[str, dict[str, str]] = field(default_factory=dict)

    def against(self, run_id: str) -> dict[str, str]:
        """What the dashboards' own variables find of a run, all chosen: as Grafana joins several values."""
        if run_id not in self._against:
            found = {}
            for variable in VARIABLES:
                expr = variable["query"]["query"].removeprefix("query_result(").removesuffix(")")
                expr = substitute(expr, {"run_id": run_id, "__range": "1h", "1": "$1"})
                regex = re.compile(variable["regex"].strip("/"))
                lines = (str({**labels}).replace("'", '"').replace(": ", "=") for labels in self._labels(expr))
                values = sorted({match[1] for line in lines if (match := regex.search(line.replace('"=', "=")))})
                found[variable["name"]] = "(" + "|".join(map(re.escape, values)) + ")"
            self._against[run_id] = {name: text.replace("\\", "\\\\") for name, text in found.items()}
        return self._against[run_id]

    def _labels(self, expr: str) -> list[dict[str, str]]:
        return [one["metric"] for one in self.prometheus.api("query", query=expr, time=f"{time.time():.3f}")["result"]]

    def variables(self, run_id: str) -> dict[str, str]:
        # The baseline of the soak dashboard reaches into the future here: its hour ends an hour after the start.
        return {
            "__rate_interval": "10s", "__range": "1h", "run_id": run_id, "run_a": self.run_id, "run_b": OTHER,
            "started": f"{self.begin:.3f}", "settle": "1h", "quantile": "0.5", "slo_ttft": "2", "slo_itl": "0.2",
            **self.against(run_id),
        }  # fmt: skip


def _config(folder: Path, **ports: str) -> dict[str, Any]:
    """Our jobs and rules, with the addresses here and every interval a second."""
    (folder / "rules").mkdir()
    for path in RULES.glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    jobs = [{"job_name": job, "static_configs": [{"targets": given.split(",")}]} for job, given in ports.items()]
    for job in jobs:
        job["job_name"] = str(job["job_name"]).replace("_", "-")
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": jobs,
    }


MODEL = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "dtype": "bfloat16",
}
"""The config.json of what the engine's preset h200-8b pretends to serve."""


def _run(folder: Path, engine: str, exporter: str, *options: str) -> dict[str, Any]:
    """A real run of the demo's profile with two workers; its summary. That short stages are doubted is no matter."""
    command = [sys.executable, "-m", "tokenswarm.cli", "run", "configs/profiles/demo.yaml", "--host", engine]
    command += ["--push", exporter, "--max-tokens", "12", "--results", str(folder), *options]
    (folder / "config.json").write_text(json.dumps(MODEL))
    command += ["--set", f"telemetry.model_config={folder}"]
    for setting in ("phases={warmup: 1s, settle: 500ms, drain: 10s}", "slo={ttft_s: {p99: 5}, tpot_s: {p99: 1}}"):
        command += ["--set", setting]
    told = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=180, check=False)
    assert told.returncode in (0, 11, 12), told.stdout + told.stderr
    summary: dict[str, Any] = json.loads((folder / "latest" / "summary.json").read_text())
    return summary


ELSEWHERE_RUNNING = 100_000  # more than any run here has


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """A vLLM of another version, for names that the embedded engine does not have: newer ones, and renamed ones."""

    def do_GET(self) -> None:
        tokens = int(time.time() * 100) % 10_000_000
        lines = (
            f"vllm:num_requests_running {ELSEWHERE_RUNNING}",
            'vllm:num_requests_waiting_by_reason{reason="capacity"} 3',
            'vllm:num_requests_waiting_by_reason{reason="deferred"} 0',
            f"vllm:gpu_prefix_cache_queries_total {tokens}",
            f"vllm:spec_decode_num_draft_tokens_total {tokens}",
            f"vllm:spec_decode_num_accepted_tokens_total {tokens // 2}",
            f"vllm:gpu_prefix_cache_hits_total {tokens // 2}",
        )
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _elsewhere() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _stages_of(*users: int) -> str:
    return "load.stages=[" + ", ".join(f"{{users: {count}, duration: {STAGE_S}s}}" for count in users) + "]"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    results = tmp_path_factory.mktemp("results")
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(simulator("--preset", "h200-8b"))
        load = stack.enter_context(running("load"))
        watched = ("--gpm", "--interval", "0.5", "--engine-pid", str(engine.process.pid))
        gpus = [
            stack.enter_context(running("gpu", "--gpu-backend", f"replay:{REPO / 'tests' / 'nvml' / record}", *watched))
            for record in ("h100_recorded.json", "h200_constructed.json")  # the second one has NVLink
        ]
        ollama = stack.enter_context(running("ollama", "--ollama", engine.url, "--interval", "1"))
        addresses = {
            "tokenswarm_load": f"127.0.0.1:{load.port}",
            "tokenswarm_gpu": ",".join(f"127.0.0.1:{gpu.port}" for gpu in gpus),
            "tokenswarm_ollama": f"127.0.0.1:{ollama.port}",
            "vllm": engine.url.removeprefix("http://"),
            "vllm_elsewhere": stack.enter_context(_elsewhere()),
        }
        llama = None
        if llamacpp.installed():
            llama = stack.enter_context(llamacpp.running(tmp_path_factory.mktemp("llama")))
            addresses["llama_cpp"] = llama.removeprefix("http://")
        prometheus = stack.enter_context(serving(folder, _config(folder, **addresses)))
        other_folder = tmp_path_factory.mktemp("natives")
        config = _config(other_folder, tokenswarm_load=addresses["tokenswarm_load"])
        del config["rule_files"]  # rules are asked in test_prometheus_exporter.py; here they would cost a core
        config["global"]["scrape_interval"] = "2s"
        natives = stack.enter_context(serving(other_folder, config, *natives_only(config)))
        prometheus.wait_for("up == 1")
        other = SyntheticRun(OTHER, engine="ollama", start_timestamp_s=time.time() - 20, target_rate=60.0)
        other_gpu = GPUS[1]
        hosts = tuple(f"127.0.0.1:{gpu.port}" for gpu in gpus)
        other.state.targets = {"engine": [addresses["vllm_elsewhere"]], "host": [hosts[1]], "gpu": list(other_gpu)}
        post(load.url, other.body())
        began = time.time()
        for _ in range(12):
            other.advance()
            post(load.url, other.body())
            time.sleep(0.3)
        other.play()
        other.state.end_timestamp_s = time.time()
        assert post(load.url, other.body())[0] == 204
        exporter = f"http://127.0.0.1:{load.port}"
        if llama is not None:
            _run(results, llama, exporter, "--model", "tiny", "--set", _stages_of(4))
        native = _run(results, engine.url, exporter, "--engine", "ollama", "--api", "chat", "--set", _stages_of(4))
        telemetry = ("--set", f"telemetry.gpu_exporters=[http://{hosts[0]}]")
        summary = _run(results, engine.url, exporter, "--set", _stages_of(*USERS), *telemetry)
        end = time.time()
        (over,) = prometheus.wait_for(f'tokenswarm_run_end_timestamp_seconds{{run_id="{summary["run_id"]}"}}').values()
        time.sleep(2.5)  # so that the last scrapes and rules have seen it
        told = prometheus.wait_for(f'tokenswarm_run_start_timestamp_seconds{{run_id="{summary["run_id"]}"}}')
        (started,) = told.values()
        assert began < started < end
        yield World(
            prometheus, natives, summary["run_id"], native["run_id"], began, started, over, end, summary,
            addresses["vllm"], addresses["vllm_elsewhere"], (hosts[0], hosts[1]),
        )  # fmt: skip


def _counts(series: dict[str, Any]) -> list[float]:
    """Of native histograms, each by its count."""
    return [float(histogram["count"]) for _, histogram in series.get("histograms", ())]


def _answers(
    world: World, target: dict[str, Any], run_id: str, prometheus: Prometheus | None = None
) -> list[tuple[dict[str, str], list[float]]]:
    """(labels, values) of each series: over the run; instant ones while it was steady, and after it."""
    prometheus = prometheus or world.prometheus
    expr = substitute(target["expr"], world.variables(run_id))
    if not target.get("instant"):
        begin = world.begin if "$started" in target["expr"] else world.earliest
        data = prometheus.api("query_range", query=expr, start=f"{begin:.3f}", end=f"{time.time():.3f}", step="1")
        return [(one["metric"], [float(v) for _, v in one.get("values", ())] + _counts(one)) for one in data["result"]]
    found = []
    for at in (world.over - 3, time.time()):
        data = prometheus.api("query", query=expr, time=f"{at:.3f}")
        found += [(one["metric"], [float(one["value"][1])]) for one in data["result"]]
    return found


@pytest.mark.parametrize(
    ("name", "panel", "target"), TARGETS, ids=[f"{n}-{p['title']}-{t['refId']}" for n, p, t in TARGETS]
)
def test_a_target_has_a_sane_answer(world: World, name: str, panel: dict[str, Any], target: dict[str, Any]) -> None:
    runs = (world.run_id, world.ollama_run_id, OTHER)
    found = [answer for run_id in runs for answer in _answers(world, target, run_id)]
    if (name, panel["title"], target["refId"]) in EMPTY:
        assert not found, "it has an answer after all: take it off the list"
        return
    if not found and (name, panel["title"], target["refId"]) in ALERTS:
        asked = "|".join(runs)  # the run against llama.cpp is not: its alerts are none of these
        assert world.prometheus.query(f'ALERTS{{alertstate="firing",run_id=~"{asked}|"}}') == {}
        return
    assert found, substitute(target["expr"], world.variables(world.run_id))
    low, high = (0, 1e9) if (name, panel["title"]) in FAR else RANGES[panel["fieldConfig"]["defaults"]["unit"]]
    if (name, panel["title"]) in SIGNED:
        low = -high
    elif "time() - " in target["expr"]:
        low = -1  # a scrape has the time at which it began; what it tells may have happened since
    finite = [value for _, values in found for value in values if math.isfinite(value)]
    assert finite, found
    assert all(low <= value <= high for value in finite), (min(finite), max(finite))
    assert not [value for _, values in found for value in values if math.isinf(value)]


AGAINST = re.compile(r"\$(engine|host|gpu)\b")


def test_the_variables_find_what_each_run_names(world: World) -> None:
    def values(run_id: str, name: str) -> list[str]:
        return [re.sub(r"\\+", "", one) for one in world.against(run_id)[name].strip("()").split("|")]

    assert [values(world.run_id, name) for name in ("engine", "host", "gpu")] == [
        [world.engine], [world.hosts[0]], GPUS[0],
    ]  # fmt: skip
    assert [values(OTHER, name) for name in ("engine", "host", "gpu")] == [
        [world.elsewhere], [world.hosts[1]], GPUS[1],
    ]  # fmt: skip
    assert values(world.ollama_run_id, "engine") == [world.engine]
    assert set(values(world.ollama_run_id, "gpu")) == {*GPUS[0], *GPUS[1]}  # it names none: all that are there


@pytest.mark.parametrize(
    ("name", "panel", "target"),
    [one for one in TARGETS if AGAINST.search(one[2]["expr"])],
    ids=[f"{n}-{p['title']}-{t['refId']}" for n, p, t in TARGETS if AGAINST.search(t["expr"])],
)
def test_a_panel_shows_what_its_run_is_against_alone(
    world: World, name: str, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    strangers = {
        world.run_id: {world.elsewhere, world.hosts[1], *GPUS[1]}, OTHER: {world.engine, world.hosts[0], *GPUS[0]},
    }  # fmt: skip
    for run_id, others in strangers.items():
        for labels, values in _answers(world, target, run_id):
            assert not {*labels.values()} & others, (name, panel["title"], labels)
            if "server_requests_running" in target["expr"]:
                assert (max(values) >= ELSEWHERE_RUNNING) == (run_id == OTHER)


def test_every_query_of_an_engine_a_host_or_a_gpu_names_it() -> None:
    """But for alerts of lost exporters, and whether our own exporters answer."""
    foreign = re.compile(r"\b(vllm:|tokenswarm:(server|gpu)_|tokenswarm_(gpu|host|process|ollama)_)[\w:]+")
    for name, panel, target in TARGETS:
        bare = re.sub(r'__name__=~"[^"]*"|"metric", "[^"]*"', "", target["expr"])
        for match in foreign.finditer(bare):
            rest = bare[match.end() :]
            named = rest.startswith("{") and AGAINST.search(rest[: rest.index("}")])
            assert named or 'tokenswarm_ollama_target_info{target=~"$engine"}' in bare, (name, panel["title"], match[0])


OURS = "tokenswarm_[a-z_]+_(bucket|sum|count)"


def test_what_is_drawn_from_buckets_is_drawn_from_native_histograms_alone(world: World) -> None:
    """Every target that asks for one of our histograms has an answer where no bucket is stored, and a like one."""
    assert world.natives.query('{__name__=~"tokenswarm_.+_seconds_bucket"}') == {}
    compared, empty, unlike = 0, [], []
    for name, panel, target in TARGETS:
        if not re.search(OURS, target["expr"]) or "vllm:" in target["expr"]:
            continue
        if version() < (3, 0) and "last_over_time" in target["expr"]:  # of a native histogram: before 3 it gives none
            continue
        for run_id in (world.run_id, world.ollama_run_id):
            stored = [_answers(world, target, run_id, server) for server in (world.prometheus, world.natives)]
            rows = [{tuple(sorted(labels.items())) for labels, _ in answers} for answers in stored]
            shared = rows[0] & rows[1] or rows[0] | rows[1]  # what rules record, only the first one has
            # The highest p99 is the worst request of one window, which the other may not have seen begin.
            typical = statistics.median if "(0.99" in target["expr"] else max
            above = 1 if (name, panel["title"]) in SIGNED else 0  # a change is held against the whole
            finite = [
                [value + above for labels, values in answers for value in values
                 if tuple(sorted(labels.items())) in shared and math.isfinite(value)]
                for answers in stored
            ]  # fmt: skip
            high, high_native = (typical(values) if values else None for values in finite)
            where = f"{name}: {panel['title']} {target['refId']}"
            compared += high is not None
            if high is not None and high_native is None:
                empty.append(where)
            elif target.get("format") == "heatmap" or " lag" in panel["title"]:
                continue  # the highest bucket there, all of a histogram here; what a busy machine did in one window
            elif high and high_native and not 0.4 < high_native / high < 2.5:  # scraped at other moments
                unlike.append((where, high, high_native))
    assert (empty, unlike) == ([], [])
    assert compared > 40


def test_the_list_of_empty_targets_names_targets() -> None:
    assert set(EMPTY) <= {(name, panel["title"], target["refId"]) for name, panel, target in TARGETS}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_and_annotations_have_answers(world: World, name: str) -> None:
    variables = world.variables(world.run_id)
    for variable in DASHBOARDS[name]["templating"]["list"]:
        if variable["type"] != "query" or variable["name"] in AGAINST_NAMES:
            continue
        kind, inner = variable["query"]["query"].removesuffix(")").split("(", 1)
        if kind == "label_values":
            metric, wanted = inner.split(", ")
            runs = {dict(labels)[wanted] for labels in world.prometheus.query(metric)}
            assert runs >= {world.run_id, OTHER}
        else:
            started = world.prometheus.value(substitute(inner, variables))
            assert started == pytest.approx(world.begin, abs=0.01)
    for note in DASHBOARDS[name]["annotations"]["list"]:
        data = world.prometheus.api(
            "query_range", query=substitute(note["expr"], variables), start=f"{world.begin - 1:.0f}",
            end=f"{time.time():.0f}", step="1",
        )["result"]  # fmt: skip
        if note["name"] == "Alerts":
            continue
        assert data, note["name"]
        if note.get("useValueForTime"):
            shown = {float(value) / 1000 for one in data for _, value in one["values"]}
            # On a busy machine workers come late, and the program that ran it leaves long after the run's own end.
            load_s = len(USERS) * STAGE_S
            low_s, high_s = {
                "Run end": (world.begin + load_s, world.end), "Stages": (world.begin, world.end - load_s),
            }.get(note["name"], (world.begin, world.begin))  # fmt: skip
            assert any(low_s - 1 < moment < high_s + 1 for moment in shown), (note["name"], low_s, high_s, shown)
        if note["name"] == "Stages":
            marks = {
                one["metric"]["load"].split()[0]: {float(value) / 1000 for _, value in one["values"]}
                for one in data
                if one["metric"]["run_id"] == world.run_id
            }
            assert set(marks) == {str(users) for users in USERS}
            moments = [moment for users in USERS for moment in marks[str(users)]]
            assert len(moments) == len(USERS), "each stage has one mark, however long the range"
            assert all(b - a > STAGE_S for a, b in itertools.pairwise(moments)), moments


# What is drawn


def _panel(name: str, title: str) -> dict[str, Any]:
    (found,) = (panel for panel in panels(DASHBOARDS[name]) if panel["title"] == title)
    return found


def _frame(world: World, name: str, title: str) -> Frame:
    return frames_of(world.prometheus, _panel(name, title), world.variables(world.run_id), world.begin, time.time())


def _points(world: World, name: str, title: str) -> dict[str, list[tuple[float, float]]]:
    return drawn(_panel(name, title), _frame(world, name, title))


def _stages(world: World, x: str, y: str) -> list[tuple[float, float]]:
    def get(stage: dict[str, Any], path: str) -> Any:
        for key in path.split("."):
            stage = stage[key]
        return stage

    pairs = [(get(stage, x), get(stage, y)) for stage in world.summary["stages"]]
    return sorted((a, b) for a, b in pairs if a is not None and b is not None)


def _told(world: World, points: list[tuple[float, float]], x: str, y: str) -> list[tuple[float, float]]:
    """Those of stages whose `y` the report tells: on a busy machine it withholds one that a push had shown before."""
    known = [found for found, _ in _stages(world, x, y)]
    return [point for point in points if any(point[0] == pytest.approx(one, rel=1e-6) for one in known)]


CURVES = {
    "Throughput over concurrency": ("concurrency", "throughput.output_tokens_per_s"),
    "Throughput over requests in flight": ("batch_mean", "throughput.output_tokens_per_s"),
    "Throughput over the engine's batch": ("server.metrics.running.mean", "throughput.output_tokens_per_s"),
    "Energy per token over concurrency": ("concurrency", "gpu.j_per_output_token"),
    "TTFT over throughput": ("throughput.output_tokens_per_s", "latency.ttft_s.p50"),
    "Goodput over concurrency": ("concurrency", "throughput.goodput_ratio"),
}


@pytest.mark.parametrize("title", CURVES)
def test_the_curve_of_the_stages_is_the_one_of_the_summary(world: World, title: str) -> None:
    (points,) = _points(world, "b-throughput-vs-batch", title).values()
    wanted = _stages(world, *CURVES[title])
    assert len(wanted) == len(USERS) or (wanted and "latency" in CURVES[title][1])
    assert _told(world, points, *CURVES[title]) == [pytest.approx(point, rel=1e-6) for point in wanted]


def test_the_speed_of_a_user_is_one_over_the_median_tpot(world: World) -> None:
    (points,) = _points(world, "b-throughput-vs-batch", "Speed of each user over concurrency").values()
    place = ("concurrency", "latency.tpot_s.p50")
    wanted = [(users, 1 / tpot) for users, tpot in _stages(world, *place)]
    assert wanted
    assert _told(world, points, *place) == [pytest.approx(point, rel=1e-6) for point in wanted]


def test_the_stage_table_marks_the_knee(world: World) -> None:
    table = _frame(world, "b-throughput-vs-batch", "Stages")
    assert table["Users"] == list(USERS)
    tokens = [stage["throughput"]["output_tokens_per_s"] for stage in world.summary["stages"]]
    assert table["Output tokens/s"] == [pytest.approx(value, rel=1e-6) for value in tokens]
    knee = next(row for row, value in enumerate(tokens) if value >= 0.9 * max(tokens))
    assert table["Knee"] == [float(row == knee) for row in range(len(USERS))]
    assert list(table)[:3] == ["Stage", "Users", "In flight (mean)"]


@pytest.mark.parametrize(
    "title", ["Throughput over batch, live", "TTFT over batch, live", "Energy per token over batch, live"]
)
def test_the_live_scatter_joins_moments(world: World, title: str) -> None:
    (points,) = _points(world, "b-throughput-vs-batch", title).values()
    assert len(points) >= STAGE_S
    assert max(x for x, _ in points) <= max(USERS)
    assert all(y >= 0 for _, y in points)
    assert len({x for x, _ in points}) > 2, "the batch never changed"


@pytest.mark.skipif(not llamacpp.installed(), reason="xllamacpp is not installed (no wheel for this platform)")
def test_llama_cpp_fills_the_panels_of_the_engine_by_its_own_names(world: World) -> None:
    for record in ("tokenswarm:server_requests_running:sum", "tokenswarm:server_requests_waiting:sum"):
        for job in ("llama-cpp", "vllm"):
            assert world.prometheus.query(f'count_over_time({record}{{job="{job}"}}[1h]) > 0'), (record, job)
    assert world.prometheus.query('max_over_time(tokenswarm:server_requests_running:sum{job="llama-cpp"}[1h]) >= 2')


def test_an_older_engine_fills_the_panel_by_its_old_names(world: World) -> None:
    panel = _panel("a-live", "Prompt tokens from the prefix cache")
    found = _answers(world, panel["targets"][0], OTHER)  # which is against that one
    assert [values[-1] for _, values in found] == [pytest.approx(0.5, abs=0.05)]


@pytest.mark.parametrize("title", ["TTFT", "TPOT"])
def test_the_distributions_of_both_runs_rise_to_one(world: World, title: str) -> None:
    curves = _points(world, "e-compare-runs", title)
    assert set(curves) == {"A", "B"}
    for points in curves.values():
        assert len(points) > 50
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        shares = [y for _, y in points]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)
    place = next(i for i, (_, y) in enumerate(curves["A"]) if y >= 0.5)
    known = world.summary["latency"][f"{title.lower()}_s"]["p50"]  # None: withheld, on a busy machine
    assert known is None or within(known, (curves["A"][place - 1][0] if place else 0.0, curves["A"][place][0]))


def test_both_runs_have_their_stage_curves(world: World) -> None:
    curves = _points(world, "e-compare-runs", "Throughput over concurrency")
    assert sorted(curves["A"]) == [
        pytest.approx(point, rel=1e-6) for point in _stages(world, "concurrency", "throughput.output_tokens_per_s")
    ]
    assert [x for x, _ in curves["B"]] == [4, 8]


def test_the_comparison_tells_run_totals_and_their_change(world: World) -> None:
    table = _frame(world, "e-compare-runs", "Throughput and outcomes")
    rows = {
        name: (table["Run A"][i], table["Run B"][i], table["B against A"][i]) for i, name in enumerate(table["Number"])
    }
    a, b, change = rows["Output tokens"]
    assert a >= world.summary["tokens"]["output"] > 0, "warm-up and drain included"
    assert rows["Requests ok"][0] == world.summary["requests"]["ok"]
    assert change == pytest.approx(b / a - 1)
    latency = _frame(world, "e-compare-runs", "Latency of the whole run")
    known, (bucket, *_) = (
        world.summary["latency"]["ttft_s"]["p50"],
        buckets_of(world.prometheus, "ttft", world.run_id).around(0.5),
    )
    assert known is None or within(known, bucket)  # None: withheld, on a busy machine
    assert within(latency["Run A"][latency["Number"].index("TTFT p50")], bucket)


def test_a_picture_that_is_spoilt_is_noticed(world: World) -> None:
    """The recipes are exact: without the join, or with a wrong column, there is no curve."""
    panel = json.loads(json.dumps(_panel("b-throughput-vs-batch", "Throughput over concurrency")))
    panel["options"]["series"][0]["y"]["matcher"]["options"] = "Value #Z"
    frame = frames_of(world.prometheus, panel, world.variables(world.run_id), world.begin, time.time())
    assert drawn(panel, frame) == {"output tokens/s": []}
    panel["transformations"] = panel["transformations"][1:]
    with pytest.raises(AssertionError, match="of 2 frames"):
        frames_of(world.prometheus, panel, world.variables(world.run_id), world.begin, time.time())
