#!/usr/bin/env bash
# The official clients of OpenAI and Ollama take a stream that was cut for a whole answer.
#
# openai 3.54.0, ollama 0.6.3, Python 3.11. A server sends two pieces of an answer and ends the HTTP body properly (last
# chunk), as a proxy does whose upstream died: no finish reason and no [DONE], no line with "done": true.
# A good guess is an exception, as for a connection that breaks off. Seen: both iterators end as after a whole answer.
# Who counts requests by exceptions counts half answers as successes; the protocol's own end has to be looked for.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.54.0 ollama==0.6.3
cat >"$work/try.py" <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ollama
import openai


class Cut(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        chat = self.path.startswith("/v1/")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if chat else "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in ("Half", " an"):
            if chat:
                event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                         "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
                line = b"data: " + json.dumps(event).encode() + b"\n\n"
            else:
                line = json.dumps({"model": "m", "message": {"role": "assistant", "content": word},
                                   "done": False}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Cut)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
messages = [{"role": "user", "content": "hello"}]

chunks = list(openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
              .chat.completions.create(model="m", messages=messages, stream=True))
print("openai", openai.__version__, repr("".join(c.choices[0].delta.content for c in chunks)),
      "finish reasons:", {c.choices[0].finish_reason for c in chunks})
parts = list(ollama.Client(host=url).chat(model="m", messages=messages, stream=True))
print("ollama", repr("".join(p.message.content for p in parts)), "done:", {p.done for p in parts})
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="openai 3.54.0 'Half an' finish reasons: {None}
ollama 'Half an' done: {False}"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
