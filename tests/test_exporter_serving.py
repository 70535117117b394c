"""The exporters' server: no scraper, however rude, keeps another from its answer; no mistake is a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from exporter_process import Exporter, promtool_findings, run, running, value

from exporters import ollama, serving
from exporters.families import Family, Readings, Sum, Tally, render
from exporters.gpu import command as gpu
from exporters.load import command as load


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with running("gpu", "--gpu-backend", "none", "--interval", "0.2") as started:
        started.wait_for(lambda page: value(page, "tokenswarm_host_cpus"))
        yield started


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def raw(port: int, request: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    with connect(port) as sock:
        sock.sendall(request)
        told = b""
        with contextlib.suppress(ConnectionError):
            while chunk := sock.recv(65536):
                told += chunk
        return told


def test_the_content_type_is_the_one_that_prometheus_3_insists_on(exporter: Exporter) -> None:
    with urllib.request.urlopen(exporter.url, timeout=60) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "Content-Encoding" not in answer.headers


def test_gzip_is_given_to_who_asks_and_holds_the_same_families(exporter: Exporter) -> None:
    request = urllib.request.Request(exporter.url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"tokenswarm_host_cpus" in gzip.decompress(answer.read())


def test_other_pages(exporter: Exporter) -> None:
    base = exporter.url.removesuffix("/metrics")
    with urllib.request.urlopen(f"{base}/", timeout=60) as answer:
        page = answer.read().decode()
        assert "tokenswarm GPU and host exporter" in page
        assert '<a href="/metrics">' in page
    with urllib.request.urlopen(f"{base}/healthz", timeout=60) as answer:
        assert answer.read() == b"ok\n"
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{base}/else", timeout=60)
    assert refusal.value.code == 404
    refusal.value.close()


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics"])
def test_who_asks_for_the_head_alone_gets_it(exporter: Exporter, path: str) -> None:
    """As `wget --spider` of a container's health check and `curl -I` do."""
    head, _, body = raw(exporter.port, f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
    assert (head.split(b" ")[1], body) == (b"200", b"")
    assert b"Content-Length: " in head


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"400"),
    ],
)
def test_bad_requests_are_refused_and_harm_nothing(exporter: Exporter, request_bytes: bytes, status: bytes) -> None:
    assert raw(exporter.port, request_bytes).split(b" ")[1] == status
    assert value(exporter.samples(), "tokenswarm_host_cpus")


def test_bad_requests_fill_no_log() -> None:
    with running("gpu", "--gpu-backend", "none") as exporter:
        for line in (b"", b"Host: x\r\nX: " + b"a" * 100_000 + b"\r\n"):
            bad = b"GET /metrics HTTP/1.1\r\n" + line + b"\r\n"
            assert raw(exporter.port, bad).split(b" ")[1] == b"400"
        assert exporter.stop() == 0
        assert exporter.process.stderr is not None
        assert exporter.process.stderr.read() == ""


