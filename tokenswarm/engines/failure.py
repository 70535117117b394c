"""What a server says when it refuses, as one clean short line: never a control character, never more than 200 long.

Shapes seen in vLLM, llama.cpp, transformers, Ollama, FastAPI, Dynamo, gateways: {"error": {"message"}},
{"error": "text"}, the text being JSON again, {"object": "error", "message"}, {"message", "code" or "type"},
{"detail": "text" | [{"loc", "msg"}]}, {"errors": [...]}, {"text", "error_code"} (FastChat); of gateways abroad:
[{"error"}] (Google), {"error_code", "error_msg"} (Baidu), {"base_resp": {"status_code", "status_msg"}} (MiniMax),
{"success": false, "message"}.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

SECRET_CHARS_MIN = 6  # shorter ones would hide half of every sentence
MESSAGE_CHARS_MAX = 200  # record.py promises it: an error is a label and a log line, not a document

_SCAN_CHARS_MAX = 4096  # cleaning looks at this much; a proxy's error page may be megabytes
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]"
)
_HTML_UNSEEN = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|$)|<!--.*?(?:-->|$)", re.IGNORECASE | re.DOTALL)
_HTML_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_HTML_TAG = re.compile(r"<[^>]*>")
# Pydantic's reports (vLLM, FastAPI) repeat the offending input, which is the prompt: records hold no prompt text.
_ECHO = re.compile(r"""[,\s]*(?:['"]input['"]|input_value)\s*[:=].*""", re.DOTALL)

_DEPTH_MAX = 3  # errors within errors
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def clean_line(text: str) -> str:
    """Return text as one printable line of at most 200 characters: no controls, ANSI escapes or bidi marks."""
    text = _ANSI.sub("", text[:_SCAN_CHARS_MAX])
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MESSAGE_CHARS_MAX else line[: MESSAGE_CHARS_MAX - 1] + "…"


def secret_words(headers: Mapping[str, str]) -> tuple[str, ...]:
    """What no output may show of these headers' values: each whole, and what stands behind its scheme (Bearer …)."""
    words = {word for value in headers.values() for word in (value, value.partition(" ")[2])}
    return tuple(sorted((word for word in words if len(word) >= SECRET_CHARS_MIN), key=len, reverse=True))


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return text with each of the secrets replaced: servers repeat a wrong key in what they say about it.

    The beginning of one at the end of a text that was cut (…) counts, too.
    """
    for secret in secrets:
        text = text.replace(secret, "[hidden]")
        if text.endswith("…"):
            said = text[:-1]
            for length in range(min(len(secret), len(said)), SECRET_CHARS_MIN - 1, -1):
                if said.endswith(secret[:length]):
                    text = f"{said[:-length]}[hidden]…"
                    break
    return text


def hide_in(value: Any, secrets: Iterable[str]) -> Any:
    """A copy of something JSON-like that a server told, with the secrets hidden in each text, cut or whole."""
    words = tuple(secrets)
    if isinstance(value, Mapping):
        return {hide_in(key, words): hide_in(inner, words) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(inner, words) for inner in value]
    return hide(f"{value}…", words).removesuffix("…") if isinstance(value, str) else value


# A `message` alone may be anything; beside one of these it says what went wrong (Dynamo, Azure, API gateways).
_BESIDE_MESSAGE = ("code", "type", "object", "status", "statusCode", "status_code", "error_code")
_MESSAGES = ("message", "msg", "error_msg", "status_msg")


def blank(error: object) -> bool:
    """Whether what stands under `error` tells of none: some servers write each field into each event."""
    return not any(error.values()) if isinstance(error, dict) else not error


def error_text(body: object) -> str:
    """Return the message of a decoded error object, or "" where `body` has none of the known shapes."""
    body = body[0] if isinstance(body, list) and body else body
    if not isinstance(body, dict):
        return ""
    for key in ("error", "errors", "detail"):
        if (error := body.get(key)) is not None and error is not False and error != []:
            return error_line(error)
    if any(body.get(key) for key in _BESIDE_MESSAGE) or body.get("success") is False:
        for key in _MESSAGES:
            if isinstance(body.get(key), str):
                return error_line(body[key])
    if body.get("error_code") and isinstance(body.get("text"), str):
        return error_line(body["text"])
    inner = body.get("base_resp")
    return error_text(inner) if isinstance(inner, dict) else ""


def error_line(error: object) -> str:
    """Return the value under `error` (or `detail`) as one clean line; "" only where there is none (null or false)."""
    if error is None or error is False:
        return ""
    said = _said(error)
    return clean_line(_ECHO.sub("", said[:_SCAN_CHARS_MAX])) or "an error object without a message"


def _said(error: object, depth: int = 0) -> str:
    if isinstance(error, str):
        if depth < _DEPTH_MAX and error.lstrip()[:1] == "{":  # Ollama hands on llama-server's object as a text
            with contextlib.suppress(*_MALFORMED):
                return _said(msgspec.json.decode(error), depth + 1) or error
        return error
    if isinstance(error, dict):
        for key in ("message", "msg", "detail", "error", "type", "code"):
            value = error.get(key)
            if isinstance(value, dict) and value and depth < _DEPTH_MAX and (said := _said(value, depth + 1)):
                return said
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                where = error.get("loc")
                said = _said(value, depth) if isinstance(value, str) else str(value)
                return said + (f" at {'.'.join(map(str, where))}" if isinstance(where, list) else "")
        return ""
    if isinstance(error, list):
        return "; ".join(filter(None, (_said(item) for item in error[:3] if isinstance(item, dict | str))))
    return str(error)


def error_message(body: bytes, content_type: str) -> str:
    """Return what the body of a non-2xx answer says, as one clean line of at most 200 characters; "" if it is empty."""
    try:
        if said := error_text(msgspec.json.decode(body)):
            return said
    except _MALFORMED:
        pass  # an HTML page, plain text, or JSON that was cut: the text itself is the message
    text = body[: 4 * _SCAN_CHARS_MAX].decode("utf-8", "replace")
    if "html" in content_type.lower() or text.lstrip()[:1] == "<":
        text = _HTML_UNSEEN.sub(" ", text)
        title = _HTML_TITLE.search(text)
        text = (title.group(1) if title else "") or _HTML_TAG.sub(" ", text)
    return clean_line(_ECHO.sub("", text))
