"""Which model answered: its name in every dialect, what passes for another name of it, and who hears of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest
import sample_runs
from exchanges import PROMPT, READERS, SAMPLING, Setup, ask, one
from raw_server import CLOSE, DONE, LAST_CHUNK, Step, chunk, content, head, raw_server, usage
from running import SAMPLES, Finished, run, tokenswarm
from simulator_process import Server, simulator

from tokenswarm.client.sending import Request
from tokenswarm.clock import monotonic_ns
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.model_names import NAME_CHARS_MAX, is_alias, model_of, same
from tokenswarm.errors import ExitCode
from tokenswarm.judge import alike
from tokenswarm.judge.rules.answers import model_renamed, models_mixed
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.measure.snapshot import Block
from tokenswarm.profile.engine import Engine
from tokenswarm.record import Outcome
from tokenswarm.reports.jsonl import row
from tokenswarm.result.comparison import Run
from tokenswarm.result.summary import NAMES_MAX, from_json, requests, to_json

STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.fixture(params=READERS)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    found = Setup(request.param)
    yield found
    found.close()


# -- names -------------------------------------------------------------------------------------------------------------

NAMED = {
    b'{"model":"m","choices":[]}': "m",
    b'{"model":"","choices":[]}': "",
    b'{"choices":[{"delta":{"content":"\\"model\\":\\"x\\""}}]}': "",
    b'{"model":null,"message":{"role":"assistant","content":"a"}}': "",
    b'{"type":"message_start","message":{"content":[{"model":"no"}],"model":"c"}}': "c",
    b'{"type":"response.created","response":{"metadata":{"model":"no"},"model":"r"}}': "r",
    b'{"model":"g","response":"text"}': "g",
    b'{"message":"busy","response":["x"]}': "",
    b'{"model":["m"]}': "",
    b'{"model":"a\\u001b[31mb\\nc\\u202e"}': "ab c",
    b'{"model":"' + b"x" * 500 + b'"}': "x" * NAME_CHARS_MAX,
    b'{"model":"\xff"}': "",
    b"[DONE]": "",
    b"": "",
    b"[" * 5000: "",
}


@pytest.mark.parametrize("event", NAMED, ids=[repr(event[:40]) for event in NAMED])
def test_the_name_in_an_event(event: bytes) -> None:
    assert model_of(event) == NAMED[event]


USUAL = [
    ("gpt-4o", "gpt-4o-2024-08-06"), ("gpt-4", "gpt-4-0613"), ("Llama3", "llama3:latest"), ("tiny", "tiny@main"),
    ("claude-x-latest", "claude-x-20241022"), ("m", "vllm/m"), ("org/M", "/models/org/m/"), ("m", "C:\\models\\m.gguf"),
]  # fmt: skip
OTHER = [
    ("gpt-4o", "gpt-4o-mini"), ("llama3", "llama3:8b"), ("llama-3", "llama-3-70b"), ("gpt-5", "gpt-5-1"), ("m", "tm"),
    ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20"), ("m-2024-08-06", "m"), ("a/m", "b/m"), ("m", "other"),
]  # fmt: skip


def test_usual_names_of_a_model_and_those_of_others() -> None:
    assert [pair for pair in USUAL if not is_alias(*pair)] == []
    assert [pair for pair in OTHER if is_alias(*pair)] == []
    assert not same("gpt-4o", "gpt-4o-2024-08-06"), "two releases may stand behind one name"


# -- read from streams -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def router() -> Iterator[Server]:
    with simulator("--preset", "instant", "--condition", "fallback:0.5", "--reasoning-tokens", "2") as server:
        yield server


@pytest.mark.parametrize("kind", DIALECTS, ids="-".join)
def test_every_dialect_names_the_model_of_each_answer(router: Server, setup: Setup, kind: tuple[str, str]) -> None:
    client = setup.client(router.address[1], kind=kind, keep_text=False)
    sampling = msgspec.structs.replace(SAMPLING, model="sim", max_tokens=24)
    with gevent.Timeout(30):
        for number in range(8):
            client.send(Request(f"0-{number}", PROMPT, 0, "steady", monotonic_ns()), sampling)
    assert {record.outcome for record in setup.records} == {Outcome.OK}
    assert Counter(record.model for record in setup.records) == {"sim": 4, "smaller": 4}


def named(model: str, text: str) -> bytes:
    return (
        b"data: "
        + json.dumps({"model": model, "choices": [{"index": 0, "delta": {"content": text}}]}).encode()
        + b"\n\n"
    )


AZURE = b'data: {"model":"","choices":[],"prompt_filter_results":[]}\n\n'
TYPED = (
    b'data: {"type":"message_start","message":{"model":"m"}}\n\n'
    b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}\n\n'
)
TYPED_END = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\ndata: {"type":"message_stop"}\n\n'
LINE = b'{"model":"m","message":{"content":"a"},"done":true,"done_reason":"stop"}'
OTHER_USAGE = usage(5, 2).replace(b"{", b'{"model":"n",', 1)
STREAMS: dict[str, tuple[tuple[str, str], tuple[Step, ...], str]] = {
    "named": (("openai", "chat"), (named("m", "a"), named("m", "b"), STOP, DONE), "m"),
    "none": (("openai", "chat"), (content("a"), content("b"), STOP, DONE), ""),
    "empty": (("openai", "chat"), (named("", "a"), named("", "b"), STOP, DONE), ""),
    "first nameless": (("openai", "chat"), (b": hi\n\n", AZURE, named("m", "a"), STOP, DONE), "m"),
    "first nameless, in one read": (("openai", "chat"), (AZURE + named("m", "a"), content("b"), STOP, DONE), "m"),
    "all in one read": (("openai", "chat"), (named("m", "a") + named("m", "b") + STOP + usage(1, 2) + DONE,), "m"),
    "named too late": (("openai", "chat"), (*[AZURE] * 4, named("m", "a"), named("m", "b"), STOP, DONE), ""),
    "begin and word in one read": (("openai", "messages"), (TYPED, TYPED_END), "m"),
    "one line without an end": (("ollama", "chat"), (LINE,), "m"),
    "another in the middle": (("openai", "chat"), (named("m", "a"), named("n", "b"), STOP, DONE), "m, then n"),
    "another in the middle of a read": (
        ("openai", "chat"),
        (named("m", "a") + named("n", "b"), STOP, DONE),
        "m, then n",
    ),
    "two others": (("openai", "chat"), (named("m", "a"), named("n", "b"), named("o", "c"), STOP, DONE), "m, then n"),
    "a usual name in the middle": (("openai", "chat"), (named("m", "a"), named("vllm/M", "b"), STOP, DONE), "m"),
    "none in the middle": (("openai", "chat"), (named("m", "a"), named("", "b"), content("c"), STOP, DONE), "m"),
    "another beside the count": (("openai", "chat"), (named("m", "a"), OTHER_USAGE, STOP, DONE), "m"),
    "a name in the words": (("openai", "chat"), (named("m", "a"), named("m", '"model":"n"'), STOP, DONE), "m"),
    "another line": (
        ("ollama", "chat"),
        (b'{"model":"n","message":{"content":"b"},"done":false}\n', LINE + b"\n"),
        "n, then m",
    ),
    "byte by byte": (("openai", "chat"), tuple(bytes([b]) for b in named("m", "a") + STOP + DONE), "m"),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_the_first_events_name_it_however_they_come(setup: Setup, stream: str) -> None:
    kind, steps, model = STREAMS[stream]
    chunks = [chunk(step) for step in steps if isinstance(step, bytes)]
    for text in (True, False):
        got = one(setup, head(), *chunks, LAST_CHUNK, CLOSE, kind=kind, keep_text=text)
        assert (got.outcome, got.model) == (Outcome.OK, model), text


def test_a_shape_bears_the_name_and_another_name_has_another_shape(setup: Setup) -> None:
    order = ("m", "m", "n", "m", "n")
    scripts = []
    for model in order:
        events = [chunk(named(model, f"w{n}")) for n in range(12)]
        paced: list[Step] = [step for event in events for step in (event, 0.005)]
        scripts.append((head(), *paced, chunk(STOP + DONE), LAST_CHUNK))
    with raw_server(*scripts) as server:
        client = setup.client(server, keep_text=False, fresh=True)
        assert [ask(client, number).model for number, _ in enumerate(order)] == list(order)


def test_a_model_that_changes_between_events_of_a_shape_is_heard(setup: Setup) -> None:
    """Both models' events have a shape that the reader knows: those of one come as stamps, then those of the other."""
    order = (("m", "m"), ("n", "n"), ("m", "n"), ("n", "m"), ("m", "m"))
    scripts = []
    for first, other in order:
        events = [chunk(named(first if n < 12 else other, f"w{n}")) for n in range(24)]
        paced: list[Step] = [step for event in events for step in (event, 0.005)]
        scripts.append((head(), *paced, chunk(STOP + DONE), LAST_CHUNK))
    with raw_server(*scripts) as server:
        client = setup.client(server, keep_text=False, fresh=True)
        told = [ask(client, number).model for number, _ in enumerate(order)]
    assert told == ["m", "n", "m, then n", "n, then m", "m"]


