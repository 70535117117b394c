"""Options, --set and SLO files over a profile, and profiles as a whole: any text gives one, or a sentence."""

from __future__ import annotations

import argparse
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswarm.commands.run import make_parser
from tokenswarm.errors import ConfigError
from tokenswarm.profile import options, profile, typed_yaml
from tokenswarm.profile.dataset import Dataset
from tokenswarm.profile.engine import Engine
from tokenswarm.profile.load import ENDLESS_S, Load
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.slo import Percentiles, Slo

REPO = Path(__file__).resolve().parent.parent
BASE = "target: http://gpu:8000\ndataset: {path: prompts.json}\n"


def load(more: str = "", **overrides: str) -> Profile:
    """BASE and more lines (which begin at line 3), with --set style overrides (`__` for the dot)."""
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return profile.load(BASE + more, "p.yaml", options.given({"set": pairs}))


# -- options, --set, SLO files -------------------------------------------------------------------------------------


def test_set_reaches_every_depth() -> None:
    read = load(
        "load: {stages: [{users: 1}, {users: 2}]}",
        load__stages__1__users="7",
        engine__model="a:b",
        dataset__output_tokens="{max: 9}",
        slo__ttft_s__p99="2",
        engine__extra_body__a__b="[1, no]",
    )
    assert [stage.users for stage in read.load.stages] == [1, 7]
    assert (read.engine.model, read.dataset.output_tokens.max) == ("a:b", 9)
    assert read.slo.ttft_s == Percentiles(p99=2.0)
    assert read.engine.extra_body == {"a": {"b": [1, "no"]}}


