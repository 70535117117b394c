"""Every captured stream through framing, dialect and timeline: the same deltas for every split, counted by hand.

tests/streams holds bodies of vLLM 0.32, llama.cpp, llama-cpp-python and transformers serve, byte for byte; CONSTRUCTED
and FROM_DOCS ones are written from Ollama's source and documentation. The table was counted without this package.
"""

from __future__ import annotations

import json
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tokenswarm.engines import Delta, Dialect, NotAnEvent, Sampling
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.failure import error_message
from tokenswarm.engines.framing import ndjson, sse
from tokenswarm.measure.timeline import Timeline
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource

STREAMS = Path(__file__).parent / "streams"
SHARED = Path(os.environ.get("TOKENSWARM_SHARED", Path(__file__).parents[2] / "shared")) / "wire"
LIMIT = 1 << 20


class Row(NamedTuple):
    events: int  # JSON events
    sentinel: bool
    usage_events: int
    content_events: int
    finish: str
    output_tokens: int  # what the record says
    outcome: Outcome = Outcome.OK


TABLE = {
    "llamacpp_chat.sse": Row(9, True, 1, 6, "length", 6),
    "llamacpp_chat_logprobs.sse": Row(4, True, 0, 2, "length", 2),
    "llamacpp_chat_no_usage.sse": Row(5, True, 0, 3, "length", 3),
    "llamacpp_chat_required_tool.sse": Row(99, True, 0, 97, "length", 100),  # timings say 100
    "llamacpp_chat_stop.sse": Row(4, True, 0, 2, "stop", 2),
    "llamacpp_chat_timings.sse": Row(7, True, 0, 3, "length", 3),
    "llamacpp_completion_oai.sse": Row(5, True, 1, 4, "length", 4),
    "llamacpp_killed_midstream.sse": Row(217, False, 0, 216, "", 216, Outcome.TRUNCATED),
    "llamacpp_ping_progress.sse": Row(9, True, 1, 3, "length", 3),
    "llamacpp_python_chat.sse": Row(8, True, 0, 6, "length", 6),
    "llamacpp_python_completion.sse": Row(5, True, 0, 4, "length", 4),
    "llamacpp_python_unknown_model.sse": Row(4, True, 0, 2, "length", 2),
    "llamacpp_unknown_model.sse": Row(3, True, 0, 1, "length", 1),
    "ollama_chat.CONSTRUCTED.ndjson": Row(4, False, 0, 3, "stop", 18),
    "ollama_chat_eof_without_done.CONSTRUCTED.ndjson": Row(2, False, 0, 2, "", 2, Outcome.TRUNCATED),
    "ollama_chat_tool.CONSTRUCTED.ndjson": Row(2, False, 0, 1, "stop", 18),
    "ollama_generate_midstream_error.FROM_DOCS.ndjson": Row(5, False, 0, 4, "", 4, Outcome.ERROR_OBJECT),
    "ollama_openai_chat.CONSTRUCTED.sse": Row(4, True, 1, 2, "stop", 18),
    "ollama_openai_midstream_error_swallowed.CONSTRUCTED.sse": Row(2, False, 0, 1, "", 1, Outcome.TRUNCATED),
    "transformers_chat.sse": Row(7, False, 1, 5, "length", 6),
    "transformers_completion.sse": Row(4, False, 1, 3, "length", 4),
    "vllm_chat.sse": Row(14, True, 1, 10, "length", 12),
    "vllm_chat_continuous_usage.sse": Row(8, True, 8, 5, "length", 6),
    "vllm_chat_logprobs.sse": Row(4, True, 0, 3, "length", 3),
    "vllm_chat_n2.sse": Row(9, True, 1, 5, "length,length", 6),
    "vllm_chat_named_tool.sse": Row(32, True, 1, 29, "length", 60),
    "vllm_chat_no_usage.sse": Row(4, True, 0, 2, "length", 2),
    "vllm_chat_server_metrics.sse": Row(10, True, 1, 7, "length", 8),
    "vllm_chat_stop.sse": Row(4, True, 1, 2, "stop", 2),
    "vllm_chat_token_ids.sse": Row(6, True, 1, 4, "length", 4),
    "vllm_completion.sse": Row(7, True, 1, 6, "length", 6),
}
NAMES = sorted(TABLE)

