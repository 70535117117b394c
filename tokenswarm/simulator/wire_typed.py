"""The events of /v1/responses and /v1/messages, each with its type, and their JSON bodies. One wire a request.

Thoughts and answer are an item (a block) each, opened with its first token and closed with the next one's, or at the
end. What opens and closes goes with the token that asks for it: one write a token, as everywhere here.
"""

from __future__ import annotations

import json

from tokenswarm.simulator.text import JSON_PIECES, json_escaped
from tokenswarm.simulator.wire_openai import Durations, Said


def _event(body: dict[str, object]) -> bytes:
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b"event: %b\ndata: %b\n\n" % (str(body["type"]).encode(), data)


class _TypedWire:
    """What both have in common: which item is open, and what was said in it."""

    media = b"text/event-stream; charset=utf-8"
    headers_wait = False

    def __init__(self, ident: str, model: str, prompt_tokens: int) -> None:
        self.ident = ident
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.items = 0  # opened so far
        self._thinks: bool | None = None  # what the open item holds; None: none is open
        self._said: list[bytes] = []  # escaped
        self._stop_reason: str | None = None

    def token(
        self, _index: int, piece: int | str, reasoning: bool, _count: int, finish: str | None, stop_reason: str | None
    ) -> bytes:
        """The event of one token, behind those that it makes due; nothing for an empty piece."""
        if finish is not None:
            self._stop_reason = stop_reason
        body = JSON_PIECES[piece] if isinstance(piece, int) else json_escaped(piece)
        if not body:
            return b""
        turned = b"" if reasoning is self._thinks else self._turn(reasoning)
        self._said.append(body)
        return turned + self.delta(body, reasoning)

    def parts(self, _reasoning: bool) -> None:
        """What opens and closes goes with tokens."""

    def _turn(self, reasoning: bool | None) -> bytes:
        """Close the open item, and open one for what comes now (None: nothing comes)."""
        closed = b"" if self._thinks is None else self.close(self._thinks, json.loads(b'"%b"' % b"".join(self._said)))
        self._thinks, self._said = reasoning, []
        if reasoning is None:
            return closed
        self.items += 1
        return closed + self.open(reasoning)

    def delta(self, body: bytes, reasoning: bool) -> bytes:
        raise NotImplementedError

    def open(self, reasoning: bool) -> bytes:
        raise NotImplementedError

    def close(self, reasoning: bool, text: str) -> bytes:
        raise NotImplementedError


