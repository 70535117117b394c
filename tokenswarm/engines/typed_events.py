"""What the two APIs with typed events (Responses, Messages) have in common: what stands between their own events.

Both may send types that nobody knows yet, keep-alives, errors in several shapes, and a sentinel of the older APIs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from tokenswarm.engines import NOTHING, Delta, NotAnEvent
from tokenswarm.engines.failure import error_text
from tokenswarm.engines.other_apis import known_by

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_OF_A_TYPED_API = re.compile(r"response\.|message_|content_block_")
_ERROR = re.compile(r"error|exception", re.IGNORECASE)

# What carries the words of other APIs: an object without a type that has one of these is no keep-alive.
_OF_OTHER_APIS = frozenset(
    (
        *("choices", "content", "text", "message", "messages", "candidates", "content_block", "completion"),
        *("generated_text", "token", "tokens", "done", "output", "delta", "response"),
    )
)


def typed_error(value: dict[str, Any]) -> str:
    """The message of an error object; "" where it is none. A `message` beside a type says so only if the type does."""
    kind = value.get("type")
    named = any(key in value for key in ("error", "errors", "detail", "code")) or value.get("object") == "error"
    return "" if isinstance(kind, str) and not named and not _ERROR.search(kind) else error_text(value)


def foreign(data: bytes, kind: str | None, whole: str) -> Delta:
    """Read an event whose type is none of the API: an error, or nothing of the answer. Raises NotAnEvent.

    `whole`: the list that an answer in one piece has.
    """
    value = msgspec.json.decode(data)
    if error := typed_error(value):
        return Delta(error=error)
    if isinstance(value.get(whole), list):
        raise NotAnEvent(f"an event of {len(data)} bytes is a whole answer: the server ignores `stream: true`")
    unknown = kind is not None and not _OF_A_TYPED_API.match(kind) and "choices" not in value
    if unknown or _OF_OTHER_APIS.isdisjoint(value):
        return NOTHING
    raise NotAnEvent(f"an event of {len(data)} bytes is of another API, and no error{known_by(value)}")


Event = TypeVar("Event", bound=msgspec.Struct)


def reshaped(
    data: bytes, reason: Exception, event: type[Event], tidy: Callable[[dict[str, Any]], dict[str, Any] | Delta]
) -> Event | Delta:
    """Read what a strict decoder of `event` could not: no object, or one whose fields are of other types.

    `tidy` leaves out of an object what is of no matter here, or says what it tells. Raises NotAnEvent.
    """
    if (known := _without_object(data)) is not None:
        return known
    try:
        value = msgspec.json.decode(data, type=dict[str, Any])
        if error := typed_error(value):
            return Delta(error=error)
        told = tidy(value)
        return told if isinstance(told, Delta) else msgspec.convert(told, event)
    except MALFORMED:
        raise NotAnEvent(f"an event of {len(data)} bytes is not of this API: {reason}") from None


def _without_object(data: bytes) -> Delta | None:
    """Read an event that is no object, but known: the sentinel, or no data. None where it is anything else."""
    text = data.strip()
    if text == b"[DONE]":
        return Delta(sentinel=True)
    return NOTHING if text in (b"", b"null") else None
