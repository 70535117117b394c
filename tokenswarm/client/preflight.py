"""Before any load: can the target be reached, does it speak the dialect, does it have the model?"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenswarm.client.page import Page, request
from tokenswarm.client.response import TransportError
from tokenswarm.client.scheme import mistaken
from tokenswarm.client.transport import Target, make_target
from tokenswarm.engines import Dialect, NotAnEvent
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.failure import error_message
from tokenswarm.errors import ConfigError, TargetError
from tokenswarm.profile.environment import secret_headers
from tokenswarm.profile.profile import Profile
from tokenswarm.record import Outcome

ANSWER_S = 4.0  # for each look at the target; a server that lists no models in this time is not ready


class Findings(msgspec.Struct, frozen=True):
    """What the preflight learned; goes into the manifest."""

    model: str
    models: list[str]
    version: dict[str, str]  # what /version and /api/version say
    notes: list[str]


def get(target: Target, path: str, headers: dict[str, str]) -> Page:
    """GET a small document. Raises TransportError."""
    return request(target, "GET", path, {"accept": "application/json", **headers}, timeout_s=ANSWER_S)


def check(profile: Profile) -> Findings:
    """Look at every target; they must agree. Raises TargetError, ConfigError (TLS files, missing variables)."""
    headers = {**profile.engine.headers, **secret_headers(profile)}
    dialect = DIALECTS[profile.engine.kind, profile.engine.api]
    findings = [_check_target(profile, url, dialect, headers) for url in profile.target]
    if len({f.model for f in findings}) > 1:
        raise TargetError(f"the targets serve different models: {', '.join(f.model for f in findings)}; name one")
    return findings[0]


def make_checked_target(profile: Profile, url: str) -> Target:
    """`make_target`, with a sentence for an unusable CA file."""
    try:
        return make_target(url, profile.tls)
    except OSError as error:
        raise ConfigError(f"tls.ca_file {profile.tls.ca_file}: can't be used: {error.strerror or error}") from None


def _check_target(profile: Profile, url: str, dialect: Dialect, headers: dict[str, str]) -> Findings:
    target = make_checked_target(profile, url)
    try:
        page = get(target, dialect.models_path, headers)
    except TransportError as error:
        said = mistaken(target, error)
        if not said:
            asked = "" if error.outcome is Outcome.TLS else "; is the server running there?"
            said = f"{error.sentence}{asked}"
        raise TargetError(f"{url}: {said}") from None
    if page.status == 400 and target.tls is None and (said := mistaken(target)):
        raise TargetError(f"{url}: {said}")
    notes: list[str] = []
    models = _models(url, dialect, page, notes)
    model = _choose(url, profile.engine.model, models)
    return Findings(model=model, models=models[:100], version=_version(target, headers), notes=notes)


def _models(url: str, dialect: Dialect, page: Page, notes: list[str]) -> list[str]:
    path, status = dialect.models_path, page.status
    if status in (401, 403):
        raise TargetError(
            f"{url}{path}: HTTP {status}, the server wants a key; name its variable under `engine.headers_from_env`"
        )
    if status == 200:
        try:
            return dialect.models(page.body)
        except NotAnEvent:
            kind = page.content_type.split(";")[0] or "no content type"
            raise TargetError(f"{url}{path}: answers, but not with a list of models ({kind}); wrong host?") from None
    if 300 <= status < 400:
        raise TargetError(f"{url}{path}: HTTP {status}, a redirect; give the final address as target")
    notes.append(f"{path} answered HTTP {status}, so the model's name could not be checked")
    if status == 404 and error_message(page.body, page.content_type) == "":
        notes.append(f"{path} is unknown there; is this a {dialect.kind} server?")
    return []


def _choose(url: str, wanted: str | None, models: list[str]) -> str:
    shown = ", ".join(models[:20]) + (", …" if len(models) > 20 else "")
    if wanted is None:
        if len(models) == 1:
            return models[0]
        what = f"it has {shown}" if models else "it lists none"
        raise TargetError(f"{url}: which model? Give `engine.model` (or --model); {what}")
    if models and wanted not in models and f"{wanted}:latest" not in models:
        raise TargetError(f"{url}: has no model {wanted}; it has {shown}")
    return wanted


def _version(target: Target, headers: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in ("/version", "/api/version"):
        try:
            page = get(target, path, headers)
            answer: Any = msgspec.json.decode(page.body) if page.status == 200 else None
        except (TransportError, msgspec.DecodeError):
            continue
        if isinstance(answer, dict) and isinstance(answer.get("version"), str):
            found[path] = answer["version"][:100]
    return found
