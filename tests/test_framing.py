"""framing.py: the same events for every split, against a slow reading of the WHATWG text; bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.engines.framing import Framer, Oversize, ndjson, sse

LIMIT = 1 << 20


def run(framer: Framer, pieces: Iterable[bytes]) -> list[bytes]:
    events = [event for piece in pieces for event in framer.feed(piece)]
    return events + framer.finish()


def whatwg(body: bytes, at_end: bool = True) -> list[bytes]:
    """The parsing rules, read off the specification one byte at a time; `at_end` adds our rule for a missing end.

    Beyond them, as in framing.py: what is a whole JSON object needs no blank line, and no field name.
    """
    lines, line, i = [], b"", 0
    while i < len(body):
        if body[i : i + 2] == b"\r\n":
            lines.append(line)
            line, i = b"", i + 2
        elif body[i : i + 1] in (b"\r", b"\n"):
            lines.append(line)
            line, i = b"", i + 1
        else:
            line, i = line + body[i : i + 1], i + 1
    if at_end:
        lines += [line, b""] if line else [b""]
    if lines and lines[0].startswith(b"\xef\xbb\xbf"):
        lines[0] = lines[0][3:]
    events: list[bytes] = []
    buffer = b""
    for line in lines:
        if line == b"":
            if buffer != b"":
                events.append(buffer[:-1])  # without the last LF
            buffer = b""
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            if not buffer and value.strip() == b"{}":
                events.append(value)
            else:
                buffer += value + b"\n"
        elif line.strip() == b"{}":
            events.append(line)
    return events


def json_lines(body: bytes) -> list[bytes]:
    return [line.strip() for line in body.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]


SSE_CASES = {
    "usual": (b'data: {"a":1}\n\ndata: {"b":2}\n\n', [b'{"a":1}', b'{"b":2}']),
    "crlf": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "cr": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "mixed": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", [b"a", b"b", b"c"]),
    "no space": (b"data:a\n\n", [b"a"]),
    "two spaces": (b"data:  a\n\n", [b" a"]),
    "space after": (b"data: a \n\n", [b"a "]),
    "several lines": (b"data: a\ndata: b\ndata\ndata: \n\n", [b"a\nb\n\n"]),
    "several lines, crlf": (b"data: a\r\ndata: b\r\nid: 1\r\n: c\r\ndata: d\r\n\r\n", [b"a\nb\nd"]),
    "several lines, cr": (b"data: a\rdata: b\r: c\rdata: d\r\r", [b"a\nb\nd"]),
    "several lines, mixed": (b"data: a\r\ndata: b\rdata: c\ndata: d\n\r\n", [b"a\nb\nc\nd"]),
    "bom only in front": (b"data: a\n\ndata: b\n\n\xef\xbb\xbfdata: c\n\ndata: d\n\n", [b"a", b"b", b"d"]),
    "empty data": (b"data\n\ndata:\n\ndata: \n\n", [b"", b"", b""]),
    "no data": (b"event: x\nid: 1\n\nretry: 9\n\n", []),
    "comments": (b": ping\n\n:\n\ndata: a\n: in between\ndata: b\n\n:\n\n", [b"a\nb"]),
    "other fields": (b"event: token\nid: 7\nretry: 10\ndata: a\nfoo: b\nbar\n\n", [b"a"]),
    "look-alikes": (b"database: 1\ndata : 2\nDATA: 3\n data: 4\n\n", []),
    "bom": (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "bom before blank": (b"\xef\xbb\xbf\n\ndata: a\n\n", [b"a"]),
    "half a bom": (b"\xef\xbbdata: a\n\ndata: b\n\n", [b"b"]),
    "colons in data": (b"data: a: b:c\n\n", [b"a: b:c"]),
    "data prefix in data": (b"data: data: a\n\ndata: b\n\n", [b"data: a", b"b"]),
    "many blank lines": (b"\n\n\r\n\rdata: a\n\n\n\n", [b"a"]),
    "utf-8": ('data: {"x":"é€😀"}\n\n'.encode(), ['{"x":"é€😀"}'.encode()]),
    "next-line is no line end": (
        "data: a\u0085\u2028\x0b\x0c\x1cb\n\n".encode(),
        ["a\u0085\u2028\x0b\x0c\x1cb".encode()],
    ),
    "nul": (b"data: a\x00b\n\n", [b"a\x00b"]),
    "cut in the blank line": (b"data: a\n\ndata: b\n", [b"a", b"b"]),
    "cut in the line": (b"data: a\n\ndata: b", [b"a", b"b"]),
    "cut in the field name": (b"data: a\n\ndat", [b"a"]),
    "trailing comment": (b"data: a\n\n: bye", [b"a"]),
    "nothing": (b"", []),
}

ERROR = b'{"error":{"message":"gone"}}'
BEYOND_CASES = {  # what servers send outside of the specification: events, and what `stray` holds
    "error event": (b"event: error\ndata: gone\n\n", [b'{"error":"gone"}'], b""),
    "error event, name last": (b"data: gone\nevent: error\n\n", [b'{"error":"gone"}'], b""),
    "error event, JSON": (b'event: error\ndata: {"message":"gone"}\n\n', [ERROR], b""),
    "error event, an error already": (b"event: error\r\ndata: " + ERROR + b"\r\n\r\n", [ERROR], b""),
    "error event, other names": (b"event: stream_error\ndata: a\n\nevent:Error\ndata:b\n\n",
                                 [b'{"error":"a"}', b'{"error":"b"}'], b""),
    "no error event": (b"event: errors_so_far\ndata: 0\n\nevent: terror\ndata: 1\n\n", [b"0", b"1"], b""),
    "error in a comment": (b'event: error\n: {"message":"gone"}\n\n', [ERROR], b""),
    "error in the comment before": (b": gone\nevent: error\n\n", [b'{"error":"gone"}'], b""),
    "error that says nothing": (b"event: error\n\nevent: error\ndata: {}\n\n", [b'{"error":""}'] * 2, b""),
    "error event after events": (b"data: a\n\nevent: error\n: gone\n\ndata: [DONE]\n\n",
                                 [b"a", b'{"error":"gone"}', b"[DONE]"], b""),
    "error event without its end": (b"data: a\n\nevent: error\n: gone", [b"a", b'{"error":"gone"}'], b""),
    "old comments are no error": (b": ping\n\nevent: error\n\n", [b'{"error":""}'], b""),
    "error field": (b'error: {"message":"gone"}\n\ndata: [DONE]\n\n', [ERROR, b"[DONE]"], b""),
    "error field, text": (b"data: a\n\nerror: gone\n\n", [b"a", b'{"error":"gone"}'], b""),
    "error field, no end": (b"error:gone", [b'{"error":"gone"}'], b""),
    "bare error": (ERROR, [ERROR], b""),
    "bare error behind": (b"data: a\n\n" + ERROR + b"\n", [b"a", ERROR], b""),
    "bare error over lines": (b'data: a\n\n{\n  "error": "gone"\n}\n', [b"a", b'{\n  "error": "gone"\n}'],
                              b'{\n  "error": "gone"\n}'),
    "bare text": (b"data: a\n\nupstream connect error\n", [b"a"], b"upstream connect error"),
    "one line break": (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [b'{"a":1}', b'{"b":2}', b"[DONE]"], b""),
    "one line break, crlf": (b'data: {"a":1}\r\ndata: {"b":2}\r\ndata: [DONE]\r\n',
                             [b'{"a":1}', b'{"b":2}', b"[DONE]"], b""),
    "one line break, then two": (b'data: {"a":1}\ndata: {"b":2}\n\ndata: {"c":3}\n\n',
                                 [b'{"a":1}', b'{"b":2}', b'{"c":3}'], b""),
    "one line break, with ids": (b'id: 1\ndata: {"a":1}\nid: 2\ndata: {"b":2}\n', [b'{"a":1}', b'{"b":2}'], b""),
    "JSON over data lines": (b'data: {"a":\ndata:  {}\ndata: }\n\n', [b'{"a":\n {}\n}'], b""),
}  # fmt: skip

NDJSON_CASES = {
    "usual": (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
    "crlf": (b"1\r\n2\r\n", [b"1", b"2"]),
    "blank lines": (b"\n\n1\n\r\n  \n2\n\n", [b"1", b"2"]),
    "no last newline": (b"1\n2", [b"1", b"2"]),
    "bom": (b"\xef\xbb\xbf1\n2\n", [b"1", b"2"]),
    "cr is no line end": (b"1\r2\n", [b"1\r2"]),
    "nothing": (b"", []),
}

CASES = [
    pytest.param(make, body, events, id=f"{make.__name__}, {name}")
    for make, cases in ((sse, SSE_CASES), (ndjson, NDJSON_CASES))
    for name, (body, events) in cases.items()
]
Make = Callable[[int], Framer]


@pytest.mark.parametrize(("make", "body", "events"), CASES)
def test_events_are_the_same_for_every_split(make: Make, body: bytes, events: list[bytes]) -> None:
    assert run(make(LIMIT), [body]) == events
    assert run(make(LIMIT), [body[i : i + 1] for i in range(len(body))]) == events
    for i, j in itertools.combinations_with_replacement(range(len(body) + 1), 2):
        assert run(make(LIMIT), [body[:i], body[i:j], body[j:]]) == events, (i, j)


@pytest.mark.parametrize(("body", "events", "stray"), BEYOND_CASES.values(), ids=BEYOND_CASES)
def test_what_servers_say_outside_of_events_comes_out_for_every_split(
    body: bytes, events: list[bytes], stray: bytes
) -> None:
    for i, j in itertools.combinations_with_replacement(range(len(body) + 1), 2):
        framer = sse(LIMIT)
        assert run(framer, [body[:i], body[i:j], body[j:]]) == events, (i, j)
        assert framer.stray == stray


def test_a_whole_object_comes_with_its_own_line_end_where_no_blank_line_follows() -> None:
    framer = sse(LIMIT)
    assert framer.feed(b'data: {"a":1}') == []
    assert framer.feed(b"\n") == [b'{"a":1}']
    assert framer.feed(b'data: {"b":2}\n') == [b'{"b":2}']
    assert framer.feed(b"\ndata: [DONE]\n\n") == [b"[DONE]"]


def test_what_belongs_to_no_event_is_kept_up_to_a_limit() -> None:
    framer = sse(LIMIT)
    for _ in range(1000):
        assert framer.feed(b"no field\n") == []
    assert len(framer.stray) <= 4096


@pytest.mark.parametrize(("body", "events"), SSE_CASES.values(), ids=SSE_CASES)
def test_the_reference_of_this_file_agrees_with_the_table(body: bytes, events: list[bytes]) -> None:
    assert whatwg(body) == events


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r", b"\r\r", b"\n\r", b"\r\n\n"])
def test_an_event_comes_with_the_byte_that_completes_it(end: bytes) -> None:
    framer = sse(LIMIT)
    assert framer.feed(b"data: a" + end[:-1]) == []
    assert framer.feed(end[-1:]) == [b"a"]
    assert framer.feed(b"\ndata: b\n\n") == [b"b"]  # after CR this LF belongs to it, else it is one more blank line


def test_the_fast_path_and_the_slow_path_take_turns() -> None:
    framer = sse(LIMIT)
    pieces = [
        b"data: 1\n\n",
        b"data: 2",
        b"\n\n",
        b"data: 3\n\n",
        b"data: 4\r\n\r",
        b"\ndata: 5\n\n",
        b"data: 6\n\ndata: 7\n\n",
    ]
    assert run(framer, pieces) == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]


SEPARATORS = (b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r")
TOKENS = (
    *SEPARATORS,
    *(b"data", b"data:", b"data: ", b"data:  ", b":", b": c", b" ", b"event: e", b"id: 1", b"retry: 1", b"dat", b"a:"),
    *(b"x", b"{}", b"\xef\xbb\xbf", b"\xef", b"\x00", b"data: x\n\n", b"data: y\n\n", "€".encode()),
)
# Half of it lines of fields, so that events of several lines with every line end really occur.
LINES = st.tuples(
    st.sampled_from((b"data: x", b"data:y", b"data", b": c", b"id: 1", b"")), st.sampled_from(SEPARATORS[:3])
)
SOUP = st.lists(st.sampled_from(TOKENS) | LINES.map(b"".join), max_size=30).map(b"".join)


def split(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=400)
@given(body=SOUP, cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_sse_equals_the_specification_on_byte_soup(body: bytes, cuts: list[int]) -> None:
    assert run(sse(LIMIT), split(body, cuts)) == whatwg(body)


@settings(max_examples=150)
@given(body=SOUP)
def test_sse_events_depend_on_the_bytes_so_far_and_not_on_the_reads(body: bytes) -> None:
    framer = sse(LIMIT)
    seen: list[bytes] = []
    for i in range(len(body)):
        seen += framer.feed(body[i : i + 1])
        whole = sse(LIMIT).feed(body[: i + 1])
        assert seen == whole == whatwg(body[: i + 1], at_end=False)


@settings(max_examples=200)
@given(body=SOUP, cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_ndjson_equals_splitting_the_whole_body(body: bytes, cuts: list[int]) -> None:
    assert run(ndjson(LIMIT), split(body, cuts)) == json_lines(body)


def outcome(framer: Framer, pieces: Iterable[bytes]) -> tuple[list[bytes], bool]:
    events: list[bytes] = []
    try:
        for piece in pieces:
            events += framer.feed(piece)
        events += framer.finish()
    except Oversize as error:
        return events + error.events, True
    return events, False


@settings(max_examples=300)
@given(body=SOUP, cuts=st.lists(st.integers(0, 10_000), max_size=8), limit=st.integers(4, 24), lines=st.booleans())
def test_the_limit_strikes_at_the_same_place_for_every_split(
    body: bytes, cuts: list[int], limit: int, lines: bool
) -> None:
    make = ndjson if lines else sse
    whole = outcome(make(limit), [body])
    assert outcome(make(limit), split(body, cuts)) == whole
    assert outcome(make(limit), [body[i : i + 1] for i in range(len(body))]) == whole


@pytest.mark.parametrize(
    ("make", "fits", "too_large"),
    [
        (sse, b"data: " + b"x" * 94 + b"\n\n", b"data: " + b"x" * 95 + b"\n\n"),
        (sse, b": " + b"x" * 98 + b"\n\n", b": " + b"x" * 99 + b"\n\n"),
        (
            sse,
            b"data: xxx\n" * 9 + b"data: " + b"x" * 13 + b"\n\n",
            b"data: xxx\n" * 9 + b"data: " + b"x" * 14 + b"\n\n",
        ),
        (ndjson, b"x" * 100 + b"\n", b"x" * 101 + b"\n"),
    ],
    ids=["sse line", "sse comment", "sse lines", "ndjson line"],
)
def test_the_limit_is_exact_and_names_itself(make: Make, fits: bytes, too_large: bytes) -> None:
    ok = b"data: ok\n\n" if make is sse else b"ok\n"
    framer = make(100)
    assert framer.feed(ok * 20 + fits * 3)[:20] == [b"ok"] * 20  # the limit is one of an event, not of a read
    with pytest.raises(Oversize) as caught:
        framer.feed(ok + too_large)
    assert str(caught.value) == "one event is larger than 100 bytes"
    assert caught.value.events == [b"ok"]
    with pytest.raises(Oversize):
        framer.feed(ok)  # spent: what follows belongs to nothing


def test_comments_never_add_up_to_an_event() -> None:
    framer = sse(64)
    for _ in range(1000):
        assert framer.feed(b": keep-alive\n") == []
    assert framer.feed(b"data: a\n\n") == [b"a"]


@pytest.mark.parametrize("make", [sse, ndjson])
def test_a_line_without_end_is_held_only_up_to_the_limit(make: Make) -> None:
    framer = make(10_000)
    for _ in range(10):
        assert framer.feed(b"x" * 1000) == []
    with pytest.raises(Oversize):
        framer.feed(b"x")
