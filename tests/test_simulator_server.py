"""The running server: the truth against what raw clients received, /metrics against the truth, disconnects, signals."""

from __future__ import annotations

import json
import selectors
import shutil
import signal
import subprocess
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from simulator_process import PATHS, exchange, receive, request_bytes, simulator, sse, tokens, unchunked

CONCURRENT = 50


@pytest.fixture
def instant():
    with simulator("--preset", "instant") as running:
        yield running


def metrics(server) -> dict[tuple[str, str], float]:
    """Sample name and its one interesting label -> value."""
    samples = {}
    for family in text_string_to_metric_families(server.get("/metrics").decode()):
        for sample in family.samples:
            label = sample.labels.get("finished_reason") or sample.labels.get("le") or ""
            samples[sample.name.removeprefix("vllm:"), label] = sample.value
    return samples


def stream_together(server, requests: list[bytes]) -> list[tuple[bytes, list[int], int]]:
    """All at once from one thread: the body of each, the time of each read, the time it was sent (CLOCK_MONOTONIC)."""
    picker = selectors.DefaultSelector()
    state = []
    for request in requests:
        sock = server.open()
        state.append([sock, b"", [], time.monotonic_ns()])
        sock.sendall(request)
        picker.register(sock, selectors.EVENT_READ, state[-1])
    while picker.get_map():
        for key, _ in picker.select(10):
            one = key.data
            part = one[0].recv(65536)
            one[1] += part
            one[2].append(time.monotonic_ns())
            if not part or one[1].endswith(b"\r\n0\r\n\r\n"):
                picker.unregister(one[0])
                one[0].close()
    return [(data.partition(b"\r\n\r\n")[2], reads, sent) for _, data, reads, sent in state]


@pytest.mark.parametrize(
    "preset", [("--preset", "paced"), ("--preset", "small-gpu", "--speed", "5")], ids=["paced", "gpu"]
)
@pytest.mark.parametrize("api", PATHS)
def test_the_truth_is_what_fifty_raw_clients_received(preset, api):
    with simulator(*preset) as server:
        asked = [request_bytes(api, tokens=5 + i, headers={"x-request-id": f"r{i}"}) for i in range(CONCURRENT)]
        received = stream_together(server, asked)
        truth = server.await_truth(lambda totals: totals["in_flight"] == 0)
    rows = {row["id"]: row for row in truth["requests"]}
    totals = truth["totals"]
    assert totals["received"] == totals["completed"] == len(rows) == CONCURRENT
    assert totals["tokens_sent"] == sum(5 + i for i in range(CONCURRENT)) == totals["lateness_s"]["n"]
    assert totals["max_concurrent"] > CONCURRENT // 2
    assert 0 <= totals["lateness_s"]["p50"] <= totals["lateness_s"]["p99"] <= totals["lateness_s"]["max"]
    for i, (body, reads, sent) in enumerate(received):
        row = rows[f"r{i}"]
        assert tokens(api, unchunked(body)) == row["output_tokens"] == len(row["tokens_mono_ns"]) == 5 + i
        assert row["outcome"] == "completed"
        stamps = row["tokens_mono_ns"]
        assert stamps == sorted(stamps)
        assert (stamps[0], stamps[-1]) == (row["first_sent_mono_ns"], row["last_sent_mono_ns"])
        # One clock for both processes: it can't arrive before it was asked for, nor be read before it was sent.
        assert sent <= row["received_mono_ns"] < stamps[0]
        assert stamps[-1] < reads[-1]
        assert row["received_mono_ns"] + row["queue_ns"] + row["prefill_ns"] <= stamps[0]
        wall = [real - mono for real, mono in zip(row["tokens_real_ns"], stamps, strict=True)]
        assert max(wall) - min(wall) < 1e9  # the same moments by the other clock


def test_paced_times_are_the_promised_ones():
    with simulator("--preset", "paced", "--ttft-ms", "60", "--itl-ms", "10") as server:
        stream_together(server, [request_bytes("chat", tokens=20)] * 5)
        rows = server.await_truth(lambda totals: totals["completed"] == 5)["requests"]
    for row in rows:
        offsets = [(stamp - row["received_mono_ns"]) / 1e6 for stamp in row["tokens_mono_ns"]]
        # Never early; how late is the machine's matter and is recorded.
        assert all(offset >= 60 + 10 * i for i, offset in enumerate(offsets))
        assert row["queue_ns"] + row["prefill_ns"] == 60_000_000


