"""The small web server of every exporter: /metrics, /healthz and a page that says what this is.

Guarantees: loopback unless told otherwise, and beyond loopback never without a token or TLS; a page is rendered at
most once a sample; at most 8 answers are written at a time and one that a reader refuses to take gives way after
1 s; a connection that has not asked within 5 s, or is older than 15 s, is cut. A mistake of the user is one sentence.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import hmac
import html
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from exporters.families import CONTENT_TYPE, Family, Readings
from tokenswarm import descriptors
from tokenswarm.errors import ConfigError, ExitCode, UserError
from tokenswarm.terminal import end_signals, outlive_listeners
from tokenswarm.untold import UNTOLD

ANSWERS_MAX = 8
ASK_S = 5.0
ANSWER_S = 5.0
PATIENCE_S = 1.0
LIFE_S = 15.0
UNASKED_MAX = 256
"""Connections that have not sent their request yet. Far above the scrapers of one site, far below 1024 descriptors."""

OUTCOMES = ("ok", "unauthorized", "slow_reader", "busy", "broken")

FAMILIES = {
    "tokenswarm_exporter_cpu_seconds_total": Family("counter", "CPU time of the exporter itself.", ("exporter",)),
    "tokenswarm_exporter_resident_memory_bytes": Family(
        "gauge", "Resident memory of the exporter itself.", ("exporter",)
    ),
    "tokenswarm_exporter_open_fds": Family("gauge", "Open file descriptors of the exporter itself.", ("exporter",)),
    "tokenswarm_exporter_scrapes_total": Family(
        "counter", "Requests for /metrics before this page was rendered, by outcome.", ("exporter", "outcome")
    ),
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is a ConfigError (exit 15) instead of a usage text and exit 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _no_fault_of_ours(record: logging.LogRecord) -> bool:
    """Whether it is worth a word. Who sends what is no HTTP is answered with 400; his mistakes must fill no log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def parser(prog: str, description: str, port: int) -> Parser:
    """The options that every exporter has. `port` is its default port on 127.0.0.1."""
    options = Parser(prog=prog, description=description, allow_abbrev=False)
    options.add_argument(
        "--listen", metavar="HOST:PORT", default=f"127.0.0.1:{port}", help="where to serve (default %(default)s)"
    )
    options.add_argument(
        "--token-file", metavar="FILE", type=Path, help="scrapers must send the token in this file as a bearer token"
    )
    options.add_argument("--tls-cert", metavar="FILE", type=Path, help="serve HTTPS with this PEM certificate (chain)")
    options.add_argument("--tls-key", metavar="FILE", type=Path, help="the private key of --tls-cert")
    options.add_argument(
        "--insecure-listen", action="store_true", help="allow an address beyond loopback without a token or TLS"
    )
    return options


@dataclass(frozen=True)
class Endpoint:
    """A bound, listening socket and what guards it."""

    sock: socket.socket
    token: bytes | None
    tls: ssl.SSLContext | None

    @property
    def url(self) -> str:
        host, port = self.sock.getsockname()[:2]
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def endpoint(args: argparse.Namespace, *, tls_suffices: bool = True) -> Endpoint:
    """Bind what the options say. ConfigError: a bad or taken address, an unguarded one, a bad token or key file."""
    host, port = _host_port(args.listen)
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together; give both or neither")
    token = None if args.token_file is None else _token(args.token_file)
    tls = None if args.tls_cert is None else _tls(args.tls_cert, args.tls_key)
    family, address = _resolve(host, port)
    guarded = token is not None or (tls is not None and tls_suffices) or args.insecure_listen
    if not guarded and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        mend = "or --tls-cert and --tls-key" if tls_suffices else "(TLS alone does not say who may push)"
        raise ConfigError(
            f"--listen {args.listen} can be reached from other machines; "
            f"add --token-file {mend}, or --insecure-listen if the network is closed"
        )
    return Endpoint(_bind(family, address, args.listen), token, tls)


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"--listen {text!r} is not HOST:PORT; write for example 127.0.0.1:9647 or [::1]:9647")
    return host, int(port)


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "a name that none can be"
        raise ConfigError(f"--listen {host}:{port}: no such address ({why})") from None
    return found[0][0], (str(found[0][4][0]), port)


