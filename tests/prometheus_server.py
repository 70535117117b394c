"""Prometheus on a free port with a folder of its own, for as long as a test needs it.

Debian's, or with TOKENSWARM_PROMETHEUS=FOLDER (see conftest.py) the one there: any from 2.42 on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import free_port

Labels = tuple[tuple[str, str], ...]


def tool(name: str) -> str:
    """The path of a program of Debian's package prometheus; without it the test skips, on CI it fails."""
    found = shutil.which(name)
    if found is None:
        sentence = f"{name} is not installed (Debian package prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def version() -> tuple[int, int]:
    """That of the program here: 2.42 in Debian 12."""
    told = subprocess.run([tool("prometheus"), "--version"], capture_output=True, text=True, timeout=30, check=True)
    found = re.search(r"version (\d+)\.(\d+)", told.stdout + told.stderr)
    assert found is not None
    return int(found[1]), int(found[2])


def natives_only(config: dict[str, Any]) -> tuple[str, ...]:
    """Have it keep native histograms and no classic ones: by a setting of `config` since 3.8, by these flags before."""
    if version() < (3, 8):
        return ("--enable-feature=native-histograms",)
    config["global"]["scrape_native_histograms"] = True
    return ()


class Prometheus:
    """A running server; `query` asks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def api(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> dict[Labels, float]:
        """An instant query: value by labels, without the name."""
        found = self.api("query", query=expr)["result"]
        return {
            tuple(sorted((k, v) for k, v in one["metric"].items() if k != "__name__")): float(one["value"][1])
            for one in found
        }

    def value(self, expr: str) -> float | None:
        """The value of a query that gives one series; None where it gives none."""
        found = self.query(expr)
        assert len(found) <= 1, found
        return next(iter(found.values()), None)

    def wait_for(self, expr: str, within_s: float = 60.0) -> dict[Labels, float]:
        end_s = time.monotonic() + within_s
        while not (found := self.query(expr)):
            assert time.monotonic() < end_s, f"{expr} has no data; targets: {self.api('targets')['activeTargets']}"
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def serving(folder: Path, config: dict[str, Any], *flags: str) -> Iterator[Prometheus]:
    """Prometheus with this configuration, its data under `folder`."""
    program = tool("prometheus")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program,
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
        *flags,
    ]
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    server = Prometheus(f"http://127.0.0.1:{port}")
    try:
        end_s = time.monotonic() + 90
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{server.url}/-/ready", timeout=5).close()
                break
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait(timeout=60)
