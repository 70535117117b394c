"""Answers that users have reported, over sockets: streams that are fine in odd clothes, and errors in odd places."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest
from exchanges import READERS, Setup, one
from raw_server import CLOSE, DONE, LAST_CHUNK, RESET, Step, chunk, content, head, usage

from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource

PATIENT = Timeouts(connect=Seconds(5.0), first_token=Seconds(20.0), idle_token=Seconds(20.0), total=Seconds(30.0))
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
END = STOP + usage(7, 2) + DONE
CHAT, GENERATE, OLLAMA = ("openai", "chat"), ("openai", "completions"), ("ollama", "chat")


@pytest.fixture(params=READERS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    found = Setup(request.param)
    yield found
    found.close()


def event(value: object) -> bytes:
    return b"data: %s\n\n" % json.dumps(value).encode()


def delta(index: int = 0, **fields: object) -> bytes:
    return event({"choices": [{"index": index, "delta": fields, "finish_reason": None}]})


def answer(setup: Setup, *events: Step, kind: tuple[str, str] = CHAT, content_type: str | None = None) -> RequestRecord:
    """The record of a chunked answer, one chunk an event; floats are waits."""
    usual = "text/event-stream" if kind[0] == "openai" else "application/x-ndjson"
    chunks = (chunk(step) if isinstance(step, bytes) else step for step in events)
    return one(setup, head(content_type or usual), *chunks, LAST_CHUNK, kind=kind, timeouts=PATIENT)


EMPTIES = (b"data:\n\n", b"data: \n\n", b"data: {}\n\n", b'data: {"id":"c1","object":"chat.completion.chunk"}\n\n')
EMPTIES += (b'data: {"choices":[]}\n\n', b'data: {"type":"ping"}\n\n', b"data: null\n\n")


def test_events_without_content_are_like_comments(setup: Setup) -> None:
    got = answer(setup, *EMPTIES, 0.1, content("A"), *EMPTIES, content("B"), END)
    assert (got.outcome, got.events, got.text, got.output_tokens) == (Outcome.OK, 2, "AB", 2)
    assert got.first_event_ns == got.first_ns, "what says nothing is not the first event, for any tool"


def test_events_without_content_keep_no_time_out_away(setup: Setup) -> None:
    got = one(setup, head(), *([chunk(b"data: {}\n\n"), 0.05] * 60))
    assert (got.outcome, got.error) == (Outcome.TIMEOUT, "no token within 1 s")


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/octet-stream", "text/html; x=y"])
def test_a_stream_under_another_content_type_is_one(setup: Setup, kind: str) -> None:
    for begin in (b"", b"\n", b"\xef\xbb\xbf", b": hello\n\n", b"event: message\n"):
        got = answer(setup, begin + content("A"), content("B"), END, content_type=kind)
        assert (got.outcome, got.text, got.error) == (Outcome.OK, "AB", "")
    lines = (b'{"message":{"content":"A"}}\n', b'{"done":true,"done_reason":"stop","eval_count":1}\n')
    got = answer(setup, *lines, kind=OLLAMA, content_type=kind)
    assert (got.outcome, got.text, got.output_tokens) == (Outcome.OK, "A", 1)
    byte_by_byte = [bytes([b]) for b in content("A") + END]
    assert answer(setup, *byte_by_byte, content_type=kind).text == "A"


WHOLE = b'{"choices":[{"index":0,"message":{"content":"hello"},"finish_reason":"stop"}]}'
ERROR = b'{"error":{"message":"no such engine","code":500}}'
NO_STREAMS: dict[str, tuple[bytes, Outcome, str]] = {
    "error object": (ERROR, Outcome.ERROR_OBJECT, "no such engine"),
    "error object over lines": (
        b'{\n  "error": {\n "message": "no such engine"}\n}\n',
        Outcome.ERROR_OBJECT,
        "no such engine",
    ),
    "flat error": (b'{"message":"no such engine","code":404}', Outcome.ERROR_OBJECT, "no such engine"),
    "page": (
        b"<html><title>Log in</title></html>",
        Outcome.PROTOCOL,
        "is an HTML page (type TYPE), not a stream: look at the address, at a proxy or a login; it says: Log in",
    ),
    "nothing": (b"", Outcome.EMPTY, ""),
}


@pytest.mark.parametrize("case", NO_STREAMS)
@pytest.mark.parametrize("kind", [CHAT, GENERATE, OLLAMA], ids=["chat", "completions", "ollama"])
@pytest.mark.parametrize("usual", [True, False], ids=["stream's type", "other type"])
def test_what_is_no_stream_is_told_in_its_own_words(
    setup: Setup, case: str, kind: tuple[str, str], usual: bool
) -> None:
    body, outcome, said = NO_STREAMS[case]
    kind_of = "text/plain" if not usual else "text/event-stream" if kind[0] == "openai" else "application/x-ndjson"
    got = answer(setup, *([body] if body else []), kind=kind, content_type=kind_of)
    assert (got.outcome, got.events) == (outcome, 0)
    assert said.replace("TYPE", kind_of) in got.error


def test_a_whole_answer_is_not_a_stream(setup: Setup) -> None:
    for kind in ("application/json", "text/event-stream"):
        got = answer(setup, WHOLE, content_type=kind)
        assert (got.outcome, got.error) == (
            Outcome.PROTOCOL,
            f"the answer is one piece of {kind}, not a stream: the server ignores `stream: true`",
        )


SAID = "worker 3 went away"
BEHIND = {  # what a server writes behind two events
    "error event, JSON in a comment": b'event: error\n: {"message":"worker 3 went away","code":503}\n\n',
    "error event, text in a comment": b"event: error\n: worker 3 went away\n\n",
    "error event, text": b"event: error\ndata: worker 3 went away\n\n",
    "error event, JSON": b'event: error\ndata: {"message":"worker 3 went away"}\n\n',
    "error field": b'error: {"code":500,"message":"worker 3 went away"}\n\n',
    "error field, text": b"error: worker 3 went away",
    "bare error": b'{"error":{"message":"worker 3 went away"}}',
    "bare error over lines": b'{\n"error": "worker 3 went away"\n}\n',
    "flat error": b'data: {"message":"worker 3 went away","type":"Internal","code":500}\n\n',
    "error in the choice": b'data: {"choices":[{"index":0,"delta":{},"error":{"message":"worker 3 went away"}}]}\n\n',
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("done", [b"", DONE], ids=["no end", "[DONE]"])
def test_an_error_in_an_odd_place_is_one_in_the_servers_words(setup: Setup, name: str, done: bytes) -> None:
    got = answer(setup, content("A"), content("B"), BEHIND[name], *([b"\n\n" + done] if done else []))
    assert (got.outcome, got.error, got.error_kind) == (Outcome.ERROR_OBJECT, SAID, "error object")


@pytest.mark.parametrize("name", BEHIND)
def test_an_error_in_an_odd_place_beats_the_broken_connection(setup: Setup, name: str) -> None:
    got = one(setup, head(), chunk(content("A")), chunk(BEHIND[name]), 0.1, CLOSE)
    assert (got.outcome, got.error) == (Outcome.ERROR_OBJECT, SAID)


def test_text_behind_the_last_event_reaches_the_user(setup: Setup) -> None:
    got = answer(setup, content("A"), b"upstream connect error\n")
    assert got.outcome is Outcome.TRUNCATED
    assert got.error.endswith("after 1 content events; the server says: upstream connect error")
    got = answer(setup, b"data: upstream connect error\n\n")
    assert got.outcome is Outcome.PROTOCOL
    assert got.error.endswith("the server says: upstream connect error")
    got = answer(setup, b'{"message":{"content":"A"}}\n', b"upstream connect error\n", kind=OLLAMA)
    assert got.outcome is Outcome.PROTOCOL
    assert got.error.endswith("the server says: upstream connect error")
    got = one(setup, head(), chunk(content("A") + b"502 Bad Gateway\n"), 0.1, RESET)
    assert got.outcome is Outcome.RESET
    assert got.error.endswith("the server says: 502 Bad Gateway")
    assert answer(setup, content("A"), END, b"bye\n").outcome is Outcome.OK


def test_a_refusal_that_is_compressed_is_read(setup: Setup) -> None:
    body = gzip.compress(ERROR)
    got = one(setup, head("application/json", "content-encoding: gzip", status="503 Busy"), chunk(body), LAST_CHUNK)
    assert (got.outcome, got.error) == (Outcome.HTTP_5XX, "HTTP 503: no such engine")
    got = one(setup, head("application/json", "content-encoding: br", status="503 Busy"), chunk(body), LAST_CHUNK)
    assert (got.outcome, got.error) == (Outcome.HTTP_5XX, "HTTP 503")


def test_one_line_break_between_events_is_enough_where_each_line_is_whole(setup: Setup) -> None:
    lines = [one_event[:-1] for one_event in (content("A"), content("B"), content("C", "stop"), DONE)]
    got = answer(setup, lines[0], 0.2, lines[1], 0.2, *lines[2:])
    assert (got.outcome, got.text, got.events) == (Outcome.OK, "ABC", 3)
    assert min(got.gaps_ns[:1]) > 100_000_000, "an event has the stamp of its own line, not of the next one"
    assert got.first_ns - got.sent_ns < got.last_ns - got.first_ns


@pytest.mark.parametrize("word", ["null", "", "None", "NULL"])
def test_a_finish_reason_that_is_none_ends_nothing(setup: Setup, word: str) -> None:
    assert answer(setup, content("A", word), content("B", word)).outcome is Outcome.TRUNCATED
    got = answer(setup, content("A", word), content("B", word), END)
    assert (got.outcome, got.finish_reason) == (Outcome.OK, "stop")


GIVEN_UP = ("cancelled", "timeout", "insufficient_system_resource", "network_error", "ERROR", "Aborted", "timed out")
ENDED = ("stop", "length", "content_filter", "tool_calls", "eos_token", "MAX_TOKENS", "stop_sequence", "repetition")


@pytest.mark.parametrize("reason", [*GIVEN_UP, *ENDED])
def test_a_finish_reason_of_what_was_given_up_is_no_success(setup: Setup, reason: str) -> None:
    last = {"message": {"content": ""}, "done": True, "done_reason": reason, "eval_count": 2}
    line = b'{"message":{"content":"A"}}\n'
    for got in (
        answer(setup, content("A"), content("B", reason), usage(7, 2), DONE),
        answer(setup, line, json.dumps(last).encode() + b"\n", kind=OLLAMA),
    ):
        assert got.finish_reason == reason
        assert got.outcome is (Outcome.ERROR_OBJECT if reason in GIVEN_UP else Outcome.OK)
        assert got.error == (f"the server ended the answer with finish reason {reason!r}" if not got.ok else "")


@pytest.mark.parametrize("reason", ["content_filter", "repetition", "refusal", "SAFETY"])
def test_an_end_that_neither_model_nor_limit_made_is_counted_by_its_reason(setup: Setup, reason: str) -> None:
    line = b'{"message":{"content":"A"}}\n'
    responses = event({"type": "response.output_text.delta", "delta": "A"})
    part = {"status": "incomplete", "incomplete_details": {"reason": reason}}
    ended = event({"type": "response.incomplete", "response": part})
    found = [
        answer(setup, content("A"), content("B", reason), usage(7, 2), DONE),
        answer(setup, line, json.dumps({"done": True, "done_reason": reason}).encode() + b"\n", kind=OLLAMA),
        answer(setup, responses, ended, kind=("openai", "responses")),
        *(answer(setup, content("A", usual), DONE) for usual in ("stop", "length", "tool_calls", "eos_token")),
    ]
    for record in found:
        setup.recorder.add(record)
    none = answer(setup, content("", reason), DONE)
    assert (none.outcome, none.error) == (
        Outcome.EMPTY, f"the answer holds no content: it ended with finish reason {reason!r}",
    )  # fmt: skip
    blocks = setup.recorder.snapshot(0, final=True).blocks
    assert [block.other_ends for block in blocks if block.ok] == [{reason: 3}]


@pytest.mark.parametrize("error", ["", {}, [], 0, {"code": 0, "message": ""}, {"message": None}])
def test_an_error_that_is_blank_beside_words_is_none(setup: Setup, error: object) -> None:
    piece = {"index": 0, "delta": {"content": "A"}, "finish_reason": None}
    chunks = [{"choices": [piece], "error": error}, {"choices": [{**piece, "error": error}]}]
    chunks.append({"choices": [], "error": error, "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
    assert answer(setup, *map(event, chunks), event({"choices": [], "error": error}), STOP, DONE).outcome is Outcome.OK
    lines = [{"message": {"content": "A"}, "done": False, "error": error}, {"done": True, "error": error}]
    got = answer(setup, *(json.dumps(line).encode() + b"\n" for line in lines), kind=OLLAMA)
    assert (got.outcome, got.text) == (Outcome.OK, "A")
    assert answer(setup, content("A"), event({"error": error or ""})).outcome is Outcome.ERROR_OBJECT, "alone it is one"


@pytest.mark.parametrize(
    "said",
    [
        {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no balance"}},
        {"error_code": 17, "error_msg": "no balance"},
        {"error_code": 50002, "text": "no balance"},
        {"success": False, "message": "no balance"},
    ],
)
def test_errors_of_gateways_abroad_are_told_in_their_words(setup: Setup, said: object) -> None:
    got = answer(setup, event(said))
    assert (got.outcome, got.error) == (Outcome.ERROR_OBJECT, "no balance")
    assert answer(setup, event({"base_resp": {"status_code": 0, "status_msg": ""}}), content("A"), END).ok


def test_an_error_in_a_list_is_one(setup: Setup) -> None:
    body = b'[{"error":{"code":400,"message":"no such key"}}]'
    got = answer(setup, body, content_type="application/json")
    assert (got.outcome, got.error) == (Outcome.ERROR_OBJECT, "no such key")
    got = one(setup, head("application/json", status="400 Bad Request"), chunk(body), LAST_CHUNK)
    assert (got.outcome, got.error) == (Outcome.HTTP_4XX, "HTTP 400: no such key")


WORDS_ELSEWHERE: dict[str, tuple[dict[str, object], str]] = {
    "thinking": ({"thinking": "Hm"}, ""),
    "thinking in parts": ({"thinking": [{"type": "thinking", "thinking": "Hm"}]}, ""),
    "reasoning_text": ({"content": "", "reasoning_text": "Hm"}, ""),
    "a function": ({"content": None, "function_call": {"arguments": "{}"}}, "{}"),
    "a custom tool": ({"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": "f", "input": "x"}}]}, "x"),
    "speech": ({"audio": {"id": "a", "transcript": "Hello"}}, "Hello"),
}


@pytest.mark.parametrize("name", WORDS_ELSEWHERE)
def test_words_under_other_names_are_words(setup: Setup, name: str) -> None:
    fields, text = WORDS_ELSEWHERE[name]
    got = answer(setup, delta(**fields), 0.1, content("A"), END)
    assert (got.outcome, got.events, got.text) == (Outcome.OK, 2, text + "A")
    assert got.gaps_ns, "its moment is that of the first token"
    assert (got.first_ns == got.first_answer_ns) == bool(text)
    named = answer(setup, delta(function_call={"name": "f", "arguments": ""}, thinking=None, audio=None), END)
    assert (named.outcome, named.events) == (Outcome.EMPTY, 0)


@pytest.mark.parametrize("empty", [[], {}, ""])
def test_what_is_empty_in_another_shape_is_empty(setup: Setup, empty: object) -> None:
    end = event({"choices": [{"index": 0, "delta": empty, "finish_reason": "stop"}]})
    got = answer(setup, delta(content="A", tool_calls=empty), delta(content=empty, reasoning="B"), end, DONE)
    assert (got.outcome, got.events, got.text) == (Outcome.OK, 2, "A")
    lines = [{"message": {"content": "A", "tool_calls": empty}}, {"done": True, "message": {"content": empty}}]
    assert answer(setup, *(json.dumps(line).encode() + b"\n" for line in lines), kind=OLLAMA).text == "A"


@pytest.mark.parametrize("cuts", ["each event a member", "byte by byte"])
def test_gzip_of_several_members_is_one_body(setup: Setup, cuts: str) -> None:
    members = [gzip.compress(one_event) for one_event in (content("A"), content("B"), END)]
    pieces = members if cuts == "each event a member" else [bytes([b]) for b in b"".join(members)]

    def packed(*more: bytes) -> RequestRecord:
        chunks = (chunk(piece) for piece in more)
        return one(setup, head("text/event-stream", "content-encoding: gzip"), *chunks, LAST_CHUNK, timeouts=PATIENT)

    assert (packed(*pieces).outcome, packed(*pieces).text) == (Outcome.OK, "AB")
    assert packed(*pieces, b"\0\0").ok, "padding is none"
    got = packed(*members[:2], members[2][:9])
    assert (got.outcome, got.error) == (Outcome.TRUNCATED, "the gzip encoding of the answer has no end")


@pytest.mark.parametrize("name", ["none", "identity", "UTF-8"])
def test_a_content_encoding_that_is_none(setup: Setup, name: str) -> None:
    chunks = (chunk(piece) for piece in (content("A"), content("B"), END))
    got = one(setup, head("text/event-stream", f"content-encoding: {name}"), *chunks, LAST_CHUNK)
    assert (got.outcome, got.text, got.packed) == (Outcome.OK, "AB", False)


def test_content_as_a_list_of_parts(setup: Setup) -> None:
    thinks = [
        delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]) for text in ("Hm", " so")
    ]
    got = answer(
        setup, thinks[0], 0.1, thinks[1], delta(content=[{"type": "text", "text": "Hi"}]), content(" you"), END
    )
    assert (got.outcome, got.text, got.events) == (Outcome.OK, "Hi you", 4)
    assert got.first_ns < got.first_answer_ns


def test_reasoning_details_are_reasoning_and_count_once(setup: Setup) -> None:
    parts = [{"type": "reasoning.text", "index": 0, "text": "Let"}]
    alone = answer(setup, delta(content="", reasoning_details=parts), 0.1, content("Yes"), END)
    assert (alone.outcome, alone.events, alone.text) == (Outcome.OK, 2, "Yes")
    assert alone.first_ns < alone.first_answer_ns
    twice = delta(content="", reasoning_content="Let", reasoning_details=parts)
    assert answer(setup, twice, content("Yes"), END).events == 2


def test_indices_that_number_the_events(setup: Setup) -> None:
    got = answer(setup, *(delta(i, content="x") for i in range(5)), STOP.replace(b'"index":0', b'"index":5'), DONE)
    assert (got.outcome, got.events, got.text) == (Outcome.OK, 5, "xxxxx")


def test_tool_arguments_as_an_object(setup: Setup) -> None:
    call = [{"index": 0, "function": {"name": "f", "arguments": {"city": "Oslo"}}}]
    got = answer(setup, delta(content=None, tool_calls=call), END)
    assert (got.outcome, got.events, got.text) == (Outcome.OK, 1, '{"city":"Oslo"}')


def test_usage_in_the_choice(setup: Setup) -> None:
    inside = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": {"prompt_tokens": 19, "completion_tokens": 3}}
    got = answer(setup, content("A"), event({"choices": [inside]}), DONE)
    assert (got.prompt_tokens, got.output_tokens, got.token_source) == (19, 3, TokenSource.SERVER)


@pytest.mark.parametrize("name", ["cached_tokens", "prompt_cache_hit_tokens"])
def test_cached_tokens_under_other_names(setup: Setup, name: str) -> None:
    told: dict[str, object] = {"prompt_tokens": 19, "completion_tokens": 1, name: 16}
    assert answer(setup, content("A"), STOP, event({"choices": [], "usage": told}), DONE).cached_tokens == 16
    told["prompt_tokens_details"] = {"cached_tokens": 8}
    assert answer(setup, content("A"), STOP, event({"choices": [], "usage": told}), DONE).cached_tokens == 8


def test_reasoning_tokens_beside_the_output_tokens_are_output_tokens(setup: Setup) -> None:
    thinks = [delta(reasoning_content="hm")] * 10

    def counted(completion: int, total: int | None) -> RequestRecord:
        told = {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": total}
        told["completion_tokens_details"] = {"reasoning_tokens": 10}  # type: ignore[assignment]
        return answer(setup, *thinks, content("A"), content("B"), STOP, event({"choices": [], "usage": told}), DONE)

    for completion, total in ((2, 19), (2, None), (2, 9)):
        got = counted(completion, total)
        assert (got.output_tokens, got.stated_tokens, got.reasoning_added) == (12, 2, True)
    for total in (19, None):
        got = counted(12, total)
        assert (got.output_tokens, got.reasoning_tokens, got.reasoning_added) == (12, 10, False)


@pytest.mark.parametrize("told", [{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {}, None])
def test_usage_of_zeros_is_no_usage(setup: Setup, told: object) -> None:
    nothing = event({"choices": [], "usage": told})
    got = answer(setup, content("A"), content("B"), STOP, nothing, DONE)
    assert (got.outcome, got.prompt_tokens, got.output_tokens) == (Outcome.OK, None, 2)
    assert got.token_source is TokenSource.EVENTS
    got = answer(setup, content("A"), content("B"), STOP, usage(7, 2), nothing, DONE)
    assert (got.prompt_tokens, got.output_tokens, got.token_source) == (7, 2, TokenSource.SERVER)


def counting(word: str, told: int | None) -> bytes:
    piece = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    return event({"choices": [piece], "usage": {"prompt_tokens": 7, "completion_tokens": told}})


@pytest.mark.parametrize("told", [(1, 1, 1, 1), (2, 1, 2, 1), (1, None, 1, 1), (0, 1, 1, 1), (1, 1, 2, 2)])
def test_counts_of_single_events_are_not_the_answers(setup: Setup, told: tuple[int | None, ...]) -> None:
    """The last ones grow, too, by chance."""
    got = answer(setup, *map(counting, "ABCD", told), STOP, DONE)
    assert (got.outcome, got.output_tokens, got.stated_tokens) == (Outcome.OK, 4, told[-1])
    assert got.token_source is TokenSource.EVENTS
    setup.recorder.add(got)
    (block,) = (block for block in setup.recorder.snapshot(0, final=True).blocks if block.ok)
    assert block.seldom == {"count of a part": 1}


@pytest.mark.parametrize("told", [(1, 2, 3, 4), (1, 2, 2, 3), (None, None, None, 3), (0, 0, 0, 3), (2, 2, 2, 4)])
def test_counts_of_all_so_far_are(setup: Setup, told: tuple[int | None, ...]) -> None:
    """Whatever pieces the text was cut into."""
    for behind in (b"", usage(7, told[-1] or 0)):
        got = answer(setup, *map(counting, "ABCD", told), STOP, behind, DONE)
        assert (got.output_tokens, got.token_source) == (told[-1], TokenSource.SERVER)
        assert not got.counts_part
    whole = answer(setup, *(counting(word, 1) for word in "ABCD"), STOP, usage(7, 4), DONE)
    assert (whole.output_tokens, whole.token_source) == (4, TokenSource.SERVER), "the last of all counts all"
    seldom = answer(setup, counting("A", 1), *[content("B")] * 6, counting("C", 4), STOP, DONE)
    assert (seldom.output_tokens, seldom.token_source) == (4, TokenSource.SERVER), "two counts are not each event's own"
    short = answer(setup, counting("A", None), counting("B", None), STOP, usage(7, 1), usage(7, 1), DONE)
    assert (short.output_tokens, short.token_source) == (1, TokenSource.SERVER)


def test_a_count_that_more_words_follow_is_not_of_the_answer(setup: Setup) -> None:
    """As of a gateway that hands on what Anthropic's first event states, and nothing behind it."""
    words = [content("a")] * 3
    got = answer(setup, usage(7, 1), *words, STOP, DONE)
    assert (got.prompt_tokens, got.output_tokens, got.stated_tokens) == (7, 3, 1)
    assert got.token_source is TokenSource.EVENTS
    got = answer(setup, usage(7, 1), *words, STOP, usage(7, 2), DONE)
    assert (got.output_tokens, got.token_source) == (2, TokenSource.SERVER), "events may be less than a token"
    got = answer(setup, words[0], usage(7, 4), words[0], STOP, DONE)
    assert (got.output_tokens, got.token_source) == (4, TokenSource.SERVER), "or more"