class ResponsesWire(_TypedWire):
    """OpenAI's Responses API, with the names of vLLM for its reasoning."""

    def __init__(self, ident: str, created_s: int, model: str, prompt_tokens: int, limit: int | None) -> None:
        super().__init__(ident, model, prompt_tokens)
        self.created_s = created_s
        self.limit = limit
        self._number = -1

    def start(self, _choices: int) -> list[bytes]:
        running = self._response("in_progress", [], None)
        return [self._numbered(type=f"response.{kind}", response=running) for kind in ("created", "in_progress")]

    def delta(self, body: bytes, reasoning: bool) -> bytes:
        self._number += 1
        kind = b"response.reasoning_text.delta" if reasoning else b"response.output_text.delta"
        return (
            b'event: %b\ndata: {"type":"%b","sequence_number":%d,"item_id":"%b","output_index":%d,"content_index":0,'
            b'"delta":"%b"}\n\n' % (kind, kind, self._number, self._item_id, self.items - 1, body)
        )

    def open(self, reasoning: bool) -> bytes:
        item = self._item(reasoning, None)
        added = self._numbered(type="response.output_item.added", output_index=self.items - 1, item=item)
        if reasoning:
            return added
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return added + self._numbered(type="response.content_part.added", part=part, **self._place)

    def close(self, reasoning: bool, text: str) -> bytes:
        item = self._item(reasoning, text)
        ended = self._numbered
        if reasoning:
            told = ended(type="response.reasoning_text.done", text=text, **self._place)
        else:
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            told = ended(type="response.output_text.done", text=text, logprobs=[], **self._place)
            told += ended(type="response.content_part.done", part=part, **self._place)
        return told + ended(type="response.output_item.done", output_index=self.items - 1, item=item)

    def end(self, completion_tokens: int, reasoning_tokens: int, _durations: Durations, finish: str) -> list[bytes]:
        """The last item's end, and the response's, with the counts. (The whole text stands in the items alone.)"""
        closed = self._turn(None)
        status = "incomplete" if finish == "length" else "completed"
        response = self._response(status, [], self._usage(completion_tokens, reasoning_tokens))
        return [*([closed] if closed else []), self._numbered(type=f"response.{status}", response=response)]

    def failure(self, message: str) -> list[bytes]:
        return [self._numbered(type="error", code="server_error", message=message, param=None)]

    def whole(self, said: list[Said], _durations: Durations) -> bytes:
        """The body of an answer that is not streamed."""
        one, output = said[0], []
        for reasoning, text in ((True, one.reasoning), (False, one.content)):
            if text:
                self.items += 1
                output.append(self._item(reasoning, text))
        status = "incomplete" if one.finish == "length" else "completed"
        body = self._response(status, output, self._usage(one.tokens, one.reasoning_tokens))
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    @property
    def _item_id(self) -> bytes:
        return b"item_%d_%b" % (self.items, self.ident.removeprefix("resp_").encode())

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": self._item_id.decode(), "output_index": self.items - 1, "content_index": 0}

    def _numbered(self, **fields: object) -> bytes:
        self._number += 1
        return _event({**fields, "sequence_number": self._number})

    def _item(self, reasoning: bool, text: str | None) -> dict[str, object]:
        common = {"id": self._item_id.decode(), "status": "in_progress" if text is None else "completed"}
        if reasoning:
            content = [] if text is None else [{"type": "reasoning_text", "text": text}]
            return {**common, "type": "reasoning", "summary": [], "content": content}
        told = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return {**common, "type": "message", "role": "assistant", "content": told}

    def _usage(self, output: int, thought: int) -> dict[str, object]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": self.prompt_tokens + output,
        }

    def _response(self, status: str, output: list[dict[str, object]], usage: object) -> dict[str, object]:
        return {
            "id": self.ident,
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "max_output_tokens": self.limit,
            "metadata": {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }


class MessagesWire(_TypedWire):
    """Anthropic's Messages API."""

    def start(self, _choices: int) -> list[bytes]:
        message = self._message([], None, self._usage(0))
        return [_event({"type": "message_start", "message": message}), _event({"type": "ping"})]

    def delta(self, body: bytes, reasoning: bool) -> bytes:
        kind, field = (b"thinking_delta", b"thinking") if reasoning else (b"text_delta", b"text")
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
            b'"%b"}}\n\n' % (self.items - 1, kind, field, body)
        )

    def open(self, reasoning: bool) -> bytes:
        block = {"type": "thinking", "thinking": "", "signature": ""} if reasoning else {"type": "text", "text": ""}
        return _event({"type": "content_block_start", "index": self.items - 1, "content_block": block})

    def close(self, reasoning: bool, text: str) -> bytes:  # noqa: ARG002 # a block's end does not repeat its text
        signature = {"type": "signature_delta", "signature": "c2ltdWxhdGVk"}
        signed = _event({"type": "content_block_delta", "index": self.items - 1, "delta": signature})
        stop = _event({"type": "content_block_stop", "index": self.items - 1})
        return signed + stop if reasoning else stop

    def end(self, completion_tokens: int, _reasoning_tokens: int, _durations: Durations, finish: str) -> list[bytes]:
        closed = self._turn(None)
        told = {"stop_reason": self._why(finish, self._stop_reason), "stop_sequence": self._stop_reason}
        delta = _event({"type": "message_delta", "delta": told, "usage": self._usage(completion_tokens)})
        return [*([closed] if closed else []), delta, _event({"type": "message_stop"})]

    def failure(self, message: str) -> list[bytes]:
        return [_event({"type": "error", "error": {"type": "api_error", "message": message}})]

    def whole(self, said: list[Said], _durations: Durations) -> bytes:
        """The body of an answer that is not streamed."""
        one, content = said[0], []
        if one.reasoning:
            content.append({"type": "thinking", "thinking": one.reasoning, "signature": "c2ltdWxhdGVk"})
        if one.content or not content:
            content.append({"type": "text", "text": one.content})
        self._stop_reason = one.stop_reason
        body = self._message(content, self._why(one.finish, one.stop_reason), self._usage(one.tokens))
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    @staticmethod
    def _why(finish: str, stop_reason: str | None) -> str:
        return "max_tokens" if finish == "length" else "stop_sequence" if stop_reason is not None else "end_turn"

    def _usage(self, output: int) -> dict[str, object]:
        return {"input_tokens": self.prompt_tokens, "output_tokens": output, "cache_read_input_tokens": 0}

    def _message(self, content: list[dict[str, str]], reason: str | None, usage: object) -> dict[str, object]:
        return {
            "id": self.ident,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.model,
            "stop_reason": reason,
            "stop_sequence": self._stop_reason,
            "usage": usage,
        }