# Tokens that each gap covers, where the wire says so: �ac ends two tokens, one of which had no text of its own.
GAP_TOKENS = {"vllm_chat_continuous_usage.sse": (2, 1, 1, 1)}


def dialect_of(name: str) -> Dialect:
    if name.endswith(".ndjson"):
        return DIALECTS["ollama", "generate" if "generate" in name else "chat"]
    return DIALECTS["openai", "completions" if "_completion" in name else "chat"]


def replay(
    name: str, pieces: list[bytes], choices: int | None = None
) -> tuple[list[Delta], RequestRecord, tuple[Outcome, str]]:
    """Deltas, record and judgement; each read is stamped 1 ms after the one before."""
    dialect = dialect_of(name)
    framer = (sse if dialect.framing == "sse" else ndjson)(LIMIT)
    timeline = Timeline(choices=choices or (2 if "_n2" in name else 1), keep_text=True)
    timeline.sent_ns = 1
    deltas: list[Delta] = []
    for i, piece in enumerate([*pieces, None]):
        for payload in framer.finish() if piece is None else framer.feed(piece):
            deltas.append(dialect.decode(payload))
            timeline.mark(1 + i * 1_000_000, deltas[-1])
    judged = timeline.judge()
    record = timeline.finish(judged[0], id=name, stage=0, phase="steady", conversation="", turn=0)
    return deltas, record, judged


def one_event_a_read(body: bytes, name: str) -> list[bytes]:
    end = b"\n" if name.endswith(".ndjson") else b"\n\n"
    return [part + end for part in body.split(end) if part]


def test_no_capture_is_left_out() -> None:
    streams = {path.name for path in STREAMS.glob("*") if path.suffix in (".sse", ".ndjson")}
    elsewhere = {name for name in streams if name.startswith("ollama_real_")}  # test_ollama_real.py
    elsewhere |= {"llamacpp_messages.sse", "llamacpp_responses.sse"}  # test_engines_typed.py
    assert streams - set(TABLE) - elsewhere == {"llamacpp_completion_native.sse"}  # not one of the dialects: see below


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_each_capture(name: str) -> None:
    row = TABLE[name]
    body = (STREAMS / name).read_bytes()
    deltas, record, (outcome, sentence) = replay(name, one_event_a_read(body, name))
    assert len([delta for delta in deltas if not delta.sentinel]) == row.events
    assert any(delta.sentinel for delta in deltas) == row.sentinel
    assert len([delta for delta in deltas if delta.content or delta.reasoning]) == row.content_events == record.events
    assert (outcome, record.finish_reason) == (row.outcome, row.finish), sentence
    assert (sentence == "") == (outcome is Outcome.OK)
    assert record.output_tokens == row.output_tokens
    assert record.gap_tokens == GAP_TOKENS.get(name, ())
    choices = 2 if "_n2" in name else 1
    assert len(record.gaps_ns) == row.content_events - choices
    assert record.merged_events == 0
    stated = any(delta.usage and delta.usage.output_tokens for delta in deltas)
    assert record.token_source is (TokenSource.SERVER if stated else TokenSource.EVENTS)


@pytest.mark.parametrize("name", NAMES)
def test_usage_and_text_are_what_plain_json_reading_gives(name: str) -> None:
    lines = (STREAMS / name).read_bytes().split(b"\n")
    payloads = [line.removeprefix(b"data: ") for line in lines if line.startswith((b"data: ", b"{"))]
    objects = [json.loads(payload) for payload in payloads if payload != b"[DONE]"]
    assert len([one for one in objects if one.get("usage")]) == TABLE[name].usage_events
    text = ""
    for one in objects:
        text += (one.get("message") or {}).get("content") or one.get("response") or ""
        for choice in one.get("choices") or []:
            if choice["index"] == 0:
                text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    _, record, _ = replay(name, [(STREAMS / name).read_bytes()])
    if "tool" not in name:
        assert record.text == text
    usages = [one["usage"] for one in objects if one.get("usage")]
    if usages:
        assert (record.prompt_tokens, record.output_tokens) == (
            usages[-1]["prompt_tokens"],
            usages[-1]["completion_tokens"],
        )


