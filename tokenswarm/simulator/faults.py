"""Ways to go wrong, for tests and training: `kind[:ratio[:param]]` for the server, `kind[:param]` by header.

Each kind is a row of FAULTS. Faults of the kind "mid" strike before the token number param + 1 of a streamed answer
(and before its last token at the latest); answers that are not streamed they leave alone.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from tokenswarm.errors import ConfigError
from tokenswarm.simulator.answer import LAST_CHUNK, Answer, hyper_head
from tokenswarm.simulator.asks import CHATS, Ask
from tokenswarm.simulator.holding import Blocks, Corked, Holding, Stored
from tokenswarm.simulator.text import chat_tokens
from tokenswarm.simulator.wire import plain
from tokenswarm.simulator.wire_openai import DONE


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that is to happen. What `param` means depends on the kind."""

    kind: str
    param: float


@dataclass(frozen=True, slots=True)
class Row:
    """`stage`: status and raw answer at once; ask changes what is asked, delay, framing and mid change a stream.

    `param` is the default.
    """

    stage: str
    param: float
    about: str


FAULTS = {
    "http_500": Row("status", 0, "status 500"),
    "http_429": Row("status", 1, "status 429 with Retry-After: param seconds"),
    "http_503": Row("status", 0, "status 503"),
    "reset_before": Row("raw", 0, "a TCP reset instead of an answer"),
    "garbage": Row("raw", 0, "bytes that are no HTTP, then the end"),
    "empty": Row("raw", 0, "status 200 and an empty body"),
    "prompt_cut": Row("ask", 512, "a prompt of more than param tokens is cut without a word, as Ollama does"),
    "slow_first": Row("delay", 1, "the first token is param seconds late"),
    "role_only_first": Row("delay", 0.5, "an event without content param seconds ahead of the first token"),
    "gzip": Row("framing", 0, "content-encoding: gzip, flushed at each event"),
    "close_delimited": Row("framing", 0, "neither length nor chunks: the body ends when the connection does"),
    "no_done": Row("framing", 0, "finish_reason but no [DONE] (Ollama never sends one)"),
    "blocks": Row("framing", 4096, "the body leaves in full blocks of param bytes, the rest at the end, as from nginx"),
    "cork": Row("framing", 0.2, "what is written waits param seconds for more, as in HAProxy"),
    "stored": Row("framing", 0, "everything leaves at the end, with a content-length, as from lighttpd"),
    "one_segment": Row("framing", 0, "the last chunk, TLS's goodbye and the connection's end leave in one segment"),
    "hyper": Row("framing", 0, "heads and chunks as of a front end in Rust (hyper, axum), not in Python (uvicorn)"),
    "retried": Row("framing", 1, "a header says that a gateway asked param times more; the engine counts them"),
    "no_last_chunk": Row("framing", 0, "a whole answer, but the connection closes without the last chunk"),
    "head_only": Row("raw", 0, "status 200, and the connection closes before a byte of the body"),
    "reset_mid": Row("mid", 2, "a TCP reset after param tokens"),
    "truncate": Row("mid", 2, "a clean end of the body after param tokens"),
    "error_mid": Row("mid", 2, "an error object after param tokens, under status 200"),
    "killed": Row("mid", 2, "the connection closes after param tokens, as of a process that was killed"),
    "words": Row("mid", 2, "a sentence of a proxy in place of what comes after param tokens, and a whole end"),
    "half": Row("mid", 2, "a proper end after param tokens, as from a gateway that lost the engine"),
    "done_only": Row("mid", 2, "[DONE] after param tokens and no finish_reason (Ollama: nothing)"),
    "pause": Row("mid", 1, "silence for param seconds after 2 tokens; the stream goes on"),
    "stall": Row("mid", 2, "silence after param tokens, the connection stays open"),
    "ping": Row("mid", 2, "only comments after param tokens, ten a second"),
    "bad_chunk": Row("mid", 2, "a chunk size that is no number after param tokens, then the end"),
    "bad_json": Row("mid", 2, "an event that is no JSON after param tokens; the stream goes on"),
    "giant_line": Row("mid", 16 * 2**20, "one event of param bytes after 2 tokens; the stream goes on"),
}

WORDS = b"Error occurred while trying to proxy: 127.0.0.1/v1"  # http-proxy-middleware's, inside the stream
MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise ConfigError(f"`{text}` in fault `{whole}` must be a number, 0 or more")
    return value


def parse(text: str) -> Fault:
    """`kind[:param]`. ConfigError names the kinds that there are."""
    kind, _, param = text.partition(":")
    if kind not in FAULTS:
        raise ConfigError(f"there is no fault `{kind}`; there are: {', '.join(FAULTS)}")
    return Fault(kind, _number(param, text) if param else FAULTS[kind].param)


