"""Before the load: where the API is, which model is asked for, what a first request says. Over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest
from raw_server import CLOSE, raw_server
from running import SAMPLES, run, tokenswarm
from simulator_process import Server, simulator
from small_server import GOOD, JSON, MODELS, NOT_FOUND, SSE, TOKENS, Answer, Asked, Backend, backend, refusal, routes
from typed_streams import MESSAGES, RESPONSES

from tokenswarm.client import hints, preflight, probe
from tokenswarm.client.base_url import meanings
from tokenswarm.client.preflight import Findings
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.errors import TargetError
from tokenswarm.profile import profile as profiles
from tokenswarm.profile import typed_yaml
from tokenswarm.profile.engine import Engine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits of these tests, not of the processes that they start, are shorter."""
    for module in (probe, preflight):
        monkeypatch.setattr(module, "PAUSE_S", 0.1)


LISTS, CHAT = "/v1/models", "/v1/chat/completions"
LOADING = refusal(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
SERVES = {LISTS: MODELS, CHAT: GOOD}


def look(url: str, say: Callable[[str], None] = lambda _: None, **keys: str) -> Findings:
    """The preflight of a small profile with some of its keys set; a hang is a failure."""
    overrides = {"target": url, "dataset.format": "synthetic", **{k.replace("__", "."): v for k, v in keys.items()}}
    nodes = [(key, typed_yaml.parse_value(value, f"--{key}")) for key, value in overrides.items()]
    with gevent.Timeout(30):
        return preflight.check(profiles.load(None, "test", nodes), say)


def refused(url: str, **keys: str) -> str:
    with pytest.raises(TargetError) as caught:
        look(url, **keys)
    return str(caught.value)


def test_who_looks_on_is_called_once_there_is_something_to_see() -> None:
    """Between the list of models and the first request, which an engine beside us works at; not without an answer."""
    profile = profiles.load("{target: http://127.0.0.1:1, dataset: {format: synthetic}}", "test")
    with backend(routes(SERVES)) as server:
        seen: list[list[str]] = []
        profile = msgspec.structs.replace(profile, target=(server.url,))
        preflight.check(profile, answers=lambda: seen.append([one.path for one in server.asked]))
    assert seen == [[LISTS]]
    with pytest.raises(TargetError):
        preflight.check(profile, answers=lambda: seen.append([]))
    assert len(seen) == 1


# -- lists of models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "model", "note"),
    [
        (b'[{"id":"org/a","object":"model"},{"id":"org/b","object":"model"}]', "org/a", ""),
        (b'{"data":["x","org/a"]}', "org/a", ""),
        (b'{"object":"list","data":null}', "org/a", "lists no model; org/a is asked for all the same"),
        (b'{"data":[{"id":"unknown","owned_by":"local"}]}', "org/a", "lists unknown; org/a is asked for all the same"),
        (b'{"data":[{"id":"org/*"},{"id":"x"}]}', "org/a", "lists org/*, x; org/a is asked for all the same"),
        (b'{"data":[{"id":"x"}],"has_more":true}', "org/a", "lists x; org/a is asked for all the same"),
        (b'{"models":[{"name":"x"}],"nextPageToken":"p2"}', "org/a", "lists x; org/a is asked for all the same"),
        (b'\xef\xbb\xbf{"data":[{"id":"org/a"}]}', "org/a", ""),
        (b'{"models":7}', "org/a", "/v1/models is no list of models, so the model's name could not be checked"),
    ],
)
def test_a_named_model_is_asked_for_whatever_the_list_looks_like(body: bytes, model: str, note: str) -> None:
    with backend(routes({LISTS: (200, JSON, body), CHAT: GOOD})) as server:
        found = look(server.url, engine__model=model)
        sent = [one.json["model"] for one in server.posts()]

    assert (found.model, sent) == (model, [model])
    assert [n for n in found.notes if note and n.endswith(note)] == found.notes


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'[{"id":"a"},{"id":"b"}]', "which model? Give `engine.model` (or --model); it has a, b"),
        (b'{"data":null}', "it lists none"),
        (b'{"data":[{"id":"unknown"}]}', "it lists only unknown, which is no name"),
        (b'{"data":[{"id":"*"}]}', "it lists only *, which is no name"),
        (b'{"error":{"message":"invalid key"}}', "not with a list of models (application/json: invalid key)"),
    ],
)
def test_a_list_that_names_no_one_model(body: bytes, words: str) -> None:
    with backend(routes({LISTS: (200, JSON, body), CHAT: GOOD})) as server:
        assert words in refused(server.url)
        assert server.posts() == []


