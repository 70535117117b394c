"""One real request before the load: the load's own path, key, model and fields, with a small prompt of its own.

What a server refuses once it refuses ten thousand times. A server that still loads its model is waited for; one that is
only busy, or fails by chance, is the load's business: a note.
"""

from __future__ import annotations

import enum
import math
import re
import secrets
from collections.abc import Callable

import gevent
import msgspec

from tokenswarm.client.decoding import Decoder
from tokenswarm.client.exchange import Exchange
from tokenswarm.client.from_profile import make_client, sampling_of
from tokenswarm.client.hints import key_hint, parameter_hint
from tokenswarm.client.sending import Request
from tokenswarm.client.transport import Target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import spoken
from tokenswarm.engines.model_names import is_alias
from tokenswarm.errors import TargetError
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile.environment import has_openai_key, secret_headers
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.prompts import Message, Prompt
from tokenswarm.prompts.from_profile import prompt_policy
from tokenswarm.record import Outcome, RequestRecord

TEXT = "Say hello."
TOKENS_MAX = 16  # some services refuse fewer
PAUSE_S, PAUSE_S_MAX = 0.5, 5.0  # between two looks at a server that still loads: doubled each time
TELL_S = 5.0  # between two sentences of progress
ACCEPTED_S = 5.0  # for the first token of an answer that has begun: the request was right, and that was the question
SAME_MAX = 3  # as often in the same words, a failure is no chance

_BUSY = re.compile(r"busy|overload|too many|rate.?limit|quota|queue|capacity|pending", re.IGNORECASE)
_LOADING = re.compile(r"\bload(s|ing)\b|not (yet )?(ready|loaded)|starting|warming|initiali|unavailable", re.IGNORECASE)

Say = Callable[[str], None]


class Probe(msgspec.Struct, frozen=True):
    """What the requests before the load came to, for the manifest. The last one's times, in seconds."""

    url: str
    requests: int
    outcome: Outcome
    output_tokens: int  # of all of them
    ttft_s: float | None = None
    e2e_s: float | None = None
    model: str = ""  # that the last answer says it is from; "": it does not say
    note: str = ""
    marks: dict[str, str] = {}  # headers of the answer that tell who stands between: Server, Via, Age, X-Cache, ...


class NoSuchPath(TargetError):
    """The server has no such path, or no such model: a 404 or 405."""


class _Means(enum.Enum):
    """What an answer to the probe says about the load to come."""

    FINE = enum.auto()
    CHANCE = enum.auto()  # the load may meet better answers: a note
    LOADING = enum.auto()
    REFUSED = enum.auto()  # every other request would be, too
    FAILED = enum.auto()  # once is chance, several times in the same words is not


def not_ready(status: int, sentence: str) -> bool:
    """Whether this is a server, or a gateway before it, that is not there yet."""
    return status in (502, 503, 504) and not _BUSY.search(sentence)


def _meaning(record: RequestRecord) -> _Means:
    sentence, outcome = record.error, record.outcome
    if record.ok:
        return _Means.FINE
    if not_ready(record.status, sentence):
        return _Means.LOADING
    if outcome is Outcome.ERROR_OBJECT and not record.events and _LOADING.search(sentence):
        return _Means.LOADING
    if record.events or outcome in (Outcome.EMPTY, Outcome.RATE_LIMITED) or record.status in (408, 425):
        return _Means.CHANCE
    if record.status in (503, 529):  # busy
        return _Means.CHANCE
    if outcome is Outcome.TIMEOUT and 200 <= record.status < 300:
        return _Means.CHANCE
    if outcome in (Outcome.HTTP_4XX, Outcome.PROTOCOL, Outcome.OVERSIZE, Outcome.TIMEOUT) or record.status == 501:
        return _Means.REFUSED
    return _Means.FAILED


def wait_s(pause_s: float, retry_after: str) -> float:
    """How long to wait before the next look: what the server asks for, within bounds."""
    asked = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
    return max(pause_s, min(asked, PAUSE_S_MAX))