_ASKED = re.compile(rb"x-sim-(id|fault)=([\w:.-]{1,80})")


def in_prompt(ask: Ask) -> dict[str, str]:
    """What the words of the first prompt ask for: `x-sim-id=NAME`, `x-sim-fault=KIND:PARAM`.

    Headers do not come through every gateway, a prompt does.
    """
    key = ask.prompts[0][0] if ask.prompts else b""
    return {name.decode(): said.decode() for name, said in _ASKED.findall(key)}


class Lottery:
    """Which request gets which fault: seeded, so that a run can be repeated."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self.odds: list[tuple[float, Fault]] = []
        for text in texts:
            kind, _, rest = text.partition(":")
            ratio, _, param = rest.partition(":")
            share = _number(ratio, text) if ratio else 1.0
            if share > 1:
                raise ConfigError(f"the ratio in fault `{text}` must be from 0 to 1")
            self.odds.append((share, parse(f"{kind}:{param}" if param else kind)))
        if sum(share for share, _ in self.odds) > 1 + 1e-9:
            raise ConfigError("the ratios of all --fault options add up to more than 1")
        self._random = random.Random(seed)

    def draw(self) -> Fault | None:
        point = self._random.random() if self.odds else 1.0
        for share, fault in self.odds:
            if point < share:
                return fault
            point -= share
        return None


def cut_prompt(ask: Ask, tokens_max: int) -> Ask:
    """Of several messages the oldest go until the rest fits; of one a half of the context is kept."""
    return replace(ask, prompts=tuple((key, _left(ask.api, key, tokens, tokens_max)) for key, tokens in ask.prompts))


def _left(api: str, key: bytes, tokens: int, tokens_max: int) -> int:
    if tokens <= tokens_max:
        return tokens
    messages = key.decode("utf-8", "surrogatepass").split(chr(30)) if api in CHATS else []
    while len(messages) > 1:
        messages = messages[1:]
        if chat_tokens(messages) <= tokens_max:
            return chat_tokens(messages)
    return tokens_max // 2 + 2


def reset(answer: Answer) -> None:
    """Close with a TCP reset: SO_LINGER with zero seconds makes close() send RST."""
    sock = answer.transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer.keep_alive = False
    answer.transport.abort()


def answer_raw(answer: Answer, kind: str) -> None:
    """The faults of stage raw."""
    if kind == "reset_before":
        reset(answer)
    elif kind == "garbage":
        answer.transport.write(b"\x16\x03\x01\x00 no HTTP here \xff\xfe\x00\r\n\r\n" * 4)
        answer.keep_alive = False
    elif kind == "head_only":
        answer.send_head()
        answer.keep_alive = False
    else:
        answer.send_head()
        answer.end_body()


def prepare(answer: Answer, fault: Fault) -> None:
    """Set an answer up for a fault of stage framing or mid, before its first byte."""
    if fault.kind == "gzip":
        _gzip(answer)
    elif fault.kind == "close_delimited":
        answer.frame, answer.ending, answer.keep_alive = plain, b"", False
    elif fault.kind == "no_last_chunk":
        answer.ending, answer.keep_alive = b"", False
    elif fault.kind in FRAMINGS:
        FRAMINGS[fault.kind](answer, fault)
    elif fault.kind in HOLDERS:
        _hold_back(answer, HOLDERS[fault.kind](answer, fault.param), fault.kind in UNFRAMED)
    elif fault.kind == "no_done":
        answer.sends_done = False
    elif fault.kind in STRIKES:
        after = 2 if fault.kind in ("giant_line", "pause") else int(fault.param)
        answer.strike_at = min(after, sum(output.tokens for output in answer.outputs) - 1)
        strike = STRIKES[fault.kind]
        answer.strike = lambda struck: strike(struck, fault)


def _gzip(answer: Answer) -> None:
    squeeze = zlib.compressobj(wbits=31)  # 31: with gzip's header and trailer
    inner = answer.frame
    if answer.ask.stream:
        answer.extra_head = b"content-encoding: gzip\r\n"
        answer.frame = lambda event: inner(squeeze.compress(event) + squeeze.flush(zlib.Z_SYNC_FLUSH))

        def end_body() -> None:
            answer.write(inner(squeeze.flush()) + answer.ending)

        answer.end_body = end_body  # type: ignore[method-assign] # the trailer goes where only this fault knows it


def _one_segment(answer: Answer, _: Fault) -> None:
    answer.keep_alive = False

    def end_body() -> None:
        sock = answer.transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_CORK"):  # until the close that follows at once
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        answer.write(answer.ending)

    answer.end_body = end_body  # type: ignore[method-assign] # a cork at the end is only this fault's


def _hyper(answer: Answer, _: Fault) -> None:
    answer.head = hyper_head
    answer.wire.headers_wait = True  # the head leaves with the first event


def _retried(answer: Answer, fault: Fault) -> None:
    answer.extra_head += b"x-litellm-attempted-retries: %d\r\n" % int(fault.param)
    answer.metrics.finished["error"] += int(fault.param)


FRAMINGS = {"one_segment": _one_segment, "hyper": _hyper, "retried": _retried}

HOLDERS: dict[str, Callable[[Answer, float], Holding]] = {
    "blocks": lambda answer, param: Blocks(answer.transport, max(1, int(param)), answer.frame),
    "cork": lambda answer, param: Corked(answer.transport, param),
    "stored": lambda answer, _: Stored(answer.transport),
}
UNFRAMED = ("blocks", "stored")
"""They frame the body by themselves."""


def _hold_back(answer: Answer, holding: Holding, unframed: bool) -> None:
    """Let the answer's bytes go through `holding`. An HTTP/1.0 client has no framing to take away."""
    if not answer.ask.stream:
        return
    if unframed and answer.arrival.http_1_1:
        answer.frame = _raw
    answer.transport = holding
    answer.end_body = lambda: holding.finish(answer.ending)  # type: ignore[method-assign] # the end lets go of the rest


