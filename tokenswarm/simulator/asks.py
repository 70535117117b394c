"""Request bodies -> `Ask`, or an `ApiError` in the words and the shape of vLLM and Ollama. asks_typed has more.

What the engine can't honour and a client would miss (logprobs, forced tools, JSON output, echo) is refused with a 400,
not ignored. Sampling parameters have no meaning for seeded text; they are checked for their type and otherwise
accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from tokenswarm.simulator import text

Body = dict[str, object]

CHATS = frozenset(("chat", "ollama_chat", "responses", "messages"))
"""The APIs whose prompt is messages."""


class ApiError(Exception):
    """An answer other than 200: its status, its JSON body, further headers."""

    def __init__(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, understood. `prompts`: (seed material, tokens) each; there are len(prompts) · n choices."""

    api: str
    model: str
    stream: bool
    prompts: tuple[tuple[bytes, int], ...]
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    stops: tuple[str, ...] = ()
    seed: int = 0
    think: bool = True
    context: int = 0
    load_only: str | None = None  # Ollama: an empty prompt loads or unloads the model

    @property
    def prompt_tokens(self) -> int:
        return sum(tokens for _, tokens in self.prompts)


@dataclass(frozen=True, slots=True)
class Target:
    """What asks are checked against."""

    model: str
    max_model_len: int


