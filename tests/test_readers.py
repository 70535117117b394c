"""The reader in C against the one in Python: the same answers give the same events, stamps, counts and sentences."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import resource
import socket
import struct
import sys
import tracemalloc
from pathlib import Path

import gevent
import pytest
from exchanges import BUILT, Setup
from raw_server import CLOSE, DONE, LAST_CHUNK, Step, chunk, content, head, usage
from test_exchange import FAILURES, FRAMINGS
from test_odd_streams import BEHIND, EMPTIES, END, NO_STREAMS, STOP, delta, event
from two_readers import Play, clients, play, same, shaped

from tokenswarm.client.native import NativeReading
from tokenswarm.client.transport import Connection
from tokenswarm.clock import monotonic_ns
from tokenswarm.record import Outcome

pytestmark = pytest.mark.skipif(not BUILT, reason="the reader in C is not built here: one reader has nobody to equal")

STREAMS = Path(__file__).parent / "streams"
CHAT, OLLAMA = ("openai", "chat"), ("ollama", "chat")


def kind_of(name: str) -> tuple[str, str]:
    if "responses" in name or "messages" in name:
        return ("openai", "responses" if "responses" in name else "messages")
    if name.endswith("ndjson"):
        return ("ollama", "generate" if "generate" in name else "chat")
    return ("openai", "completions" if "completion" in name else "chat")


def named(fingerprint: bytes) -> bytes:
    return content("a").replace(b"{", b'{"system_fingerprint": "%s", ' % fingerprint, 1)


def halves(data: bytes, before: bytes) -> tuple[bytes, bytes]:
    at = data.index(before)
    return data[:at], data[at:]


# -- every script that the tests of the client have ---------------------------------------------------------------

OLD = content("a") * 5 + END
SCRIPTS: dict[str, tuple[Step, ...]] = {
    **FRAMINGS,
    **{name: script for name, (_, script) in FAILURES.items()},
    **{
        f"{name}, {done}": (head(), chunk(content("A")), chunk(content("B")), chunk(said), chunk(done), LAST_CHUNK)
        for name, said in BEHIND.items()
        for done in (b"\n\n", DONE)
    },
    **{name: (head(), chunk(body), LAST_CHUNK) for name, (body, _, _) in NO_STREAMS.items() if body},
    "empty events": (head(), *map(chunk, (*EMPTIES, content("A"), *EMPTIES, content("B"), *EMPTIES, END)), LAST_CHUNK),
    "pings": (head(), *([chunk(content("a")), chunk(b": ping\n\n"), chunk(b"\n")] * 9), chunk(END), LAST_CHUNK),
    "single line breaks": (head(), *[chunk(content("a")[:-1])] * 9, chunk(END), LAST_CHUNK),
    "carriage returns": (head(), *[chunk(content("a")[:-2] + b"\r\n\r\n")] * 9, chunk(END), LAST_CHUNK),
    "line and blank line apart": (head(), *[chunk(content("a")[:-1]), chunk(b"\n")] * 9, chunk(END), LAST_CHUNK),
    "ids and names": (head(), *[chunk(b"event: message\nid: 7\n" + content("a"))] * 5, chunk(END), LAST_CHUNK),
    "no blank": (head(), *[chunk(content("a").replace(b": ", b":", 1))] * 9, chunk(END), LAST_CHUNK),
    "several in a chunk": (head(), *[chunk(content("a") * 7)] * 9, chunk(END), LAST_CHUNK),
    "several choices": (head(), *[chunk(delta(n, content="x")) for n in (0, 0, 0, 1, 1, 0, 2)], chunk(END), LAST_CHUNK),
    "chunk extensions": (head(), *[b"%x;a=b\r\n%s\r\n" % (len(content("a")), content("a"))] * 5, LAST_CHUNK),
    "one chunk extension": (
        head(),
        *[chunk(content("a"))] * 5,
        b"%x;a=b\r\n%s\r\n" % (len(END), END),
        LAST_CHUNK,
    ),
    "trailers": (head(), *[chunk(content("a"))] * 5, chunk(END), b"0\r\nx: y\r\nz: w\r\n\r\n"),
    "upper case and leading zeros": (
        head(),
        *[b"0%X\r\n%s\r\n" % (len(content("a")), content("a"))] * 5,
        b"00\r\n\r\n",
    ),
    "a chunk's end is none": (head(), *[chunk(content("a"))] * 5, chunk(END)[:-2] + b"xx", LAST_CHUNK),
    "a chunk's end is half one": (head(), *[chunk(content("a"))] * 5, chunk(END)[:-1] + b"\r", LAST_CHUNK),
    "bare line ends of chunks": (head(), chunk(content("a")), b"3\nabc\n", LAST_CHUNK),
    "a huge chunk": (head(), chunk(content("a")), b"ffffffffffffffffff\r\nabc"),
    "a second answer": (head(), chunk(content("a")), chunk(END), LAST_CHUNK + head(chunked=False)),
    "a second answer, whole": (
        head(),
        chunk(content("a")),
        chunk(END),
        LAST_CHUNK + head() + chunk(content("b") + END),
    ),
    "an error, then another answer": (
        head(status="500 Oops") + chunk(b"x") + LAST_CHUNK + head() + chunk(content("b")),
    ),
    "line breaks behind the end": (head(), chunk(content("a")), chunk(END), LAST_CHUNK + b"\r\n"),
    "more than content-length": (
        head("text/event-stream", f"content-length: {len(content('a') + END)}", chunked=False),
        content("a") + END + b"more",
    ),
    "two lengths": (head("text/event-stream", "content-length: 3", "content-length: 3", chunked=False), b"abcdef"),
    "length and chunks": (head("text/event-stream", "content-length: 3"), chunk(content("a")), LAST_CHUNK),
    "no number": (head("text/event-stream", "content-length: +3", chunked=False), b"abc"),
    "HTTP/1.0": (head(chunked=False).replace(b"1.1", b"1.0"), *[content("a")] * 5, END, CLOSE),
    **{
        f"HTTP/1.0, {name}": (
            head("text/event-stream", *lines, chunked=False).replace(b"1.1", b"1.0"),
            *([chunk(content("a"))] * 5 + [chunk(END), LAST_CHUNK] if "length" not in name else [OLD[:9], OLD[9:]]),
        )
        for name, lines in {
            "chunks": ["transfer-encoding: chunked"],
            "chunks, kept": ["transfer-encoding: chunked", "connection: keep-alive"],
            "a length": [f"content-length: {len(OLD)}"],
            "a length, kept": [f"content-length: {len(OLD)}", "connection: keep-alive"],
        }.items()
    },
    "chunks, and a coding behind them": (
        head("text/event-stream", "transfer-encoding: chunked", "transfer-encoding: gzip", chunked=False),
        *[chunk(content("a"))] * 5,
        chunk(END),
        LAST_CHUNK,
        CLOSE,
    ),
    "connection: close": (head("text/event-stream", "connection: close"), chunk(content("a")), chunk(END), LAST_CHUNK),
    "connection: close, then a chunk of its own kind": (
        head("text/event-stream", "connection: close"),
        *[chunk(content("a"))] * 5,
        b"%x;a=b\r\n%s\r\n" % (len(END), END),
        LAST_CHUNK,
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + head(), *[chunk(content("a"))] * 5, chunk(END), LAST_CHUNK),
    "no more than a head": (head()[:-1],),
    "the head and all in one read": (head() + chunk(content("a") * 3) + chunk(END) + LAST_CHUNK,),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",),
    "upgrade": (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc",),
    "bare head": (b"HTTP/1.1 200 OK\ncontent-type: text/event-stream\n\n" + content("a"), END, CLOSE),
    "huge head": (
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n",
        head()[17:],
        chunk(content("a") + END),
        LAST_CHUNK,
    ),
    "not UTF-8": (head(), *[chunk(content("a"))] * 3, chunk(content("\x00").replace(b"\x00", b"\xff")), LAST_CHUNK),
    "end of the protocol, then silence": (head(), *[chunk(content("a"))] * 3, chunk(END)),
    "Ollama's name in the second read, and no end": (
        head(),
        *[cut for n in range(3) for cut in halves(chunk(named(b"fp_ollama")), b'"system_')],
        LAST_CHUNK,
    ),
    "cut in a character": (head(), *[chunk(content("é"))] * 3, chunk(content("é")[:-30]), CLOSE),
}


@pytest.mark.parametrize("lazily", [False, True], ids=["", "lazily"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_both_tell_the_same(setups: list[Setup], name: str, lazily: bool) -> None:
    pair = clients(setups)
    for options in ({}, {"keep_text": True}, {"choices": 2}):
        same(pair, SCRIPTS[name], lazily=lazily, **options)
    same(pair, [head(), *[chunk(content("a"))] * 3, chunk(END), LAST_CHUNK])  # from now on the shape is expected
    assert shaped(pair[1])
    same(pair, SCRIPTS[name], lazily=lazily)


@pytest.mark.parametrize("fingerprint", [b"fp_ollama", b"fp_other"])
def test_a_first_event_in_two_reads_names_its_server_all_the_same(setups: list[Setup], fingerprint: bytes) -> None:
    cut = halves(chunk(named(fingerprint)), b'"system_')
    told = same(clients(setups), (head(), *cut, *[chunk(named(fingerprint))] * 3, LAST_CHUNK))
    assert ("hid why" in told["error"]) == (fingerprint == b"fp_ollama"), told["error"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("chunks", False), ("chunks, kept", True), ("a length", False), ("a length, kept", True)],
)
def test_an_older_version_has_the_framing_that_its_head_says(setups: list[Setup], name: str, kept: bool) -> None:
    got = same(clients(setups), SCRIPTS[f"HTTP/1.0, {name}"])
    assert (got["outcome"], got["counts"][0], got["kept"]) == (Outcome.OK, 5, kept)


@pytest.mark.parametrize("name", SCRIPTS)
def test_both_tell_the_same_of_bytes_that_come_one_by_one(setups: list[Setup], name: str) -> None:
    steps: list[Step] = []
    for step in SCRIPTS[name]:
        steps += [bytes([byte]) for byte in step[:3000]] if isinstance(step, bytes) else [step]
    same(clients(setups), steps)


# -- every cut of every capture -----------------------------------------------------------------------------------

CUTS_MAX = 100  # of one capture; the shorter ones are cut at every byte
CAPTURES = sorted(path.name for path in STREAMS.iterdir() if path.suffix in (".sse", ".ndjson"))


def framed(body: bytes, way: str, break_at: bytes) -> bytes:
    if way == "chunks":
        return head() + b"".join(chunk(piece + break_at) for piece in body.split(break_at) if piece) + LAST_CHUNK
    if way == "length":
        return head("text/event-stream", f"content-length: {len(body)}", chunked=False) + body
    return head(chunked=False) + body


@pytest.mark.parametrize("way", ["chunks", "length", "close"])
@pytest.mark.parametrize("name", CAPTURES)
def test_every_cut_of_every_capture(setups: list[Setup], name: str, way: str) -> None:
    """The first two events come whole, so that the shape is known; then it is cut in two, anywhere."""
    body = (STREAMS / name).read_bytes()
    break_at = b"\n" if name.endswith("ndjson") else b"\n\n"
    answer = framed(body, way, break_at)
    ends: list[Step] = [CLOSE] if way == "close" else []
    begin = answer.find(break_at, answer.find(break_at, answer.find(b"\r\n\r\n") + 4) + 1) + len(break_at)
    cuts = range(1, len(answer))
    places = cuts if len(cuts) <= CUTS_MAX else sorted(random.Random(name + way).sample(cuts, CUTS_MAX))
    pair = clients(setups, kind=kind_of(name))
    same(pair, [answer, *ends])
    for cut in places:
        steps = [answer[:begin], answer[begin:cut], answer[cut:]] if cut > begin else [answer[:cut], answer[cut:]]
        same(pair, [*(step for step in steps if step), *ends], lazily=cut % 7 == 0)


def test_the_dense_part_is_cut_at_every_byte(setups: list[Setup]) -> None:
    """Content events of vLLM and of Ollama, in chunks: each byte between the first and the last is a cut."""
    for name in ("vllm_chat.sse", "llamacpp_chat.sse", "ollama_chat.CONSTRUCTED.ndjson", "vllm_completion.sse"):
        break_at = b"\n" if name.endswith("ndjson") else b"\n\n"
        answer = framed((STREAMS / name).read_bytes(), "chunks", break_at)
        pair = clients(setups, kind=kind_of(name))
        same(pair, [answer])
        begin = answer.find(break_at, answer.find(b"\r\n\r\n") + 4) + len(break_at) + 2
        second = answer.find(break_at, begin) + len(break_at) + 2
        for cut in range(second + 1, min(len(answer), second + 900)):
            same(pair, [answer[:begin], answer[begin:second], answer[second:cut], answer[cut:]])


@pytest.mark.parametrize("seed", range(12))
def test_soup(setups: list[Setup], seed: int) -> None:
    """Pieces of streams in any order, cut anywhere, with bytes changed."""
    chance = random.Random(seed)
    words = [content("a"), content("\\u00e9"), content(""), content("x\\ny"), content("b", "stop"), usage(3, 4), DONE]
    words += [b": ping\n\n", b"\n", b"\r\n", b"event: error\n", b"data: x\ndata: y\n\n", b"data", b"\xef\xbb\xbf", STOP]
    words += [b'{"error":"x"}\n', b"error: x\n\n", event({"choices": [], "x": "data: "}), delta(1, content="z")]
    pair = clients(setups)
    for _ in range(25):
        parts = [content("a"), *chance.choices(words, k=chance.randrange(30))]
        wire = bytearray(head() + b"".join(map(chunk, parts)) + LAST_CHUNK)
        for _ in range(chance.randrange(3)):
            wire[chance.randrange(len(wire))] = chance.choice(b'\n\r"{}:x\x00\xff0')
        cuts = sorted(chance.sample(range(len(wire)), min(len(wire) - 1, chance.randrange(1, 12))))
        steps = [bytes(wire[a:b]) for a, b in itertools.pairwise([0, *cuts, len(wire)]) if b > a]
        same(pair, [*steps, CLOSE], lazily=chance.random() < 0.3)


@pytest.mark.parametrize("event_bytes_max", [60, 90, 200])
def test_the_bound_of_an_event_is_the_same_byte(setups: list[Setup], event_bytes_max: int) -> None:
    pair = clients(setups, event_bytes_max=event_bytes_max)
    for length in range(0, 140, 3):
        words = content("x" * length)
        same(pair, [head() + chunk(content("a")), chunk(content("b") * 2), chunk(words), chunk(END), LAST_CHUNK])
        same(pair, [head() + chunk(content("a")), chunk(content("b") * 2), chunk(words[:-9]), chunk(words[-9:] + END)])


# -- shapes -------------------------------------------------------------------------------------------------------


def other(**fields: object) -> bytes:
    return event(
        {"id": "c-9", "object": "x", "created": 17, "choices": [{"index": 0, "delta": {"content": "w"}}], **fields}
    )


CHANGED: dict[str, bytes] = {
    "another id and second": other(id='c-"10', created=18),
    "escapes": other(choices=[{"index": 0, "delta": {"content": 'é"\\\n\t\u0001😀'}}]),
    "empty": other(choices=[{"index": 0, "delta": {"content": ""}}]),
    "null": other(choices=[{"index": 0, "delta": {"content": None}}]),
    "finish": other(choices=[{"index": 0, "delta": {"content": "w"}, "finish_reason": "stop"}]),
    "empty finish": other(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}]),
    "another choice": other(choices=[{"index": 1, "delta": {"content": "w"}}]),
    "two choices": other(choices=[{"index": i, "delta": {"content": "w"}} for i in (0, 1)]),
    "usage": other(usage={"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}),
    "reasoning": other(choices=[{"index": 0, "delta": {"reasoning_content": "w"}}]),
    "both": other(choices=[{"index": 0, "delta": {"content": "w", "reasoning": "v"}}]),
    "tool call": other(choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]),
    "token ids": other(choices=[{"index": 0, "delta": {"content": "w"}, "token_ids": [1, 2, 3]}]),
    "error": other(error={"message": "engine died"}),
    "unknown field": other(system_fingerprint="fp"),
    "number where a text was": other(id=7),
    "text where a number was": other(created="17"),
    "leading zero": other().replace(b": 17", b": 017"),
    "half a surrogate": other().replace(b'"w"', b'"\\ud83d"'),
    "a whole pair": other().replace(b'"w"', b'"\\ud83d\\ude00"'),
    "bad escape": other().replace(b'"w"', b'"\\q"'),
    "control character": other().replace(b'"w"', b'"\x01"'),
    "overlong UTF-8": other().replace(b'"w"', b'"\xc0\xaf"'),
    "UTF-8 of a surrogate": other().replace(b'"w"', b'"\xed\xa0\x80"'),
    "cut UTF-8": other().replace(b'"w"', b'"\xe2\x82"'),
    "bad UTF-8 in the id": other().replace(b"c-9", b"c\xff9"),
    "quote too early": other().replace(b'"w"', b'"w"}"'),
    "key twice": other().replace(b'"content"', b'"content": "v", "content"'),
    "blank more": other().replace(b'"id"', b' "id"'),
    "behind it": other().replace(b"}\n\n", b"} \n\n"),
    "comment": b": ping\n\n",
    "not JSON": b"data: nope\n\n",
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_event_that_differs_anywhere_says_what_it_says(setups: list[Setup], name: str) -> None:
    pair = clients(setups)
    for before, behind in ((4, 1), (4, 6), (1, 2)):
        steps = [
            head(),
            *[chunk(other())] * before,
            chunk(CHANGED[name]),
            *[chunk(other())] * behind,
            chunk(END),
            LAST_CHUNK,
        ]
        same(pair, steps)
        same(pair, [b"".join(steps[:3]), b"".join(steps[3:])])
        same(pair, steps, keep_text=True)
    assert shaped(pair[1]) is not None


def test_words_that_stand_elsewhere_too_are_the_slot_where_they_are_read(setups: list[Setup]) -> None:
    """What the text says is also the event's type, before it: another type with that text is no word of the answer."""
    pair = clients(setups, kind=("openai", "responses"))
    text = "response.output_text.delta"

    def typed(kind: str, delta: str = text) -> bytes:
        return chunk(event({"type": kind, "delta": delta}))

    end = chunk(event({"type": "response.completed", "response": {"status": "completed"}}))
    steps = [head(), *[typed(text)] * 4, typed("response.output_text.done"), typed(text, "w"), end, LAST_CHUNK]
    for script in (steps, [b"".join(steps)], steps):
        got = same(pair, script)
        assert (got["outcome"], got["counts"][0]) == (Outcome.OK, 5)
    shape = shaped(pair[1])
    assert shape is not None
    assert b'"type": "response.output_text.delta"' in shape.pattern


