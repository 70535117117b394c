"""`tokenswarm simulate`: options over presets, mistakes as one sentence and code 15, the line that launchers parse."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys

import pytest
from simulator_process import exchange, ndjson, request_bytes, simulator

from tokenswarm.simulator import main
from tokenswarm.simulator.command import settings_of
from tokenswarm.simulator.presets import MEANS, PRESETS, Preset


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "big"], "there is no preset `big`; there are: laptop, small-gpu, h200-8b, instant, paced"),
        (["--port", "99999"], "--port 99999 must be from 0 to 65535"),
        (["--port", "x"], "argument --port: invalid int value: 'x' (see --help)"),
        (["--speed", "0"], "--speed 0.0 must be more than 0"),
        (["--bytes-per-s", "inf"], "--bytes-per-s inf must be more than 0"),
        (["--ttft-ms", "5"], "--ttft-ms has no meaning for preset `small-gpu`"),
        (["--preset", "paced", "--layers", "5"], "--layers has no meaning for preset `paced`"),
        (["--reasoning-tokens", "-1"], "--reasoning-tokens -1 must be 0 or more"),
        (["--fault", "nope"], "there is no fault `nope`; there are: http_500"),
        (["--kv-cache-bytes", "1e8"], "the KV-cache holds 864 tokens, fewer than --max-model-len 8192"),
        (["--colour", "red"], "unrecognized arguments: --colour red (see --help)"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_15(capsys, options, sentence):
    assert main(options) == 15
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"tokenswarm simulate: {sentence}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("address", ["--host 127.0.0.1 --port {port}", "--host 192.0.2.1 --port 0"])
def test_an_address_that_can_not_be_had(capsys, address):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        assert main(address.format(port=busy.getsockname()[1]).split()) == 15
    error = capsys.readouterr().err
    assert re.fullmatch(r"tokenswarm simulate: can't listen on \S+: .+; choose another --port\n", error)


def test_options_are_laid_over_the_preset():
    settings, host, port = settings_of(["--profile", "laptop", "--layers", "20", "--max-queued", "3", "--seed", "7"])
    assert (settings.preset.layers, settings.preset.max_queued, settings.seed) == (20, 3, 7)
    assert settings.preset.heads == PRESETS["laptop"].heads
    assert (host, port) == ("127.0.0.1", 8000)
    assert settings_of([])[0].preset == PRESETS["small-gpu"]


def test_help_names_presets_and_faults():
    asked = [sys.executable, "-m", "tokenswarm.simulator", "--help"]
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    for name in (*PRESETS, "--kv-cache-bytes", "giant_line", "--allow-fault-header"):
        assert name in shown
    assert set(MEANS) == {field.name for field in dataclasses.fields(Preset)} - {"about"}
    assert f"{MEANS['max_num_seqs']} ({PRESETS['small-gpu'].max_num_seqs})" in shown


def test_the_line_names_the_model_and_the_url():
    with simulator("--preset", "instant", "--model", "some/model", "--seed", "5") as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        lines = ndjson(exchange(server, request_bytes("ollama_chat", model="some/model"))[1])
        assert lines[0]["model"] == "some/model"