def test_a_redirected_list_names_where_to() -> None:
    with backend(routes({LISTS: (307, {"location": "https://x.example/v1/models"}, b"")})) as server:
        assert "a redirect to https://x.example/v1/models; give" in refused(server.url)


def test_a_packed_list_is_read_within_a_bound() -> None:
    """Who sets `accept-encoding: gzip` for the load sets it for these, too."""
    packed = {**JSON, "content-encoding": "gzip"}
    with backend(routes({LISTS: (200, packed, gzip.compress(MODELS[2])), CHAT: GOOD})) as server:
        assert look(server.url).model == "m"
    with backend(routes({LISTS: (200, packed, gzip.compress(MODELS[2])[:-9]), CHAT: GOOD})) as server:
        assert "the gzip encoding of the answer has no end" in refused(server.url)
    with backend(routes({LISTS: (200, packed, gzip.compress(b" " * (5 << 20))), CHAT: GOOD})) as server:
        assert "the answer has more than 4194304 bytes" in refused(server.url)


def test_the_only_model_of_a_bare_list_is_taken() -> None:
    with backend(routes({LISTS: (200, JSON, b'[{"id":"only"}]'), CHAT: GOOD})) as server:
        assert look(server.url).model == "only"


@pytest.mark.parametrize("status", [400, 500])
def test_a_refused_list_is_told_in_the_servers_words(status: int) -> None:
    with backend(routes({LISTS: refusal(status, {"error": {"message": "No connected db."}}), CHAT: GOOD})) as server:
        said = refused(server.url)

    assert f"HTTP {status}: No connected db.: which model?" in said
    assert "a key is missing" in said


# -- base URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        ("/v1", "openai"),
        ("/v1/", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/v1/completions", "openai"),
        ("/v1/models", "openai"),
        ("/api", "ollama"),
        ("/api/chat", "ollama"),
        ("/api/tags", "ollama"),
        ("/v1", "ollama"),
        ("/v1/responses", "openai"),
        ("/v1/messages", "openai"),
        ("/v1/messages", "ollama"),
    ],
)
@pytest.mark.parametrize("model", ["m", None], ids=["named", "listed"])
def test_the_apis_own_path_at_the_end_is_left_out_and_told_once(tail: str, kind: str, model: str | None) -> None:
    line = b'{"message":{"content":"hi"},"done":false}\n{"message":{"content":""},"done":true,"done_reason":"stop"}\n'
    ollama = {"/api/tags": (200, JSON, b'{"models":[{"name":"m"}]}'), "/api/chat": (200, JSON, line)}
    with backend(routes(dict(SERVES if kind == "openai" else ollama))) as server:
        found = look(server.url + tail, engine__kind=kind, **({"engine__model": model} if model else {}))

    assert found.targets == [server.url]
    assert [one.outcome for one in found.probes] == ["ok"]
    told = f"{server.url}{tail} ends in a path of the API itself; {server.url} is used as the base URL"
    assert found.notes == [told]


@pytest.mark.parametrize("prefix", ["/openai", "/openai/v1", "/v1"])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "no list"])
def test_a_true_prefix_is_kept(prefix: str, listed: bool) -> None:
    table: dict[str, Any] = {f"{prefix}{CHAT}": GOOD} | ({f"{prefix}{LISTS}": MODELS} if listed else {})
    with backend(routes(table)) as server:
        found = look(server.url + prefix, engine__model="m")

    assert found.targets == [server.url + prefix]
    assert not any("base URL" in note for note in found.notes)


