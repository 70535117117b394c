"""What gateways do to answers, by name: ends that somebody wrote, a 200 that was said too early, half answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_runs
from exchanges import PROMPT, SAMPLING, Setup, make_certificate, one
from raw_server import DONE, LAST_CHUNK, chunk, content, head
from running import SAMPLES, run, tokenswarm
from simulator_process import Server, simulator

from tokenswarm.client.sending import Request
from tokenswarm.clock import monotonic_ns
from tokenswarm.judge.rules.answers import half_answers
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.judge.rules.sample import tokens_from_events, tokens_mixed
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.target import Tls
from tokenswarm.record import Outcome, RequestRecord, TokenSource

APIS = [("openai", "chat"), ("openai", "completions"), ("ollama", "chat"), ("ollama", "generate")]


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "instant", "--allow-fault-header") as server:
        yield server


def asked(engine: Server, fault: str, kind: tuple[str, str], tokens: int = 9, **how: Any) -> RequestRecord:
    setup = Setup()
    try:
        headers = {"x-sim-fault": fault} if fault else {}
        client = setup.client(int(engine.url.rsplit(":", 1)[1]), kind=kind, headers=headers, **how)
        sampling = msgspec.structs.replace(SAMPLING, model="sim", max_tokens=tokens)
        return client.send(Request("0-0", PROMPT, 0, "steady", monotonic_ns()), sampling)
    finally:
        setup.close()


@pytest.mark.parametrize("kind", APIS, ids="-".join)
def test_a_200_without_a_byte_is_no_broken_answer(engine: Server, kind: tuple[str, str]) -> None:
    record = asked(engine, "head_only", kind)
    assert (record.outcome, record.error_kind) == (Outcome.RESET, "no body")
    assert "hides the engine's status" in record.error


@pytest.mark.parametrize("kind", APIS, ids="-".join)
def test_an_answer_that_broke_off_after_some_bytes_is_one(engine: Server, kind: tuple[str, str]) -> None:
    assert asked(engine, "killed:2", kind).error_kind == "closed early"


def test_an_end_that_somebody_wrote(engine: Server) -> None:
    record = asked(engine, "done_only:3", ("openai", "chat"))
    assert (record.outcome, record.error_kind) == (Outcome.TRUNCATED, "made-up end")
    said = "a gateway ended it (see its log); where the server never tells one: `engine.done_ends: true`"
    assert record.error == f"[DONE] without a finish reason, after 3 content events: {said}"
    assert asked(engine, "truncate:3", ("openai", "chat")).error_kind == "truncated"


@pytest.mark.parametrize("kind", APIS, ids="-".join)
def test_words_of_a_proxy_inside_the_stream_are_quoted(engine: Server, kind: tuple[str, str]) -> None:
    record = asked(engine, "words:3", kind)
    assert not record.ok
    assert "Error occurred while trying to proxy" in record.error


@pytest.mark.parametrize("kind", APIS, ids="-".join)
def test_a_front_end_in_rust_is_read_as_one_in_python(engine: Server, kind: tuple[str, str]) -> None:
    rust, python = asked(engine, "hyper", kind), asked(engine, "", kind)
    assert rust.ok
    assert (rust.text, rust.output_tokens) == (python.text, python.output_tokens)


def test_retries_that_a_header_tells_are_the_records(engine: Server) -> None:
    assert [asked(engine, fault, ("openai", "chat")).retries for fault in ("retried:3", "")] == [3, 0]


def test_a_whole_answer_whose_end_is_one_segment_with_close_notify(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    files = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with simulator("--preset", "instant", "--allow-fault-header", *files) as server:
        assert server.url.startswith("https://")
        for fresh in (True, False):
            how = {"url": "https://localhost:{}", "tls": Tls(ca_file=str(certificate)), "fresh": fresh}
            for fault in ("one_segment", ""):
                record = asked(server, fault, ("openai", "chat"), **how)
                assert (record.outcome, record.output_tokens) == (Outcome.OK, 9), record.error


def test_done_behind_nothing_is_still_an_empty_answer() -> None:
    setup = Setup()
    try:
        assert one(setup, head(), chunk(DONE), LAST_CHUNK).outcome is Outcome.EMPTY
        assert one(setup, head(), chunk(content("a", "stop") + DONE), LAST_CHUNK).ok
    finally:
        setup.close()


PROFILE = """
name: halves
target: {url}
dataset: {{path: {data}, output_tokens: {{fixed: 24}}, ignore_eos: true}}
load: {{stages: [{{users: 4, duration: 4s}}]}}
phases: {{warmup: 0s, settle: 0s, drain: 10s}}
workers: 1
"""


@pytest.mark.parametrize(("fault", "told"), [("half:0.1:8", True), ("half:1:8", False), ("gzip:0.1", False)])
def test_half_answers_are_told_where_all_others_are_whole(tmp_path: Path, fault: str, told: bool) -> None:
    with simulator("--preset", "paced", "--ttft-ms", "20", "--itl-ms", "4", "--fault", fault) as engine:
        (tmp_path / "p.yaml").write_text(PROFILE.format(url=engine.url, data=SAMPLES / "sharegpt.json"), "utf-8")
        found = run(tokenswarm("run", "p.yaml"), tmp_path)
    assert ("half-answers" in found.doubts()) == told, found.out


def test_stop_strings_end_answers_rightly() -> None:
    merged = sample_runs.run(ok=50)
    merged.block(0).length_halved, merged.block(0).length_kept = 4, 40
    evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile())
    assert half_answers(evidence, sample_runs.summary(merged)) is not None
    stops = sample_runs.profile(engine=Engine(stop=("end",)))
    assert half_answers(msgspec.structs.replace(evidence, profile=stops), sample_runs.summary(merged)) is None


def test_usage_that_was_asked_for_and_dropped_is_not_advised_again() -> None:
    merged = sample_runs.run(ok=50, token_source=TokenSource.EVENTS)
    each = "Each answer of this API should have them"  # the option does nothing there
    for engine, words in (
        (Engine(), "They were asked for"),
        (Engine(include_usage=False), "Set `engine.include_usage: true`"),
        (Engine(kind="ollama"), each),
        (Engine(api="responses", include_usage=False), each),
        (Engine(api="messages"), each),
    ):
        evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile(engine=engine))
        found = tokens_from_events(evidence, sample_runs.summary(merged))
        assert found is not None
        assert words in found.message


def test_counts_that_can_not_be_true_are_not_called_absent() -> None:
    """A server that does not keep `max_tokens`, and sends several tokens an event: mock servers do."""
    merged = sample_runs.run(ok=50, token_source=TokenSource.EVENTS, stated_tokens=30)
    evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile())
    found = tokens_from_events(evidence, sample_runs.summary(merged))
    assert found is not None
    assert "no token counts that can be true (50 beyond `max_tokens`, or of a part)" in found.message
    assert "Ask the engine itself" in found.message

    merged.block(0).output_tokens_by_source["server"] = 9
    found = tokens_mixed(evidence, sample_runs.summary(merged))
    assert found is not None
    assert "can't be theirs (50: beyond `max_tokens`, or of a part)" in found.message
