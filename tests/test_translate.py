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
    assert profile["dataset"]["synthetic"] == {"input_mean": 100, "output_mean": 20}
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