def _raw(data: bytes) -> bytes:
    """As `plain`, under a head that says chunks."""
    return data


def _stop(answer: Answer, verdict: str) -> bool:
    answer.done.set_result(verdict)
    return True


def _reset_mid(answer: Answer, _: Fault) -> bool:
    reset(answer)
    return _stop(answer, "over")


def _killed(answer: Answer, _: Fault) -> bool:
    answer.start()
    answer.keep_alive = False
    return _stop(answer, "over")


def _words(answer: Answer, _: Fault) -> bool:
    answer.start()
    answer.send(WORDS)
    answer.end_body()
    return _stop(answer, "over")


def _half(answer: Answer, _: Fault) -> bool:
    answer.start()
    sent = len(answer.mono_ns)
    if not answer.wire.headers_wait:
        answer.send(answer.wire.token(0, "", False, sent, "stop", None))
    for event in answer.wire.end(sent, 0, answer.durations(), "stop"):
        answer.send(event)
    answer.end_body()
    return _stop(answer, "over")


def _done_only(answer: Answer, _: Fault) -> bool:
    answer.start()
    if not answer.wire.headers_wait:
        answer.send(DONE)
    answer.end_body()
    return _stop(answer, "over")


def _pause(answer: Answer, fault: Fault) -> bool:
    answer.start()
    _hold_back(answer, Corked(answer.transport, fault.param, once=True), unframed=False)
    answer.strike_at = -1
    return False


def _truncate(answer: Answer, _: Fault) -> bool:
    answer.start()
    answer.end_body()
    return _stop(answer, "over")


def _error_mid(answer: Answer, _: Fault) -> bool:
    answer.start()
    for event in answer.wire.failure(MESSAGE):
        answer.send(event)
    answer.end_body()
    return _stop(answer, "over")


def _hold(answer: Answer, fault: Fault) -> bool:
    answer.start()
    return _stop(answer, fault.kind)


def _bad_chunk(answer: Answer, _: Fault) -> bool:
    answer.start()
    answer.write(b"ZZ\r\nno chunk\r\n" + LAST_CHUNK)
    answer.keep_alive = False
    return _stop(answer, "over")


def _bad_json(answer: Answer, _: Fault) -> bool:
    answer.start()
    answer.send(b'{"model":\n' if answer.wire.headers_wait else b'data: {"id":\n\n')
    answer.strike_at = -1
    return False


def _giant_line(answer: Answer, fault: Fault) -> bool:
    answer.start()
    event = answer.wire.token(0, "x" * int(fault.param), False, len(answer.mono_ns), None, None)
    answer.send(event)
    answer.strike_at = -1
    return False


STRIKES: dict[str, Callable[[Answer, Fault], bool]] = {
    "reset_mid": _reset_mid,
    "truncate": _truncate,
    "killed": _killed,
    "words": _words,
    "half": _half,
    "done_only": _done_only,
    "pause": _pause,
    "error_mid": _error_mid,
    "stall": _hold,
    "ping": _hold,
    "bad_chunk": _bad_chunk,
    "bad_json": _bad_json,
    "giant_line": _giant_line,
}
"""True: the answer is over (or held); False: it goes on."""
