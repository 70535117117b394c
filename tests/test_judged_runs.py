"""Runs against servers that hang, refuse, or hold answers back: what the gates and the verdict of a whole run say."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import SAMPLES, Finished, free_port, program, run, tokenswarm
from simulator_process import simulator
from small_server import GOOD, MODELS, backend, refusal

from tokenswarm.cluster.look import look_again
from tokenswarm.measure.periods import Periods
from tokenswarm.measure.snapshot import Block, Merged
from tokenswarm.profile import profile

PROFILE = """
target: http://127.0.0.1:1
engine: {model: sim}
dataset: {path: %s, output_tokens: {max: 20}}
load: {stages: [{users: 10, duration: 4s}]}
phases: {warmup: 0s, drain: 1s}
timeouts: {idle_token: 60s, first_token: 60s}
"""


def judged(url: str, home: Path, slo: str = "") -> Finished:
    (home / "profile.yaml").write_text(PROFILE % (SAMPLES / "sharegpt.json") + slo, encoding="utf-8")
    return run(tokenswarm("run", str(home / "profile.yaml"), "--host", url, "--workers", "1"), home)


def gates(finished: Finished) -> dict[str, str]:
    return {gate["metric"]: gate["result"] for gate in finished.summary["gates"]}


def doubt(finished: Finished, code: str) -> dict[str, Any]:
    return next(doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == code)


@pytest.mark.parametrize(("share", "result", "code"), [("0.1", "inconclusive", {11, 12}), ("1", "fail", {11})])
def test_a_gate_on_failures_does_not_pass_while_answers_hang(
    share: str, result: str, code: set[int], tmp_path: Path
) -> None:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "2", "--fault", f"stall:{share}:0") as server:
        finished = judged(server.url, tmp_path, "slo: {failed_ratio: 0.01, goodput_ratio: 0.5}\n")
    assert finished.summary["requests_steady"]["failed"] == 0
    assert finished.summary["requests"]["censored"] > 0
    assert gates(finished)["failed_ratio"] == result
    assert finished.code in code


def test_refusals_are_a_doubt_with_the_servers_words(tmp_path: Path) -> None:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "2", "--fault", "http_503:0.3") as server:
        finished = judged(server.url, tmp_path)
    found = doubt(finished, "failures")
    assert found["severity"] == "degraded"
    assert found["evidence"]["failed"] == finished.summary["requests_steady"]["failed"] > 0
    assert "http_5xx" in found["message"]
    assert "currently busy" in found["message"]


@pytest.mark.parametrize("back", [False, True])
def test_a_server_that_dies_in_the_last_second_is_no_server_to_go_on_with(back: bool, tmp_path: Path) -> None:
    """What was measured before hides it; one that is there again was away, and no more."""
    (tmp_path / "p.yaml").write_text(PROFILE % (SAMPLES / "sharegpt.json"), encoding="utf-8")
    words, port = ("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "2"), free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(simulator(*words, "--port", str(port)))
        started = stack.enter_context(program(tokenswarm("run", "p.yaml", "--host", server.url), tmp_path))
        started.await_output("stage 1 steady")
        time.sleep(1 if back else 3)
        server.process.kill()
        server.process.wait()
        if back:
            stack.enter_context(simulator(*words, "--port", str(port)))
        finished = started.finish(60)
    assert ("server-gone" in finished.doubts()) == (not back), finished.out
    if not back:
        assert finished.code == 11
        assert doubt(finished, "server-gone")["message"].startswith(
            f"The server is not there any more: behind the run, {server.url}: "
        )


def test_a_gateway_is_asked_for_its_engine_where_nothing_succeeded_at_the_end() -> None:
    def run_of(**bins: int) -> Merged:
        block = Block(stage=0, phase="steady", ok=9, failed=9)
        block.periods = Periods(ended={0: 9, 1: 9}, failed={bins["at"]: 9})
        return Merged(run_id="r", blocks=[block])

    with backend(lambda asked: MODELS if asked.method == "GET" else refusal(502, {"error": "no engine"})) as server:
        asked = profile.load(f"target: {server.url}\ndataset: {{format: synthetic}}\nengine: {{model: m}}\n", "p.yaml")
        assert look_again(asked, run_of(at=0)) == ""
        assert server.asked == []
        assert look_again(asked, run_of(at=1)) == f"{server.url}: HTTP 502: no engine"


BODIES: list[dict[str, Any]] = []


class OneWrite(socketserver.StreamRequestHandler):
    """An OpenAI server behind which a proxy holds each answer back until it is whole."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            path, length = line.split()[1], 0
            while (header := self.rfile.readline()).strip():
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = self.rfile.read(length)
            if body:
                BODIES.append(json.loads(body))
            self.wfile.write(models() if path == b"/v1/models" else answer())


