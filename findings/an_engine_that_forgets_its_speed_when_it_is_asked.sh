#!/usr/bin/env bash
# llama.cpp's gauges of tokens a second are emptied by whoever reads its page of metrics.
#
# xllamacpp 2026.10.11549 (llama.cpp's own server as a wheel), gguf 0.19.0, Python 3.11, a random model of 0.3 MB.
# A chat of 20 tokens, then /metrics twice. A good guess is the same page twice: nothing ran in between, and a gauge that is
# named an average holds its value. Seen: the second page has 0 for prompt_tokens_seconds and predicted_tokens_seconds; each
# look begins a new average, without a client, a label or a header telling them apart. The counters beside them hold.
# So two Prometheus servers, or one and a look by hand, halve each other's curves, and a scrape that failed after it was
# answered has taken its interval with it. Speeds are rate(tokens_predicted_total) over rate(tokens_predicted_seconds_total).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cat >"$work/try.py" <<'PY'
import json
import os
import sys
import urllib.request

import gguf
import numpy as np
import xllamacpp

path, width, words = f"{sys.argv[1]}/m.gguf", 32, ["<s>", "</s>", *(chr(c) for c in range(33, 127)), "\u0120"]
model = gguf.GGUFWriter(path, "llama")
for add, value in {"context_length": 512, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
                   "head_count": 1, "head_count_kv": 1, "rope_dimension_count": width, "layer_norm_rms_eps": 1e-5,
                   "vocab_size": len(words), "tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2", "token_list": words,
                   "token_merges": ["a b"], "token_types": [3, 3] + [1] * (len(words) - 2), "bos_token_id": 0,
                   "eos_token_id": 1, "chat_template": "{{ messages[0]['content'] }}"}.items():
    getattr(model, f"add_{add}")(value)
draw = np.random.default_rng(1).standard_normal
for name in ("token_embd", "output"):
    model.add_tensor(f"{name}.weight", draw((len(words), width)).astype(np.float32))
for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
    model.add_tensor(f"blk.0.{name}.weight", draw((width, width)).astype(np.float32))
for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
    model.add_tensor(f"{name}.weight", np.ones(width, np.float32))
model.write_header_to_file()
model.write_kv_data_to_file()
model.write_tensors_to_file()
model.close()

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = path, 512, 1, 0
params.endpoint_metrics, params.warmup, params.fit_params, params.hostnames = True, False, False, ["127.0.0.1"]
server = xllamacpp.Server(params)
url = server.listening_address


def page():
    lines = urllib.request.urlopen(f"{url}/metrics").read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "ignore_eos": True}
urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                              {"content-type": "application/json"})).read()
first, second = page(), page()
print("tokens:", first["llamacpp:tokens_predicted_total"], "and again", second["llamacpp:tokens_predicted_total"])
for name in ("prompt_tokens_seconds", "predicted_tokens_seconds"):
    print(f"{name}: above 0: {first[f'llamacpp:{name}'] > 0}, and again", second[f"llamacpp:{name}"])
sys.stdout.flush()
os._exit(0)  # the server's threads
PY
seen=$("$work/venv/bin/python" "$work/try.py" "$work" 2>/dev/null)
expected="tokens: 20.0 and again 20.0
prompt_tokens_seconds: above 0: True, and again 0.0
predicted_tokens_seconds: above 0: True, and again 0.0"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
