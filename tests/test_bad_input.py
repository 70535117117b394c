"""A user's mistake is one sentence with its place and its mend, the right exit code, quickly, and no load is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raw_server import AGAIN, LAST_CHUNK, Step, chunk, head, raw_server
from running import SAMPLES, locust, run, tokenswarm
from simulator_process import Server, simulator

GOOD = "target: http://127.0.0.1:9\ndataset: {path: %s}\nload: {stages: [{users: 1, duration: 1s}]}\n" % (
    SAMPLES / "sharegpt.json"
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "instant", "--model", "tiny") as server:
        yield server


def _file(name: str, text: str | bytes) -> Callable[[Path], None]:
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(data) and None


CASES: dict[str, tuple[int, str, Callable[[Path], None], list[str]]] = {
    # name: (exit code, words of the sentence, files, options)
    "no such profile": (15, "missing.yaml: no such file", _file("x", "x"), ["missing.yaml"]),
    "unknown key": (
        15,
        "p.yaml:4: unknown key `lod`; did you mean `load`?",
        _file("p.yaml", GOOD + "lod: 1\n"),
        ["p.yaml"],
    ),
    "wrong type": (15, "`workers: many` is not a whole number", _file("p.yaml", GOOD + "workers: many\n"), ["p.yaml"]),
    "an anchor": (15, "p.yaml:4: anchors and aliases", _file("p.yaml", GOOD + "name: &a b\n"), ["p.yaml"]),
    "wrong --set": (15, "--set", _file("p.yaml", GOOD), ["p.yaml", "--set", "load.users=3"]),
    "no such option": (15, "--userz", _file("p.yaml", GOOD), ["p.yaml", "--userz", "3"]),
    "another tool's word for users": (
        15,
        "did you mean `--users`?",
        _file("p.yaml", GOOD),
        ["p.yaml", "--concurrency", "3"],
    ),
    "nearly an option": (15, "did you mean `--host`?", _file("p.yaml", GOOD), ["p.yaml", "--hosts=http://a"]),
    "no users": (15, "must be between 1 and 1000000", _file("p.yaml", GOOD), ["p.yaml", "--users", "0"]),
    "no host in the variable": (15, "--host is empty", _file("p.yaml", GOOD), ["p.yaml", "--host", ""]),
    "no limits in the variable": (15, "--slo is empty", _file("p.yaml", GOOD), ["p.yaml", "--slo", ""]),
    "no folder in the variable": (15, "--results is empty", _file("p.yaml", GOOD), ["p.yaml", "--results="]),
    "no profile in the variable": (15, "the profile's name is empty", _file("p.yaml", GOOD), [""]),
    "a space behind the URL": (
        15,
        "`target: http://127.0.0.1:9 ` holds white space",
        _file("p.yaml", GOOD),
        ["p.yaml", "--host", "http://127.0.0.1:9 "],
    ),
    "no tokens": (
        15,
        "--max-tokens: `fixed: 0` must be 1 or more",
        _file("p.yaml", GOOD),
        ["p.yaml", "--max-tokens", "0"],
    ),
    "a key on the command line": (
        15,
        "secrets don't go on the command line",
        _file("p.yaml", GOOD),
        ["p.yaml", "--api-key=x"],
    ),
    "a missing variable": (
        15,
        "NO_SUCH_VARIABLE",
        _file("p.yaml", GOOD),
        ["p.yaml", "--set", "engine.headers_from_env={Authorization: NO_SUCH_VARIABLE}"],
    ),
    "no data set": (15, "gone.json", _file("p.yaml", GOOD), ["p.yaml", "--dataset", "gone.json"]),
    "a truncated data set": (
        15,
        "is the download complete",
        lambda folder: (
            _file("p.yaml", GOOD)(folder) or _file("cut.json", (SAMPLES / "sharegpt.json").read_bytes()[:5000])(folder)
        ),
        ["p.yaml", "--dataset", "cut.json"],
    ),
    "a bad line of JSONL": (
        15,
        "bad.jsonl:2",
        lambda folder: _file("p.yaml", GOOD)(folder) or _file("bad.jsonl", '{"prompt": "a"}\n{"prompt": \n')(folder),
        ["p.yaml", "--dataset", "bad.jsonl"],
    ),
    "an empty data set": (
        15,
        "empty.json",
        lambda folder: _file("p.yaml", GOOD)(folder) or _file("empty.json", "[]")(folder),
        ["p.yaml", "--dataset", "empty.json"],
    ),
    "an unknown model": (14, "has no model gpt-9; it has tiny", _file("p.yaml", GOOD), ["p.yaml", "--model", "gpt-9"]),
    "a closed port": (14, "Connection refused", _file("p.yaml", GOOD), ["p.yaml", "--host", "http://127.0.0.1:1"]),
    "an unknown host": (14, "no address", _file("p.yaml", GOOD), ["p.yaml", "--host", "http://no-such-host.invalid"]),
    "no URL": (15, "must look like http://host:port", _file("p.yaml", GOOD), ["p.yaml", "--host", "gpu"]),
    "a password in the URL": (
        15,
        "headers_from_env",
        _file("p.yaml", GOOD),
        ["p.yaml", "--host", "http://a:b@127.0.0.1:1"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tokenswarm_run(engine: Server, tmp_path: Path, name: str) -> None:
    code, words, prepare, options = CASES[name]
    prepare(tmp_path)
    if "--host" not in options:
        options = [*options, "--host", engine.url]
    before, began = engine.truth()["totals"]["received"], time.monotonic()
    finished = run(tokenswarm("run", *options), tmp_path, 30)

    assert finished.code == code, finished.out
    assert words in finished.out
    assert finished.out.startswith("tokenswarm: ")
    assert finished.out.count("\n") == 1, finished.out
    assert engine.truth()["totals"]["received"] == before
    assert not (tmp_path / "results").exists()
    assert time.monotonic() - began < 15  # a hang is what this catches; the sentence itself takes a second


@pytest.mark.parametrize(
    "name",
    [
        "no data set",
        "no users",
        "no host in the variable",
        "an unknown model",
        "a closed port",
        "a bad line of JSONL",
        "wrong --set",
    ],
)
def test_plain_locust(engine: Server, tmp_path: Path, name: str) -> None:
    code, words, prepare, options = CASES[name]
    prepare(tmp_path)
    options = options[1:]
    if "--host" not in options:
        options = [*options, "--host", engine.url]
    if "--dataset" not in options:
        options = [*options, "--dataset", str(SAMPLES / "sharegpt.json")]
    before = engine.truth()["totals"]["received"]
    finished = run(locust("chat.py", "--headless", "-u", "2", "-t", "2s", *options), tmp_path, 30)

    assert finished.code == code, finished.out
    assert words in finished.out
    assert "Traceback" not in finished.out
    assert engine.truth()["totals"]["received"] == before


PAGES = {
    "a login page": (200, head("text/html") + chunk(b"<html>log in</html>") + LAST_CHUNK, "not with a list of models"),
    "a wall": (
        401,
        head("text/plain", status="401 Unauthorized") + chunk(b"no") + LAST_CHUNK,
        "the server wants a key",
    ),
    "a redirect": (302, head("text/plain", "location: /x", status="302 Found") + LAST_CHUNK, "give the final address"),
    "garbage": (0, b"SSH-2.0-OpenSSH\r\n", "breaks HTTP/1.1 framing"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_server_that_is_none(tmp_path: Path, name: str) -> None:
    _, answer, words = PAGES[name]
    (tmp_path / "p.yaml").write_text(GOOD, encoding="utf-8")
    with raw_server((answer,)) as server:
        finished = run(tokenswarm("run", "p.yaml", "--host", f"http://127.0.0.1:{server.port}"), tmp_path, 30)

    assert finished.code == 14, finished.out
    assert words in finished.out
    assert finished.out.count("\n") == 1


def test_a_silent_server(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD, encoding="utf-8")
    with raw_server((30.0,)) as server:
        finished = run(tokenswarm("run", "p.yaml", "--host", f"http://127.0.0.1:{server.port}"), tmp_path, 30)

    assert finished.code == 14, finished.out
    assert "no answer within" in finished.out


def test_tls_to_a_plain_port(engine: Server, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GOOD, encoding="utf-8")
    finished = run(tokenswarm("run", "p.yaml", "--host", engine.url.replace("http:", "https:")), tmp_path, 30)

    assert finished.code == 14, finished.out
    assert f"{engine.url.removeprefix('http://')} speaks plain HTTP, no TLS: write http:// instead" in finished.out


def test_what_a_server_says_is_told_but_for_our_key(tmp_path: Path) -> None:
    """A server that does not know a field, and repeats the key: the report says why, and shows the key to nobody."""
    key = "sk-very-secret-0123"
    body = b'{"detail": "Unexpected fields: ignore_eos; your key %s is fine"}' % key.encode()
    refusal = head("application/json", f"content-length: {len(body)}", status="422 Unprocessable", chunked=False) + body
    models = b'{"data": [{"id": "m"}]}'
    listed = head("application/json", f"content-length: {len(models)}", chunked=False) + models
    (tmp_path / "p.yaml").write_text(
        "target: http://127.0.0.1:1\nengine: {model: m, probe: false, headers_from_env: {Authorization: KEY}}\n"
        "dataset: {format: synthetic}\nload: {stages: [{users: 1, duration: 500ms}], think_time: 50ms}\n"
        "phases: {warmup: 0s, drain: 1s}\ntelemetry: {engine_metrics: off}\n"
    )
    first: list[Step] = [listed, AGAIN, listed, AGAIN, listed, AGAIN]
    with raw_server([*first, *([refusal, AGAIN] * 200)], [refusal, *([AGAIN, refusal] * 200)]) as server:
        command = tokenswarm("run", "p.yaml", "--host", f"http://127.0.0.1:{server.port}")
        finished = run(command, tmp_path, 60, KEY=f"Bearer {key}")
        assert any(b"authorization: Bearer " + key.encode() in one for one in server.requests)

    assert finished.code == 11, finished.out
    assert "HTTP 422: Unexpected fields: ignore_eos; your key [hidden] is fine" in " ".join(finished.out.split())
    assert finished.summary["requests"]["error_says"]["http 422"].startswith("HTTP 422: Unexpected fields: ignore_eos")
    assert finished.folder is not None
    written = b"".join(path.read_bytes() for path in finished.folder.rglob("*") if path.is_file())
    assert b"Unexpected fields" in written
    assert key not in finished.out
    assert key.encode() not in written


def test_no_master(tmp_path: Path) -> None:
    finished = run(tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", "x"), tmp_path, 30)

    assert (finished.code, finished.out.count("\n")) == (15, 1)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("host", ["http://gpu", "gpu:5557"])
def test_a_master_that_no_machine_is_called(host: str, plain: bool, tmp_path: Path) -> None:
    words = ("--worker", "--master-host", host)
    command = locust("chat.py", *words) if plain else tokenswarm("worker", *words[1:], "--master-port", "5557")
    finished = run(command, tmp_path, 10)
    assert finished.code == 15
    assert f"--master-host {host}: is no name and no address of a machine; write it without scheme" in finished.out
    assert "Traceback" not in finished.out


def test_a_host_that_is_none_is_no_matter_of_the_port(tmp_path: Path) -> None:
    finished = run(tokenswarm("simulate", "--host", "no.such.host.invalid", "--port", "0"), tmp_path, 60)
    assert (finished.code, "choose another --host" in finished.out) == (15, True), finished.out


def test_a_taken_port(engine: Server, tmp_path: Path) -> None:
    finished = run(tokenswarm("simulate", "--port", engine.url.rsplit(":", 1)[1]), tmp_path, 30)

    assert finished.code == 15
    assert "--port" in finished.out


@pytest.mark.parametrize("words", [(), ("rnu",), ("report", "nowhere"), ("data", "info", "gone.json"), ("run",)])
def test_commands(tmp_path: Path, words: tuple[str, ...]) -> None:
    finished = run(tokenswarm(*words), tmp_path, 30)

    assert finished.code == 15, finished.out
    assert "Traceback" not in finished.out


def test_an_empty_address_is_none_to_listen_on(tmp_path: Path) -> None:
    finished = run(tokenswarm("simulate", "--host", "", "--port", "0"), tmp_path, 30)

    assert (finished.code, finished.out.count("\n")) == (15, 1)
    assert "--host is empty" in finished.out


def test_the_demo_has_a_help_of_its_own_and_starts_nothing(tmp_path: Path) -> None:
    finished = run(tokenswarm("demo", "--set", "name=x", "--help"), tmp_path, 30)

    assert finished.code == 0
    assert finished.out.startswith("usage: tokenswarm demo")
    assert "simulating" not in finished.out