@pytest.mark.parametrize("name", [*CAPTURES])
def test_captures_in_which_only_words_change_are_told_by_their_shape(setups: list[Setup], name: str) -> None:
    """Not all are: continuous usage, log probabilities and token ids differ from event to event."""
    pair = clients(setups, kind=kind_of(name))
    body = (STREAMS / name).read_bytes()
    break_at = b"\n" if name.endswith("ndjson") else b"\n\n"
    got = same(pair, [head("x"), *(chunk(part + break_at) for part in body.split(break_at) if part), LAST_CHUNK])
    varies = ("usage.sse", "logprobs", "token_ids", "timings", "native", "nonstream", "midstream_error", "n2", "tool")
    varies += ("ollama_real_openai_completion",)  # a usage of zeros in each
    if got["counts"][0] > 2 and not any(word in name for word in varies):
        assert shaped(pair[1]) is not None


@pytest.mark.parametrize(
    "begin", [b"<html>\n\n", b"hello\n\n", b"datum\n\n", b'{"a":1}\n\n', b"\n", b": x\n\n", b"data"]
)
def test_a_body_that_begins_otherwise_is_looked_at_first(setups: list[Setup], begin: bytes) -> None:
    """Though the server is known: what its events look like says nothing of a page that has one in it."""
    pair = clients(setups)
    same(pair, [head(), *[chunk(content("a"))] * 3, chunk(END), LAST_CHUNK])
    for kind in ("text/html", "text/event-stream"):
        same(pair, [head(kind), chunk(begin + content("a") * 3), chunk(content("b")), chunk(END), LAST_CHUNK])
        same(pair, [head(kind), chunk(begin), chunk(content("a") * 3), chunk(END), LAST_CHUNK])