def test_v1_behind_a_true_prefix() -> None:
    with backend(routes({f"/openai{path}": answer for path, answer in SERVES.items()})) as server:
        assert look(server.url + "/openai/v1").targets == [server.url + "/openai"]


def test_a_path_that_is_nowhere_is_one_sentence_and_a_request_to_each_place_that_it_may_have() -> None:
    with backend(routes({})) as server:
        said = refused(server.url + "/v1", engine__model="m")

        assert [one.path for one in server.posts()] == ["/v1/v1/chat/completions", CHAT]
        elsewhere = refused(server.url + "/x", engine__model="m")
        assert [one.path for one in server.posts()[2:]] == ["/x/v1/chat/completions", "/x/chat/completions"]
    assert f"{server.url}/x{CHAT}: the first request failed" in elsewhere
    assert f"{server.url}{CHAT}: the first request failed" in said
    assert "HTTP 404: Not Found; `target` takes the base URL, without the API's path" in said
    assert "another path: `engine.path`" in said


@pytest.mark.parametrize("tail", ["", "/", "/chat/completions"])
@pytest.mark.parametrize("model", ["m", None], ids=["named", "listed"])
@pytest.mark.parametrize("base", ["/v3", "/api/paas/v4", "/v1beta/openai", ""])
def test_a_base_url_of_openais_clients_is_taken_as_theirs(base: str, model: str | None, tail: str) -> None:
    with backend(routes({f"{base}/models": MODELS, f"{base}/chat/completions": GOOD})) as server:
        found = look(server.url + base + tail, **({"engine__model": model} if model else {}))

    assert (found.path, found.model) == ("/chat/completions", "m")
    assert [url.rstrip("/") for url in found.targets] == [server.url + base]
    assert [one.outcome for one in found.probes] == ["ok"]
    assert found.notes == [f"{found.targets[0]} has no {CHAT}; `engine.path: /chat/completions` is used"]


def test_a_key_that_a_base_url_of_openais_clients_wants_is_asked_for_there() -> None:
    with backend(routes({"/v3/models": refusal(401, {"error": "Unauthorized"})})) as server:
        assert f"{server.url}/v3/models: HTTP 401, the server wants a key" in refused(server.url + "/v3")


def test_an_api_without_the_version_of_its_list_is_found_by_the_first_request() -> None:
    with backend(routes({LISTS: MODELS, "/chat/completions": GOOD})) as server:
        found = look(server.url)
    assert (found.path, found.model, found.targets) == ("/chat/completions", "m", [server.url])


def test_a_path_that_is_named_is_asked_and_no_other() -> None:
    base = "/openai/deployments/m"
    table = {f"{base}/models?v=2": MODELS, f"{base}/chat/completions?v=2": GOOD}
    with backend(routes({**table, **SERVES})) as server:
        found = look(server.url, engine__path=f"{base}/chat/completions?v=2")
    assert (found.path, found.targets) == (f"{base}/chat/completions?v=2", [server.url])
    assert {one.path for one in server.asked} - {"/version", "/api/version"} == set(table)
    with backend(routes({"/v1/models": MODELS, "/say": GOOD})) as server:
        assert look(server.url, engine__path="/say").model == "m", "the list stands where it always does"


