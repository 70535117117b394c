"""The poller against real servers: the embedded engine, the GPU exporter, an Ollama, and servers that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exporter_process
import gevent
import pytest
import sample_runs
from proxies import proxy
from raw_server import CLOSE, RESET, head, raw_server
from simulator_process import Server, exchange, request_bytes, simulator

from tokenswarm.client import page, preflight
from tokenswarm.cluster import poller as telemetry
from tokenswarm.cluster.poller import Poller
from tokenswarm.errors import ConfigError
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.load import Stage
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.telemetry import Telemetry
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry.watch import EngineWatch, GpuWatch

REPO = Path(__file__).resolve().parent.parent
RECORD = REPO / "tests" / "nvml" / "h200_constructed.json"
GPU = "GPU-c0257700-0000-4000-8000-000000000200"

PAGE = b"".join(
    f"vllm:{name} 1\n".encode()
    for name in ("num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total")
)


def profile(*targets: str, engine: Engine | None = None, **more: Any) -> Profile:
    return sample_runs.profile(
        target=targets, engine=engine or Engine(), telemetry=Telemetry(**{"interval": 0.1, **more})
    )


def poller(made: Profile, version: dict[str, str] | None = None) -> tuple[Poller, list[str]]:
    said: list[str] = []
    return telemetry.of_run(made, {"engine": {"version": version or {"/version": "0.33.0"}}}, said.append), said


def answer(body: bytes, content_type: str = "text/plain", status: str = "200 OK") -> bytes:
    return head(content_type, f"content-length: {len(body)}", status=status, chunked=False) + body


def summary_of(stages: int = 1) -> Summary:
    return sample_runs.summary(sample_runs.run(ok=100, stages=stages))


def until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    """Let the hub run until it holds."""
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, "it never came true"
        gevent.sleep(0.01)


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced") as server:
        yield server


class Load:
    """Requests of 20 tokens, one after another, in threads beside the hub."""

    def __init__(self, server: Server, users: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self.done = 0
        self._threads = [threading.Thread(target=self._go) for _ in range(users)]

    def _go(self) -> None:
        while not self._stop.is_set():
            exchange(self._server, request_bytes("chat", tokens=20))
            self.done += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def overlap(row: dict[str, Any], begin_ns: int, end_ns: int) -> int:
    """How long the request was open between two moments, ns."""
    return max(0, min(row["last_sent_mono_ns"], end_ns) - max(row["received_mono_ns"], begin_ns))


def test_the_engines_counts_over_a_window_are_those_of_its_truth(engine: Server) -> None:
    """Tokens, batch and latencies of the steady window only, to what the engine says that it really did."""
    it, said = poller(profile(engine.url))
    with it, Load(engine, users=4) as load:
        it.phase(0, "warmup", Stage(users=4), 1.0)
        until(lambda: load.done >= 4)
        it.phase(0, "steady", Stage(users=4), 2.0)
        began_s = time.monotonic()
        gevent.sleep(2.0)
        it.phase(0, "drain", None, 1.0)
        steady_s = time.monotonic() - began_s
        until(lambda: not it.pages[0].watch.waits)
    summary = summary_of()
    it.finish(summary)
    watch = it.pages[0].watch
    assert isinstance(watch, EngineWatch)
    piece = watch.by_stage[0]._best
    assert piece is not None
    rows = json.loads(engine.get("/sim/truth?tokens=1"))["requests"]
    stamps = [at for row in rows for at in row["tokens_mono_ns"]]

    def sent(first: int, last: int) -> int:
        return sum(first <= at < last for at in stamps)

    first, last = piece.first, piece.last
    fewest = sent(first.at_ns + first.slack_ns, last.at_ns - last.slack_ns)
    most = sent(first.at_ns - first.slack_ns, last.at_ns + last.slack_ns)
    block = summary.stages[0].server["metrics"]
    assert fewest <= block["generation_tokens"] <= most
    assert fewest > 100
    open_ns = sum(overlap(row, first.at_ns, last.at_ns) for row in rows)
    assert block["running"]["mean"] == pytest.approx(open_ns / (last.at_ns - first.at_ns), abs=0.5)
    assert block["running"]["max"] == 4
    assert block["finished"]["length"] >= 8
    assert block["coverage"]["window_s"] == pytest.approx(steady_s, abs=0.5)
    assert block["coverage"]["gaps"] == {}
    pairs = itertools.chain.from_iterable(itertools.pairwise(row["tokens_mono_ns"]) for row in rows)
    gaps_s = sorted((after - before) / 1e9 for before, after in pairs if first.at_ns < after < last.at_ns)
    low, high = block["latency"]["itl_s"]["ranges"]["p50"]
    assert low <= gaps_s[len(gaps_s) * 55 // 100]
    assert gaps_s[len(gaps_s) * 45 // 100] <= high
    low, high = block["latency"]["ttft_s"]["ranges"]["p50"]
    assert low <= 0.1 <= high
    assert summary.server["metrics"]["sources"][0]["version"] == "0.33.0"
    assert said == []


def test_each_stage_has_its_own_window(engine: Server) -> None:
    it, _ = poller(profile(engine.url))
    with it:
        for stage, requests in enumerate((2, 3)):
            it.phase(stage, "warmup", Stage(users=1), 0.0)
            it.phase(stage, "steady", Stage(users=1), 1.0)
            until(lambda stage=stage: it.pages[0].watch.by_stage[stage]._samples >= 1)  # type: ignore[misc, union-attr]
            thread = threading.Thread(
                target=lambda n=requests: [exchange(engine, request_bytes("chat", tokens=3)) for _ in range(n)]
            )
            thread.start()
            until(lambda thread=thread: not thread.is_alive())  # type: ignore[misc]
            gevent.sleep(0.15)
        it.phase(1, "drain", None, 1.0)
        summary = summary_of(stages=2)
        it.finish(summary)
    tokens = [stage.server["metrics"]["generation_tokens"] for stage in summary.stages]
    assert tokens == [6, 9]
    assert summary.server["metrics"]["generation_tokens"] == 15


def test_the_last_reading_is_waited_for_even_where_the_drain_takes_no_time(engine: Server) -> None:
    it, _ = poller(profile(engine.url, interval=30.0))
    with it:
        until(lambda: it.pages[0].watch.good == 1)
        it.phase(0, "steady", Stage(users=1), 1.0)
        until(lambda: it.pages[0].watch.good == 2)
        gevent.sleep(0.1)
        it.phase(0, "drain", None, 1.0)
        summary = summary_of()
        it.finish(summary)
    cover = summary.server["metrics"]["coverage"]
    assert (cover["samples"], cover["empty_windows"]) == (2, 0)


# -- servers that misbehave ------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, list[Any]]] = {
    "silent": ("timeout", [5.0]),
    "drips": ("timeout", [head("text/plain", chunked=False), *[b"# drip\n", 0.3] * 20]),
    "html": ("not_metrics", [answer(b"<html>\n<body>login</body></html>\n", "text/html"), CLOSE]),
    "cut at a line, no length": (
        "incomplete",
        [head("text/plain", chunked=False) + PAGE[: PAGE.index(b"vllm:generation")], CLOSE],
    ),
    "cut inside a line, no length": ("truncated", [head("text/plain", chunked=False) + PAGE[:-3], CLOSE]),
    "cut before its length": ("closed_early", [answer(PAGE)[:-20], CLOSE]),
    "reset": ("closed_early", [answer(PAGE)[:-20], RESET]),
    "closed at once": ("closed_early", [CLOSE]),
    "no http": ("http_framing", [b"SSH-2.0-OpenSSH_9.2\r\n", CLOSE]),
    "an error": ("http_status", [answer(b"busy\n", status="503 Service Unavailable"), CLOSE]),
    "a redirect": ("http_status", [answer(b"", status="302 Found"), CLOSE]),
    "no number": ("malformed", [answer(PAGE.replace(b"total 1", b"total one")), CLOSE]),
    "empty": ("empty", [answer(b""), CLOSE]),
    "a JSON string": ("not_metrics", [answer(json.dumps(PAGE.decode()).encode(), "application/json"), CLOSE]),
    "another exporter": ("not_metrics", [answer(b"go_goroutines 7\n"), CLOSE]),
    "endless": ("too_large", [head("text/plain", chunked=False), *[b"# x\n" * 250_000] * 8]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_is_a_gap_with_its_reason_and_the_next_page_counts(fault: str) -> None:
    reason, script = FAULTS[fault]
    good = [answer(PAGE), CLOSE]
    with raw_server(good, script, good) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        watch = it.pages[0].watch
        assert isinstance(watch, EngineWatch)
        with it, ticking() as ticks:
            it.phase(0, "steady", Stage(users=1), 1.0)
            until(lambda: watch.good >= 3)
            assert watch.gaps == {reason: 1}
            assert watch.by_stage[0].totals(0).gaps == {reason: 1}
            assert longest(ticks) < 0.9  # the hub went on while the server did what it did
        assert it.pages[0].watch.newest.counters["generation_tokens"] == 1  # type: ignore[union-attr]


@contextlib.contextmanager
def ticking() -> Iterator[list[float]]:
    """Stamps of a greenlet that wakes each 5 ms."""
    stamps: list[float] = []

    def tick() -> None:
        while True:
            stamps.append(time.monotonic())
            gevent.sleep(0.005)

    greenlet = gevent.spawn(tick)
    yield stamps
    greenlet.kill()


def longest(stamps: list[float]) -> float:
    assert len(stamps) > 5
    return max(b - a for a, b in itertools.pairwise(stamps))


def test_nobody_there_is_a_gap_and_is_said_once() -> None:
    with raw_server([CLOSE]) as server:
        port = server.port
    it, said = poller(profile(f"http://127.0.0.1:{port}"))
    with it:
        until(lambda: it.pages[0].watch.looks >= 5)  # goes on: the server may come
        summary = summary_of()
        it.finish(summary)
    assert it.pages[0].watch.gaps.keys() == {"connect"}
    (sentence,) = said
    assert sentence.startswith(f"no telemetry from http://127.0.0.1:{port}/metrics: can't connect")


def test_a_target_without_metrics_is_left_alone_after_three_looks() -> None:
    with raw_server([answer(b"{}", "application/json", "404 Not Found"), CLOSE]) as server:
        it, said = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: not it.pages[0].running)
            it.phase(0, "steady", Stage(users=1), 1.0)
            it.finish(summary_of())
        assert server.connections == telemetry.TRIES
    assert "/metrics answered HTTP 404 (there is no such page)" in said[0]


@pytest.mark.parametrize(
    "early",
    [
        answer(b'{"error":"loading model"}', "application/json", "503 Service Unavailable"),
        answer(b"", status="429 Too Many Requests"),
        answer(b""),
        answer(b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"),  # not all of it is told yet
    ],
)
def test_a_server_that_is_not_ready_yet_is_asked_on(early: bytes) -> None:
    with raw_server(*[[early, CLOSE]] * (telemetry.TRIES + 2), [answer(PAGE), CLOSE]) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: it.pages[0].watch.good >= 1)


def test_a_page_without_its_last_line_break_counts_where_http_says_that_it_is_whole() -> None:
    with raw_server([answer(PAGE[:-1]), CLOSE]) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: it.pages[0].watch.good >= 2)
        assert it.pages[0].watch.gaps == {}
        assert it.pages[0].watch.newest.counters["generation_tokens"] == 1  # type: ignore[union-attr]


def test_what_one_odd_value_spoils_is_left_out_and_said_once() -> None:
    """The rest of the page counts, in the line ends of Windows, too."""
    odd = (PAGE + b"vllm:kv_cache_usage_perc -1\nvllm:num_preemptions_total x\n").replace(b"\n", b"\r\n")
    with raw_server([answer(odd), CLOSE]) as server:
        it, said = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: it.pages[0].watch.good >= 2)
            summary = summary_of()
            it.finish(summary)
        looks = it.pages[0].watch.good
        assert (it.pages[0].watch.gaps, it.pages[0].watch.newest.levels["running"]) == ({}, 1)  # type: ignore[union-attr]
    problem = summary.server["metrics"]["sources"][0]["problem"]
    assert f"vllm:kv_cache_usage_perc is below 0: left out, in {looks} of {looks} good looks" in problem
    assert "whose value is no number: 'vllm:num_preemptions_total x': left out, in" in problem
    assert [problem in sentence for sentence in said] == [True]


def moved(to: str, status: str = "307 Temporary Redirect") -> list[Any]:
    return [head("text/plain", f"location: {to}", "content-length: 0", status=status, chunked=False), CLOSE]


def test_a_packed_page_is_read() -> None:
    """vLLM and SGLang pack it for whoever asks, and `engine.headers: {accept-encoding: gzip}` asks."""
    packed = gzip.compress(PAGE)
    reply = head("text/plain", "content-encoding: gzip", f"content-length: {len(packed)}", chunked=False) + packed
    with raw_server([reply]) as server:
        made, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        with made:
            until(lambda: made.pages[0].watch.good > 1)
        assert made.pages[0].watch.gaps == {}


@pytest.mark.parametrize("to", ["/metrics/", "metrics/", "http://127.0.0.1:{port}/metrics/"])
def test_a_redirect_on_the_same_server_is_followed_and_kept(to: str) -> None:
    with raw_server() as server:
        server._scripts = [moved(to.format(port=server.port)), [answer(PAGE), CLOSE]]
        it, said = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: it.pages[0].watch.good >= 2)
        assert [request.split()[1] for request in server.requests[:3]] == [b"/metrics", b"/metrics/", b"/metrics/"]
        assert (it.pages[0].watch.gaps, said) == ({}, [])


def test_tensorrt_llms_metrics_are_found_behind_its_json() -> None:
    page = b"trtllm_num_requests_running 1\ntrtllm_num_requests_waiting 0\ntrtllm_generation_tokens_total 7\n"
    stats = answer(b'[{"iter": 1}]', "application/json")
    with raw_server([stats, CLOSE], [answer(page), CLOSE]) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: it.pages[0].watch.good >= 2)
        paths = [request.split()[1] for request in server.requests[:3]]
        assert paths == [b"/metrics", b"/prometheus/metrics", b"/prometheus/metrics"]
        assert it.pages[0].watch.newest.kind == "tensorrt_llm"  # type: ignore[union-attr]


def test_a_redirect_elsewhere_is_named_and_no_secret_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "Bearer engine-key")
    with raw_server([answer(PAGE), CLOSE]) as other:
        there = f"http://127.0.0.1:{other.port}/elsewhere"
        with raw_server(moved(there)) as server:
            engine = Engine(headers_from_env={"Authorization": "KEY"})
            it, said = poller(profile(f"http://127.0.0.1:{server.port}", engine=engine))
            with it:
                until(lambda: it.pages[0].watch.looks >= 2)
                it.finish(summary_of())
        assert f"/metrics answered HTTP 307 to {there}: give that address" in said[0]
        assert other.connections == 0
        assert {request.split()[1] for request in server.requests} == {b"/metrics"}


def test_an_engine_under_two_names_is_said_and_counted_once(engine: Server) -> None:
    exchange(engine, request_bytes("chat", tokens=2))
    port = engine.url.rpartition(":")[2]
    urls = [f"http://{host}:{port}/metrics" for host in ("127.0.0.1", "localhost", "127.1")]
    it, said = poller(profile(f"http://127.0.0.1:{port}", engine_metrics=("auto", *urls[1:])))
    with it:
        until(lambda: all(page.watch.good for page in it.pages))
        it.phase(0, "steady", None, 1.0)
    assert [page.watch.url for page in it.pages] == [*urls[1:], urls[0]]
    assert [page.watch.twin for page in it.pages] == ["", urls[1], urls[1]]  # type: ignore[union-attr]
    assert [line.partition(" is ")[0] for line in said] == [page.watch.url for page in it.pages[1:]]


def test_a_redirect_in_a_circle_ends() -> None:
    with raw_server(moved("/metrics")) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            until(lambda: it.pages[0].watch.looks >= 1)
            assert it.pages[0].watch.gaps.keys() == {"http_status"}
        assert server.connections <= telemetry.HOPS * (it.pages[0].watch.looks + 1)


def test_replicas_behind_one_address_are_said() -> None:
    def script(tokens: int) -> list[Any]:
        return [answer(PAGE.replace(b"tokens_total 1", b"tokens_total %d" % tokens)), CLOSE]

    with raw_server(*[script(n) for pair in zip(range(1000, 1060), range(60), strict=True) for n in pair]) as server:
        it, said = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            it.phase(0, "steady", Stage(users=1), 1.0)
            until(lambda: it.pages[0].watch.gaps.get("several_processes"))
            it.phase(0, "drain", None, 1.0)
            summary = summary_of()
            it.finish(summary)
    block = summary.server["metrics"]
    assert (block["coverage"]["resets"], block["generation_tokens"]) == (0, None)
    assert "several processes answer at this address in turn" in said[0]


def test_old_pages_of_a_cache_give_no_number_and_the_first_one_none_either() -> None:
    """As behind Varnish: the first page is the engine's, then the same one comes with its age, for two minutes."""

    def script(age: int) -> list[Any]:
        return [answer(PAGE).replace(b"\r\n\r\n", b"\r\nAge: %d\r\n\r\n" % age, 1), CLOSE]

    with raw_server(*[script(age) for age in (0, 0, 1, 2, 3)], script(0)) as server:
        it, said = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            it.phase(0, "steady", Stage(users=1), 1.0)
            until(lambda: it.pages[0].watch.gaps.get("cached", 0) > 3)  # one that is young again comes too late
            it.phase(0, "drain", None, 1.0)
            summary = summary_of()
            it.finish(summary)
    block = summary.server["metrics"]
    assert (block["coverage"]["empty_windows"], block["generation_tokens"]) == (1, None)
    assert block["requests_compared"] is None
    assert "a cache on the path answers with old pages" in said[0]


