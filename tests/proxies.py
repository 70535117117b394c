"""Reverse proxies of Debian in front of an engine, as they come and mended, for tests; skip by name where missing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from running import free_port


class Proxy(NamedTuple):
    program: str
    conf: str  # {port}, {upstream} (host:port), {folder}, {more}
    arguments: tuple[str, ...]
    mend: str


NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off; proxy_cache_path {folder}/kept keys_zone=kept:1m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; {more} location / {{ proxy_pass http://{upstream}; }} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 50s
  timeout server 50s
  {more}
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  server s {upstream}
"""
LIGHTTPD = """
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{folder}/error.log"
server.modules = ("mod_proxy")
{more}
proxy.server = ( "" => (( "host" => "{host}", "port" => {to} )) )
"""
CADDY = """
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  reverse_proxy {upstream} {{
    {more}
  }}
}}
"""
APACHE = """
ServerName localhost
ServerRoot {folder}
PidFile {folder}/pid
ErrorLog {folder}/error.log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
{more}
ProxyPass / http://{upstream}/
"""
VARNISH = """
vcl 4.1;
backend default {{ .host = "{host}"; .port = "{to}"; }}
{more}
"""
SQUID = """
http_port 127.0.0.1:{port} accel defaultsite=localhost no-vhost
cache_peer {host} parent {to} 0 no-query originserver
http_access allow all
access_log none
cache_log {folder}/cache.log
pid_filename {folder}/pid
shutdown_lifetime 0 seconds
{more}
"""

PROXIES = {
    "nginx": Proxy("nginx", NGINX, ("-e", "{folder}/error.log", "-c", "{conf}"), "proxy_http_version 1.1;"),
    "haproxy": Proxy("haproxy", HAPROXY, ("-db", "-f", "{conf}"), "option http-no-delay"),
    "lighttpd": Proxy("lighttpd", LIGHTTPD, ("-D", "-f", "{conf}"), "server.stream-response-body = 1"),
    "caddy": Proxy("caddy", CADDY, ("run", "--adapter", "caddyfile", "--config", "{conf}"), "buffer_requests"),
    "apache2": Proxy("apache2", APACHE, ("-DFOREGROUND", "-f", "{conf}"), ""),
    "varnish": Proxy(
        "varnishd",
        VARNISH,  # pytest folders are of root alone, so no jail
        ("-F", "-j", "none", "-n", "{folder}/n", "-a", "127.0.0.1:{port}", "-f", "{conf}"),
        "",
    ),
    "squid": Proxy("squid", SQUID, ("-N", "-f", "{conf}"), ""),
}


@contextlib.contextmanager
def proxy(name: str, folder: Path, upstream: str, *, mended: bool = False, more: str = "") -> Iterator[str]:
    """The base URL of the proxy in front of `upstream` (host:port)."""
    row = PROXIES[name]
    if shutil.which(row.program) is None:
        pytest.skip(f"{row.program} is not on this machine")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    host, _, to = upstream.partition(":")
    more = row.mend if mended else more
    port = free_port()
    where = {"port": port, "upstream": upstream, "folder": folder, "more": more, "host": host, "to": to}
    conf = folder / f"{name}.conf"
    conf.write_text(row.conf.format(**where), encoding="utf-8")
    command = [row.program, *(word.format(conf=conf, **where) for word in row.arguments)]
    with (
        (folder / "out.txt").open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _await(port, process, name, folder)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _await(port: int, process: subprocess.Popen[bytes], name: str, folder: Path) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, f"{name} ended: {(folder / 'out.txt').read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"{name} does not listen")
