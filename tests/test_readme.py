"""README.md and docs/ci.md to the letter: their commands, as they stand there, in a fresh copy and a fresh environment.

The copy is what git knows, the environment a venv that has the program by `pip install .` and, since there may be no
network, finds the packages of this one. The commands run in a network of their own, where `gpu` and `gpu1` are names of
an embedded engine. What would take minutes is cut short by further words, unless TOKENSWARM_LONG=1 is set.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from running import REPO, Finished

LONG = bool(os.environ.get("TOKENSWARM_LONG"))
BIN = Path(sys.executable).parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STAGES = "--warmup 0s --drain 5s --set 'load.stages=[{users: 1, duration: 2s}, {users: 4, duration: 2s}]'"

SHORTER = {
    # what a command begins with: further words
    "tokenswarm run sweep": f"{STAGES} --set phases.settle=0s",
    "tokenswarm run ollama": f"{STAGES} --set phases.settle=0s",
    "tokenswarm run configs/profiles/ci.yaml": f"{STAGES}",
    "tokenswarm run --host http://gpu:8000 --rate": "--duration 3s --warmup 0s",
    "tokenswarm search search": "--rate 2,8 --set search.shortest=2s --set search.longest=3s --warmup 0s "
    "--set phases.settle=0s --set search.resolution=1",
    "locust": "-t 6s -u 4 -r 4 --warmup 0s",
}
ELSEWHERE = {
    "make test": "is what runs this",
    "make demo": "tests/test_run.py has the demo; it takes a minute",
    "tokenswarm data fetch": "tests/test_fetch.py has it; it takes the network",
}
"""Commands that are not run here, and why not."""


def commands(page: str) -> list[str]:
    """The lines behind a `$`, and those of `sh` blocks, whole; without what is run elsewhere."""
    found = []
    for kind, text in FENCE.findall((REPO / page).read_text("utf-8")):
        lines = text.replace("\\\n", " ").splitlines()
        if kind in ("console", "sh"):
            found += [re.sub(r"^\$ |\s+# .*", "", line) for line in lines if kind == "sh" or line.startswith("$ ")]
    return [re.sub(r"\s+", " ", line) for line in found if line and not line.startswith(tuple(ELSEWHERE))]


def shortened(command: str) -> str:
    if LONG:
        return command
    more = next((words for start, words in SHORTER.items() if command.startswith(start)), "")
    return f"{command} {more}".strip()


def test_the_pages_have_commands_and_each_that_is_cut_short_is_one_of_them() -> None:
    known = [*commands("README.md"), *commands("docs/ci.md"), *gitlab_script()]
    assert len(commands("README.md")) >= 6
    for start in SHORTER:
        assert any(command.startswith(start) for command in known), start


def gitlab_script() -> list[str]:
    page = (REPO / "docs/ci.md").read_text("utf-8")
    block = next(text for kind, text in FENCE.findall(page) if text.startswith("# .gitlab-ci"))
    job = yaml.safe_load(block)["load"]
    return [*job["script"], *job["after_script"]]


def github_steps() -> list[str]:
    """What the dry run's job says to the shell."""
    page = (REPO / "docs/ci.md").read_text("utf-8")
    block = next(text for kind, text in FENCE.findall(page) if text.startswith("# .github"))
    return [step["run"] for step in yaml.safe_load(block)["jobs"]["dry-run"]["steps"] if "run" in step]


