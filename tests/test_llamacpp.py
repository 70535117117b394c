"""Whole runs against a real engine: llama.cpp's server with a tiny random model, one core, real sockets."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import llamacpp
import pytest
from running import SAMPLES, Finished, locust, run

if not llamacpp.installed():
    pytest.skip("xllamacpp or gguf is not installed (no wheel for this platform)", allow_module_level=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server."""
    with llamacpp.running(tmp_path_factory.mktemp("llama")) as url:
        yield url


def generated(url: str) -> int:
    """Tokens that the server says it has generated since its start."""
    with urllib.request.urlopen(url + "/metrics", timeout=60) as page:
        found = re.search(r"^llamacpp:tokens_predicted_total (\S+)", page.read().decode(), re.MULTILINE)
    assert found is not None
    return round(float(found[1]))


def replay(url: str, file: str, home: Path, dataset: Path, *more: str) -> Finished:
    words = (
        "--headless",
        "-u",
        "4",
        "-r",
        "4",
        "-t",
        "6s",
        "--host",
        url,
        "--model",
        "tiny",
        "--dataset",
        str(dataset),
    )
    return run(locust(file, *words, "--max-tokens", "48", "--only-summary", "--no-probe", *more), home)


def check(finished: Finished, tokens_before: int, tokens_after: int) -> None:
    assert finished.went_well, finished.out
    summary = finished.summary
    assert summary["requests"]["by_outcome"] == {"ok": summary["requests"]["sent"]}
    assert summary["tokens"]["source"] == "server"
    assert sum(row["output_tokens"] for row in finished.rows) == tokens_after - tokens_before
    # Bytes of UTF-8 wait for their last one, so some events hold several tokens and some tokens none.
    assert sum(row["events"] for row in finished.rows) <= tokens_after - tokens_before
    assert {row["output_tokens"] for row in finished.rows} == {48}


@pytest.mark.parametrize(("file", "dataset"), [("chat.py", "sharegpt.json"), ("completions.py", "alpaca.json")])
def test_counts_equal_the_servers(llama: str, tmp_path: Path, file: str, dataset: str) -> None:
    before = generated(llama)
    finished = replay(llama, file, tmp_path, SAMPLES / dataset)

    check(finished, before, generated(llama))


def test_times_agree_with_the_servers_own(llama: str, tmp_path: Path) -> None:
    """`timings` of llama.cpp: our decode time is the server's, within what one scheduler can blur."""
    finished = replay(
        llama, "chat.py", tmp_path, SAMPLES / "sharegpt.json", "--set", "engine.extra_body={timings_per_token: false}"
    )

    rows = [row for row in finished.rows if row["engine"] and row["engine"]["decode_s"]]
    assert len(rows) > 20
    decode = median((row["last_s"] - row["first_s"]) / row["engine"]["decode_s"] for row in rows)
    prefill = median(row["ttft_s"] / row["engine"]["prefill_s"] for row in rows)
    assert 0.8 < decode < 1.25
    assert 0.95 < prefill < 10  # its prefill, plus its queue and the network: never less than the prefill alone


def test_real_sharegpt_and_alpaca(llama: str, tmp_path: Path, shared) -> None:
    for file, data in (
        ("chat.py", "data/sharegpt_v3_filtered_500_first_turn.json"),
        ("completions.py", "data/alpaca_2000_subset_gumbelsoft.json"),
    ):
        before = generated(llama)
        finished = replay(llama, file, tmp_path, shared(data), "--set", "dataset.input_tokens.max=1000")
        check(finished, before, generated(llama))


def test_a_prompt_that_does_not_fit_is_a_named_failure(llama: str, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text('{"prompt": "%s"}\n' % ("word " * 9000), encoding="utf-8")
    finished = replay(llama, "completions.py", tmp_path, tmp_path / "long.jsonl")

    assert finished.code == 11
    assert set(finished.summary["requests"]["by_outcome"]) == {"http_4xx"}
    assert "context" in finished.rows[0]["error"]


def test_an_unknown_model_is_refused_before_any_load(llama: str, tmp_path: Path) -> None:
    before = generated(llama)
    finished = replay(llama, "chat.py", tmp_path, SAMPLES / "sharegpt.json", "--model", "llama-9")

    assert finished.code == 14
    assert "has no model llama-9; it has tiny" in finished.out
    assert generated(llama) == before
