"""docker-compose.yml and Dockerfile without a daemon: what they promise, and that all they name exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_file import COMPOSE, OURS, REPO, SERVICES, words
from prometheus_server import tool

DOCKERFILE = (REPO / "Dockerfile").read_text()
PROMETHEUS = yaml.safe_load((REPO / "grafana" / "prometheus.yml").read_text())
PINNED = re.compile(r"^[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}$")
NO_HEALTH = {
    "init": "ends at once",
    "ollama-pull": "ends when the model is there",
    "master": "listens for workers only, and ends with the run",
    "master-ollama": "as master",
    "master-vllm": "as master",
    "worker": "has no port; the master and the alerts notice when it is gone",
}


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
            if how.get("required") is False:
                continue  # waited for where its profile is on
            assert needed <= set(service.get("profiles", [])), f"{name} needs {other}, which another profile starts"
        for volume in service.get("volumes", []):
            if volume.split(":")[0] in ("tokens", "run-token", "grafana-password", "models") and name != "init":
                reached = set(service["depends_on"]) | {
                    far for near in service["depends_on"] for far in SERVICES[near].get("depends_on", {})
                }
                assert "init" in reached, f"{name} reads {volume} before it is filled"


def test_a_stop_reaches_the_master_while_its_workers_live_and_up_master_starts_them() -> None:
    for name in (name for name in SERVICES if name.startswith("master")):
        assert SERVICES[name]["depends_on"]["worker"] == {"condition": "service_started"}, name
    assert not [other for other in SERVICES["worker"]["depends_on"] if other.startswith("master")]


def test_workers_wait_for_a_model_however_long_it_takes() -> None:
    waits = SERVICES["worker"]["depends_on"]
    assert waits["vllm"] == {"condition": "service_healthy", "required": False}
    assert waits["ollama-pull"] == {"condition": "service_completed_successfully", "required": False}


def test_engines_have_no_cpu_limit_unless_the_user_sets_one() -> None:
    """More CPUs than the machine has are refused by Docker; a quota below its cores stalls llama.cpp's threads."""
    for name in ("ollama", "vllm"):
        assert SERVICES[name]["deploy"]["resources"]["limits"]["cpus"] == "${ENGINE_CPUS:-0}"


def test_the_image_is_built_once() -> None:
    assert [name for name, service in SERVICES.items() if "build" in service] == ["init"]
    assert all("init" in SERVICES[name]["depends_on"] for name in OURS if name != "init"), "so it is there by then"


def test_only_those_who_join_a_run_can_read_its_token() -> None:
    readers = {n for n, s in SERVICES.items() if any(v.startswith("run-token:") for v in s.get("volumes", []))}
    assert readers == {"init", "worker", "master", "master-ollama", "master-vllm"}
    users = {name: SERVICES[name]["user"] for name in OURS}
    sees_processes = {name for name in OURS if SERVICES[name].get("pid") == "host"}
    assert sees_processes == {"host-exporter", "gpu-exporter"}
    assert all(users[name] not in {users[reader] for reader in readers} for name in sees_processes)


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
    for mount in ("tokens:/run/tokenswarm", "run-token:/run/tokenswarm-run"):
        assert {n for n, s in SERVICES.items() if mount in s.get("volumes", [])} == {"init"}


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


def instances() -> set[str]:
    """Label `instance` of all that is found by its name, as Prometheus relabels it."""
    found = set()
    for job in PROMETHEUS["scrape_configs"]:
        for sd in job.get("dns_sd_configs", []):
            for name in sd["names"]:
                labels = {"__meta_dns_name": name, "__address__": f"172.18.0.3:{sd['port']}"}
                for rule in job["relabel_configs"]:
                    text = ";".join(labels[label] for label in rule["source_labels"])
                    if match := re.fullmatch(rule.get("regex", "(.*)"), text):
                        labels[rule["target_label"]] = match.expand(rule.get("replacement", "$1").replace("$", "\\"))
                found.add(labels["instance"])
    return found


def test_what_a_run_calls_its_engine_is_what_prometheus_calls_it() -> None:
    """Else the dashboards, which ask for what the run names, have no engine and no machine."""
    for name in ("master", "master-vllm"):
        told = " ".join(words(name))
        assert set(re.findall(r"(?:--host |gpu_exporters=\[)http://([\w.:-]+)", told)) <= instances(), told
    assert {"sim:8000", "vllm:8000", "gpu-exporter:9647"} <= instances()


def test_a_run_with_a_gpu_reads_its_exporter() -> None:
    told = " ".join(words("master-vllm"))
    assert "telemetry.gpu_exporters=[http://gpu-exporter:9647]" in told
    assert "telemetry.gpu_token_env=TOKENSWARM_PUSH_TOKEN" in told


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
    compiler, *rest = [value for word, value in instructions() if word == "RUN"]
    assert re.findall(r"install (?:--\S+ )*([\w -]+?) &&", compiler) == ["gcc libc6-dev"]
    runs = " ".join(rest)
    assert not re.search(r"apt|curl|wget|sudo|git ", runs)
    assert "ADD" not in {word for word, _ in instructions()}


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    """The linter's own rules, all of them; it is in the extra `dev`."""
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("hadolint is not installed")
        pytest.skip("hadolint is not installed (extra dev)")

    def lint(path: Path) -> str:
        told = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60, check=False)
        return told.stdout + told.stderr

    assert lint(REPO / "Dockerfile") == ""
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(DOCKERFILE.replace("USER 10001:10001", "USER root"))
    assert "DL3002" in lint(spoilt), "it does look"


def test_the_last_stage_runs_nothing_and_is_not_root() -> None:
    start = max(i for i, (word, _) in enumerate(instructions()) if word == "FROM")
    last = instructions()[start:]
    assert "RUN" not in {word for word, _ in last}
    assert dict(last)["USER"] == SERVICES["master"]["user"] == "10001:10001"
    assert dict(last)["STOPSIGNAL"] == "SIGTERM"
    assert "VOLUME" not in dict(last), "each container would leave an anonymous one"
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
