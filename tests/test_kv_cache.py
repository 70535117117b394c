"""The KV-cache by hand: published configurations, odd ones, capacities, and the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tokenswarm import kv_cache
from tokenswarm.commands import kv
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.kv_cache import read_config, shape_of
from tokenswarm.telemetry.kv import read_shape

GIB = 1024**3

# What the published config.json files say, as far as it matters here.
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_2_7B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "torch_dtype": "float16",
}  # fmt: skip
QWEN_2_5_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "max_position_embeddings": 131072, "max_window_layers": 28, "sliding_window": 131072,
    "use_sliding_window": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "max_position_embeddings": 163840, "torch_dtype": "bfloat16",
}  # fmt: skip
GPT_OSS_20B = {
    "model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64, "num_hidden_layers": 24, "num_attention_heads": 64,
    "num_key_value_heads": 8, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "bytes_per_token"),
    [
        (LLAMA_3_8B, 131_072),  # 2 · 32 layers · 8 heads · 128 · 2 bytes
        (LLAMA_2_7B, 524_288),  # 2 · 32 · 32 · 128 · 2
        (QWEN_2_5_7B, 57_344),  # 2 · 28 · 4 · 128 · 2
        (MISTRAL_7B, 131_072),  # 2 · 32 · 8 · 128 · 2
        (DEEPSEEK_V3, 70_272),  # 61 · (512 + 64) · 2
        (GPT_OSS_20B, 49_152),  # 2 · 24 · 8 · 64 · 2
    ],
    ids=["llama-3-8b", "llama-2-7b", "qwen2.5-7b", "mistral-7b", "deepseek-v3", "gpt-oss-20b"],
)
def test_a_token_of_a_published_model_takes_these_bytes(config: dict[str, Any], bytes_per_token: int) -> None:
    assert shape_of(config).bytes_per_token == bytes_per_token


def test_an_8_bit_cache_is_half_as_large_and_other_dtypes_are_as_wide_as_they_say() -> None:
    for name in ("fp8", "fp8_e4m3", "int8"):
        assert shape_of(LLAMA_3_8B, kv_dtype=name).bytes_per_token == 65_536
    assert shape_of(LLAMA_3_8B, kv_dtype="auto").bytes_per_token == 131_072
    assert shape_of(LLAMA_3_8B, kv_dtype="q8_0").bytes_per_token == 69_632  # 65 536 values of 34/32 bytes
    assert shape_of({**LLAMA_3_8B, "torch_dtype": "torch.float32"}).bytes_per_token == 262_144
    assert shape_of({**LLAMA_3_8B, "dtype": "float16", "torch_dtype": "float32"}).bytes_per_token == 131_072
    assert shape_of(DEEPSEEK_V3, kv_dtype="fp8").bytes_per_token == 35_136


def test_a_dtype_that_is_none_is_told_by_what_said_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_3_8B), "utf-8")
    for read, said in (
        (lambda: shape_of(LLAMA_3_8B, kv_dtype="fp9"), "--dtype: "),
        (lambda: read_shape(str(path), "fp9", "`telemetry.kv_dtype`"), "`telemetry.kv_dtype`: "),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value).startswith(f"{said}the dtype `fp9` is not known; known: ")


def test_a_config_without_a_dtype_says_what_is_assumed() -> None:
    shape = shape_of(GPT_OSS_20B)
    assert (shape.dtype, shape.dtype_bytes) == ("bfloat16", 2.0)
    assert "no dtype in the file: bfloat16 is assumed" in shape.notes


def test_a_layer_with_a_window_holds_no_more_than_the_window() -> None:
    mistral, llama = shape_of(MISTRAL_7B), shape_of(LLAMA_3_8B)
    assert kv_cache.request_bytes(mistral, 4096) == kv_cache.request_bytes(llama, 4096) == 512 * 1024**2
    assert kv_cache.request_bytes(mistral, 8192) == 512 * 1024**2
    assert kv_cache.request_bytes(llama, 8192) == GIB
    assert "32 of 32 layers hold a window of 4096 tokens at most" in mistral.notes
    oss = shape_of(GPT_OSS_20B)
    assert (oss.full_layers, oss.sliding_layers) == (12, 12)
    # 12 layers hold 1000 tokens, 12 hold 128; a token and layer: 2 · 8 · 64 · 2 bytes
    assert kv_cache.request_bytes(oss, 1000) == (12 * 1000 + 12 * 128) * 2048


@pytest.mark.parametrize(
    ("more", "full", "sliding"),
    [
        ({"use_sliding_window": False, "sliding_window": 4096}, 32, 0),
        ({"sliding_window": None}, 32, 0),
        ({"sliding_window": 1024, "sliding_window_pattern": 6}, 5, 27),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 16, 16),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, 28, 4),
        ({"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}, 8, 0),
        ({"layers_block_type": ["mamba"] * 30 + ["attention", "hybrid"]}, 2, 0),
        ({"layer_types": ["sliding_attention"] * 32, "sliding_window": None}, 32, 0),
    ],
)
def test_which_layers_hold_what(more: dict[str, Any], full: int, sliding: int) -> None:
    shape = shape_of({**LLAMA_3_8B, **more})
    assert (shape.full_layers, shape.sliding_layers) == (full, sliding)
    assert shape.bytes_per_token == (full + sliding) * 4096  # 2 · 8 · 128 · 2 a layer


def test_the_language_part_of_a_multi_modal_config_counts() -> None:
    root = {"model_type": "llava", "text_config": LLAMA_3_8B, "vision_config": {"num_hidden_layers": 24}}
    assert shape_of(root).bytes_per_token == 131_072
    without = {name: value for name, value in LLAMA_3_8B.items() if name != "torch_dtype"}
    assert shape_of({"text_config": without, "torch_dtype": "float32"}).bytes_per_token == 262_144


def test_names_of_older_models() -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}
    shape = shape_of({**gpt2, "torch_dtype": "float32"})
    assert shape.bytes_per_token == 2 * 12 * 12 * 64 * 4
    assert shape.context_max == 1024
    assert any("every attention head" in note for note in shape.notes)
    falcon = {"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True}
    assert shape_of({**falcon, "torch_dtype": "bfloat16"}).bytes_per_token == 2 * 32 * 1 * 64 * 2


def test_a_head_dimension_that_is_given_wins() -> None:
    assert shape_of({**LLAMA_3_8B, "head_dim": 256}).bytes_per_token == 262_144


def test_capacity_is_the_budget_by_what_a_request_holds() -> None:
    shape = shape_of(LLAMA_3_8B)
    fits = kv_cache.capacity(shape, 40 * GIB, 2048)
    assert (fits.tokens, fits.batch) == (327_680, 160.0)
    assert kv_cache.batch_bytes(shape, 160, 2048) == 40 * GIB
    assert kv_cache.mean_context(1000, 400) == 1200
    mistral = kv_cache.capacity(shape_of(MISTRAL_7B), 40 * GIB, 8192)
    assert mistral.batch == 80.0  # half a GiB each: the window


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "c.json: not valid JSON"),
        ("{", "c.json: not valid JSON"),
        ("[1]", "c.json: is no config.json of a model"),
        ("{}", "c.json: has no `num_hidden_layers`: is this the config.json of a language model?"),
        ({**LLAMA_3_8B, "num_hidden_layers": "32"}, "`num_hidden_layers` must be a whole number"),
        ({**LLAMA_3_8B, "num_hidden_layers": 0}, "`num_hidden_layers` must be a whole number"),
        ({**LLAMA_3_8B, "num_attention_heads": 33, "num_key_value_heads": 3}, "no multiple of 33 heads"),
        ({**LLAMA_3_8B, "num_key_value_heads": -8}, "`num_key_value_heads` must be a whole number"),
        ({**LLAMA_3_8B, "head_dim": "x"}, "`head_dim` must be a whole number"),
        ({**LLAMA_3_8B, "torch_dtype": "float7"}, "the dtype `float7` is not known"),
        ({**LLAMA_3_8B, "layer_types": ["what"] * 32}, "kind `what`, which is not known here"),
        ({**LLAMA_3_8B, "layer_types": ["full_attention"] * 31}, "has another number (of 32 layers)"),
        ({**LLAMA_3_8B, "hybrid_override_pattern": "M-M*"}, "how many layers have attention is not known"),
        ({**DEEPSEEK_V3, "qk_rope_head_dim": "64"}, "`qk_rope_head_dim` must be a whole number"),
    ],
)
def test_a_config_that_can_not_be_used_is_one_sentence(text: str | dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(text if isinstance(text, str) else json.dumps(text), "c.json")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def rows(text: str) -> dict[str, str]:
    """The command's table: name -> value."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {cell[0]: cell[1] for cell in cells if len(cell) == 2}