@pytest.mark.parametrize("name", NAMES)
def test_deltas_are_the_same_for_every_split(name: str) -> None:
    body = (STREAMS / name).read_bytes()
    whole, *_ = replay(name, [body])
    assert replay(name, [body[i : i + 1] for i in range(len(body))])[0] == whole
    chance = random.Random(name)
    for _ in range(20):
        cuts = sorted(chance.choices(range(len(body) + 1), k=chance.randrange(1, 40)))
        assert replay(name, [body[a:b] for a, b in pairwise([0, *cuts, len(body)])])[0] == whole
    if len(body) < 4000:  # every single cut
        for cut in range(len(body)):
            assert replay(name, [body[:cut], body[cut:]])[0] == whole, cut


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".sse")])
def test_line_ends_and_comments_of_other_servers_change_nothing(name: str) -> None:
    body = (STREAMS / name).read_bytes()
    whole, *_ = replay(name, [body])
    for other in (
        body.replace(b"\n", b"\r\n"),
        body.replace(b"\n", b"\r"),
        body.replace(b"data: ", b"data:"),
        body.replace(b"data: ", b"event: message\nid: 1\ndata: "),
        b"\xef\xbb\xbf" + body.replace(b"\n\n", b"\n\n: keep-alive\n\n"),
        body.rstrip(b"\n"),
    ):
        assert replay(name, [other])[0] == whole
        assert replay(name, [other[i : i + 7] for i in range(0, len(other), 7)])[0] == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_body_cut_anywhere_is_never_a_success_and_never_raises_anything_else(name: str) -> None:
    row, body = TABLE[name], (STREAMS / name).read_bytes()
    step = 1 if len(body) < 4000 else 97
    for cut in range(0, len(body), step):
        try:
            _, record, (outcome, _) = replay(name, [body[:cut]])
        except NotAnEvent:
            continue  # cut inside an event
        if outcome is Outcome.OK:  # only once all that success needs has come
            assert record.finish_reason == row.finish
            assert record.events == row.content_events
        else:
            assert outcome in (Outcome.EMPTY, Outcome.TRUNCATED, row.outcome)


# Further captures, where they are at hand: outcome, finish reason, content events, prompt and output tokens, who
# counted these, the read of the first token, reasoning tokens.
FURTHER = {
    "dynamo_completion.sse": ("ok", "length", 6, 9, 6, "server", 0, None),
    "dynamo_prompt_too_long.sse": ("error_object", "", 0, None, 0, "events", None, None),
    "gw_lmproxy_error_http200.sse": ("error_object", "error", 0, None, 0, "events", None, None),
    "gw_mlflow_no_done.sse": ("ok", "length", 20, 7, 20, "server", 1, None),
    "gw_portkey_dead_engine_clean_end.sse": ("truncated", "", 10, None, 10, "events", 1, None),
    "litellm_chat.sse": ("ok", "length", 8, 15, 8, "server", 1, 0),
    "transformers_524_chat_n2_ignored.sse": ("truncated", "length", 5, 25, 5, "events", 1, None),
    "vllm_chat_interval8_server_metrics.sse": ("ok", "length", 2, 25, 6, "server", 1, None),
    "vllm_router_chat.sse": ("ok", "length", 8, 15, 8, "server", 1, None),
    "vllm_rs_033_chat_required_tool.sse": ("ok", "tool_calls", 21, 25, 56, "server", 2, 0),
    "vllm_rs_033_chat_server_metrics.sse": ("ok", "length", 5, 25, 6, "server", 1, 0),
    "vllm_rs_033_engine_death_midstream.sse": ("truncated", "", 81, None, 81, "events", 1, None),
    "vllm_rs_033_interval8_reasoning_continuous_usage.sse": ("ok", "length", 2, 27, 6, "server", 1, 6),
    "vllm_rs_033_queued_keepalive.sse": ("ok", "length", 4, 16, 5, "server", 7, 0),
    "vllm_rs_033_spec_decode_continuous_usage.sse": ("ok", "length", 47, 25, 90, "server", 1, 0),
    "vllm_rs_chat.sse": ("ok", "length", 5, 25, 6, "server", 1, 0),
    "vllm_rs_chat_continuous_usage.sse": ("ok", "length", 5, 25, 6, "server", 1, 0),
    "vllm_rs_chat_logprobs.sse": ("ok", "length", 3, None, 3, "events", 1, None),
    "vllm_rs_chat_stop.sse": ("empty", "stop", 0, 25, 1, "server", None, 0),
    "vllm_rs_completion.sse": ("ok", "length", 5, 4, 6, "server", 0, 0),
}  # fmt: skip
further = pytest.mark.skipif(not SHARED.is_dir(), reason="no further captures here (shared/wire)")


