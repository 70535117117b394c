"""A finished request as Locust knows requests: for its tables, its charts, and listeners of users' own."""

from __future__ import annotations

from locust.env import Environment

from tokenswarm.profile.profile import Profile
from tokenswarm.record import RequestRecord
from tokenswarm.reports.numbers import harmless


def fire_request(environment: Environment, profile: Profile, record: RequestRecord) -> None:
    """Locust's one `request` event a request: response_time is E2E in ms, failures as Locust knows them."""
    e2e_ns = record.e2e_ns
    environment.events.request.fire(
        request_type=profile.engine.api,
        name=harmless(profile.engine.model or "?"),  # Locust prints it as it is
        response_time=None if e2e_ns is None else e2e_ns / 1e6,
        response_length=record.bytes_received,
        exception=None if record.ok else RequestFailed(harmless(f"{record.outcome.value}: {record.error_kind}")),
        context={"outcome": record.outcome.value, "output_tokens": record.output_tokens},
    )


class RequestFailed(Exception):
    """A failed request in Locust's table. Its text is bounded: Locust keeps one row for each different text."""