def test_metrics_parse_and_equal_the_truth():
    with simulator("--preset", "small-gpu", "--speed", "50") as server:
        asked = [request_bytes("chat", tokens=10)] * 7 + [request_bytes("ollama_generate", tokens=None)] * 2
        stream_together(server, asked)
        exchange(server, request_bytes("completions", tokens=10, stream=False))
        truth = server.await_truth(lambda totals: totals["completed"] == 10)
        now = metrics(server)
    rows = truth["requests"]
    assert now["generation_tokens_total", ""] == truth["totals"]["tokens_sent"] == sum(r["output_tokens"] for r in rows)
    assert now["prompt_tokens_total", ""] == sum(row["prompt_tokens"] for row in rows)
    assert now["request_success_total", "length"] == 8
    assert now["request_success_total", "stop"] == 2
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert now[f"{name}_seconds_count", ""] == now[f"{name}_seconds_bucket", "+Inf"] == 10
    streamed = [row for row in rows if row["api"] != "completions"]
    assert now["inter_token_latency_seconds_count", ""] == sum(row["output_tokens"] - 1 for row in streamed)
    ttft_ns = sum(row["first_sent_mono_ns"] - row["received_mono_ns"] for row in streamed)
    assert now["time_to_first_token_seconds_sum", ""] >= ttft_ns / 1e9
    assert now["num_requests_running", ""] == now["num_requests_waiting", ""] == now["kv_cache_usage_perc", ""] == 0
    assert now["iteration_tokens_total_sum", ""] >= truth["totals"]["tokens_sent"]


def test_vllms_metric_names_and_buckets(instant, shared):
    def families(text: str) -> dict[str, list]:
        found: dict[str, list] = {}
        for line in text.splitlines():
            if line.startswith("vllm:") and "_created" not in line:
                name, _, rest = line.partition("{")
                found.setdefault(name, []).append(rest.partition('le="')[2].partition('"')[0])
        return found

    theirs = families(shared("wire/vllm_metrics.prom").read_text())
    mine = families(instant.get("/metrics").decode())
    assert set(mine) <= set(theirs)
    depends_on_context = ("vllm:request_prompt_tokens_bucket", "vllm:request_generation_tokens_bucket")
    for name in set(mine) - set(depends_on_context):
        if name.endswith("_bucket"):
            assert mine[name] == theirs[name], name


def test_promtool_has_no_complaint_but_vllms_own_names(instant):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=instant.get("/metrics"), capture_output=True, timeout=30, check=False
    )
    said = (checked.stdout + checked.stderr).decode().splitlines()
    # Colons are for recording rules, and a histogram's name should not end in _total: both are vLLM's choice.
    own = ("metric names should not contain ':'", 'non-counter metrics should not have "_total" suffix')
    assert [line for line in said if not line.endswith(own)] == []


def test_a_client_that_leaves_frees_its_blocks_and_is_counted():
    with simulator("--preset", "small-gpu") as server:
        with server.open() as sock:
            sock.sendall(request_bytes("chat", tokens=4000, headers={"x-request-id": "gone"}))
            while b'"content":"' not in sock.recv(65536).replace(b'"content":""', b""):
                pass
            during = metrics(server)
            assert during["num_requests_running", ""] == 1
            assert during["kv_cache_usage_perc", ""] > 0
        truth = server.await_truth(lambda totals: totals["disconnected"] == 1)
        after = metrics(server)
    row = truth["requests"][0]
    assert (row["id"], row["outcome"]) == ("gone", "disconnected")
    assert 0 < row["output_tokens"] < 4000
    assert row["output_tokens"] == after["generation_tokens_total", ""]
    assert after["request_success_total", "abort"] == 1
    assert after["kv_cache_usage_perc", ""] == after["num_requests_running", ""] == 0