@further
def test_no_further_capture_is_left_out() -> None:
    here = {path.name for path in SHARED.iterdir() if path.suffix in (".sse", ".ndjson")}
    assert here - {path.name for path in STREAMS.iterdir()} == {*FURTHER}


@further
@pytest.mark.parametrize("name", sorted(FURTHER))
def test_further_captures(name: str) -> None:
    body = (SHARED / name).read_bytes()
    asked = json.loads((SHARED / f"{name}.request.json").read_bytes())
    _, record, _ = replay(name, one_event_a_read(body, name), asked.get("n", 1))
    first = (record.first_ns - 1) // 1_000_000 if record.first_ns else None
    assert (
        *(record.outcome, record.finish_reason, record.events, record.prompt_tokens, record.output_tokens),
        *(record.token_source, first, record.reasoning_tokens),
    ) == FURTHER[name]


@further
def test_a_captured_answer_with_fewer_choices_says_so() -> None:
    name = "transformers_524_chat_n2_ignored.sse"
    _, _, (outcome, sentence) = replay(name, [(SHARED / name).read_bytes()], 2)
    assert (outcome, sentence) == (
        Outcome.TRUNCATED,
        "1 of 2 choices came: the server may not know `n` (engine.choices)",
    )


def test_what_the_engines_say_about_their_own_times() -> None:
    def times(name: str) -> EngineTimes | None:
        return replay(name, [(STREAMS / name).read_bytes()])[1].engine

    assert times("vllm_chat_server_metrics.sse") == EngineTimes(
        ttft_ns=21_072_147, queue_ns=40_040, decode_ns=38_936_348
    )
    assert times("llamacpp_chat.sse") == EngineTimes(prefill_ns=559_000, decode_ns=899_000)
    assert times("ollama_chat.CONSTRUCTED.ndjson") == EngineTimes(
        total_ns=174_560_334,
        load_ns=101_397_084,
        prefill_ns=13_074_791,
        decode_ns=52_479_709,
        queue_ns=174_560_334 - 101_397_084 - 13_074_791 - 52_479_709,
    )
    assert times("vllm_chat.sse") is None


def test_first_token_is_the_first_content_and_never_role_comment_or_progress() -> None:
    name = "llamacpp_ping_progress.sse"
    body = (STREAMS / name).read_bytes()
    reads = one_event_a_read(body, name)
    first = next(i for i, read in enumerate(reads) if b'"mented"' in read)
    _, record, _ = replay(name, reads)
    assert first == 9  # 4 role events and 5 comments come before
    assert record.first_ns == 1 + first * 1_000_000


def test_a_stream_in_one_read_has_one_stamp_and_no_gaps() -> None:
    _, record, _ = replay("vllm_chat.sse", [(STREAMS / "vllm_chat.sse").read_bytes()])
    assert (record.events, record.merged_events, record.gaps_ns) == (10, 9, ())
    assert record.first_ns == record.last_ns


def test_a_stream_of_another_api_is_no_stream_of_ours() -> None:
    payloads = sse(LIMIT).feed((STREAMS / "llamacpp_completion_native.sse").read_bytes())
    for payload in payloads:
        with pytest.raises(NotAnEvent):
            DIALECTS["openai", "completions"].decode(payload)


def test_a_load_only_answer_of_ollama_is_empty() -> None:
    body = (STREAMS / "ollama_chat_load_only.CONSTRUCTED.json").read_bytes()
    timeline = Timeline()
    for payload in [*(framer := ndjson(LIMIT)).feed(body), *framer.finish()]:
        timeline.mark(5, DIALECTS["ollama", "chat"].decode(payload))
    assert timeline.judge()[0] is Outcome.EMPTY


