#!/usr/bin/env bash
# GuideLLM's mock server lets four requests in at a time, and any number of streams.
#
# guidellm 0.8.1 (without torch, which its mock server does not use), Python 3.11. It is made to try load generators with:
# --max-concurrent-requests is to "limit in-flight generation requests (others wait)", for the detection of over-saturation.
# Sixteen requests at once, of three seconds each, at a limit of 4. A good guess is four rounds, streamed or not. Seen: whole answers
# take four, streams one. A handler that streams returns before its first token, and the limit is held for as long as the handler
# runs. So a tool that streams, as all of them do, finds no saturation there whatever it sends, and nothing says why.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" --no-deps guidellm==0.8.1
"${pip[@]}" sanic==25.12.1 transformers==5.24.0 loguru==0.7.3 pydantic==2.14.4 pydantic-settings==2.16.3 faker==40.63.0 2>/dev/null  # it misses torch
cat >"$work/serve.py" <<'PY'
import sys

from guidellm.mock_server.server import MockServer
from guidellm.schemas.mock_server import MockServerConfig

if __name__ == "__main__":
    limited = MockServerConfig(
        port=int(sys.argv[1]), max_concurrent_requests=4, output_tokens=1, ttft_ms=3000, request_latency=3.0
    )
    MockServer(limited).run()
PY
cat >"$work/ask.py" <<'PY'
import json
import sys
import threading
import time
import urllib.request

URL = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions"


def ask(stream):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "max_tokens": 1}
    kind = {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(URL, json.dumps(body).encode(), kind), timeout=60) as answer:
        answer.read()


for _ in range(120):
    try:
        ask(stream=False)
        break
    except urllib.error.URLError:  # not up yet
        time.sleep(0.5)
else:
    raise SystemExit("the server did not come up")
for name, stream in ("whole answers", False), ("streams", True):
    threads = [threading.Thread(target=ask, args=[stream]) for _ in range(16)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"16 {name} at once, 4 at a time: {int((time.monotonic() - began) / 3)} round(s)")
PY
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/python" "$work/serve.py" "$port" >"$work/log" 2>&1 &
server=$!
seen=$("$work/venv/bin/python" "$work/ask.py" "$port")
expected='16 whole answers at once, 4 at a time: 4 round(s)
16 streams at once, 4 at a time: 1 round(s)'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; tail -n 5 "$work/log"; exit 1; }