class Prober:
    """Sends the probe to one target until it is clear what it means."""

    def __init__(self, profile: Profile, target: Target, say: Say) -> None:
        self._profile = profile
        self._target = target
        self._say = say
        self._dialect = spoken(profile.engine.kind, profile.engine.api, profile.engine.path)
        self._prompt = _prompt(profile)
        self._records: list[RequestRecord] = []
        self._marks: dict[str, str] = {}
        self._began_ns = monotonic_ns()

    def run(self) -> Probe:
        """The probe's outcome. Raises TargetError where the load would fail as it did."""
        pause_s, told_ns = PAUSE_S, 0
        while True:
            record = self._send()
            means = _meaning(record)
            if means is _Means.FINE:
                return self._probe("; ".join(filter(None, (self._told_packed(record), self._told_model(record)))))
            if means is _Means.CHANCE:
                return self._probe(f"the first request failed: {record.error}; the load begins all the same")
            if means is _Means.REFUSED:
                raise self._refusal(record)
            if means is _Means.FAILED:
                same = [r for r in self._records if (r.error_kind, r.error) == (record.error_kind, record.error)]
                if len(same) >= SAME_MAX:
                    raise self._refusal(record)
                if len(self._records) > SAME_MAX:
                    return self._probe(f"the first requests failed, the last one so: {record.error}")
                gevent.sleep(PAUSE_S)
                continue
            pause_s = wait_s(pause_s, record.retry_after)
            if self._elapsed_s + pause_s > self._profile.timeouts.ready:
                raise TargetError(loading_sentence(self._target.url, self._elapsed_s, record.error))
            if monotonic_ns() - told_ns > TELL_S * NS_PER_S:
                told_ns = monotonic_ns()
                self._say(waiting_sentence(self._target.url, self._profile.timeouts.ready, record.error))
            gevent.sleep(pause_s)
            pause_s = min(PAUSE_S_MAX, 2 * pause_s)

    def refused(self) -> str:
        """Why it serves nobody, although it has nothing else to do; "" where it does, or only takes its time."""
        while True:
            record = self._send(PAUSE_S_MAX)
            objects = record.outcome is Outcome.ERROR_OBJECT and not record.events
            if not (objects or record.status >= 500 or record.outcome in (Outcome.CONNECT, Outcome.RESET)):
                return ""
            if len(self._records) == SAME_MAX:
                return record.error
            gevent.sleep(PAUSE_S)

    def _told_packed(self, packed: RequestRecord) -> str:
        """Where the load asks for gzip and gets it: what the same answer is like without; "" otherwise."""
        if not packed.packed:
            return ""
        profile, marks = self._profile, self._marks
        headers = {name: said for name, said in profile.engine.headers.items() if name.lower() != "accept-encoding"}
        engine = msgspec.structs.replace(profile.engine, headers=headers)
        self._profile = msgspec.structs.replace(profile, engine=engine)
        plain = self._send()
        self._profile, self._marks = profile, marks
        if not plain.ok:
            return f"the answer is packed (gzip), as `engine.headers` asks; asked plainly it fails: {plain.error}"
        return (
            f"the answer is packed (gzip), as `engine.headers` asks: {packed.events} events in {packed.reads} reads, "
            f"asked plainly {plain.events} in {plain.reads}; clients that don't ask for gzip get another stream"
        )

    def _told_model(self, record: RequestRecord) -> str:
        """Where the answer names a model that may be another than was asked for; "" otherwise."""
        asked = self._profile.engine.asked_model
        if not record.model or is_alias(asked, record.model):
            return ""
        return f"the first answer names the model {record.model}; {asked} was asked for. Is that its name there?"

    @property
    def _elapsed_s(self) -> float:
        return (monotonic_ns() - self._began_ns) / NS_PER_S

    def _send(self, most_s: float = math.inf) -> RequestRecord:
        """One request, as a worker sends it; nothing of it reaches the results' counts."""
        profile = self._profile
        left_s = min(most_s, max(PAUSE_S_MAX, profile.timeouts.ready - self._elapsed_s))
        limits = profile.timeouts
        timeouts = Timeouts(
            connect=limits.connect,
            first_token=Seconds(min(limits.first_token, left_s)),
            idle_token=limits.idle_token,
            total=Seconds(min(limits.total, left_s)),
        )
        task: gevent.Greenlet | None = None
        decoder = Decoder(lambda: task.kill(block=False) if task is not None else None)
        recorder = Recorder("probe", 0, start_ns=monotonic_ns())
        client = make_client(profile, self._target, decoder, recorder, self._records.append, timeouts)
        request = Request(f"probe-{secrets.token_hex(4)}", self._prompt, 0, "warmup", monotonic_ns())
        try:
            task = gevent.spawn(client.send, request, self._sampling)
            told_ns = monotonic_ns()
            while not task.ready():
                task.join(0.2)
                _hurry(decoder)
                if not task.ready() and monotonic_ns() - told_ns > TELL_S * NS_PER_S:
                    told_ns = monotonic_ns()
                    self._say(f"{self._target.url}: no end of the first answer yet; waiting up to {left_s:.0f} s")
            record: RequestRecord = task.get()
            self._marks = client.marks or self._marks
            return record
        finally:
            if task is not None:
                task.kill()
            decoder.close()
            client.pool.close()

    @property
    def _sampling(self) -> Sampling:
        return sampling_of(self._profile, self._prompt)

    def _probe(self, note: str) -> Probe:
        last = self._records[-1]
        return Probe(
            url=self._target.url,
            requests=len(self._records),
            outcome=last.outcome,
            output_tokens=sum(record.output_tokens for record in self._records),
            ttft_s=None if last.ttft_ns is None else last.ttft_ns / NS_PER_S,
            e2e_s=None if last.e2e_ns is None else last.e2e_ns / NS_PER_S,
            model=last.model,
            note=note and f"{self._target.url}: {note}",
            marks=self._marks,
        )

    def _refusal(self, record: RequestRecord) -> TargetError:
        path, profile = self._dialect.path, self._profile
        said = f"{self._target.url}{path}: the first request failed, and so would the load: {record.error}"
        if record.status in (401, 403):
            return TargetError(f"{said}; {key_hint(profile, secret_headers(profile), has_openai_key())}")
        if record.status in (404, 405):
            base = "`target` takes the base URL, without the API's path"
            where = f"(`engine.api: {profile.engine.api}`; another path: `engine.path`)"
            return NoSuchPath(f"{said}; {base}, and is the model's name right? {where}")
        if record.status in (400, 422):
            body = self._dialect.encode(self._prompt, self._sampling)
            return TargetError(said + parameter_hint(record.error, body, profile))
        if record.outcome is Outcome.TIMEOUT:
            return TargetError(f"{said}; if it still loads its model, raise `timeouts.ready`")
        return TargetError(said)


