"""A page is used whole or not at all: what engines and exporters say, older names, and pages that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tokenswarm import kv_cache
from tokenswarm.simulator.metrics import Metrics
from tokenswarm.telemetry import engines, exposition, gpus, histogram, ollama
from tokenswarm.telemetry.exposition import PageError
from tokenswarm.telemetry.histogram import Histogram

Find = Callable[[str], Path]


def page(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def bucket_lines(name: str, *cumulative: tuple[str, float], total: float, labels: str = "") -> list[str]:
    comma = "," if labels else ""
    lines = [f'{name}_bucket{{{labels}{comma}le="{edge}"}} {count}' for edge, count in cumulative]
    return [*lines, f"{name}_count{{{labels}}} {cumulative[-1][1]}", f"{name}_sum{{{labels}}} {total}"]


VLLM = (
    'vllm:num_requests_running{engine="0",model_name="m"} 7.0',
    'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0',
    'vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0',
    'vllm:generation_tokens_total{engine="0",model_name="m"} 500.0',
)


def refused(data: bytes, read: Callable[[bytes], object] = engines.read) -> str:
    with pytest.raises(PageError) as error:
        read(data)
    return error.value.reason


# -- the format ------------------------------------------------------------------------------------------------------


def test_samples_are_read_with_labels_escapes_and_time_stamps() -> None:
    text = page(
        "# HELP x y", "x 1", 'x{a="b"} 2.5e+06', r'x{b="1",a="q\"\\\n,}",} -.5 1700000000000', "other{", "x_total 3"
    )
    assert exposition.read(text, {"x"}) == {"x": {(): 1.0, (("a", "b"),): 2.5e6, (("a", 'q"\\\n,}'), ("b", "1")): -0.5}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "truncated"),
        (b"x 1", "truncated"),
        (b"<!doctype html>\n<p>x 1\n", "not_metrics"),
        (b'  {"x": 1}\n', "not_metrics"),
        (b"x \xff\n", "not_metrics"),
        (b"x\n", "malformed"),
        (b"x one\n", "malformed"),
        (b"x 1_0\n", "malformed"),
        (b"x NaN\n", "malformed"),
        (b"x +Inf\n", "malformed"),
        (b"x 1e999\n", "malformed"),
        (b'x{a="b} 1\n', "malformed"),
        (b'x{a="b"c="d"} 1\n', "malformed"),
        (b'x{a="b",a="c"} 1\n', "malformed"),
        (b"x{a=b} 1\n", "malformed"),
        (b"x 1 2 3\n", "malformed"),
        (b"x 1\nx 1\n", "malformed"),
        (b'x{a="1",b="2"} 1\nx{b="2",a="1"} 1\n', "malformed"),
    ],
)
def test_a_page_that_is_none_is_refused(text: bytes, reason: str) -> None:
    assert refused(text, lambda data: exposition.read(data, {"x"})) == reason


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
)
def test_any_label_value_survives(values: dict[str, float]) -> None:
    escaped = {text: text.replace("\\", r"\\").replace('"', r"\"") for text in values}
    lines = [f'x{{a="{escaped[text]}"}} {value!r}' for text, value in values.items()]
    read = exposition.read(page("# TYPE x gauge", *lines), {"x"})
    assert read.get("x", {}) == {(("a", text),): value for text, value in values.items()}


def test_it_reads_what_prometheus_client_reads(shared: Find) -> None:
    text = shared("wire/vllm_metrics.prom").read_bytes()
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name in engines.WANTED
    }
    ours = exposition.read(text, engines.WANTED)
    assert {(name, labels): value for name, rows in ours.items() for labels, value in rows.items()} == theirs
    assert len(theirs) > 150


# -- engines ---------------------------------------------------------------------------------------------------------


def test_the_page_of_vllm_0_33(shared: Find) -> None:
    reading = engines.read(shared("wire/vllm_metrics.prom").read_bytes())
    assert reading.kind == "vllm"
    assert reading.levels == {"running": 0.0, "waiting": 0.0, "kv_cache_usage": 0.0}
    assert reading.counters["prompt_tokens"] == 12086
    assert reading.counters["generation_tokens"] == 23810
    assert reading.counters["finished.length"] == 404
    assert reading.counters["rejected.max_num_queued_reqs"] == 0
    assert "old_names" not in reading.facts
    ttft, itl = reading.histograms["ttft_s"], reading.histograms["itl_s"]
    assert (ttft.n, ttft.sum) == (404, 83.63935399055481)
    assert (itl.n, itl.bounds[0]) == (23406, 0.01)
    assert {"tpot_s", "e2e_s", "queue_s", "prefill_s", "decode_s", "step_tokens"} < reading.histograms.keys()
    assert reading.started_s == 1795471052.8


def test_vllms_own_cache_size_is_what_the_formula_predicts(shared: Find) -> None:
    """The capture's model: 2 layers, 2 heads of 32, served as float32, with 1 GiB for the cache."""
    facts = engines.read(shared("wire/vllm_metrics.prom").read_bytes()).facts
    shape = kv_cache.shape_of(
        {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "dtype": "float32"}
    )
    tokens = int(facts["num_gpu_blocks"]) * int(facts["block_size"])
    assert tokens == int(facts["kv_cache_size_tokens"])
    assert int(facts["kv_cache_memory_bytes"]) / tokens == shape.bytes_per_token == 1024