def test_a_client_that_leaves_the_queue_is_forgotten():
    with simulator("--preset", "small-gpu", "--max-num-seqs", "1") as server, server.open() as runs:
        runs.sendall(request_bytes("chat", tokens=4000))
        assert runs.recv(1)
        with server.open() as waits:
            waits.sendall(request_bytes("chat", tokens=4000))
            assert waits.recv(1)  # vLLM sends the head at once
            assert metrics(server)["num_requests_waiting", ""] == 1
        server.await_truth(lambda totals: totals["disconnected"] == 1)
        assert metrics(server)["num_requests_waiting", ""] == 0


def test_one_connection_serves_many_requests(instant):
    with instant.open() as sock:
        for api in (*PATHS, *PATHS):
            sock.sendall(request_bytes(api, tokens=3))
            assert receive(sock).endswith(b"\r\n0\r\n\r\n")
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert receive(sock).startswith(b"HTTP/1.1 200")
        sock.sendall(request_bytes("chat", stream=False, headers={"connection": "close"}))
        assert b"connection: close\r\n" in receive(sock)
        assert sock.recv(1) == b""


def test_http_1_0_gets_no_chunks(instant):
    head, body = exchange(instant, request_bytes("chat").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert b"chunked" not in head
    assert len(sse(body)) == 5


def test_truth_since_and_reset(instant):
    for _ in range(3):
        exchange(instant, request_bytes("chat"))
    truth = instant.await_truth(lambda totals: totals["completed"] == 3)
    assert [row["seq"] for row in truth["requests"]] == [1, 2, 3]
    later = instant.truth("?since=2")
    assert [row["seq"] for row in later["requests"]] == [3]
    assert "tokens_mono_ns" not in later["requests"][0]
    assert instant.truth(f"?since={truth['next']}")["requests"] == []
    with instant.open() as sock:
        sock.sendall(b"POST /sim/reset HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        receive(sock)
    assert instant.truth()["totals"]["completed"] == 0
    exchange(instant, request_bytes("chat"))
    again = instant.await_truth(lambda totals: totals["completed"] == 1)
    assert [row["seq"] for row in again["requests"]] == [4]


def test_received_is_the_sum_of_the_outcomes(instant):
    exchange(instant, request_bytes("chat"))
    exchange(instant, request_bytes("chat", model="nope"))
    exchange(instant, request_bytes("ollama_chat", messages=[]))
    totals = instant.await_truth(lambda totals: totals["in_flight"] == 0)["totals"]
    parts = [totals[name] for name in ("completed", "disconnected", "faulted", "rejected", "refused")]
    assert totals["received"] == sum(parts) == 3
    assert (totals["completed"], totals["refused"]) == (2, 1)


def test_reading_a_large_truth_does_not_hold_tokens_up():
    with simulator("--preset", "instant") as server:
        stream_together(server, [request_bytes("chat", tokens=200)] * 400)
        server.await_truth(lambda totals: totals["completed"] == 400)
        whole = len(server.get("/sim/truth?tokens=1"))
        assert whole > 1_000_000
        overtook = 0
        for _ in range(5):  # either thread may be late on a busy machine; a server that reads first never lets one pass
            reading = threading.Thread(target=server.get, args=("/sim/truth?tokens=1",))
            reading.start()
            exchange(server, request_bytes("chat"))
            overtook += reading.is_alive()
            reading.join()
    assert overtook


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_it_with_zero_even_while_it_streams(number):
    with simulator("--preset", "small-gpu") as server, server.open() as sock:
        sock.sendall(request_bytes("chat", tokens=4000))
        assert sock.recv(1)
        server.process.send_signal(number)
        assert server.process.wait(timeout=60) == 0


def test_lists_name_the_model(instant):
    assert json.loads(instant.get("/v1/models"))["data"][0]["id"] == "sim"
    assert json.loads(instant.get("/api/tags"))["models"][0]["name"] == "sim:latest"
    assert json.loads(instant.get("/api/ps"))["models"][0]["context_length"] == 131072
    assert "version" in json.loads(instant.get("/api/version"))
    assert "version" in json.loads(instant.get("/version"))
    assert instant.get("/health") == b""