CACHES = {
    "nginx": "location = /metrics {{ proxy_cache kept; proxy_cache_valid 200 60s; proxy_pass http://{upstream}; }}",
    "varnish": "sub vcl_backend_response {{ set beresp.ttl = 1s; set beresp.grace = 0s; }}",
}
"""nginx's says nothing at all of it; what one second makes old has an `Age` of 0."""


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_tells_no_age_is_named_for_what_it_is(name: str, engine: Server, tmp_path: Path) -> None:
    upstream = engine.url.removeprefix("http://")
    with proxy(name, tmp_path / name, upstream, more=CACHES[name].format(upstream=upstream)) as url:
        it, said = poller(profile(engine.url, engine_metrics=(f"{url}/metrics",)))
        with it, Load(engine, users=2):
            it.phase(0, "steady", Stage(users=2), 1.0)
            until(lambda: it.pages[0].watch.gaps.get("cached", 0) > 1)
            it.phase(0, "drain", None, 1.0)
            summary = summary_of()
            it.finish(summary)
    assert summary.server["metrics"]["requests_compared"] is None
    assert "a cache on the path answers with old pages" in said[0]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("Age: 3", True), ("Age: 0", False), ("X-Varnish: 32788 27", True), ("X-Varnish: 26", False),
        ("X-Cache-Lookup: HIT from squid:3128", False), ("X-Cache: HIT from squid", True),
        ("X-Cache: Hit from cloudfront", True), ("X-Cache-Status: HIT", True),
        ("X-Cache: TCP_MEM_HIT", True), ("CF-Cache-Status: HIT", True), ("Cache-Status: edge; hit; ttl=3", True),
        ("X-Cache: MISS from hit.example", False), ("Cache-Status: edge; fwd=miss", False), ("X-Hits: hit", False),
    ],
)  # fmt: skip
def test_what_caches_say_of_a_page(line: str, kept: bool) -> None:
    with raw_server([answer(PAGE).replace(b"\r\n\r\n", f"\r\n{line}\r\n\r\n".encode(), 1), CLOSE]) as server:
        target = preflight.make_checked_target(profile(url := f"http://127.0.0.1:{server.port}"), url)
        assert page.request(target, "GET", "/metrics", {}, timeout_s=30).cached is kept


