"""Request bodies: merge what the user adds, and write JSON that every strict server reads.

A data set may hold lone surrogates (JSON can spell them, UTF-8 cannot): pairs are joined, lone ones become U+FFFD.
An escape `\\ud800` would be grammatical JSON, but nlohmann, serde and Go refuse or alter it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_encode = msgspec.json.Encoder().encode


def to_json(body: Mapping[str, object], extra: Mapping[str, object]) -> bytes:
    """Return `body` with `extra` merged into it, as JSON in UTF-8. None values of `body` are left out.

    `extra` wins; where both hold an object (`options`, `stream_options`) these are merged one level deep, so that one
    more option does not drop the rest.
    """
    merged: dict[str, object] = {key: value for key, value in body.items() if value is not None}
    for key, value in extra.items():
        ours = merged.get(key)
        merged[key] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    try:
        return _encode(merged)
    except UnicodeEncodeError:
        return _encode(_mend(merged))


def _mend(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {_mend(key): _mend(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mend(item) for item in value]
    return value
