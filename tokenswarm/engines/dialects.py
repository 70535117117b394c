"""The table of dialects: (kind, api) of a profile to the row that says how to speak it. A new engine is a new row."""

from __future__ import annotations

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

_UNREAD_TYPED = ("sequence_number", "item_id", "obfuscation")
_UNREAD = ("id", "created", "obfuscation")  # of the answer, of the second, of the event
_SSE = ("text/event-stream",)
_LAST_LINE = "its last line (`done: true`)"
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/json")  # proxies rename the first


_MODEL_SIGNS = frozenset({"id", "name", "model", "object", "owned_by"})


def openai_models(body: bytes) -> list[str]:
    """Return the names in a body of /v1/models, in its order. Raises NotAnEvent."""
    return _models(body, ("data", "models"), ("id", "name", "model"))


def ollama_models(body: bytes) -> list[str]:
    """Return the names in a body of /api/tags, in its order, with their tags ("llama3:latest"). Raises NotAnEvent."""
    return _models(body, ("models", "data"), ("name", "model", "id"))


def _models(body: bytes, lists: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """Servers and routers agree on no shape: a list (bare, or under a key), null, names, objects, objects by name.

    llama.cpp sends both lists; the first of `lists` that names a model counts.
    """
    try:
        answer = msgspec.json.decode(body)
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


DIALECTS: dict[tuple[str, str], Dialect] = {
    (row.kind, row.api): row
    for row in (
        Dialect(
            name="openai-chat",
            kind="openai",
            api="chat",
            path="/v1/chat/completions",
            models_path="/v1/models",
            framing="sse",
            content_types=_SSE,
            encode=openai_chat.encode,
            decode=openai_chat.decode,
            unread=_UNREAD,
            models=openai_models,
            knows_ignore_eos=True,
            ends_with_finish=False,
        ),
        Dialect(
            name="openai-completions",
            kind="openai",
            api="completions",
            path="/v1/completions",
            models_path="/v1/models",
            framing="sse",
            content_types=_SSE,
            encode=openai_completions.encode,
            decode=openai_completions.decode,
            unread=_UNREAD,
            models=openai_models,
            knows_ignore_eos=True,
            ends_with_finish=False,
        ),
        Dialect(
            name="openai-responses",
            kind="openai",
            api="responses",
            path="/v1/responses",
            models_path="/v1/models",
            framing="sse",
            content_types=_SSE,
            encode=openai_responses.encode,
            decode=openai_responses.decode,
            unread=_UNREAD_TYPED,
            models=openai_models,
            knows_ignore_eos=True,
            ends_with_finish=True,
            end="`response.completed`",
        ),
        Dialect(
            name="openai-messages",
            kind="openai",
            api="messages",
            path="/v1/messages",
            models_path="/v1/models",
            framing="sse",
            content_types=_SSE,
            encode=anthropic_messages.encode,
            decode=anthropic_messages.decode,
            models=openai_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
            end="`message_stop`",
            headers=anthropic_messages.HEADERS,
        ),
        Dialect(
            name="ollama-chat",
            kind="ollama",
            api="chat",
            path="/api/chat",
            models_path="/api/tags",
            framing="ndjson",
            content_types=_NDJSON,
            encode=ollama_chat.encode,
            decode=ollama_chat.decode,
            unread=("created_at",),
            models=ollama_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
            end=_LAST_LINE,
        ),
        Dialect(
            name="ollama-generate",
            kind="ollama",
            api="generate",
            path="/api/generate",
            models_path="/api/tags",
            framing="ndjson",
            content_types=_NDJSON,
            encode=ollama_generate.encode,
            decode=ollama_generate.decode,
            unread=("created_at",),
            models=ollama_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
            end=_LAST_LINE,
        ),
        Dialect(
            name="ollama-responses",
            kind="ollama",
            api="responses",
            path="/v1/responses",
            models_path="/api/tags",
            framing="sse",
            content_types=_SSE,
            encode=partial(openai_responses.encode, ollama=True),
            decode=openai_responses.decode,
            unread=_UNREAD_TYPED,
            models=ollama_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
            end="`response.completed`",
        ),
        Dialect(
            name="ollama-messages",
            kind="ollama",
            api="messages",
            path="/v1/messages",
            models_path="/api/tags",
            framing="sse",
            content_types=_SSE,
            encode=anthropic_messages.encode,
            decode=anthropic_messages.decode,
            models=ollama_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
            end="`message_stop`",
            headers=anthropic_messages.HEADERS,
        ),
    )
}
