"""Each fault as a bare socket sees it, and what the truth says of it."""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

import pytest
from simulator_process import PATHS, exchange, ndjson, receive, request_bytes, simulator, sse, tokens, unchunked

from tokenswarm.errors import ConfigError
from tokenswarm.simulator.faults import FAULTS, Fault, Lottery, parse


@pytest.fixture(scope="module")
def server():
    with simulator("--preset", "instant", "--allow-fault-header") as running:
        yield running


def asking(fault: str, api: str = "chat", **fields: object) -> bytes:
    return request_bytes(api, headers={"x-sim-fault": fault, "x-request-id": fault}, **fields)


def raw(server, fault: str, api: str = "chat", wait_s: float = 10) -> tuple[bytes, str]:
    """Everything received, and how it ended: eof, reset, or silence for `wait_s`."""
    data = b""
    with server.open() as sock:
        sock.sendall(asking(fault, api))
        sock.settimeout(wait_s)
        try:
            while part := sock.recv(65536):
                data += part
                if data.endswith(b"\r\n0\r\n\r\n"):
                    return data, "complete"
        except ConnectionResetError:
            return data, "reset"
        except TimeoutError:
            return data, "silence"
    return data, "eof"


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


def outcome(server, fault: str) -> tuple[str, str | None]:
    rows = server.await_truth(lambda totals: totals["in_flight"] == 0)["requests"]
    return next((row["outcome"], row["fault"]) for row in reversed(rows) if row["id"] == fault)


@pytest.mark.parametrize(("fault", "status"), [("http_500", 500), ("http_503", 503), ("http_429:7", 429)])
@pytest.mark.parametrize("api", PATHS)
def test_status(server, fault, status, api):
    head, body = exchange(server, asking(fault, api))
    assert head.startswith(b"HTTP/1.1 %d " % status)
    error = json.loads(body)["error"]
    if api == "messages":
        assert error["type"] == {500: "api_error", 503: "overloaded_error", 429: "rate_limit_error"}[status]
    else:
        assert isinstance(error, str) if api.startswith("ollama") else error["code"] == status
    assert (b"retry-after: 7" in head.lower()) == (status == 429)
    assert outcome(server, fault) == ("faulted", fault.split(":")[0])


def test_reset_before(server):
    assert raw(server, "reset_before") == (b"", "reset")
    assert outcome(server, "reset_before") == ("faulted", "reset_before")


def test_reset_mid(server):
    data, end = raw(server, "reset_mid")
    assert end == "reset"
    assert data.count(b"data: ") <= 3  # a reset may overtake what was sent before it
    assert b'finish_reason":"' not in data


@pytest.mark.parametrize("api", PATHS)
def test_truncate_is_a_clean_end_without_the_protocols(server, api):
    data, end = raw(server, "truncate:3", api)
    assert end == "complete"
    body = unchunked(body_of(data))
    assert b"[DONE]" not in body
    assert b'"done":true' not in body
    assert b"response.completed" not in body
    assert b"message_stop" not in body
    assert tokens(api, body) == 3
    assert outcome(server, "truncate:3") == ("faulted", "truncate")


def test_truncate_before_the_first_token(server):
    body = unchunked(body_of(raw(server, "truncate:0")[0]))
    assert b'"role":"assistant"' in body
    assert body.count(b"data: ") == 1


def test_no_done_has_its_finish_reason(server):
    data, end = raw(server, "no_done")
    body = unchunked(body_of(data))
    assert end == "complete"
    assert b'"finish_reason":"length"' in body
    assert b"[DONE]" not in body
    assert outcome(server, "no_done") == ("completed", "no_done")


def test_error_mid_as_vllm(server):
    head, body = exchange(server, asking("error_mid"))
    assert head.startswith(b"HTTP/1.1 200")
    events = sse(body)
    assert list(events[-1]["error"]) == ["message", "type", "param", "code"]
    assert b'data: {"error": {"message": ' in body  # with json.dumps' spaces
    assert len(events) == 1 + 2 + 1


def test_error_mid_as_ollama(server):
    lines = ndjson(exchange(server, asking("error_mid", "ollama_chat"))[1])
    assert list(lines[-1]) == ["error"]
    assert isinstance(lines[-1]["error"], str)
    assert [line["done"] for line in lines[:-1]] == [False, False]


