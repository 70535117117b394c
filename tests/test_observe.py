"""`tokenswarm observe` with real processes: a run shows in Prometheus, every failure leaves the rest, nothing stays."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import nvml_stub
import prometheus_server
import pytest
import yaml
from prometheus_server import Prometheus
from running import Program, children, eventually, program, tokenswarm
from simulator_process import simulator
from small_server import NOT_FOUND, backend

from tokenswarm.commands import observe

MAIN = tokenswarm("observe")
RAN = (0, 11)
"""The run went through; on a busy machine it may be called INVALID, which is not the matter here."""

SMALL = (
    "--set",
    "load.stages=[{users: 2, duration: 2s}]",
    "--set",
    "phases={warmup: 500ms, drain: 10s}",
    "--workers",
    "1",
)
LONG = (
    "--set",
    "load.stages=[{users: 2, duration: 60s}]",
    "--set",
    "phases={warmup: 500ms, drain: 10s}",
    "--workers",
    "1",
)


@contextlib.contextmanager
def taken(*ports: int) -> Iterator[None]:
    """These ports are in use, by us or by somebody else."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                sock.listen()
        yield


def addresses(output: str) -> dict[str, str]:
    """Where Prometheus and those exporters are that did not get their usual port."""
    return dict(re.findall(r"(Prometheus|load|gpu|ollama)(?: exporter)? is at (http://[\d.:]+)", output))


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def end(started: Program, number: int = signal.SIGINT) -> int:
    """Ask for the end, and make sure that no process is left."""
    pids = descendants(started.process.pid)
    started.process.send_signal(number)
    code = started.process.wait(timeout=40)
    assert eventually(lambda: all(is_gone(pid) for pid in pids)), started.output
    return code


def leftovers(home: Path) -> list[Path]:
    return sorted((home / "tmp").iterdir())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def test_a_run_shows_in_prometheus_though_ports_are_taken(home: Path) -> None:
    prometheus_server.tool("prometheus")
    ports = (observe.PROMETHEUS_PORT, *observe.PORTS.values())
    with taken(*ports), program([*MAIN, *SMALL, "--data", "kept"], home, TMPDIR=str(home / "tmp")) as started:
        started.await_output("the run is over", 60)
        where = addresses(started.output)
        assert set(where) == {"Prometheus", "load", "gpu", "ollama"}
        assert not {int(url.rsplit(":", 1)[1]) for url in where.values()} & set(ports)
        server = Prometheus(where["Prometheus"])
        summary = json.loads((home / "results" / "latest" / "summary.json").read_bytes())
        run = f'run_id="{summary["run_id"]}"'
        assert eventually(
            lambda: server.value(f"sum(tokenswarm_requests_total{{{run}}})") == summary["requests"]["sent"]
        )
        assert server.value(f"count(tokenswarm_run_info{{{run}}})") == 1
        jobs = {"tokenswarm-load", "tokenswarm-gpu", "tokenswarm-ollama", "vllm"}
        assert eventually(lambda: {dict(labels)["job"] for labels in server.query("up == 1")} == jobs, 20)
        assert server.query("up == 0") == {}
        assert server.query("vllm:generation_tokens_total")
        assert server.query("tokenswarm_host_cpu_seconds_total")
        assert end(started) in RAN
        assert leftovers(home) == []
        assert (home / "kept" / "wal").is_dir()


def test_without_prometheus_the_run_goes_on(home: Path) -> None:
    with program([*MAIN, *SMALL, "--for", "0s"], home, TMPDIR=str(home / "tmp"), PATH="/nonexistent") as started:
        done = started.finish(60)
    assert done.code in RAN
    assert re.search(
        r"Prometheus is not installed .*; the run goes on, and so do http://127\.0\.0\.1:\d+/metrics", done.out
    )
    assert (home / "results" / "latest" / "summary.json").is_file()
    assert leftovers(home) == []


def test_a_prometheus_that_fails_is_left_out_with_its_words(home: Path) -> None:
    fake = home / "bin" / "prometheus"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'prometheus, version 3.9.1' && exit 0\necho no space\nexit 1\n"
    )
    fake.chmod(0o755)
    path = f"{fake.parent}:/usr/bin:/bin"
    with program([*MAIN, *SMALL, "--for", "0s"], home, TMPDIR=str(home / "tmp"), PATH=path) as started:
        done = started.finish(60)
    assert done.code in RAN
    assert "Prometheus does not start (no space); the run and the exporters go on without it" in done.out


def test_an_interrupt_ends_the_run_in_order(home: Path) -> None:
    with program([*MAIN, *LONG], home, TMPDIR=str(home / "tmp"), PATH="/nonexistent") as started:
        started.await_output("stage 1 steady", 60)
        assert end(started) == 13
        assert "Traceback" not in started.output
    summary = json.loads((home / "results" / "latest" / "summary.json").read_bytes())
    assert summary["partial"] is True
    assert leftovers(home) == []


def test_a_given_host_is_used_and_no_engine_started(home: Path) -> None:
    words = [*SMALL, "--for", "0s", "--dataset-format", "synthetic"]
    with simulator() as engine:
        command = [*MAIN, *words, "--host", engine.url]
        with program(command, home, TMPDIR=str(home / "tmp"), PATH="/nonexistent") as started:
            started.await_output("stage 1 steady", 60)
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(started.process.pid)]
            assert not any(b"simulator" in command for command in commands)
            assert started.finish(60).code in RAN
        assert engine.truth()["totals"]["received"] > 0


