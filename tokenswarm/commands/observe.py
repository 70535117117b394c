"""`tokenswarm observe [PROFILE]`: the engine, the exporters and Prometheus as processes around a run. No Docker needed.

Each is started on its usual port, on loopback; where a port is taken, on a free one, and a sentence says so. What
can't be started is left out with its reason: the run and whatever else there is go on. All of it stays up after the
run, until Ctrl-C or for --for; then every process is ended by its id, and nothing is left but results and --data DIR.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tokenswarm.commands import run_process
from tokenswarm.commands.services import Service
from tokenswarm.errors import ExitCode, ResultsError
from tokenswarm.own_process import command_of
from tokenswarm.profile import options, typed_yaml
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.bundled import configs
from tokenswarm.reports.folder import check_folder

RUN_OPTIONS = ("--slo", "--results", "--workers")
EXAMPLE = "http://127.0.0.1:8000"  # stands for the engine while the profile is checked
PORTS = {"load": 9646, "gpu": 9647, "ollama": 9648}
PROMETHEUS_PORT = 9090
NATIVE_FROM = (3, 8)  # the Prometheus that knows the options of prometheus-3.yml
READY_S = 30.0
STOP_S = 5.0
LAST_SCRAPES_S = 3.0  # the load exporter is scraped each second: the run's last numbers must be there, too
PAGE_BYTES_MAX = 1 << 20

ENGINE = ("tokenswarm.simulator", "--port", "0", "--preset", "small-gpu")
ENGINE_TARGETS = (
    (b"\nvllm:", "vllm.yml"), (b"\nllamacpp:", "llama-cpp.yml"),
    *((mark, "engine.yml") for mark in (b"\nsglang", b"\nlmdeploy", b"\ntgi_", b"\ntrtllm_")),
)  # fmt: skip
ENGINE_PAGES = ("/metrics", "/prometheus/metrics")  # the latter: TensorRT-LLM's, whose /metrics is JSON


class Beside(msgspec.Struct):
    """A process that runs beside the test, and the file that it writes to: its last line says why it ended."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def last_words(self) -> str:
        """Its last line, for a sentence about why it ended."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit {self.process.returncode}"

    def stop(self) -> None:
        if self.ended:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Wanted(msgspec.Struct, frozen=True):
    """What the user asked for. `words` go on to `tokenswarm run`."""

    profile: str
    host: str | None
    data: str | None
    keep_s: float | None  # None: until Ctrl-C
    words: list[str]


class Stopping(msgspec.Struct):
    """How often somebody asked for the end. The first time ends the run in order, a second one at once."""

    times: int = 0
    asked: threading.Event = msgspec.field(default_factory=threading.Event)

    def ask(self, *_: object) -> None:
        self.times += 1
        self.asked.set()


def main(words: list[str]) -> int:
    """Observe one run; its exit code. Raises UserError where nothing can be run, with everything ended again."""
    wanted = parse(words)
    check_folder(Path(wanted.words[wanted.words.index("--results") + 1]))
    stopping = Stopping()
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_process.signals_to(stopping.ask))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenswarm-observe-")))
        storage = _storage(Path(wanted.data) if wanted.data else work / "tsdb")
        target = (wanted.host or stack.enter_context(Service(*ENGINE))).rstrip("/")
        exporters = _exporters(stack, work, target)
        addresses = {name: url for name, (_, url) in exporters.items()}
        prometheus = _prometheus(stack, work, storage, addresses, target)
        if prometheus is not None:
            _tell(prometheus[1])
        if stopping.times:
            return ExitCode.INTERRUPTED
        gpus = _gpus(addresses.get("gpu"), target)
        code = _run(wanted, target, addresses.get("load"), gpus, stopping)
        if not stopping.times and code not in (ExitCode.TARGET, ExitCode.CONFIG):  # those sent no load
            watched = [beside for beside, _ in (*exporters.values(), *([prometheus] if prometheus else []))]
            _stay(watched, prometheus[1] if prometheus else None, wanted.keep_s, stopping)
    return code


def parse(words: list[str]) -> Wanted:
    """Our own options and those of `tokenswarm run`, checked as far as they can be. Raises ConfigError."""
    parser = options.parser_of("observe")
    add = parser.add_argument
    add("profile", nargs="?", help="the profile: a YAML file, or a bundled name (default: demo)")
    add("--host", metavar="URL", help="the engine to test; without it the embedded one is started")
    add("--data", metavar="DIR", help="where Prometheus keeps its data; without it they go with the end")
    add("--for", metavar="TIME", dest="keep", help="how long all of it stays up after the run (default: until Ctrl-C)")
    add("--workers", metavar="N", help="worker processes on this machine")
    options.add_arguments(parser, locust=False)
    options.refuse_secrets(words)
    given = parser.parse_args(words)
    keep_s = None if given.keep is None else profiles.seconds(given.keep, "--for")
    profile = given.profile or str(configs() / "profiles" / "demo.yaml")
    passed = (*options.OPTIONS, options.RATE[0], *options.STAGE_OPTIONS, *RUN_OPTIONS)
    values = [(option, getattr(given, option[2:].replace("-", "_"))) for option in passed]
    others = [word for option, value in values if value is not None for word in (option, value)]
    others += ["--no-probe"] if given.no_probe else []
    others += [word for pair in given.set for word in ("--set", pair)]
    target = ("target", typed_yaml.literal(given.host or EXAMPLE, "--host"))
    options.read_profile(profile, vars(given), [target, *options.of_run({**vars(given), "host": None})])
    return Wanted(profile, given.host, given.data, keep_s, others)


def _start(stack: contextlib.ExitStack, work: Path, name: str, command: Sequence[str]) -> Beside:
    """Start a process in a session of its own, so that Ctrl-C reaches us first; it ends with the stack."""
    log = work / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    service = Beside(name, process, log)
    stack.callback(service.stop)
    return service


def _wait(service: Beside, ready: Callable[[], bool]) -> bool:
    """Until `ready`; False where the process ended, or the time was up, before that."""
    pause = threading.Event()
    for _ in range(int(READY_S / 0.05)):
        if service.ended:
            return False
        if ready():
            return True
        pause.wait(0.05)
    return False


def _exporters(stack: contextlib.ExitStack, work: Path, target: str) -> dict[str, tuple[Beside, str]]:
    """The exporters that run, by name, with their addresses."""
    more: dict[str, list[str]] = {"load": [], "gpu": []}
    server = _server(target)
    if _page(f"{server}/api/version"):
        more["ollama"] = ["--ollama", server]
    running = {}
    for name, words in more.items():
        found = _exporter(stack, work, name, words)
        if found is not None:
            running[name] = found
    return running


def _exporter(stack: contextlib.ExitStack, work: Path, name: str, words: Sequence[str]) -> tuple[Beside, str] | None:
    """An exporter on its usual port, else on a free one, else none."""
    for port in (PORTS[name], 0):
        command = command_of(f"exporters.{name}", "--listen", f"127.0.0.1:{port}", *words)
        service = _start(stack, work, f"{name} exporter", command)

        def listening(log: Path = service.log) -> bool:
            return b"listening on http" in log.read_bytes()

        if _wait(service, listening):
            url = service.log.read_text(encoding="utf-8").split("listening on ", 1)[1].split()[0]
            address = url.removesuffix("/metrics")
            if not port:
                _say(f"the {name} exporter is at {address}, because port {PORTS[name]} is taken")
            return service, address
    _say(f"the {name} exporter does not start ({service.last_words()}); the run goes on without it")
    return None


def _prometheus(
    stack: contextlib.ExitStack, work: Path, storage: Path, addresses: dict[str, str], target: str
) -> tuple[Beside, str] | None:
    """Prometheus and its address; None, with a sentence, where there is none."""
    program = shutil.which("prometheus")
    if program is None:
        pages = ", ".join(f"{address}/metrics" for address in addresses.values())
        _say(f"Prometheus is not installed (Debian: apt install prometheus); the run goes on, and so do {pages}")
        return None
    port = PROMETHEUS_PORT
    if not _is_free(port):
        port = _free_port()
        _say(f"Prometheus gets port {port}, because {PROMETHEUS_PORT} is taken")
    config = configure(work / "prometheus", _version(program), addresses, target)
    url = f"http://127.0.0.1:{port}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={storage}"]
    service = _start(stack, work, "prometheus", [*command, f"--web.listen-address=127.0.0.1:{port}"])
    if _wait(service, lambda: _page(f"{url}/-/ready") is not None):
        return service, url
    _say(f"Prometheus does not start ({service.last_words()}); the run and the exporters go on without it")
    return None


def _storage(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"{folder}: can't make the folder: {error.strerror}") from None
    return folder


def configure(folder: Path, version: tuple[int, int], addresses: dict[str, str], target: str) -> Path:
    """The bundled configuration in `folder`, with the addresses of the exporters, and the engine's own metrics."""
    bundled = configs() / "prometheus"
    folder.mkdir()
    shutil.copytree(bundled / "rules", folder / "rules")
    name = "prometheus-3.yml" if version >= NATIVE_FROM else "prometheus.yml"
    text = (bundled / name).read_text(encoding="utf-8")
    for exporter, address in addresses.items():
        text = text.replace(f"127.0.0.1:{PORTS[exporter]}", address.removeprefix("http://"))
    path = folder / "prometheus.yml"
    path.write_text(text, encoding="utf-8")
    server = _server(target)
    scheme, _, address = server.partition("://")
    for page in ENGINE_PAGES:
        engine = b"\n" + (_page(f"{server}{page}") or b"")
        file = next((file for mark, file in ENGINE_TARGETS if mark in engine), None)
        if file is not None:
            place = folder / "targets" / file
            place.parent.mkdir(exist_ok=True)
            labels = f"{{role: engine, __scheme__: {scheme}, __metrics_path__: {page}}}"
            place.write_text(f"- targets: ['{address}']\n  labels: {labels}\n", encoding="utf-8")
            break
    return path