def test_stall_holds_the_connection_in_silence(server):
    data, end = raw(server, "stall:1", wait_s=0.6)
    assert end == "silence"
    assert data.count(b"data: ") == 2
    assert outcome(server, "stall:1") == ("faulted", "stall")


def test_ping_sends_comments_only(server):
    data = b""
    with server.open() as sock:
        sock.sendall(asking("ping:1"))
        while data.count(b": ping\n\n") < 3:
            data += sock.recv(65536)
    assert data.count(b"data: ") == 2
    assert outcome(server, "ping:1") == ("faulted", "ping")


def test_empty(server):
    data, end = raw(server, "empty")
    assert (body_of(data), end) == (b"0\r\n\r\n", "complete")
    assert data.startswith(b"HTTP/1.1 200")


def test_garbage(server):
    data, end = raw(server, "garbage")
    assert data
    assert not data.startswith(b"HTTP")
    assert end == "eof"


def test_bad_chunk(server):
    body = body_of(raw(server, "bad_chunk")[0])
    with pytest.raises(ValueError):
        unchunked(body)
    assert b"ZZ\r\n" in body


@pytest.mark.parametrize("api", ["chat", "ollama_chat"])
def test_bad_json_and_then_the_rest(server, api):
    body = exchange(server, asking("bad_json", api))[1]
    with pytest.raises(ValueError):
        ndjson(body) if api == "ollama_chat" else sse(body)
    assert body.endswith(b"data: [DONE]\n\n") or b'"done":true' in body


def test_giant_line(server):
    _, body = exchange(server, asking("giant_line:3000000"))
    events = sse(body)
    assert max(len(line) for line in body.splitlines()) > 3_000_000
    assert len(events) == 1 + 4 + 1


def test_slow_first_and_role_first(server):
    def first_bytes(fault: str) -> tuple[float, float]:
        """Seconds to the role event and to the first content."""
        with server.open() as sock:
            start, data, role = time.monotonic(), b"", 0.0
            sock.sendall(asking(fault))
            while b'"delta":{"content":"' not in data:
                data += sock.recv(65536)
                role = role or (time.monotonic() - start if b'"role"' in data else 0.0)
            return role, time.monotonic() - start

    tries = [first_bytes("role_only_first:0.4") for _ in range(3)]
    assert all(content >= 0.4 for _, content in tries)
    assert min(role for role, _ in tries) < 0.2  # a busy machine only adds
    role, content = first_bytes("slow_first:0.4")
    assert min(role, content) >= 0.4


@pytest.mark.parametrize("api", ["completions", "ollama_chat", "ollama_generate"])
def test_role_first_is_an_empty_event_elsewhere(server, api):
    body = exchange(server, asking("role_only_first:0.01", api))[1]
    first = ndjson(body)[0] if api.startswith("ollama") else sse(body)[0]
    piece = first.get("response", "") or first.get("message", {}).get("content", "")
    assert piece == ""
    assert "choices" not in first or first["choices"][0]["text"] == ""


def test_gzip_is_flushed_at_each_event(server):
    with server.open() as sock:
        sock.sendall(asking("gzip"))
        data = receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    inflate = zlib.decompressobj(wbits=31)
    first = body[body.index(b"\r\n") + 2 :][: int(body.split(b"\r\n")[0], 16)]
    assert b'"role":"assistant"' in inflate.decompress(first)  # readable before anything else came
    inflate = zlib.decompressobj(wbits=31)
    assert len(sse(inflate.decompress(unchunked(body)))) == 5
    assert inflate.eof


def test_close_delimited(server):
    data, end = raw(server, "close_delimited")
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    assert len(sse(body)) == 5
    assert end == "eof"


def test_faults_inside_a_stream_leave_unstreamed_answers_alone(server):
    body = exchange(server, asking("truncate", stream=False))[1]
    assert json.loads(body)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("api", ["chat", "ollama_chat", "completions"])
def test_a_long_prompt_is_cut_without_a_word(server, api):
    """Of several messages the oldest go; of one text half of the context and 2 tokens are left."""

    def read(text: str, several: bool = False) -> int:
        messages = [{"role": "user", "content": text}] * (3 if several else 1)
        fields = {"messages": messages} if api.endswith("chat") else {"prompt": text}
        body = json.loads(exchange(server, asking("prompt_cut:100", api, stream=False, **fields))[1])
        return body["prompt_eval_count"] if api == "ollama_chat" else body["usage"]["prompt_tokens"]

    assert read("word " * 20) <= 100
    assert read("word " * 200) == 52
    if api.endswith("chat"):
        assert read("word " * 40, several=True) == 50 + 4 + 3


