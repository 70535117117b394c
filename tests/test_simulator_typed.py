"""Our client against the embedded engine in the APIs with typed events: what it says, and what really was sent."""

from __future__ import annotations

import re
from collections.abc import Iterator

import gevent
import pytest
from exchanges import PROMPT, Setup
from simulator_process import Server, exchange, post, simulator

from tokenswarm.client.sending import Request
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines import Sampling
from tokenswarm.record import RequestRecord

KEYS = [(kind, api) for kind in ("openai", "ollama") for api in ("responses", "messages")]
by_key = pytest.mark.parametrize("key", KEYS, ids="-".join)


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "instant", "--reasoning-tokens", "3", "--allow-fault-header") as server:
        yield server


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.close()


def ask(setup: Setup, engine: Server, key: tuple[str, str], fault: str = "", model: str = "sim") -> RequestRecord:
    headers = {"x-sim-fault": fault} if fault else {}
    client = setup.client(engine.address[1], kind=key, headers=headers, fresh=True)
    number = len(setup.records)
    with gevent.Timeout(20):
        request = Request(f"{'-'.join(key)}-{number}", PROMPT, 0, "steady", monotonic_ns())
        return client.send(request, Sampling(model=model, max_tokens=9))


@by_key
def test_a_record_is_what_was_sent(setup: Setup, engine: Server, key: tuple[str, str]) -> None:
    got = ask(setup, engine, key, model="sim:latest" if key[0] == "ollama" else "sim")
    rows = engine.await_truth(lambda totals: totals["in_flight"] == 0)["requests"]
    row = next(row for row in rows if row["id"] == got.id)
    assert (got.outcome, got.error) == ("ok", "")
    assert (got.events, got.reasoning_events) == (9, 3)
    assert (got.output_tokens, got.prompt_tokens) == (row["output_tokens"], row["prompt_tokens"]) == (9, 9)
    assert got.token_source == "server"
    assert got.reasoning_tokens == (3 if key[1] == "responses" else None)
    assert got.finish_reason == {"responses": "max_output_tokens", "messages": "max_tokens"}[key[1]]
    assert row["api"] == key[1]


def test_no_id_comes_twice_over_starts(engine: Server) -> None:
    """Of the same seed: a gateway that stores answers takes no second one of an id."""

    def ids(server: Server) -> set[bytes]:
        body = b'{"model":"sim","input":"Hi","stream":true,"max_output_tokens":6}'
        _, answer = exchange(server, post("/v1/responses", body))
        return set(re.findall(rb'"(?:id|item_id)":[ ]?"([^"]+)"', answer))

    with simulator("--preset", "instant", "--reasoning-tokens", "3") as other:
        found = [ids(other), ids(engine), ids(engine)]
    assert [len(one) for one in found] == [3, 3, 3], "of the answer, its thoughts and its text"
    assert len(set.union(*found)) == 9


@by_key
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("error_mid:4", "error_object"),
        ("truncate:4", "truncated"),
        ("reset_mid:4", "reset"),
        ("bad_json:4", "protocol"),
        ("http_500", "http_5xx"),
        ("http_429", "rate_limited"),
        ("garbage", "protocol"),
        ("empty", "empty"),
        ("gzip", "ok"),
        ("close_delimited", "ok"),
    ],
)
def test_faults(setup: Setup, engine: Server, key: tuple[str, str], fault: str, outcome: str) -> None:
    got = ask(setup, engine, key, fault)
    assert got.outcome == outcome, got.error
    if fault == "error_mid:4":
        assert "EngineCore" in got.error
        assert got.events == 4
    if fault == "truncate:4":
        assert {"responses": "`response.completed`", "messages": "`message_stop`"}[key[1]] in got.error
        assert got.error_kind == ("silent end" if key[0] == "ollama" else "truncated")
