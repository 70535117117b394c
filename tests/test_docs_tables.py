"""The tables of the pages are those of the code: profile keys, messages, outcomes, exit codes, faults, data sets."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gevent
import msgspec
import pytest
from exchanges import PROMPT, QUICK, SAMPLING, Setup
from raw_server import LAST_CHUNK, chunk, head, raw_server
from simulator_process import Server, simulator

from tokenswarm import __version__
from tokenswarm.client.sending import Request
from tokenswarm.clock import monotonic_ns
from tokenswarm.commands.fetch import KNOWN
from tokenswarm.engines import Dialect, NotAnEvent, dialects
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.engines.framing import sse
from tokenswarm.errors import ExitCode
from tokenswarm.profile import profile, typed_yaml
from tokenswarm.profile.bars import Bars
from tokenswarm.profile.dataset import ROWS_MAX, Dataset
from tokenswarm.profile.engine import CHOICES_MAX
from tokenswarm.profile.load import STAGES_MAX
from tokenswarm.profile.phases import Phases, Timeouts
from tokenswarm.profile.slo import Slo
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.record import LENGTH_REASONS, Outcome
from tokenswarm.simulator import conditions, faults, truth
from tokenswarm.simulator.presets import PRESETS, Preset

REPO = Path(__file__).resolve().parent.parent


def page(name: str) -> str:
    return (REPO / "docs" / f"{name}.md").read_text("utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """Cells of each table row, but for heads and the rules below them."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not any(re.fullmatch(r"[|-]+", other) for other in (line, following)):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def section(name: str, heading: str) -> str:
    """The part of a page from a heading to the next one of the same rank or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", page(name), re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[2]


def constant(path: str, name: str) -> Any:
    """A number of a file that must not be imported here, since it imports Locust."""
    for node in ast.parse((REPO / path).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


# -- profile.md ----------------------------------------------------------------------------------------------------


def type_text(hint: Any) -> str:
    """A field's type in the words of the page."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return type_text(next(kind for kind in inner if kind is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        return {str: "list of texts", float: "number, or two", int: "number, or two"}.get(inner[0], "list of stages")
    if origin is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", Seconds: "duration"}[hint]