@dataclass
class Stranger:
    """A machine on which nothing but a copy of the project is: its folder, its programs, a network of its own."""

    folder: Path
    home: Path
    enter: tuple[str, ...]

    def bash(self, script: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{self.home / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells that it builds with what is there
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        return subprocess.run(
            [*self.enter, "bash", "-e", "-o", "pipefail", "-c", script], cwd=self.folder, env=environ,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3600 if LONG else seconds, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def network(home: Path, *servers: str) -> Iterator[tuple[str, ...]]:
    """How to enter a network in which these commands serve. Skips, by name, where none may be made."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip", "mount"))):
        pytest.skip("a network namespace needs root, unshare, nsenter and ip")
    hosts = home / "hosts"
    hosts.write_text("127.0.0.1 localhost gpu gpu1\n", "utf-8")
    inside = f"ip link set lo up && mount --bind {hosts} /etc/hosts && echo ready && exec cat"
    command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", inside]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder, contextlib.ExitStack() as started:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.readline() != "ready\n":
                pytest.skip(f"no network namespace may be made here: {holder.stderr.read().strip()[:200]}")
            enter = ("nsenter", f"--target={holder.pid}", "--net", "--mount", "--wd=.")
            for words in servers:
                server = started.enter_context(
                    subprocess.Popen([*enter, *words.split()], stdout=subprocess.PIPE, text=True)
                )
                started.callback(server.terminate)
                assert server.stdout is not None
                assert server.stdout.readline().startswith("simulating ")
            yield enter
        finally:
            started.close()
            holder.terminate()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with `clone`, the tracked files, and `venv`, into which the README's line has installed them."""
    home = tmp_path_factory.mktemp("stranger")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git repository, so nobody knows what a clone of it holds")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPO / name).is_file() and not name.startswith("tests/"):
            (home / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, home / "clone" / name)
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True, timeout=120)
    packages = next((home / "venv").glob("lib/python*/site-packages"))
    (packages / "packages_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    script = (BIN / "locust").read_text("utf-8").splitlines()[1:]
    (home / "venv/bin/locust").write_text("\n".join([f"#!{home}/venv/bin/python", *script, ""]), "utf-8")
    (home / "venv/bin/locust").chmod(0o755)
    page = (REPO / "README.md").read_text("utf-8")
    (line,) = set(re.findall(r"`(python3 -m pip install \.)`", page))
    done = Stranger(home / "clone", home, ()).bash(line)
    assert done.returncode == 0, done.stdout + done.stderr
    where = Stranger(home, home, ()).bash(
        "python -c 'import tokenswarm; print(tokenswarm.__file__)'; tokenswarm --help"
    )
    assert where.stdout.startswith(str(home / "venv")), where.stdout + where.stderr
    for name in ("ShareGPT_V3_unfiltered_cleaned_split.json",):  # as `tokenswarm data fetch` would have put it
        shutil.copy(REPO / "configs/samples/sharegpt.json", home / "clone" / name)
    return home


@pytest.fixture(scope="module")
def stranger(installed: Path) -> Iterator[Stranger]:
    """With an engine at gpu:8000, and one at localhost:11434."""
    simulate = f"{installed}/venv/bin/tokenswarm simulate --preset paced"
    engines = [f"{simulate} --port 8000", f"{simulate} --port 11434 --model llama3.2"]
    with network(installed, *engines) as enter:
        yield Stranger(installed / "clone", installed, enter)


def ended(folder: Path, code: int, *, gates: bool = True) -> bool:
    """Well, or as a busy machine has it. `gates`: a run so short may miss one, or leave it undecided."""
    return (gates and code in (10, 12)) or Finished(code, "", folder).went_well


@pytest.mark.timeout(300 if not LONG else 7200)
def test_the_commands_of_the_readme_run_as_they_stand(stranger: Stranger) -> None:
    """Each sends its load and ends in a verdict; so short a run may leave a gate undecided, or miss it."""
    words = [shortened(command) for command in commands("README.md")]
    assert all(re.match(r"(tokenswarm|locust) ", command) for command in words), words
    with ThreadPoolExecutor(3 if not LONG else 1) as pool:
        all_done = list(pool.map(stranger.bash, words))
    for command, done in zip(words, all_done, strict=True):
        said = f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if command.startswith(("tokenswarm run", "tokenswarm search", "locust")):
            (folder,) = set(re.findall(r"results: (\S+)", done.stdout)) or {""}
            assert ended(stranger.folder / folder, done.returncode, gates=" smoke " not in command), said
            for name in ("summary.json", "report.html", "report.md", "junit.xml", "requests.jsonl"):
                assert (stranger.folder / folder / name).is_file(), said
        else:
            assert done.returncode == 0, said
        assert "Traceback" not in done.stderr, said


@pytest.mark.timeout(300 if not LONG else 7200)
def test_the_first_block_of_the_page_on_pipelines(stranger: Stranger) -> None:
    run, *rest = commands("docs/ci.md")
    done = stranger.bash("\n".join([f"set +e; {shortened(run)} >&2", *rest]))
    code = re.match(r"exit code (\d+)\n", done.stdout)
    assert code is not None
    assert ended(stranger.folder / "results/latest", int(code[1])), done.stdout + done.stderr[-3000:]
    assert "tokenswarm" in done.stdout.splitlines()[1]  # report.md


@pytest.mark.timeout(300 if not LONG else 7200)
def test_the_job_for_gitlab(stranger: Stranger) -> None:
    install, *script = gitlab_script()
    assert install == "python -m pip install ."
    done = stranger.bash("\n".join(shortened(line).removesuffix("|| true") for line in script[:1]) + " || code=$?; "
                         + "\n".join(script[1:]) + "; echo code ${code:-0}")  # fmt: skip
    code = re.search(r"^code (\d+)$", done.stdout, re.MULTILINE)
    assert code is not None
    assert ended(stranger.folder / "results/latest", int(code[1])), done.stdout + done.stderr
    assert "tokenswarm_requests_per_s" in (stranger.folder / "metrics.txt").read_text("utf-8")


@pytest.mark.timeout(300)
def test_the_dry_run_for_github(installed: Path) -> None:
    """Its own engine at port 8000, in a network of its own; both steps in one shell, which ends the engine."""
    install, load = github_steps()
    assert install == "python -m pip install ."
    with network(installed) as enter:
        began_s = time.monotonic()
        done = Stranger(installed / "clone", installed, enter).bash(
            f"trap 'kill %1' EXIT\n{load}" if shutil.which("curl") else "exit 77"
        )
    if done.returncode == 77:
        pytest.skip("curl is not on this machine")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{time.monotonic() - began_s:.0f} s"
    assert "verdict: " in done.stdout
