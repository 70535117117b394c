"""Profiles: what a user may write, the one sentence for everything else, and that nothing else ever comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenswarm.errors import ConfigError
from tokenswarm.profile import options, profile, typed_yaml
from tokenswarm.profile.engine import Engine, same_api
from tokenswarm.profile.environment import cache_folder, push_headers, run_token, secret_headers
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.target import check_url

REPO = Path(__file__).resolve().parent.parent
BASE = "target: http://gpu:8000\ndataset: {path: prompts.json}\n"


def load(more: str = "", **overrides: str) -> Profile:
    """BASE and more lines (which begin at line 3), with --set style overrides (`__` for the dot)."""
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return profile.load(BASE + more, "p.yaml", options.given({"set": pairs}))


def sentence(more: str = "", **overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(more, **overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 500
    return text


# -- what is refused, and how it is said --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("lod: {}", "p.yaml:3: unknown key `lod`; did you mean `load`?"),
        ("load:\n  stages:\n    - {usres: 4}", "p.yaml:5: unknown key `load.stages.0.usres`; did you mean `users`?"),
        ("tls: {zzz: 1}", "p.yaml:3: unknown key `tls.zzz`; known here: ca_file, verify"),
        ("load: {stages: [{duration: 5s}]}", "p.yaml:3: `load.stages.0.users` is missing"),
        ("name: a\nname: b", "p.yaml:4: `name` is given twice"),
        ("engine: {headers: {a: 1, a: 2}}", "p.yaml:3: `engine.headers.a` is given twice"),
        ("engine: {extra_body: {a: {b: 1, b: 2}}}", "p.yaml:3: `engine.extra_body.a.b` is given twice"),
        ("name: &x a", "p.yaml:3: anchors and aliases (& and *) are not allowed; write the value out"),
        ("name: *x", "p.yaml:3: anchors and aliases (& and *) are not allowed; write the value out"),
        ("name: !!str a", "p.yaml:3: tags (!) are not allowed; the field's type is known"),
        ("name: !!python/object/apply:os.system [id]", "p.yaml:3: tags (!) are not allowed"),
        (f"name: {'[' * 40}{']' * 40}", "p.yaml:3: nested deeper than 32 levels"),
        ("? [a]\n: 1", "p.yaml:3: a key must be a word, not a list"),
        ("slo: [1]", "p.yaml:3: `slo` takes `key: value` entries, not a list"),
        ("slo:", "p.yaml:3: `slo` takes `key: value` entries, not a single value"),
        ("name: {a: b}", "p.yaml:3: `name` takes a single value, not a mapping"),
        ("name:", "p.yaml:3: `name` is empty"),
        ("workers: many", "p.yaml:3: `workers: many` is not a whole number"),
        ("workers: 2.0", "p.yaml:3: `workers: 2.0` is not a whole number"),
        ("workers: 1e3", "p.yaml:3: `workers: 1e3` is not a whole number"),
        (f"workers: {'9' * 400}", "is not a whole number"),
        (f"engine: {{seed: {2**64}}}", f"p.yaml:3: `engine.seed: {2**64}` is beyond 64 bits"),
        ("engine: {temperature: 1:30}", "p.yaml:3: `engine.temperature: 1:30` is not a number"),
        ("engine: {temperature: .nan}", "p.yaml:3: `engine.temperature: .nan` is not a number"),
        ("engine: {temperature: nan}", "p.yaml:3: `engine.temperature: nan` is no finite number"),
        ("engine: {temperature: 1e999}", "p.yaml:3: `engine.temperature: 1e999` is no finite number"),
        ("save_text: no", "p.yaml:3: `save_text: no` is neither true nor false"),
        ("save_text: on", "p.yaml:3: `save_text: on` is neither true nor false"),
        ("connections: new", "p.yaml:3: `connections: new` is not one of pooled, fresh"),
        ("phases: {warmup: 1:30}", "p.yaml:3: `phases.warmup: 1:30` is not a duration; write 30s, 2m, 500ms or 1h30m"),
        ("phases: {warmup: 5 minutes}", "p.yaml:3: `phases.warmup: 5 minutes` is not a duration"),
        ("phases: {warmup: -5s}", "p.yaml:3: `phases.warmup: -5s` is not a duration"),
        ("phases: {warmup: 4000d}", "p.yaml:3: `phases.warmup: 4000d` is longer than ten years"),
        (f"phases: {{warmup: {'9' * 100_000}}}", "is not a duration"),
        ('name: "\\uD800"', "p.yaml:3: `name` holds half of a surrogate pair, which UTF-8 can't express"),
        ('engine: {model: "a\\0b"}', "p.yaml:3: `engine.model` holds a NUL character"),
        ('name: "\\UFFFFFFFF"', "p.yaml: not valid YAML: an escape or a directive holds an impossible number"),
        ("name: a\x01b", "p.yaml: not valid YAML text: special characters are not allowed"),
        ('name: "a', "not valid YAML: while scanning a quoted scalar, found unexpected end of stream"),
        ("---\nname: b", "p.yaml:3: not valid YAML: expected a single document in the stream, but found"),
        ("name: a/b", "p.yaml:3: `name: a/b` may hold letters, digits, '.', '_' and '-' only, 64 at most"),
        ("workers: 0", "p.yaml:3: `workers` must be between 1 and 1024"),
        ("event_bytes_max: 10", "p.yaml:3: `event_bytes_max` must be 1024 or more"),
        ("engine: {kind: ollama, api: completions}", "is not spoken by kind ollama; it has: chat, generate"),
        ("engine: {choices: 0}", "p.yaml:3: `engine.choices` must be between 1 and 128, and 1 for ollama"),
        ("engine: {kind: ollama, choices: 2}", "`engine.choices` must be between 1 and 128, and 1 for ollama"),
        ("engine: {api: messages, choices: 2}", "and 1 for ollama, responses, messages"),
        ("engine: {api: messages, seed: 1}", "`engine.seed` is not known to `engine.api: messages`; leave it out"),
        ("engine: {kind: ollama, api: messages, seed: 1}", "p.yaml:3: `engine.seed` is not known to"),
        ("engine: {kind: anthropic}", "is not one of openai, ollama"),
        (
            "engine: {kind: ollama, extra_body: {options: {num_predict: 0}}}",
            "`engine.extra_body`: `num_predict: 0` is no limit to Ollama, or one token, by model; leave it out",
        ),
        ("engine: {kind: ollama, api: responses, extra_body: {max_output_tokens: 0}}", "`max_output_tokens: 0` is no"),
        ("load: {stages: []}", "p.yaml:3: `load.stages` is empty"),
        ("load: {stages: [" + "{users: 1}," * 201 + "]}", "`load.stages` has 201 stages; 200 are the most"),
        ("load: {stages: [{users: 0}]}", "p.yaml:3: `users: 0` must be between 1 and 1000000"),
        ("load: {stages: [{users: 1, duration: 0}]}", "p.yaml:3: `duration` must be longer than 0s"),
        ("load: {spawn_rate: 0}", "p.yaml:3: `load.spawn_rate` must be 0.001 users a second or more"),
        ("load: {kind: poison}", "p.yaml:3: `load.kind: poison` is not one of closed, poisson, constant, gamma"),
        ("load: {kind: poisson}", "p.yaml:3: `load.kind: poisson` needs `load.stages`, such as [{rate: 20, duration"),
        ("load:\n  stages:\n    - users: 1\n    - rate: 5", "p.yaml:6: `load.stages.1.rate` needs an open loop: say"),
        ("load:\n  kind: gamma\n  stages:\n    - users: 4", "p.yaml:6: `load.stages.0.users` is of a closed loop"),
        ("load: {kind: constant, stages: [{duration: 5s}]}", "p.yaml:3: `load.stages.0.rate` is missing"),
        ("load: {kind: gamma, stages: [{rate: 5, users: 5}]}", "p.yaml:3: `rate` and `users` can't both be given"),
        ("load: {kind: poisson, stages: [{rate: 0}]}", "p.yaml:3: `rate: 0` must be between 0.001 and 100000 requests"),
        ("load: {kind: poisson, stages: [{rate: -3}]}", "p.yaml:3: `rate: -3` must be between"),
        ("load: {kind: poisson, stages: [{rate: 1e12}]}", "p.yaml:3: `rate: 1e+12` must be between"),
        ("load: {kind: poisson, stages: [{rate: .nan}]}", "`load.stages.0.rate: .nan` is not a number"),
        ("load: {kind: poisson, stages: [{rate: nan}]}", "`load.stages.0.rate: nan` is no finite number"),
        ("load: {kind: poisson, stages: [{rate: [5, 0]}]}", "p.yaml:3: `rate: 0` must be between"),
        ("load: {kind: poisson, stages: [{rate: []}]}", "p.yaml:3: `rate` takes one number, or two to ramp between"),
        ("load: {kind: poisson, stages: [{rate: [1, 2, 3]}]}", "p.yaml:3: `rate` takes one number, or two"),
        ("load: {kind: poisson, stages: [{rate: 5, duration: 0}]}", "p.yaml:3: `duration` must be longer than 0s"),
        ("load: {burstiness: 2}", "p.yaml:3: `load.burstiness` is of an open loop"),
        ("load: {max_in_flight: 2}", "p.yaml:3: `load.max_in_flight` is of an open loop"),
        (
            "load:\n  kind: poisson\n  burstiness: 2\n  stages: [{rate: 5}]",
            "p.yaml:5: `load.burstiness` is of `load.kind: gamma`, not of poisson",
        ),
        ("load: {kind: gamma, burstiness: 0, stages: [{rate: 5}]}", "`load.burstiness: 0` must be between 0.01 and"),
        ("load: {kind: gamma, think_time: 1s, stages: [{rate: 5}]}", "`load.think_time` is of a closed loop's users"),
        ("load: {kind: gamma, spawn_rate: 1, stages: [{rate: 5}]}", "`load.spawn_rate` is of a closed loop's users"),
        ("load: {kind: gamma, max_in_flight: 0, stages: [{rate: 5}]}", "`load.max_in_flight: 0` must be 1 or more"),
        (
            "workers: 4\nload: {kind: gamma, max_in_flight: 3, stages: [{rate: 5}]}",
            "p.yaml:4: `load.max_in_flight: 3` must be at least 1 for each of 4 workers",
        ),
        ("load: {requests: 0}", "p.yaml:3: `load.requests: 0` must be between 1 and 10000000"),
        ("load: {requests: 1e2}", "`load.requests: 1e2` is not a whole number"),
        ("load:\n  requests: 5\n  stages: [{users: 1}, {users: 2}]", "p.yaml:4: `load.requests` takes one stage"),
        (
            "load: {kind: poisson, requests: 5, stages: [{rate: [5, 80]}]}",
            "p.yaml:3: `load.requests` takes one rate: a ramp",
        ),
        ("load: {kind: trace, requests: 5, trace: {path: a}}", "`load.requests` is not of a trace"),
        ("phases: 5\nload: {requests: 5}", "`phases` is a single value; it has no key `warmup`"),
        ("timeouts: {connect: 0}", "time-outs must be longer than 0s"),
        ("slo: {failed_ratio: 1}", "p.yaml:3: `slo.failed_ratio: 1` holds whatever fails; 1 % is 0.01"),
        ("slo: {failed_ratio: 2}", "p.yaml:3: `slo.failed_ratio: 2.0` must lie between 0 and 1"),
        ("slo: {ttft_s: {p99: -1}}", "p.yaml:3: `slo.ttft_s.p99: -1` is not a duration"),
    ],
)  # fmt: skip
def test_sentence(more: str, said: str) -> None:
    assert said in sentence(more)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("{}", "`dataset.path` is missing (or set `dataset.format: synthetic`)"),
        ("{path: x, skip_bad_ratio: 1}", "`dataset.skip_bad_ratio` must be at least 0 and below 1"),
        ("{path: x, input_tokens: {min: 9, max: 3}}", "the range min 9, max 3 holds nothing"),
        ("{path: x, output_tokens: {fixed: 0}}", "`fixed: 0` must be 1 or more"),
        ("{path: x, output_tokens: {mean: 0.5}}", "`output_tokens.mean` must be 1 or more"),
        ("{format: synthetic, synthetic: {turns: 0}}", "`turns: 0` must be 1 or more"),
        ("{format: synthetic, synthetic: {input_stddev: -1}}", "`input_stddev: -1` must be 0 or more"),
        ("{format: synthetic, synthetic: {conversations: 100000000}}", "takes 10000000 conversations of 1000 turns"),
        ("{format: synthetic, synthetic: {output_mean: 1e9}}", "takes lengths of 1000000 tokens at most"),
    ],
)
def test_sentence_about_the_data_set(dataset: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profile.load(f"target: http://gpu:8000\ndataset: {dataset}", "p.yaml")
    assert str(caught.value).startswith("p.yaml:2: ")
    assert said in str(caught.value)


def test_the_line_of_a_check_is_that_of_the_key_it_names() -> None:
    assert sentence("tls: {}\nengine:\n  kind: openai\n  choices: 0").startswith("p.yaml:6: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.yaml: the file is empty; write at least `target:` and `dataset:`"),
        ("# only a comment\n", "p.yaml: the file is empty"),
        ("just words", "p.yaml:1: expected `key: value` lines at the top level"),
        ("- a list", "p.yaml:1: expected `key: value` lines at the top level"),
        ("name: x", "p.yaml:1: `target` is missing"),
        ("target: http://a", "p.yaml:1: `dataset` is missing"),
        ("target: []\ndataset: {path: x}", "p.yaml:1: `target` is missing"),
        ("a" * (257 << 10), "p.yaml: larger than 256 KiB; is this a profile?"),
    ],
)
def test_sentence_about_the_whole_file(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profile.load(text, "p.yaml")
    assert said in str(caught.value)


def test_a_text_of_a_user_is_shown_short_and_harmless() -> None:
    said = sentence('name: "\\e[2J' + "x" * 300 + '"')
    assert "\x1b" not in said
    assert typed_yaml.shown("a\nb" + "c" * 100) == "a?b" + "c" * 77 + "…"


# -- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("500ms", 0.5), ("1h30m", 5400), ("2m 30s", 150), ("1.5h", 5400), ("2d", 172_800), ("1e3", 1000)],
)
def test_durations(text: str, seconds: float) -> None:
    assert load(f"phases: {{warmup: {text}}}").phases.warmup == pytest.approx(seconds)
    assert profile.seconds(text, "--warmup") == pytest.approx(seconds)


def test_the_type_of_a_field_decides_and_not_the_look_of_its_value() -> None:
    read = load("name: 007\nengine: {model: no, seed: 010, top_p: 1e-1, stop: [yes, 1:30, ~]}\nsave_text: True")
    assert (read.name, read.engine.model, read.engine.seed, read.engine.top_p) == ("007", "no", 10, 0.1)
    assert read.engine.stop == ("yes", "1:30", "~")
    assert read.save_text is True


def test_null_is_none_only_where_none_is_allowed() -> None:
    assert load("engine: {model: ~, seed: null, temperature: }").engine == Engine()
    assert load('engine: {model: "null"}').engine.model == "null"


def test_extra_body_is_read_as_json_would() -> None:
    body = "{a: no, b: 1:30, c: 1e3, d: 010, e: 2001-99-99, f: '5', g: 5, h: -0.5, i: true, k: [null, {l: =}]}"
    assert load(f"engine: {{extra_body: {body}}}").engine.extra_body == {
        "a": "no", "b": "1:30", "c": 1000.0, "d": 10, "e": "2001-99-99", "f": "5", "g": 5, "h": -0.5, "i": True,
        "k": [None, {"l": "="}],
    }  # fmt: skip


def test_one_value_may_stand_where_several_may() -> None:
    assert load().target == ("http://gpu:8000",)
    assert profile.load("target: [http://a, http://b]\ndataset: {path: x}", "p").target == ("http://a", "http://b")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter() -> None:
    assert profile.load("\ufeff" + BASE.replace("\n", "\r\n"), "p") == load()


# -- addresses and secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://a", "https://gpu.example:8443/base/", "http://127.0.0.1:8000", "http://[::1]:11434", "http://a_b-c/p%20q/@x"],
)  # fmt: skip
def test_targets_that_are_good(url: str) -> None:
    assert check_url(url).hostname


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gpu:8000", "must look like http://host:port"),
        ("ftp://gpu", "must look like http://host:port"),
        ("http://", "must look like http://host:port"),
        ("http://a..b", "must look like http://host:port"),
        (f"http://{'a' * 64}.b", "must look like http://host:port"),
        ("http://a:99999", "is no valid URL: Port out of range"),
        ("http://a:x", "is no valid URL"),
        ("http://[::1", "is no valid URL"),
        ("http://[zz::1]", "is no valid URL"),
        ("http://a:0", "must be a base URL without query and with a real port"),
        ("http://a/?k=v", "must be a base URL without query"),
        ("http://a/ b", "holds white space; leave it out"),
        ("http://a:8000 ", "holds white space; leave it out"),
        ("\thttp://a:8000", "holds white space; leave it out"),
        ("http://a/\r\nX: y", "holds white space"),
        ("http://a/\x07y", "may hold ASCII only"),
        ("http://bücher.example", "may hold ASCII only"),
        ("http://me:hunter2@a", "holds a user or password; name a variable under `engine.headers_from_env`"),
        ("me:hunter2@a", "holds a user or password"),
        ("ftp://me:hunter2@a:99999", "holds a user or password"),
    ],
)
def test_targets_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_url(url)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "engine: {headers: {Authorization: hunter2}}",
            "looks like a secret: name a variable under `headers_from_env`",
        ),
        ("engine: {headers: {X-Api-Key: hunter2}}", "looks like a secret"),
        ("engine: {headers_from_env: {Authorization: Bearer hunter2}}", "names a variable; it is not the value itself"),
        ("engine: {headers: {X-Team: ö}}", "may hold printable ASCII only"),
        ('engine: {headers: {X-Team: "a\\r\\nb"}}', "may hold printable ASCII only"),
        ('engine: {headers: {"a b": c}}', "`a b` is no valid header"),
        ("engine: {headers: {Content-Length: 5}}", "or one that tokenswarm sets itself"),
        ("telemetry: {push: http://u:hunter2@a}", "without user, password or query"),
        ("telemetry: {gpu_exporters: [http://a, http://u:hunter2@a]}", "`telemetry.gpu_exporters` must be URLs"),
        ("telemetry: {push_token_env: hunter2-x}", "names an environment variable; it is not the token itself"),
    ],
)
def test_secrets_and_odd_headers_are_refused(more: str, said: str) -> None:
    text = sentence(more)
    assert said in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("key", "given", "said"),
    [
        ("gpu_exporters", "[gpu:9647]", "`telemetry.gpu_exporters: gpu:9647` must look like http://gpu:9647/metrics"),
        ("engine_metrics", "[on]", "`telemetry.engine_metrics: on` must look like http://engine:8000/metrics"),
        ("push", "localhost:9646", "`telemetry.push: localhost:9646` must look like http://127.0.0.1:9646"),
    ],
)
def test_an_address_of_telemetry_without_scheme_is_shown_with_the_mend(key: str, given: str, said: str) -> None:
    assert said in sentence(f"telemetry: {{{key}: {given}}}")


def test_secrets_come_from_the_environment() -> None:
    read = load("engine: {headers_from_env: {Authorization: OPENAI_AUTH}}")
    assert secret_headers(read, {"OPENAI_AUTH": "Bearer k"}) == {"Authorization": "Bearer k"}
    for environ in ({}, {"OPENAI_AUTH": ""}, {"OPENAI_AUTH": "a\nhunter2"}, {"OPENAI_AUTH": "hunter2é"}):
        with pytest.raises(ConfigError) as caught:
            secret_headers(read, environ)
        assert "OPENAI_AUTH" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_the_token_of_a_push_comes_from_the_environment() -> None:
    telemetry = load("telemetry: {push: http://a, push_token_env: T}").telemetry
    assert push_headers(telemetry, {"T": "x"}) == {"authorization": "Bearer x"}
    assert push_headers(load().telemetry, {}) == {}
    with pytest.raises(ConfigError, match=r"T .*is not set"):
        push_headers(telemetry, {})


@pytest.mark.parametrize("words", [["--api-key=hunter2"], ["--token", "hunter2"], ["Authorization: Bearer hunter2"]])
def test_secrets_on_the_command_line_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        options.refuse_secrets(["p.yaml", *words])
    assert "hunter2" not in str(caught.value)


def test_folders_and_tokens_of_the_environment() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/tokenswarm")
    assert cache_folder({"HOME": "/h"}) == Path("/h/.cache/tokenswarm")
    assert run_token({}) == ""
    assert run_token({"TOKENSWARM_RUN_TOKEN": "w"}) == "w"


@pytest.mark.parametrize(
    ("kind", "api", "same"),
    [
        ("openai", "completions", "completions"),
        ("ollama", "completions", "generate"),
        ("ollama", "chat", "chat"),
        ("openai", "generate", "completions"),
        ("openai", "responses", "responses"),
        ("ollama", "messages", "messages"),
        ("nobody", "completions", "completions"),  # refused later, in words
    ],
)
def test_a_locustfile_keeps_its_meaning_with_every_kind_of_engine(kind: str, api: str, same: str) -> None:
    assert same_api(kind, api) == same
