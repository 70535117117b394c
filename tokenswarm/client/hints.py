"""A refusal in the server's words, and the user's next step: which key of the profile it is about."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from tokenswarm.profile.profile import Profile

_MENDS = {
    "ignore_eos": "--set dataset.ignore_eos=false",
    "continuous_usage_stats": "--set engine.continuous_usage=false",
    "include_usage": "--set engine.include_usage=false",
    "stream_options": "--set engine.include_usage=false",
    "max_tokens": "--set 'dataset.output_tokens={from_dataset: false}'",
    "temperature": "--set engine.temperature=",
    "top_p": "--set engine.top_p=",
    "seed": "--set engine.seed=",
    "stop": "--set engine.stop=[]",
    "n": "--set engine.choices=1",
}
"""A field of the request's body -> the option that leaves it out."""

_ALSO = {"max_output_tokens": "max_tokens", "stop_sequences": "stop"}  # the same under another API's name

_NOT_OPTIONAL = frozenset({"model", "messages", "prompt", "input", "system", "stream", "options"})
_ALWAYS_SENT = frozenset({"ollama", "messages"})  # kinds and APIs that get a limit whether or not a length is known
_LIMITS = frozenset({"max_tokens", "max_output_tokens", "num_predict"})


def parameter_hint(sentence: str, body: bytes, profile: Profile) -> str:
    """Which of the fields that were sent the server complains of, and how to leave it out; "" where none was optional.

    `body` is the request's JSON. A field counts as named where its name stands alone in the sentence.
    """
    sent = _fields(msgspec.json.decode(body))
    bounded = not _ALWAYS_SENT.isdisjoint((profile.engine.kind, profile.engine.api))
    optional = [name for name in sent if name not in _NOT_OPTIONAL and not (bounded and name in _LIMITS)]
    limit = next((name for name in sent if name in _LIMITS and _names(sentence, name)), "") if bounded else ""
    if limit and limit not in profile.engine.extra_body:
        return f"; `{limit}` is always sent there; ask for less with --set dataset.output_tokens.max="
    named = [name for name in optional if _names(sentence, name)]
    for name in named:
        if name in profile.engine.extra_body:
            return f"; `{name}` stands under `engine.extra_body`: take it out there"
        if mend := _MENDS.get(_ALSO.get(name, name)):
            return f"; leave `{name}` out with {mend}"
    if not optional:
        return ""
    first = _MENDS.get(_ALSO.get(optional[0], optional[0]), "leave it out")
    return f"; if it does not know one of {', '.join(optional)}: {first}"


def key_hint(profile: Profile, headers: Mapping[str, str], openai_key: bool) -> str:
    """What to do about a 401 or 403: `headers` are the secret ones with their values, which are never repeated."""
    if not headers:
        hint = "the server wants a key; name its variable under `engine.headers_from_env`"
        if profile.engine.api == "messages":
            return f"{hint} (Anthropic's header is x-api-key)"
        if openai_key:
            hint += (
                ': OPENAI_API_KEY is set but is not used by itself; export OPENAI_AUTH="Bearer $OPENAI_API_KEY" and '
                "give --set engine.headers_from_env={Authorization: OPENAI_AUTH}"
            )
        return hint
    names = {name.lower(): variable for name, variable in profile.engine.headers_from_env.items()}
    for name, value in headers.items():
        if name.lower() == "authorization" and " " not in value.strip():
            variable = names[name.lower()]
            return f"the key in {variable} was refused; the variable must hold `Bearer …`, the word Bearer included"
    return f"the key in {', '.join(names.values())} was refused: is it the right one for this server?"


def _fields(body: object) -> list[str]:
    """Names of the body's fields, those of nested options first: they say more."""
    if not isinstance(body, dict):
        return []
    inner = [name for key in ("options", "stream_options") for name in _fields(body.get(key))]
    return [*inner, *body]


def _names(sentence: str, name: str) -> bool:
    quoted = len(name) < 3  # `n` is a word of its own in no sentence
    pattern = rf"[\"'`.]{name}(?:[\"'`]|\b)" if quoted else rf"(?<![\w-]){re.escape(name)}(?![\w-])"
    return re.search(pattern, sentence) is not None