def _hurry(decoder: Decoder) -> None:
    """End an answer that has begun and brings no token: nothing more is to be learnt from it."""
    for stream in decoder.streams():
        if not isinstance(stream, Exchange) or stream.timeline.events or not 200 <= stream.response.status < 300:
            continue
        began_ns = stream.response.headers_ns
        if began_ns and monotonic_ns() - began_ns > ACCEPTED_S * NS_PER_S:
            stream.fail(Outcome.TIMEOUT, f"the answer began, but no token came within {ACCEPTED_S:g} s", "no token")
            decoder.queue(stream)


def loading_sentence(url: str, waited_s: float, said: str) -> str:
    return f"{url}: still loading, or not ready, after {waited_s:.0f} s: {said}; try later, or raise `timeouts.ready`"


def waiting_sentence(url: str, ready_s: float, said: str) -> str:
    return f"{url}: not ready yet ({said}); waiting up to {ready_s:g} s"


def _prompt(profile: Profile) -> Prompt:
    """A prompt with the fields that the load's own will have, but none of its words: no cache is warmed for it."""
    asked = prompt_policy(profile.dataset).output
    free = asked.source == "none"
    tokens = asked.bound if free else asked.tokens or TOKENS_MAX
    return Prompt(
        id="probe",
        messages=(Message("user", TEXT),),
        text=TEXT,
        conversation="probe",
        turn=0,
        output_tokens_max=None if tokens is None else min(TOKENS_MAX, tokens),
        ends_itself=free,
    )
