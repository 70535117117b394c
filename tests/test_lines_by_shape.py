"""Ollama's lines by shape: each has a moment of its own, and how a stream ended is told from its last words."""

from __future__ import annotations

import itertools
import json

import pytest
from exchanges import BUILT, Setup
from raw_server import CLOSE, LAST_CHUNK, Step, chunk, content, head
from two_readers import Play, clients, same, shaped

from tokenswarm.client.reading import TAIL_BYTES
from tokenswarm.record import Outcome

pytestmark = pytest.mark.skipif(not BUILT, reason="the reader in C is not built here: one reader has nobody to equal")

HEAD = head("application/x-ndjson")
REPEATED, ENGINE = "equal pieces in a row", "so Ollama ends when its engine fails"
LAST = {"done": True, "done_reason": "length", "total_duration": 9_000_000, "eval_count": 7, "prompt_eval_count": 3}
APIS = ("chat", "generate")
_number = itertools.count()


def line(api: str, said: object = " w", **fields: object) -> bytes:
    """As Ollama writes it; no two have the same moment. `said`: the text, or what stands where it does."""
    number = next(_number)
    words = said if isinstance(said, dict) else {"content" if api == "chat" else "response": said}
    moment = f"2026-11-28T16:36:{number % 60:02}.{number * 7_654_321 % 10**9}Z"
    text = {"message": {"role": "assistant", **words}} if api == "chat" else words
    value = {"model": "m", "created_at": moment, **text, "done": False, **fields}
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def changed(api: str) -> dict[str, bytes]:
    name = "content" if api == "chat" else "response"
    plain = line(api)
    moment = plain[plain.index(b'"2026') : plain.index(b"Z") + 2]
    call = {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    return {
        "escapes": line(api, 'é"\\\n\t\x01😀'),
        "words like a line": line(api, '","created_at":"x","done":true}'),
        "a field's name": line(api, "created_at"),
        "empty": line(api, ""),
        "null": line(api, None),
        "a number": line(api, 7),
        "thinking": line(api, {name: "", "thinking": "hm"}),
        "both": line(api, {name: "w", "thinking": "hm"}),
        "tool call": line(api, call),
        "tool call at the end": line(api, call, **LAST),
        "done": line(api, "", **LAST),
        "done with words": line(api, "w", **LAST),
        "done without a line end": line(api, "", **LAST)[:-1],
        "done, and no more": line(api, "w", done=True),
        "done is null": line(api, done=None),
        "done is a text": line(api, done="false"),
        "error": line(api, error="engine died"),
        "error alone": b'{"error":"engine died"}\n',
        "another model": line(api, model="n"),
        "no model": line(api, model=""),
        "unknown field": line(api, logprobs=[{"token": "w", "logprob": -1}]),
        "another role": plain.replace(b"assistant", b"user") if api == "chat" else line(api, role="user"),
        "moment is null": plain.replace(moment, b"null"),
        "moment is a number": plain.replace(moment, b"17"),
        "moment is empty": plain.replace(moment, b'""'),
        "moment has an escape": plain.replace(moment, b'"a\\u00e9\\"b"'),
        "moment has half an escape": plain.replace(moment, b'"a\\u00"'),
        "moment has a control character": plain.replace(moment, b'"a\x02b"'),
        "moment is no UTF-8": plain.replace(moment, b'"a\xffb"'),
        "moment ends early": plain.replace(moment, b'"a"b"'),
        "no moment": plain.replace(b'"created_at":' + moment + b",", b""),
        "two moments": plain.replace(b"{", b'{"created_at":"x",', 1),
        "half a surrogate": plain.replace(b'" w"', b'"\\ud83d"'),
        "a whole pair": plain.replace(b'" w"', b'"\\ud83d\\ude00"'),
        "bad escape": plain.replace(b'" w"', b'"\\q"'),
        "text is no UTF-8": plain.replace(b'" w"', b'"\xe2\x82"'),
        "key twice": plain.replace(b'"%s"' % name.encode(), b'"%s":"v","%s"' % (name.encode(), name.encode())),
        "blank more": plain.replace(b'"model"', b' "model"'),
        "blank behind": plain.replace(b"\n", b" \n"),
        "carriage return": plain.replace(b"\n", b"\r\n"),
        "over two lines": plain.replace(b',"done"', b',\n"done"'),
        "blank line": b"\n",
        "two lines in one": plain[:-1] + line(api),
        "not JSON": b"nope\n",
        "an event": b"data: " + plain + b"\n",
    }


@pytest.mark.parametrize("name", changed("chat"))
@pytest.mark.parametrize("api", APIS)
def test_a_line_that_differs_anywhere_says_what_it_says(setups: list[Setup], api: str, name: str) -> None:
    pair = clients(setups, kind=("ollama", api))
    said = changed(api)[name]
    for before, behind in ((4, 1), (4, 6), (1, 2), (0, 3)):
        lines = [*(line(api) for _ in range(before)), said, *(line(api) for _ in range(behind)), line(api, "", **LAST)]
        steps = [HEAD, *map(chunk, lines), LAST_CHUNK]
        same(pair, steps)
        same(pair, steps, lazily=True)
        same(pair, [b"".join(steps[:3]), b"".join(steps[3:])])
        same(pair, [HEAD, chunk(b"".join(lines)), LAST_CHUNK])
        same(pair, [*steps[:-3], steps[-3][:-9], CLOSE])
        same(pair, steps, keep_text=True)
    assert shaped(pair[1]) is not None


@pytest.mark.parametrize("api", APIS)
def test_lines_reach_python_as_stamps_alone_whatever_their_moment(setups: list[Setup], api: str) -> None:
    _, native = clients(setups, kind=("ollama", api))
    playing = Play(native)
    for step in (HEAD, chunk(line(api, "a")), chunk(line(api, "b"))):
        playing.say(step)
    for number in range(50):
        playing.say(chunk(line(api, f" w{number}")), decode=False)
    reads, pieces = playing.exchange.reading.drain()
    assert [type(piece).__name__ for piece in pieces] == ["array"]
    assert (len(pieces[0]), len(reads)) == (50, 1)
    playing.close()


# -- how it ended ---------------------------------------------------------------------------------------------------

SILENT_ENDS: dict[str, tuple[list[object], str]] = {
    "30 equal": ([*"abc", *["x"] * 30], ENGINE),
    "31 equal": ([*"abc", *["x"] * 31], REPEATED),
    "31 equal with escapes": ([*"abc", *['"\n'] * 31], REPEATED),
    "31 equal, then another": ([*"abc", *["x"] * 31, "y"], ENGINE),
    "another among them": ([*"abc", *["x"] * 16, "y", *["x"] * 16], ENGINE),
    "empty ones among them": ([*"abc", *["x"] * 16, "", "", *["x"] * 15], REPEATED),
    "a thought among them": ([*"abc", *["x"] * 16, {"thinking": "x"}, *["x"] * 14], REPEATED),
    "longer than what is kept": ([*"abc", *["x" * 900] * 40], ENGINE),
    "as long as what is kept": ([*"abc", *["x" * (TAIL_BYTES // 34)] * 40], ENGINE),
    "long before": (["y" * 700] * 60 + ["x"] * 31, REPEATED),
    "one": (["x"], ENGINE),
    "all words in one": (["x " * 31], REPEATED),
}
BEHIND: dict[str, list[Step]] = {
    "the end": [LAST_CHUNK],
    "a trailer": [b"0\r\nx: y\r\n\r\n"],
    "an extension": [b"1;a=b\r\n\n\r\n" + LAST_CHUNK],
    "a cut line": [chunk(b'{"model":"m","cre'), LAST_CHUNK],
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("name", SILENT_ENDS)
@pytest.mark.parametrize("api", APIS)
def test_both_tell_alike_how_a_stream_without_an_end_ended(
    setups: list[Setup], api: str, name: str, behind: str
) -> None:
    pair = clients(setups, kind=("ollama", api))
    texts, sentence = SILENT_ENDS[name]
    for lazily in (False, True, True):  # the last: its shape is expected
        lines = [chunk(line(api, said)) for said in texts]
        got = same(pair, [HEAD, *lines, *BEHIND[behind]], lazily=lazily)
        assert (got["outcome"], got["kind"]) == (Outcome.TRUNCATED, "silent end")
        assert sentence in got["error"]
        same(pair, [HEAD, b"".join(lines), *BEHIND[behind]], lazily=lazily)
        # Some of it as chunks that only Python takes apart: its own bytes stand behind those that C kept.
        odd = [b"0" * 20 + piece for piece in lines[len(lines) // 2 :]]
        assert sentence in same(pair, [HEAD, *lines[: len(lines) // 2], *odd, *BEHIND[behind]], lazily=lazily)["error"]
    assert len(texts) == 1 or shaped(pair[1]) is not None


@pytest.mark.parametrize("fingerprint", [b"fp_ollama", b"fp_other"])
@pytest.mark.parametrize("equal", [30, 31])
def test_so_is_ollama_behind_the_other_api(setups: list[Setup], fingerprint: bytes, equal: int) -> None:
    def event(text: str) -> bytes:
        return chunk(content(text).replace(b"{", b'{"system_fingerprint": "%s", ' % fingerprint, 1))

    pair = clients(setups)
    for lazily in (False, True, True):
        got = same(pair, [HEAD, *map(event, "abc"), *[event("x")] * equal, LAST_CHUNK], lazily=lazily)
        assert (REPEATED in got["error"], ENGINE in got["error"]) == (
            (equal == 31, equal == 30) if fingerprint == b"fp_ollama" else (False, False)
        )
    shape = shaped(pair[1])
    assert shape is not None
    assert shape.keeps_tail == (fingerprint == b"fp_ollama")


def test_the_last_bytes_are_the_newest(setups: list[Setup]) -> None:
    """Of a stream that nobody decodes for long."""
    _, native = clients(setups, kind=("ollama", "generate"))
    playing = Play(native)
    for step in (HEAD, chunk(line("generate", "a")), chunk(line("generate", "b"))):
        playing.say(step)
    sent = b"".join(line("generate", f" w{number}") for number in range(2_000))
    for at in range(0, len(sent), 3_000):
        playing.say(chunk(sent[at : at + 3_000]), decode=False)
    told = playing.exchange.reading
    told.drain()
    assert told.tail == sent[-TAIL_BYTES:]
    playing.close()