def test_a_count_that_leaves_nearly_all_out_is_not_of_the_answer(setup: Setup) -> None:
    """LitServe states at the end of a stream what its last piece counts. A text may be cut into letters, though."""
    got = answer(setup, *[content("a")] * 9, STOP, usage(7, 1), DONE)
    assert (got.output_tokens, got.stated_tokens, got.token_source) == (9, 1, TokenSource.EVENTS)
    assert got.counts_part
    got = answer(setup, *[content("a")] * 16, STOP, usage(7, 2), DONE)
    assert (got.output_tokens, got.token_source) == (2, TokenSource.SERVER)


def test_a_count_beyond_what_was_asked_for_is_marked(setup: Setup) -> None:
    """The requests of this file ask for 4 tokens."""
    events = [content("a")] * 4
    got = answer(setup, *events, STOP, usage(5, 9), DONE)
    assert (got.over_limit, got.stated_tokens, got.output_tokens, got.token_source) == (True, 9, 4, TokenSource.EVENTS)
    got = answer(setup, *events, *events, STOP, usage(5, 8), DONE)
    assert (got.over_limit, got.output_tokens, got.token_source) == (True, 8, TokenSource.SERVER)
    assert not answer(setup, *events, STOP, usage(5, 4), DONE).over_limit
    short = answer(setup, content("a"), STOP.replace(b"stop", b"length"), usage(5, 1), DONE)
    assert (short.short, short.over_limit) == (True, False)


