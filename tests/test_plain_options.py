"""Plain Locust: a mistake in an option of Locust's own is one sentence before the load, and no traceback behind it."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from exchanges import make_certificate
from running import REPO, SAMPLES, eventually, free_port, locust, program, run
from simulator_process import simulator

NOBODY = ("--headless", "-u", "1", "-t", "1s", "--host", "http://127.0.0.1:9")

TAGGED = """
from locust import tag
from tokenswarm.cluster import plugin
from tokenswarm.cluster.users import ReplayUser

class Mine(ReplayUser):
    tasks = [tag("slow", "night")(ReplayUser.replay)]
"""

PARSER = """
import json, sys
from locust import argument_parser
from tokenswarm.cluster.plain_options import watch_files
parser = argument_parser.get_empty_argument_parser()
argument_parser.setup_parser_arguments(parser)
watch_files(parser, lambda error: sys.exit(str(error)))
given = parser.parse_args(sys.argv[1:])
print(json.dumps([given.html_file, given.csv_prefix, given.json_file, given.logfile]))
"""


@pytest.mark.parametrize(
    ("option", "file"),
    [("--csv", "/dev/null/x/p"), ("--csv", "/proc/p"), ("--html", "/dev/null/x.html"), ("--html", "."),
     ("--json-file", "/proc/nobody/x"), ("--logfile", "/dev/null/x")],
)  # fmt: skip
def test_a_file_that_can_not_be_written_is_16_before_the_target_is_asked(
    option: str, file: str, tmp_path: Path
) -> None:
    finished = run(locust("chat.py", *NOBODY, option, file), tmp_path, 30)

    assert finished.code == 16, finished.out
    assert finished.out.startswith("tokenswarm: ")
    assert f"{option} {file}: can't be written: " in finished.out
    assert finished.out.count("\n") == 1, finished.out


def test_files_that_are_there_are_kept_and_none_is_left_behind(tmp_path: Path) -> None:
    kept, new = tmp_path / "kept.html", tmp_path / "folder" / "new"
    kept.write_text("a report", "utf-8")
    words = ["--html", str(kept), "--csv", str(new), "--json-file", str(new), "--logfile", "/dev/stderr"]
    command = [sys.executable, "-c", PARSER, *words]
    given = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(given.stdout) == words[1::2]
    assert kept.read_text("utf-8") == "a report"
    assert list(new.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--tags", "fast"), "--tags fast: no task of Mine is left, so its users would send nothing; its tags are"),
        (("--exclude-tags", "night"), "--exclude-tags night: no task of Mine is left"),
        (("--tags", "slow", "--exclude-tags", "night"), "--tags slow and --exclude-tags night: no task of Mine"),
        (("--tags", "night"), "127.0.0.1:9"),
    ],
)
def test_tags_that_leave_no_task_are_15(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(TAGGED, "utf-8")
    finished = run(locust(str(mine), *NOBODY, "--dataset", str(SAMPLES / "sharegpt.json"), *words), tmp_path, 30)

    assert finished.code == (14 if sentence == "127.0.0.1:9" else 15), finished.out
    assert sentence in finished.out
    assert "Traceback" not in finished.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--web-login",), "--web-login: the locustfile does not say who may log in"),
        (("--web-port", "99999"), "--web-port 99999 must be from 1 to 65535"),
        (("--master", "--master-bind-port", "70000"), "--master-bind-port 70000 must be from 1 to 65535"),
        (("--worker", "--master-port", "70000"), "--master-port 70000 must be from 1 to 65535"),
        (("--profile", "smoke"), "--run-profile smoke is what starts from a profile"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_an_option_that_can_not_do_what_it_says_is_15(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    """ZeroMQ takes 70000 for 4464; Locust's page of a login that nobody set up is an error for everybody."""
    page = () if "--web-port" in words else ("--web-port", str(free_port()))
    finished = run(locust("chat.py", "--host", "http://127.0.0.1:9", *page, *words), tmp_path, 15)
    assert finished.code == 15, finished.out
    assert sentence in finished.out
    assert "Traceback" not in finished.out


def test_the_stop_timeout_is_the_drain_and_exit_codes_are_ours(tmp_path: Path) -> None:
    words = ("--headless", "-u", "2", "-t", "2s", "--dataset", str(SAMPLES / "sharegpt.json"), "--max-tokens", "2000")
    words = (*words, "--stop-timeout", "1", "--exit-code-on-error", "7")
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "50") as engine:
        finished = run(locust("chat.py", *words, "--host", engine.url), tmp_path, 30)
    assert finished.manifest["profile"]["phases"]["drain"] == 1
    assert finished.summary["requests"]["censored"] == 2
    assert finished.code == 11
    assert "--exit-code-on-error has no effect: the exit code is the verdict's" in " ".join(finished.out.split())


def test_several_workloads_are_15_and_one_of_them_is_none(tmp_path: Path) -> None:
    words = (*NOBODY, "--dataset", str(SAMPLES / "sharegpt.json"), "-f", str(REPO / "locustfiles"))
    several = run(locust("chat.py", *words), tmp_path, 30)
    one = run(locust("chat.py", *words, "Completions"), tmp_path, 30)

    assert several.code == 15, several.out
    assert "Arrivals and Chat and Completions are different workloads, and a run has one" in several.out
    assert one.code == 14, one.out


@pytest.mark.parametrize(
    ("cert", "key", "sentence"),
    [
        ("cert.pem", "", "--tls-cert and --tls-key belong together: without --tls-key the web UI would be plain HTTP"),
        ("", "key.pem", "without --tls-cert the web UI would be plain HTTP"),
        ("none.pem", "key.pem", "--tls-cert none.pem: can't be read: No such file or directory"),
        ("cert.pem", ".", "--tls-key .: can't be read: Is a directory"),
        ("empty.pem", "key.pem", "--tls-cert empty.pem with --tls-key key.pem: no certificate and its key without"),
        ("cert.pem", "locked.pem", "--tls-cert cert.pem with --tls-key locked.pem: no certificate and its key without"),
    ],
)
def test_tls_that_the_web_ui_can_not_speak_is_15(cert: str, key: str, sentence: str, tmp_path: Path) -> None:
    made, _ = make_certificate(tmp_path)
    (tmp_path / "empty.pem").touch()
    locks = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", str(made), "-out", "locked.pem"]
    subprocess.run(locks, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    words = [word for option, name in (("--tls-cert", cert), ("--tls-key", key)) if name for word in (option, name)]
    finished = run(locust("chat.py", "--web-port", str(free_port()), *words), tmp_path, 30)

    assert finished.code == 15, finished.out
    assert sentence in finished.out
    assert "Traceback" not in finished.out


def test_and_that_which_it_can_is_spoken(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    port = free_port()
    words = ("--web-port", str(port), "--tls-cert", "cert.pem", "--tls-key", "key.pem")
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with program(locust("chat.py", *words), tmp_path) as started:
        started.await_output("the web UI listens on")
        assert eventually(lambda: reached(f"https://localhost:{port}", context), 20), started.output


def reached(url: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30, context=context) as answer:
            return bool(answer.read())
    except OSError:
        return False
