"""docker-compose.yml and Dockerfile without a daemon: what they promise, that all they name exists, that it starts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_server import free_port, tool

REPO = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((REPO / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (REPO / "Dockerfile").read_text()
PROMETHEUS = yaml.safe_load((REPO / "grafana" / "prometheus.yml").read_text())
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
PINNED = re.compile(r"^[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}$")
NO_HEALTH = {
    "init": "ends at once",
    "ollama-pull": "ends when the model is there",
    "master": "listens for workers only, and ends with the run",
    "master-ollama": "as master",
    "master-vllm": "as master",
    "worker": "has no port; the master and the alerts notice when it is gone",
}


def default(text: str) -> str:
    """What Compose makes of `${NAME:-default}` when the variable is not set, and of `$$`."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert not re.search(r"(?<!\$)\$(?!\$)", text), f"Compose would look for a variable in {text!r}"
    return text.replace("$$", "$")


def command(name: str) -> list[str]:
    return [default(str(word)) for word in SERVICES[name]["command"]]


def words(name: str) -> list[str]:
    """The words of the one command that a service runs at last, without its shell."""
    found = command(name)
    if found[:2] != ["sh", "-ec"]:
        return found
    last = found[2].replace("\\\n", " ").strip().splitlines()[-1]
    return shlex.split(last.removeprefix("exec "))


# What each service promises


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert int(service["user"].split(":")[0]) > 0, "not root"
    assert not service.get("privileged")
    assert "docker.sock" not in str(service.get("volumes"))
    assert service.get("network_mode") in (None, "none")
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_says_how_it_is(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) != (name in NO_HEALTH), NO_HEALTH.get(name, "a health check is missing")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    service = SERVICES[name]
    if name in OURS:
        version = re.search(r'^version = "(.+)"', (REPO / "pyproject.toml").read_text(), re.M)
        assert version is not None
        assert service["image"] == f"tokenswarm:{version.group(1)}"
    else:
        assert PINNED.match(service["image"]), service["image"]


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published), published


def test_services_wait_for_what_they_need() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert (condition == "service_healthy") <= ("healthcheck" in SERVICES[other]), f"{name} waits for ever"
            needed = set(SERVICES[other].get("profiles", service.get("profiles", [])))
            assert needed <= set(service.get("profiles", [])), f"{name} needs {other}, which another profile starts"
        for volume in service.get("volumes", []):
            if volume.split(":")[0] in ("tokens", "grafana-password", "models") and name != "init":
                reached = set(service["depends_on"]) | {
                    far for near in service["depends_on"] for far in SERVICES[near].get("depends_on", {})
                }
                assert "init" in reached, f"{name} reads {volume} before it is filled"


def test_plain_up_needs_no_gpu_and_no_model() -> None:
    plain = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert plain == {
        "init", "sim", "load-exporter", "master", "worker", "host-exporter", "prometheus", "grafana",
    }  # fmt: skip
    assert all("reservations" not in SERVICES[name]["deploy"]["resources"] for name in plain)


def test_results_and_measurements_are_kept_in_volumes() -> None:
    volumes = set(COMPOSE["volumes"])
    used = {
        source
        for service in SERVICES.values()
        for source in (volume.split(":")[0] for volume in service.get("volumes", []))
        if not source.startswith(".")
    }
    assert used == volumes
    assert "results:/results" in SERVICES["master"]["volumes"]
    assert "--results /results" in " ".join(words("master"))


def test_secrets_are_files_and_nobody_is_admin() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            secret = re.search("PASSWORD|TOKEN|SECRET", key)
            assert not secret or (key.endswith("__FILE") and value.startswith("/run/")), f"{name}: {key}"
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_USERS_ALLOW_SIGN_UP"] == "false"
    readers = {n for n, s in SERVICES.items() if any("grafana-password" in v for v in s.get("volumes", []))}
    assert readers == {"init", "grafana"}
    writers = {n for n, s in SERVICES.items() if "tokens:/run/tokenswarm" in s.get("volumes", [])}
    assert writers == {"init"}