def openai_error(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> ApiError:
    """vLLM's error object."""
    return ApiError(status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


def ollama_error(status: int, message: str) -> ApiError:
    """Ollama's: the error is a string."""
    return ApiError(status, {"error": message})


def validation(name: str, kind: str, message: str, value: object) -> ApiError:
    detail = f"  {{'type': '{kind}', 'loc': 'body.{name}', 'msg': '{message}', 'input': {value!r}}}"
    return openai_error(400, f"1 validation error:\n{detail}", "Bad Request", f"body.{name}")


_TYPES: dict[str, tuple[tuple[type, ...], str, str]] = {
    "number": ((int, float), "float_parsing", "Input should be a valid number, unable to parse string as a number"),
    "int": ((int,), "int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
    "bool": ((bool,), "bool_parsing", "Input should be a valid boolean, unable to interpret input"),
    "str": ((str,), "string_type", "Input should be a valid string"),
    "list": ((list,), "list_type", "Input should be a valid list"),
    "dict": ((dict,), "dict_type", "Input should be a valid dictionary"),
}

_OPENAI_FIELDS = {
    "model": "str",
    "stream": "bool",
    "stream_options": "dict",
    "max_tokens": "int",
    "max_completion_tokens": "int",
    "min_tokens": "int",
    "n": "int",
    "seed": "int",
    "ignore_eos": "bool",
    "temperature": "number",
    "top_p": "number",
    "top_k": "int",
    "presence_penalty": "number",
    "frequency_penalty": "number",
    "messages": "list",
}
_OLLAMA_FIELDS = {
    "model": "str",
    "stream": "bool",
    "options": "dict",
    "messages": "list",
    "prompt": "str",
    "system": "str",
}
_OLLAMA_OPTIONS = {"num_predict": "int", "num_ctx": "int", "seed": "int", "temperature": "number"}

# Fields that change what an answer holds, and the values under which they don't.
UNSUPPORTED: dict[str, Callable[[object], bool]] = {
    "logprobs": lambda value: value is not False,
    "prompt_logprobs": lambda _: True,
    "echo": bool,
    "suffix": bool,
    "return_token_ids": bool,
    "use_beam_search": bool,
    "response_format": lambda value: not (isinstance(value, dict) and value.get("type") == "text"),
    "structured_outputs": bool,
    "tool_choice": lambda value: value not in ("auto", "none", {"type": "auto"}, {"type": "none"}),  # Messages: objects
}


def check_types(body: Body, fields: dict[str, str], fail: Callable[[str, str, str, object], ApiError]) -> None:
    for name, wanted in fields.items():
        value = body.get(name)
        if value is None:
            continue
        types, kind, message = _TYPES[wanted]
        if not isinstance(value, types) or (wanted in ("int", "number") and isinstance(value, bool)):
            raise fail(name, kind, message, value)


def whole_number(body: Body, name: str, default: int) -> int:
    value = body.get(name)
    return value if isinstance(value, int) else default


def parse_openai(api: str, raw: bytes, target: Target) -> Ask:
    """`api`: chat or completions. ApiError 400 or 404 as vLLM words them."""
    body = json_object(raw)
    check_types(body, _OPENAI_FIELDS, validation)
    check_common(body, target)
    options = body.get("stream_options")
    stream = body.get("stream") is True
    if isinstance(options, dict) and not stream:
        message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise openai_error(400, message, param="stream_options")
    usage = options if isinstance(options, dict) else {}
    asked = body.get("max_completion_tokens") if api == "chat" else None
    asked = body.get("max_tokens") if asked is None else asked
    return checked(
        Ask(
            api=api,
            model=target.model,
            stream=stream,
            prompts=_chat_prompt(body) if api == "chat" else _completion_prompts(body),
            n=whole_number(body, "n", 1),
            max_tokens=asked if isinstance(asked, int) else None,
            min_tokens=whole_number(body, "min_tokens", 0),
            ignore_eos=body.get("ignore_eos") is True,
            include_usage=usage.get("include_usage") is True,
            continuous_usage=usage.get("continuous_usage_stats") is True and usage.get("include_usage") is True,
            stops=stop_texts(body.get("stop")),
            seed=whole_number(body, "seed", 0),
            context=target.max_model_len,
        )
    )


def check_common(body: Body, target: Target) -> None:
    """Raise ApiError: 404 where another model is asked for, 400 for what this one has not and a client would miss."""
    model = str(body.get("model") or target.model)
    if model not in (target.model, f"{target.model}:latest"):  # the latter as Ollama lists it
        message = f"The model `{model}` does not exist. Valid aliases: {target.model}."
        raise openai_error(404, message, "NotFoundError", "model")
    for name, is_set in UNSUPPORTED.items():
        if body.get(name) is not None and is_set(body[name]):
            raise openai_error(400, f"`{name}` is not supported by this engine. (parameter={name})", param=name)


def checked(ask: Ask) -> Ask:
    if ask.n < 1 or ask.n > 128:
        raise openai_error(400, f"n must be at least 1 and at most 128, got {ask.n}.", param="n")
    if ask.max_tokens is not None:
        if ask.max_tokens < 1:
            message = (
                f"max_tokens must be at least 1, got {ask.max_tokens}. (parameter=max_tokens, value={ask.max_tokens})"
            )
            raise openai_error(400, message, param="max_tokens")
        if ask.max_tokens > ask.context:
            message = (
                f"max_tokens={ask.max_tokens} cannot be greater than max_model_len={ask.context}. Please request "
                f"fewer output tokens. (parameter=max_tokens, value={ask.max_tokens})"
            )
            raise openai_error(400, message, param="max_tokens")
        if ask.min_tokens > ask.max_tokens:
            message = f"min_tokens must be less than or equal to max_tokens={ask.max_tokens}, got {ask.min_tokens}."
            raise openai_error(400, message, param="min_tokens")
    for _, tokens in ask.prompts:
        wanted = max(ask.max_tokens or 1, ask.min_tokens)
        if tokens + wanted > ask.context:
            message = (
                f"This model's maximum context length is {ask.context} tokens. However, you requested {wanted} output "
                f"tokens and your prompt contains at least {tokens} input tokens, for a total of at least "
                f"{tokens + wanted} tokens. Please reduce the length of the input prompt or the number of requested "
                "output tokens. "
                f"(parameter=input_tokens, value={tokens})"
            )
            raise openai_error(400, message, param="input_tokens")
    return ask


def json_object(raw: bytes) -> Body:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        why = getattr(error, "msg", "neither UTF-8 nor reasonably nested")
        detail = (
            f"  {{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', "
            f"'input': '<dict of 0 items>', 'ctx': {{'error': '{why}'}}}}"
        )
        raise openai_error(400, f"1 validation error:\n{detail}", "Bad Request", f"body.{at}") from None
    if not isinstance(body, dict):
        message = (
            "1 validation error:\n  {'type': 'dict_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary'}"
        )
        raise openai_error(400, message, "Bad Request", "body")
    return body


def stop_texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(stop, str) for stop in listed):
        raise validation("stop", "string_type", "Input should be a valid string", value)
    if "" in listed:
        raise openai_error(400, "stop cannot contain an empty string. (parameter=stop)", param="stop")
    return tuple(listed)


def content_text(message: object) -> str:
    """The text of a message; parts of other kinds are refused, as by a model that only reads text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise validation("messages", "missing", "Each message needs a `role`", message)
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content if isinstance(content, list) else [None]:
        said = part.get("text") if isinstance(part, dict) else None
        if not isinstance(said, str):
            raise openai_error(400, "At most 0 image(s) may be provided in one prompt: the model reads text only.")
        texts.append(said)
    return "".join(texts)


def _chat_prompt(body: Body) -> tuple[tuple[bytes, int], ...]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise validation("messages", "missing", "Field required", None)
    if not messages:
        raise openai_error(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
    texts = [content_text(message) for message in messages]
    return ((chr(30).join(texts).encode("utf-8", "surrogatepass"), text.chat_tokens(texts)),)


def _completion_prompts(body: Body) -> tuple[tuple[bytes, int], ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        prompt = [prompt]
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or prompts == [None]:
        raise openai_error(400, "Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    known: list[tuple[bytes, int]] = []
    for one in prompts:
        if isinstance(one, str):
            known.append((one.encode("utf-8", "surrogatepass"), text.tokens_of(one)))
        elif isinstance(one, list) and one and all(isinstance(token, int) for token in one):
            known.append((repr(one).encode(), len(one)))
        else:
            raise validation("prompt", "string_type", "Input should be a valid string", one)
    return tuple(known)


def parse_ollama(api: str, raw: bytes, target: Target) -> Ask:
    """`api`: ollama_chat or ollama_generate. ApiError 400 or 404 with Ollama's string errors."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ollama_error(400, str(error)) from None
    if not isinstance(body, dict):
        raise ollama_error(400, "json: cannot unmarshal into Go value of type api.ChatRequest")
    check_types(body, _OLLAMA_FIELDS, _go_mismatch)
    options = body.get("options") or {}
    check_types(options, _OLLAMA_OPTIONS, _go_mismatch)
    model = body.get("model") or ""
    if model.removesuffix(":latest") != target.model.removesuffix(":latest"):
        raise ollama_error(404, f"model '{model}' not found") if model else ollama_error(400, "model is required")
    if body.get("format") not in (None, ""):
        raise ollama_error(400, "`format` is not supported by this engine")
    context = min(target.max_model_len, whole_number(options, "num_ctx", target.max_model_len) or target.max_model_len)
    key, tokens, empty = _ollama_prompt(api, body)
    if tokens >= context:
        if body.get("truncate") is False:
            raise ollama_error(400, "the input length exceeds the context length")
        tokens = context - 1  # Ollama truncates a long prompt without a word
    predict = whole_number(options, "num_predict", -1)
    room = context - tokens
    try:
        stops = stop_texts(options.get("stop"))
    except ApiError:
        raise ollama_error(400, 'option "stop" must be of type array') from None
    return Ask(
        api=api,
        model=model,
        stream=body.get("stream") is not False,
        prompts=((key, tokens),),
        max_tokens=min(predict, room) if predict > 0 else None,
        ignore_eos=predict == -2,  # -2: fill the context
        stops=stops,
        seed=whole_number(options, "seed", 0),
        think=body.get("think") is not False,
        context=context,
        load_only=("unload" if body.get("keep_alive") in (0, "0") else "load") if empty else None,
    )


def _go_mismatch(name: str, kind: str, message: str, value: object) -> ApiError:
    return ollama_error(
        400, f"json: cannot unmarshal {type(value).__name__} into Go struct field {name}: {message} ({kind})"
    )


def _ollama_prompt(api: str, body: Body) -> tuple[bytes, int, bool]:
    if api == "ollama_chat":
        messages = body.get("messages") or []
        assert isinstance(messages, list)  # checked with the types
        try:
            texts = [content_text(message) for message in messages]
        except ApiError:
            raise ollama_error(400, "invalid message: `role` and a string as `content` are needed") from None
        return chr(30).join(texts).encode("utf-8", "surrogatepass"), text.chat_tokens(texts), not messages
    prompt, system = str(body.get("prompt") or ""), str(body.get("system") or "")
    texts = [system, prompt] if system else [prompt]
    raw_mode = body.get("raw") is True
    tokens = text.tokens_of(prompt) if raw_mode else text.chat_tokens(texts)
    return chr(30).join(texts).encode("utf-8", "surrogatepass"), tokens, not prompt


@dataclass(slots=True)
class Output:
    """What one choice will say: its length, its end, and its pieces (a list where a stop string cuts them)."""

    tokens: int
    finish: str
    stop_reason: str | None
    pieces: text.Pieces
    cut: list[str] | None = None


def outputs(ask: Ask, server_seed: int) -> list[Output]:
    """The answers, one a choice: fixed by the seeds and the prompt.

    Length: max_tokens if given ("length"); else the rest of the context under ignore_eos ("length"); else a natural one
    ("stop"), at least min_tokens. A stop string may end each earlier ("stop").
    """
    planned: list[Output] = []
    for place in range(len(ask.prompts) * ask.n):
        key, prompt_tokens = ask.prompts[place // ask.n]
        room = ask.context - prompt_tokens
        if ask.max_tokens is not None:
            tokens, finish = min(ask.max_tokens, room), "length"
        elif ask.ignore_eos:
            tokens, finish = room, "length"
        else:
            natural = max(ask.min_tokens, text.natural_length(server_seed, ask.seed, key, place))
            tokens, finish = (natural, "stop") if natural <= room else (room, "length")
        output = Output(tokens, finish, None, text.Pieces(server_seed, ask.seed, key, place))
        if ask.stops:
            indices = [output.pieces.next_index() for _ in range(tokens)]
            output.cut, output.stop_reason = text.cut_at_stop(indices, ask.stops, ask.min_tokens)
            if output.stop_reason is not None:
                output.tokens, output.finish = len(output.cut), "stop"
        planned.append(output)
    return planned
