"""The Responses and Messages dialects: captured and specified streams, whole, in bytes, cut everywhere, disturbed."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from typed_streams import MESSAGES, RESPONSES, STREAMS, delta, sse

from tokenswarm.engines import Delta, Dialect, NotAnEvent, Sampling, counts
from tokenswarm.engines import framing as framing_of
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.measure.timeline import Timeline
from tokenswarm.profile import dataset
from tokenswarm.prompts import Message, Prompt
from tokenswarm.record import EngineTimes, Outcome, RequestRecord, TokenSource

ROWS = {
    **{("responses", name): row for name, row in RESPONSES.items()},
    **{("messages", name): row for name, row in MESSAGES.items()},
}
every_stream = pytest.mark.parametrize(("api", "name"), ROWS, ids=[f"{api}: {name}" for api, name in ROWS])


def replay(api: str, pieces: list[bytes]) -> tuple[list[Delta], RequestRecord, str]:
    """Deltas, record and sentence; each read is stamped 1 ms after the one before."""
    dialect = DIALECTS["openai", api]
    framer = framing_of.sse(1 << 20)
    timeline = Timeline(keep_text=True)
    timeline.sent_ns = 1
    deltas: list[Delta] = []
    for i, piece in enumerate([*pieces, None]):
        for payload in framer.finish() if piece is None else framer.feed(piece):
            deltas.append(dialect.decode(payload))
            timeline.mark(1 + i * 1_000_000, deltas[-1])
    outcome, sentence = timeline.judge(dialect.end)
    return deltas, timeline.finish(outcome, id="1", stage=0, phase="steady", conversation="", turn=0), sentence


def events(body: bytes) -> list[bytes]:
    return [part + b"\n\n" for part in body.split(b"\n\n") if part]


def test_there_are_twelve_streams_of_each() -> None:
    assert len(RESPONSES) >= 12
    assert len(MESSAGES) >= 12


@every_stream
def test_what_each_stream_says(api: str, name: str) -> None:
    body, told = ROWS[api, name]
    deltas, record, sentence = replay(api, events(body))
    assert (record.outcome, record.finish_reason) == (told.outcome, told.finish)
    assert told.sentence in sentence
    assert bool(sentence) == (told.outcome is not Outcome.OK)
    assert (record.text, "".join(d.reasoning for d in deltas)) == (told.text, told.reasoning)
    assert record.events == told.events == len([d for d in deltas if d.content or d.reasoning])
    assert record.reasoning_events == len([d for d in deltas if d.reasoning])
    assert (record.prompt_tokens, record.output_tokens) == (told.prompt, told.output)
    assert (record.reasoning_tokens or None, record.cached_tokens or None) == (
        told.thought or None,
        told.cached or None,
    )
    assert len(record.gaps_ns) == max(0, told.events - 1)
    assert record.first_event_ns == (0 if not told.events and told.outcome is Outcome.ERROR_OBJECT else 1)
    if told.events:
        first = next(i for i, d in enumerate(deltas) if d.content or d.reasoning)
        assert record.ttft_ns == first * 1_000_000 if b": bye" not in body else True
    counted = told.outcome is Outcome.OK and told.output != told.events
    assert record.token_source is TokenSource.SERVER or not counted


@every_stream
def test_deltas_are_the_same_for_every_split(api: str, name: str) -> None:
    body, _ = ROWS[api, name]
    whole, *_ = replay(api, [body])
    assert replay(api, [body[i : i + 1] for i in range(len(body))])[0] == whole
    chance = random.Random(name)
    for _ in range(10):
        cuts = sorted(chance.choices(range(len(body) + 1), k=chance.randrange(1, 40)))
        assert replay(api, [body[a:b] for a, b in pairwise([0, *cuts, len(body)])])[0] == whole
    for other in (body.replace(b"\n", b"\r\n"), body.replace(b"data: ", b"data:")):
        assert replay(api, [other[i : i + 7] for i in range(0, len(other), 7)])[0] == whole


@every_stream
def test_a_body_cut_anywhere_is_no_success_before_its_own_end(api: str, name: str) -> None:
    body, told = ROWS[api, name]
    ends = body.find(b"event: message_stop" if api == "messages" else b"event: response.")
    for marker in (b"event: response.completed", b"event: response.incomplete", b"event: message_stop"):
        ends = max(ends, body.rfind(marker))
    for cut in range(0, len(body), 1 if len(body) < 4000 else 31):
        try:
            _, record, _ = replay(api, [body[:cut]])
        except NotAnEvent:
            continue  # cut inside an event
        if record.outcome is Outcome.OK:
            assert cut > ends
            assert record.finish_reason == told.finish
        else:
            assert record.outcome in (Outcome.EMPTY, Outcome.TRUNCATED, told.outcome)
            assert record.events <= told.events


DISTURBANCES = {
    "a comment": b": keep-alive\n\n",
    "a ping": b'event: ping\ndata: {"type": "ping"}\n\n',
    "an unknown type": b'event: x\ndata: {"type": "future_thing", "delta": {"text": 5}, "message": "x"}\n\n',
    "an unknown type of the one": b'data: {"type": "conversation.thing", "delta": {"text": 5}, "response": [1]}\n\n',
    "an empty object": b"data: {}\n\n",
    "no data": b"event: nothing\n\n",
}


@every_stream
@pytest.mark.parametrize("what", DISTURBANCES)
def test_what_says_nothing_may_stand_anywhere(api: str, name: str, what: str) -> None:
    body, told = ROWS[api, name]
    parts = events(body)
    for at in range(len(parts) + 1):
        _, record, _ = replay(api, [*parts[:at], DISTURBANCES[what], *parts[at:]])
        assert (record.outcome, record.finish_reason, record.events) == (told.outcome, told.finish, told.events)
        assert (record.prompt_tokens, record.output_tokens, record.text) == (told.prompt, told.output, told.text)


@every_stream
def test_an_error_anywhere_before_the_end_is_the_outcome(api: str, name: str) -> None:
    body, _ = ROWS[api, name]
    parts = events(body)
    for error in (
        b'event: error\ndata: {"type": "error", "error": {"type": "api_error", "message": "gone"}}\n\n',
        b'data: {"error": {"message": "gone", "code": 500}}\n\n',
        b'data: {"type": "error", "code": "server_error", "message": "gone"}\n\n',
        b"event: error\ndata: gone\n\n",
    ):
        for at in range(0, len(parts), 3):
            _, record, sentence = replay(api, [*parts[:at], error])
            assert (record.outcome, sentence) == (Outcome.ERROR_OBJECT, "gone") or b"error" in b"".join(parts[:at])


# --- requests --------------------------------------------------------------------------------------------------------

TALK = (
    Message("system", "Be brief."),
    Message("user", "Say hello."),
    Message("assistant", "Hello."),
    Message("tool", "42"),
    Message("user", "Again."),
)


def asked(dialect: Dialect, sampling: Sampling, length: int | None = None, talk: tuple[Message, ...] = TALK) -> object:
    return json.loads(dialect.encode(Prompt("1", talk, "", "c", 0, output_tokens_max=length), sampling))


FULL = Sampling(model="m", max_tokens=7, ignore_eos=True, temperature=0.5, top_p=0.9, seed=3, stop=("a",))


def test_bodies_of_responses() -> None:
    roles = ("system", "user", "assistant", "tool", "user")
    talk = zip(roles, TALK, strict=True)
    said = [{"type": "message", "role": role, "content": message.content} for role, message in talk]
    common = {"model": "m", "input": said, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a"], "stream": True}
    assert asked(DIALECTS["openai", "responses"], FULL) == {**common, "max_output_tokens": 7, "ignore_eos": True}
    assert asked(DIALECTS["ollama", "responses"], FULL, 5) == {**common, "max_output_tokens": 5}
    bare = Sampling(model="m")
    assert asked(DIALECTS["openai", "responses"], bare) == {"model": "m", "input": said, "stream": True}


def test_bodies_of_messages() -> None:
    said = [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "42"},
        {"role": "user", "content": "Again."},
    ]
    for kind in ("openai", "ollama"):
        dialect = DIALECTS[kind, "messages"]
        assert asked(dialect, FULL) == {
            "model": "m",
            "max_tokens": 7,
            "system": "Be brief.",
            "messages": said,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop_sequences": ["a"],
            "stream": True,
        }
        talk = (Message("system", "A"), Message("system", "B"), Message("user", "Hi"))
        assert asked(dialect, Sampling(model="m"), talk=talk)["system"] == "A\n\nB"
        assert "system" not in asked(dialect, Sampling(model="m"), talk=talk[2:])
        assert dialect.headers == {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("key", "where"),
    [
        (("openai", "messages"), "max_tokens"),
        (("ollama", "messages"), "max_tokens"),
        (("ollama", "responses"), "max_output_tokens"),
        (("ollama", "chat"), "num_predict"),
        (("ollama", "generate"), "num_predict"),
    ],
)
@pytest.mark.parametrize(("length", "sent"), [(None, 4096), (0, 1), (1, 1), (9000, 9000)])
def test_a_limit_is_always_sent_and_never_zero(key: tuple[str, str], where: str, length: int | None, sent: int) -> None:
    assert counts.LENGTH_MAX == dataset.LENGTH_MAX
    body = asked(DIALECTS[key], Sampling(model="m"), length)
    assert {**body, **body.get("options", {})}[where] == sent


def test_the_captured_requests_are_ours() -> None:
    said = (Message("user", "hello"),)
    for name, key, field in (
        ("ollama_real_responses", ("ollama", "responses"), "input"),
        ("ollama_real_anthropic_messages", ("ollama", "messages"), "messages"),
    ):
        captured = json.loads((STREAMS / f"{name}.sse.request.json").read_bytes())
        if captured[field] == "hello":  # the short form of one user message
            captured[field] = [{"type": "message", "role": "user", "content": "hello"}]
        assert asked(DIALECTS[key], Sampling(model="hwords", max_tokens=4), talk=said) == captured


@pytest.mark.parametrize("path", sorted(STREAMS.glob("ollama_real_*.sse.headers")), ids=lambda path: path.name)
def test_the_content_types_are_accepted(path: Path) -> None:
    headers = dict(line.lower().split(": ", 1) for line in path.read_text().splitlines() if ": " in line)
    assert DIALECTS["openai", "responses"].accepts(headers["content-type"])
    assert DIALECTS["ollama", "messages"].accepts(headers["content-type"])


def test_what_llamacpp_says_of_its_own_times() -> None:
    deltas, _, _ = replay("responses", [RESPONSES["captured from llama.cpp"][0]])
    (times,) = [delta.times for delta in deltas if delta.times]
    assert times == EngineTimes(prefill_ns=1_009_000, decode_ns=2_039_000)


def test_many_words_in_one_read_are_told_apart() -> None:
    body = sse(*(delta("output_text", f"w{i} ") for i in range(200)))
    _, record, _ = replay("responses", [body])
    assert (record.events, record.merged_events) == (200, 199)