def test_one_connection_serves_one_request(exporter: Exporter) -> None:
    told = raw(exporter.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    assert told.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in told


def test_its_own_cost_is_on_the_page_and_the_page_is_clean(exporter: Exporter) -> None:
    page = exporter.wait_for(
        lambda page: value(page, "tokenswarm_exporter_scrapes_total", exporter="gpu", outcome="ok")
    )
    assert (value(page, "tokenswarm_exporter_resident_memory_bytes", exporter="gpu") or 0) > 1e6
    assert promtool_findings(exporter.text()) == ""


def test_rude_clients_do_not_hold_up_a_good_scrape_and_memory_stays_flat() -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with running("gpu", "--gpu-backend", "none", "--interval", "0.1") as exporter, contextlib.ExitStack() as rude:
        exporter.wait_for(lambda page: value(page, "tokenswarm_host_cpus"))
        watched = psutil.Process(exporter.process.pid)

        def crowd() -> None:
            for part in (b"", b"GET /met", request):  # half-open, half a request, and one who never reads
                for _number in range(20):
                    sock = rude.enter_context(connect(exporter.port))
                    sock.sendall(part)
            with ThreadPoolExecutor(50) as pool:
                texts = list(pool.map(lambda _number: exporter.text(), range(100)))
            assert all("tokenswarm_host_cpus" in text for text in texts)

        crowd()
        before = watched.memory_info().rss
        for _round in range(3):
            crowd()
            start_s = time.monotonic()
            exporter.samples()
            assert time.monotonic() - start_s < serving.ASK_S  # never waits for a rude one's time to run out
        assert watched.memory_info().rss - before < 8 << 20
        # The silent ones are cut after 5 s: their sockets end, the good ones' descriptors are free again.
        exporter.wait_for(lambda page: (value(page, "tokenswarm_exporter_open_fds", exporter="gpu") or 99) < 30)
        assert exporter.process.poll() is None
        assert exporter.stop() == 0


@pytest.mark.parametrize("part", [b"", b"GET /met"])
def test_who_does_not_ask_is_cut_long_before_a_connection_grows_old(exporter: Exporter, part: bytes) -> None:
    start_s = time.monotonic()
    assert raw(exporter.port, part) == b""
    assert time.monotonic() - start_s < (serving.ASK_S + serving.LIFE_S) / 2


def test_more_silent_connections_than_it_keeps_cost_the_oldest_ones_their_place() -> None:
    with running("gpu", "--gpu-backend", "none") as exporter, contextlib.ExitStack() as rude:
        for _number in range(serving.UNASKED_MAX + 50):
            rude.enter_context(connect(exporter.port))
        assert exporter.text()
        assert psutil.Process(exporter.process.pid).num_fds() < serving.UNASKED_MAX + 40


class InThread:
    """A server with a page of any size, in a thread of the test."""

    def __init__(self, body: bytes) -> None:
        self.rendered = 0
        self.version = 0
        self._body = body
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def _render(self) -> bytes:
        self.rendered += 1
        return self._body

    async def _run(self) -> None:
        args = serving.parser("test", "test", 0).parse_args(["--listen", "127.0.0.1:0"])
        point = serving.endpoint(args)
        self.port = point.sock.getsockname()[1]
        self.server = serving.Server(point, "test", serving.Page(lambda: self.version, self._render))
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.call_soon(self._ready.set)
        await self.server.run(self._stop)

    def __enter__(self) -> InThread:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_details: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_stuck_readers_of_a_big_page_give_way() -> None:
    """A newcomer's page begins long before their time is up. This reader shares its core: the best of three tries."""
    body = b"x" * (16 << 20)  # more than the kernel's buffers take, so that a reader who does not read is a burden
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    waits, whole = [], 0
    with InThread(body) as started:
        for _ in range(3):
            with contextlib.ExitStack() as rude:
                for _number in range(20):
                    rude.enter_context(connect(started.port)).sendall(request)
                until_s = time.monotonic() + 20
                while len(started.server._answering) < serving.ANSWERS_MAX and time.monotonic() < until_s:
                    time.sleep(0.01)  # every place is taken by one who does not read
                start_s = time.monotonic()
                with connect(started.port) as sock:
                    sock.sendall(request)
                    told = sock.recv(16)
                    waits.append(time.monotonic() - start_s)
                    with contextlib.suppress(ConnectionError):
                        while chunk := sock.recv(1 << 20):
                            told += chunk
                whole += told.startswith(b"HTTP/1.1 200") and told.endswith(body)
            if whole and min(waits) < 0.8 * serving.ANSWER_S:
                break
        assert min(waits) < 0.8 * serving.ANSWER_S, waits
        assert whole == started.server.scrapes["ok"] >= 1
        assert started.server.scrapes["slow_reader"] >= 1


def test_a_page_is_rendered_once_a_sample_however_many_ask() -> None:
    with InThread(b"page 1\n") as started:
        url = f"http://127.0.0.1:{started.port}/metrics"

        def ask(number: int) -> None:
            headers = {"Accept-Encoding": "gzip" if number % 2 else "identity"}
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60).close()

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(ask, range(50)))
        assert started.rendered == 1
        started.version += 1
        ask(0)
        assert started.rendered == 2


