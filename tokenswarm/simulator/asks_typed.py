"""Request bodies of /v1/responses and /v1/messages -> `Ask`, or an `ApiError` in the shape of OpenAI and Anthropic.

What both APIs know besides messages of text (tools' results, images, stored answers) is refused.
"""

from __future__ import annotations

from tokenswarm.simulator import text
from tokenswarm.simulator.asks import (
    ApiError,
    Ask,
    Body,
    Target,
    check_common,
    check_types,
    checked,
    content_text,
    json_object,
    openai_error,
    stop_texts,
    validation,
    whole_number,
)

_RESPONSES_FIELDS = {
    "model": "str",
    "stream": "bool",
    "instructions": "str",
    "max_output_tokens": "int",
    "seed": "int",
    "ignore_eos": "bool",
    "temperature": "number",
    "top_p": "number",
}
_MESSAGES_FIELDS = {
    "model": "str",
    "stream": "bool",
    "messages": "list",
    "max_tokens": "int",
    "stop_sequences": "list",
    "temperature": "number",
    "top_p": "number",
    "top_k": "int",
    "thinking": "dict",
}
_KINDS = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error"}


def anthropic_error(status: int, message: str, headers: dict[str, str] | None = None) -> ApiError:
    """Anthropic's error object."""
    error = {"type": _KINDS.get(status, "api_error"), "message": message}
    return ApiError(status, {"type": "error", "error": error}, headers)


def parse_responses(api: str, raw: bytes, target: Target) -> Ask:
    """/v1/responses. ApiError 400 or 404 as vLLM words them."""
    body = json_object(raw)
    check_types(body, _RESPONSES_FIELDS, validation)
    check_common(body, target)
    if body.get("previous_response_id") is not None or body.get("background") is True:
        raise openai_error(400, "This engine stores no answers.", param="previous_response_id")
    texts = [str(body["instructions"])] if body.get("instructions") else []
    given = body.get("input")
    items = given if isinstance(given, list) else [{"role": "user", "content": given}]
    if given is None or not items:
        raise validation("input", "missing", "Field required", None)
    texts += [content_text(item) for item in items]
    return checked(_ask(api, body, target, texts, body.get("max_output_tokens"), body.get("stop")))


def parse_messages(api: str, raw: bytes, target: Target) -> Ask:
    """/v1/messages. ApiError 400 or 404 in Anthropic's shape."""
    try:
        body = json_object(raw)
        check_types(body, _MESSAGES_FIELDS, validation)
        check_common(body, target)
        messages = body.get("messages")
        for name in ("max_tokens", "messages"):
            if body.get(name) is None:
                raise openai_error(400, f"{name}: Field required")
        if not isinstance(messages, list) or not messages:
            raise openai_error(400, "messages: at least one message is required")
        if any(isinstance(one, dict) and one.get("role") not in ("user", "assistant") for one in messages):
            raise openai_error(400, "messages: Unexpected role. System messages stand in a top-level `system`")
        system = [content_text({"role": "system", "content": body["system"]})] if body.get("system") else []
        texts = system + [content_text(one) for one in messages]
        return checked(_ask(api, body, target, texts, body["max_tokens"], body.get("stop_sequences")))
    except ApiError as error:
        told = error.body["error"]["message"] if isinstance(error.body, dict) else ""
        raise anthropic_error(error.status, told) from None


def _ask(api: str, body: Body, target: Target, texts: list[str], length: object, stops: object) -> Ask:
    thinking = body.get("thinking")
    return Ask(
        api=api,
        model=target.model,
        stream=body.get("stream") is True,
        prompts=((chr(30).join(texts).encode("utf-8", "surrogatepass"), text.chat_tokens(texts)),),
        max_tokens=length if isinstance(length, int) else None,
        ignore_eos=body.get("ignore_eos") is True,
        stops=stop_texts(stops),
        seed=whole_number(body, "seed", 0),
        think=not isinstance(thinking, dict) or thinking.get("type") != "disabled",
        context=target.max_model_len,
    )
