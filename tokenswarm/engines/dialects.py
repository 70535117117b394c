"""The table of dialects: (kind, api) of a profile to the row that says how to speak it. A new engine is a new row."""

from __future__ import annotations

import msgspec

from tokenswarm.engines import (
    Dialect,
    NotAnEvent,
    ollama_chat,
    ollama_generate,
    openai_chat,
    openai_completions,
)

_SSE = ("text/event-stream",)
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/json")  # proxies rename the first


class _Model(msgspec.Struct):
    id: str | None = None  # OpenAI
    name: str | None = None  # Ollama


class _ModelList(msgspec.Struct):
    data: list[_Model] | None = None  # OpenAI
    models: list[_Model] | None = None  # Ollama; llama.cpp sends both


def openai_models(body: bytes) -> list[str]:
    """Return the names in a body of /v1/models, in its order. Raises NotAnEvent."""
    return [model.id for model in _model_list(body).data or [] if model.id]


def ollama_models(body: bytes) -> list[str]:
    """Return the names in a body of /api/tags, in its order, with their tags ("llama3:latest"). Raises NotAnEvent."""
    return [model.name for model in _model_list(body).models or [] if model.name]


def _model_list(body: bytes) -> _ModelList:
    try:
        models = msgspec.json.decode(body, type=_ModelList)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise NotAnEvent(f"a body of {len(body)} bytes is no list of models: {reason}") from None
    if models.data is None and models.models is None:
        raise NotAnEvent(f"a body of {len(body)} bytes is no list of models")
    return models


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
            models=openai_models,
            knows_ignore_eos=True,
            ends_with_finish=False,
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
            models=ollama_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
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
            models=ollama_models,
            knows_ignore_eos=False,
            ends_with_finish=True,
        ),
    )
}