# -- counted -----------------------------------------------------------------------------------------------------------


def test_a_summary_names_the_most_frequent() -> None:
    block = Block(stage=0, phase="steady", by_model={f"m{n}": 100 - n for n in range(20)} | {"other": 500})
    told = requests(block).by_model
    assert list(told) == [*(f"m{n}" for n in range(NAMES_MAX)), "other"]
    assert sum(told.values()) == sum(block.by_model.values())


def test_older_results_name_none() -> None:
    written = json.loads(to_json(sample_runs.summary(sample_runs.run(50))))
    for part in ("requests", "requests_steady"):
        del written[part]["by_model"]
    assert from_json(json.dumps(written).encode()).requests.by_model == {}


def test_a_row_names_a_model_only_where_it_is_another() -> None:
    def told(model: str, asked: str = "gpt-4o") -> Any:
        record = msgspec.structs.replace(sample_runs.request(1, 0), model=model)
        return json.loads(row(record, 0, 0, save_text=False, asked=asked)).get("model")

    assert [told(""), told("gpt-4o"), told("GPT-4o"), told("gpt-4o-2024-08-06")] == [None] * 4
    assert told("gpt-4o-mini") == "gpt-4o-mini"


def test_the_body_has_the_last_word_on_what_is_asked_for() -> None:
    assert Engine(model="unknown", extra_body={"model": "sim"}).asked_model == "sim"
    assert (Engine(model="m").asked_model, Engine().asked_model) == ("m", "")


