"""docs/telemetry.md is true: it names every field there is, old names as they are known, and the bytes of models."""

from __future__ import annotations

import re
from pathlib import Path

import test_kv_cache as models

from tokenswarm import kv_cache
from tokenswarm.profile.telemetry import Telemetry
from tokenswarm.telemetry.gpu import CpuBlock, Gpu, GpuBlock
from tokenswarm.telemetry.join import Source
from tokenswarm.telemetry.kv import KvBlock
from tokenswarm.telemetry.names import ENGINES, VLLM
from tokenswarm.telemetry.server import (
    LATENCIES,
    Covered,
    ReplicaBlock,
    RequestsCompared,
    RouterBlock,
    ServerBlock,
    TokensCompared,
)

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "telemetry.md").read_text(encoding="utf-8")
SELF_EXPLAINING = {
    "gpu", "gpus", "index", "name", "backend", "count", "observed_s", "memory_total_bytes", "temperature_memory_c_max",
    "price_per_gpu_hour", "prompt_tokens_per_s", "generation_tokens_per_s", "server_per_s", "client_per_s", "agree",
    "used_tokens_max", "used_bytes_mean", "context_tokens_mean", "notes", "push", "push_token_env",
}  # fmt: skip


def test_the_page_names_every_field() -> None:
    own = (ServerBlock, Covered, TokensCompared, RequestsCompared, ReplicaBlock, RouterBlock, KvBlock, Source)
    structs = (*own, Gpu, CpuBlock, GpuBlock, Telemetry)
    fields = {name for struct in structs for name in struct.__struct_fields__} | set(LATENCIES)
    words = set(re.findall(r"\w+", PAGE))
    assert fields - words - SELF_EXPLAINING == set()
    assert fields >= SELF_EXPLAINING


def test_every_rename_is_on_the_page() -> None:
    written = {name.replace("{hits,queries}", part) for name in re.findall(r"`(vllm:[\w{},]+)`", PAGE)
               for part in ("hits", "queries")}  # fmt: skip
    for row in VLLM.rows:
        if len(row.names) > 1:
            assert set(row.names) <= written


def test_the_table_of_engines_has_each_and_says_what_it_tells() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "engines.md").read_text(encoding="utf-8")
    lines = {
        cells[0]: cells for line in page.splitlines() if (cells := [c.strip() for c in line.strip("|").split("|")])
    }
    for engine in ENGINES.values():
        _, _, batch, cache, tokens, cached, ended, latencies = lines[engine.title]
        told = {row.ours.partition(".")[0] for row in engine.rows}
        assert (batch != "–") == bool(told & {"running", "held"}), engine.title
        assert (cache.startswith("share")) == ("kv_cache_usage" in told) or engine.title == "llama.cpp"
        assert (tokens != "–") == ("generation_tokens" in told), engine.title
        assert ("at the end" in tokens) == engine.at_the_end, engine.title
        assert (cached != "–") == ("prompt_tokens_cached" in told), engine.title
        assert (ended != "–") == bool(told & {"finished", "errors"}), engine.title
        words = {"ttft_s": "TTFT", "itl_s": "ITL", "e2e_s": "E2E", "queue_s": "queue", "prefill_s": "prefill"}
        assert {name for name, word in words.items() if word in latencies} == told & words.keys(), engine.title


def test_the_table_of_models_is_what_the_formula_gives() -> None:
    configs = {
        "Llama-2-7B": models.LLAMA_2_7B, "Llama-3-8B": models.LLAMA_3_8B, "Mistral-7B": models.MISTRAL_7B,
        "DeepSeek-V3": models.DEEPSEEK_V3, "Qwen2.5-7B": models.QWEN_2_5_7B,
    }  # fmt: skip
    told = {
        name: int(number.replace(",", ""))
        for names, number in re.findall(r"^\| ([\w., -]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
        for name in names.split(", ")
    }
    assert told == {name: kv_cache.shape_of(config).bytes_per_token for name, config in configs.items()}