def test_the_command_prints_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    assert kv.main([str(tmp_path), "--batch", "64", "--context", "2_048", "--memory", "40GiB"]) == ExitCode.OK
    table = rows(capsys.readouterr().out)
    assert table["a token"] == "131,072 bytes (128 KiB)"
    assert table["a request of 2,048 tokens"] == "268,435,456 bytes (256 MiB)"
    assert table["a batch of 64 of them"] == "17,179,869,184 bytes (16 GiB)"
    assert table["42,949,672,960 bytes (40 GiB) hold"] == "327,680 tokens"
    assert table["full at a batch of"] == "160"
    assert kv.main([str(tmp_path / "config.json"), "--dtype", "fp8", "--memory", "40GiB"]) == ExitCode.OK
    table = rows(capsys.readouterr().out)
    assert table["a request of 8,192 tokens"] == "536,870,912 bytes (512 MiB)"
    assert table["full at a batch of"] == "80"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.json"], "nothing.json: no such file"),
        (["CONFIG", "--batch", "0"], "--batch 0: write a whole number"),
        (["CONFIG", "--batch", "many"], "--batch many: write a whole number"),
        (["CONFIG", "--memory", "40 parsecs"], "--memory 40 parsecs: write a size"),
        (["CONFIG", "--memory", "40"], "--memory 40: 40 bytes? Write the unit, such as 40GiB"),
        (["CONFIG", "--memory", "inf"], "--memory inf: write a size"),
        (["CONFIG", "--dtype", "fp3"], "--dtype: the dtype `fp3` is not known"),
        ([], "the following arguments are required"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_3_8B))
    with pytest.raises(ConfigError) as error:
        kv.main([str(file) if word == "CONFIG" else word for word in words])
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("40GiB", 40 * GIB),
        ("40GB", 40e9),
        ("40g", 40e9),
        ("1.5 TiB", 1.5 * 1024**4),
        ("4e10", 4e10),
        ("40960000000", 40.96e9),
        ("512B", 512),
    ],
)
def test_sizes(text: str, size: float) -> None:
    assert kv.size("--memory", text) == size