def test_set_puts_a_whole_list_or_takes_a_value_back() -> None:
    assert load(load__stages="[{users: 3}, {users: 4}]").load.stages[1].users == 4
    assert load("engine: {model: m}", engine__model="").engine.model is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("load.stages.5.users", "1", "--set load.stages.5.users: `5` in `load.stages.5.users` is no position"),
        ("load.stages.²", "1", "is no position of a list of 1; positions count from 0"),
        ("name.first", "x", "--set name.first: `name` is a single value; it has no key `first`"),
        ("lod.x", "1", "--set lod.x: unknown key `lod`; did you mean `load`?"),
        ("workers", "x", "--set workers: `workers: x` is not a whole number"),
        ("dataset.output_tokens.fixed", "0", "--set dataset.output_tokens.fixed: `fixed: 0` must be 1 or more"),
        ("dataset.output_tokens.min", "0", "--set dataset.output_tokens.min: `min: 0` must be 1 or more"),
        ("dataset.synthetic.turns", "0", "--set dataset.synthetic.turns: `turns: 0` must be 1 or more"),
        ("timeouts.idle_token", "0", "--set timeouts.idle_token: `idle_token`: time-outs must be longer than 0s"),
        ("workers", "0", "--set workers: `workers` must be between 1 and 1024"),
        ("engine", "{x", "--set engine: not valid YAML: while parsing a flow mapping"),
        ("name", "&a b", "--set name: anchors and aliases (& and *) are not allowed"),
        (".".join("a" * 40), "1", "nested deeper than 32 levels"),
    ],
)  # fmt: skip
def test_sentence_about_an_override(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profile.load(
            BASE + "name: x\nload: {stages: [{users: 1}]}", "p.yaml", options.given({"set": [f"{key}={value}"]})
        )
    assert said in str(caught.value)


@pytest.mark.parametrize("pair", ["name", "=x", ""])
def test_set_wants_a_key_and_a_value(pair: str) -> None:
    with pytest.raises(ConfigError, match=r"write KEY=VALUE, for example --set load\.think_time=2s"):
        options.given({"set": [pair]})


def test_the_rank_of_what_is_given(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        BASE + "name: file\nengine: {model: file}\nslo: {failed_ratio: 0.5, itl_s: {p50: 1}}"
    )
    (tmp_path / "slo.yaml").write_text("slo: {failed_ratio: 0.25}")
    given_by_user = {"slo": str(tmp_path / "slo.yaml"), "model": "option", "set": ["name=set"]}
    more = [("engine.model", typed_yaml.literal("below", "--host"))]
    read = options.read_profile(str(tmp_path / "p.yaml"), given_by_user, more)
    assert (read.name, read.engine.model) == ("set", "option")
    assert read.slo == Slo(failed_ratio=0.25)  # an SLO file replaces the profile's limits, all of them


def test_an_slo_file_may_do_without_its_top_key() -> None:
    assert profile.load(BASE, "p", (), ("ttft_s: {p99: 1}", "s.yaml")).slo.ttft_s == Percentiles(p99=1.0)
    with pytest.raises(ConfigError, match=r"^s.yaml:2: unknown key `slo.ttft_s.p98`; did you mean `p9[59]`\?$"):
        profile.load(BASE, "p", (), ("ttft_s:\n  p98: 1", "s.yaml"))


def test_without_a_profile_options_must_say_where_and_what() -> None:
    host = [("target", typed_yaml.literal("http://a", "--host"))]
    with pytest.raises(ConfigError, match="no target: give --host"):
        options.read_profile(None, {"dataset": "x"}, [])
    with pytest.raises(ConfigError, match="no data set: give --dataset"):
        options.read_profile(None, {}, host)
    assert options.read_profile(None, {"dataset": "x"}, host).dataset.path == "x"
    for words in (["dataset.format=synthetic"], ["dataset.synthetic.input_mean=9"], ["dataset.synthetic={turns: 2}"]):
        assert options.read_profile(None, {"set": words}, host).dataset.format == "synthetic"
    with pytest.raises(ConfigError, match=r"^--engine: `engine.kind: vllm` is not one of openai, ollama$"):
        options.read_profile(None, {"dataset": "x", "engine": "vllm"}, host)


GENERATES = "target: http://a\ndataset: {format: synthetic, synthetic: {input_mean: 9}}\n"
SENDS = "target: http://a\ndataset: {path: x.json}\n"


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (GENERATES, {"dataset": "y.json"}, ("y.json", "auto")),
        (GENERATES, {"dataset": "y.json", "dataset_format": "alpaca"}, ("y.json", "alpaca")),
        (GENERATES, {"set": ["dataset.path=y.json"]}, ("y.json", "auto")),
        (GENERATES, {"dataset": "y.json", "dataset_format": "synthetic"}, "give one of them"),
        (GENERATES, {"set": ["dataset.synthetic.turns=2"]}, (None, "synthetic")),
        (SENDS, {"dataset_format": "synthetic"}, ("x.json", "synthetic")),
        (SENDS, {"dataset_format": "synthetic", "set": ["dataset.synthetic.turns=2"]}, ("x.json", "synthetic")),
        (SENDS, {"set": ["dataset.synthetic.turns=2"]}, "--set dataset.synthetic.turns: is of generated prompts"),
        (
            None,
            {"dataset": "y", "set": ["dataset.synthetic.turns=2"]},
            "--set dataset.synthetic.turns: is of generated",
        ),
        (None, {"dataset": "y", "dataset_format": "synthetic"}, "give one of them"),
    ],
)
def test_a_file_that_is_named_is_sent(
    text: str | None, given: dict[str, Any], expected: tuple[str | None, str] | str, tmp_path: Path
) -> None:
    path = None if text is None else str(tmp_path / "p.yaml")
    if path is not None and text is not None:
        Path(path).write_text(text)
    host = [("target", typed_yaml.literal("http://a", "--host"))]
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            options.read_profile(path, given, host)
    else:
        found = options.read_profile(path, given, host).dataset
        assert (found.path, found.format) == expected


@pytest.mark.parametrize("locust", [False, True])
def test_options_name_real_keys_and_hold_no_default(locust: bool) -> None:
    class Parser(argparse.ArgumentParser):
        def add_argument(self, *args: Any, include_in_web_ui: bool = True, **kwargs: Any) -> Any:
            assert include_in_web_ui is (not locust or args[0] == "--rate")
            return super().add_argument(*args, **kwargs)

    parser = Parser(add_help=False) if locust else options.parser_of("run")
    options.add_arguments(parser, locust=locust)
    defaults = vars(parser.parse_args([]))
    assert {key: value for key, value in defaults.items() if value} == {"results": "results"}
    for option, (key, _, _) in options.OPTIONS.items():
        part: Any = Profile
        for word in key.split("."):
            part = typing.get_type_hints(section(part))[word]
        assert section(part) is None, option


def section(hint: Any) -> Any:
    """The section that a key of this type holds, also where it may be left out (`TraceSource | None`); or None."""
    return next((part for part in (hint, *typing.get_args(hint)) if options.is_section(part)), None)