def test_a_page_that_does_not_change_is_no_cache(engine: Server) -> None:
    """Of an engine that has nothing to do, and of one behind a proxy that keeps nothing."""
    idle = [line for line in engine.get("/metrics").splitlines(keepends=True) if b"process_" not in line]
    still = [answer(b"".join(idle)), CLOSE]
    with raw_server(still) as server:
        it, said = poller(profile(engine.url, engine_metrics=(f"http://127.0.0.1:{server.port}/metrics", engine.url)))
        with it, Load(engine, users=2) as load:
            it.phase(0, "steady", Stage(users=2), 1.0)
            until(lambda: all(page.watch.good > 5 for page in it.pages) and load.done > 5)
            it.finish(summary_of())
    assert said == []
    assert [page.watch.gaps for page in it.pages] == [{}, {}]


def test_an_address_that_was_given_is_asked_to_the_end() -> None:
    with raw_server([answer(b"", status="404 Not Found"), CLOSE]) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        it, _ = poller(profile("http://127.0.0.1:9", engine_metrics=(url,)))
        with it:
            until(lambda: server.connections > telemetry.TRIES + 2)


def test_a_restart_of_the_engine_cuts_the_window() -> None:
    def script(tokens: int) -> list[Any]:
        return [answer(PAGE.replace(b"generation_tokens_total 1", b"generation_tokens_total %d" % tokens)), CLOSE]

    scripts = [script(n) for n in (1000, 1010, 1020, 1030, 1040, 5, 15)]
    with raw_server(*scripts, script(25)) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        with it:
            it.phase(0, "steady", Stage(users=1), 1.0)
            until(lambda: server.connections >= 8)
            it.phase(0, "drain", None, 1.0)
            summary = summary_of()
            it.finish(summary)
    block = summary.server["metrics"]
    assert block["coverage"]["resets"] == 1
    assert block["generation_tokens"] == 40


