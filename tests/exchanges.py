"""A client of its own for a test, and the requests that it sends: what the tests of the streaming client share."""

from __future__ import annotations

import functools
import importlib.util
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import gevent
import msgspec
import pytest
from raw_server import DONE, RawServer, Step, content, raw_server, usage

from tokenswarm.client.decoding import Decoder
from tokenswarm.client.native import open_native
from tokenswarm.client.pool import Pool
from tokenswarm.client.resolving import resolve
from tokenswarm.client.sending import Client, Request
from tokenswarm.client.stamps import ask_for_stamps, keep_stamping
from tokenswarm.client.transport import make_target
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import RequestRecord

BUILT = importlib.util.find_spec("tokenswarm.client._reader") is not None
PROMPT = Prompt("p", (Message("user", "hello"),), "hello", "c", 0)
SAMPLING = Sampling(model="m", max_tokens=4)
ANSWER = content("a") + content("b") + content("c", "stop") + usage(5, 3) + DONE
QUICK = Timeouts(connect=Seconds(2.0), first_token=Seconds(1.0), idle_token=Seconds(0.6), total=Seconds(4.0))


READERS = ("python", pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="no reader in C here")))
"""Parameters of a fixture: what must hold for each reader."""


@functools.cache
def stamping() -> None:
    """Wait until the kernel stamps what arrives: it begins some µs behind the first socket that asks."""
    keep_stamping()
    if sys.platform.startswith("linux"):
        with gevent.Timeout(10):
            while not stamped_at_once():
                gevent.sleep(0.001)


def stamped_at_once() -> bool:
    """Whether a new connection has a stamp of its first byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        ask_for_stamps(ours)
        with listener.accept()[0] as peer:
            peer.sendall(b"1")
            return bool(ours.recvmsg(1, 64)[1])


class Setup:
    """A client of its own for one test."""

    def __init__(self, reader: str | None = None) -> None:
        """`reader`: native or python; the one that this process has where it is not given."""
        stamping()
        self.recorder = Recorder("run", 0, None, start_ns=monotonic_ns())
        self.decoder = Decoder(lambda: None, open_native(self.recorder.instrument, lambda: None, reader))
        self.records: list[RequestRecord] = []
        self.pools: list[Pool] = []

    def client(
        self,
        server: RawServer | int,
        *,
        kind: tuple[str, str] = ("openai", "chat"),
        timeouts: Timeouts = QUICK,
        fresh: bool = False,
        url: str = "http://127.0.0.1:{}",
        tls: Tls | None = None,
        event_bytes_max: int = 1 << 20,
        keep_text: bool = True,
        headers: dict[str, str] | None = None,
    ) -> Client:
        port = server if isinstance(server, int) else server.port
        target = make_target(url.format(port), tls or Tls())
        resolve(target)
        pool = Pool(target, timeouts.connect, fresh)
        self.pools.append(pool)
        return Client(
            DIALECTS[kind],
            pool,
            self.decoder,
            self.recorder,
            timeouts=timeouts,
            headers=headers or {},
            event_bytes_max=event_bytes_max,
            keep_text=keep_text,
            on_record=self.records.append,
        )

    def close(self) -> None:
        for pool in self.pools:
            pool.close()
        self.decoder.close()


def ask(client: Client, number: int = 0, choices: int = 1) -> RequestRecord:
    request = Request(f"0-{number}", PROMPT, 0, "steady", monotonic_ns())
    with gevent.Timeout(20):
        return client.send(request, msgspec.structs.replace(SAMPLING, choices=choices))


def one(setup: Setup, *script: Step, **options: object) -> RequestRecord:
    """The record of one request that is answered with this script."""
    with raw_server(script) as server:
        return ask(setup.client(server, **options))  # type: ignore[arg-type]  # options of Setup.client


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """(key, certificate) for localhost, self-signed; skips where openssl is missing."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not on this machine")
    return key, cert


def server_tls(certificate: tuple[Path, Path], version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """The server's context, of one version of TLS if it is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context
