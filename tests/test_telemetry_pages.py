"""A page is used whole or not at all: what engines and exporters say, older names, and pages that are none."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from exporters import ollama as exporter
from exporters.families import Readings
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


# -- one look after another ------------------------------------------------------------------------------------------


def told(data: bytes, read: Callable[[bytes], object]) -> object:
    try:
        return read(data)
    except PageError as error:
        return error.reason, str(error)


CHANGES = (
    (b" 7.0\n", b" 8.0\n"), (b" 7.0\n", b" NaN\n"), (b" 7.0\n", b" 1_0\n"), (b" 7.0\n", b" -7\n"),
    (b" 7.0\n", b" 1e999\n"), (b" 7.0\n", b" 1-2\n"), (b" 7.0\n", b" 7.0 1700000000000\n"), (b" 7.0\n", b"\t7.0\n"),
    (b" 7.0\n", b"\n"),
    (b"# TYPE", b"vllm:num_preemptions_total 5\n# TYPE"), (b"# TYPE x gauge\n", b"vllm:num_preemptions_total{} 2\n"),
    (b"other_family 1", b"other_family 2"), (b"other_family 1", b"vllm:num_preemptions_total 1"),
    (b'engine="0"', b'engine="1"'), (b'_bucket{le="1"} 5', b'_bucket{le="1"} 4'),
    (b'_bucket{le="1"} 5', b'_bucket{le="1"} 9'),
    (b'_bucket{le="1"}', b'_bucket{le="2"}'), (b"_count{} 6", b"_count{} 7"), (b"# HELP x y z", b"# HELP x y \xff"),
    (b"vllm:generation_tokens_total", b"vllm:generation_took"),
)  # fmt: skip
STEADY = page(
    "# HELP x y z", "# TYPE x gauge", *VLLM, "other_family 1",
    *bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), ("+Inf", 6), total=2.5),
)  # fmt: skip


@given(st.lists(st.sets(st.sampled_from(CHANGES), max_size=3), min_size=1, max_size=6))
@example([set(), *({change} for change in CHANGES)])
@settings(deadline=None, max_examples=40)
def test_a_later_look_says_what_a_first_one_would(looks: list[set[tuple[bytes, bytes]]]) -> None:
    """What is known of the lines before changes no number: whatever stands there now is read."""
    reader = engines.Reader()
    assert reader(STEADY) == engines.read(STEADY)
    for changes in looks:
        for data in (STEADY, functools.reduce(lambda text, change: text.replace(*change), sorted(changes), STEADY)):
            if b"\xff" not in data:  # a comment that is no text is noticed where lines are read, and is only a comment
                assert told(data, reader) == told(data, engines.read)


def test_lines_that_stay_are_not_parsed_again() -> None:
    """CPU of this process, the least of several: a first look at lines that nobody saw against later ones."""

    def cost(data: bytes, read: Callable[[bytes], object]) -> int:
        began_ns = time.process_time_ns()
        read(data)
        return time.process_time_ns() - began_ns

    first, later = [], []
    for n in range(4):
        lines = [
            line for rank in range(300) for line in page(*VLLM).decode().replace('"0"', f'"{n}-{rank}"').splitlines()
        ]
        reader = engines.Reader()
        first.append(cost(page(*lines), reader))
        later += [cost(page(*lines, "# another line"), reader), *(cost(page(*lines), reader) for _ in range(4))]
    assert min(later) < min(first) / 3


# -- the format ------------------------------------------------------------------------------------------------------


def test_samples_are_read_with_labels_escapes_and_time_stamps() -> None:
    text = page(
        "# HELP x y", "x 1", 'x{a="b"} 2.5e+06', r'x{b="1",a="q\"\\\n,}",} -.5 1700000000000', "other{", "x_total 3"
    )
    assert exposition.read(text, {"x"}) == {"x": {(): 1.0, (("a", "b"),): 2.5e6, (("a", 'q"\\\n,}'), ("b", "1")): -0.5}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"x 1", "truncated"),
        (b'"x 1\\n"', "not_metrics"),
        (b"<!doctype html>\n<p>x 1\n", "not_metrics"),
        (b'  {"x": 1}\n', "not_metrics"),
        (b"x \xff\n", "not_metrics"),
        (b"x\n", "malformed"),
        (b"x one\n", "malformed"),
        (b"x 1_0\n", "malformed"),
        (b"x nano\n", "malformed"),
        (b'x{a="b} 1\n', "malformed"),
        (b'x{a="b"c="d"} 1\n', "malformed"),
        (b'x{a="b",a="c"} 1\n', "malformed"),
        (b"x{a=b} 1\n", "malformed"),
        (b"x 1 2 3\n", "malformed"),
        (b"x 1\nx 2\n", "malformed"),
        (b'x{a="1",b="2"} 1\nx{b="2",a="1"} 3\n', "malformed"),
    ],
)
def test_a_page_that_is_none_is_refused(text: bytes, reason: str) -> None:
    assert refused(text, lambda data: exposition.read(data, {"x"})) == reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the page is empty"),
        (b"<html></html>", "HTML, not metrics: a login, or another program"),
        (b'"# HELP x y\\nx 1\\n"', "a JSON string"),
        (b'{"a":1}', "the page is JSON"),
        (b"x 1", "may have been cut"),
    ],
)
def test_each_answer_that_is_no_page_is_called_what_it_is(text: bytes, words: str) -> None:
    with pytest.raises(PageError, match=words):
        exposition.read(text, {"x"})


def test_openmetrics_time_stamps_exemplars_and_its_last_line_are_read() -> None:
    text = (
        b'# TYPE x counter\nx{a="}"} 1 1700000000.123 # {trace_id="a b"} 0.5 1.7e9\nx{a="2"} 2 # {} 1\nx 3 -1.5e3\n'
        b"# TYPE x counter\nx 3\n# EOF"
    )
    assert exposition.read(text, {"x"}) == {"x": {(("a", "}"),): 1.0, (("a", "2"),): 2.0, (): 3.0}}


@pytest.mark.parametrize("word", ["NaN", "nan", "+Inf", "-Inf", "inf", "1e999"])
def test_a_value_that_is_no_number_is_absent_and_the_rest_of_the_page_counts(word: str) -> None:
    lines = [*VLLM, f"vllm:kv_cache_usage_perc {word}", f'vllm:num_preemptions_total{{engine="0"}} {word}']
    lines += ['vllm:num_preemptions_total{engine="1"} 5', f"process_start_time_seconds {word}"]
    lines += bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), ("+Inf", 5), total=1)
    lines[-1] = f"vllm:time_to_first_token_seconds_sum {word}"
    reading = engines.read(page(*lines))
    assert reading.levels == {"running": 7.0, "waiting": 2.0}
    assert reading.counters == {"prompt_tokens": 1000.0, "generation_tokens": 500.0}
    assert (reading.histograms, reading.started_s) == ({}, None)
    assert reading.unknown == {"kv_cache_usage", "preemptions", "ttft_s"}
    assert gpus.read(page(*GPU_PAGE, f'tokenswarm_gpu_power_watts{{gpu="A",x="1"}} {word}')).gpus["A"].levels[
        "power_w"
    ] == 640  # fmt: skip


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
    assert reading.levels == {"running": 0.0, "waiting": 0.0, "kv_cache_usage": 0.0, "resident_bytes": 652546048.0}
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


def test_a_fresh_page_of_vllms_rust_front_end_counts_from_0(shared: Find) -> None:
    """It tells prompt tokens and all histograms with the first request only; `# EOF` proves that none was cut off."""
    fresh = shared("wire/vllm_rs_metrics_fresh.prom").read_bytes()
    reading = engines.read(fresh)
    assert (reading.counters["prompt_tokens"], reading.counters["generation_tokens"]) == (0.0, 0.0)
    assert reading.levels["running"] == 0.0
    assert refused(fresh.removesuffix(b"# EOF\n")) == "incomplete"


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
        ((*VLLM[:3], "vllm:generation_tokens_total -1"), "malformed"),
        ((*VLLM[:3], "vllm:generation_tokens_total one"), "malformed"),
        ((*VLLM, "vllm:num_requests_running{engine=1} 1"), "malformed"),
        ((*VLLM, VLLM[0].replace("7", "8")), "malformed"),
        ((*VLLM, *bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), total=1)), "incomplete"),
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


@pytest.mark.parametrize(
    ("lines", "name", "words"),
    [
        (("vllm:kv_cache_usage_perc -1",), "kv_cache_usage", "vllm:kv_cache_usage_perc is below 0"),
        (("vllm:kv_cache_usage_perc n/a",), "kv_cache_usage", "whose value is no number"),
        (("vllm:kv_cache_usage_perc",), "kv_cache_usage", "a line that is no sample"),
        (("vllm:kv_cache_usage_perc{engine=0} 0.5",), "kv_cache_usage", "labels that can"),
        (("vllm:kv_cache_usage_perc 0.5", "vllm:kv_cache_usage_perc 0.7"), "kv_cache_usage", "twice with the same"),
        (("vllm:num_preemptions_total -1",), "preemptions", "vllm:num_preemptions_total is below 0"),
        (('vllm:request_success_total{finished_reason="stop"} -1',), "finished", "is below 0"),
        (bucket_lines("vllm:time_to_first_token_seconds", ("1", 5), ("+Inf", 4), total=1), "ttft_s", "buckets of"),
        (bucket_lines("vllm:time_to_first_token_seconds", ("a", 5), ("+Inf", 5), total=1), "ttft_s", "le='a'"),
        (("vllm:time_to_first_token_seconds_bucket{le=1} 5",), "ttft_s", "labels that can"),
    ],
)
def test_one_odd_value_of_what_a_page_need_not_have_leaves_out_that_alone(
    lines: list[str], name: str, words: str
) -> None:
    reader = engines.Reader()
    for reading in (reader(page(*VLLM, *lines)), reader(page(*VLLM, *lines))):
        assert reading.levels == {"running": 7.0, "waiting": 2.0}
        assert reading.counters == {"prompt_tokens": 1000.0, "generation_tokens": 500.0}
        assert (reading.histograms, reading.unknown) == ({}, {name})
        assert [words in said for said in reading.odd.values()] == [True]
        assert not reading.fell(engines.read(page(*VLLM, "vllm:num_preemptions_total 5")))
    assert engines.read(page(*VLLM, "vllm:kv_cache_usage_perc 0.5")).odd == {}


def test_a_page_with_the_line_ends_of_windows_is_read(shared: Find) -> None:
    for name in ("vllm_metrics.prom", "llamacpp_metrics.prom", "vllm_rs_metrics_fresh.prom"):
        text = shared(f"wire/{name}").read_bytes()
        assert engines.read(text.replace(b"\n", b"\r\n")) == engines.read(text)
    dos = ("\r\n".join(GPU_PAGE) + "\r\n").encode()
    assert gpus.read(dos) == gpus.read(page(*GPU_PAGE))


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


ODD_SIZES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "no size_vram": ({"size": 1.2e9}, {"size": 1.2e9, "vram": 0.0, "ratio": 0.0}),
    "null": ({"size": 1.2e9, "size_vram": None}, {"size": 1.2e9, "vram": 0.0, "ratio": 0.0}),
    "zeros": ({"size": 0, "size_vram": 0}, {}),
    "nothing": ({}, {}),
    "size only on the GPU": ({"size_vram": 7}, {"vram": 7.0}),
    "more than there is": ({"size": 5, "size_vram": 7}, {"size": 5.0, "vram": 7.0}),
    "text": ({"size": "5", "size_vram": "7"}, {}),
    "below 0": ({"size": 5, "size_vram": -7}, {"size": 5.0}),
}


@pytest.mark.parametrize("odd", ODD_SIZES)
def test_exporter_and_run_give_one_answer_to_odd_sizes(odd: str) -> None:
    """A model all on the CPU is what one wants to be told of; a loaded model of 0 bytes is no answer."""
    sizes, right = ODD_SIZES[odd]
    models = {"models": [{"name": "odd", **sizes}, {"model": "unknown", "size": 0, "size_vram": 0}]}
    readings = Readings()
    exporter.read_ps(models, readings)
    names = {"size": "size_bytes", "vram": "vram_bytes", "ratio": "vram_ratio"}
    for key, name in names.items():
        rows = [(("odd:latest",), right[key])] if key in right else []
        assert readings.rows.get(f"tokenswarm_ollama_model_{name}", []) == rows
    levels = ollama.read(json.dumps(models).encode()).levels
    assert levels.pop("models_loaded") == 2
    assert levels == {names[key]: value for key, value in right.items() if key != "size"}


def test_no_models_are_no_models_to_both() -> None:
    for none in (None, []):
        readings = Readings()
        exporter.read_ps({"models": none}, readings)
        assert readings.rows["tokenswarm_ollama_models_loaded"] == [((), 0)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"models":[{"name":"x"', "truncated"),
        (b"", "empty"),
        (b"<html></html>", "not_metrics"),
        (b'{"object":"list"}', "not_metrics"),
        (b'{"models":[{"name":1}]}', "not_metrics"),
        (b"[]", "not_metrics"),
    ],
)
def test_an_answer_that_is_not_ollamas_is_refused(text: bytes, reason: str) -> None:
    assert refused(text, ollama.read) == reason