def test_targets_of_different_paths_are_told_apart() -> None:
    with backend(routes(dict(SERVES))) as one, backend(routes({"/models": MODELS, "/chat/completions": GOOD})) as two:
        assert "under different paths: None, /chat/completions" in refused(f"[{one.url}, {two.url}]")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("v3/chat", "must look like /v3/chat/completions"),
        ("/v3/ch at", "must look like /v3/chat/completions"),
        ("/v3/chat#a", "must look like /v3/chat/completions"),
        ("/chat?token=abcdef", "looks like a secret"),
    ],
)
def test_paths_that_are_none(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(path=path)


def test_a_key_that_only_the_doubled_path_wants_does_not_hide_the_right_one() -> None:
    wall = refusal(401, {"error": "Unauthorized"})
    with backend(routes({"/v1/v1/models": wall, **SERVES})) as server:
        assert look(server.url + "/v1").targets == [server.url]


def test_where_both_answer_the_url_is_taken_at_its_word() -> None:
    with backend(routes({**SERVES, **{f"/v1{path}": answer for path, answer in SERVES.items()}})) as server:
        assert look(server.url + "/v1").targets == [server.url + "/v1"]


def test_a_true_prefix_that_wants_a_key() -> None:
    with backend(routes({"/v1/v1/models": refusal(401, {"error": "Unauthorized"})})) as server:
        assert f"{server.url}/v1/v1/models: HTTP 401, the server wants a key" in refused(server.url + "/v1")


def test_meanings_take_one_tail_off() -> None:
    assert meanings("https://a/api/v1/") == ["https://a/api/v1/", "https://a/api"]
    assert meanings("http://a:1/openai") == ["http://a:1/openai"]


# -- the first request ---------------------------------------------------------------------------------------------


def test_the_first_request_is_the_loads_own_but_for_its_words() -> None:
    keys = {"dataset__output_tokens": "{fixed: 400}", "engine__seed": "7", "engine__headers": "{x-team: a}"}
    with backend(routes(dict(SERVES))) as server:
        found = look(server.url, **keys)
        [post] = server.posts(CHAT)

    assert post.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 16,
        "seed": 7,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert post.headers["x-team"] == "a"
    assert post.headers["x-request-id"].startswith("probe-")
    [sent] = found.probes
    assert (sent.requests, sent.outcome, sent.output_tokens, sent.note) == (1, "ok", 2, "")
    assert 0 < sent.ttft_s <= sent.e2e_s


def test_no_length_is_asked_where_the_load_asks_for_none() -> None:
    with backend(routes(dict(SERVES))) as server:
        look(server.url, dataset__output_tokens="{from_dataset: false}")
        [post] = server.posts()
    assert not {"max_tokens", "ignore_eos"} & post.json.keys()


def test_each_target_gets_one() -> None:
    with backend(routes(dict(SERVES))) as one, backend(routes({LISTS: MODELS})) as two:
        assert "/v1/chat/completions: the first request failed" in refused(f"[{one.url}, {two.url}]")
        assert (len(one.posts(CHAT)), len(two.posts(CHAT))) == (1, 1)


def test_without_it_nothing_is_posted() -> None:
    with backend(routes({LISTS: MODELS})) as server:
        assert look(server.url, engine__probe="false").probes == []
        assert server.posts() == []


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (422, {"detail": "Unexpected fields: {'ignore_eos'}"}, "`ignore_eos` out with --set dataset.ignore_eos=false"),
        (
            400,
            {"message": "Validation: Unsupported parameter(s): `stream_options`", "type": "Bad Request", "code": 400},
            "`stream_options` out with --set engine.include_usage=false",
        ),
        (
            422,
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "`seed` out with --set engine.seed=",
        ),
        (400, {"error": {"message": "unknown field `n`"}}, "`n` out with --set engine.choices=1"),
        (400, {"error": "top_k is not known"}, "`top_k` stands under `engine.extra_body`: take it out there"),
        (400, {"error": "bad request"}, "if it does not know one of include_usage, max_tokens"),
        (404, {"error": {"message": "The model `m` does not exist"}}, "is the model's name right?"),
        (405, {"detail": "Method Not Allowed"}, "without the API's path"),
        (500, {"error": "wrong type in options"}, "HTTP 500: wrong type in options"),
        (302, b"", "redirects are not followed; give the final address as target"),
    ],
)
def test_what_is_refused_once_is_not_fired_at(status: int, body: object, words: str) -> None:
    table = {LISTS: MODELS, CHAT: refusal(status, body)}
    with backend(routes(dict(table))) as server:
        said = refused(server.url, engine__seed="7", engine__choices="2", engine__extra_body="{top_k: 3}")

        assert len(server.posts(CHAT)) == (3 if status == 500 else 1)
    assert words in said
    assert f"{server.url}{CHAT}: the first request failed, and so would the load: HTTP {status}" in said


