"""Events that are whole, but of another shape than the dialect's: brought into it, or left for it to refuse.

A strict decoder reads each event first; only what it can't take comes here, so the usual stream pays nothing.
Seen: content and reasoning as a list of parts (Mistral and its gateways, LiteLLM), tool arguments as an object
(llama.cpp), usage, timings or metrics that are no object.
"""

from __future__ import annotations

from typing import Any

import msgspec

_INFORMS = ("usage", "timings", "metrics")  # a wrong one fails no answer
_TEXTS = ("content", "reasoning", "reasoning_content", "thinking", "refusal", "text", "response")
_THOUGHTS = ("thinking", "reasoning", "thought", "reasoning_content", "summary")
_PARTS_DEPTH_MAX = 4


def tidy(event: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a decoded event in the shape that the OpenAI and Ollama dialects read."""
    event = {key: value for key, value in event.items() if key not in _INFORMS or isinstance(value, dict)}
    if isinstance(event.get("choices"), list):
        event["choices"] = [_choice(one) if isinstance(one, dict) else one for one in event["choices"]]
    if isinstance(event.get("message"), dict):
        event["message"] = _piece(_filled(event["message"]), "thinking")
    return _piece(event, "thinking")


def reasoning_of(details: object) -> str:
    """Return the text of `reasoning_details` (OpenRouter's form), or of parts that are all thoughts."""
    answer, thoughts = _parts(details, thought=True)
    return answer + thoughts


def words_elsewhere(delta: dict[str, Any]) -> tuple[str, str, bool]:
    """(answer, thoughts, is it a tool's?) that stand under names which few servers use, in a delta without others.

    Thoughts: OpenRouter and MiniMax, gateways to Anthropic, Copilot. Answers: functions before there were tools, tools
    of free form, speech.
    """
    thoughts = ""
    for name in ("reasoning_details", "thinking", "reasoning_text"):
        said = delta.get(name)
        thoughts = thoughts or (said if isinstance(said, str) else reasoning_of(said))
    function, audio, calls = delta.get("function_call"), delta.get("audio"), delta.get("tool_calls")
    calls = calls if isinstance(calls, list) else []
    tools = [function, *(call.get("custom") for call in calls if isinstance(call, dict))]
    written = [(tool.get("arguments") or tool.get("input")) for tool in tools if isinstance(tool, dict)]
    spoken = audio.get("transcript") if isinstance(audio, dict) else ""
    return "".join(map(_text, [*written, spoken])), thoughts, isinstance(function, dict)


def _filled(piece: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty: PHP writes [] for {}, and others "" for anything that they have not."""
    return {key: value for key, value in piece.items() if value not in ("", [], {})}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    choice = _piece(_filled(choice), "reasoning")
    if not isinstance(choice.get("usage", {}), dict):
        del choice["usage"]
    if isinstance(choice.get("delta"), dict):
        choice["delta"] = _piece(_filled(choice["delta"]), "reasoning")
    return choice


def _piece(piece: dict[str, Any], thoughts_key: str) -> dict[str, Any]:
    """Bring lists of parts into texts: thoughts among content go under `thoughts_key`."""
    piece = dict(piece)
    for key in _TEXTS:
        value = piece.get(key)
        if _is_parts(value):
            piece[key], thoughts = _parts(value, thought=key in _THOUGHTS)
            if key in _THOUGHTS:
                piece[key] += thoughts
            elif thoughts:
                piece[thoughts_key] = _text(piece.get(thoughts_key)) + thoughts
    if isinstance(piece.get("tool_calls"), list):
        piece["tool_calls"] = [_call(call) if isinstance(call, dict) else call for call in piece["tool_calls"]]
    return piece


def _is_parts(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), dict | list):
        function = {**function, "arguments": msgspec.json.encode(function["arguments"]).decode() or ""}
    return {**call, "function": function}


def _parts(value: object, thought: bool, depth: int = 0) -> tuple[str, str]:
    """(answer, thoughts) of parts; each has a type, and its text under `text` or under the type's own name."""
    answer = thoughts = ""
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict):
            continue
        kind = str(part.get("type", ""))
        thinks = thought or any(word in kind for word in ("thinking", "reasoning", "thought", "summary"))
        for inner in [part.get(key) for key in ("text", kind, "thinking", "summary", "content") if part.get(key)][:1]:
            if isinstance(inner, str):
                said = ("", inner) if thinks else (inner, "")
            else:
                said = _parts(inner, thinks, depth + 1) if depth < _PARTS_DEPTH_MAX else ("", "")
            answer += said[0]
            thoughts += said[1]
    return answer, thoughts


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