@pytest.mark.parametrize("own", [False, True])
def test_a_gpu_of_this_machine_gets_into_the_report(home: Path, own: bool) -> None:
    """Through the real binding and a stand-in for NVIDIA's library; who names other exporters gets those."""
    library = nvml_stub.build(home)
    words = ["--set", "telemetry.gpu_exporters=[]"] if own else []
    where = {"TMPDIR": str(home / "tmp"), "PATH": "/nonexistent", "LD_LIBRARY_PATH": str(library)}
    with program([*MAIN, *SMALL, "--for", "0s", *words], home, **where) as started:
        assert started.finish(60).code in RAN
    summary = json.loads((home / "results" / "latest" / "summary.json").read_bytes())
    assert [gpu["name"] for gpu in summary["gpu"].get("gpus", [])] == ([] if own else ["Stub GPU", "Stub GPU"])


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nothing.yaml"], 15, "nothing.yaml: no such file"),
        (["--for", "soon"], 15, "--for"),
        (["--wrokers", "2"], 15, "--wrokers"),
        (["--set", "load.stagse=[]"], 15, "stagse"),
        (["--api-key", "x"], 15, "secrets don't go on the command line"),
        (["--data", "file"], 16, "file: can't make the folder"),
        (["--results", "file"], 16, "file: can't be written"),
        (["--workers", "many"], 15, "--workers: `workers: many` is not a whole number"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_left(words: list[str], code: int, sentence: str, home: Path) -> None:
    (home / "file").write_text("")
    with program([*MAIN, *words], home, TMPDIR=str(home / "tmp")) as started:
        done = started.finish(30)
    assert done.code == code
    assert sentence in done.out
    assert len(done.out.splitlines()) == 1
    assert leftovers(home) == []


def test_a_run_that_can_not_begin_is_not_stayed_for(home: Path) -> None:
    """There is nothing to see; it waited for Ctrl-C, and a script with it."""
    words = ("--host", "http://127.0.0.1:1", "--set", "engine.model=m")
    with program([*MAIN, *words], home, TMPDIR=str(home / "tmp"), PATH="/nonexistent") as started:
        done = started.finish(15)
    assert done.code == 14, done.out
    assert "stays up" not in done.out
    assert leftovers(home) == []


def test_options_of_a_run_are_passed_on(tmp_path: Path) -> None:
    own = tmp_path / "p.yaml"
    own.write_text("dataset: {format: synthetic}")
    wanted = observe.parse(["--workers", "3", "--for", "2m", "--set", "name=x", str(own), "--host", "http://h:1"])
    passed = ["--results", "results", "--workers", "3", "--set", "name=x"]
    assert wanted == observe.Wanted(str(own), "http://h:1", None, 120.0, passed)
    load = ["--rate", "20", "--duration", "3s", "--arrivals", "constant"]
    assert set(load) <= set(observe.parse(load).words)
    assert observe.parse(["--users", "2"]).words[:2] == ["--users", "2"]
    demo = observe.parse([])
    assert demo.profile.endswith("configs/profiles/demo.yaml")
    assert demo.words == ["--results", "results"]
    assert (demo.host, demo.data, demo.keep_s) == (None, None, None)


@pytest.mark.parametrize(("version", "native"), [((2, 42), False), ((3, 7), False), ((3, 8), True), ((4, 0), True)])
def test_the_configuration_has_the_addresses(version: tuple[int, int], native: bool, tmp_path: Path) -> None:
    found = {"load": "http://127.0.0.1:1111", "gpu": "http://127.0.0.1:2222"}
    path = observe.configure(tmp_path / "made", version, found, "http://127.0.0.1:9")
    jobs = {job["job_name"]: job for job in yaml.safe_load(path.read_text())["scrape_configs"]}
    assert jobs["tokenswarm-load"]["static_configs"] == [{"targets": ["127.0.0.1:1111"]}]
    assert jobs["tokenswarm-gpu"]["static_configs"] == [{"targets": ["127.0.0.1:2222"]}]
    assert ("scrape_native_histograms" in jobs["tokenswarm-load"]) == native
    assert list((tmp_path / "made" / "rules").glob("*.yml"))


@pytest.mark.parametrize(
    ("at", "page", "file"),
    [
        ("/metrics", b"vllm:num_requests_running 0\n", "vllm.yml"),
        ("/metrics", b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 0\n", "engine.yml"),
        ("/prometheus/metrics", b"trtllm_num_requests_running 0\n", "engine.yml"),
        ("/metrics", b"somebody_elses 0\n", None),
    ],
)
def test_the_engine_is_scraped_where_its_metrics_are(at: str, page: bytes, file: str | None, tmp_path: Path) -> None:
    with backend(lambda asked: (200, {}, page) if asked.path == at else NOT_FOUND) as engine:
        path = observe.configure(tmp_path / "made", (2, 42), {}, f"{engine.url}/v1")
    written = {one.name: yaml.safe_load(one.read_text()) for one in (path.parent / "targets").glob("*.yml")}
    labels = {"role": "engine", "__scheme__": "http", "__metrics_path__": at}
    expected = {} if file is None else {file: [{"targets": [engine.url.removeprefix("http://")], "labels": labels}]}
    assert written == expected
