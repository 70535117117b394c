"""A real llama.cpp server (from the xllamacpp wheel) on a tiny random model that is written here, for the tests.

`python tests/llamacpp.py MODEL.gguf` makes the model if it is missing, serves it on a free port and prints the URL.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HIDDEN, HEAD, LAYERS, CONTEXT = 64, 32, 2, 8192
SPECIAL = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def byte_characters() -> list[str]:
    """GPT-2's printable character of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in found:
            found[byte] = chr(256 + len(found) - len(printable))
    return [found[byte] for byte in range(256)]


def make_model(path: Path) -> None:
    """A random Llama with a byte vocabulary: 600 kB, thousands of tokens a second on one core."""
    import gguf
    import numpy

    tokens = SPECIAL + byte_characters()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN * 3)
    writer.add_head_count(HIDDEN // HEAD)
    writer.add_head_count_kv(HIDDEN // HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h"])
    kinds = [gguf.TokenType.CONTROL if i < len(SPECIAL) else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = numpy.random.default_rng(0)

    def weights(name: str, *shape: int, scale: float = 0.2) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * scale).astype(numpy.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, numpy.ones(HIDDEN, numpy.float32))

    weights("token_embd.weight", len(tokens), HIDDEN, scale=1.0)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"{block}{part}.weight", HIDDEN, HIDDEN)
        ones(block + "ffn_norm.weight")
        weights(block + "ffn_gate.weight", HIDDEN * 3, HIDDEN)
        weights(block + "ffn_up.weight", HIDDEN * 3, HIDDEN)
        weights(block + "ffn_down.weight", HIDDEN, HIDDEN * 3)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def installed() -> bool:
    """xllamacpp has wheels for some platforms only."""
    return all(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "gguf"))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """The server in a process of its own, with a model made in `folder`; its URL."""
    command = [sys.executable, __file__, str(folder / "tiny.gguf")]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = next((line for line in process.stdout if line.startswith("serving on ")), "")
            assert found, (folder / "log.txt").read_text()
            yield found.split()[-1]
        finally:
            process.kill()
            process.wait()


def serve(path: Path) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 4
    params.n_ctx = CONTEXT * params.n_parallel  # shared out among the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.endpoint_metrics = params.use_jinja = params.offline = True
    params.warmup = params.ui = params.fit_params = False
    server = xllamacpp.Server(params)
    print(f"serving on {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    model = Path(sys.argv[1])
    if not model.exists():
        make_model(model)
    serve(model)