# -- other pages -----------------------------------------------------------------------------------------------------


def test_ollama_is_asked_which_models_are_loaded() -> None:
    loaded = {"models": [{"name": "llama3.2:latest", "size": 4000, "size_vram": 3000, "context_length": 4096}]}
    with raw_server([answer(json.dumps(loaded).encode(), "application/json"), CLOSE]) as server:
        made = profile(f"http://127.0.0.1:{server.port}/", engine=Engine(kind="ollama"))
        it, _ = poller(made, {"/api/version": "0.33.0"})
        with it:
            it.phase(0, "steady", Stage(users=1), 1.0)
            until(lambda: it.pages[0].watch.good >= 3)
            it.phase(0, "drain", None, 1.0)
            summary = summary_of()
            it.finish(summary)
        assert server.requests[0].startswith(b"GET /api/ps HTTP/1.1\r\n")
    block = summary.server["metrics"]
    assert block["models_loaded"] == {"mean": 1.0, "max": 1.0}
    assert block["vram_ratio_mean"] == 0.75
    assert block["sources"][0]["facts"] == {"model.llama3.2:latest": "context 4096"}
    assert block["running"] == {"mean": None, "max": None}


def test_the_gpu_exporter_with_a_recorded_session(tmp_path: Path) -> None:
    """Constant 640 W, 70 % busy, 1.9 GHz, for ever; what the poller makes of it is exactly that."""
    record = json.loads(RECORD.read_text())
    answers = record["answers"]
    record["seconds"] = 600
    answers["0/field.83"] = [[0, 1_000_000]] + [[n, 1_000_000 + n * 640_000] for n in range(1, 600)]
    answers["0/utilization"] = [[0, {"gpu": 70, "memory": 20}]]
    answers["0/clock.sm"] = [[0, 1900]]
    answers["0/temperature"] = [[0, 61]]
    answers["0/memory"] = answers["0/memory"][-1:]
    answers["0/memory"][0][0] = 0
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    options = ("--gpu-backend", f"replay:{path}", "--interval", "0.2")
    with exporter_process.running("gpu", *options) as exporter:
        exporter.wait_for(lambda samples: exporter_process.value(samples, "tokenswarm_gpus") == 1)
        it, said = poller(
            profile(
                "http://127.0.0.1:9", engine_metrics=("off",), gpu_exporters=(exporter.url,), price_per_gpu_hour=3.6
            )
        )
        with it:
            until(lambda: it.pages[0].watch.good >= 2)
            it.phase(0, "steady", Stage(users=1), 1.0)
            began_s = time.monotonic()
            gevent.sleep(4.0)
            it.phase(0, "drain", None, 1.0)
            steady_s = time.monotonic() - began_s
            summary = summary_of()
            it.finish(summary)
    assert said == []
    (gpu,) = summary.gpu["gpus"]
    assert (gpu["gpu"], gpu["name"], gpu["backend"]) == (GPU, "NVIDIA H200", "replay")
    assert gpu["energy_j"] % 640 == pytest.approx(0.0, abs=1e-6)  # the record's steps are a second each
    assert gpu["power_w_mean"] == pytest.approx(640, abs=640 / 3)  # a step more or less in 4 s
    assert gpu["utilization_ratio_mean"] == pytest.approx(0.7)
    assert gpu["clock_sm_hz_min"] == 1.9e9
    assert gpu["temperature_c_max"] == 61
    assert gpu["memory_used_bytes_max"] == 143881404416
    assert gpu["observed_s"] == pytest.approx(steady_s, abs=0.7)
    rate = summary.throughput.output_tokens_per_s
    assert rate is not None
    assert summary.gpu["output_tokens_per_j"] == pytest.approx(rate / gpu["power_w_mean"])
    assert summary.gpu["cost_per_million_output_tokens"] == pytest.approx(1e6 / rate * 0.001)


