"""The splitter finds the same rows as a JSON parser, whatever the blocks, and names the byte where it can't."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.prompts import splitter
from tokenswarm.prompts.splitter import ArraySplitter, LinesSplitter, RawRow, SplitFault, Splitter

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def split(kind: type[ArraySplitter] | type[LinesSplitter], data: bytes, cuts: list[int]) -> list[RawRow]:
    start = 1 if kind is ArraySplitter else 0
    made: Splitter = kind(start)
    edges = sorted({start, len(data), *(cut for cut in cuts if start < cut < len(data))})
    rows: list[RawRow] = []
    for low, high in pairwise(edges):
        rows += made.feed(data[low:high])
    return rows + made.finish()


@given(st.lists(json_values, max_size=6), st.sampled_from([None, 2]), st.booleans(), st.lists(st.integers(0, 400)))
@settings(max_examples=150)
def test_an_array_splits_into_its_values_at_any_cut(
    values: list[object], indent: int | None, ascii_only: bool, cuts: list[int]
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + b" \r\n"
    rows = split(ArraySplitter, data, cuts)
    assert [json.loads(raw.decode("utf-8", "surrogatepass")) for _, raw in rows] == values
    assert all(data[offset : offset + len(raw)] == raw for offset, raw in rows)


def test_an_array_splits_the_same_at_every_single_cut_and_byte_by_byte() -> None:
    values = [
        {"a": 'quote " and back\\slash \\" [}', "b": [1, {"c": "]"}]},
        "text, with ] and \\",
        12.5,
        None,
        [],
        {},
        "",
    ]
    data = json.dumps(values).encode()
    whole = split(ArraySplitter, data, [])
    assert [json.loads(raw) for _, raw in whole] == values
    for cut in range(1, len(data)):
        assert split(ArraySplitter, data, [cut]) == whole
    assert split(ArraySplitter, data, list(range(len(data)))) == whole


@given(
    st.lists(json_values, max_size=6), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.lists(st.integers(0, 400))
)
@settings(max_examples=100)
def test_lines_split_into_their_values_at_any_cut(
    values: list[object], end: bytes, final: bool, cuts: list[int]
) -> None:
    data = end.join([json.dumps(value).encode() for value in values] + ([b""] if final else []))
    rows = split(LinesSplitter, data, cuts)
    assert [json.loads(raw) for _, raw in rows] == values
    assert all(data[offset : offset + len(raw)] == raw for offset, raw in rows)


def test_empty_lines_are_no_rows() -> None:
    assert [raw for _, raw in split(LinesSplitter, b"\n1\n\n  \r\n2\n\n", [])] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("data", "offset", "problem"),
    [
        (b"[1, 2", 5, "ends inside"),
        (b"[", 1, "ends inside"),
        (b"[1,", 3, "ends inside"),
        (b'[{"a": "b', 9, "ends inside"),
        (b"[1, ]", 4, "a row is missing before ']'"),
        (b"[,1]", 1, "a row is missing before ','"),
        (b"[1,,2]", 3, "a row is missing before ','"),
        (b"[}]", 1, "a row is missing before '}'"),
        (b"[1 2]", 3, "a comma is missing"),
        (b'[{"a":1}{"b":2}]', 8, "a comma is missing"),
        (b"[1] [2]", 4, "more after the JSON array"),
        (b"[]x", 2, "more after the JSON array"),
    ],
)
def test_a_broken_array_is_a_fault_at_its_byte(data: bytes, offset: int, problem: str) -> None:
    for cuts in ([], list(range(len(data)))):
        with pytest.raises(SplitFault, match=problem) as fault:
            split(ArraySplitter, data, cuts)
        assert fault.value.offset == offset


def test_a_row_without_end_stops_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitter, "ROW_BYTES_MAX", 10_000)
    with pytest.raises(SplitFault, match="more than 16 MiB"):
        split(ArraySplitter, b'["' + b"x" * 50_000, list(range(0, 50_000, 1000)))
    with pytest.raises(SplitFault, match="more than 16 MiB"):
        split(LinesSplitter, b"x" * 50_000, list(range(0, 50_000, 1000)))
