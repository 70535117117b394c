"""A router as vllm-router and sglang-router are: it tries a refused request again, and streams the answer through."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

ATTEMPTS = 5


@contextlib.contextmanager
def retrying_router(engine: str) -> Iterator[str]:
    """Its URL. /metrics and the like are the engine's."""
    upstream = urlsplit(engine).netloc

    class Router(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self, body: bytes | None) -> None:
            for attempt in range(ATTEMPTS):
                connection = http.client.HTTPConnection(upstream, timeout=20)
                connection.request(self.command, self.path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if answer.status != 503 or attempt == ATTEMPTS - 1:
                    break
                connection.close()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Connection", "close")
            self.end_headers()
            while data := answer.read1(65536):
                self.wfile.write(data)
            connection.close()
            self.close_connection = True

        def do_GET(self) -> None:
            self._pass(None)

        def do_POST(self) -> None:
            self._pass(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """The client has hung up."""

    with Server(("127.0.0.1", 0), Router) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