def test_a_token_opens_a_guarded_exporter_and_secrets_go_to_the_target_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_TOKEN", "open-sesame")
    monkeypatch.setenv("KEY", "Bearer engine-key")
    good = [answer(PAGE), CLOSE]
    with raw_server(good) as own, raw_server(good) as other, raw_server(good) as gpu:
        urls = [f"http://127.0.0.1:{server.port}" for server in (own, other, gpu)]
        made = profile(
            urls[0],
            engine=Engine(headers_from_env={"Authorization": "KEY"}),
            engine_metrics=("auto", urls[1]),
            gpu_exporters=(urls[2],),
            gpu_token_env="GPU_TOKEN",
        )
        it, _ = poller(made)
        with it:
            until(lambda: all(server.requests for server in (own, other, gpu)))
        assert b"authorization: Bearer engine-key" in own.requests[0]
        assert b"engine-key" not in other.requests[0] + gpu.requests[0]
        assert b"authorization: Bearer open-sesame" in gpu.requests[0]
        assert b"open-sesame" not in own.requests[0] + other.requests[0]
        assert all(request.startswith(b"GET /metrics ") for request in (*own.requests, *other.requests, *gpu.requests))


def test_what_is_watched_follows_from_the_profile() -> None:
    it, _ = poller(profile("http://a:1", "http://b:2/base/"))
    assert [page.watch.url for page in it.pages] == ["http://a:1/metrics", "http://b:2/base/metrics"]
    it, _ = poller(profile("http://a:1"), {"/api/version": "0.9"})
    assert [page.watch.url for page in it.pages] == ["http://a:1/api/ps"]
    both = {"/api/version": "0.1", "/version": "0.1"}  # the embedded engine speaks all
    it, _ = poller(profile("http://a:1", engine=Engine(kind="ollama")), both)
    assert [page.watch.url for page in it.pages] == ["http://a:1/metrics"]
    it, _ = poller(profile("http://a:1", engine_metrics=("off",), gpu_exporters=("http://g:9647", "http://h:1/m")))
    assert [page.watch.url for page in it.pages] == ["http://g:9647/metrics", "http://h:1/m"]
    assert all(isinstance(page.watch, GpuWatch) for page in it.pages)