def models() -> bytes:
    return http(b'{"object":"list","data":[{"id":"sim"}]}', b"application/json")


def answer() -> bytes:
    deltas = [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}] * 10
    events = [{"choices": [delta]} for delta in deltas]
    events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}]
    events += [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}}]
    body = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    return http(body, b"text/event-stream")


def http(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (kind, len(body), body)


@pytest.fixture
def one_write() -> Iterator[str]:
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True
        request_queue_size = socket.SOMAXCONN

    with Server(("127.0.0.1", 0), OneWrite) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_answers_in_one_read_have_no_pace_and_pass_no_limit_on_it(one_write: str, tmp_path: Path) -> None:
    finished = judged(one_write, tmp_path, "slo: {tpot_s: {p50: 0.5}, itl_s: {p99: 0.5}, stall_s: {max: 5}}\n")
    summary = finished.summary
    steady = summary["requests_steady"]["ok"]
    assert steady > 50
    assert summary["tokens"]["one_read"] == steady
    for metric in ("tpot_s", "itl_s", "stall_s"):
        assert summary["latency"][metric]["n"] == 0
        assert summary["latency"][metric]["mean"] is None
    assert set(gates(finished).values()) == {"fail"}
    assert finished.code == 10
    assert {row["tpot_s"] for row in finished.rows if row["outcome"] == "ok"} == {None}
    assert doubt(finished, "merged-events")["evidence"]["one_read"] == steady
    assert "0.00ms" not in finished.out


def test_the_bound_is_sent_for_rows_without_a_length_and_they_may_end_before_it(one_write: str, tmp_path: Path) -> None:
    """`ignore_eos` would make each of them as long as the bound."""
    texts = [
        {"prompt": "no length"},
        {"prompt": "stated", "output_tokens": 7.0},
        {"prompt": "beyond", "max_tokens": "99"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    (tmp_path / "profile.yaml").write_text((PROFILE % "rows.jsonl").replace("4s", "1s"), encoding="utf-8")
    del BODIES[:]
    run(tokenswarm("run", str(tmp_path / "profile.yaml"), "--host", one_write, "--workers", "1"), tmp_path)
    sent = {
        (body["messages"][-1]["content"], body["max_tokens"], body.get("ignore_eos") is True)
        for body in BODIES
        if body["messages"][-1]["content"] in {row["prompt"] for row in texts}
    }
    assert sent == {("no length", 20, False), ("stated", 7, True), ("beyond", 20, True)}


@pytest.mark.parametrize(
    ("load", "roles"), [(("--users", "1"), ["user", "assistant", "user"]), (("--rate", "10"), ["user"])]
)
def test_where_the_data_set_has_no_answers_the_models_own_stand_in_the_history(
    tmp_path: Path, load: tuple[str, str], roles: list[str]
) -> None:
    (tmp_path / "q.jsonl").write_text('{"turns": ["A?", "B?"]}\n' * 3)
    words = ("--dataset", "q.jsonl", "--max-tokens", "2", "--requests", "4", "--no-probe")
    with backend(lambda asked: MODELS if asked.method == "GET" else GOOD) as server:
        finished = run(tokenswarm("run", "--host", server.url, *load, *words), tmp_path)
    told = [one.json["messages"] for one in server.posts("/chat/completions")]
    assert [message["role"] for message in told[1]] == roles
    if len(roles) > 1:
        assert told[1][1]["content"] == "Hi you"
    (doubt,) = (doubt for doubt in finished.summary["verdict"]["doubts"] if doubt["code"] == "history-without-answers")
    assert doubt["message"].startswith("3 of 3 conversations have no answers to earlier turns")
