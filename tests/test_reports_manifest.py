"""The manifest holds what repeats a run, and no secret that a user let slip into a command, a header or a URL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import sample_runs

from tokenswarm.profile.engine import Engine
from tokenswarm.profile.profile import Profile
from tokenswarm.reports.manifest import HIDDEN, build, finish, redact, redact_command

NOW = datetime(2026, 11, 24, 0, 15, tzinfo=UTC)
CANARY = "canary-4711-value"


def manifest(profile: Profile | None = None, **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "run_id": sample_runs.RUN_ID,
        "started": NOW,
        "profile": profile or sample_runs.profile(),
        "command": ["tokenswarm", "run", "sweep.yaml"],
        "versions": {"tokenswarm": "0.1.0"},
        "git_revision": "abc",
        "engine": {"model": "m", "models": ["m"], "version": {}, "notes": []},
        "host": {"cpus": 2},
    }
    return build(**{**facts, **changes})


def test_it_is_plain_json_and_the_profile_can_be_run_again() -> None:
    profile = sample_runs.profile(engine=Engine(headers_from_env={"Authorization": "OPENAI_AUTH"}, seed=4))
    whole = finish(manifest(profile), ended=NOW, dataset={"sha256": "ff", "rows_kept": 3}, workers=[{"index": 0}])
    decoded = msgspec.json.decode(msgspec.json.encode(whole))
    assert msgspec.convert(decoded["profile"], Profile, strict=False) == profile
    assert decoded["started"] == "2026-11-24T00:15:00+00:00"
    assert decoded["seeds"] == {"shuffle": 1, "sampling": 4}
    assert decoded["dataset"]["sha256"] == "ff"
    assert decoded["workers"] == [{"index": 0}]


def test_building_it_twice_gives_the_same_and_finish_changes_nothing_in_place() -> None:
    first = manifest()
    assert first == manifest()
    finish(first, ended=NOW, dataset={}, workers=[])
    assert first["ended"] is None


@pytest.mark.parametrize(
    "command",
    [
        ["locust", f"--api-key={CANARY}"],
        ["locust", "--api-key", CANARY],
        ["locust", "--set", f"engine.headers.Authorization={CANARY}"],
        ["locust", "--web-login-password", CANARY],
        ["locust", "--host", f"https://user:{CANARY}@host/v1"],
        ["locust", f"--host=https://host/v1?key={CANARY}"],
        ["locust", f"sk-{CANARY}"],
        ["env", f"OPENAI_API_KEY={CANARY}", "locust"],
    ],
)
def test_no_secret_of_the_command_line_is_kept(command: list[str]) -> None:
    shown = redact_command(command)
    assert CANARY not in " ".join(shown)
    assert any(HIDDEN in word for word in shown)
    assert len(shown) == len(command)


def test_an_ordinary_command_stays_as_it_is() -> None:
    command = ["locust", "-f", "chat.py", "-u", "50", "--host", "http://gpu:8000/v1", "--set", "load.kind=closed",
               "--max-tokens", "128", "--set", "dataset.output_tokens.fixed=64"]  # fmt: skip
    assert redact_command(command) == command


def test_no_secret_of_the_profile_is_kept() -> None:
    engine = Engine(extra_body={"user": {"api_key": CANARY, "n": 1}, "tokens": [f"Bearer {CANARY}"], "max_tokens": 3})
    text = msgspec.json.encode(manifest(sample_runs.profile(engine=engine))).decode()
    assert CANARY not in text
    assert '"max_tokens":3' in text
    assert "headers_from_env" in text


def test_redaction_leaves_names_of_variables_and_numbers() -> None:
    assert redact({"headers_from_env": {"Authorization": "MY_VARIABLE"}, "auth": 5, "password": "x"}) == {
        "headers_from_env": {"Authorization": "MY_VARIABLE"},
        "auth": 5,
        "password": HIDDEN,
    }
    assert redact("http://[broken") == HIDDEN


def test_a_moment_needs_a_time_zone() -> None:
    with pytest.raises(ValueError):
        manifest(started=datetime(2026, 11, 24))