def test_mistakes_in_the_profile_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    config = tmp_path / "config.json"
    config.write_text("{}")
    cases = [
        ({"gpu_exporters": ("http://g",), "gpu_token_env": "NO_SUCH"}, "NO_SUCH (telemetry.gpu_token_env) is not set"),
        ({"model_config": str(config)}, "has no `num_hidden_layers`"),
        ({"model_config": str(tmp_path / "no.json")}, "no.json: no such file"),
    ]
    for more, sentence in cases:
        with pytest.raises(ConfigError) as error:
            poller(profile("http://a:1", **more))
        assert sentence in str(error.value)
    for more in (
        {"engine_metrics": ("on",)},
        {"engine_metrics": ("off", "auto")},
        {"gpu_exporters": ("auto",)},
        {"gpu_exporters": ("http://u:p@g/metrics",)},
        {"interval": 0.0},
        {"price_per_gpu_hour": -1.0},
        {"gpus": 0},
        {"gpu_token_env": "a b"},
    ):
        with pytest.raises(ValueError):
            Telemetry(**more)  # type: ignore[arg-type]


def test_a_poller_without_pages_does_nothing(engine: Server) -> None:
    it, said = poller(profile(engine.url, engine_metrics=("off",)))
    with it:
        it.phase(0, "steady", Stage(users=1), 1.0)
        summary = summary_of()
        it.finish(summary)
    assert (it.pages, said, summary.gpu, summary.server) == ([], [], {}, {})


