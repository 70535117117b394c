"""Where the master and the web UI listen, who is told so, and a port that can't be had."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running import LINUX, REPO, SAMPLES, Program, environ, eventually, free_port, locust, program, run, tokenswarm
from simulator_process import Server, simulator

from tokenswarm.cluster import entrance
from tokenswarm.commands import worker
from tokenswarm.errors import ConfigError

LOGIN = """

from locust import events

@events.init.add_listener
def set_up_a_login(environment, **_):
    environment.web_ui.app.secret_key = "a word"
"""
TOKEN = {"TOKENSWARM_RUN_TOKEN": "right"}
EVERYWHERE = {"0.0.0.0", "::", "*"}
IMPATIENT = (
    "import sys; from tokenswarm.cluster import controller; controller.JOIN_S = 6.0; import tokenswarm.cli as c; "
)
SEVERAL = """
import sys
from tokenswarm.cluster import port
import tokenswarm.cli
real = port.socket.getaddrinfo
def several(host, *more, **named):
    both = ("127.0.0.2", "127.0.0.3") if host in ("several.test", b"several.test") else (host,)
    return [one for each in both for one in real(each, *more, **named)]
port.socket.getaddrinfo = several
sys.exit(tokenswarm.cli.main(sys.argv[1:]))
"""
"""A name of two addresses, as most have where there is IPv6, too."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "instant") as server:
        yield server


