"""`tokenswarm path` over real processes and sockets: what a path does is found by its name, and nothing else is."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from exchanges import make_certificate
from nginx_server import nginx
from proxies import proxy
from rogue_gateway import gateway
from running import environ, free_port, tokenswarm
from simulator_process import simulator
from small_server import JSON, NOT_FOUND, Answer, backend, refusal

QUICK = ("--streams", "1,4", "--silence", "0", "--length", "0", "--itl-ms", "6", "--ttft-ms", "60")
CODES = {"transparent": 0, "delays": 30, "alters": 31, "loses": 32}
NOTES = {"request-id-lost", "http-1.0", "broken-ends-whole", "gzip-packed"}
NOISE = {"first-token-late", "tokens-merged", "machine-busy"}  # what a busy machine makes of sixteen processes


class Measured:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def report(self) -> dict[str, Any]:
        assert self.out, self.err
        return json.loads(self.out)

    @property
    def codes(self) -> set[str]:
        return {found["code"] for found in self.report["findings"]} - NOISE


def measure(via: str, port: int, home: Path, *more: str, seconds: float = 120, **environment: str) -> Measured:
    command = tokenswarm("path", "--via", via, "--upstream-port", str(port), "--json", *QUICK, *more)
    done = subprocess.run(
        command,
        cwd=home,
        env=environ(home, **environment),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Measured(done)


# What each mode of the gateway must be called; a mode is what it does, so several may follow from one.
MODES: dict[str, tuple[str, set[str]]] = {
    "plain": ("transparent", set()),
    "drops-usage": ("alters", {"usage-dropped", "fields-dropped"}),
    "drops-finish": ("alters", {"finish-changed"}),
    "renames": ("alters", {"id-changed", "model-changed", "fields-added"}),
    "loses": ("loses", {"tokens-lost"}),
    "reorders": ("loses", {"tokens-reordered"}),
    "ends-whole": ("loses", {"failures-hidden"}),
    "retries": ("alters", {"retries"}),
    "hides-status": ("alters", {"status-changed"}),
    "early-head": ("alters", {"early-head"}),
    "drops-options": ("alters", {"options-dropped"}),
    "goes-on": ("alters", {"abandoned-goes-on"}),
    "dies": ("loses", {"answers-lost"}),
    "breaks": ("loses", {"answers-lost"}),
    "closes": ("alters", {"circuit-open"}),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """All modes, a few side by side."""
    home = tmp_path_factory.mktemp("path")

    def one(mode: str) -> Measured:
        port = free_port()
        with gateway(mode, ("127.0.0.1", port)) as stood:
            return measure(stood.url, port, home, "--results", f"out-{mode}")

    with ThreadPoolExecutor(6) as pool:
        found = dict(zip(MODES, pool.map(one, MODES), strict=True))
    found["plain"].home = home  # type: ignore[attr-defined]  # for the test of what it writes
    return found


@pytest.mark.parametrize("mode", MODES)
def test_what_a_gateway_does_is_found_by_name(measured: dict[str, Measured], mode: str) -> None:
    verdict, codes = MODES[mode]
    found = measured[mode]
    assert codes <= found.codes, found.report["findings"]
    grave = {f["code"] for f in found.report["findings"] if f["word"] in ("alters", "loses")}
    alone = ("plain", "drops-usage", "drops-finish", "renames", "loses", "reorders", "drops-options", "goes-on")
    if mode in (*alone, "breaks", "closes"):
        assert grave - codes - ({"usage-dropped", "finish-changed"} if mode == "drops-options" else set()) == set()
    if found.report["verdict"] != "delays":
        assert found.report["verdict"] == verdict
    assert found.code == CODES[found.report["verdict"]]


def test_the_report_is_written_and_drawn(measured: dict[str, Measured]) -> None:
    folder: Path = measured["plain"].home / "out-plain"  # type: ignore[attr-defined]
    assert json.loads((folder / "path.json").read_bytes()) == measured["plain"].report
    page = (folder / "report.html").read_text("utf-8")
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    lines = [one for one in root.iter() if "line" in one.get("class", "").split()]
    assert len(lines) >= 2, "the two timelines of one stream"
    trace = measured["plain"].report["trace"]
    assert len(trace["sent_s"]) == len(trace["seen_s"]) == 48
    assert measured["plain"].report["marks"]["via"] == "1.1 rogue"
    level = measured["plain"].report["levels"][1]
    assert (level["streams"], level["via"]["ok"], level["direct"]["ok"]) == (4, 4, 4)


@pytest.mark.parametrize("api", ["ollama-chat"])
def test_each_api_straight_to_the_engine_is_transparent(tmp_path: Path, api: str) -> None:
    port = free_port()
    found = measure(f"http://127.0.0.1:{port}", port, tmp_path, "--api", api, "--accept", "delays")
    assert found.code == 0, found.err + found.out
    assert found.codes - NOTES == set()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nginx", {"tokens-held-back"}),
        ("haproxy", {"tokens-held-back"}),
        ("lighttpd", {"tokens-held-back", "abandoned-goes-on"}),
    ],
)
def test_real_proxies_and_their_mends(tmp_path: Path, name: str, wanted: set[str]) -> None:
    def one(mended: bool) -> Measured:
        port = free_port()
        with proxy(name, tmp_path / f"{mended}", f"127.0.0.1:{port}", mended=mended) as url:
            return measure(url, port, tmp_path)

    with ThreadPoolExecutor(2) as pool:
        as_it_comes, mended = pool.map(one, (False, True))
    assert as_it_comes.codes - NOTES == wanted, as_it_comes.report["findings"]
    assert "tokens-held-back" not in mended.codes, mended.report["findings"]


def test_through_tls(tmp_path: Path) -> None:
    port = free_port()
    certificate = make_certificate(tmp_path)
    with nginx(tmp_path, certificate, f"http://127.0.0.1:{port}") as (url, _):
        found = measure(url, port, tmp_path, "--ca-file", str(certificate[1]), "--accept", "delays")
        stranger = measure(url, port, tmp_path, "--wait", "1")
    assert found.code == 0, found.err + found.out
    assert (stranger.code, "is not trusted" in stranger.err) == (14, True)


def test_silence_that_the_path_cuts_and_gzip_that_stores(tmp_path: Path) -> None:
    port = free_port()
    conf = """proxy_read_timeout 2s; proxy_http_version 1.1; gzip on; gzip_types text/event-stream; gzip_proxied any;
              gzip_min_length 0;"""
    with proxy("nginx", tmp_path / "p", f"127.0.0.1:{port}", more=conf) as url:
        found = measure(url, port, tmp_path, "--silence", "4", "--length", "3")
    assert {"time-out", "gzip-stored"} <= found.codes, found.report["findings"]
    told = next(one["message"] for one in found.report["findings"] if one["code"] == "time-out")
    assert "cut 2." in told or "cut 3." in told, told
    assert found.code == 32


# -- where it does not lead ----------------------------------------------------------------------------------------


@contextmanager
def talks_no_http() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    with server.accept()[0] as sock:
                        sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


PAGE: Answer = (200, {"content-type": "text/html"}, b"<html><title>Sign in</title></html>")
ELSEWHERE: dict[str, tuple[Answer, str]] = {
    "web page": (PAGE, "a web page came (HTTP 200, text/html)"),
    "no key": (refusal(401, {"error": {"message": "no api key"}}), "it asks for a key (HTTP 401: no api key)"),
    "forbidden": (refusal(403, {"detail": "not you"}), "--header-from-env"),
    "not found": (NOT_FOUND, "it has no /v1/chat/completions"),
    "redirect": ((302, {**JSON, "location": "https://login.example/"}, b""), "a redirect to https://login.example/"),
    "bad gateway": (refusal(502, {"error": "connection refused"}), "HTTP 502: connection refused"),
}


def test_a_path_that_leads_elsewhere_is_told_apart_and_the_engine_ended(tmp_path: Path) -> None:
    """Each in its own process, side by side; afterwards nobody listens on the engine's port."""
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(backend(lambda _, a=answer: a)).url for name, (answer, _) in ELSEWHERE.items()
        }
        urls["another engine"] = stack.enter_context(simulator("--preset", "instant", "--model", "other")).url
        urls["no http"] = stack.enter_context(talks_no_http())
        urls["nothing"] = f"http://127.0.0.1:{free_port()}"
        ports = {name: free_port() for name in urls}
        with ThreadPoolExecutor(3) as pool:
            runs = pool.map(lambda name: measure(urls[name], ports[name], tmp_path, "--wait", "1"), urls)
            found = dict(zip(urls, runs, strict=True))
    wanted = {name: words for name, (_, words) in ELSEWHERE.items()}
    wanted |= {"another engine": "The model `sim` does not exist", "no http": "breaks HTTP", "nothing": "refused"}
    for name, words in wanted.items():
        said = found[name].err.splitlines()[-1]
        assert (found[name].code, found[name].out, "Traceback" in found[name].err) == (14, "", False), (name, said)
        assert words.lower() in said.lower(), (name, said)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", ports[name]), 1)


