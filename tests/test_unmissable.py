"""Limits that no success can miss pass whatever the server does: they are told before the load."""

from __future__ import annotations

import pytest

from tokenswarm.cluster.look import unmissable
from tokenswarm.profile import bundled, options, profile

TEXT = """
target: http://127.0.0.1:1
dataset: {path: a.json}
load: {stages: [{users: 1, duration: 10s}]}
timeouts: {first_token: 30s, idle_token: 20s, total: 50s}
slo: {%s}
"""


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ("ttft_s: {p50: 200ms, p99: 300}", "`slo.ttft_s.p99: 300`"),
        ("ttft_s: {mean: 30}", "`timeouts.first_token`, 30 s"),
        ("itl_s: {p50: 25}", "`timeouts.idle_token`, 20 s"),
        ("tpot_s: {p50: 50}", "or say `50ms`"),
        ("stall_s: {max: 20}", "`slo.stall_s.max: 20`"),
        ("ttfat_s: {p50: 60}", "`timeouts.total`, 50 s"),
        ("e2e_s: {p50: 50}", "`timeouts.total`, 50 s"),
        ("ttft_s: {p50: 29.9}, itl_s: {p99: 19.9}, ttfat_s: {p50: 31}, e2e_s: {p50: 49.9}", ""),
        ("ttft_intended_s: {p50: 200}, e2e_intended_s: {p50: 2000}", ""),  # with the wait for a free user
        ("failed_ratio: 0.5, output_tokens_per_s: 1000", ""),
    ],
)
def test_a_limit_that_can_not_be_missed_is_told(limits: str, told: str) -> None:
    said = unmissable(profile.load(TEXT % limits, "p.yaml"))
    assert bool(said) == bool(told)
    assert told in said


def test_no_limits_that_come_with_it_are_of_that_kind() -> None:
    for name in bundled.named("profile"):
        assert unmissable(options.read_profile(name, {}, [])) == ""
    for name in bundled.named("SLO file"):
        assert unmissable(options.read_profile("smoke", {"slo": name}, [])) == ""