# -- what proxies and gateways do ----------------------------------------------------------------------------------


def body_reads(server, fault: str, tokens: int = 60) -> list[bytes]:
    """The whole answer as it came, read by read."""
    reads = []
    with server.open() as sock:
        sock.sendall(asking(fault, tokens=tokens))
        while part := sock.recv(1 << 20):
            reads.append(part)
            if b"".join(reads).endswith((b"\r\n0\r\n\r\n", b"[DONE]\n\n")):
                break
    return reads


@pytest.mark.parametrize("fault", ["blocks", "cork", "stored", "pause:0.3"])
def test_what_is_held_back_loses_nothing(server, fault):
    plain = sse(exchange(server, request_bytes("chat", tokens=60))[1])
    held = sse(exchange(server, asking(fault, tokens=60))[1])
    assert [one["choices"] for one in held] == [one["choices"] for one in plain]
    assert outcome(server, fault) == ("completed", fault.split(":")[0])


def test_blocks_are_chunks_of_just_that_size(server):
    body = b"".join(body_reads(server, "blocks")).partition(b"\r\n\r\n")[2]
    sizes = []
    while body:
        size, _, body = body.partition(b"\r\n")
        sizes.append(int(size, 16))
        body = body[sizes[-1] + 2 :]
    assert set(sizes[:-2]) == {4096}
    assert sizes[-1] == 0


def test_a_stored_answer_says_its_length_and_no_chunks(server):
    head, body = exchange(server, asking("stored"))
    assert b"content-length: %d" % len(body) in head
    assert b"chunked" not in head


def test_a_cork_and_a_pause_last_as_long_as_they_were_asked_to(server):
    for fault in ("cork:0.4", "pause:0.4"):
        began = time.monotonic()
        exchange(server, asking(fault, tokens=6))
        waited = time.monotonic() - began
        assert (waited >= 0.4) == fault.startswith("pause"), fault  # the end of an answer pulls the cork


@pytest.mark.parametrize("api", PATHS)
def test_killed_leaves_without_the_last_chunk(server, api):
    data, end = raw(server, "killed:2", api)
    assert end == "eof"
    assert not data.endswith(b"0\r\n\r\n")
    assert body_of(data).count(b"\n" if api.startswith("ollama") else b"data: ") >= 2


def test_no_last_chunk_has_the_whole_answer_all_the_same(server):
    data, end = raw(server, "no_last_chunk")
    assert end == "eof"
    assert b"[DONE]" in data


def test_head_only(server):
    data, end = raw(server, "head_only")
    assert (end, data.partition(b"\r\n\r\n")[2]) == ("eof", b"")
    assert data.startswith(b"HTTP/1.1 200")


def test_half_looks_like_a_whole_answer(server):
    events = sse(exchange(server, asking("half:3", tokens=9, stream_options={"include_usage": True}))[1])
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == 3
    last = ndjson(exchange(server, asking("half:3", "ollama_chat", tokens=9))[1])[-1]
    assert (last["done"], last["eval_count"]) == (True, 3)


def test_words_of_a_proxy_end_a_whole_body(server):
    data, end = raw(server, "words:2")
    assert end == "complete"
    assert unchunked(body_of(data)).endswith(b"\n\nError occurred while trying to proxy: 127.0.0.1/v1")


