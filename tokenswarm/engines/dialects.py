"""The table of dialects: (kind, api) of a profile to the row that says how to speak it. A new engine is a new row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import msgspec

from tokenswarm.engines import (
    Dialect,
    NotAnEvent,
    anthropic_messages,
    ollama_chat,
    ollama_generate,
    openai_chat,
    openai_completions,
    openai_responses,
)
from tokenswarm.engines.framing import BOM

_UNREAD = ("id", "created", "obfuscation")  # of the answer, of the second, of the event
_SSE = ("text/event-stream",)
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/json")  # proxies rename the first


_MODEL_SIGNS = frozenset({"id", "name", "model", "object", "owned_by"})


def openai_models(body: bytes) -> list[str]:
    """Return the names in a body of /v1/models, in its order. Raises NotAnEvent."""
    return _models(body, ("data", "models"), ("id", "name", "model"))


def ollama_models(body: bytes) -> list[str]:
    """Return the names in a body of /api/tags, in its order, with their tags ("llama3:latest"). Raises NotAnEvent."""
    return _models(body, ("models", "data"), ("name", "model", "id"))


def has_more(body: bytes) -> bool:
    """Whether a body that lists models is the first page of several (Anthropic, Google)."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = msgspec.json.decode(body)
        return isinstance(answer, dict) and bool(answer.get("has_more") or answer.get("nextPageToken"))
    return False


def _models(body: bytes, lists: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """Servers and routers agree on no shape: a list (bare, or under a key), null, names, objects, objects by name.

    llama.cpp sends both lists; the first of `lists` that names a model counts.
    """
    try:
        answer = msgspec.json.decode(body.removeprefix(BOM))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise NotAnEvent(f"a body of {len(body)} bytes is no list of models: {reason}") from None
    if isinstance(answer, dict) and not any(key in answer for key in lists):
        found = [_names([answer], names) if answer.get("object") == "model" else _by_name(answer, names)]
    else:
        found = [_names(answer[key], names) for key in lists if key in answer] if isinstance(answer, dict) else []
        found = [_names(answer, names)] if isinstance(answer, list) else found
    known = [one for one in found if one is not None]
    if not known:
        raise NotAnEvent(f"a body of {len(body)} bytes is no list of models")
    return next((one for one in known if one), [])


def _names(models: object, names: tuple[str, ...]) -> list[str] | None:
    """The names in one list; None where it is none."""
    if models is None:
        return []
    if isinstance(models, dict):
        return [] if not models else _by_name(models, names)
    if not isinstance(models, list):
        return None
    found = [name for model in models if (name := _name(model, names))]
    return list(dict.fromkeys(found)) if found or not models else None


def _name(model: object, names: tuple[str, ...]) -> str:
    if isinstance(model, dict):
        model = next((said for key in names if isinstance(said := model.get(key), str) and said), "")
    return model if isinstance(model, str) else ""


def _by_name(models: dict[str, object], names: tuple[str, ...]) -> list[str] | None:
    """The names of objects that stand under them; None where these are no models (an error, a health page)."""
    if not models or not all(isinstance(one, dict) and _MODEL_SIGNS & one.keys() for one in models.values()):
        return None
    return [_name(one, names[:1]) or name for name, one in models.items()]


_OPENAI = partial(
    Dialect, kind="openai", models_path="/v1/models", models=openai_models, framing="sse", content_types=_SSE
)
_OLLAMA = partial(
    Dialect, kind="ollama", models_path="/api/tags", models=ollama_models, knows_ignore_eos=False, ends_with_finish=True
)
_CHOICES = partial(_OPENAI, knows_ignore_eos=True, ends_with_finish=False, unread=_UNREAD)
_LINES = partial(
    _OLLAMA, framing="ndjson", content_types=_NDJSON, unread=("created_at",), end="its last line (`done: true`)"
)
_EVENTS = partial(_OLLAMA, framing="sse", content_types=_SSE)


def _responses(server: Callable[..., Dialect], name: str, *, ollama: bool) -> Dialect:
    return server(
        name=name,
        api="responses",
        path="/v1/responses",
        encode=partial(openai_responses.encode, ollama=ollama),
        decode=openai_responses.decode,
        unread=("sequence_number", "item_id", "obfuscation"),
        knows_ignore_eos=not ollama,
        ends_with_finish=True,
        end="`response.completed`",
    )


def _messages(server: Callable[..., Dialect], name: str) -> Dialect:
    return server(
        name=name,
        api="messages",
        path="/v1/messages",
        encode=anthropic_messages.encode,
        decode=anthropic_messages.decode,
        knows_ignore_eos=False,
        ends_with_finish=True,
        end="`message_stop`",
        headers=anthropic_messages.HEADERS,
    )


_CHAT = partial(_CHOICES, name="openai-chat", api="chat", path="/v1/chat/completions")
_COMPLETIONS = partial(_CHOICES, name="openai-completions", api="completions", path="/v1/completions")
_NATIVE_CHAT = partial(_LINES, name="ollama-chat", api="chat", path="/api/chat")
_GENERATE = partial(_LINES, name="ollama-generate", api="generate", path="/api/generate")

DIALECTS: dict[tuple[str, str], Dialect] = {
    (row.kind, row.api): row
    for row in (
        _CHAT(encode=openai_chat.encode, decode=openai_chat.decode),
        _COMPLETIONS(encode=openai_completions.encode, decode=openai_completions.decode),
        _responses(_OPENAI, "openai-responses", ollama=False),
        _messages(_OPENAI, "openai-messages"),
        _NATIVE_CHAT(encode=ollama_chat.encode, decode=ollama_chat.decode),
        _GENERATE(encode=ollama_generate.encode, decode=ollama_generate.decode),
        _responses(_EVENTS, "ollama-responses", ollama=True),
        _messages(_EVENTS, "ollama-messages"),
    )
}


def spoken(kind: str, api: str, path: str | None = None, *, done_ends: bool = False) -> Dialect:
    """The row of a kind and an API; with a `path` of its own (a query may follow) its models are listed beside it."""
    row = DIALECTS[kind, api]
    row = msgspec.structs.replace(row, done_ends=True) if done_ends else row
    if path is None:
        return row
    (stem, mark, query), (_, root, below) = path.partition("?"), row.path.partition(f"/{row.path.split('/')[1]}")
    models = row.models_path
    if models.startswith(root) and stem.endswith(below):
        models = stem.removesuffix(below) + models.removeprefix(root) + mark + query
    return msgspec.structs.replace(row, path=path, models_path=models)


def unversioned(row: Dialect) -> str:
    """The path of an API right below a base URL that has a version of its own, as clients of OpenAI's take one."""
    return row.path.removeprefix("/v1") if row.kind == "openai" else ""