@pytest.mark.parametrize(
    ("kind", "api", "words"),
    [
        ("openai", "responses", "`max_output_tokens` out with --set 'dataset.output_tokens={from_dataset: false}'"),
        ("openai", "messages", "`max_tokens` is always sent there; ask for less with --set dataset.output_tokens.max="),
        ("ollama", "chat", "`num_predict` is always sent there; ask for less"),
        ("ollama", "responses", "`max_output_tokens` is always sent there; ask for less"),
    ],
)
def test_a_limit_that_is_refused_is_told_by_the_apis_own_name(kind: str, api: str, words: str) -> None:
    row = DIALECTS[kind, api]
    limit = words.partition("` ")[0].strip("`")
    models = (200, JSON, b'{"models":[{"name":"m"}]}') if kind == "ollama" else MODELS
    table = {row.models_path: models, row.path: refusal(400, {"error": {"message": f"{limit} is too large"}})}
    with backend(routes(table)) as server:
        assert words in refused(server.url, engine__kind=kind, engine__api=api)


@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("api", ["responses", "messages"])
def test_the_first_request_speaks_the_typed_apis(kind: str, api: str) -> None:
    row = DIALECTS[kind, api]
    models = (200, JSON, b'{"models":[{"name":"m"}]}') if kind == "ollama" else MODELS
    body = {"responses": RESPONSES["text"][0], "messages": MESSAGES["text"][0]}[api]
    with backend(routes({row.models_path: models, row.path: (200, SSE, body)})) as server:
        found = look(server.url, engine__kind=kind, engine__api=api)
        (post,) = server.posts()
        versions = {one.headers.get("anthropic-version") for one in server.asked if one.path.startswith(row.path)}
    assert (found.model, [probe.outcome for probe in found.probes]) == ("m", ["ok"])
    assert post.json["max_tokens" if api == "messages" else "max_output_tokens"] == 16
    assert versions == ({"2023-06-01"} if api == "messages" else {None})