def test_a_path_that_dies_in_the_middle_is_told_and_the_engine_ended(tmp_path: Path) -> None:
    port = free_port()
    with gateway("shuts", ("127.0.0.1", port)) as stood:
        found = measure(stood.url, port, tmp_path)
    assert (found.code, found.out, "Traceback" in found.err) == (14, "", False), found.err
    assert f"{stood.url} led to the engine, and died in the middle: can't connect" in found.err
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)


def test_another_engine_that_answers_is_no_path_to_ours(tmp_path: Path) -> None:
    with simulator("--preset", "instant", "--model", "sim") as other:
        found = measure(other.url, free_port(), tmp_path, "--wait", "1")
    assert (found.code, "another engine answers there, model sim" in found.err) == (14, True), found.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--via", "ftp://x", "--upstream-port", "9"), "must look like http://host:port"),
        (("--via", "http://x", "--upstream-port", "0"), "--upstream-port 0 must be from 1 to 65535"),
        (("--via", "http://x", "--upstream-port", "9", "--streams", "0"), "--streams 0: numbers from 1 to 512"),
        (("--via", "http://x", "--upstream-port", "9", "--accept", "fine"), "--accept fine: the verdicts are"),
        (("--via", "http://x", "--upstream-port", "9", "--silence", "-1"), "--silence -1 must be from 0 to 900"),
        (("--via", "http://x", "--upstream-port", "9", "--header-from-env", "a"), "write NAME=VARIABLE"),
        (("--via", "http://x", "--upstream-port", "9", "--header-from-env", "a=NOT_THERE"), "NOT_THERE"),
        (("--via", "https://x", "--upstream-port", "9", "--ca-file", "no.pem"), "no.pem"),
        (("--upstream-port", "9"), "--via"),
        (("--via", "http://x", "--upstream-port", "9", "--results", "file"), "file: can't be written: File exists"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    """A file where results go, too: it was told behind the measurement."""
    (tmp_path / "file").write_text("")
    port = str(free_port())
    command = [word if word != "9" else port for word in more]
    done = subprocess.run(
        tokenswarm("path", *command),
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    code = 16 if "written" in words else 15
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (code, 1), done.stderr
    assert words in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = measure("http://127.0.0.1:1", taken.getsockname()[1], tmp_path)
    assert (found.code, "give another --upstream-port" in found.err) == (15, True), found.err