def test_a_mistake_in_options_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^unrecognized arguments: --bogus.* \(see tokenswarm run --help\)$"):
        options.parser_of("run").parse_args(["--bogus"])


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    (tmp_path / "utf16").write_bytes("target: x".encode("utf-16"))
    for path, said in {
        tmp_path / "none": "no such file",
        tmp_path: "is a folder",
        tmp_path / "utf16": "is not UTF-8 text",
    }.items():
        with pytest.raises(ConfigError, match=said):
            profile.read_text(path)
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        profile.load(profile.read_text(Path("/dev/zero")), "zero")


# -- as a whole ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((REPO / "configs" / "profiles").glob("*.yaml")), ids=lambda path: path.name)
def test_the_profiles_of_the_project(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    read = profile.load(text, str(path))
    assert read.name == path.stem
    assert text.startswith("# ")
    assert profile.decode(profile.encode(read)) == read
    assert re.search(r"^#.*[.?]", text), "a profile begins with what it is for"


def test_round_trip_of_a_profile_that_sets_everything() -> None:
    read = load(
        "engine: {seed: -3, headers: {a: b}, extra_body: {x: [1, 2.5, {y: null}]}, stop: [a]}\nsave_text: true",
        slo__ttft_s="{p99: 1.5}",
        load__stages="[{users: 2, duration: 1h}]",
        dataset__output_tokens__fixed="5",
    )
    assert profile.decode(profile.encode(read)) == read


STRUCTS = (Profile, Engine, Dataset, Load, Slo, Percentiles)
KEYS = sorted({name for kind in STRUCTS for name in kind.__struct_fields__})
ODD_WORDS = (
    *("", "~", "no", "1:30", "1e3", ".inf", "-1", "30s", "true", "openai", "http://a", "2001-99-99", "[]", "{}", "- 1"),
    *("&a b", "*a", "!!str x", "'", '"\\U00110000"', '"\\e"', "? x", "<<", "=", "%YAML 9"),
)
WORDS = st.one_of(
    st.sampled_from(ODD_WORDS),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
)
TREES: st.SearchStrategy[str] = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from(KEYS), inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=12,
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.tuples(st.sampled_from(KEYS), TREES), max_size=6).map(
        lambda pairs: BASE + "".join(f"{key}: {value}\n" for key, value in pairs if key not in ("target", "dataset"))
    ),
)


@settings(max_examples=300)
@given(text=TEXTS, key=st.lists(st.sampled_from([*KEYS, "0", "9", ""]), min_size=1, max_size=4), value=TREES)
def test_any_text_gives_a_profile_or_a_sentence(text: str, key: list[str], value: str) -> None:
    for overrides in ([], [f"{'.'.join(key)}={value}"]):
        try:
            outcome: Profile | str = profile.load(text, "p.yaml", options.given({"set": overrides}))
        except ConfigError as error:
            outcome = str(error)
        if isinstance(outcome, str):
            assert outcome.isprintable()
            assert len(outcome) < 1000
        else:
            assert profile.decode(profile.encode(outcome)) == outcome


@pytest.mark.parametrize(
    "dense", ["a: [" + "1," * 120_000, "a: " + "[" * 32 + "[]," * 80_000, "{" * 250_000, "? " * 120_000]
)
def test_the_densest_text_is_read_in_bounded_time(dense: str) -> None:
    with pytest.raises(ConfigError):  # pytest's own time-out bounds it; a quadratic reader would take hours
        profile.load(dense, "p.yaml")


# -- words that are none, paths that are elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--concurrency", "--users"),
        ("-u", "--users"),
        ("--userz", "--users"),
        ("--run-time", "--duration"),
        ("--seed", "--set engine.seed=…` or `--set load.seed=…"),  # it means two things: neither is guessed
        ("--spawn-rate", "--set load.spawn_rate=…"),
        ("--temperature", "--set engine.temperature=…"),
        ("--hosts", "--host"),
        ("--base-url", "--host"),
        ("--resutls", "--results"),
    ],
)
def test_an_option_that_there_is_not(word: str, hint: str) -> None:
    assert options.option_hint(word, list(make_parser("run")._option_string_actions)) == f"; did you mean `{hint}`?"


@pytest.mark.parametrize("command", ["run", "search"])
def test_users_and_duration_are_options(command: str) -> None:
    given = vars(make_parser(command).parse_args(["--users", "3", "--duration", "5s", "--host", "http://a"]))
    assert (given["users"], given["duration"]) == ("3", "5s")
    read = options.read_profile(None, given | {"dataset": "x"}, options.of_run(given))
    assert [(stage.users, stage.duration) for stage in read.load.stages] == [(3, 5.0)]


