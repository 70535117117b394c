#!/usr/bin/env bash
# Leaving the loop over a stream of OpenAI's client stops nothing: the engine generates to the end.
#
# openai 3.54.0, ollama 0.6.3, Python 3.11. A server sends 100 tokens, one each 20 ms, until its connection is closed. The
# client leaves `for chunk in client.chat.completions.create(..., stream=True)` with break after five, and does nothing for 3 s.
# A good guess is that the connection closes with the loop, as CPython frees what nobody holds, and as Ollama's client does.
# Seen: openai's stream and its iterator hold one another, so it stays open until the cycle collector runs, which in a process
# that waits for answers may be never: all 100 tokens are sent. gc.collect(), or `with` around the stream, ends it at once.
# A probe of time to first token, or users who lose patience, written so are a load of whole answers: slots stay taken and
# tokens are paid for, and how much of it depends on what else the client allocates.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.54.0 ollama==0.6.3
cat >"$work/try.py" <<'PY'
import gc
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ollama
import openai

EVENTS = {"/v1/chat/completions": b'data: {"choices": [{"index": 0, "delta": {"content": "token"}}]}\n\n',
          "/api/chat": b'{"message": {"role": "assistant", "content": "token"}}\n'}
sent = []


class Server(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        sent.append(0)
        with suppress(OSError):  # the client is gone
            for _ in range(100):
                self.wfile.write(EVENTS[self.path])
                sent[-1] += 1
                time.sleep(0.02)


def five(stream):
    for number, _ in enumerate(stream, 1):
        if number == 5:
            break


def inside_with(stream):
    with stream:
        five(stream)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
chat, local = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0).chat.completions, ollama.Client(host=url)
for name, leave in {"openai": lambda: five(chat.create(**asked)),
                    "openai, then gc.collect()": lambda: (five(chat.create(**asked)), gc.collect()),
                    "openai inside with": lambda: inside_with(chat.create(**asked)),
                    "ollama": lambda: five(local.chat(**asked))}.items():
    gc.collect()
    leave()
    time.sleep(3)
    print(f"{name}:", "all 100 tokens" if sent[-1] == 100 else "about five" if sent[-1] < 20 else sent[-1])
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="openai: all 100 tokens
openai, then gc.collect(): about five
openai inside with: about five
ollama: about five"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
