#!/usr/bin/env bash
# LitServe's OpenAI server counts the same answer twice: all of its pieces where it comes whole, the last one where it streams.
#
# litserve 0.2.19, Python 3.11. A model yields 20 pieces of a token each, and tells with each what it has in its hands: 1 output
# token (and 7 of the prompt with the first, 0 with the others). A good guess is that the usage of a stream is that of the whole
# answer, as with OpenAI. Seen: asked whole it is 7 and 20; asked as a stream, the same model states 0 and 1. The stream takes
# the usage of its last piece, the whole answer adds them up, so no way to tell them is right for both: pieces that tell the
# count so far give 20 for the stream and 210 for the answer. A benchmark that divides by usage has a twentieth of the tokens a
# second, or ten times as many, by whether it streams.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -- "-$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check litserve==0.2.19
cat >"$work/serve.py" <<'PY'
import sys

import litserve


class Model(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, messages, context=None):
        for number in range(20):
            told = 1 if sys.argv[2] == "its" else number + 1
            yield {"role": "assistant", "content": "a ", "completion_tokens": told, "prompt_tokens": 0 if number else 7}


if __name__ == "__main__":
    server = litserve.LitServer(Model(spec=litserve.OpenAISpec()), accelerator="cpu")
    server.run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
PY
cat >"$work/ask.py" <<'PY'
import json
import sys
import time
import urllib.request


def ask(**more):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **more}
    url, kind = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions", {"content-type": "application/json"}
    for _ in range(120):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), kind), timeout=60) as answer:
                return answer.read().decode()
        except urllib.error.URLError:  # not up yet
            time.sleep(0.5)
    raise SystemExit("the server did not come up")


whole = json.loads(ask())
events = [json.loads(line[6:]) for line in ask(stream=True).splitlines() if line.startswith("data: {")]
words = sum(bool(event["choices"][0]["delta"]["content"]) for event in events)
streamed = [event["usage"] for event in events if event["usage"]][-1]
for name, pieces, usage in (("whole", len(whole["choices"][0]["message"]["content"].split()), whole["usage"]),
                            ("stream", words, streamed)):
    print(f"  {name}: {pieces} pieces, usage {usage['prompt_tokens']} and {usage['completion_tokens']}")
PY
seen=$(
    for told in "its own tokens" "the tokens so far"; do
        port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        setsid "$work/venv/bin/python" "$work/serve.py" "$port" "${told%% *}" >"$work/log" 2>&1 &
        server=$!
        echo "each piece tells ${told}"
        "$work/venv/bin/python" "$work/ask.py" "$port" || cat "$work/log"
        kill -- "-$server"
        wait "$server" 2>/dev/null || true
    done
)
expected='each piece tells its own tokens
  whole: 20 pieces, usage 7 and 20
  stream: 20 pieces, usage 0 and 1
each piece tells the tokens so far
  whole: 20 pieces, usage 7 and 210
  stream: 20 pieces, usage 0 and 20'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