def fields(kind: type[msgspec.Struct], path: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, default or NODEFAULT) of a section and all below it; `load.stages.users` for list items."""
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        key, hint = f"{path}{field.name}", hints[field.name]
        made = field.default_factory is not msgspec.NODEFAULT
        yield key, hint, field.default_factory() if made else field.default
        for inner in (hint, *typing.get_args(hint)):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                yield from fields(inner, f"{key}.")


FIELDS = {key: (hint, default) for key, hint, default in fields(profile.Profile, "")}
KEY_ROWS = {words(cells[0])[0]: cells[1:] for cells in rows(page("profile")) if len(cells) == 4 and words(cells[0])}
TOLD_ONCE = ("dataset.answer_tokens.", *(f"slo.{name}." for name in Slo.__struct_fields__ if name != "ttft_s"))
TOLD_ONCE += tuple(f"bars.{name}." for name in Bars.__struct_fields__ if name != "ttft_s")
"""Sections with the same keys as another one."""


def test_the_page_has_every_key_of_the_profile_and_no_other() -> None:
    assert set(KEY_ROWS) == {key for key in FIELDS if not key.startswith(TOLD_ONCE)}


@pytest.mark.parametrize("key", KEY_ROWS)
def test_type_and_default_of_a_key(key: str) -> None:
    hint, default = FIELDS[key]
    kind, shown, meaning = KEY_ROWS[key]
    assert kind == type_text(hint)
    assert meaning or key.startswith("slo.ttft_s.")
    if default is msgspec.NODEFAULT:
        assert shown == "required"
    elif default is None:
        assert shown == "–"
    elif isinstance(default, msgspec.Struct):
        assert shown == "below"
    elif default in ((), {}):
        assert shown == "none"
    else:
        assert typed_yaml.read(typed_yaml.parse_value(words(shown)[0], "page"), hint, key) == default


@pytest.mark.parametrize(
    "said",
    [
        f"A file may have {typed_yaml.TEXT_BYTES_MAX >> 10} KiB and {typed_yaml.DEPTH_MAX} levels.",
        f"{STAGES_MAX} at most",
        f"{CHOICES_MAX} at most",
        f"{ROWS_MAX:,} at most".replace(",", " "),
    ],
)
def test_bounds_of_the_profile(said: str) -> None:
    assert said in page("profile")


def test_ready_made_profiles() -> None:
    named = {words(cells[0])[0] for cells in rows(section("profile", "Ready-made profiles")) if words(cells[0])}
    assert named == {str(path.relative_to(REPO)) for path in REPO.glob("configs/profiles/*.yaml")}


# -- architecture.md, ci.md, changelog.md --------------------------------------------------------------------------


def test_every_message_between_master_and_workers() -> None:
    source = (REPO / "tokenswarm/cluster/messages.py").read_text("utf-8")
    listed = {words(c[0])[0]: c[1] for c in rows(section("architecture", "Between master and workers")) if words(c[0])}
    for name, sender in (("ToMaster", "worker"), ("ToWorker", "master")):
        kind = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
        messages = {ast.literal_eval(line.value) for line in kind.body if isinstance(line, ast.Assign)}
        assert messages == {message for message, who in listed.items() if who == sender}


def test_every_outcome() -> None:
    listed = [words(c[0])[0] for c in rows(section("architecture", "Which failure has which outcome")) if words(c[0])]
    assert sorted(listed) == sorted(outcome.value for outcome in Outcome)


def test_every_exit_code() -> None:
    listed = {int(cells[0]) for cells in rows(section("ci", "Exit codes")) if cells[0].isdigit()}
    assert listed == {int(code) for code in ExitCode}


WORKER, RUNNERS, CONTROLLER = (f"tokenswarm/cluster/{name}.py" for name in ("worker", "runners", "controller"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("architecture", f"hears nothing from the master for {constant(RUNNERS, 'SILENCE_S'):g} s"),
        ("architecture", f"A worker from which nothing came for {constant(RUNNERS, 'SILENCE_S'):g} s"),
        ("architecture", f"they say hello, within {constant(CONTROLLER, 'JOIN_S'):g} s"),
        ("architecture", f"in the same order with {constant(WORKER, 'INTERRUPT_DRAIN_S'):g} s for open streams"),
        ("architecture", f"models and version, {constant('tokenswarm/client/preflight.py', 'ANSWER_S'):g} s each"),
        ("architecture", f"the decoder takes {constant('tokenswarm/client/decoding.py', 'SLICE_READS')} reads"),
        ("architecture", f"are therefore up to {constant('tokenswarm/client/decoding.py', 'SWEEP_S'):g} s late"),
        ("architecture", f"{Phases().warmup:g} s of warm-up"),
        ("architecture", f"{Phases().settle:g} s to settle"),
        ("architecture", f"{Phases().drain:g} s at most"),
        ("scale-out", f"11 if the master was silent for {constant(RUNNERS, 'SILENCE_S'):g} s"),
        ("soak", f"open streams get {constant(WORKER, 'INTERRUPT_DRAIN_S'):g} s"),
    ],
)
def test_a_number_in_a_sentence(name: str, said: str) -> None:
    assert said in " ".join(page(name).split())


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## (\S+)", page("changelog"), re.MULTILINE)
    assert found
    assert found[1] == __version__


# -- simulator.md --------------------------------------------------------------------------------------------------


def test_presets_and_their_options() -> None:
    listed = [cells for cells in rows(section("simulator", "Presets")) if words(cells[0])]
    presets = {words(cells[0])[0]: cells[1] for cells in listed if not words(cells[0])[0].startswith("--")}
    assert presets == {name: preset.about for name, preset in PRESETS.items()}
    shown = {word for cells in listed for word in words(cells[0]) if word.startswith("--")}
    own = {"--host", "--port", "--preset", "--model", "--seed", "--reasoning-tokens", "--fault", "--allow-fault-header"}
    own |= {"--condition", "--allow-fault-prompt", "--tls-cert", "--tls-key"}
    assert shown == own | {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Preset) if f.name != "about"}


PATIENT = Timeouts(connect=Seconds(15.0), first_token=Seconds(15.0), idle_token=Seconds(15.0), total=Seconds(18.0))
FAULT_ROWS = {words(cells[0])[0]: cells[1:] for cells in rows(section("simulator", "Faults")) if words(cells[0])}


def test_faults_and_their_parameters() -> None:
    listed = {kind: cells[0] for kind, cells in FAULT_ROWS.items()}
    assert listed == {kind: fault.about for kind, fault in faults.FAULTS.items()}
    for kind, (_, param, _) in FAULT_ROWS.items():
        assert float(param or 0) == faults.FAULTS[kind].param


def test_conditions_and_their_parameters() -> None:
    listed = {words(cells[0])[0]: cells[1:] for cells in rows(section("simulator", "Conditions")) if words(cells[0])}
    assert {kind: about for kind, (about, _) in listed.items()} == {
        kind: row.about for kind, row in conditions.CONDITIONS.items()
    }
    assert all(float(param or 0) == conditions.CONDITIONS[kind].param for kind, (_, param) in listed.items())


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--allow-fault-header", "--preset", "instant", "--max-model-len", "8192") as server:
        yield server


@pytest.mark.parametrize("api", [("openai", "chat"), ("ollama", "generate")], ids="-".join)
@pytest.mark.parametrize("kind", FAULT_ROWS)
def test_the_outcome_of_a_fault(engine: Server, kind: str, api: tuple[str, str]) -> None:
    setup = Setup()
    waits = "stalled" in FAULT_ROWS[kind][2] or "timeout" in FAULT_ROWS[kind][2]  # is the silence itself the fault?
    patience = msgspec.structs.replace(QUICK, first_token=3.0) if waits else PATIENT  # slow_first takes 1 s
    client = setup.client(engine.address[1], kind=api, headers={"x-sim-fault": kind}, timeouts=patience)
    try:
        with gevent.Timeout(20):
            sampling = msgspec.structs.replace(SAMPLING, model="sim")
            record = client.send(Request("0-0", PROMPT, 0, "steady", monotonic_ns()), sampling)
        assert f"`{record.outcome.value}`" == FAULT_ROWS[kind][2]
    finally:
        setup.close()


def test_what_the_truth_tells(engine: Server) -> None:
    text = section("simulator", "The truth")
    listed = {word for cells in rows(text) for word in words(cells[0])}
    assert listed == {*truth.COLUMNS, "tokens_real_ns", "tokens_mono_ns"}
    assert f"{truth.ROWS_MAX:,}".replace(",", " ") in text
    assert f"{truth.STAMPS_MAX:,}".replace(",", " ") in text
    for total in set(engine.truth()["totals"]) - set(truth.OUTCOMES):
        assert f"`{total}`" in text
    for outcome in truth.OUTCOMES:
        assert f"`{outcome}`" in text


def test_what_the_simulator_answers() -> None:
    source = "".join((REPO / "tokenswarm/simulator" / name).read_text("utf-8") for name in ("routes.py", "server.py"))
    routed = set(re.findall(r'"(/[\w/]+)"', source))
    listed = {word.split()[1] for cells in rows(section("simulator", "What it answers")) for word in words(cells[0])}
    assert listed == routed


# -- data.md -------------------------------------------------------------------------------------------------------


def test_every_reason_to_drop_a_row() -> None:
    source = "".join(path.read_text("utf-8") for path in sorted((REPO / "tokenswarm/prompts").glob("*.py")))
    given = re.findall(r'dropped\("(\w+)"\)|index\.drops, "(\w+)"|return "(\w+_\w+)"|reason = "(\w+)"', source)
    reasons = {word for groups in given for word in groups if word} - {"no_answer"}  # no key of the profile asks for it
    listed = {word for cells in rows(section("data", "What is dropped")) for word in words(cells[0])}
    assert listed == reasons


def test_formats_sources_and_samples() -> None:
    formats = typing.get_args(typing.get_type_hints(Dataset)["format"])
    listed = [words(cells[0])[0] for cells in rows(section("data", "Formats")) if words(cells[0])]
    assert listed == [name for name in formats if name != "auto"]
    sources = section("data", "Where data comes from")
    assert set(KNOWN) <= {word for cells in rows(sources) for word in words(cells[0])}
    for name, noun in (("sharegpt", "conversations"), ("alpaca", "instructions")):
        count = len(json.loads((REPO / f"configs/samples/{name}.json").read_bytes()))
        assert f"{count} {noun}" in sources


# -- add-an-engine.md ----------------------------------------------------------------------------------------------

STREAM = REPO / "tests" / "streams" / "llamacpp_completion_native.sse"


@pytest.fixture
def dialect(monkeypatch: pytest.MonkeyPatch) -> Dialect:
    """The row that the page's own code makes."""
    module = types.ModuleType("llamacpp_completion")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where msgspec looks the names of types up
    text, entry = re.findall(r"^```python\n(.*?)^```$", page("add-an-engine"), re.DOTALL | re.MULTILINE)
    exec(compile(text, "docs/add-an-engine.md", "exec"), vars(module))
    row = eval(entry, {**vars(dialects), "llamacpp_completion": module})
    assert isinstance(row, Dialect)
    return row


