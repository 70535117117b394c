"""Traces: each format, what is odd or wrong about a file, prompts of the traced lengths, and a run of one."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest
from running import SAMPLES, free_port, program, run, tokenswarm
from simulator_process import simulator

from tokenswarm.errors import ConfigError, DatasetError
from tokenswarm.load.kinds import KINDS
from tokenswarm.load.trace import FORMATS, planned, read_trace, trace_of
from tokenswarm.profile import options, profile
from tokenswarm.profile.load import RATE_KINDS, Load, Stage, TraceFormat, TraceSource
from tokenswarm.profile.typed_yaml import Seconds
from tokenswarm.prompts import Conversation, Turn
from tokenswarm.prompts.lengths import estimate_tokens
from tokenswarm.prompts.traced import FromConversations, TracedPrompts, generated

SHARED = Path("/work/shared/data")
AZURE_2023 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01.017335+00:00,2399,6\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n118,GPT-4,417,276,693,Conversation log\n"
)
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,43,GPT-4,906,446,1352,Conversation log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1500, "output_length": 52, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 3000, "input_length": 1024, "output_length": 26, "hash_ids": [0, 3]}\n'
)
BAILIAN = (
    '{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 33, "output_length": 132, '
    '"type": "text", "turn": 1, "hash_ids": [8, 9, 5]}\n'
    '{"chat_id": 160, "parent_chat_id": 159, "timestamp": 62.5, "input_length": 40, "output_length": 8, '
    '"type": "text", "turn": 2, "hash_ids": [8, 9]}\n'
)
PLAIN = "timestamp,input_tokens,output_tokens\n1.5,10,20\n2,30,40.0\n"
PLAIN_JSONL = '{"timestamp": 1.5, "input_tokens": 10, "output_tokens": 20}\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (AZURE_2023, [(0, 374, 44)]),
        (AZURE_2024, [(0, 2162, 5), (1.007405, 2399, 6)]),
        (BURSTGPT, [(0, 472, 18), (40, 1087, 230), (113, 417, 276)]),
        (BURSTGPT_3, [(0, 906, 446)]),
        (MOONCAKE, [(0, 1500, 52), (3, 1024, 26)]),
        (BAILIAN, [(0, 33, 132), (1.386, 40, 8)]),
        (PLAIN, [(0, 10, 20), (0.5, 30, 40)]),
        ("\ufeff" + PLAIN.replace("\n", "\r\n") + "\r\n", [(0, 10, 20), (0.5, 30, 40)]),
        ("output_tokens,timestamp,x,input_tokens\n7,2024-05-10T00:00:00Z,,5\n", [(0, 5, 7)]),
        (
            PLAIN.splitlines()[0]
            + "\n2024-05-10T00:00:00-07:00,5,7\n2024-05-10T07:00:02Z,5,7\n2024-05-10 07:00:03,5,7",
            [(0, 5, 7), (2, 5, 7), (3, 5, 7)],
        ),
        (PLAIN_JSONL, [(0, 10, 20)]),
    ],
)
def test_each_format_is_known_by_its_first_line(tmp_path: Path, text: str, rows: list[tuple[float, int, int]]) -> None:
    trace = read_trace(written(tmp_path, text))
    got = list(zip(trace.at_s, trace.input_tokens, trace.output_tokens, strict=True))
    assert got == [(pytest.approx(at_s), tokens_in, tokens_out) for at_s, tokens_in, tokens_out in rows]


def test_the_profile_names_the_formats_and_kinds_that_there_are() -> None:
    assert set(TraceFormat.__args__) == {"auto", *FORMATS}
    assert set(RATE_KINDS) == set(KINDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": the file holds no rows"),
        ("a,b\n1,2\n", ":1: the first line is not that of a trace (azure, burstgpt, bailian, mooncake, plain)"),
        (PLAIN.splitlines()[0], ": the file holds no rows below its head"),
        (PLAIN + "1.9,5,5\n", ":4: its time lies 0.1 s before that of the row above: sort the trace by time"),
        (PLAIN + "3,5", ":4: 2 columns, where the head has 3: is the file cut off?"),
        (PLAIN + "3,five,5\n", ":4: `input_tokens` is 'five', no number of tokens"),
        (PLAIN + "3,-1,5\n", ":4: `input_tokens` is -1; tokens are whole numbers from 0 to 10000000"),
        (PLAIN + "3,1,1e12\n", ":4: `output_tokens` is 1e+12; tokens are"),
        (PLAIN + "3,1,2.5\n", ":4: `output_tokens` is 2.5; tokens are"),
        (PLAIN + "nan,1,2\n", ":4: its time is nan"),
        (PLAIN + "soon,1,2\n", ":4: its time is 'soon', which is no number and no date"),
        (PLAIN + '"3,1,2\n', ":4: is no line of CSV"),
        (AZURE_2023 + "2023-13-45 00:00:00,1,2\n", ":3: its time is '2023-13-45 00:00:00', which is no number"),
        (MOONCAKE + '{"timestamp": 30', ":3: is no JSON object: is the file cut off?"),
        (MOONCAKE + '{"timestamp": 4000, "input_length": 5}', ":3: has no `output_length`"),
        (MOONCAKE.replace("[0, 3]", '"x"'), ":2: `hash_ids` is no list of numbers"),
        (
            MOONCAKE.replace("[0, 3]", "[0, 3, 4]"),
            ":2: `hash_ids` are 3 for 1024 tokens, which are 2 blocks of 512: how",
        ),
        (
            MOONCAKE.replace("[0, 3]", "[0]"),
            ":2: `hash_ids` are 1 for 1024 tokens, which are 2 blocks of 512: how long",
        ),
        (
            BAILIAN.replace("[8, 9]", "[8, 9, 7, 6]"),
            ":2: `hash_ids` are 4 for 40 tokens, which are 3 blocks of 16: how",
        ),
        (PLAIN_JSONL + "[1, 2]\n", ":2: is no JSON object"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DatasetError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}{said}")


def test_bytes_that_are_no_text_and_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(PLAIN.encode() + b"\xff\xfe\n")
    with pytest.raises(DatasetError, match=":4: is not UTF-8 text"):
        read_trace(path)
    for head, what in (
        (b"\x1f\x8b\x08", "gzip"),
        (b"\n<!DOCTYPE html>", "HTML page"),
        (b"version https://git-lfs", "LFS"),
    ):
        path.write_bytes(head + b"...")
        with pytest.raises(DatasetError, match=what):
            read_trace(path)
    for other, said in ((tmp_path, "can't be read"), (tmp_path / "none", "no such file")):
        with pytest.raises(DatasetError, match=said):
            read_trace(other)


def test_what_is_odd_is_noted_with_its_first_line(tmp_path: Path) -> None:
    rows = [f"{at_s},5,5" for at_s in range(200)] + ["200,0,5", "200,5,0", "200,5,5", "9000,5,5"]
    path = written(tmp_path, "timestamp,input_tokens,output_tokens\n" + "\n".join(rows))
    trace = read_trace(path)
    assert trace.notes == [
        f"{path}:202: 2 rows have 0 tokens, sent as 1 (here the first)",
        f"{path}:203: 2 rows have the time of the row above, sent at once (here the first)",
        f"{path}:205: nothing arrives for 8800 s before this row",
    ]
    assert (trace.input_tokens[200], trace.output_tokens[201]) == (1, 1)


def test_blocks_are_as_long_as_the_format_or_the_profile_says(tmp_path: Path) -> None:
    """Ids may be left out, also of the first rows: they stay with their own."""
    path = written(tmp_path, MOONCAKE.replace(', "hash_ids": [0, 1, 2]', "") + MOONCAKE.splitlines()[1])
    trace = read_trace(path)
    assert [one.prefix for one in trace.arrivals(1.0, loop=False)] == [(), (0, 3), (0, 3)]
    assert (trace.block_tokens, trace.cut(0, 1).block_tokens) == (512, 512)
    path = written(tmp_path, BAILIAN)
    assert read_trace(path).block_tokens == 16
    assert trace_of(traced(path, block_tokens=15)).block_tokens == 15
    assert read_trace(path, block_tokens=0).blocks == []
    with pytest.raises(DatasetError, match="has no `hash_ids`: leave out"):
        read_trace(written(tmp_path, PLAIN), block_tokens=20)
    with pytest.raises(ValueError, match="must be between 1 and 1000000"):
        TraceSource(path="x", block_tokens=0)


def traced(path: Path, **more: object) -> Load:
    stages = more.pop("stages", None)
    source = TraceSource(path=str(path), **more)  # type: ignore[arg-type]
    return Load(kind="trace", trace=source, **({"stages": stages} if stages else {}))  # type: ignore[arg-type]


def test_a_window_a_scale_and_a_loop(tmp_path: Path) -> None:
    rows = "\n".join(f"{at_s},{at_s + 1},5" for at_s in range(10))
    path = written(tmp_path, f"timestamp,input_tokens,output_tokens\n{rows}\n")
    load = traced(path, start=Seconds(3.0), length=Seconds(4.0), time_scale=0.5, loop=True)
    trace = trace_of(load)
    arrivals = list(itertools.islice(trace.arrivals(0.5, loop=True), 6))
    assert [arrival.at_s for arrival in arrivals] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [arrival.input_tokens for arrival in arrivals] == [4, 5, 6, 7, 4, 5]
    assert [arrival.number for arrival in arrivals] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DatasetError, match=r"no arrival lies in the window .* lasts 9 s"):
        trace_of(traced(path, start=Seconds(100.0)))
    blocks = read_trace(written(tmp_path, MOONCAKE)).arrivals(1.0, loop=True)
    found = [arrival.prefix for arrival in itertools.islice(blocks, 5)]
    assert found == [(0, 1, 2), (0, 3), (4, 5, 6), (4, 7), (8, 9, 10)]


def test_the_stage_is_as_long_as_the_trace_and_knows_its_arrivals(tmp_path: Path) -> None:
    rows = "\n".join(f"{at_s},5,5" for at_s in range(11))
    path = written(tmp_path, f"timestamp,input_tokens,output_tokens\n{rows}\n")
    load = traced(path)
    stage, arrivals = planned(load, trace_of(load), 2.5)
    assert (stage.duration, arrivals) == (pytest.approx(7.501), 8)
    load = traced(path, loop=True, stages=(Stage(duration=Seconds(20.0)),))
    assert planned(load, trace_of(load), 0.0).arrivals == 20
    for lead_s, stages, said in ((30.0, None, "the warm-up of 30 s"), (0.0, (Stage(duration=Seconds(60.0)),), "lasts")):
        load = traced(path, stages=stages)
        with pytest.raises(ConfigError, match=said):
            planned(load, trace_of(load), lead_s)
    load = traced(written(tmp_path, PLAIN.replace("1.5", "2")), loop=True, stages=(Stage(duration=Seconds(5.0)),))
    with pytest.raises(ConfigError, match="all its arrivals have one time"):
        planned(load, trace_of(load), 0.0)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ("{kind: trace}", "p.yaml:3: `load.kind: trace` needs `load.trace`"),
        ("{trace: {path: x}}", "p.yaml:3: `load.trace` needs `load.kind: trace`, not closed"),
        ("{kind: trace, trace: {path: x}, stages: [{rate: 3}]}", "p.yaml:3: `load.stages` of a trace is one stage"),
        ("{kind: trace, trace: {path: x, time_scale: 0}}", "p.yaml:3: `load.trace.time_scale: 0` must be between"),
        ("{kind: trace, trace: {path: x, length: 0}}", "p.yaml:3: `load.trace.length` must be longer than 0s"),
        (
            "{kind: trace, trace: {path: x, format: csv}}",
            "`load.trace.format: csv` is not one of auto, azure",
        ),
    ],
)
def test_a_wrong_trace_in_a_profile(load: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profile.load(f"target: http://a\ndataset: {{path: x}}\nload: {load}", "p.yaml")
    assert said in str(caught.value)


def test_options_name_a_trace() -> None:
    target = [("target", options.typed_yaml.literal("http://a", "--host"))]
    given = {"dataset": "x", "trace": "t.csv", "time_scale": "0.1", "duration": "20s"}
    load = options.read_profile(None, given, target).load
    assert (load.kind, load.trace, load.stages[0].duration) == ("trace", TraceSource("t.csv", time_scale=0.1), 20.0)
    with pytest.raises(ConfigError, match="leave out --rate"):
        options.read_profile(None, {**given, "rate": "3"}, target)


@pytest.mark.parametrize("name", ["fixed", "mean", "max"])
def test_a_trace_takes_no_other_length_of_answers(tmp_path: Path, name: str) -> None:
    path = str(written(tmp_path, f"target: http://a\ndataset: {{path: x, output_tokens: {{{name}: 4}}}}\n"))
    with pytest.raises(ConfigError, match=f"`dataset.output_tokens.{name}` is not of a trace"):
        options.read_profile(path, {"trace": "t.csv"}, [])
    without = {"trace": "t.csv", "set": [f"dataset.output_tokens.{name}=null"]}
    assert options.read_profile(path, without, []).load.kind == "trace"


CONVERSATIONS = [
    Conversation(str(n), (Turn(f"question {n} " * 20, f"answer {n} " * 30), Turn("and 日本語の質問 " * 5)))
    for n in range(7)
]


@pytest.mark.parametrize("text", [generated, FromConversations(CONVERSATIONS.__getitem__, 7)])
def test_prompts_have_the_traced_lengths_and_share_their_blocks(text: object) -> None:
    prompts = TracedPrompts(text, 1, 512)  # type: ignore[arg-type]
    count = len if text is generated else estimate_tokens
    size = (lambda said: len(said.split())) if text is generated else count
    one = prompts.prompt("a", 1500, 9, (0, 1, 2))
    two = prompts.prompt("b", 1100, 9, (0, 1, 3))
    more = prompts.prompt("c", 3000, 9, (0, 1, 2))
    for prompt, tokens in ((one, 1500), (two, 1100), (more, 3000), (prompts.prompt("d", 3, 1, ()), 3)):
        assert size(prompt.text) == pytest.approx(tokens, rel=0.01, abs=1)
        assert prompt.output_tokens_max in (9, 1)
    assert one.text[:2000] == two.text[:2000]
    assert one.text[:2000] == TracedPrompts(text, 1, 512).prompt("z", 1500, 9, (0, 1, 2)).text[:2000]  # type: ignore[arg-type]
    assert more.text.startswith(one.text)
    assert one.text != two.text
    for texts in (
        {prompts.prompt(str(n), 600, 9, ()).text[:48] for n in range(200)},
        {prompts.prompt("h", 512, 9, (n,)).text[:48] for n in range(200)},
    ):
        assert len(texts) == 200  # of 7 conversations: no prefix is shared but that of the same ids
    assert TracedPrompts(text, 2, 512).prompt("a", 1500, 9, (0, 1, 2)).text != one.text  # type: ignore[arg-type]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real traces are not here")
def test_the_real_traces_are_read_whole() -> None:
    azure = read_trace(SHARED / "azure2023_conv.csv")
    assert (len(azure.at_s), sum(azure.input_tokens), azure.notes) == (19366, 22361870, [])
    mooncake = read_trace(SHARED / "mooncake_conversation_trace.jsonl")
    assert (len(mooncake.at_s), len(mooncake.blocks), sum(mooncake.output_tokens)) == (12031, 12031, 4122048)


def test_a_run_sends_each_arrival_of_a_trace_with_its_lengths(tmp_path: Path) -> None:
    rows = [(0.05 * number, 20 + number, 3 + number % 5) for number in range(100)]
    lines = "\n".join(json.dumps({"timestamp": at, "input_tokens": i, "output_tokens": o}) for at, i, o in rows)
    (tmp_path / "t.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "p.yaml").write_text(
        "target: http://127.0.0.1:1\ndataset: {format: synthetic}\nphases: {warmup: 500ms}\nworkers: 2\n"
        "load: {kind: trace, trace: {path: t.jsonl, time_scale: 0.5}}\n",
        encoding="utf-8",
    )
    with simulator("--preset", "instant") as server:
        finished = run(tokenswarm("run", "p.yaml", "--host", server.url), tmp_path)
    assert finished.code in (0, 11), finished.out
    got = {int(row["id"].rpartition(".")[2]): row for row in finished.rows}
    assert sorted(got) == list(range(100))
    for number, (_, tokens_in, tokens_out) in enumerate(rows):
        assert got[number]["output_tokens"] == tokens_out
        assert got[number]["prompt_tokens"] == pytest.approx(
            1.2 * tokens_in + 7, rel=0.5
        )  # the engine counts characters
    assert finished.summary["stages"][0]["arrivals"] == sum(at_s * 0.5 >= 0.5 for at_s, _, _ in rows)
    assert "arrivals-missing" not in finished.doubts()


def test_a_run_of_a_bad_trace_does_not_begin(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN + "1,5,5\n")
    words = ("--host", "http://127.0.0.1:1", "--trace", str(path), "--dataset", str(SAMPLES / "sharegpt.json"))
    finished = run(tokenswarm("run", *words), tmp_path, 30)
    assert finished.code == 15
    assert f"{path}:4: its time lies 1 s before that of the row above" in finished.out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("t.csv", r"worker \d .*t\.csv: another file than the run's: its SHA-256 is"),
        ("d.json", r"d\.json: the workers have different files under this name"),
    ],
)
def test_a_worker_with_another_trace_or_data_set_is_refused(tmp_path: Path, odd: str, said: str) -> None:
    """By what it holds: the name is the same, in each one's own folder."""
    rows = json.dumps([{"instruction": "Say hello.", "output": "Hello."}])
    for name in ("master", "same", "other"):
        (tmp_path / name).mkdir()
        for file, text in (("t.csv", PLAIN), ("d.json", rows)):
            changed = text.replace("10,20", "10,21").replace("hello", "hallo")
            (tmp_path / name / file).write_text(changed if (name, file) == ("other", odd) else text, encoding="utf-8")
    port = str(free_port())
    with simulator("--preset", "instant") as server:
        words = ("--host", server.url, "--trace", "t.csv", "--dataset", "d.json", "--no-probe", "--warmup", "0s")
        remote = ("--bind", f"127.0.0.1:{port}", "--expect-workers", "2")
        with program(tokenswarm("run", *words, *remote), tmp_path / "master") as master:
            master.await_output("waiting for 2 workers")
            to = tokenswarm("worker", "--master-host", "127.0.0.1", "--master-port", port)
            with program(to, tmp_path / "same"), program(to, tmp_path / "other"):
                finished = master.finish(60)
        assert finished.code == 15, finished.out
        assert re.search(said, finished.out.replace("\n", " ")), finished.out
        assert server.truth()["totals"]["received"] == 0


def test_a_known_file_is_held_against_its_checksum(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    load = Load(kind="trace", trace=TraceSource(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    assert trace_of(load).input_tokens
    path.write_text(PLAIN + "2,5,5\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="another file than the run's"):
        trace_of(load)
    with pytest.raises(ValueError, match="sha256` takes 64 hexadecimal digits"):
        TraceSource(path="t.csv", sha256="abc")
