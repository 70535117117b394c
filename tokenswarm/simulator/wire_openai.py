"""The SSE events and JSON bodies of vLLM 0.32's /v1/chat/completions and /v1/completions, byte by byte.

The key order is vLLM's: the role event comes with the first engine output, the last content event carries
finish_reason, usage has its own event, `data: [DONE]` ends. A wire renders; it knows no socket, time or engine. One
wire a request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokenswarm import __version__
from tokenswarm.simulator.text import JSON_PIECES, VOCABULARY, json_escaped

FINGERPRINT = f"tokenswarm-{__version__}"
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Said:
    """One choice as it was finally said, for an answer that is not streamed."""

    content: str
    reasoning: str
    tokens: int
    reasoning_tokens: int
    finish: str
    stop_reason: str | None


@dataclass(slots=True)
class Durations:
    """What Ollama reports at the end of an answer, ns."""

    total: int
    load: int
    prompt_eval: int
    eval: int


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


class OpenAIWire:
    """Chat (`chat` True) or text completions. `pieces` are vocabulary indices, or text where a stop string cut."""

    media = b"text/event-stream; charset=utf-8"
    headers_wait = False  # vLLM sends the response's head when it accepts the request, before any token

    def __init__(
        self,
        ident: str,
        created_s: int,
        model: str,
        chat: bool,
        prompt_tokens: int,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        self.ident = ident
        self.created_s = created_s
        self.model = model
        self.chat = chat
        self.prompt_tokens = prompt_tokens
        self.include_usage = include_usage
        self.continuous_usage = continuous_usage
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": ident, "object": kind, "created": created_s, "model": model}
        self._head = b"data: " + _dump(head)[:-1]
        # The two ends of the event of a token, cached: this is the hot path.
        self._opening: dict[tuple[int, bool], bytes] = {}
        self._closing = self._close(None, None)

    def start(self, choices: int) -> list[bytes]:
        """The role event of each choice; text completions have none."""
        if not self.chat:
            return []
        usage = b""
        if self.continuous_usage:
            usage = b',"usage":' + self._running_usage(0)
        closing = b'"logprobs":null,"finish_reason":null}]%b,"prompt_token_ids":null,"prompt_text":null}\n\n' % usage
        role = b'"delta":{"role":"assistant","content":""},'
        return [b'%b,"choices":[{"index":%d,%b%b' % (self._head, index, role, closing) for index in range(choices)]

    def token(
        self, index: int, piece: int | str, reasoning: bool, count: int, finish: str | None, stop_reason: str | None
    ) -> bytes:
        """The event of one token; `count` is its number (1 …), `finish` is set on the last."""
        opening = self._opening.get((index, reasoning)) or self._open(index, reasoning)
        closing = self._closing if finish is None else self._close(finish, stop_reason)
        body = JSON_PIECES[piece] if isinstance(piece, int) else json_escaped(piece)
        if self.continuous_usage:
            closing = b'%b,"usage":%b}\n\n' % (closing[:-3], self._running_usage(count))
        return opening + body + closing

    def parts(self, reasoning: bool) -> tuple[bytes, bytes] | None:
        """What stands around the text of each token but the last; None: it is not always the same."""
        if self.continuous_usage:
            return None
        return self._opening.get((0, reasoning)) or self._open(0, reasoning), self._closing

    def end(self, completion_tokens: int, reasoning_tokens: int, _durations: Durations, _finish: str) -> list[bytes]:
        """The events after the last token."""
        events = []
        if self.include_usage:
            usage = usage_of(self.prompt_tokens, completion_tokens)
            if reasoning_tokens:
                usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
            tail = _dump({"choices": [], "usage": usage, "system_fingerprint": FINGERPRINT})[1:]
            events.append(self._head + b"," + tail + b"\n\n")
        return [*events, DONE]

    def failure(self, message: str) -> list[bytes]:
        """vLLM whose engine died mid-stream: an error object (json.dumps' spaces are its own), then [DONE]."""
        error = {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}}
        return [b"data: " + json.dumps(error).encode() + b"\n\n", DONE]

    def whole(self, said: list[Said], _durations: Durations) -> bytes:
        """The body of an answer that is not streamed."""
        completion_tokens = sum(one.tokens for one in said)
        usage = usage_of(self.prompt_tokens, completion_tokens)
        usage["prompt_tokens_details"] = None
        thought = sum(one.reasoning_tokens for one in said)
        usage["completion_tokens_details"] = {"reasoning_tokens": thought} if thought else None
        common = {"service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage}
        head = {"id": self.ident, "created": self.created_s, "model": self.model}
        if self.chat:
            choices = [_chat_choice(index, one) for index, one in enumerate(said)]
            tail = dict.fromkeys(
                [
                    "prompt_logprobs",
                    "prompt_token_ids",
                    "prompt_text",
                    "kv_transfer_params",
                    "ec_transfer_params",
                    "metrics",
                ]
            )
            kind = "chat.completion"
        else:
            choices = [_text_choice(index, one) for index, one in enumerate(said)]
            tail = dict.fromkeys(["kv_transfer_params"])
            kind = "text_completion"
        body = {
            "id": head["id"],
            "object": kind,
            "created": head["created"],
            "model": head["model"],
            "choices": choices,
        }
        return _dump({**body, **common, **tail})

    def _open(self, index: int, reasoning: bool) -> bytes:
        delta = b'"delta":{"%b":"' % (b"reasoning" if reasoning else b"content")
        inner = delta if self.chat else b'"text":"'
        opening = self._opening[index, reasoning] = self._head + b',"choices":[{"index":%d,' % index + inner
        return opening

    def _close(self, finish: str | None, stop_reason: str | None) -> bytes:
        ids = b',"token_ids":null}]' if self.chat else b',"prompt_token_ids":null,"token_ids":null}]'
        stop = b',"stop_reason":' + _dump(stop_reason) if finish or not self.chat else b""
        closing = b'"%b,"logprobs":null,"finish_reason":' % (b"}" if self.chat else b"") + _dump(finish) + stop + ids
        if finish and not self.include_usage:
            closing += b',"system_fingerprint":' + _dump(FINGERPRINT)
        return closing + b"}\n\n"

    def _running_usage(self, count: int) -> bytes:
        usage = usage_of(self.prompt_tokens, count)
        if self.chat:
            usage["completion_tokens_details"] = None
        return _dump(usage)


def _chat_choice(index: int, one: Said) -> dict[str, object]:
    message = {
        "role": "assistant",
        "content": one.content if one.tokens > one.reasoning_tokens else None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": one.reasoning or None,
    }
    return {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": one.finish,
        "stop_reason": one.stop_reason,
        "token_ids": None,
        "routed_experts": None,
    }


def _text_choice(index: int, one: Said) -> dict[str, object]:
    return {
        "index": index,
        "text": one.content,
        "logprobs": None,
        "finish_reason": one.finish,
        "stop_reason": one.stop_reason,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
    }


def piece_text(piece: int | str) -> str:
    """A piece as text, whichever way it is held."""
    return VOCABULARY[piece] if isinstance(piece, int) else piece
