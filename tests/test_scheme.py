"""http:// on a port with TLS, https:// on a port without: one true sentence, whatever such servers do with it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exchanges import Setup, ask, make_certificate, server_tls

from tokenswarm.client import preflight
from tokenswarm.errors import TargetError
from tokenswarm.profile import profile as profiles
from tokenswarm.record import Outcome

LIST = b'{"object":"list","data":[{"id":"m"}]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(LIST)
NGINX = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n<h1>The plain HTTP request was sent to HTTPS port</h1>"
GO = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
ALERT = b"\x15\x03\x01\x00\x02\x02\x46"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def listening(play: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """A port where `play(socket, first bytes)` answers each connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=32) as listener:

        def answer(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                play(sock, sock.recv(4, socket.MSG_PEEK))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def tls_port(certificate: tuple[Path, Path], to_plain: bytes) -> Callable[[socket.socket, bytes], None]:
    """Speaks TLS; who speaks plainly gets `to_plain` and a close."""
    context = server_tls(certificate)

    def play(sock: socket.socket, first: bytes) -> None:
        if first[:1] == b"\x16":
            with context.wrap_socket(sock, server_side=True) as secured:
                secured.recv(65_536)
                secured.sendall(OK + LIST)
        else:
            sock.recv(65_536)
            sock.sendall(to_plain)

    return play


def plain_port(to_tls: bytes | None) -> Callable[[socket.socket, bytes], None]:
    """Speaks HTTP; who speaks TLS gets `to_tls` and a close, or (None) silence."""

    def play(sock: socket.socket, first: bytes) -> None:
        sock.recv(65_536)
        if first[:1] != b"\x16":
            sock.sendall(OK + LIST)
        elif to_tls is None:
            sock.recv(1)
        else:
            sock.sendall(to_tls)

    return play


def complaint(url: str) -> str:
    profile = profiles.load(f"name: x\ntarget: {url}\ndataset: {{path: unread.jsonl}}\n", "x.yaml")
    with pytest.raises(TargetError) as caught:
        preflight.check(profile)
    return str(caught.value)


@pytest.mark.parametrize("to_plain", [NGINX, GO, ALERT, b""], ids=["nginx", "go", "an alert", "a close"])
def test_http_on_a_port_with_tls(certificate: tuple[Path, Path], to_plain: bytes) -> None:
    with listening(tls_port(certificate, to_plain)) as port:
        said = complaint(f"http://127.0.0.1:{port}")

    assert said == f"http://127.0.0.1:{port}: 127.0.0.1:{port} speaks TLS: write https:// instead of http://"


@pytest.mark.parametrize(
    "to_tls",
    [b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", b"hm?\n", b"", None],
    ids=["400", "text", "a close", "silence"],
)
def test_https_on_a_port_without_tls(to_tls: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ANSWER_S", 1.0)
    with listening(plain_port(to_tls)) as port:
        said = complaint(f"https://127.0.0.1:{port}")

    assert (
        said
        == f"https://127.0.0.1:{port}: 127.0.0.1:{port} speaks plain HTTP, no TLS: write http:// instead of https://"
    )


def test_a_port_with_tls_that_we_do_not_trust_is_not_called_plain(certificate: tuple[Path, Path]) -> None:
    with listening(tls_port(certificate, NGINX)) as port:
        said = complaint(f"https://127.0.0.1:{port}")

    assert "not trusted" in said
    assert "plain" not in said
    assert "running" not in said, "it is"


def test_a_port_that_speaks_neither_is_not_called_either() -> None:
    with listening(lambda sock, _: sock.sendall(b"SSH-2.0-x\r\n")) as port:
        for url in (f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port}"):
            assert "write http" not in complaint(url)


def test_a_request_of_the_load_says_the_same(certificate: tuple[Path, Path]) -> None:
    setup = Setup()
    with listening(tls_port(certificate, ALERT)) as secured, listening(plain_port(b"HTTP/1.1 400 No\r\n\r\n")) as plain:
        to_tls = ask(setup.client(secured))
        to_plain = ask(setup.client(plain, url="https://127.0.0.1:{}"))
    setup.close()

    assert (to_tls.outcome, "speaks TLS" in to_tls.error) == (Outcome.PROTOCOL, True), to_tls.error
    assert (to_plain.outcome, "speaks plain HTTP" in to_plain.error) == (Outcome.TLS, True), to_plain.error
