"""A row holds what the record says, in seconds from the run's start, as one small line of strict JSON."""

from __future__ import annotations

import json
import math
from statistics import mean
from typing import Any

import msgspec
import pytest
import sample_runs
from hypothesis import given
from hypothesis import strategies as st

from tokenswarm.clock import NS_PER_S
from tokenswarm.measure.snapshot import LATENCIES
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource
from tokenswarm.reports.jsonl import Row, row

START_NS = 1_000 * NS_PER_S


def decode(record: RequestRecord, *, save_text: bool = False) -> dict[str, Any]:
    line = row(record, 3, START_NS, save_text=save_text)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    decoded: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return decoded


def test_offsets_count_from_the_start_and_durations_are_seconds() -> None:
    record = sample_runs.request(1, START_NS + 2 * NS_PER_S, ttft_s=0.25, engine=EngineTimes(decode_ns=NS_PER_S // 4))
    fields = decode(record)
    assert fields["worker"] == 3
    assert fields["outcome"] == "ok"
    assert fields["intended_s"] == 2.0
    assert fields["sent_s"] == 2.00005
    assert fields["first_s"] == 2.25
    assert fields["ttft_s"] == pytest.approx(0.24995)
    assert fields["ttft_intended_s"] == 0.25
    assert fields["tpot_s"] == pytest.approx((fields["last_s"] - fields["first_s"]) / 8)
    assert fields["send_lag_s"] == 0.00005
    assert fields["token_source"] == "server"
    assert fields["engine"] == {
        "total_s": None, "load_s": None, "prefill_s": None, "decode_s": 0.25, "queue_s": None, "ttft_s": None,
    }  # fmt: skip
    assert all(f"{name}_s" in fields for name in LATENCIES if name != "itl")


def test_each_field_stands_in_the_row_under_its_own_name() -> None:
    """A row is built by place, and many of its fields are numbers."""
    record = sample_runs.request(1, START_NS + NS_PER_S)
    names = sorted(set(Row.__struct_fields__) & set(RequestRecord.__struct_fields__))
    kept = {"outcome", "token_source", "engine", "text"}  # not a number or a text, or told otherwise
    values: dict[str, Any] = {}
    for number, name in enumerate([name for name in names if name not in kept], 1_000):
        before = getattr(record, name)
        values[name] = f"text {number}" if isinstance(before, str) else number
    fields = decode(msgspec.structs.replace(record, **values))
    assert len(values) > 20
    assert {name: fields[name] for name in values} == values
    assert fields["worker"] == 3
    marks = ("intended", "sent", "headers", "first", "last", "done")
    moments = {f"{name}_ns": START_NS + NS_PER_S * number for number, name in enumerate(marks, 1)}
    told = decode(msgspec.structs.replace(record, **moments))
    assert [told[f"{name}_s"] for name in marks] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert (told["ttft_s"], told["ttft_intended_s"], told["e2e_s"], told["e2e_intended_s"]) == (2.0, 3.0, 4.0, 5.0)


def test_what_did_not_happen_is_null() -> None:
    fields = decode(sample_runs.failure(1, START_NS, Outcome.CONNECT, "refused", sent_ns=0, headers_ns=0, status=0))
    for name in ("sent_s", "headers_s", "first_s", "last_s", "ttft_s", "tpot_s", "e2e_s", "status", "itl_p50_s"):
        assert fields[name] is None, name
    assert fields["n_gaps"] == 0
    assert fields["error"] == "service unavailable"


def test_text_stands_in_a_row_only_where_it_is_asked_for() -> None:
    record = sample_runs.request(1, START_NS, text="the answer")
    assert "text" not in decode(record)
    assert b"the answer" not in row(record, 0, START_NS, save_text=False)
    assert decode(record, save_text=True)["text"] == "the answer"


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 4)), min_size=1, max_size=60), st.booleans())
def test_gaps_are_summed_up_as_the_sketch_counts_them(pairs: list[tuple[int, int]], shared: bool) -> None:
    gaps = tuple(gap for gap, _ in pairs)
    tokens = tuple(k for _, k in pairs) if shared else ()
    record = sample_runs.request(1, START_NS, gaps_ns=gaps, gap_tokens=tokens)
    samples = sorted(
        gap / k / NS_PER_S for gap, k in zip(gaps, tokens or (1,) * len(gaps), strict=True) for _ in range(k)
    )
    fields = decode(record)
    assert fields["n_gaps"] == len(samples)
    assert fields["itl_mean_s"] == pytest.approx(mean(samples))
    assert fields["itl_p50_s"] == pytest.approx(samples[(len(samples) - 1) // 2])
    assert fields["itl_max_s"] == pytest.approx(samples[-1])


def test_an_event_without_tokens_has_no_gap() -> None:
    assert decode(sample_runs.request(1, START_NS, gaps_ns=(5,), gap_tokens=(0,)))["n_gaps"] == 0


@pytest.mark.parametrize("text", ["a\nb\r\n\u2028", '"},{"', "\x00\x1b[31m", "half \ud83d of a pair", "é" * 200])
def test_any_text_makes_one_valid_line(text: str) -> None:
    record = sample_runs.failure(1, START_NS, Outcome.ERROR_OBJECT, text, error=text, conversation=text, text=text)
    fields = decode(record, save_text=True)
    expected = text.encode("utf-8", "replace").decode()
    assert fields["error"] == fields["error_kind"] == fields["conversation"] == fields["text"] == expected


def test_a_row_is_small_and_reads_back() -> None:
    gaps = tuple(20_000_000 + i * 1000 for i in range(127))
    line = row(sample_runs.request(1, START_NS, gaps_ns=gaps, output_tokens=128), 0, START_NS, save_text=False)
    assert len(line) < 1400
    parsed = msgspec.json.decode(line, type=Row)
    assert parsed.n_gaps == 127
    assert parsed.itl_max_s is not None
    assert math.isclose(parsed.itl_max_s, 0.020126)


def test_token_sources_are_named() -> None:
    assert decode(sample_runs.request(1, START_NS, token_source=TokenSource.EVENTS))["token_source"] == "events"