def test_durations_that_can_not_be_are_not_stated(setup: Setup) -> None:
    line = b'{"message":{"content":"A"}}\n'
    last = {"done": True, "done_reason": "stop", "total_duration": 90_000, "prompt_eval_count": 12, "eval_count": 40}
    got = answer(setup, line, line, json.dumps(last).encode() + b"\n", kind=OLLAMA)
    assert got.engine == EngineTimes(total_ns=90_000)
    day_ms = 86_400_000
    timings = {"prompt_n": 5, "prompt_ms": day_ms, "predicted_n": 3, "predicted_ms": 0.001}
    got = answer(setup, content("A"), event({"choices": [], "timings": timings}), STOP, DONE)
    assert got.engine == EngineTimes(decode_ns=1_000), "longer than the request itself"
    metrics = {"time_to_first_token_ms": day_ms, "queue_time_ms": 0, "generation_time_ms": 0}
    got = answer(setup, content("A"), content("B"), STOP, event({"choices": [], "metrics": metrics}), DONE)
    assert got.engine == EngineTimes(queue_ns=0)


@pytest.mark.parametrize(
    ("first", "between", "last", "why"),
    [
        (b"", b"", b"", "is malformed: trailing characters"),
        (b"[", b",", b"]", "Expected `object`, got `array`"),
    ],
)
def test_lines_that_are_none_are_no_empty_answer(
    setup: Setup, first: bytes, between: bytes, last: bytes, why: str
) -> None:
    """All of it came, and not one line of it: what it is, not that it is empty, tells how to mend it."""
    lines = [b'{"message":{"content":"A"}}', b'{"message":{"content":"B"}}', b'{"done":true,"done_reason":"stop"}']
    got = answer(setup, first + between.join(lines) + last, kind=OLLAMA)
    assert (got.outcome, got.events) == (Outcome.PROTOCOL, 0)
    assert why in got.error
    got = one(setup, head("application/x-ndjson", chunked=False), lines[0][:-4], CLOSE, kind=OLLAMA)
    assert got.outcome is Outcome.EMPTY, "a line that is cut may have been one"