def test_the_page_of_llama_cpp(shared: Find) -> None:
    reading = engines.read(shared("wire/llamacpp_metrics.prom").read_bytes())
    assert reading.kind == "llamacpp"
    assert reading.levels == {"running": 0.0, "waiting": 0.0}
    assert reading.counters == {
        "prompt_tokens_computed": 35, "prompt_tokens_cached": 54, "prompt_seconds": 0.0035, "generation_tokens": 131,
        "generation_seconds": 0.023688, "decode_steps": 129,
    }  # fmt: skip


def test_the_page_of_the_embedded_engine() -> None:
    metrics = Metrics()
    metrics.prompt_tokens, metrics.generation_tokens = 40, 12
    metrics.observe("time_to_first_token_seconds", 0.1)
    gauges = {"num_requests_running": 3, "num_requests_waiting": 1, "kv_cache_usage_perc": 0.25}
    reading = engines.read(metrics.render('a "model"\n', gauges, 2, {"num_gpu_blocks": 10, "block_size": 16}))
    assert reading.levels == {"running": 3.0, "waiting": 1.0, "kv_cache_usage": 0.25}
    assert (reading.counters["prompt_tokens"], reading.counters["preemptions"]) == (40, 2)
    assert reading.histograms["ttft_s"].n == 1
    assert (reading.facts["num_gpu_blocks"], reading.facts["engines"]) == ("10", "1")


def test_names_before_the_renames_are_understood_and_told() -> None:
    old = bucket_lines("vllm:time_per_output_token_seconds", ("0.01", 3), ("0.025", 5), ("+Inf", 5), total=0.06)
    reading = engines.read(
        page(
            *VLLM, "vllm:gpu_cache_usage_perc 0.5", "vllm:gpu_prefix_cache_hits_total 30",
            "vllm:gpu_prefix_cache_queries_total 90", "vllm:num_requests_swapped 0", *old,
        )
    )  # fmt: skip
    assert reading.levels["kv_cache_usage"] == 0.5
    assert (reading.counters["cache_hits"], reading.counters["cache_queries"]) == (30, 90)
    assert reading.histograms["itl_s"] == Histogram((0.01, 0.025), (3, 2, 0), 0.06)
    assert reading.facts["old_names"].split(", ") == [
        "vllm:gpu_cache_usage_perc", "vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_hits_total",
        "vllm:time_per_output_token_seconds",
    ]  # fmt: skip


def test_a_new_name_wins_over_its_old_one() -> None:
    reading = engines.read(page(*VLLM, "vllm:kv_cache_usage_perc 0.25", "vllm:gpu_cache_usage_perc 0.5"))
    assert reading.levels["kv_cache_usage"] == 0.25


