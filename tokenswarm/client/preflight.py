"""Before any load: can the target be reached, does it speak the dialect, does it have the model?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import msgspec

from tokenswarm.client.base_url import meanings, without
from tokenswarm.client.hints import key_hint
from tokenswarm.client.page import Page, request
from tokenswarm.client.probe import (
    PAUSE_S,
    PAUSE_S_MAX,
    TELL_S,
    NoSuchPath,
    Probe,
    Prober,
    Say,
    loading_sentence,
    not_ready,
    waiting_sentence,
)
from tokenswarm.client.response import TransportError
from tokenswarm.client.scheme import mistaken
from tokenswarm.client.transport import Target, make_target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.engines import Dialect, NotAnEvent
from tokenswarm.engines.dialects import has_more, spoken, unversioned
from tokenswarm.engines.failure import clean_line, error_message, hide, secret_words
from tokenswarm.errors import MALFORMED, ConfigError, TargetError
from tokenswarm.profile.environment import has_openai_key, secret_headers
from tokenswarm.profile.profile import Profile
from tokenswarm.record import Outcome

ANSWER_S = 4.0  # for each look at the target; a server that lists no models in this time is not ready
REACH_S = 2.0  # for a look whether it is still there; the master hears nobody's silence meanwhile
NOT_THERE = frozenset({Outcome.CONNECT, Outcome.RESET, Outcome.DNS, Outcome.TLS})
NO_NAMES = ("", "unknown")  # a router that could not ask its workers lists this; with a `*` it names patterns (LiteLLM)


class Findings(msgspec.Struct, frozen=True):
    """What the preflight learned; goes into the manifest."""

    model: str
    models: list[str]
    version: dict[str, str]  # what /version and /api/version say
    notes: list[str]
    targets: list[str]  # the base URLs that the load goes to
    probes: list[Probe]  # the requests that were sent before the load, by target; none with `engine.probe: false`
    path: str | None = None  # of the API, as `engine.path`: where it is not the usual one


def get(target: Target, path: str, headers: dict[str, str]) -> Page:
    """GET a small document. Raises TransportError."""
    return request(target, "GET", path, {"accept": "application/json", **headers}, timeout_s=ANSWER_S)


def check(profile: Profile, say: Say = lambda _: None, answers: Callable[[], object] = lambda: None) -> Findings:
    """Look at every target; they must agree. `say` hears of long waits; `answers` is called each time that a target
    has answered, and before a first request gives it something to do.

    Raises TargetError, ConfigError (TLS files, missing variables).
    """
    found = [_Look(profile, url, say, answers).run() for url in profile.target]
    if len({f.model for f in found}) > 1:
        raise TargetError(f"the targets serve different models: {', '.join(f.model for f in found)}; name one")
    if len({f.path for f in found}) > 1:
        raise TargetError(f"the targets have the API under different paths: {', '.join(str(f.path) for f in found)}")
    notes = dict.fromkeys(note for f in found for note in f.notes)
    return msgspec.structs.replace(
        found[0],
        notes=list(notes),
        targets=[url for f in found for url in f.targets],
        probes=[probe for f in found for probe in f.probes],
    )


def make_checked_target(profile: Profile, url: str) -> Target:
    """`make_target`, with a sentence for an unusable CA file."""
    try:
        return make_target(url, profile.tls)
    except OSError as error:
        raise ConfigError(f"tls.ca_file {profile.tls.ca_file}: can't be used: {error.strerror or error}") from None


def reach(profile: Profile) -> Callable[[], str]:
    """A look at the targets: why the first that is not there is not; "" where each answers, or is only slow to."""
    dialect = spoken(profile.engine.kind, profile.engine.api, profile.engine.path)
    headers = {**dialect.headers, **profile.engine.headers, **secret_headers(profile)}
    targets = [make_checked_target(profile, url) for url in profile.target]

    def look() -> str:
        for target in targets:
            try:
                request(target, "GET", dialect.models_path, headers, timeout_s=REACH_S)
            except TransportError as error:
                if error.outcome in NOT_THERE:
                    return f"{target.url}: {error.sentence}"
        return ""

    return look


def serve(profile: Profile) -> Callable[[], str]:
    """The same look by a real request to each: a gateway answers for a server that is not there. None of that kind is
    sent with `engine.probe: false`.
    """

    def look() -> str:
        for url in profile.target if profile.engine.probe else ():
            if said := Prober(profile, make_checked_target(profile, url), lambda _: None).refused():
                return f"{url}: {said}"
        return ""

    return look


class _Listing(msgspec.Struct, frozen=True):
    """A base URL, and what it answered when it was asked for its models (None: no list of models)."""

    target: Target
    page: Page
    models: list[str] | None
    path: str | None  # of the API, as `engine.path`

    @property
    def rank(self) -> int:
        """0: these are its models; 1: there is something that does not tell us; 2: no such path."""
        return 0 if self.models is not None else 2 if self.page.status in (200, 404, 405) else 1


class _Look:
    """The look at one target."""

    def __init__(self, profile: Profile, url: str, say: Say, answers: Callable[[], object]) -> None:
        self._profile = profile
        self._url = url
        self._say = say
        self._answers = answers
        self._dialect = self._at(profile.engine.path)
        self._unversioned = unversioned(self._dialect) if profile.engine.path is None else ""
        self._secret = secret_headers(profile)
        self._headers = {**self._dialect.headers, **profile.engine.headers, **self._secret}
        self._notes: list[str] = []

    def run(self) -> Findings:
        """Where the API is, which model is asked for, and whether a first request succeeds."""
        listings = self._await_listings()
        best = min(listing.rank for listing in listings)
        likely = [listing for listing in listings if listing.rank == best]
        if best < 2 or not self._profile.engine.probe:
            likely = likely[:1] if best == 0 else likely[-1:]
        listing = likely[-1]
        model = self._choose(listing.target.url, self._models(listing), has_more(listing.page.body))
        self._answers()
        probes, target, path = [], listing.target, listing.path
        if self._profile.engine.probe:
            probe, target, path = self._probe([(one.target, one.path) for one in likely], model)
            self._notes += [probe.note] if probe.note else []
            probes.append(probe)
        if path != self._profile.engine.path:
            self._notes.append(f"{target.url} has no {self._dialect.path}; `engine.path: {path}` is used")
        elif target.url != self._url:
            self._notes.append(f"{self._url} ends in a path of the API itself; {target.url} is used as the base URL")
        return Findings(
            model=model,
            models=(listing.models or [])[:100],
            version=_version(target, self._headers),
            notes=self._notes,
            targets=[target.url],
            probes=probes,
            path=path,
        )

    def _await_listings(self) -> list[_Listing]:
        """Ask for the models, again while the server is not ready and nothing else could tell when it is."""
        profile, began_ns, pause_s, told_ns = self._profile, monotonic_ns(), PAUSE_S, 0
        while True:
            listings = self._listings()
            page = min(listings, key=lambda one: one.rank).page
            said = f"HTTP {page.status}: {error_message(page.body, page.content_type)}".removesuffix(": ")
            said = hide(said, secret_words(self._secret))
            by_probe = profile.engine.probe and profile.engine.model is not None
            if by_probe or not not_ready(page.status, said):
                return listings
            waited_s = (monotonic_ns() - began_ns) / NS_PER_S
            if waited_s + pause_s > profile.timeouts.ready:
                raise TargetError(loading_sentence(self._url, waited_s, said))
            if monotonic_ns() - told_ns > TELL_S * NS_PER_S:
                told_ns = monotonic_ns()
                self._say(waiting_sentence(self._url, profile.timeouts.ready, said))
            gevent.sleep(pause_s)
            pause_s = min(PAUSE_S_MAX, 2 * pause_s)

    def _listings(self) -> list[_Listing]:
        """What each meaning of the URL lists; where none is there, what it lists as a base URL of OpenAI's clients."""
        path = self._profile.engine.path
        found = [self._list(url, path) for url in meanings(self._url)]
        if self._unversioned and min(one.rank for one in found) == 2:
            other = self._list(without(self._url, self._unversioned), self._unversioned)
            return [other] if other.rank < 2 else found
        return found

    def _at(self, path: str | None) -> Dialect:
        return spoken(self._profile.engine.kind, self._profile.engine.api, path)

    def _list(self, url: str, path: str | None) -> _Listing:
        target = make_checked_target(self._profile, url)
        try:
            page = get(target, self._at(path).models_path, self._headers)
        except TransportError as error:
            unheard = error.outcome in (Outcome.CONNECT, Outcome.DNS, Outcome.TIMEOUT)
            asked = "; is the server running there?" if unheard else ""
            said = mistaken(target, error) or f"{error.sentence}{asked}"
            raise TargetError(f"{url}: {said}") from None
        if page.status == 400 and target.tls is None and (said := mistaken(target)):
            raise TargetError(f"{url}: {said}")
        try:
            models = self._dialect.models(page.body) if page.status == 200 else None
        except NotAnEvent:
            models = None
        return _Listing(target, page, models, path)

    def _models(self, listing: _Listing) -> list[str] | None:
        """The names that the server lists; None where only the first request can tell whether the model is right."""
        if listing.models is not None:
            return listing.models
        url, page, path = listing.target.url, listing.page, self._at(listing.path).models_path
        status = page.status
        kind = page.content_type.split(";")[0] or "no content type"
        said = hide(error_message(page.body, page.content_type), secret_words(self._secret))
        if status in (401, 403):
            hint = key_hint(self._profile, self._secret, has_openai_key())
            raise TargetError(f"{url}{path}: HTTP {status}{': ' + said if said and self._secret else ''}, {hint}")
        if 300 <= status < 400:
            to = hide(f" to {clean_line(page.location)}", secret_words(self._secret))[:120] if page.location else ""
            raise TargetError(f"{url}{path}: HTTP {status}, a redirect{to}; give the final address as target")
        if status == 200 and (self._profile.engine.model is None or "json" not in kind):
            words = f": {said}" if said and "json" in kind else ""
            raise TargetError(f"{url}{path}: answers, but not with a list of models ({kind}{words}); wrong host?")
        if self._profile.engine.model is None:
            where = f"; is this an {self._dialect.kind} server, and {url} its base URL?" if status in (404, 405) else ""
            key = "" if self._secret or status in (404, 405) else ", or a key is missing (`engine.headers_from_env`)"
            raise TargetError(
                f"{url}{path}: HTTP {status}{': ' + said if said else ''}: which model? Give `engine.model` (or "
                f"--model){key}{where}"
            )
        what = "is no list of models" if status == 200 else f"answered HTTP {status}"
        self._notes.append(f"{path} {what}, so the model's name could not be checked")
        if status == 404 and not said:
            self._notes.append(f"{path} is unknown there; is this an {self._dialect.kind} server?")
        return None

    def _choose(self, url: str, models: list[str] | None, more: bool) -> str:
        wanted = self._profile.engine.model
        if models is None:
            assert wanted is not None  # else _models had raised
            return wanted
        known = [name for name in models if name.lower() not in NO_NAMES and "*" not in name]
        shown = ", ".join(models[:20]) + (", …" if len(models) > 20 else "")
        if wanted is None:
            if len(known) == 1 == len(models):
                return known[0]
            lists = f"lists only {shown}, which is no name" if models else "lists none"
            raise TargetError(
                f"{url}: which model? Give `engine.model` (or --model); it {f'has {shown}' if known else lists}"
            )
        if wanted in models or f"{wanted}:latest" in models:
            return wanted
        if known and known == models and not more:
            raise TargetError(f"{url}: has no model {wanted}; it has {shown}")
        self._notes.append(f"{url} lists {shown or 'no model'}; {wanted} is asked for all the same")
        return wanted

    def _probe(self, likely: list[tuple[Target, str | None]], model: str) -> tuple[Probe, Target, str | None]:
        """A first request to the first place that has such a path. Raises TargetError, of the last likely one."""
        places, missing = list(likely), None
        if self._unversioned and all(path is None for _, path in likely):
            url = without(self._url, self._unversioned)
            asked = {one.url.rstrip("/") + self._dialect.path for one, _ in likely}
            if url + self._unversioned not in asked:
                places.append((make_checked_target(self._profile, url), self._unversioned))
        for target, path in places:
            engine = msgspec.structs.replace(self._profile.engine, model=model, path=path)
            try:
                profile = msgspec.structs.replace(self._profile, engine=engine)
                return Prober(profile, target, self._say).run(), target, path
            except NoSuchPath as error:
                missing = error if missing is None or path is None else missing
        assert missing is not None
        raise missing


def _version(target: Target, headers: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in ("/version", "/api/version"):
        try:
            page = get(target, path, headers)
            answer: Any = msgspec.json.decode(page.body) if page.status == 200 else None
        except (TransportError, *MALFORMED):
            continue
        if isinstance(answer, dict) and isinstance(answer.get("version"), str):
            found[path] = answer["version"][:100]
    return found
