"""`engine`: the server's dialect and what each request asks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from tokenswarm.profile.typed_yaml import shown


class Spoken(msgspec.Struct, frozen=True):
    """One API of one kind of server, as a profile names it."""

    kind: str
    api: str
    text: bool = False  # takes a text, not messages
    choices: bool = False  # has `n`
    seed: bool = True


APIS = (
    Spoken("openai", "chat", choices=True),
    Spoken("openai", "completions", text=True, choices=True),
    Spoken("openai", "responses"),
    Spoken("openai", "messages", seed=False),
    Spoken("ollama", "chat"),
    Spoken("ollama", "generate", text=True),
    Spoken("ollama", "responses"),
    Spoken("ollama", "messages", seed=False),
)
"""What a profile may ask for; `engines.dialects.DIALECTS` has a row for each, and how it is spoken."""

KINDS = tuple(dict.fromkeys(row.kind for row in APIS))

if TYPE_CHECKING:
    EngineKind: TypeAlias = str
    Api: TypeAlias = str
else:  # the words of the table; a type checker wants them written out
    EngineKind = Literal[KINDS]
    Api = Literal[tuple(dict.fromkeys(row.api for row in APIS))]

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"auth|token|secret|passw|credential|cookie|api[-_]?key", re.IGNORECASE)
_PATH = re.compile(r"/[!-\"$-~]*")  # no white space, and no fragment
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "upgrade", "x-request-id"})

CHOICES_MAX = 128  # OpenAI's own bound of `n`


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server's dialect and what each request asks for."""

    kind: EngineKind = "openai"
    api: Api = "chat"
    path: str | None = None  # of the API below the base URL, with a query if it needs one; None: the usual one
    model: str | None = None  # None: the only model that the server lists
    headers: dict[str, str] = {}
    headers_from_env: dict[str, str] = {}
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    include_usage: bool = True
    continuous_usage: bool = False
    num_thread: int | None = None  # of Ollama: one less than the cores leaves one to a worker on the same machine
    extra_body: dict[str, object] = {}
    done_ends: bool = False  # [DONE] ends an answer that tells no finish reason: for a server that never does
    probe: bool = True  # one short request before the load, counted apart

    def __post_init__(self) -> None:
        spoken = next((row for row in APIS if (row.kind, row.api) == (self.kind, self.api)), None)
        if spoken is None:
            known = ", ".join(row.api for row in APIS if row.kind == self.kind)
            raise ValueError(f"`engine.api: {self.api}` is not spoken by kind {self.kind}; it has: {known}")
        if not 1 <= self.choices <= CHOICES_MAX or (self.choices > 1 and not spoken.choices):
            several = {row.kind for row in APIS if row.choices}
            kinds = dict.fromkeys(row.kind for row in APIS if row.kind not in several)
            one = ", ".join((*kinds, *(row.api for row in APIS if row.kind in several and not row.choices)))
            raise ValueError(f"`engine.choices` must be between 1 and {CHOICES_MAX}, and 1 for {one}")
        if self.num_thread is not None and (self.kind != "ollama" or self.num_thread < 1):
            raise ValueError("`engine.num_thread` must be 1 or more, and is an option of kind ollama alone")
        if self.seed is not None and not spoken.seed:
            raise ValueError(f"`engine.seed` is not known to `engine.api: {self.api}`; leave it out")
        self._check_ollama_limit()
        self._check_path()
        for name, value in self.headers.items():
            if not value.isascii() or not value.isprintable():
                raise ValueError(f"the value of header `{shown(name)}` may hold printable ASCII only")
        for name, variable in self.headers_from_env.items():
            if not VARIABLE.fullmatch(variable):  # and don't repeat it: it may be the secret itself
                raise ValueError(f"`headers_from_env.{shown(name)}` names a variable; it is not the value itself")
        for name in (*self.headers, *self.headers_from_env):
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
                raise ValueError(f"`{shown(name)}` is no valid header, or one that tokenswarm sets itself")
        for name in self.headers:
            if _SECRET_NAME.search(name):
                raise ValueError(
                    f"header `{shown(name)}` looks like a secret: name a variable under `headers_from_env`"
                )

    @property
    def asked_model(self) -> str:
        """The name that requests bear: that of `extra_body` wins, as it does in the body; "" while none is known."""
        asked = self.extra_body.get("model", self.model)
        return asked if isinstance(asked, str) else ""

    def _check_path(self) -> None:
        path = self.path
        if path is not None and not _PATH.fullmatch(path):
            raise ValueError(f"`engine.path: {shown(path)}` must look like /v3/chat/completions, in printable ASCII")
        if path is not None and _SECRET_NAME.search(path.partition("?")[2]):
            raise ValueError("`engine.path` holds what looks like a secret: name a variable under `headers_from_env`")

    def _check_ollama_limit(self) -> None:
        """Ollama's two paths take a limit of 0 differently: none at all, or one token."""
        options = self.extra_body.get("options")
        for asked in (self.extra_body, options if isinstance(options, dict) else {}):
            for key in ("num_predict", "max_tokens", "max_output_tokens"):
                if self.kind == "ollama" and key in asked and asked[key] in (0, None):
                    raise ValueError(
                        f"`engine.extra_body`: `{key}: {asked[key]}` is no limit to Ollama, or one token, by model; "
                        "leave it out, or ask for a number of tokens"
                    )


def same_api(kind: str, api: str) -> str:
    """The API of this kind that takes what `api` takes: `completions` of OpenAI is `generate` of Ollama."""
    if any((row.kind, row.api) == (kind, api) for row in APIS):
        return api
    texts = {row.api for row in APIS if row.text}
    return next((row.api for row in APIS if row.kind == kind and row.text == (api in texts)), api)