def test_engines_behind_one_page_add_up_and_their_cache_use_is_a_mean() -> None:
    lines = [*VLLM, *(line.replace('engine="0"', 'engine="1"') for line in VLLM)]
    lines += ['vllm:kv_cache_usage_perc{engine="0"} 0.2', 'vllm:kv_cache_usage_perc{engine="1"} 0.6']
    lines += [
        f'vllm:cache_config_info{{block_size="16",engine="{n}",num_gpu_blocks="100",cache_dtype="None"}} 1'
        for n in (0, 1)
    ]
    for n in (0, 1):
        buckets = [("1", 1.0 + n), ("+Inf", 3.0)]
        lines += bucket_lines("vllm:time_to_first_token_seconds", *buckets, total=2, labels=f'engine="{n}"')
    reading = engines.read(page(*lines))
    assert reading.levels == {"running": 14.0, "waiting": 4.0, "kv_cache_usage": pytest.approx(0.4)}
    assert reading.counters["generation_tokens"] == 1000
    assert reading.histograms["ttft_s"] == Histogram((1.0,), (3.0, 3.0), 4.0)
    assert reading.facts == {"num_gpu_blocks": "100", "block_size": "16", "engines": "2"}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (VLLM[:3], "incomplete"),
        (VLLM[1:], "incomplete"),
        (("go_goroutines 5",), "not_metrics"),
        ((*VLLM, "vllm:num_preemptions_total -1"), "malformed"),
        ((*VLLM, *bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), total=1)), "incomplete"),
        ((*VLLM, *bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), ("+Inf", 4), total=1)), "malformed"),
        ((*VLLM, *bucket_lines("vllm:time_to_first_token_seconds", ("a", 5), ("+Inf", 5), total=1)), "malformed"),
        ((*VLLM, *bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), ("+Inf", 5), total=1)[:-1]), "incomplete"),
        (
            (
                *VLLM,
                *bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), ("+Inf", 5), total=1)[:2],
                "vllm:time_to_first_token_seconds_count 4",
                "vllm:time_to_first_token_seconds_sum 1",
            ),
            "incomplete",
        ),
    ],
)
def test_an_engine_page_with_something_missing_is_refused(lines: tuple[str, ...], reason: str) -> None:
    assert refused(page(*lines)) == reason


def test_no_cut_of_a_real_page_gives_another_value(shared: Find) -> None:
    """Wherever the page is cut, it is refused, or everything that is left in the reading is right."""
    whole = shared("wire/vllm_metrics.prom").read_bytes()
    right = engines.read(whole)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    kept = 0
    for end in [*ends, *range(1, len(whole), 997)]:
        try:
            cut = engines.read(whole[:end])
        except PageError:
            continue
        kept += 1
        assert cut.shape <= right.shape
        assert cut.histograms.items() <= right.histograms.items()
        assert cut.levels.items() <= right.levels.items()
        assert {n: v for n, v in cut.counters.items() if "." not in n}.items() <= right.counters.items()
    assert kept < len(ends) / 1.5


# -- histograms ------------------------------------------------------------------------------------------------------


def test_percentiles_lie_in_their_bucket_and_the_lowest_has_none() -> None:
    # 100 samples: 60 up to 10 ms, 35 up to 20 ms, 4 up to 40 ms, 1 beyond
    split = histogram.split(Histogram((0.01, 0.02, 0.04), (60, 35, 4, 1), 1.2))
    assert (split.n, split.mean) == (100, 0.012)
    assert split.ranges["p50"] == (0.0, 0.01)
    assert split.p50 is None
    assert split.ranges["p90"] == (0.01, 0.02)
    assert split.p90 == pytest.approx(0.01 + 0.01 * 30 / 35)  # the 90th: 30 of the 35
    assert "p99" not in split.ranges  # 662 samples are needed


def test_a_percentile_beyond_the_highest_bound_says_so() -> None:
    split = histogram.split(Histogram((1.0, 2.0), (10, 0, 990), 9000.0))
    assert split.p99 is None
    assert split.ranges["p99"] == (2.0, None)


def test_an_empty_histogram_has_no_numbers() -> None:
    assert histogram.split(Histogram((1.0,), (0, 0), 0.0)) == histogram.Split()


def test_a_difference_is_none_where_the_process_is_another() -> None:
    a, b = Histogram((1.0,), (5, 1), 4.0), Histogram((1.0,), (8, 1), 6.0)
    assert histogram.since(a, b) == Histogram((1.0,), (3, 0), 2.0)
    assert histogram.since(b, a) is None
    assert histogram.since(a, Histogram((2.0,), (8, 1), 6.0)) is None
    assert histogram.combined([a, Histogram((2.0,), (8, 1), 6.0)]) is None