def test_the_example_of_a_dialect_reads_a_real_stream(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIALECTS, (dialect.kind, dialect.api), dialect)
    setup = Setup()
    pieces = [chunk(piece) for piece in STREAM.read_bytes().splitlines(keepends=True)]
    try:
        with raw_server((head(), *pieces, LAST_CHUNK)) as server, gevent.Timeout(10):
            client = setup.client(server, kind=(dialect.kind, dialect.api))
            record = client.send(Request("0-0", PROMPT, 0, "steady", monotonic_ns()), SAMPLING)
    finally:
        setup.close()
    assert (record.outcome, record.output_tokens, record.prompt_tokens) == (Outcome.OK, 4, 4)
    assert (record.events, record.finish_reason, record.token_source.value) == (4, "limit", "server")
    assert record.finish_reason in LENGTH_REASONS, "else each run tells of it as an end that is none"
    assert record.engine is not None
    assert (record.engine.prefill_ns, record.engine.decode_ns) == (277_000, 614_000)


def test_the_example_of_a_dialect_asks_and_refuses(dialect: Dialect) -> None:
    body = json.loads(dialect.encode(PROMPT, msgspec.structs.replace(SAMPLING, extra={"cache_prompt": False})))
    assert body == {"prompt": "hello", "n_predict": 4, "return_tokens": True, "stream": True, "cache_prompt": False}
    assert dialect.decode(b'{"error": {"message": "slot unavailable"}}').error == "slot unavailable"
    for data in (b"", b"{", b"[]", b"{}", b'{"content": 3}', b'{"content": "a", "tokens": "b"}', b"\xff"):
        with pytest.raises(NotAnEvent):
            dialect.decode(data)
    [*_, last] = sse(1 << 20).feed(STREAM.read_bytes())
    assert dialect.decode(last.replace(b'"tokens_predicted":4', b'"tokens_predicted":-1')).usage is not None