def _bind(family: int, address: tuple[str, int], asked: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
    if user_timeout is not None:
        # After we close, the kernel would go on offering the rest of an answer to a stuck reader for minutes.
        sock.setsockopt(socket.IPPROTO_TCP, user_timeout, int(LIFE_S * 1000))
    try:
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"can't listen on {asked}: {error.strerror}; choose another with --listen HOST:PORT"
        ) from None
    sock.setblocking(False)
    return sock


def _token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"--token-file {path} can't be read: {error.strerror}") from None
    if not token or b"\n" in token:
        raise ConfigError(f"--token-file {path} must hold one token on one line")
    return token


def _tls(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--tls-cert {cert} with --tls-key {key}: {error.strerror or error}") from None
    return context


class Page:
    """The newest rendering. `version` names the sample; `render` runs once for each version that is asked for."""

    def __init__(self, version: Callable[[], object], render: Callable[[], bytes]) -> None:
        self._version = version
        self._render = render
        self._rendered: object = None
        self._bodies: dict[str, bytes] = {}

    def body(self, encoding: str = "identity") -> bytes:
        """The page, plain ("identity") or compressed ("gzip")."""
        version = self._version()
        if not self._bodies or version != self._rendered:
            self._rendered, self._bodies = version, {"identity": self._render()}
        if encoding not in self._bodies:
            self._bodies[encoding] = gzip.compress(self._bodies["identity"], compresslevel=1)
        return self._bodies[encoding]


class Server:
    """Serves one page. `routes` are further routes of the exporter; `scrapes` counts requests by outcome.

    `other`: (does an Accept header prefer it?, its Content-Type, the page) of a second format. `refused` is told the
    path of each request that lacks the token.
    """

    def __init__(
        self,
        point: Endpoint,
        title: str,
        page: Page,
        routes: Sequence[web.RouteDef] = (),
        *,
        other: tuple[Callable[[str], bool], str, Page] | None = None,
        refused: Callable[[str], None] = lambda _path: None,
    ) -> None:
        self.scrapes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._point = point
        self._title = title
        self._page = page
        self._routes = routes
        self._other = other
        self._refused = refused
        self._unasked: dict[RequestHandler, None] = {}
        self._answering: dict[RequestHandler, float] = {}
        self._freed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Prints one line, `listening on URL`, once a scrape would be answered."""
        loop = asyncio.get_running_loop()
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self._about),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                *self._routes,
            ]
        )
        quiet = logging.getLogger("exporters.http")
        quiet.setLevel(logging.ERROR)
        quiet.addFilter(_no_fault_of_ours)
        runner = web.AppRunner(app, access_log=None, logger=quiet, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        accept = runner.server
        assert accept is not None  # set by setup()

        def guarded() -> RequestHandler:
            connection = accept()
            if len(self._unasked) >= UNASKED_MAX:
                self._cut(next(iter(self._unasked)))
            self._unasked[connection] = None
            loop.call_later(ASK_S, self._cut_if_unasked, connection)
            loop.call_later(LIFE_S, self._cut, connection)
            return connection

        handshake_s = ASK_S if self._point.tls else None
        server = await loop.create_server(
            guarded, sock=self._point.sock, ssl=self._point.tls, ssl_handshake_timeout=handshake_s
        )
        print(f"listening on {self._point.url}/metrics", flush=True)
        await stop.wait()
        server.close()
        await runner.cleanup()

    def _cut_if_unasked(self, connection: RequestHandler) -> None:
        if connection in self._unasked:
            self._cut(connection)

    def _cut(self, connection: RequestHandler) -> None:
        self._unasked.pop(connection, None)
        if connection.transport is not None:
            connection.transport.abort()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._unasked.pop(request.protocol, None)
        if self._point.token is not None and request.path != "/healthz":
            said = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(said, b"Bearer " + self._point.token):
                self.scrapes["unauthorized"] += request.path == "/metrics"
                self._refused(request.path)
                refusal = web.Response(
                    status=401, text="a bearer token is needed\n", headers={"WWW-Authenticate": "Bearer"}
                )
                refusal.force_close()
                return refusal
        # One connection, one request: the age of a connection then bounds everything that a peer can hold.
        try:
            response = await handler(request)
        except web.HTTPException as refusal:  # no such page, no such method
            refusal.force_close()
            raise
        response.force_close()
        return response

    async def _about(self, _request: web.Request) -> web.Response:
        title = html.escape(self._title)
        page = f'<!doctype html><title>{title}</title><h1>{title}</h1><p><a href="/metrics">Metrics</a></p>\n'
        return web.Response(text=page, content_type="text/html")

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._take_slot(request)
        except TimeoutError:
            self.scrapes["busy"] += 1
            return web.Response(status=503, text="too many scrapes at a time\n", headers={"Retry-After": "5"})
        encoding = "gzip" if "gzip" in request.headers.get("Accept-Encoding", "") else "identity"
        content_type, page = CONTENT_TYPE, self._page
        if self._other is not None and self._other[0](request.headers.get("Accept", "")):
            _, content_type, page = self._other
        response = web.StreamResponse(headers={"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"})
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._write(request, response, page.body(encoding), encoding)
            if request.protocol in self._answering:  # else it was cut, and counted, for a newcomer
                gone = request.transport is None or request.transport.is_closing()  # a write that failed raises nothing
                self.scrapes["broken" if gone else "ok"] += 1
        except TimeoutError:
            self.scrapes["slow_reader"] += 1
            self._cut(request.protocol)
        except ConnectionError:
            self.scrapes["broken"] += request.protocol in self._answering
        finally:
            self._answering.pop(request.protocol, None)
            self._freed.set()
        return response

    async def _write(self, request: web.Request, response: web.StreamResponse, body: bytes, encoding: str) -> None:
        if encoding != "identity":
            response.headers["Content-Encoding"] = encoding
        response.content_length = len(body)
        response.force_close()
        if request.transport is not None:
            # So that drain waits until the kernel has it all: what stays in our buffers would outlive the time limit.
            request.transport.set_write_buffer_limits(high=0)
        writer = await response.prepare(request)
        if request.method != "HEAD":
            await response.write(body)
        await response.write_eof()
        if writer is not None:
            await writer.drain()

    async def _take_slot(self, request: web.Request) -> None:
        """Wait for one of the 8 places. The one held longest is lost after 1 s, so that stuck readers can't block."""
        loop = asyncio.get_running_loop()
        while len(self._answering) >= ANSWERS_MAX:
            oldest, since = next(iter(self._answering.items()))
            left_s = since + PATIENCE_S - loop.time()
            if left_s <= 0:
                del self._answering[oldest]
                self.scrapes["slow_reader"] += 1
                self._cut(oldest)
            else:
                self._freed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), left_s)
        self._answering[request.protocol] = loop.time()

    def own(self, exporter: str) -> Readings:
        """The exporter's own cost, so that nobody has to guess what watching costs."""
        readings = Readings()
        readings.add("tokenswarm_exporter_cpu_seconds_total", time.process_time(), exporter)
        with contextlib.suppress(*UNTOLD):
            readings.add("tokenswarm_exporter_open_fds", psutil.Process().num_fds(), exporter)
        with contextlib.suppress(*UNTOLD):
            readings.add("tokenswarm_exporter_resident_memory_bytes", psutil.Process().memory_info().rss, exporter)
        for outcome in OUTCOMES:
            readings.add("tokenswarm_exporter_scrapes_total", self.scrapes[outcome], exporter, outcome)
        return readings


def stop_on_signals() -> asyncio.Event:
    """An event that is set by each signal that asks for the end. Call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in end_signals():
        loop.add_signal_handler(number, stop.set)
    return stop


def end_this_process() -> None:
    """For a thread that has crashed: its traceback is out, now the process must end rather than serve stale values."""
    os.kill(os.getpid(), signal.SIGTERM)


def command(prog: str, run: Callable[[], int]) -> int:
    """Run a command; a mistake of the user becomes one sentence on stderr and its exit code."""
    outlive_listeners(result=False)
    descriptors.raise_limit()
    try:
        return run()
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
