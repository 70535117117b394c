"""Other tools' commands as profiles: what each becomes, what has no equal, and the page that lists it."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml
from running import REPO

from tokenswarm import cli
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.load import Stage
from tokenswarm.profile.translate import TOOLS, translate

KNOWS_RATES = "rate" in Stage.__struct_fields__


def made(command: str) -> dict[str, Any]:
    """The profile, which the program itself takes."""
    text = translate(command).text()
    profile = yaml.safe_load(text)
    if KNOWS_RATES or profile["load"]["kind"] == "closed":
        profiles.load(text, "translated")
    return profile


def test_a_rate_of_vllm() -> None:
    command = (
        "vllm bench serve --model m --backend openai-chat --host gpu --port 8001 --request-rate 10 --num-prompts 500"
    )
    profile = made(f"{command} --random-input-len 512 --random-output-len=64 --seed 7 --temperature 0.5")
    assert profile["target"] == "http://gpu:8001"
    assert profile["engine"] == {"model": "m", "api": "chat", "temperature": 0.5}
    assert profile["load"] == {"kind": "poisson", "requests": 500, "stages": [{"rate": 10.0}]}
    assert profile["dataset"]["synthetic"] == {"input_mean": 512, "output_mean": 64, "conversations": 500}
    assert (profile["dataset"]["ignore_eos"], profile["dataset"]["shuffle_seed"]) == (True, 7)
    bursts = made(f"{command} --burstiness 0.5 --max-concurrency 64")["load"]
    assert (bursts["kind"], bursts["burstiness"], bursts["max_in_flight"]) == ("gamma", 0.5, 64)


def test_a_closed_loop_of_vllm_on_sharegpt() -> None:
    profile = made(
        "vllm bench serve --endpoint /v1/completions --dataset-name sharegpt --dataset-path s.json "
        "--max-concurrency 32 --request-rate inf --sharegpt-output-len 100"
    )
    assert profile["load"] == {"kind": "closed", "requests": 1000, "stages": [{"users": 32}]}
    assert profile["engine"]["api"] == "completions"
    assert profile["dataset"] == {
        "format": "sharegpt", "path": "s.json", "conversations": "single", "length_filter": "vllm",
        "output_tokens": {"fixed": 100}, "ignore_eos": False,
    }  # fmt: skip


def test_aiperf_and_guidellm() -> None:
    profile = made(
        "aiperf profile -m m -u gpu:8000 --concurrency 8 --isl 100 --osl 20 --benchmark-duration 30 --streaming"
    )
    assert profile["target"] == "http://gpu:8000"
    assert profile["load"]["stages"] == [{"users": 8, "duration": "30s"}]
    assert profile["dataset"]["synthetic"] == {"input_mean": 100, "output_mean": 20, "conversations": 100}
    assert profile["dataset"]["ignore_eos"] is False
    profile = made("aiperf profile -m m --request-rate 5 --arrival-pattern constant --request-count 100")
    assert profile["load"] == {"kind": "constant", "requests": 100, "stages": [{"rate": 5.0}]}
    data = "--data prompt_tokens=256,output_tokens=128"
    profile = made(
        f"guidellm benchmark --target http://gpu:8000/v1 --rate-type poisson --rate 4 --max-seconds 60 {data}"
    )
    assert profile["target"] == "http://gpu:8000"
    assert profile["load"] == {"kind": "poisson", "stages": [{"rate": 4.0, "duration": "60s"}]}
    sweep = translate(f"guidellm benchmark --target http://gpu:8000 --profile sweep {data}")
    assert any("looks for its own loads" in remark for remark in sweep.remarks)


STAGES: list[tuple[str, list[dict[str, Any]]]] = [
    ("aiperf profile --concurrency 1,4 --request-count 9", [{"users": 1}, {"users": 4}]),
    ("aiperf profile --request-rate 5,10 --benchmark-duration 9",
     [{"rate": 5.0, "duration": "9s"}, {"rate": 10.0, "duration": "9s"}]),
    ("guidellm benchmark run --profile concurrent --rate 1,4", [{"users": 1}, {"users": 4}]),
    ("guidellm benchmark --rate-type constant --rate 1 --rate 4", [{"rate": 1.0}, {"rate": 4.0}]),
    ("vllm bench serve --ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 19 --num-prompts 500",
     [{"rate": [1.0, 19.0], "duration": "50s"}]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "stages"), STAGES)
def test_each_of_several_loads_is_a_stage(command: str, stages: list[dict[str, Any]]) -> None:
    assert made(command)["load"]["stages"] == stages


AROUND = (
    "$ {}", "HF_TOKEN=x VLLM_USE_V1=1 {}", "time {}", "docker run --rm vllm/vllm-openai {}", "cd /x && {}",
    "{} | tee out.txt", "{} > out.txt 2>&1", "{} &> out.txt", "{} && echo done", "{}; echo done", "{} # so fast",
    "{} &",
)  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_what_a_shell_has_around_the_command_is_none_of_it(around: str) -> None:
    command = "vllm bench serve --request-rate 10 --num-prompts 50"
    assert translate(around.format(command)).text() == translate(command).text()


SAME = [
    ("vllm bench serve --num-prompts 5 --port 1", "vllm bench serve --num_prompt=5 --host 127.0.0.1 --port 1"),
    ("vllm bench serve --num-prompts 5", "python3 benchmarks/benchmark_serving.py --num-prompts 5"),
    ("guidellm benchmark --target http://h:1 --data prompt_tokens=5,output_tokens=6",
     "guidellm benchmark run --target=http://h:1/v1/ --data '{\"prompt_tokens\": 5, \"output_tokens\": 6}'"),
    ("guidellm benchmark --data prompt_tokens=5,output_tokens=6",
     "guidellm benchmark --data 'prompt_tokens=5, output_tokens=6'"),
    ("aiperf profile -m m -u h:1 --isl-stddev 3", "aiperf profile --model-names m --url http://h:1 "
     "--prompt-input-tokens-stddev 3"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_ways_to_say_the_same(one: str, other: str) -> None:
    assert made(one) == made(other)


def test_lengths_of_another_data_set_mean_nothing() -> None:
    data = made("vllm bench serve --dataset-name sharegpt --random-output-len 7 --random-input-len 8")["dataset"]
    assert "output_tokens" not in data
    data = made("vllm bench serve --dataset-name custom --dataset-path p.jsonl --custom-output-len 9")["dataset"]
    assert (data["format"], data["path"], data["output_tokens"]) == ("jsonl", "p.jsonl", {"fixed": 9})


def test_sglang_draws_lengths_below_the_one_that_is_named() -> None:
    command = "python -m sglang.bench_serving --backend sglang-oai-chat --dataset-name random --random-input 1000"
    profile = made(f"{command} --random-output-len 100 --random-range-ratio 0.5 --disable-ignore-eos")
    assert (profile["target"], profile["engine"]["api"]) == ("http://127.0.0.1:30000", "chat")
    assert profile["dataset"]["synthetic"]["input_mean"] == 750
    assert profile["dataset"]["synthetic"]["output_stddev"] == pytest.approx(50 / 12**0.5, rel=0.01)
    assert profile["dataset"]["ignore_eos"] is False


def test_addresses() -> None:
    assert made("vllm bench serve --host ::1")["target"] == "http://[::1]:8000"
    assert made("aiperf profile -u http://a:1 -u http://b:2/v1")["target"] == ["http://a:1", "http://b:2"]


def test_a_trace_of_aiperf() -> None:
    profile = made("aiperf profile --input-file t.jsonl --custom-dataset-type mooncake_trace --fixed-schedule")
    assert profile["load"] == {"kind": "trace", "trace": {"path": "t.jsonl"}}


def test_what_has_no_equal_is_said_and_no_value_is_repeated() -> None:
    key = "sk-" + "x" * 20
    found = translate(
        f"vllm bench serve --header Authorization={key} --goodput ttft:500 tpot:50 --save-resultt --lora-modules a b"
    )
    assert set(found.lacks) == {"--header", "--goodput", "--save-resultt", "--lora-modules"}
    assert found.lacks["--save-resultt"] == "not known; did you mean `--save-result`?"
    assert key not in found.text()
    assert "# has no equal here: --goodput: limits are `slo`" in found.text()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("", "give one command in quotes"),
        ("curl http://x", "give one command in quotes"),
        ("vllm bench serve --request-rate ten", "--request-rate ten: can't be read as its value"),
        ("vllm bench serve --request-rate nan", "can't be read as its value"),
        ("vllm bench serve --request-rate -1", "can't be read as its value"),
        ("vllm bench serve --num-prompts", "can't be read as its value"),
        ("vllm bench serve --num-prompts 1e999", "can't be read as its value"),
        ("vllm bench serve --ignore-eos yes", "--ignore-eos takes no value"),
        ("vllm bench serve 7", "`7` is no option"),
        ("vllm bench serve 'open", "can't be split into words"),
        ("vllm bench serve --num-prompts 10.7", "--num-prompts 10.7: can't be read as its value"),
        ("vllm bench serve --num-prompts 0", "`conversations: 0` must be 1 or more"),
        ("vllm bench serve --port 99999", "is no valid URL"),
        ("vllm bench serve --model $MODEL", "--model $MODEL: is a variable of your shell; write its value"),
        ("vllm bench serve --backend openai-embeddings", "asks for no text"),
        ("vllm bench serve --endpoint /v1/rerank", "asks for no text"),
        ("aiperf profile --endpoint-type template", "is a dialect that is not spoken here"),
        ("aiperf profile -m a,b", "names several models"),
        ("aiperf profile --input-file t --custom-dataset-type weka_trace", "is of a format that is not read here"),
        ("guidellm benchmark --data prompt_tokens=x", "--data: prompt_tokens=x: can't be read as its value"),
    ],
)
def test_what_can_not_be_read_is_one_sentence(command: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["translate", command]) == 15
    out, err = capsys.readouterr()
    assert (out, sentence in err) == ("", True), err


def test_a_command_may_stand_without_its_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    bare = ["vllm", "bench", "serve", "--request-rate", "10", "--model", "a b", "--extra-body", '{"top_k": 1}']
    told = []
    for words in (bare, [shlex.join(bare)]):
        assert cli.main(["translate", *words]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert yaml.safe_load(told[0])["engine"]["model"] == "a b"


def test_foreign_words_begin_no_line_of_the_profile() -> None:
    text = translate("vllm bench serve --model 'a\nload: {kind: x}' '--b\nslo: {}' 1").text()
    profile = yaml.safe_load(text)
    assert profile["engine"]["model"] == "a\nload: {kind: x}"
    assert "slo" not in profile


def test_the_page_has_every_option_of_every_tool() -> None:
    page = (REPO / "docs/comparability.md").read_text("utf-8")
    for name, tool in TOOLS.items():
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        rows = dict(re.findall(r"^\| `(-[\w-]+)` \| (.*) \|$", section, re.MULTILINE))
        assert list(rows) == list(tool.options)
        for option, row in tool.options.items():
            assert rows[option].startswith("– ") == (not row.key)
            assert row.key.startswith("~") or not row.key or rows[option] == f"`{row.key}`"
            assert row.key or rows[option] == f"– {row.why}"