def addresses(started: Program, port: int) -> set[str]:
    """Where a program listens, of one port."""
    listening = psutil.Process(started.process.pid).net_connections("tcp")
    return {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


def words_of(engine: Server) -> tuple[str, ...]:
    return ("--host", engine.url, "--dataset", str(SAMPLES / "sharegpt.json"), "-u", "1", "-t", "5s")


def profile(home: Path) -> str:
    (home / "profile.yaml").write_text(
        f"name: test\ntarget: http://127.0.0.1:9\ndataset: {{path: {SAMPLES / 'sharegpt.json'}}}\n"
        "load: {stages: [{users: 1, duration: 1s}]}\n",
        encoding="utf-8",
    )
    return str(home / "profile.yaml")


@pytest.mark.parametrize(
    ("more", "token", "master", "web", "said"),
    [
        ((), {}, {"127.0.0.1"}, {"127.0.0.1"}, "export TOKENSWARM_RUN_TOKEN"),
        (("--web-host", "0.0.0.0"), TOKEN, EVERYWHERE, EVERYWHERE, "Starting web interface at http://0.0.0.0"),
        (("--web-login",), TOKEN, EVERYWHERE, EVERYWHERE, "asks for a login and listens on every interface"),
        (("--web-host", "127.0.0.1", "--web-login"), {}, {"127.0.0.1"}, {"127.0.0.1"}, "from this machine only"),
    ],
    ids=["nothing said", "opened", "login", "login on loopback"],
)
def test_plain_locust_listens_where_it_should(
    engine: Server, tmp_path: Path, more: tuple[str, ...], token: dict[str, str], master: set, web: set, said: str
) -> None:
    at, page = free_port(), free_port()
    words = ("--master", "--master-bind-port", str(at), "--web-port", str(page), *words_of(engine), *more)
    file = "chat.py"
    if "--web-login" in more:  # refused where nobody could log in
        text = (REPO / "locustfiles" / file).read_text("utf-8") + LOGIN
        (tmp_path / "mine.py").write_text(text, "utf-8")
        file = str(tmp_path / "mine.py")
    with program(locust(file, *words), tmp_path, **token) as started:
        started.await_output(said)
        assert eventually(lambda: addresses(started, page) != set())
        assert addresses(started, at) <= master
        assert addresses(started, at)
        assert addresses(started, page) <= web
        if not more:
            assert "the web UI listens on 127.0.0.1 only; --web-host 0.0.0.0 opens it" in started.output


def test_an_interface_is_listened_to_at_its_address_of_ipv4(engine: Server, tmp_path: Path) -> None:
    """ZeroMQ takes one of them, and of its own accord that of IPv6."""
    at = free_port()
    words = ("--host", engine.url, "--expect-workers", "1", "--bind", f"lo:{at}")
    with program(tokenswarm("run", profile(tmp_path), *words), tmp_path, **TOKEN) as started:
        started.await_output("waiting for 1 worker")
        assert addresses(started, at) == {"127.0.0.1"}


@pytest.mark.skipif(not LINUX, reason="all of 127.0.0.0/8 is this machine on Linux only")
def test_a_name_has_all_of_its_addresses(engine: Server, tmp_path: Path) -> None:
    """ZeroMQ takes one of them, for ever: a worker that was told `localhost` never found a master on 127.0.0.1."""
    at = str(free_port())
    words = ("--host", engine.url, "--expect-workers", "1", "--set", "phases.warmup=0s")
    master = ("run", profile(tmp_path), *words, "--bind")
    worker = [sys.executable, "-c", SEVERAL, "worker", "--master-host", "several.test", "--master-port", at]
    with program(worker, tmp_path, **TOKEN) as joining:
        joining.await_output("waiting for the master at several.test")
        finished = run(tokenswarm(*master, f"127.0.0.3:{at}"), tmp_path, 30, **TOKEN)
        assert joining.finish(30).code == 0
    assert finished.went_well, finished.out

    with program([sys.executable, "-c", SEVERAL, *master, f"several.test:{at}"], tmp_path, **TOKEN) as started:
        started.await_output("waiting for 1 worker")
        assert addresses(started, int(at)) == {"127.0.0.2", "127.0.0.3"}


@pytest.mark.skipif(not LINUX, reason="all of 127.0.0.0/8 is this machine on Linux only")
def test_a_name_of_which_somebody_else_has_an_address_is_refused(engine: Server, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.3", 0))
        holder.listen()
        words = ("--host", engine.url, "--expect-workers", "1", "--bind", f"several.test:{holder.getsockname()[1]}")
        refused = run([sys.executable, "-c", SEVERAL, "run", profile(tmp_path), *words], tmp_path, 30, **TOKEN)
    assert (refused.code, "something else listens there" in refused.out) == (15, True), refused.out


def test_without_a_token_no_master_listens_to_other_machines(engine: Server, tmp_path: Path) -> None:
    for command in (
        locust("chat.py", "--master", "--headless", "--master-bind-host", "0.0.0.0", *words_of(engine)),
        tokenswarm("run", profile(tmp_path), "--host", engine.url, "--expect-workers", "1", "--bind", "0.0.0.0:5557"),
    ):
        finished = run(command, tmp_path, 30)
        assert finished.code == 15
        assert "export TOKENSWARM_RUN_TOKEN with the same random word on every machine" in finished.out
        assert "Traceback" not in finished.out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("address", ["taken", "192.0.2.1", "no-such-host.invalid"])
def test_a_port_that_can_not_be_had(engine: Server, tmp_path: Path, address: str) -> None:
    """One sentence, exit code 15, no empty results folder; plain Locust likewise."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        host, at = ("127.0.0.1" if address == "taken" else address), str(holder.getsockname()[1])
        remote = ("--expect-workers", "1", "--bind", f"{host}:{at}")
        before = engine.truth()["totals"]["received"]
        ours = run(tokenswarm("run", profile(tmp_path), "--host", engine.url, *remote), tmp_path, 30, **TOKEN)
        asked = engine.truth()["totals"]["received"] - before
        nobody = run(tokenswarm("run", profile(tmp_path), *remote), tmp_path, 30, **TOKEN)
        words = ("--master", "--headless", "--master-bind-host", host, "--master-bind-port", at, *words_of(engine))
        plain = run(locust("chat.py", *words), tmp_path, 30, **TOKEN)

    assert (ours.code, plain.code) == (15, 15), ours.out + plain.out
    why = "something else listens there" if address == "taken" else "name an address of this machine"
    assert (asked, nobody.out) == (0, ours.out), "it is told before the target is asked"
    for finished in (ours, plain):
        told = " ".join(finished.out.split())
        assert f"can't listen on {host}:{at}: " in told
        assert why in told
        assert "Traceback" not in told
    assert ours.out.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("number", ["0", "70000", "²", "9" * 30])
def test_a_number_that_no_port_has_is_not_that_of_another_one(number: str) -> None:
    """ZeroMQ would take 70000 for 4464, and 0 for one that nobody is told."""
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        entrance.address_of(f"127.0.0.1:{number}", 1)
    if number.isdecimal():
        with pytest.raises(ConfigError, match="from 1 to 65535"):
            worker.main(["--master-host", "127.0.0.1", "--master-port", number])


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_name_that_no_machine_can_have_is_a_sentence(engine: Server, host: str, tmp_path: Path) -> None:
    """Python has another error for it than for one that is not known."""
    with pytest.raises(ConfigError, match="name an address of this machine"):
        entrance.refuse_taken(host, 5557)
    exporter = [sys.executable, "-m", "exporters.load", "--listen", f"{host}:{free_port()}"]
    plain = locust("chat.py", "--master", "--headless", "--master-bind-host", host, *words_of(engine))
    for command in (tokenswarm("simulate", "--host", host), exporter, plain):
        told = run(command, tmp_path, 30, **TOKEN)
        assert (told.code, host in told.out, "Traceback" in told.out) == (15, True, False), told.out


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "lo", "*"])
def test_an_address_that_can_be_had_is_not_refused(host: str) -> None:
    at = free_port()
    entrance.refuse_taken(host, at)
    with socket.socket() as left:  # a connection of an earlier run that waits for its last packets is nobody's
        left.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        left.bind(("127.0.0.1", at))
        left.listen()
        with socket.create_connection(("127.0.0.1", at)):
            left.accept()[0].close()
    entrance.refuse_taken(host, at)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bind", "0.0.0.0:5557"), "--bind is for workers of other machines: say how many, --expect-workers 8"),
        (("--expect-workers", "1", "--workers", "2"), "--expect-workers waits for those of others: give one of them"),
    ],
)
def test_workers_of_here_and_of_elsewhere_are_not_mixed(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    refused = run(tokenswarm("run", profile(tmp_path), "--host", "http://127.0.0.1:9", *words), tmp_path, 30, **TOKEN)
    assert refused.code == 15
    assert said in refused.out


@pytest.mark.parametrize(
    ("token", "code", "said"), [("wrong", 15, "does not know this run's token"), ("", 14, "start")]
)
def test_a_master_that_gives_up_says_why(engine: Server, tmp_path: Path, token: str, code: int, said: str) -> None:
    """A word mistyped on a worker shows at once on both sides, and is the master's reason in the end."""
    at = str(free_port())
    words = tokenswarm("run", profile(tmp_path), "--host", engine.url, "--expect-workers", "1", "--bind")[3:]
    command = [sys.executable, "-c", f"{IMPATIENT}sys.exit(c.main(sys.argv[1:]))", *words, f"127.0.0.1:{at}"]
    with program(command, tmp_path, **TOKEN) as started:
        started.await_output(f"waiting for 1 worker on 127.0.0.1:{at}")
        if token:
            stray = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", at)
            refused = run(stray, tmp_path, 30, TOKENSWARM_RUN_TOKEN=token)
            assert refused.code == 15
            assert said in refused.out
            assert refused.out.count("\n") == 1
        finished = started.finish(30)

    assert finished.code == code
    assert "only 0 of 1 workers came within 6 s" in finished.out
    assert said in finished.out


def test_a_worker_says_on_stderr_where_it_waits(tmp_path: Path) -> None:
    at = str(free_port())
    command = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", at)
    with subprocess.Popen(command, env=environ(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        try:
            assert worker.stderr is not None
            line = worker.stderr.readline().decode()
        finally:
            worker.terminate()
            time.sleep(0.2)
            worker.kill()
        assert worker.stdout is not None
        printed = worker.stdout.read()

    assert line == f"waiting for the master at 127.0.0.1:{at}\n"
    assert printed == b""
