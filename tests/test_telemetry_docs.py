"""docs/telemetry.md is true: it names every field there is, old names as they are known, and the bytes of models."""

from __future__ import annotations

import re
from pathlib import Path

import test_kv_cache as models

from tokenswarm import kv_cache
from tokenswarm.profile.telemetry import Telemetry
from tokenswarm.telemetry.engines import VLLM
from tokenswarm.telemetry.gpu import Gpu, GpuBlock
from tokenswarm.telemetry.join import Source
from tokenswarm.telemetry.kv import KvBlock
from tokenswarm.telemetry.server import LATENCIES, Covered, ServerBlock, TokensCompared

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "telemetry.md").read_text(encoding="utf-8")
SELF_EXPLAINING = {
    "gpu", "gpus", "index", "name", "backend", "count", "observed_s", "memory_total_bytes", "temperature_memory_c_max",
    "price_per_gpu_hour", "prompt_tokens_per_s", "generation_tokens_per_s", "server_per_s", "client_per_s", "agree",
    "used_tokens_max", "used_bytes_mean", "context_tokens_mean", "notes", "push", "push_token_env",
}  # fmt: skip


def test_the_page_names_every_field() -> None:
    structs = (ServerBlock, Covered, TokensCompared, Gpu, GpuBlock, KvBlock, Source, Telemetry)
    fields = {name for struct in structs for name in struct.__struct_fields__} | set(LATENCIES)
    words = set(re.findall(r"\w+", PAGE))
    assert fields - words - SELF_EXPLAINING == set()
    assert fields >= SELF_EXPLAINING


def test_every_rename_is_on_the_page() -> None:
    written = {name.replace("{hits,queries}", part) for name in re.findall(r"`(vllm:[\w{},]+)`", PAGE)
               for part in ("hits", "queries")}  # fmt: skip
    for row in VLLM:
        if len(row.names) > 1:
            assert set(row.names) <= written


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
