"""The profile as a client of one target and as what each request asks for: the load's, and the preflight's."""

from __future__ import annotations

from collections.abc import Callable

from tokenswarm.client.decoding import Decoder
from tokenswarm.client.pool import Pool
from tokenswarm.client.sending import Client
from tokenswarm.client.transport import Target
from tokenswarm.engines import Sampling
from tokenswarm.engines.dialects import spoken
from tokenswarm.engines.failure import secret_words
from tokenswarm.measure.recorder import Recorder
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.environment import secret_headers
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.profile import Profile
from tokenswarm.prompts import Prompt
from tokenswarm.record import RequestRecord


def make_client(
    profile: Profile,
    target: Target,
    decoder: Decoder,
    recorder: Recorder,
    on_record: Callable[[RequestRecord], None],
    timeouts: Timeouts | None = None,
) -> Client:
    """A client of `target` as the profile wants it; with `timeouts` in place of the profile's. Raises ConfigError."""
    secret, engine = secret_headers(profile), profile.engine
    return Client(
        spoken(engine.kind, engine.api, engine.path, done_ends=engine.done_ends),
        Pool(target, profile.timeouts.connect, profile.connections == "fresh"),
        decoder,
        recorder,
        timeouts=timeouts or profile.timeouts,
        headers={**engine.headers, **secret},
        event_bytes_max=profile.event_bytes_max,
        keep_text=profile.save_text or profile.dataset.history == "model",
        on_record=on_record,
        secrets=secret_words(secret),
    )


def sampling_of(profile: Profile, prompt: Prompt) -> Sampling:
    """What a request asks for besides its prompt."""
    engine = profile.engine
    return Sampling(
        model=engine.model or "",
        max_tokens=prompt.output_tokens_max,
        ignore_eos=profile.dataset.ignore_eos and not prompt.ends_itself,
        temperature=engine.temperature,
        top_p=engine.top_p,
        seed=engine.seed,
        stop=engine.stop,
        choices=engine.choices,
        include_usage=engine.include_usage,
        continuous_usage=engine.continuous_usage,
        extra=_extra(engine),
    )


def _extra(engine: Engine) -> dict[str, object]:
    """What the body holds beyond what every server knows; the user's own words win."""
    if engine.num_thread is None:
        return engine.extra_body
    options = engine.extra_body.get("options", {})
    threads = {"num_thread": engine.num_thread, **options} if isinstance(options, dict) else options
    return {**engine.extra_body, "options": threads}