def _gpus(exporter: str | None, target: str) -> str | None:
    """The GPU exporter, if it sees GPUs and the engine is on this machine: they are those that it runs on."""
    page = _page(f"{exporter}/metrics") if exporter else None
    here = urlsplit(target).hostname in ("localhost", "127.0.0.1", "::1")
    return exporter if here and page is not None and b"\ntokenswarm_gpu_up{" in page else None


def _run(wanted: Wanted, target: str, push: str | None, gpus: str | None, stopping: Stopping) -> int:
    """`tokenswarm run` as a process, so that signals stay ours; the first one interrupts it in order."""
    command = [*run_process.COMMAND, wanted.profile, "--host", target]
    command += ["--push", push] if push and "--push" not in wanted.words else []
    command += ["--started-by", shlex.join(sys.argv)]
    # Before the user's own words: theirs win.
    command += ["--set", f"telemetry.gpu_exporters=[{gpus}]"] if gpus else []
    with subprocess.Popen([*command, *wanted.words], start_new_session=True) as run:
        return run_process.see_out(run, lambda: stopping.times)


def _stay(watched: Sequence[Beside], prometheus: str | None, keep_s: float | None, stopping: Stopping) -> None:
    """Keep all of it up; say when one ends by itself."""
    if prometheus is not None:
        until = "until Ctrl-C" if keep_s is None else f"for {keep_s:g} s"
        _say(f"the run is over; {prometheus} stays up {until}")
        stopping.asked.wait(LAST_SCRAPES_S)
    elif keep_s is None and not watched:
        return
    gone: set[str] = set()
    left_s = float("inf") if keep_s is None else keep_s
    while left_s > 0 and not stopping.asked.wait(min(0.5, left_s)):
        left_s -= 0.5
        for service in watched:
            if service.ended and service.name not in gone:
                gone.add(service.name)
                _say(f"{service.name} ended: {service.last_words()}")


def _tell(url: str) -> None:
    """Where to look."""
    query = "graph?g0.expr=tokenswarm_requests_in_flight&g0.tab=0&g0.range_input=5m"
    _say(f"Prometheus is at {url}; for example {url}/{query}")
    dashboards = configs().parent / "grafana" / "dashboards"
    where = str(dashboards) if dashboards.is_dir() else "grafana/dashboards of the source"
    _say(f"Grafana (11 or newer): add a Prometheus data source with that URL, and import {where}/*.json")


def _version(program: str) -> tuple[int, int]:
    """(major, minor) of Prometheus; (0, 0) where it does not say."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return 0, 0
    found = re.search(r"version (\d+)\.(\d+)", told.stdout + told.stderr)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _server(target: str) -> str:
    """Without what a base URL may end in, `/v1` or `/api`: metrics and versions stand beside it."""
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.netloc}"


def _page(url: str) -> bytes | None:
    """The body of a page that answers 200 within 2 s; no proxy, since what is asked stands beside us."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as answer:
            body: bytes = answer.read(PAGE_BYTES_MAX)
    except (OSError, ValueError):
        return None
    return body


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _say(sentence: str) -> None:
    print(f"tokenswarm: {sentence}", file=sys.stderr, flush=True)
