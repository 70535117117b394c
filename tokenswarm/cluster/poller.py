"""Polls the engine's and the GPU exporters' pages, at each edge of a stage and once a second. A watcher of the run.

Each page has a greenlet and a connection of its own and a second to answer; whatever it does instead is a gap, counted,
and never holds the run up. Only the master polls. A page of 5 000 series takes it 2 ms to read, which delays no stamp:
those are the kernel's. `finish` puts what was seen into the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import gevent
import msgspec
from gevent.event import Event

from tokenswarm.client import preflight
from tokenswarm.client.page import Page as Answer
from tokenswarm.client.page import request
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import Target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.engines.failure import clean_line, hide, secret_words
from tokenswarm.kv_cache import KvShape
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.environment import gpu_headers, secret_headers
from tokenswarm.profile.load import Stage
from tokenswarm.profile.profile import Profile
from tokenswarm.record import Outcome
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry import engines, join, kv, ollama
from tokenswarm.telemetry.exposition import GapReason
from tokenswarm.telemetry.gpu import Price
from tokenswarm.telemetry.join import StageTold
from tokenswarm.telemetry.kv import KvBlock
from tokenswarm.telemetry.watch import EngineWatch, GpuWatch

PATIENCE_S = 1.0  # for one page, from connecting to the last byte
ACCEPT = {"accept": "text/plain; version=0.0.4, application/json"}
TRIES = 3  # a target without metrics, found by `auto`, is asked so often and then left alone
HOPS = 3  # redirects on the same server that are followed: `/metrics` of a mounted application is `/metrics/`
STOOD = 2  # looks in a row, so that chance is none: levels alone may come back to what they were
REDIRECTS = (301, 302, 303, 307, 308)
NOT_YET = (408, 425, 429)  # and 5xx: a server that is still loading; other errors say that there is no such page
REASONS: dict[Outcome, GapReason] = {
    Outcome.TIMEOUT: "timeout",
    Outcome.CONNECT: "connect",
    Outcome.DNS: "connect",
    Outcome.TLS: "connect",
    Outcome.RESET: "closed_early",
    Outcome.PROTOCOL: "http_framing",
    Outcome.OVERSIZE: "too_large",
}
HINTS = {
    401: "it wants a key",
    403: "it wants a key",
    404: "there is no such page",
    501: "llama.cpp serves it with --metrics only",
}


class Page:
    """One page that is polled: where it is, what reads it, the greenlet."""

    def __init__(
        self, watch: EngineWatch | GpuWatch, target: Target, headers: Mapping[str, str], *, found: bool
    ) -> None:
        self.watch = watch
        self._target = target
        self._path = urlsplit(watch.url).path
        self._headers = headers
        self._secrets = secret_words(headers)
        self._found = found  # by `auto`: it may well have no metrics
        self._body = b""  # of the last page
        self._stood = 0  # looks in a row at which it stood still, though the engine went on
        self._wake = Event()
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._poll_forever)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def now(self) -> None:
        """Look at it at once: an edge of a window."""
        self._wake.set()

    @property
    def running(self) -> bool:
        return self._greenlet is not None and not self._greenlet.ready()

    def _poll_forever(self) -> None:
        while True:
            self._wake.clear()
            began_ns = monotonic_ns()
            hopeless = self._poll(began_ns)
            self.watch.problem = hide(self.watch.problem, self._secrets)  # servers repeat a key, and so do redirects
            if isinstance(self.watch, EngineWatch):
                said = self.watch.odd_says
                said.update({name: hide(text, self._secrets) for name, text in said.items()})
            if self._found and not self.watch.good and hopeless and self.watch.misses >= TRIES:
                return
            self._wake.wait(max(0.0, self.watch.interval_s - (monotonic_ns() - began_ns) / NS_PER_S))

    def _poll(self, began_ns: int) -> bool:
        """One look. True where the server answered that it has no metrics here."""
        try:
            with gevent.Timeout(PATIENCE_S, TransportError(Outcome.TIMEOUT, f"no answer within {PATIENCE_S:g} s", "")):
                answer = self._ask()
        except TransportError as error:
            self.watch.gap(REASONS.get(error.outcome, "connect"), error.sentence, monotonic_ns())
            return False
        now_ns = monotonic_ns()
        if answer.status != 200:
            self.watch.gap("http_status", f"{self._path} answered HTTP {answer.status}{_hint(answer)}", now_ns)
            return answer.status < 500 and answer.status not in NOT_YET
        middle_ns, slack_ns = (began_ns + now_ns) // 2, (now_ns - began_ns) // 2
        reason = self.watch.page(answer.body, middle_ns, slack_ns, framed=answer.framed, stale=answer.cached)
        if reason is None and self._stands_still(answer):
            reason = self.watch.page(answer.body, middle_ns, slack_ns, framed=answer.framed, stale=True)
        hopeless = reason == "not_metrics"
        if hopeless and self._found and answer.body.lstrip()[:1] == b"[" and self._path.endswith("/metrics"):
            self._path = self._path.removesuffix("/metrics").removesuffix("/prometheus") + "/prometheus/metrics"
            self._target = msgspec.structs.replace(self._target, base_path="")
        return hopeless

    def _stands_still(self, answer: Answer) -> bool:
        """Whether a cache that says nothing keeps this page, as nginx's does: it is the one before, byte for byte, and
        is still that after a query of its own, which such a cache has not got, told of a later state. Twice in a row.
        """
        same, self._body = answer.body == self._body, answer.body
        if not same or "?" in self._path or not isinstance(self.watch, EngineWatch) or self.watch.stale:
            self._stood = 0
            return False
        try:
            past = self._get(f"?tokenswarm={monotonic_ns()}")
            later = past.status == 200 and self.watch.is_later(past.body)
            self._stood = self._stood + 1 if later and self._get().body == answer.body else 0
        except TransportError:
            return False  # the page itself did come
        return self._stood >= STOOD

    def _get(self, query: str = "") -> Answer:
        path = self._path.removeprefix(self._target.base_path)
        return request(self._target, "GET", path + query, {**ACCEPT, **self._headers}, timeout_s=PATIENCE_S)

    def _ask(self) -> Answer:
        """The answer, behind redirects on the same server. The last address is kept: it is asked from then on."""
        for _ in range(HOPS):
            answer = self._get()
            there = urljoin(f"{_root(self.watch.url)}{self._path}", answer.location)
            if answer.status not in REDIRECTS or not answer.location or _origin(there) != _origin(self.watch.url):
                break
            parts = urlsplit(there)
            self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self._target = msgspec.structs.replace(self._target, base_path="")
        return answer


class Poller:
    """Use it as a context around the run, and as one of its watchers; then `finish`. Without pages it does nothing."""

    def __init__(
        self,
        pages: list[Page],
        say: Callable[[str], None],
        price: Price | None = None,
        shape: KvShape | None = None,
        instances: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.pages = pages
        self._instances = instances or {}
        self._say = say
        self._price = price
        self._shape = shape
        self._told: dict[int, StageTold] = {}

    # What the controller says.

    def phase(self, number: int, phase: str, stage: Stage | None, seconds: float) -> None:  # noqa: ARG002 - the protocol
        """Another phase begins: windows open and close now, and each page is asked for at once."""
        self._find_twins()
        now_ns = monotonic_ns()
        for page in self.pages:
            page.watch.close(now_ns)
            if phase == "steady":
                page.watch.open(number, now_ns)
            page.now()

    def tick(self, merged: Merged) -> None:
        """Nothing: it has a clock of its own."""

    def note(self, text: str) -> None:
        """Nothing: notes go to the console."""

    # The run.

    def _watches(self) -> tuple[list[EngineWatch], list[GpuWatch]]:
        engines = [page.watch for page in self.pages if isinstance(page.watch, EngineWatch)]
        return engines, [page.watch for page in self.pages if isinstance(page.watch, GpuWatch)]

    def _find_twins(self) -> None:
        engines, _ = self._watches()
        for twin in join.find_twins(engines):
            self._say(f"{twin.url} is {join.TWIN.format(twin.twin)}")

    def stages(self, merged: Merged) -> dict[int, StageTold]:
        """What was told of the stages that are over, for whoever shows it live."""
        for block in merged.blocks:
            if block.phase == "steady" and block.stage not in self._told:
                told = join.of_stage(*self._watches(), block.stage, monotonic_ns())
                if told is not None:
                    self._told[block.stage] = told
        return self._told

    def targets(self) -> dict[str, list[str]]:
        """What the run is against, by the names under which a Prometheus may have scraped it, too."""
        _, cards = self._watches()
        gpus = sorted({gpu for watch in cards for gpu in watch.facts})
        return {**self._instances, **({"gpu": gpus} if gpus else {})}

    def kv(self, merged: Merged) -> KvBlock | None:
        """The KV-cache now, for whoever shows it live; None where nothing is watched or known of it."""
        engines, _ = self._watches()
        if not engines and self._shape is None:
            return None
        return kv.now(
            join.own(engines),
            self._shape,
            decoding=sum(worker.decoding for worker in merged.workers),
            prompt=_mean(block.prompt_len for block in merged.blocks),
            answer=_mean(block.output_len for block in merged.blocks),
        )

    def __enter__(self) -> Poller:
        for page in self.pages:
            page.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        for page in self.pages:
            page.stop()

    def fill(self, summary: Summary, now_ns: int) -> None:
        """Put what was seen until now into the blocks of the summary."""
        self._find_twins()
        engines, gpus = self._watches()
        join.fill(summary, engines, gpus, now_ns=now_ns, price=self._price, shape=self._shape)

    def finish(self, summary: Summary) -> None:
        """Wait a second for the readings at the last edge, stop, and fill the blocks of the summary."""
        now_ns = monotonic_ns()
        for page in self.pages:
            page.watch.close(now_ns)
        with gevent.Timeout(PATIENCE_S, False):
            while any(page.running and page.watch.waits for page in self.pages):
                gevent.sleep(0.02)
        self.stop()
        self.fill(summary, now_ns)
        for page in self.pages:
            void = page.watch.stale or (isinstance(page.watch, EngineWatch) and page.watch.several)
            if page.watch.looks and (void or not page.watch.good):
                self._say(f"no telemetry from {page.watch.url}: {page.watch.problem}")
            elif isinstance(page.watch, EngineWatch) and page.watch.left_out:
                self._say(f"telemetry of {page.watch.url}: {page.watch.left_out}")


def _mean(sketches: Iterable[Sketch]) -> float | None:
    n, total = 0, 0.0
    for sketch in sketches:
        n, total = n + sketch.n, total + sketch.sum
    return total / n if n else None


def of_run(profile: Profile, manifest: Mapping[str, Any], say: Callable[[str], None]) -> Poller:
    """What polls for this run. Raises ConfigError: a variable that is not set, a CA file or config.json unusable."""
    told = profile.telemetry
    versions: dict[str, str] = (manifest.get("engine") or {}).get("version") or {}
    pages = [] if told.engine_metrics == ("off",) else _engine_pages(profile, versions)
    secret = gpu_headers(told)
    for url in dict.fromkeys(_with_path(given, "/metrics") for given in told.gpu_exporters):
        watch = GpuWatch(url, told.interval)
        pages.append(Page(watch, preflight.make_checked_target(profile, url), secret, found=False))
    price = None
    if told.price_per_gpu_hour is not None:
        price = Price(told.price_per_gpu_hour, told.currency, told.gpus)
    return Poller(
        pages, say, price, kv.read_shape(told.model_config, told.kv_dtype, "`telemetry.kv_dtype`"), instances(profile)
    )


def instances(profile: Profile) -> dict[str, list[str]]:
    """By role (engine, host) the addresses of what the run is against, as Prometheus' label `instance` has them."""
    told = profile.telemetry
    given = [url for url in told.engine_metrics if url not in ("auto", "off")]
    urls = given if given and "auto" not in told.engine_metrics else [*profile.target, *given]
    return {
        "engine": list(told.engine_instances) or _names(urls),
        "host": list(told.host_instances) or _names(told.gpu_exporters),
    }