def test_options_are_options() -> None:
    """Each option that a refusal names is one that the profile takes, and that leaves the field out."""
    for name, mend in hints._MENDS.items():
        key, _, value = mend.removeprefix("--set ").strip("'").partition("=")
        on = {"engine__choices": "2", "engine__seed": "1", "engine__temperature": "1", "engine__top_p": "1"}
        on |= {"engine__stop": "[a]", "engine__continuous_usage": "true", "engine__include_usage": "false"}
        if name in ("include_usage", "stream_options"):
            on |= {"engine__continuous_usage": "false", "engine__include_usage": "true"}
        with backend(routes(dict(SERVES))) as server:
            look(server.url, **on)
            look(server.url, **{**on, key.replace(".", "__"): value})
            before, after = (hints._fields(post.json) for post in server.posts())
        assert name in before
        assert name not in after, mend


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "the server wants a key; name its variable under `engine.headers_from_env`"),
        ({"OPENAI_API_KEY": "sk-canary-1"}, 'export OPENAI_AUTH="Bearer $OPENAI_API_KEY"'),
        ({"KEY": "sk-canary-1"}, "the key in KEY was refused; the variable must hold `Bearer …`"),
        ({"KEY": "Bearer sk-canary-1"}, "the key in KEY was refused: is it the right one"),
    ],
)
@pytest.mark.parametrize("where", ["list", "post"])
def test_a_key_that_is_missing_or_wrong(
    environ: dict[str, str], words: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    wall = refusal(401, {"error": {"message": "Incorrect API key provided: sk-canary-1"}})
    keys = {"engine__headers_from_env": "{Authorization: KEY}"} if "KEY" in environ else {}
    with backend(routes({LISTS: wall if where == "list" else MODELS, CHAT: wall})) as server:
        said = refused(server.url, **keys)

    assert words in said
    assert "canary" not in said if "KEY" in environ else "HTTP 401" in said


def sequence(*answers: Answer) -> Callable[[Asked], Answer]:
    """One answer after the other, the last one for ever."""
    left = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda _: next(left)


@pytest.mark.parametrize("answer", [LOADING, refusal(502, b"<html>Bad Gateway</html>"), refusal(503, b"no workers")])
@pytest.mark.parametrize("path", [LISTS, CHAT])
def test_a_server_that_still_loads_is_waited_for(answer: Answer, path: str) -> None:
    said: list[str] = []
    with backend(routes({**SERVES, path: sequence(answer, answer, SERVES[path])})) as server:
        found = look(server.url, said.append)

    assert found.probes[-1].outcome == "ok"
    assert len(said) == 1
    assert "waiting up to 60 s" in said[0]


def test_a_server_that_never_tells_a_finish_reason_is_measured_where_one_says_so(home: Path) -> None:
    untold = TOKENS.replace(b'"finish_reason":"stop"', b'"finish_reason":null')
    with backend(routes({LISTS: MODELS, CHAT: (200, SSE, untold)})) as server:
        words = ("run", "p.yaml", "--host", server.url)
        plain = run(tokenswarm(*words, "--results", "plain"), home, 60)
        told = run(tokenswarm(*words, "--set", "engine.done_ends=true", "--results", "told"), home, 60)
    assert {row["outcome"] for row in plain.rows} == {"truncated"}
    assert "where the server never tells one: `engine.done_ends: true`" in plain.rows[0]["error"]
    assert plain.code == 11
    assert {(row["outcome"], row["finish_reason"]) for row in told.rows} == {("ok", None)}
    assert "ends-untold" in [doubt["code"] for doubt in told.summary["verdict"]["doubts"]]


def test_an_error_object_can_say_that_it_still_loads() -> None:
    event = (200, SSE, b'data: {"error":{"message":"Service temporarily unavailable","code":503}}\n\ndata: [DONE]\n\n')
    with backend(routes({LISTS: MODELS, CHAT: sequence(event, event, event, event, GOOD)})) as server:
        assert look(server.url).probes[0].requests == 5


@pytest.mark.parametrize(("path", "model"), [(LISTS, None), (CHAT, None), (LISTS, "m")])
def test_it_is_waited_for_with_a_bound(path: str, model: str | None) -> None:
    both = {LISTS: LOADING, CHAT: LOADING} if model else {**SERVES, path: LOADING}
    with backend(routes(dict(both))) as server:
        said = refused(server.url, timeouts__ready="1s", **({"engine__model": model} if model else {}))

    assert re.search(r"still loading, or not ready, after \d+ s: HTTP 503: Loading model", said)
    assert "raise `timeouts.ready`" in said


@pytest.mark.parametrize(
    "answer",
    [
        refusal(429, {"error": "slow down"}, retry_after="1"),
        refusal(503, {"error": "server busy, please try again.  maximum pending requests exceeded"}),
        refusal(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        (200, SSE, b"data: [DONE]\n\n"),
        (200, SSE, TOKENS[:80]),
    ],
)
def test_a_busy_server_is_the_loads_business(answer: Answer) -> None:
    with backend(routes({LISTS: MODELS, CHAT: answer})) as server:
        found = look(server.url)

        assert len(server.posts()) == 1
    assert "the load begins all the same" in found.notes[0]


def test_a_failure_by_chance_is_tried_again_and_told_apart() -> None:
    odd = refusal(500, {"error": "odd"})
    with backend(routes({LISTS: MODELS, CHAT: sequence(odd, odd, GOOD)})) as server:
        [sent] = look(server.url).probes
    assert (sent.requests, sent.outcome) == (3, "ok")


def test_a_server_that_never_answers_the_first_request() -> None:
    never = threading.Event()
    with backend(routes({LISTS: MODELS, CHAT: lambda _: (never.wait(20) and GOOD) or NOT_FOUND})) as server:
        said = refused(server.url, timeouts__first_token="500ms")
        never.set()
    assert "no token within 0.5 s" in said
    assert "raise `timeouts.ready`" in said


def test_an_answer_that_begins_and_brings_no_token_is_the_loads_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ACCEPTED_S", 0.3)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    lists = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 21\r\n\r\n{"data":[{"id":"m"}]}'
    with raw_server((lists,), (head,), (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",)) as server:
        found = look(f"http://127.0.0.1:{server.port}")

    assert found.probes[0].outcome == "timeout"
    assert "the answer began, but no token came within 0.3 s; the load begins all the same" in found.notes[0]


# -- the scheme ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a certificate for localhost, with its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", str(folder / "k.pem"), "-out", str(folder / "c.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *files, "-days", "1", "-subj", "/CN=localhost"], check=True, capture_output=True)
    return str(folder / "c.pem")


@pytest.fixture(scope="module")
def certificate(trusted: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, trusted.replace("c.pem", "k.pem"))
    return context


def test_http_to_a_port_that_speaks_tls(certificate: ssl.SSLContext) -> None:
    with raw_server((), tls=certificate) as server:
        said = refused(f"http://127.0.0.1:{server.port}")
    assert "speaks TLS: write https:// instead of http://" in said


def test_http_to_a_tls_port_that_explains_itself(certificate: ssl.SSLContext) -> None:
    """As nginx and Go's servers: they look at the first byte, and answer plain HTTP with a 400."""
    page = b"The plain HTTP request was sent to HTTPS port"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, contextlib.suppress(OSError):
                        if sock.recv(1, socket.MSG_PEEK) == b"\x16":
                            certificate.wrap_socket(sock, server_side=True).close()
                        else:
                            sock.recv(65_536)
                            sock.sendall(
                                b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%s" % (len(page), page)
                            )

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        assert "speaks TLS: write https:// instead of http://" in refused(f"http://127.0.0.1:{port}")
        listener.shutdown(socket.SHUT_RDWR)


def test_https_to_a_port_that_speaks_http() -> None:
    with backend(routes(dict(SERVES))) as server:
        said = refused(server.url.replace("http:", "https:"))
    assert "speaks plain HTTP, no TLS: write http:// instead of https://" in said


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda one: one.name)
@pytest.mark.parametrize("reads", [False, True], ids=["resets", "ends"])
def test_a_server_that_wants_a_client_certificate(trusted: str, version: ssl.TLSVersion, reads: bool) -> None:
    """TLS 1.3 tells of it behind the hand-shake, where the request is under way: who does not read it resets."""
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.load_cert_chain(trusted, trusted.replace("c.pem", "k.pem"))
    asking.load_verify_locations(trusted)
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.minimum_version = asking.maximum_version = version
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    kept = sock.dup()
                    with kept, contextlib.suppress(OSError):
                        try:
                            asking.wrap_socket(sock, server_side=True)
                        except ssl.SSLError:
                            time.sleep(0.05)
                            if reads:
                                kept.recv(65_536)

        threading.Thread(target=serve, daemon=True).start()
        port = listener.getsockname()[1]
        said = refused(f"https://localhost:{port}", tls__ca_file=trusted)
        listener.shutdown(socket.SHUT_RDWR)
    assert "the server wants a client certificate, and tokenswarm has none to show" in said
    assert "is the server running" not in said


def test_who_is_not_trusted_can_be_named(certificate: ssl.SSLContext) -> None:
    with raw_server((), tls=certificate) as server:
        said = refused(f"https://localhost:{server.port}")
    assert said.endswith("self-signed certificate; if it should be, name its CA: --set tls.ca_file=FILE")


HTTP_2 = bytes.fromhex("000012040000000000 000300000080 000400010000 000500ffffff 000008070000000000 0000000000000001")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_speaks_http_2_only(certificate: ssl.SSLContext, scheme: str) -> None:
    with raw_server((HTTP_2, CLOSE), tls=certificate if scheme == "https" else None) as server:
        said = refused(f"{scheme}://127.0.0.1:{server.port}", tls__verify="false")
    assert "the server speaks HTTP/2 only: let it, or a proxy before it, speak HTTP/1.1" in said


# -- whole runs ----------------------------------------------------------------------------------------------------

PROFILE = """
target: http://127.0.0.1:9
dataset: {path: %s, output_tokens: {max: 4}}
load: {stages: [{users: 2, duration: 1s}]}
phases: {warmup: 200ms, drain: 2s}
telemetry: {engine_metrics: off}
""" % (SAMPLES / "sharegpt.json")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(PROFILE, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--ttft-ms", "5", "--itl-ms", "2", "--model", "m") as server:
        yield server


def count(server: Backend) -> int:
    return len(server.posts())


def test_the_first_request_stands_in_the_manifest_and_in_no_count(engine: Server, home: Path) -> None:
    before = engine.truth()["totals"]["received"]
    finished = run(tokenswarm("run", "p.yaml", "--host", engine.url + "/v1"), home, 60)
    received = engine.truth()["totals"]["received"] - before

    assert finished.went_well, finished.out
    [sent] = finished.manifest["engine"]["probes"]
    assert (sent["requests"], sent["outcome"]) == (1, "ok")
    assert finished.summary["requests"]["sent"] == len(finished.rows) == received - 1
    assert not [row for row in finished.rows if "probe" in row["id"]]
    assert finished.manifest["profile"]["target"] == [engine.url]
    assert finished.out.count("ends in a path of the API itself") == 1


def test_a_whole_run_below_a_version_of_its_own(home: Path) -> None:
    with backend(routes({"/v3/models": MODELS, "/v3/chat/completions": GOOD})) as server:
        finished = run(tokenswarm("run", "p.yaml", "--host", server.url + "/v3"), home, 60)
        assert {one.path for one in server.posts()} == {"/v3/chat/completions"}
    assert finished.went_well, finished.out
    assert finished.manifest["profile"]["engine"]["path"] == "/chat/completions"


def test_no_probe(engine: Server, home: Path) -> None:
    before = engine.truth()["totals"]["received"]
    finished = run(tokenswarm("run", "p.yaml", "--host", engine.url, "--no-probe"), home, 60)

    assert finished.manifest["engine"]["probes"] == []
    assert finished.summary["requests"]["sent"] == engine.truth()["totals"]["received"] - before


# -- who stands between, and gzip ----------------------------------------------------------------------------------

PACKED: Answer = (200, {**SSE, "content-encoding": "gzip", "Server": "nginx/1.22.1"}, gzip.compress(TOKENS))


def test_the_first_answer_tells_who_stands_between() -> None:
    via = {**SSE, "Server": "nginx/1.22.1", "Via": "1.1 edge", "Age": "0", "X-Cache": "MISS", "Set-Cookie": "s=1"}
    long = {"X-Litellm-Version": "v" * 500}
    with backend(routes({LISTS: MODELS, CHAT: (200, {**via, **long}, TOKENS)})) as server:
        (probed,) = look(server.url).probes
    assert probed.marks == {
        "server": "nginx/1.22.1", "via": "1.1 edge", "age": "0", "x-cache": "MISS", "x-litellm-version": "v" * 120,
    }  # fmt: skip


def test_who_asks_for_gzip_and_gets_it_is_told_what_the_plain_answer_is_like() -> None:
    def answer(one: Asked) -> Answer:
        return PACKED if "gzip" in one.headers["accept-encoding"] else GOOD

    with backend(routes({LISTS: MODELS, CHAT: answer})) as server:
        found = look(server.url, engine__headers="{accept-encoding: gzip}")
        assert [one.headers["accept-encoding"] for one in server.posts(CHAT)] == ["gzip", "identity"]
        (note,) = found.notes
        assert "packed (gzip)" in note
        assert "clients that don't ask for gzip get another stream" in note
        assert found.probes[0].marks["server"] == "nginx/1.22.1"
        assert look(server.url).notes == []