def test_events_of_the_shape_reach_python_as_stamps_alone(setups: list[Setup]) -> None:
    _, native = clients(setups)
    playing = Play(native)
    for step in (head(), chunk(other(created=1)), chunk(other(created=2))):
        playing.say(step)
    for number in range(50):
        playing.say(chunk(other(id=f"c-{number}", created=number)), decode=False)
    reads, pieces = playing.exchange.reading.drain()
    assert [type(piece).__name__ for piece in pieces] == ["array"]
    assert (len(pieces[0]), len(reads)) == (50, 1)
    playing.close()


def test_a_server_whose_every_event_is_another_is_decoded_and_learnt_no_more(setups: list[Setup]) -> None:
    pair = clients(setups)
    steps = [head(), *(chunk(other(**{f"f{n}": n})) for n in range(300)), chunk(END), LAST_CHUNK]
    assert same(pair, steps)["counts"][0] == 300


# -- stamps -------------------------------------------------------------------------------------------------------


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener.accept()[0], peer


class Clocks:
    """A pair of clocks whose offset stands still; `plain`: whether a look of the reader's own agrees with it."""

    def __init__(self, plain: bool) -> None:
        truth = Connection.clocks
        self.offset_ns = truth.offset_ns
        self.low_ns, self.high_ns = (-(1 << 62), 1 << 62) if plain else (1, 0)
        self.set_ns = 0
        self.asked: list[tuple[int, int, int]] = []

    def place(self, stamp_ns: int, floor_ns: int, now_ns: int, _low_ns: int) -> tuple[int, bool]:
        self.asked.append((stamp_ns, floor_ns, now_ns))
        return max(floor_ns, stamp_ns - self.offset_ns - 77), len(self.asked) % 3 == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kernel receive stamps are Linux's")
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "asked for"])
@pytest.mark.parametrize("reader", [0, 1], ids=["python", "native"])
def test_stamps_are_the_kernels_to_the_nanosecond(
    setups: list[Setup], reader: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(plain)
    monkeypatch.setattr(Connection, "clocks", clocks)
    playing = Play(clients(setups)[reader], pair=tcp_pair())
    expected: list[int] = []
    unsure = 0
    for number, step in enumerate([head(), *[chunk(content("a"))] * 30]):
        playing._peer.sendall(step)
        playing.arrived()
        stamps = playing.connection.sock.recvmsg(1, 64, socket.MSG_PEEK)[1]
        seconds, ns = struct.unpack("qq", stamps[0][2])
        playing.read()
        playing.decode()
        at_ns = seconds * 10**9 + ns - clocks.offset_ns
        if not plain:
            unsure += (number + 1) % 3 != 0
            at_ns -= 77
        expected.append(at_ns)
    assert list(playing.timeline._stamps) == expected[1:]
    assert len(clocks.asked) == (0 if plain else len(expected))
    assert playing.exchange.response.unsure_reads == unsure
    assert playing.exchange.response.headers_ns == expected[0]
    playing.close()


def test_without_a_stamp_a_pause_of_the_loop_is_told(setups: list[Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of unix sockets has no stamps: what waited while the loop stood still came at any moment of it."""
    for client in clients(setups):
        playing = Play(client)
        monkeypatch.setattr(Connection, "polled_ns", monotonic_ns() + 10**13)
        playing.say(head())
        first_ns = playing.exchange.response.headers_ns
        assert playing.exchange.response.unsure == ()
        gevent.sleep(0.06)
        monkeypatch.setattr(Connection, "polled_ns", first_ns + 1)
        playing.say(chunk(content("a")))
        assert playing.exchange.response.unsure == ((first_ns + 1, playing.timeline._stamps[0]),)
        playing.close()


def test_a_stamp_before_the_send_is_asked_for(setups: list[Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor: an answer can't come before its request, nor a read before the one before."""
    for client in clients(setups):
        clocks = Clocks(plain=True)
        clocks.offset_ns += 3_600 * 10**9  # all stamps seem to be an hour old
        monkeypatch.setattr(Connection, "clocks", clocks)
        playing = Play(client, pair=tcp_pair())
        sent_ns = playing.timeline.sent_ns
        playing.say(head())
        assert [asked[1] for asked in clocks.asked] == [sent_ns]
        playing.close()


def test_lags_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read once, in the sketch's own buckets; what each stream had at most is told of the stream."""
    for name in ("python", "native"):
        setup = Setup(name)
        clocks = Clocks(plain=True)
        monkeypatch.setattr(Connection, "clocks", clocks)
        playing = Play(setup.client(1, keep_text=False), pair=tcp_pair())
        for number in range(40):
            clocks.offset_ns = Connection.clocks.offset_ns + number
            playing.say(head() if not number else chunk(content("a")))
        told = playing.told()
        setup.decoder.count_lags()
        rx_lag = setup.recorder.instrument.rx_lag
        assert rx_lag.n == told["reads"][0] == 40
        assert sum(rx_lag.counts.values()) + rx_lag.zero == 40
        assert rx_lag.high is not None
        assert rx_lag.high == pytest.approx(playing.timeline.rx_lag_ns_max / 1e9)
        assert setup.recorder.instrument.rx_lag_ns_max == playing.timeline.rx_lag_ns_max
        edges = [key / 64 for key in rx_lag.counts]
        assert 2 ** min(edges) / 1.02 <= rx_lag.min <= rx_lag.max <= 2 ** max(edges) * 1.02
        setup.close()


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece", [b"x" * 65_536, b"data: " * 10_000, b": x\n" * 16_000], ids=["no line end", "data", "comments"]
)
def test_a_flood_stays_within_its_bound(setups: list[Setup], piece: bytes) -> None:
    """64 MB behind a stream that is known: held, copied or counted, it must not grow."""
    for client in clients(setups):
        playing = Play(client)
        for step in (head(chunked=False), content("a"), content("b"), content("c")):
            playing.say(step)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(1000):
            playing.say(piece, decode=number % 50 == 0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
        playing.close()


def test_what_nobody_drains_is_read_no_further(setups: list[Setup]) -> None:
    _, native = clients(setups)
    playing = Play(native)
    for step in (head(chunked=False), content("a"), content("b")):
        playing.say(step)
    playing._peer.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 64 << 20:
            sent += playing._peer.send(b": " + b"x" * 4000 + b"\n\n")
            playing.read()
    assert sent < 8 << 20
    playing.decode()
    playing.read()
    assert playing._peer.send(b": go on\n\n")
    playing.close()


def test_nothing_leaks(setups: list[Setup]) -> None:
    """Neither memory of C (it is Python's allocator's, so tracemalloc sees it) nor references."""
    _, client = clients(setups)
    scripts = [*SCRIPTS.values(), *[(head(), *[chunk(other())] * 4, chunk(CHANGED[n]), CLOSE) for n in CHANGED]]

    def once() -> None:
        for script in scripts:
            play(client, script)

    once()
    once()
    gc.collect()
    tracemalloc.start()
    once()
    gc.collect()
    before, blocks = tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()
    for _ in range(3):
        once()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 60_000, "three times all scripts"
    assert sys.getallocatedblocks() - blocks < 2_000


# -- what C refuses -----------------------------------------------------------------------------------------------


def test_wrong_calls_are_refused_and_harm_nothing(setups: list[Setup]) -> None:
    _, client = clients(setups)
    assert client.native is not None
    reader = client.native.reader
    playing = Play(client)
    assert isinstance(playing.exchange.reading, NativeReading)
    fd = playing.connection.sock.fileno()
    shape = b"=\x01\x00a" + b't\x04\x00"}\n\n'
    for call in (
        lambda: reader.take(-1),
        lambda: reader.take(10_000),
        lambda: reader.open(fd, None, 0, 1, 0, 0, 0),
        lambda: reader.open(-1, None, 0, 1, 0, 0, 0),
        lambda: reader.open(99_999, None, 0, 1, 0, 0, 0),
        lambda: reader.body(fd, -1, 100),
        lambda: reader.split(fd, b"", 2, 0),
        lambda: reader.split(fd, shape[:-1], 2, 0),
        lambda: reader.split(fd, b"?" + shape[1:], 2, 0),
        lambda: reader.split(fd, shape, 3, 0),
        lambda: reader.split(fd, "text", 2, 0),  # type: ignore[arg-type]
        lambda: reader.take("fd"),  # type: ignore[arg-type]
    ):
        with pytest.raises((KeyError, ValueError, TypeError, OSError)):
            call()
    playing.say(head())
    playing.say(chunk(content("a")) + chunk(END) + LAST_CHUNK)
    assert playing.told()["counts"][0] == 1