@pytest.mark.parametrize("kind", [CHAT, GENERATE], ids=["chat", "completions"])
def test_the_words_of_another_path_are_named_and_not_called_no_content(setup: Setup, kind: tuple[str, str]) -> None:
    other = "completions" if kind == CHAT else "chat"
    texts = [event({"choices": [{"index": 0, "text": word, "finish_reason": None}]}) for word in "ABC"]
    said = texts if kind == CHAT else [delta(role="assistant"), *map(content, "ABC")]
    got = answer(setup, *said, END, kind=kind)
    assert (got.outcome, got.events) == (Outcome.PROTOCOL, 0)
    assert f"`engine.kind: openai` and `engine.api: {other}`" in got.error


@pytest.mark.parametrize("body", [b'{"done":false}{"done":true}\n', b'{\n"a": 1\n}\n{\n"b": 2\n}\n'])
def test_what_is_no_stream_is_not_blamed_on_its_content_type(setup: Setup, body: bytes) -> None:
    got = one(setup, head("application/x-ndjson"), chunk(body), LAST_CHUNK, kind=("ollama", "chat"))
    assert got.outcome is Outcome.PROTOCOL
    assert got.error == "the answer is no stream of this API, although its content type is application/x-ndjson"


@pytest.mark.parametrize("kind", [CHAT, GENERATE, OLLAMA, ("openai", "messages"), ("openai", "responses")])
def test_an_event_of_no_known_api_is_told_by_the_names_in_it(setup: Setup, kind: tuple[str, str]) -> None:
    strange = {"generated_text": "a word", "text": "a word", "a word": 1, "details": None}
    got = answer(setup, json.dumps(strange).encode() + b"\n" if kind == OLLAMA else event(strange), kind=kind)
    assert got.outcome is Outcome.PROTOCOL
    assert got.error.endswith("; it has generated_text, text, details")
