"""The commands of docker-compose.yml as processes here: hosts, ports and folders replaced, nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from compose_file import OURS, REPO, SERVICES, command, default, words
from prometheus_server import free_port


def test_every_option_of_every_command_is_known() -> None:
    for name in OURS:
        found = words(name)
        if name == "init":
            continue
        program = ["-m", "tokenswarm.cli"] if found[0] == "tokenswarm" else found[1:3]
        rest = found[1:] if found[0] == "tokenswarm" else found[3:]
        head = [rest[0]] if found[0] == "tokenswarm" else []
        told = subprocess.run(
            [sys.executable, *program, *head, "--help"],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert told.returncode == 0, told.stderr
        for option in (word for word in rest if word.startswith("--")):
            assert re.search(rf"{option}\b", told.stdout), f"{name}: {option}"


@contextlib.contextmanager
def started(name: str, paths: dict[str, str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    """The command of a service as a process here: hosts, ports and folders replaced, this Python first in PATH."""
    line = command(name)
    for old, new in (pair for pair in paths.items() if pair[0] != "bin"):
        line = [word.replace(old, new) for word in line]
    assert not re.search(r"[\s\"]/(run|results)|0\.0\.0\.0", " ".join(line)), line
    environment = {key: default(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}
    environment |= {"PATH": f"{paths['bin']}:{os.environ['PATH']}", "PYTHONPATH": str(REPO), **environ}
    process = subprocess.Popen(
        line, cwd=REPO, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        assert process.stdout is not None
        process.stdout.close()


def until_up(url: str) -> None:
    end_s = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        assert time.monotonic() < end_s, url
        time.sleep(0.1)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """What stands in a container, and what it is here. The longer name first: they are replaced in this order."""
    for folder in ("tokens", "run-token", "grafana", "results", "bin"):
        (tmp_path / folder).mkdir()
    # Not links: Python would look for its packages beside the link.
    for name, module in (("python", ""), ("tokenswarm", " -m tokenswarm.cli")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        script.chmod(0o755)
    sim, exporter, master = free_port(), free_port(), free_port()
    return {
        "0.0.0.0:9646": f"127.0.0.1:{exporter}",
        "load-exporter:9646": f"127.0.0.1:{exporter}",
        "sim:8000": f"127.0.0.1:{sim}",
        "8000": str(sim),
        "0.0.0.0:5557": f"127.0.0.1:{master}",
        "--master-host master --master-port 5557": f"--master-host 127.0.0.1 --master-port {master}",
        "0.0.0.0": "127.0.0.1",
        "/run/tokenswarm-run": str(tmp_path / "run-token"),
        "/run/tokenswarm": str(tmp_path / "tokens"),
        "/run/grafana": str(tmp_path / "grafana"),
        "/results": str(tmp_path / "results"),
        "bin": str(tmp_path / "bin"),
    }


def test_the_secrets_are_made_once(paths: dict[str, str], tmp_path: Path) -> None:
    def make() -> dict[str, str]:
        with started("init", paths) as one:
            assert one.wait(timeout=30) == 0
        files = [
            *(tmp_path / "tokens").iterdir(),
            *(tmp_path / "run-token").iterdir(),
            *(tmp_path / "grafana").iterdir(),
        ]
        assert all(path.stat().st_mode & 0o777 == 0o444 for path in files)
        return {path.name: path.read_text() for path in files}

    first = make()
    assert set(first) == {"push-token", "run-token", "admin-password"}
    assert len(set(first.values())) == 3
    assert all(len(secret) >= 32 for secret in first.values())
    assert make() == first


def test_plain_up_gives_a_run(paths: dict[str, str], tmp_path: Path) -> None:
    """The commands of docker compose up, in its order, worker before master: a run that pushes, ends and is kept."""
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(started("init", paths)).wait(timeout=30) == 0
        stack.enter_context(started("sim", paths))
        stack.enter_context(started("load-exporter", paths))
        until_up(f"http://{paths['sim:8000']}/health")
        until_up(f"http://{paths['load-exporter:9646']}/healthz")
        worker = stack.enter_context(started("worker", paths))
        short = "[{users: 1, duration: 3s}, {users: 4, duration: 3s}]"
        master = stack.enter_context(started("master", paths, STAGES=short))
        said, _ = master.communicate(timeout=90)
        assert master.returncode == 0, said
        assert worker.wait(timeout=30) == 0
        token = (tmp_path / "tokens" / "push-token").read_text()
        request = urllib.request.Request(
            f"http://{paths['load-exporter:9646']}/metrics", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            page = answer.read().decode()
    summary = json.loads((tmp_path / "results" / "latest" / "summary.json").read_text())
    assert [stage["concurrency"] for stage in summary["stages"]] == [1, 4]
    assert f'run_id="{summary["run_id"]}"' in page
    assert "tokenswarm_stage_batch{" in page


@pytest.mark.parametrize("name", ["host-exporter", "gpu-exporter", "ollama-exporter"])
def test_an_exporter_starts(name: str, paths: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    where = {"0.0.0.0:9647": f"127.0.0.1:{port}", "0.0.0.0:9648": f"127.0.0.1:{port}", **paths}
    (tmp_path / "tokens" / "push-token").write_text("secret")
    with started(name, where):
        until_up(f"http://127.0.0.1:{port}/healthz")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, "demo.yaml"),
        ({"STAGES": "[{users: 3, duration: 1s}]"}, "[{users: 3, duration: 1s}]"),
        ({"PROFILE": "configs/profiles/smoke.yaml"}, None),
    ],
)
@pytest.mark.parametrize("name", ["master", "master-vllm", "master-ollama"])
def test_only_the_demo_gets_stages_that_its_profile_does_not_name(
    name: str, environ: dict[str, str], wanted: str | None, paths: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "run-token" / "run-token").write_text("x")
    (tmp_path / "tokens" / "push-token").write_text("x")
    (tmp_path / "bin" / "tokenswarm").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    if name == "master-ollama" and not environ:
        wanted = None  # its profile has stages of its own
    with started(name, {"vllm:8000": "x", **paths}, **environ) as process:
        told = process.communicate(timeout=60)[0].splitlines()
    stages = [word.removeprefix("load.stages=") for word in told if word.startswith("load.stages=")]
    assert told[0] == "run"
    if wanted is None:
        assert stages == []
        assert told[-2:] == ["--results", str(tmp_path / "results")]
    else:
        assert len(yaml.safe_load(stages[0])) >= (4 if wanted == "demo.yaml" else 1)
        assert wanted == "demo.yaml" or stages == [wanted]


def test_the_demo_asks_for_the_stages_that_compose_names() -> None:
    """The default of STAGES stands in the shell line, since Compose's own defaults can't hold braces."""
    for name in ("master", "master-vllm"):
        stages = re.search(r'STAGES="(\[.*\])"', command(name)[2])
        assert stages is not None
        users = [stage["users"] for stage in yaml.safe_load(stages.group(1))]
        assert users == sorted(users)
        assert len(users) >= 4
