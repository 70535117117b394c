"""Locust's web UI starts and stops runs, has a tab of token latencies, and Locust's own rows stay as they are."""

from __future__ import annotations

import json
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from running import SAMPLES, eventually, free_port, locust, program, run
from simulator_process import simulator


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=90) as answer:
        return answer.read().decode()


def post(url: str, **form: str | list[str]) -> dict[str, Any]:
    data = urllib.parse.urlencode(form, doseq=True).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=90) as answer:
        return json.load(answer)


def log_and_exceptions(base: str) -> tuple[str, list[str]]:
    """What the page shows in its tabs LOGS and EXCEPTIONS."""
    logs = json.loads(get(f"{base}/logs"))
    return json.dumps(logs), [row["msg"] for row in json.loads(get(f"{base}/exceptions"))["exceptions"]]


def test_the_page_says_why_a_run_did_not_begin_and_changed_users_are_a_doubt(tmp_path: Path) -> None:
    port, nobody = str(free_port()), f"http://127.0.0.1:{free_port()}"
    base = f"http://127.0.0.1:{port}"
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as engine:
        words = ("--web-host", "127.0.0.1", "--web-port", port, "--max-tokens", "10", "--warmup", "1s")
        with program(locust("chat.py", *words, "--dataset", str(SAMPLES / "sharegpt.json")), tmp_path) as started:
            started.await_output("Starting web interface")
            assert eventually(lambda: reached(base), 20)
            post(f"{base}/swarm", user_count="3", spawn_rate="3", host=nobody)
            assert eventually(lambda: log_and_exceptions(base)[1] != [], 30), started.output
            logs, (said,) = log_and_exceptions(base)
            post(f"{base}/swarm", user_count="3", spawn_rate="3", host=engine.url)
            started.await_output("steady, 3 users")
            post(f"{base}/swarm", user_count="6", spawn_rate="6", host=engine.url)
            started.await_output("users were changed to 6")
            post(f"{base}/stop")
            started.await_output("verdict: ")
            assert eventually(lambda: "the run is over: INVALID" in log_and_exceptions(base)[0]), started.output

    assert nobody in said
    assert nobody in logs
    (path,) = (tmp_path / "results").glob("2*/summary.json")
    doubts = {doubt["code"]: doubt for doubt in json.loads(path.read_bytes())["verdict"]["doubts"]}
    assert doubts["users-changed"]["evidence"]["changed"] == {"0": [3, 6]}


def reached(base: str) -> bool:
    try:
        return bool(get(base))
    except OSError:
        return False


def test_two_runs_from_the_web_ui(tmp_path: Path) -> None:
    port = str(free_port())
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as engine:
        words = (
            "--web-host",
            "127.0.0.1",
            "--web-port",
            port,
            "--host",
            engine.url,
            "--max-tokens",
            "10",
            "--warmup",
            "1s",
        )
        with program(locust("chat.py", *words, "--dataset", str(SAMPLES / "sharegpt.json")), tmp_path) as started:
            started.await_output("Starting web interface")
            assert eventually(lambda: reached(f"http://127.0.0.1:{port}"), 20)
            page = get(f"http://127.0.0.1:{port}/")
            counts = []
            for _ in range(2):
                before = len(started.output)
                assert post(f"http://127.0.0.1:{port}/swarm", user_count="5", spawn_rate="5", host=engine.url)[
                    "success"
                ]
                assert eventually(lambda: "steady, 5 users" in started.output[before:], 90), started.output  # noqa: B023
                time.sleep(3)
                stats = json.loads(get(f"http://127.0.0.1:{port}/stats/requests"))
                post(f"http://127.0.0.1:{port}/stop")
                assert eventually(lambda: "verdict: " in started.output[before:], 90), started.output  # noqa: B023
                time.sleep(3.5)  # Locust keeps this answer for 2 s; and 3 s of a worker's silence in a run are told
                counts.append(
                    int(json.loads(get(f"http://127.0.0.1:{port}/stats/requests"))["stats"][-1]["num_requests"])
                )
            results = sorted((tmp_path / "results").glob("2*/summary.json"))
            total = engine.truth()["totals"]["received"]

    assert "Token latency" in page
    table = {row["name"]: row for row in stats["extended_stats"][0]["data"]}
    assert {"ttft", "itl", "tpot", "e2e"} <= set(table)
    assert 0.015 < table["ttft"]["p50"] / 1000 < 5, "milliseconds, as Locust's tables have"
    assert {row["name"] for row in stats["stats"]} == {"sim", "Aggregated"}
    summaries = [json.loads(path.read_bytes()) for path in results]
    assert [summary["partial"] for summary in summaries] == [False, False], started.output[-3000:]
    told = {doubt["code"] for summary in summaries for doubt in summary["verdict"]["doubts"]}
    assert "worker-silent" not in told, "between two runs it has nothing to say"
    assert [summary["requests"]["sent"] for summary in summaries] == counts
    manifests = [json.loads(path.with_name("manifest.json").read_bytes()) for path in results]
    assert sum(counts) == total - sum(one["requests"] for m in manifests for one in m["engine"]["probes"])


@pytest.mark.parametrize("autoquit", ["0", "1"])
def test_a_run_that_starts_by_itself_quits_by_itself(autoquit: str, tmp_path: Path) -> None:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "5") as engine:
        words = (
            "--autostart",
            "--autoquit",
            autoquit,
            "--web-port",
            str(free_port()),
            "--host",
            engine.url,
            "-t",
            "2s",
        )
        finished = run(locust("chat.py", *words, "--dataset", str(SAMPLES / "sharegpt.json")), tmp_path)

    assert finished.went_well, finished.out
    assert "Traceback" not in finished.out


def test_a_port_of_the_web_ui_that_is_taken_is_15(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        finished = run(locust("chat.py", "--web-port", port, "--host", "http://127.0.0.1:9"), tmp_path)

    assert (finished.code, "Traceback" in finished.out) == (15, False), finished.out
    assert f"can't listen on 127.0.0.1:{port}: something else listens there" in finished.out