def test_grafana_calls_nobody() -> None:
    grafana = SERVICES["grafana"]["environment"]
    for name in ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES", "FEEDBACK_LINKS_ENABLED"):
        assert grafana[f"GF_ANALYTICS_{name}"] == "false"
    assert grafana["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    assert grafana["GF_NEWS_NEWS_FEED_ENABLED"] == "false"
    assert grafana["GF_SECURITY_DISABLE_GRAVATAR"] == "true"
    assert SERVICES["vllm"]["environment"]["VLLM_NO_USAGE_STATS"] == "1"


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    for profile in ("", "ollama", "vllm"):
        told = subprocess.run(
            [docker, "compose", *(["--profile", profile] if profile else []), "config", "-q"],
            cwd=REPO, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr


# What they name exists


def test_every_mounted_file_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (REPO / source).exists(), source
            assert not source.startswith(".") or volume.endswith(":ro"), f"{volume} can be written"


def test_every_host_name_is_a_service() -> None:
    names = set(SERVICES) | {"master"}
    for name in SERVICES:
        for text in map(str, SERVICES[name].get("command", [])):
            for host in re.findall(r"https?://([\w.-]+)", text):
                assert host in names, host
    for job in PROMETHEUS["scrape_configs"]:
        for target in [t for static in job.get("static_configs", []) for t in static["targets"]]:
            assert target.split(":")[0] in names
        for sd in job.get("dns_sd_configs", []):
            assert set(sd["names"]) <= names


def test_prometheus_scrapes_the_ports_that_services_listen_on() -> None:
    ports = {name: re.search(r"--listen \S+:(\d+)|--port (\d+)", " ".join(words(name))) for name in OURS}
    listening = {name: next(filter(None, found.groups())) for name, found in ports.items() if found}
    listening["vllm"] = "8000"
    for job in PROMETHEUS["scrape_configs"]:
        for target in [t for static in job.get("static_configs", []) for t in static["targets"]]:
            assert listening[target.split(":")[0]] == target.split(":")[1]
        for sd in job.get("dns_sd_configs", []):
            assert {listening[name] for name in sd["names"]} == {str(sd["port"])}


def test_prometheus_here_is_the_one_without_docker_but_for_the_addresses() -> None:
    plain = yaml.safe_load((REPO / "configs" / "prometheus" / "prometheus.yml").read_text())
    assert {key: PROMETHEUS[key] for key in ("global", "rule_files")} == {
        key: plain[key] for key in ("global", "rule_files")
    }
    address = {"static_configs", "dns_sd_configs", "file_sd_configs", "authorization", "relabel_configs"}

    def jobs(config: dict[str, Any]) -> list[dict[str, Any]]:
        return [{k: v for k, v in job.items() if k not in address} for job in config["scrape_configs"]]

    assert jobs(PROMETHEUS) == jobs(plain)


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    shutil.copytree(REPO / "configs" / "prometheus" / "rules", tmp_path / "rules")
    (tmp_path / "token").write_text("x")
    text = (REPO / "grafana" / "prometheus.yml").read_text().replace("/run/tokenswarm/push-token", "token")
    (tmp_path / "prometheus.yml").write_text(text)
    told = subprocess.run(
        [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr


# Dockerfile


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_image_is_built_from_pinned_parts() -> None:
    stages = [value for word, value in instructions() if word == "FROM"]
    assert len(stages) == 2
    assert all(PINNED.match(stage.split()[0]) for stage in stages)
    assert stages[0].split()[0] == stages[1], "both stages are the same Python"
    assert "--require-hashes -r requirements.lock" in DOCKERFILE
    runs = " ".join(value for word, value in instructions() if word == "RUN")
    assert not re.search(r"apt|curl|wget|sudo|git ", runs)
    assert "ADD" not in {word for word, _ in instructions()}


def test_the_last_stage_runs_nothing_and_is_not_root() -> None:
    start = max(i for i, (word, _) in enumerate(instructions()) if word == "FROM")
    last = instructions()[start:]
    assert "RUN" not in {word for word, _ in last}
    assert dict(last)["USER"] == SERVICES["master"]["user"] == "10001:10001"
    assert dict(last)["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(dict(last)["CMD"]) == ["tokenswarm", "--help"]


def test_what_is_copied_exists_and_is_in_the_context() -> None:
    allowed = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for word, value in instructions():
        if word == "COPY" and "--from" not in value:
            *sources, _ = value.split()
            copied |= set(sources)
    assert copied == allowed
    assert all((REPO / name).exists() for name in copied)


def test_volumes_have_folders_of_their_user_in_the_image() -> None:
    made = {
        value.split()[-1]
        for word, value in instructions()
        if word == "COPY" and "--chown=10001:10001" in value and "/empty" in value
    }
    wanted = {
        volume.split(":")[1]
        for name in OURS
        for volume in SERVICES[name].get("volumes", [])
        if not volume.startswith(".") and not volume.endswith(":ro")
    }
    assert wanted <= made


def test_a_version_without_a_wheel_fails_the_build_instead_of_being_compiled() -> None:
    assert "PIP_ONLY_BINARY=:all:" in DOCKERFILE


# What they run starts


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
        process.wait(timeout=10)
        assert process.stdout is not None
        process.stdout.close()


def until_up(url: str) -> None:
    end_s = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        assert time.monotonic() < end_s, url
        time.sleep(0.1)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """What stands in a container, and what it is here. The longer name first: they are replaced in this order."""
    for folder in ("tokens", "grafana", "results", "bin"):
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
        "/run/tokenswarm": str(tmp_path / "tokens"),
        "/run/grafana": str(tmp_path / "grafana"),
        "/results": str(tmp_path / "results"),
        "bin": str(tmp_path / "bin"),
    }


def test_the_secrets_are_made_once(paths: dict[str, str], tmp_path: Path) -> None:
    def make() -> dict[str, str]:
        with started("init", paths) as one:
            assert one.wait(timeout=30) == 0
        files = [*(tmp_path / "tokens").iterdir(), *(tmp_path / "grafana").iterdir()]
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
        with urllib.request.urlopen(request, timeout=10) as answer:
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


def test_the_demo_asks_for_the_stages_that_compose_names() -> None:
    """The default of STAGES stands in the shell line, since Compose's own defaults can't hold braces."""
    for name in ("master", "master-vllm"):
        stages = re.search(r'STAGES="(\[.*\])"', command(name)[2])
        assert stages is not None
        users = [stage["users"] for stage in yaml.safe_load(stages.group(1))]
        assert users == sorted(users)
        assert len(users) >= 4