def test_one_segment_has_the_end_of_the_connection(server):
    data, end = raw(server, "one_segment")
    assert (end, data.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")) == ("complete", True)
    assert b"connection: close\r\n" in data


@pytest.mark.parametrize("api", PATHS)
def test_a_front_end_in_rust_names_no_server_and_ends_its_head_with_the_date(server, api):
    as_usual, hyper = (exchange(server, asking(fault, api)) for fault in ("cork", "hyper"))
    names = [line.split(b":")[0] for line in hyper[0].split(b"\r\n")[1:]]
    assert names == [b"content-type", b"cache-control", b"transfer-encoding", b"date"]
    assert b"server: tokenswarm-simulate" in as_usual[0]
    assert tokens(api, hyper[1]) == tokens(api, as_usual[1])


def test_retried_says_so_and_is_counted(server):
    before = server.get("/metrics").count(b'finished_reason="error"')
    head, _ = exchange(server, asking("retried:2"))
    assert b"x-litellm-attempted-retries: 2\r\n" in head
    assert before == 1
    line = next(line for line in server.get("/metrics").split(b"\n") if b'"error",' in line)
    assert float(line.rsplit(b" ", 1)[1]) >= 2


def test_done_only_has_no_finish_reason(server):
    events = sse(exchange(server, asking("done_only:2"))[1])
    assert all(event["choices"][0]["finish_reason"] is None for event in events)


def test_a_prompt_asks_for_a_fault_and_an_id_where_that_is_allowed():
    words = [{"role": "user", "content": "x-sim-id=n7 x-sim-fault=half:2 say hello"}]
    with simulator("--preset", "instant", "--allow-fault-prompt") as asked, simulator("--preset", "instant") as deaf:
        for one in (asked, deaf):
            exchange(one, request_bytes("chat", messages=words, headers={"x-request-id": "h"}, ignore_eos=True))
        (row,) = asked.await_truth(lambda totals: totals["faulted"] == 1)["requests"]
        assert (row["id"], row["fault"]) == ("n7", "half")
        assert row["asked"] == "HTTP/1.1 x-request-id stream ignore_eos"
        (row,) = deaf.await_truth(lambda totals: totals["completed"] == 1)["requests"]
        assert (row["id"], row["fault"]) == ("h", None)


def test_each_kind_is_tested_here():
    text = Path(__file__).read_text()
    assert [kind for kind in FAULTS if f'"{kind}' not in text] == []


def test_a_faulted_stream_frees_its_seat():
    with simulator("--preset", "small-gpu", "--max-num-seqs", "1", "--fault", "stall") as one, one.open() as held:
        held.sendall(request_bytes("chat", tokens=4000))
        while b'"finish_reason":null,"token_ids"' not in held.recv(65536):
            pass
        assert raw(one, "", wait_s=2)[0].count(b"data: ") == 3  # the second request got its turn


def test_headers_ask_for_nothing_unless_allowed():
    with simulator("--preset", "instant") as strict:
        assert len(sse(exchange(strict, asking("http_500"))[1])) == 5


def test_an_unknown_kind_in_the_header_is_a_400(server):
    head, body = exchange(server, asking("explode"))
    assert head.startswith(b"HTTP/1.1 400")
    assert "there is no fault `explode`; there are: http_500," in json.loads(body)["error"]["message"]


def test_the_ratio_is_kept_and_repeats_with_the_seed():
    lottery = Lottery(["http_500:0.2", "stall:0.1:5"], seed=3)
    drawn = [lottery.draw() for _ in range(2000)]
    assert drawn.count(Fault("http_500", 0)) == pytest.approx(400, abs=80)
    assert drawn.count(Fault("stall", 5)) == pytest.approx(200, abs=60)
    assert drawn.count(None) == 2000 - drawn.count(Fault("http_500", 0)) - drawn.count(Fault("stall", 5))
    again = Lottery(["http_500:0.2", "stall:0.1:5"], seed=3)
    assert drawn == [again.draw() for _ in range(2000)]
    assert Lottery(["http_500"], 0).draw() == Fault("http_500", 0)
    assert Lottery([], 0).draw() is None


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["nope"], "there is no fault `nope`"),
        (["stall:2"], "the ratio in fault `stall:2` must be from 0 to 1"),
        (["stall:x"], "`x` in fault `stall:x` must be a number, 0 or more"),
        (["stall:0.6", "empty:0.6"], "the ratios of all --fault options add up to more than 1"),
    ],
)
def test_wrong_faults_are_named(texts, sentence):
    with pytest.raises(ConfigError) as caught:
        Lottery(texts, 0)
    assert str(caught.value).startswith(sentence)


def test_a_param_of_the_wrong_kind_is_named():
    with pytest.raises(ConfigError) as caught:
        parse("stall:-1")
    assert str(caught.value) == "`-1` in fault `stall:-1` must be a number, 0 or more"
    assert parse("stall") == Fault("stall", 2)
