#!/usr/bin/env bash
# The random arrivals of vLLM's benchmark always end at the same moment: each draw is stretched to the asked rate.
#
# vllm 0.33.0 (`vllm-rs bench serve`, the program alone out of the wheel: 340 MB are fetched), Python 3.11. 20 requests at 10 a
# second with six seeds each, as a Poisson process (the default) and with --burstiness 0.1, to a server that answers at once.
# A good guess is a run of 2 s on average, give or take 0.45 s, and with the burstiness give or take 1.4 s: that is what
# independent gaps add up to. Seen: 2 s each time, in both. The gaps are drawn, then stretched so that their sum fits.
# So the number of arrivals in a run is no longer random, runs with other seeds agree more than such traffic does, and a draw
# with one long gap has the others squeezed for it. A tool that lets the process run free spreads more on the same server.
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
EVENT = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
         "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}
BODY = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(EVENT).encode()
TOKENIZER = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
             "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "</s>": 1}, "unk_token": "[UNK]"}}


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)


(work / "tokenizer").mkdir()
(work / "tokenizer" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
(work / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
(work / "prompts.jsonl").write_text('{"prompt": "hello"}\n' * 20)
server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
for burstiness in ("1", "0.1"):
    durations = []
    for seed in range(6):
        subprocess.run(
            [work / "wheel/vllm/vllm-rs", "bench", "serve", "--backend", "openai-chat", "--model", "m", "--disable-tqdm",
             "--base-url", f"http://127.0.0.1:{server.server_port}", "--endpoint", "/v1/chat/completions",
             "--tokenizer", work / "tokenizer", "--dataset-name", "custom", "--dataset-path", work / "prompts.jsonl",
             "--num-prompts", "20", "--request-rate", "10", "--burstiness", burstiness, "--seed", str(seed), "--save-result",
             "--result-dir", work, "--result-filename", "told.json"], capture_output=True, timeout=120, check=True)
        durations.append(json.loads((work / "told.json").read_text())["duration"])
    print(f"burstiness {burstiness}:", "2 s each time" if all(1.95 < d < 2.25 for d in durations) else durations)
    print(burstiness, durations, file=sys.stderr)
PY
seen=$("$work/venv/bin/python" "$work/try.py" "$work")
expected="burstiness 1: 2 s each time
burstiness 0.1: 2 s each time"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
