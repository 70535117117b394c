"""Start an exporter as its users do, wait for its one line, scrape it, and make sure that it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import tool

REPO = Path(__file__).resolve().parent.parent

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Exporter:
    """A running exporter. `url` is its /metrics."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    def text(self, **headers: str) -> str:
        request = urllib.request.Request(self.url, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())

    def samples(self, *starts: str) -> Samples:
        """Of the page, or of its lines that begin so: to parse all of several runs takes half a second."""
        text = self.text()
        return parse("".join(line for line in text.splitlines(True) if line.startswith(starts)) if starts else text)

    def wait_for(self, condition: Callable[[Samples], object], *starts: str, within_s: float = 60.0) -> Samples:
        """Scrape until the condition holds; the samples for which it did."""
        end_s = time.monotonic() + within_s
        while not condition(samples := self.samples(*starts)):
            assert time.monotonic() < end_s, f"not within {within_s} s; there is {sorted(names(samples))}"
            time.sleep(0.05)
        return samples

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def parse(text: str) -> Samples:
    """Every sample of a page; a sample that comes twice is a failure, as it is for Prometheus."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} comes twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """The value of one series; None if it is absent."""
    return samples.get((name, tuple(sorted(labels.items()))))


def names(samples: Samples) -> set[str]:
    return {name for name, _labels in samples}


@contextlib.contextmanager
def running(module: str, *args: str, env: dict[str, str] | None = None) -> Iterator[Exporter]:
    """`python -m exporters.MODULE --listen 127.0.0.1:0 …`, ended at the end whatever happens."""
    command = [sys.executable, "-m", f"exporters.{module}", "--listen", "127.0.0.1:0", *args]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http"), f"{line!r} {process.stderr.read() if not line else ''}"
        yield Exporter(process, line.split()[-1])
    finally:
        process.kill()
        process.wait(timeout=60)
        process.stdout.close()
        process.stderr.close()


def run(module: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run an exporter that is expected to end by itself."""
    command = [sys.executable, "-m", f"exporters.{module}", *args]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=90, check=False)


def promtool_findings(text: str) -> str:
    """What promtool has to say about a page: nothing, if it is well-formed and well-named."""
    told = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    return told.stdout + told.stderr + ("" if told.returncode == 0 else f"exit {told.returncode}")