def _names(urls: Iterable[str]) -> list[str]:
    """HOST:PORT; where the scheme has that port anyway also HOST, since Prometheus 3 adds none to what it is told."""
    found = []
    for url in urls:
        scheme, host, port = _origin(url)
        bare = f"[{host}]" if host and ":" in host else str(host)
        found += [f"{bare}:{port}", *([bare] if (scheme, port) in (("http", 80), ("https", 443)) else [])]
    return list(dict.fromkeys(found))


def _engine_pages(profile: Profile, versions: Mapping[str, str]) -> list[Page]:
    """The pages of `engine_metrics`. Secrets go to the targets only: the load has told them already."""
    told = profile.telemetry
    secrets = {**profile.engine.headers, **secret_headers(profile)}
    own = {_origin(url) for url in profile.target}
    speaks_ollama = "/version" not in versions and (profile.engine.kind == "ollama" or "/api/version" in versions)
    path = "/api/ps" if speaks_ollama else "/metrics"
    version = versions.get("/api/version" if speaks_ollama else "/version", "")
    pages = []
    for given in sorted(
        told.engine_metrics, key="auto".__eq__
    ):  # behind the engines: a router's page may be one's of them
        urls = [url.rstrip("/") + path for url in profile.target] if given == "auto" else [_with_path(given, path)]
        for url in urls:
            read = ollama.read if urlsplit(url).path.endswith("/api/ps") else engines.Reader()
            watch = EngineWatch(url, told.interval, read, version)
            headers = secrets if _origin(url) in own else {}
            target = preflight.make_checked_target(profile, url)
            pages.append(Page(watch, target, headers, found=given == "auto"))
    return pages


def _hint(answer: Answer) -> str:
    if answer.status in REDIRECTS and answer.location:
        return f" to {clean_line(answer.location)[:120]}: give that address in `telemetry`"
    return f" ({HINTS[answer.status]})" if answer.status in HINTS else ""


def _root(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _with_path(url: str, path: str) -> str:
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + path
