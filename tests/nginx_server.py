"""nginx as Debian has it, with TLS in front of an engine, for tests; skips by name where it is missing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import free_port

CONF = """
worker_processes 2;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  ssl_certificate {cert};
  ssl_certificate_key {key};
  proxy_http_version 1.1;
  server {{ listen 127.0.0.1:{keeping} ssl; location / {{ proxy_pass {upstream}; }} }}
  server {{ listen 127.0.0.1:{closing} ssl; keepalive_timeout 0; location / {{ proxy_pass {upstream}; }} }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, certificate: tuple[Path, Path], upstream: str) -> Iterator[tuple[str, str]]:
    """Two base URLs: a server that keeps connections, and one that closes after each answer."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not on this machine")
    keeping, closing = free_port(), free_port()
    key, cert = certificate
    text = CONF.format(folder=folder, cert=cert, key=key, keeping=keeping, closing=closing, upstream=upstream)
    (folder / "nginx.conf").write_text(text, encoding="utf-8")
    command = ["nginx", "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            _await(closing, process)
            yield f"https://localhost:{keeping}", f"https://localhost:{closing}"
        finally:
            process.terminate()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, "nginx ended"
        time.sleep(0.05)
    raise AssertionError("nginx does not listen")