ERRORS = {  # what the line begins with
    "llamacpp_api_chat.json": "File Not Found",
    "llamacpp_err_badfield.json": "Field 'temperature': [json.exception.type_error.302] type must be number",
    "llamacpp_err_badjson.json": "[json.exception.parse_error.101] parse error at line 1, column 29: syntax error",
    "llamacpp_err_ctx.json": "request (12007 tokens) exceeds the available context size (2048 tokens), try increasing",
    "llamacpp_python_err_ctx.json": "",
    "ollama_404.CONSTRUCTED.json": "model 'nope' not found",
    "ollama_503.CONSTRUCTED.json": "server busy, please try again. maximum pending requests exceeded",
    "transformers_err_badfield.json": "Unexpected fields in the request: {'frobnicate'}",
    "transformers_err_model.json": "Server is pinned to 'tiny-llama'; requested 'nope/nope'.",
    "vllm_err_badfield.json": "1 validation error: {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input",
    "vllm_err_badjson.json": "1 validation error: {'type': 'json_invalid', 'loc': 'body.28', 'msg': 'JSON decode",
    "vllm_err_ctx400.json": "max_tokens=99999 cannot be greater than max_model_len=2048. Please request fewer output",
    "vllm_err_emptymsgs.json": "Cannot apply chat template to an empty conversation. Provide at least one message.",
    "vllm_err_model404.json": "The model `nope` does not exist. Valid aliases: tiny.",
    "vllm_err_overload.json": "The engine is currently busy and cannot accept new requests. Please try again later",
    "vllm_err_streamopts.json": "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_refusals_become_one_short_line(name: str) -> None:
    message = error_message((STREAMS / name).read_bytes(), "application/json")
    assert message.startswith(ERRORS[name])
    assert bool(message) == bool(ERRORS[name])
    assert len(message) <= 200
    assert message.isprintable()
    assert "'input'" not in message  # pydantic repeats the prompt there


REQUESTS = {
    "vllm_chat.sse": Sampling(model="tiny", max_tokens=12, temperature=0.0),
    "vllm_chat_continuous_usage.sse": Sampling(model="tiny", max_tokens=6, temperature=0.0, continuous_usage=True),
    "vllm_chat_n2.sse": Sampling(model="tiny", max_tokens=3, temperature=1.0, choices=2, seed=1),
    "vllm_chat_no_usage.sse": Sampling(model="tiny", max_tokens=3, temperature=0.0, include_usage=False),
    "vllm_chat_stop.sse": Sampling(model="tiny", max_tokens=60, temperature=1.0, seed=5, stop=("e",)),
    "vllm_chat_token_ids.sse": Sampling(model="tiny", max_tokens=4, temperature=0.0, extra={"return_token_ids": True}),
    "vllm_completion.sse": Sampling(model="tiny", max_tokens=6, temperature=0.0),
    "vllm_err_overload.json": Sampling(model="tiny", max_tokens=1500, ignore_eos=True, include_usage=False),
    "llamacpp_chat.sse": Sampling(model="tiny", max_tokens=6, temperature=0.0),
    "llamacpp_completion_oai.sse": Sampling(model="tiny", max_tokens=4, temperature=0.0),
    "llamacpp_killed_midstream.sse": Sampling(model="tiny", max_tokens=800, ignore_eos=True, include_usage=False),
    "transformers_chat.sse": Sampling(model="tiny-llama", max_tokens=6, temperature=0.0),
}


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_our_request_is_the_one_that_was_captured(name: str) -> None:
    captured = json.loads((STREAMS / f"{name}.request.json").read_bytes())
    messages = tuple(Message(**message) for message in captured.get("messages", ()))
    prompt = Prompt(id="1", messages=messages, text=captured.get("prompt", ""), conversation="c", turn=0)
    assert json.loads(dialect_of(name).encode(prompt, REQUESTS[name])) == captured


@pytest.mark.parametrize("path", sorted(STREAMS.glob("*.sse.headers")), ids=lambda path: path.name)
def test_the_dialects_accept_the_content_types_that_servers_send(path: Path) -> None:
    headers = dict(line.lower().split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
    assert DIALECTS["openai", "chat"].accepts(headers["content-type"])
    assert not DIALECTS["ollama", "chat"].accepts(headers["content-type"])