def test_a_trace_takes_the_place_of_the_profiles_stages_and_its_scale_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(BASE + "load: {stages: [{users: 1, duration: 5s}, {users: 2}]}")
    read = options.read_profile(str(tmp_path / "p.yaml"), {"trace": "t.csv", "time_scale": "0.5"}, [])
    assert (read.load.kind, read.load.trace.time_scale) == ("trace", 0.5)  # type: ignore[union-attr]
    assert [(stage.users, stage.duration) for stage in read.load.stages] == [(None, ENDLESS_S)]
    (tmp_path / "t.yaml").write_text(BASE + "load: {kind: trace, trace: {path: a.csv}, stages: [{duration: 5s}]}")
    read = options.read_profile(str(tmp_path / "t.yaml"), {"trace": "t.csv"}, [])
    assert [stage.duration for stage in read.load.stages] == [5.0]
    for more in ({}, {"set": ["load.trace.path=b.csv"]}):
        read = options.read_profile(str(tmp_path / "t.yaml"), {"time_scale": "2", **more}, [])
        assert read.load.trace.time_scale == 2.0  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"^--time-scale goes with --trace, or a profile that has one$"):
        options.read_profile(str(tmp_path / "p.yaml"), {"time_scale": "2"}, [])


@pytest.mark.parametrize("rate", ["5,80", "5..80"])
def test_a_ramp_without_brackets_is_told_how_it_is_written(rate: str) -> None:
    with pytest.raises(ConfigError, match=r"^--rate 5.*80: a ramp stands in brackets: --rate '\[5,80\]'$"):
        options.read_profile(None, {"rate": rate}, [])


def test_no_hint_is_better_than_a_wild_one() -> None:
    assert options.option_hint("--zzz", ["--host", "--set"]) == ""
    assert options.option_hint("--p99", ["--host", "--set"]) == ""  # a key of each latency
    assert options.option_hint("--users", ["--to", "--json"]) == ""


@pytest.mark.parametrize("name", [option[2:].replace("-", "_") for option in options.OPTIONS])
def test_no_option_may_be_given_and_empty(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')} is empty"):
        options.refuse_empty({name: ""})
    options.refuse_empty({name: None})


def test_paths_of_a_profile_are_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "profiles"
    folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    text = "target: http://a\ndataset: {path: d.json}\ntls: {ca_file: certs/ca.pem}\n"
    (folder / "p.yaml").write_text(text, "utf-8")
    (folder / "d.json").write_text("[]", "utf-8")
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "ca.pem").write_text("", "utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")

    read = options.read_profile("../configs/profiles/p.yaml", {}, [])
    assert (read.dataset.path, read.tls.ca_file) == (str(folder / "d.json"), str(tmp_path / "certs" / "ca.pem"))
    typed = options.read_profile("../configs/profiles/p.yaml", {"dataset": "d.json"}, [])
    assert typed.dataset.path == "d.json"  # an option means the folder we stand in
    remote = options.read_profile("../configs/profiles/p.yaml", {"expect_workers": 2}, [])
    assert remote.dataset.path == "d.json"  # workers look for it from where they stand
    (tmp_path / "elsewhere" / "d.json").write_text("[]", "utf-8")
    assert options.read_profile("../configs/profiles/p.yaml", {}, []).dataset.path == "d.json"


def test_limits_are_durations() -> None:
    read = profile.load(BASE, "p", (), ("ttft_s: {p50: 100ms, p99: 2}\ne2e_s: {max: 1m}", "s.yaml")).slo
    assert (read.ttft_s, read.e2e_s) == (Percentiles(p50=0.1, p99=2.0), Percentiles(max=60.0))


@pytest.mark.parametrize(("name", "option"), [("host", "--host"), ("against_host", "--against-host")])
def test_a_target_that_is_none_is_told_with_the_option_that_gave_it(name: str, option: str) -> None:
    given_ = {"host": "http://gpu:1", name: "gpu", "workers": None, "dataset_format": "synthetic"}
    with pytest.raises(ConfigError) as caught:
        options.read_profile(None, given_, options.of_run(given_, name))
    assert str(caught.value).startswith(f"{option}: `target: gpu` must look like")