def test_looks_come_at_the_interval_and_do_not_pile_up() -> None:
    slow = [0.25, answer(PAGE), CLOSE]  # slower than the interval
    with raw_server(slow) as server:
        it, _ = poller(profile(f"http://127.0.0.1:{server.port}"))
        began_s = time.monotonic()
        with it:
            until(lambda: server.connections >= 1)
            for _ in range(20):
                it.phase(0, "steady", Stage(users=1), 1.0)  # edges ask at once, but not for several at a time
                gevent.sleep(0.05)
        assert 2 <= server.connections <= 2 + (time.monotonic() - began_s) / slow[0]  # type: ignore[operator]


# -- what a server repeats -------------------------------------------------------------------------------------------

KEY = "sk-canary-0123456789abcdef"


@pytest.mark.parametrize("told", [KEY, f"0.33 ({KEY})", "x" * 90 + KEY])
def test_a_key_that_the_server_repeats_as_its_version_is_in_no_file_and_on_no_page(
    told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Behind a proxy that shows what it was sent; cut at 100 characters, the last case holds a part of the key."""
    monkeypatch.setenv("KEY", f"Bearer {KEY}")
    models = answer(b'{"object":"list","data":[{"id":"m"}]}', "application/json")
    version = answer(json.dumps({"version": told}).encode(), "application/json")
    with raw_server([models, CLOSE], [version, CLOSE]) as server:
        pushed = in_a_process_of_its_own(
            "from tokenswarm.cluster import conclusion, look, push; from tokenswarm.profile.engine import Engine;"
            "engine = Engine(headers_from_env={'Authorization': 'KEY'}, probe=False);"
            f"made = sample_runs.profile(target=('http://127.0.0.1:{server.port}',), engine=engine);"
            f"run = conclusion.open_run(look.look(made), {str(tmp_path)!r}, ['run']);"
            "print(json.dumps(push.of_run(run.profile, run.manifest, list, str)._state.info))"
        )
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("/version" in text for text in files)
    assert pushed["engine_version"]
    for text in (*files, json.dumps(pushed)):
        assert KEY[:10] not in text


def in_a_process_of_its_own(code: str) -> Any:
    """The JSON that it prints; here Locust would patch what the tests stand on."""
    code = f"import json; import locust; import sample_runs, msgspec;{code}"
    environment = {**os.environ, "PYTHONPATH": f"{REPO}:{REPO / 'tests'}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_key_that_a_metrics_page_repeats_is_in_no_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", f"Bearer {KEY}")
    cases = ([answer(PAGE + f"vllm:num_preemptions_total{{{KEY}}} 1\n".encode()), CLOSE], moved(f"http://x/?k={KEY}"))
    for script in cases:
        with raw_server(script) as server:
            engine = Engine(headers_from_env={"Authorization": "KEY"})
            it, said = poller(profile(f"http://127.0.0.1:{server.port}", engine=engine))
            with it:
                until(lambda it=it: it.pages[0].watch.looks >= 2)  # type: ignore[misc]
                summary = summary_of()
                it.finish(summary)
        assert "[hidden]" in said[0]
        assert KEY not in said[0] + json.dumps(summary.server["metrics"])


def test_locusts_own_table_gets_the_models_name_without_control_characters() -> None:
    """Locust prints names as they are, on the console and into its CSV."""
    told = in_a_process_of_its_own(
        "from locust.env import Environment; from tokenswarm.cluster.locust_event import fire_request;"
        "from tokenswarm.record import Outcome, RequestRecord; made = sample_runs.profile();"
        "engine = msgspec.structs.replace(made.engine, model='a\x1b[31m\u202eb\nc');".encode("unicode_escape").decode()
        + "made = msgspec.structs.replace(made, engine=engine); env, got = Environment(), [];"
        "env.events.request.add_listener(lambda **told: got.append([told['name'], str(told['exception'])]));"
        "record = RequestRecord(id='r', outcome=Outcome.RESET, error_kind='x\\x1b[2Jy', stage=0, phase='steady',"
        "intended_ns=0, sent_ns=0); fire_request(env, made, record); print(json.dumps(got))"
    )
    assert told == [["a [31m b c", "reset: x [2Jy"]]


def test_what_a_run_is_against_has_the_names_that_either_prometheus_gives_it() -> None:
    """Prometheus 2 adds the port of the scheme to an address without one, Prometheus 3 does not."""
    targets = ("http://gpu", "https://[fd00::7]:443/v1", "http://gpu:8000")
    assert telemetry.instances(profile(*targets, gpu_exporters=("http://gpu:9647/metrics",))) == {
        "engine": ["gpu:80", "gpu", "[fd00::7]:443", "[fd00::7]", "gpu:8000"],
        "host": ["gpu:9647"],
    }
    named = profile(*targets, engine_instances=("a",), host_instances=("b",))
    assert telemetry.instances(named) == {"engine": ["a"], "host": ["b"]}
