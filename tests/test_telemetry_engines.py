"""Engines and routers beside vLLM and llama.cpp, as their own sources spell their pages; several of them in one run."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
import sample_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.clock import NS_PER_S
from tokenswarm.result.summary import Summary
from tokenswarm.telemetry import engines, join, names
from tokenswarm.telemetry.exposition import PageError
from tokenswarm.telemetry.reading import Counts
from tokenswarm.telemetry.watch import EngineWatch


def histogram(name: str, n: float, total: float, labels: str = "") -> str:
    comma = "," if labels else ""
    told = f"{{{labels}}}" if labels else ""
    return (
        f'{name}_bucket{{{labels}{comma}le="1.0"}} {n}\n{name}_bucket{{{labels}{comma}le="+Inf"}} {n}\n'
        f"{name}_count{told} {n}\n{name}_sum{told} {total}\n"
    )


SGLANG = (
    'sglang:num_running_reqs{model_name="m",tp_rank="0"} 5.0\nsglang:num_running_reqs{model_name="m",tp_rank="1"} 5.0\n'
    'sglang:num_queue_reqs{model_name="m",tp_rank="0",priority=""} 3.0\n'
    'sglang:num_queue_reqs{model_name="m",tp_rank="0",priority="1"} 2.0\n'
    'sglang:token_usage{model_name="m",tp_rank="0"} 0.28\n'
    'sglang:prompt_tokens_total{model_name="m"} 800.0\nsglang:generation_tokens_total{model_name="m"} 300.0\n'
    'sglang:cached_tokens_total{cache_source="device",model_name="m"} 150.0\n'
    'sglang:cached_tokens_total{cache_source="host",model_name="m"} 50.0\n'
    'sglang:num_requests_total{model_name="m"} 12.0\n'
    + histogram("sglang:time_to_first_token_seconds", 12, 2.5, 'model_name="m"')
    + histogram("sglang:queue_time_seconds", 12, 0.5, 'model_name="m"')
)
PAGES: dict[str, tuple[str, dict[str, float], dict[str, float], dict[str, float]]] = {
    # kind -> page, levels, counters, means of histograms
    "sglang": (
        SGLANG,
        {"running": 5, "waiting": 3, "kv_cache_usage": 0.28},
        {"prompt_tokens": 800, "generation_tokens": 300, "prompt_tokens_cached": 200, "finished.all": 12},
        {"ttft_s": 2.5 / 12, "queue_s": 0.5 / 12},
    ),
    "tensorrt_llm": (
        'trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 4\n'
        'trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 2\n'
        "trtllm_kv_cache_utilization 0.5\ntrtllm_prompt_tokens_total 70\ntrtllm_generation_tokens_total 90\n"
        'trtllm_request_success_total{finished_reason="length"} 7\n'
        'trtllm_request_success_total{finished_reason="stop"} 2\ntrtllm_request_error_total{http_code="500"} 1\n'
        + histogram("trtllm_e2e_request_latency_seconds", 9, 4.5),
        {"running": 4, "waiting": 2, "kv_cache_usage": 0.5},
        {"prompt_tokens": 70, "generation_tokens": 90, "finished.length": 7, "finished.stop": 2, "finished.error": 1},
        {"e2e_s": 0.5},
    ),
    "lmdeploy": (
        'lmdeploy_num_requests_running{engine="0",model_name="m"} 1\n'  # as prometheus_client 0.23 spells it
        'lmdeploy_num_requests_waiting{engine="0",model_name="m"} 0\n'
        'lmdeploy_gpu_cache_usage_perc{engine="0",model_name="m"} 0.125\n'
        'lmdeploy_prompt_tokens_total{engine="0"} 10\nlmdeploy_generation_tokens_total{engine="0"} 20\n'
        'lmdeploy_request_success_total{engine="0",finished_reason="ResponseType.FINISH"} 3\n',
        {"running": 1, "waiting": 0, "kv_cache_usage": 0.125},
        {"prompt_tokens": 10, "generation_tokens": 20, "finished.ResponseType.FINISH": 3},
        {},
    ),
    "tgi": (
        "tgi_batch_current_size 6\ntgi_queue_size 1\ntgi_request_success 8\n"
        'tgi_request_failure{err="overloaded"} 2\n'
        + histogram("tgi_request_input_length", 8, 400)
        + histogram("tgi_request_generated_tokens", 8, 160)
        + histogram("tgi_request_mean_time_per_token_duration", 8, 0.16)
        + histogram("tgi_request_queue_duration", 8, 0.8),
        {"running": 6, "waiting": 1},
        {"prompt_tokens": 400, "generation_tokens": 160, "finished.all": 8, "finished.overloaded": 2},
        {"tpot_s": 0.02, "queue_s": 0.1},
    ),
    "dynamo": (
        'dynamo_frontend_inflight_requests{model="m"} 9\ndynamo_frontend_queued_requests{model="m"} 4\n'
        'dynamo_frontend_output_tokens_total{model="m"} 11808\n'
        'dynamo_frontend_requests_total{endpoint="chat_completions",model="m",status="success"} 492\n'
        'dynamo_frontend_requests_total{endpoint="chat_completions",model="m",status="error"} 3\n'
        'dynamo_frontend_model_migration_total{migration_type="ongoing_request",model="m"} 2\n'
        + histogram("dynamo_frontend_input_sequence_tokens", 492, 24600, 'model="m"')
        + histogram("dynamo_frontend_time_to_first_token_seconds", 492, 49.2, 'model="m"'),
        {"held": 9, "before_first_token": 4},
        {"generation_tokens": 11808, "prompt_tokens": 24600, "finished.success": 492, "finished.error": 3,
         "retries": 2},
        {"ttft_s": 0.1},
    ),
    "vllm_router": (
        'vllm_router_requests_total{route="/v1/chat/completions"} 168\n'
        'vllm_router_retries_total{route="/v1/chat/completions"} 47\n'
        'vllm_router_running_requests{worker="http://a"} 2\nvllm_router_running_requests{worker="http://b"} 3\n',
        {"held": 5},
        {"requests": 168, "retries": 47},
        {},
    ),
    "sglang_router": (
        'smg_router_requests_total{endpoint="chat",model="m"} 171\n'
        'smg_worker_retries_total{endpoint="chat",worker_type="regular"} 36\n'
        'smg_router_request_errors_total{endpoint="chat",error_type="no_workers"} 4\n'
        'smg_worker_requests_active{worker="http://a"} 1\n',
        {"held": 1},
        {"requests": 171, "retries": 36, "errors.no_workers": 4},
        {},
    ),
    "litellm": (
        'litellm_proxy_total_requests_metric_total{requested_model="m"} 110\n'
        'litellm_deployment_total_requests_total{litellm_model_name="m"} 137\n'
        'litellm_deployment_failure_responses_total{exception_status="503"} 27\n'
        'litellm_output_tokens_metric_total{requested_model="m"} 2640\n'
        + histogram("litellm_llm_api_time_to_first_token_metric", 110, 55.0),
        {},
        {"requests": 110, "attempts": 137, "attempts_failed.503": 27, "generation_tokens": 2640},
        {"ttft_s": 0.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_read_under_its_own_names_by_value(kind: str) -> None:
    page, levels, counters, means = PAGES[kind]
    reading = engines.read(page.encode())
    assert (reading.kind, reading.levels, reading.counters) == (kind, pytest.approx(levels), counters)
    assert {name: h.sum / h.n for name, h in reading.histograms.items()} == pytest.approx(means)
    told = {name.partition(".")[0] for name in (*levels, *counters, *means)} | {*levels, *counters}
    assert set(reading.missing).isdisjoint(told - {"finished"})


@pytest.mark.parametrize("kind", PAGES)
def test_wherever_a_page_is_cut_no_number_is_made_up(kind: str) -> None:
    page = PAGES[kind][0].encode()
    whole = engines.read(page)
    for end in range(len(page)):
        try:
            cut = engines.read(page[:end])
        except PageError:
            continue
        for name, value in (cut.levels | cut.counters).items():
            assert value in (0, (whole.levels | whole.counters)[name]) or name in (
                "waiting", "held", "prompt_tokens_cached",  # sums of several lines, the first of which is there
            )  # fmt: skip


@given(st.sampled_from(sorted(PAGES)), st.binary(max_size=30), st.integers(0, 3000))
@settings(max_examples=150)
def test_garbage_inside_a_page_is_refused_or_left_out(kind: str, junk: bytes, at: int) -> None:
    page = PAGES[kind][0].encode()
    with contextlib.suppress(PageError):
        assert engines.read(page[:at] + junk + page[at:]).kind in names.ENGINES


def test_both_spellings_of_sglang_are_one() -> None:
    assert engines.read(SGLANG.replace("sglang:", "sglang_").encode()) == _without_shape(SGLANG)


def _without_shape(page: str) -> object:
    other = engines.read(page.encode())
    renamed = frozenset((name.replace(":", "_"), labels) for name, labels in other.shape)
    keys = tuple((name.replace(":", "_"), labels) for name, labels in other.counts.keys)
    return msgspec.structs.replace(other, shape=renamed, counts=Counts(keys, other.counts.values))


def test_an_engine_that_has_told_nothing_yet_is_asked_on() -> None:
    with pytest.raises(PageError, match="has no value of them yet") as error:
        engines.read(b"# HELP sglang:prompt_tokens_total x\n# TYPE sglang:prompt_tokens_total counter\n")
    assert error.value.reason == "incomplete"


def test_a_page_of_another_program_names_what_is_known() -> None:
    with pytest.raises(PageError, match=r"known here \(vLLM, llama\.cpp, SGLang, .*LiteLLM\)"):
        engines.read(b"go_goroutines 5\n")


# -- several at a time -----------------------------------------------------------------------------------------------


def vllm(n: int, *, running: float = 2.0, error: int = 0) -> bytes:
    return (
        f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\nvllm:prompt_tokens_total {10 * n}\n"
        f'vllm:generation_tokens_total {20 * n}\nvllm:request_success_total{{finished_reason="length"}} {n}\n'
        f'vllm:request_success_total{{finished_reason="error"}} {error}\n'
    ).encode()


def watched(*pages: tuple[bytes, bytes], run: Summary | None = None) -> dict[str, Any]:
    """server.metrics of a window of 100 s at whose ends each page was read."""
    watches = []
    for number, (first, last) in enumerate(pages):
        watch = EngineWatch(f"http://h:{number}/metrics", 1.0, engines.read)
        watch.open(0, 0)
        assert watch.page(first, 1, 1) is None
        for second in range(1, 100):
            watch.page(first, second * NS_PER_S, 1)
        watch.close(100 * NS_PER_S)
        assert watch.page(last, 100 * NS_PER_S + 1, 1) is None
        watches.append(watch)
    summary = run or sample_runs.summary(sample_runs.run(ok=100))
    join.fill(summary, watches, (), now_ns=101 * NS_PER_S)
    told: dict[str, Any] = summary.server["metrics"]
    return told


def router(requests: int, retries: int) -> bytes:
    return f"vllm_router_requests_total {requests}\nvllm_router_retries_total {retries}\n".encode()


def test_replicas_add_up_and_the_router_before_them_stands_by_itself() -> None:
    told = watched((vllm(0), vllm(60, error=5)), (vllm(0), vllm(40)), (router(10, 1), router(110, 6)))
    assert (told["generation_tokens"], told["running"]["mean"]) == (2000, pytest.approx(4.0))
    assert told["finished"] == {"error": 5, "length": 100}
    (one,) = told["routers"]
    assert (one["kind"], one["requests"], one["retries"]) == ("vllm_router", 100, 5)
    assert [source["kind"] for source in told["sources"]] == ["vllm", "vllm", "vllm_router"]
    assert "ttft_s" in told["sources"][0]["missing"]


def test_ends_of_any_name_are_answers_but_for_those_that_gave_up() -> None:
    ends = b"".join(
        b'vllm:request_success_total{finished_reason="%s"} %%d\n' % reason
        for reason in (b"content_filter", b"tool_calls", b"eos_token", b"abort")
    )
    told = watched((vllm(0) + ends % (0, 0, 0, 0), vllm(40) + ends % (5, 3, 2, 7)))["requests_compared"]
    assert (told["server_good"], told["server_bad"]) == (50, 7)


def test_each_replica_stands_by_itself_too() -> None:
    told = watched(
        (vllm(0), vllm(60, error=5)), (vllm(0, running=4.0), vllm(40, running=4.0)), (router(1, 0), router(2, 0))
    )
    one, other = told["replicas"]
    assert [(each["url"], each["kind"]) for each in (one, other)] == [
        ("http://h:0/metrics", "vllm"), ("http://h:1/metrics", "vllm"),
    ]  # fmt: skip
    assert [each["running"]["mean"] for each in (one, other)] == [pytest.approx(2.0), pytest.approx(4.0)]
    assert [(each["prompt_tokens"], each["generation_tokens"]) for each in (one, other)] == [(600, 1200), (400, 800)]
    assert [each["finished"] for each in (one, other)] == [{"error": 5, "length": 60}, {"error": 0, "length": 40}]
    assert watched((vllm(0), vllm(60)))["replicas"] == []


START = "process_start_time_seconds {}\n"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((START.format(1700.25), 3), (START.format(1700.25), 3), True),
        ((START.format(1700.25), 3), (START.format(1700.26), 3), False),
        ((START.format(1700.25), 3), (START.format(1700.25), 4), False),
        ((START.format(1700.25), 0), (START.format(1700.25), 0), False),  # nothing that chance could not have made
        (("", 3), ("", 3), False),
        (("vllm:num_preemptions_total 1.5\n", 3), ("vllm:num_preemptions_total 1.5\n", 3), True),
    ],
)
def test_one_engine_at_two_addresses_counts_once(one: tuple[str, int], other: tuple[str, int], same: bool) -> None:
    """As `auto` and a URL of the same, a name and its address, or a router that hands `/metrics` to an engine."""
    watches = [EngineWatch(f"http://h:{number}/metrics", 1.0, engines.Reader()) for number in range(2)]
    pages = [more.encode() + vllm(n) for more, n in (one, other)]
    assert [watch.page(page, 1, 1) for watch, page in zip(watches, pages, strict=True)] == [None, None]
    assert [twin.url for twin in join.find_twins(watches)] == (["http://h:1/metrics"] if same else [])
    for watch, (more, n) in zip(watches, (one, other), strict=True):
        watch.open(0, 2)
        for second in range(1, 100):
            watch.page(more.encode() + vllm(n + second), second * NS_PER_S, 1)
    summary = sample_runs.summary(sample_runs.run(ok=100))
    join.fill(summary, watches, (), now_ns=101 * NS_PER_S)
    told: dict[str, Any] = summary.server["metrics"]
    assert told["generation_tokens"] == 98 * 20 * (1 if same else 2)
    assert len(told["replicas"]) == (0 if same else 2)
    said = [source["problem"] for source in told["sources"]]
    assert said == ["", "the same engine as at http://h:0/metrics: it is counted once" if same else ""]


BUCKETS = 'vllm:time_to_first_token_seconds_bucket{{le="{}"}} {}\n'


def ttft(edge: str, n: int) -> bytes:
    text = BUCKETS.format(edge, n) + BUCKETS.format("+Inf", n)
    return (
        f"{text}vllm:time_to_first_token_seconds_sum {n * 0.5}\nvllm:time_to_first_token_seconds_count {n}\n".encode()
    )


def test_two_replicas_that_disagree_give_no_number_that_neither_has() -> None:
    """Of two versions: other buckets, a counter that one lacks; or of two programs."""
    counted = b"vllm:num_preemptions_total %d\n"
    told = watched(
        (vllm(0) + ttft("1", 0) + counted % 0, vllm(60) + ttft("1", 60) + counted % 3),
        (vllm(0) + ttft("2", 0), vllm(40) + ttft("2", 40)),
    )
    assert told["generation_tokens"] == 2000
    assert "ttft_s" not in told["latency"]
    assert [each["ttft_s_mean"] for each in told["replicas"]] == [0.5, 0.5]
    assert [each["preemptions"] for each in told["replicas"]] == [3, None]
    assert told["preemptions"] is None
    llama = PAGES["sglang"][0].encode()
    mixed = watched((vllm(0), vllm(60)), (llama, llama))
    assert [each["kind"] for each in mixed["replicas"]] == ["vllm", "sglang"]
    assert mixed["generation_tokens"] == 1200


def test_names_that_are_new_to_us_change_nothing() -> None:
    new = b"vllm:num_requests_running_by_class 7\nvllm:generation_tokens_total_v2 9\nvllm_future{a=b} x\n"
    assert watched((vllm(0) + new, vllm(60) + new)) == watched((vllm(0), vllm(60)))


def test_a_front_end_alone_tells_tokens_and_no_batch() -> None:
    page = PAGES["dynamo"][0]
    later = page.replace("11808", "12808").replace('status="success"} 492', 'status="success"} 592')
    told = watched((page.encode(), later.encode()))
    assert (told["generation_tokens"], told["running"]["mean"]) == (1000, None)
    assert told["routers"][0]["requests"] == 100


def test_litellms_attempts_beyond_its_requests_are_retries() -> None:
    page = PAGES["litellm"][0]
    later = page.replace('"m"} 110', '"m"} 210').replace('"m"} 137', '"m"} 267')
    (one,) = watched((page.encode(), later.encode()))["routers"]
    assert (one["requests"], one["retries"]) == (100, 30)