# -- told --------------------------------------------------------------------------------------------------------------


def ruled(asked: str, by_model: dict[str, int]) -> list[tuple[str, str]]:
    merged = sample_runs.run(1100)
    merged.block(0).by_model = by_model
    profile = msgspec.structs.replace(sample_runs.profile(), engine=Engine(model=asked))
    evidence, summary = Evidence(merged=merged, expected_workers=2, profile=profile), sample_runs.summary(merged)
    found = [rule(evidence, summary) for rule in (models_mixed, model_renamed)]
    return [(doubt.code, doubt.severity) for doubt in found if doubt is not None]


def test_two_releases_behind_one_name() -> None:
    assert ruled("gpt-4o", {"gpt-4o-2024-08-06": 500, "gpt-4o-2024-11-20": 500}) == [("models-mixed", "invalid")]
    assert ruled("gpt-4o", {"gpt-4o-2024-08-06": 990, "gpt-4o-mini": 10}) == [("models-mixed", "degraded")]


def test_answers_that_change_their_model_are_a_mixture() -> None:
    assert ruled("m", {"m, then n": 1000}) == ruled("m", {"m": 500, "m, then n": 500}) == [("models-mixed", "invalid")]
    assert ruled("m", {"m": 990, "m, then n": 10}) == [("models-mixed", "degraded")]
    assert ruled("", {"m, then n": 9}) == [("models-mixed", "degraded")]


def test_names_of_one_model_are_no_mixture() -> None:
    assert ruled("Llama", {"llama": 400, "llama:latest": 300, "/models/Llama": 300}) == []
    assert ruled("m", {}) == ruled("", {"any": 9}) == []


