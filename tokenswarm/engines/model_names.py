"""Which model an answer says that it is from, and whether that is the one that was asked for.

OpenAI's events and Ollama's lines each have a `model`; the Messages API has it in `message_start.message`, the
Responses API in the `response` of its first events. Gateways leave it out, or write "": of such an answer nobody knows.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from tokenswarm.engines.failure import clean_line

NAME_CHARS_MAX = 80  # a label, not a text; it comes from a stranger

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOTHING = msgspec.Raw(b"null")
_MOVES = re.compile(r"[:@-](latest|main)$")  # a tag that follows what is newest
_DATED = re.compile(r"[-:@]\d{3,8}(-\d\d){0,2}$")  # -2024-08-06, -0613, -20241022, -001
_FILE = re.compile(r"\.gguf$")
_FIELD = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)+"')
_THEN = ", then "  # between two names of one answer


class _Named(msgspec.Struct, gc=False):
    model: object = None


class _Event(msgspec.Struct, gc=False):
    model: object = None
    message: msgspec.Raw = _NOTHING
    response: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Event).decode
_decode_inner = msgspec.json.Decoder(_Named).decode


def model_of(event: bytes) -> str:
    """Return the name in one event of any dialect, cleaned and cut; "" where it tells none."""
    try:
        told = _decode(event)
        if told.model is not None:
            return _clean(told.model) if isinstance(told.model, str) else ""
        for inner in (told.message, told.response):
            if bytes(inner).startswith(b"{") and isinstance(name := _decode_inner(inner).model, str):
                return _clean(name)
    except _MALFORMED:
        pass  # whether it is an event at all, its dialect says
    return ""


def name_field(event: bytes) -> bytes:
    """The field that names a model, as it stands in an event: where another has it too, it names the same. b"": none"""
    found = _FIELD.search(event)
    return found[0] if found else b""


def then(first: str, other: str) -> str:
    """The name of an answer that began as one model's and went on as another's; `first` where that is the same."""
    return first if is_alias(first, other) or is_alias(other, first) else f"{first}{_THEN}{other}"


def first_of(name: str) -> str:
    """The model with which an answer began; the name itself, but for an answer that changed it."""
    return name.partition(_THEN)[0]


@lru_cache(maxsize=64)  # servers know a handful of them
def _clean(name: str) -> str:
    return clean_line(name)[:NAME_CHARS_MAX]


@lru_cache(maxsize=256)
def same(name: str, other: str) -> bool:
    """Whether two names differ in nothing but case, a tag of the newest, a file's ending, or a path in front."""
    one, two = _plain(name), _plain(other)
    return one == two or one.endswith(f"/{two}") or two.endswith(f"/{one}")


@lru_cache(maxsize=256)
def is_alias(asked: str, told: str) -> bool:
    """Whether `told` is what servers call the model `asked`: the same, or a dated release of it."""
    return same(asked, told) or (same(_DATED.sub("", _plain(told)), asked) and not _DATED.search(_plain(asked)))


def _plain(name: str) -> str:
    return _FILE.sub("", _MOVES.sub("", name.casefold().replace("\\", "/").rstrip("/")))