def test_the_token_is_asked_for(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with running("gpu", "--gpu-backend", "none", "--token-file", str(token)) as exporter:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                exporter.text(**headers)
            assert refusal.value.code == 401
            assert refusal.value.headers["WWW-Authenticate"] == "Bearer"
            refusal.value.close()
        text = exporter.text(Authorization="Bearer s3cret")
        assert 'scrapes_total{exporter="gpu",outcome="unauthorized"} 3.0' in text
        with urllib.request.urlopen(exporter.url.replace("/metrics", "/healthz"), timeout=60) as answer:
            assert answer.status == 200


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed (it makes the test's certificate)")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_tls_is_served_and_a_silent_handshake_holds_nothing_up(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    options = ("--gpu-backend", "none", "--tls-cert", str(cert), "--tls-key", str(key))
    with running("gpu", *options) as exporter, contextlib.ExitStack() as rude:
        for _number in range(20):
            rude.enter_context(connect(exporter.port))
        context = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(exporter.url, timeout=60, context=context) as answer:
            assert b"tokenswarm_gpus 0.0" in answer.read()
        assert exporter.url.startswith("https://")
        assert exporter.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_it_ends_cleanly_and_silently(number: int) -> None:
    with running("gpu", "--gpu-backend", "none") as exporter:
        exporter.text()
        exporter.process.send_signal(number)
        out, err = exporter.process.communicate(timeout=60)
        assert (exporter.process.returncode, out, err) == (0, "", "")


COMMANDS = {"gpu": gpu.main, "load": load.main, "ollama": ollama.main}
BUSY = "{busy}"
MISTAKES = [
    ("gpu", ["--listen", BUSY], "Address already in use"),
    ("ollama", ["--listen", BUSY], "Address already in use"),
    ("gpu", ["--listen", "9647"], "is not HOST:PORT"),
    ("gpu", ["--listen", ":9647"], "is not HOST:PORT"),
    ("gpu", ["--listen", "127.0.0.1:http"], "is not HOST:PORT"),
    ("gpu", ["--listen", "127.0.0.1:99999"], "is not HOST:PORT"),
    ("gpu", ["--listen", "no.such.host.invalid:1"], "no such address"),
    ("gpu", ["--listen", "192.0.2.1:0", "--insecure-listen"], "can't listen on 192.0.2.1:0"),
    ("gpu", ["--listen", "0.0.0.0:0"], "can be reached from other machines"),
    ("gpu", ["--listen", "[::]:0"], "can be reached from other machines"),
    ("ollama", ["--listen", "0.0.0.0:0"], "can be reached from other machines"),
    ("gpu", ["--token-file", "/nonexistent"], "--token-file /nonexistent can't be read"),
    ("gpu", ["--token-file", "/dev/null"], "must hold one token on one line"),
    ("gpu", ["--tls-cert", "/nonexistent"], "belong together"),
    ("gpu", ["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"], "--tls-cert /nonexistent"),
    ("gpu", ["--lisen", "x"], "unrecognized arguments: --lisen"),
    ("gpu", ["--gpu-backend", "cuda"], "none of auto, nvml, none, replay:FILE"),
    ("gpu", ["--gpu-backend", "replay:/nonexistent"], "/nonexistent can't be read"),
    ("gpu", ["--interval", "0"], "--interval 0.0 must be"),
    ("gpu", ["--interval", "nan"], "--interval nan must be"),
    ("gpu", ["--interval", "soon"], "invalid float value"),
    ("gpu", ["--engine-pid", "1", "--engine-name", "x"], "name the same thing"),
    ("gpu", ["--seconds", "5"], "give --record FILE, too"),
    ("gpu", ["--sysfs", "/nonexistent"], "--sysfs /nonexistent is no folder"),
    ("gpu", ["--record", "/tmp/x", "--gpu-backend", "none"], "--record needs a GPU backend"),
    ("ollama", ["--ollama", "localhost:11434"], "is not a plain http"),
    ("ollama", ["--ollama", "http://u:p@h/"], "is not a plain http"),
    ("ollama", ["--interval", "-1"], "--interval -1.0 must be"),
]


@pytest.mark.timeout(60)  # without its sentence it would serve
def test_tls_alone_lets_nobody_push(certificate: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cert, key = certificate
    code = COMMANDS["load"](["--listen", "0.0.0.0:0", "--tls-cert", str(cert), "--tls-key", str(key)])
    assert (code, "add --token-file (TLS alone does not say who may push)" in capsys.readouterr().err) == (15, True)


@pytest.mark.timeout(60)  # without its sentence it would serve
@pytest.mark.parametrize(("module", "args", "says"), MISTAKES, ids=lambda part: str(part))
def test_a_mistake_is_one_sentence_and_exit_15(
    capsys: pytest.CaptureFixture[str], module: str, args: list[str], says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = [] if "--listen" in args else ["--listen", "127.0.0.1:0"]
        code = COMMANDS[module]([*listen, *(busy if part == BUSY else part for part in args)])
    told = capsys.readouterr()
    assert code == 15, told.err
    assert says in told.err
    assert len(told.err.splitlines()) == 1
    assert told.out == ""


@pytest.mark.parametrize("module", ["gpu", "ollama"])
def test_the_process_ends_with_that_code(module: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run(module, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (ended.returncode, ended.stdout) == (15, "")
    assert ended.stderr.startswith(f"python -m exporters.{module}: can't listen on 127.0.0.1:")
    assert len(ended.stderr.splitlines()) == 1


def test_insecure_listen_is_a_way_out() -> None:
    with running("gpu", "--gpu-backend", "none", "--listen", "0.0.0.0:0", "--insecure-listen") as exporter:
        assert exporter.url.startswith("http://0.0.0.0:")


def test_a_tally_never_runs_backwards() -> None:
    tally = Tally()
    key = ("gpu", "x")
    assert [tally.advance(key, raw) for raw in (100, 150, 20, 30)] == [100, 150, 150, 160]
    tally.rebase("gpu")
    assert [tally.advance(key, raw) for raw in (500, 501)] == [160, 161]


def test_a_sum_keeps_what_its_owners_had_when_they_go() -> None:
    total = Sum()
    steps: list[dict[object, float]] = [{"a": 5, "b": 1}, {"a": 6}, {"a": 6, "c": 2}, {}]
    assert [total.advance(step) for step in steps] == [6, 7, 9, 9]


def test_what_is_not_a_number_is_absent_and_labels_are_cut() -> None:
    readings = Readings()
    for number in (None, float("nan"), float("inf")):
        readings.add("x", number, "a")
    readings.add("y", 1, "m" * 500)
    text = render({"y": Family("gauge", "Y.", ("model",))}, readings).decode()
    assert text.splitlines()[-1] == 'y{model="' + "m" * 128 + '"} 1.0'
    assert "x" not in readings.rows