def test_what_a_route_stands_for_is_not_known_to_be_wrong() -> None:
    assert ruled("auto", {"big": 500, "small": 500}) == [("models-mixed", "degraded")]
    assert ruled("auto", {"big": 500}) == [("model-renamed", "note")]


def compared(*names: str | None) -> dict[str, str]:
    by_model = [{} if name is None else {name: 9, "x": 1} for name in names]
    runs = [Run(run_id=f"r{n}", values={}, about=alike.about({}, one)) for n, one in enumerate(by_model)]
    return alike.differences(runs)


def test_sides_that_other_models_answered_are_not_compared() -> None:
    assert "is big in r0 and small in r1" in compared("big", "small")["model"]
    assert "is big in r1 and small in r2" in compared(None, "big", "small")["model"]
    assert compared("big", "vllm/big") == compared("big", None) == compared("big-0613", "big") == {}


PROFILE = """
target: [TARGET]
engine: {model: sim}
dataset: {path: SAMPLES, conversations: single, rounds: same, output_tokens: {fixed: 10}}
load: {stages: [{users: 4, duration: 3s}]}
phases: {warmup: 500ms, settle: 0s, drain: 5s}
"""


def _judged(home: Path, share: str) -> Finished:
    with simulator(
        "--preset", "paced", "--ttft-ms", "50", "--itl-ms", "5", "--condition", f"fallback:{share}"
    ) as engine:
        text = PROFILE.replace("SAMPLES", str(SAMPLES / "sharegpt.json")).replace("TARGET", engine.url)
        (home / "profile.yaml").write_text(text, encoding="utf-8")
        return run(tokenswarm("run", str(home / "profile.yaml"), "--workers", "2"), home)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    shares = ("0", "0.05", "0.25", "1")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(shares, pool.map(_judged, map(tmp_path_factory.mktemp, "abcd"), shares), strict=True))


def doubts(finished: Finished) -> dict[str, dict[str, Any]]:
    found = {doubt["code"]: doubt for doubt in finished.summary["verdict"]["doubts"]}
    return {code: doubt for code, doubt in found.items() if code.startswith("model")}


def test_a_run_that_one_model_answered_raises_no_doubt(judged: dict[str, Finished]) -> None:
    finished = judged["0"]
    assert doubts(finished) == {}
    assert finished.summary["requests"]["by_model"] == {"sim": finished.summary["requests"]["ok"]}
    assert not any("model" in one for one in finished.rows)
    assert [probe["model"] for probe in finished.manifest["engine"]["probes"]] == ["sim"]


@pytest.mark.parametrize(("share", "severity"), [("0.05", "degraded"), ("0.25", "invalid")])
def test_a_fallback_is_named_with_its_count(judged: dict[str, Finished], share: str, severity: str) -> None:
    finished = judged[share]
    (doubt,) = doubts(finished).values()
    steady = finished.summary["requests_steady"]
    assert (doubt["code"], doubt["severity"]) == ("models-mixed", severity)
    assert doubt["evidence"]["answers"] == steady["by_model"]
    assert sum(steady["by_model"].values()) == steady["ok"]
    assert doubt["evidence"]["share"] == steady["by_model"]["smaller"] / steady["ok"]
    assert abs(steady["by_model"]["smaller"] - float(share) * steady["ok"]) <= 2, "evenly spread over all requests"
    rows = Counter(one["model"] for one in finished.rows if "model" in one and one["outcome"] == "ok")
    assert rows == {"smaller": finished.summary["requests"]["by_model"]["smaller"]}
    if severity == "invalid":
        assert finished.code == ExitCode.INVALID


def test_another_name_throughout_is_a_note_before_the_load_and_behind_it(judged: dict[str, Finished]) -> None:
    finished = judged["1"]
    assert {code: doubt["severity"] for code, doubt in doubts(finished).items()} == {"model-renamed": "note"}
    (probe,) = finished.manifest["engine"]["probes"]
    assert probe["model"] == "smaller"
    assert "the first answer names the model smaller; sim was asked for" in probe["note"]
    assert probe["note"] in finished.out