# -- GPUs and Ollama -------------------------------------------------------------------------------------------------

GPU_PAGE = (
    'tokenswarm_gpu_info{gpu="A",index="0",name="NVIDIA H200",driver="580",backend="nvml",host="h"} 1',
    'tokenswarm_gpu_up{gpu="A"} 1', 'tokenswarm_gpu_up{gpu="B"} 0', "tokenswarm_gpus 1",
    'tokenswarm_gpu_energy_joules_total{gpu="A"} 500.5', 'tokenswarm_gpu_power_watts{gpu="A"} 640',
    'tokenswarm_gpu_busy_seconds_total{gpu="A"} 9', 'tokenswarm_gpu_observed_seconds_total{gpu="A"} 10',
    'tokenswarm_gpu_memory_used_bytes{gpu="A"} 1e9', 'tokenswarm_gpu_clock_hertz{gpu="A",clock="sm"} 1.9e9',
    'tokenswarm_gpu_clock_hertz{gpu="A",clock="mem"} 3.2e9', 'tokenswarm_gpu_clock_hertz{gpu="A",clock="graphics"} 7',
    'tokenswarm_gpu_temperature_celsius{gpu="A",sensor="gpu"} 61',
    'tokenswarm_gpu_throttle_seconds_total{gpu="A",reason="sw_thermal"} 3',
    'tokenswarm_gpu_xid_errors_total{gpu="B",xid="79"} 1', "tokenswarm_host_cpus 8",
)  # fmt: skip


def test_the_page_of_the_gpu_exporter() -> None:
    found = gpus.read(page(*GPU_PAGE))
    assert found.gpus.keys() == {"A"}
    assert found.lost == {"B"}
    assert found.xids == {("B", "79"): 1}
    reading = found.gpus["A"]
    assert reading.counters == {"energy_j": 500.5, "busy_s": 9, "observed_s": 10, "throttle.sw_thermal": 3}
    assert reading.levels == {
        "power_w": 640, "memory_used_bytes": 1e9, "clock_sm_hz": 1.9e9, "clock_mem_hz": 3.2e9, "temperature_c": 61,
    }  # fmt: skip
    assert reading.facts == {"index": "0", "name": "NVIDIA H200", "driver": "580", "backend": "nvml"}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (GPU_PAGE[:-1], "incomplete"),
        (tuple(line for line in GPU_PAGE if "tokenswarm_gpus" not in line), "not_metrics"),
        (tuple(line for line in GPU_PAGE if 'up{gpu="A"}' not in line), "incomplete"),
        (VLLM, "not_metrics"),
    ],
)
def test_a_gpu_page_with_something_missing_is_refused(lines: tuple[str, ...], reason: str) -> None:
    assert refused(page(*lines), gpus.read) == reason


def test_ollamas_loaded_models() -> None:
    models = [
        {"name": "llama3.2:latest", "size": 4000, "size_vram": 3000, "context_length": 4096, "details": {}},
        {"name": "old:1b", "size": 500, "size_vram": 0},
    ]
    reading = ollama.read(json.dumps({"models": models}).encode())
    assert reading.kind == "ollama"
    assert reading.levels == {"models_loaded": 2.0, "vram_bytes": 3000.0, "vram_ratio": pytest.approx(3000 / 4500)}
    assert reading.facts == {"model.llama3.2:latest": "context 4096", "model.old:1b": "context None"}
    assert ollama.read(b'{"models":null}').levels == {"models_loaded": 0.0, "vram_bytes": 0.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"models":[{"name":"x"', "truncated"),
        (b"", "truncated"),
        (b"<html></html>", "not_metrics"),
        (b'{"object":"list"}', "not_metrics"),
        (b'{"models":[{"name":1}]}', "not_metrics"),
        (b"[]", "not_metrics"),
    ],
)
def test_an_answer_that_is_not_ollamas_is_refused(text: bytes, reason: str) -> None:
    assert refused(text, ollama.read) == reason
