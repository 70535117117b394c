#!/usr/bin/env bash
# vLLM's benchmark client in Rust counts an answer without a byte as a success of one token.
#
# vllm 0.33.0 (`vllm-rs bench serve`, the program alone out of the wheel: 340 MB are fetched), Python 3.11. A server answers
# each request with status 200, text/event-stream, and a body that ends properly before its first byte, as a gateway does
# that lost its engine; another with one event, {"error": ...}, and [DONE].
# A good guess is failed requests, or none at least with tokens. Seen: all succeed, with one token each, and the exit code is 0.
# So a dead engine behind a gateway is the fastest server of all; look at the tokens an answer before its latency.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" vllm==0.33.0
"$work/venv/bin/python" -m zipfile -e "$work"/vllm-*.whl "$work/wheel"
chmod +x "$work/wheel/vllm/vllm-rs"
cat >"$work/try.py" <<'PY'
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

work = Path(sys.argv[1])
BODIES = {"empty": b"", "error": b'data: {"error": {"message": "the engine is dead", "code": 500}}\n\ndata: [DONE]\n\n'}
TOKENIZER = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
             "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "</s>": 1}, "unk_token": "[UNK]"}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = self.server.body
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if body:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
        self.wfile.write(b"0\r\n\r\n")


(work / "tokenizer").mkdir()
(work / "tokenizer" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
(work / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
(work / "prompts.jsonl").write_text('{"prompt": "hello"}\n' * 4)
for name, body in BODIES.items():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body = body
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = subprocess.run(
        [work / "wheel/vllm/vllm-rs", "bench", "serve", "--backend", "openai-chat", "--model", "m",
         "--base-url", f"http://127.0.0.1:{server.server_port}", "--endpoint", "/v1/chat/completions",
         "--tokenizer", work / "tokenizer", "--dataset-name", "custom", "--dataset-path", work / "prompts.jsonl",
         "--custom-output-len", "10", "--num-prompts", "4", "--max-concurrency", "4", "--save-result", "--disable-tqdm",
         "--result-dir", work, "--result-filename", f"{name}.json"], capture_output=True, timeout=120)
    told = json.loads((work / f"{name}.json").read_text())
    print(f"{name}: exit code {done.returncode}, completed {told['completed']}, failed {told['failed']},"
          f" tokens {told['total_output_tokens']}")
PY
seen=$("$work/venv/bin/python" "$work/try.py" "$work")
expected="empty: exit code 0, completed 4, failed 0, tokens 4
error: exit code 0, completed 4, failed 0, tokens 4"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
