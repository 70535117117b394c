"""Every way in which a data set file can be wrong is one sentence with the file, the line and the mend."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tokenswarm.errors import DatasetError, ExitCode
from tokenswarm.prompts import splitter
from tokenswarm.prompts.library import DataSettings, Library, open_library

GOOD = {"conversations": [{"from": "human", "value": "A question?"}, {"from": "gpt", "value": "An answer."}]}
ROW = json.dumps(GOOD)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4bb3\nsize 52283111\n"


def opened(path: Path, **settings: object) -> Library:
    return open_library(DataSettings(path=str(path), **settings))  # type: ignore[arg-type]  # any field of the struct


def sentence(path: Path, **settings: object) -> str:
    with pytest.raises(DatasetError) as error:
        opened(path, **settings)
    assert error.value.exit_code is ExitCode.CONFIG
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    assert error.value.__cause__ is None, "no chained traceback"
    return text.removeprefix(str(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ": the file is empty: is the download complete?"),
        (" \n\t\r\n", ": the file holds only white space: is the download complete?"),
        ("\ufeff", ": the file holds only white space: is the download complete?"),
        ("<!DOCTYPE html><html>", ": this is an HTML page, not a data set: download the raw file"),
        ("\n  <HTML lang=en>", ": this is an HTML page"),
        ("<?xml version='1.0'?>", ": this is HTML or XML, not the data"),
        (LFS, ": this is a Git LFS pointer, not the data: fetch the real file"),
        (
            "TIMESTAMP,ContextTokens\n1,2\n",
            ": this is neither a JSON array nor JSONL: it begins with 'TIMESTAMP,ContextToke",
        ),
        ("hello", ": this is neither a JSON array nor JSONL: it begins with 'hello'"),
        ("[]", ": the file holds no rows"),
        ("[ ]\n", ": the file holds no rows"),
        # arrays that stop or break
        ("[", ":1: the file ends inside a JSON array: is the download complete?"),
        (f"[\n{ROW},\n{ROW}", ":3: the file ends inside a JSON array: is the download complete?"),
        (f"[\n{ROW},\n\n", ":4: the file ends inside a JSON array: is the download complete?"),
        (f"[\n{ROW},\n{ROW[:40]}", ":3: the file ends inside a JSON array: is the download complete?"),
        (f"[\n{ROW},\n{ROW[:-3]}", ":3: the file ends inside a JSON array: is the download complete?"),
        (f"[\n{ROW}\n{ROW}]", ":3: not valid JSON: a comma is missing between two rows"),
        (f"[\n{ROW},\n]", ":3: not valid JSON: a row is missing before ']'"),
        (f"[{ROW}]\n\nrubbish", ":3: not valid JSON: there is more after the JSON array"),
        ('[\n{"a": 1,\n "b" 2}]', ":3: not valid JSON: Expecting ':' delimiter"),
        (
            '[\n{"instruction": "x",\n"output": Hello "there",\n"input": ""},\n{}]',
            ":3: not valid JSON: Expecting value",
        ),
        ('[\n{"instruction": "x",\n"output": Hello there",\n"input": ""}]', ":3: not valid JSON: Expecting value"),
        # JSONL
        (f"{ROW}\n{ROW}\n{{broken}}\n{ROW}\n", ":3: not valid JSON: Expecting property name"),
        (f"{ROW}\n{ROW[:30]}\n{ROW}\n", ":2: not valid JSON: "),
        (f"{ROW}\n{ROW[:30]}", ":2: the file ends inside a JSON value: is the download complete?"),
        (f"{ROW}\n{ROW[:-1]}\r\n", ":2: the file ends inside a JSON value: is the download complete?"),
        (f"{ROW}\r\n\r\n{ROW} {ROW}\r\n", ":3: not valid JSON: Extra data"),
        ('{\n  "conversations": []\n}\n', ":1: not valid JSON: "),
        # values that are no JSON, or too much of it
        ('[\n{"prompt": "x",\n"n": NaN}]', ":2: NaN is not JSON"),
        ('{"prompt": "x", "n": -Infinity}', ":1: -Infinity is not JSON"),
        (f'{ROW}\n{{"prompt": "x", "n": {"7" * 5000}}}', ":2: the row holds a number with thousands of digits"),
        (f'[{ROW},\n{{"prompt": {"[" * 100_000}{"]" * 100_000}}}]', ":2: the row is nested too deeply"),
        ("[" * 100_000, ":1: the "),
    ],
)
def test_broken_files(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content, encoding="utf-8", newline="")
    assert sentence(path).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[\n{"prompt": "ok"},\n{"prompt": "\xff\xfe"}]', ":3: not valid UTF-8"),
        (b'{"prompt": "ok"}\n{"prompt": "caf\xe9"}\n', ":2: not valid UTF-8"),
        (b"\xff\xfe[\x00]\x00", ": this is UTF-16, not UTF-8"),
        (b"\x1f\x8b\x08\x00", ": this is compressed (gzip)"),
        (b"PK\x03\x04....", ": this is a ZIP archive"),
        (b"PAR1....", ": this is a Parquet file"),
        (b"ARROW1\x00\x00", ": this is an Arrow file"),
        (b"BZh91AY", ": this is compressed (bzip2)"),
        (b"\xfd7zXZ\x00", ": this is compressed (xz)"),
        ('{"prompt": "x"}'.encode("utf-16-le"), ": this is UTF-16, not UTF-8"),
        ('[{"prompt": "x"}]'.encode("utf-16-be"), ": this is UTF-16, not UTF-8"),
        (
            b"prompt,output_tokens\nx,3\n",
            ": this is neither a JSON array nor JSONL: it begins with 'prompt,output_tokens': write",
        ),
        (b"\x00\x01\x02", ": this is neither a JSON array nor JSONL"),
    ],
)
def test_files_that_are_no_utf8_text(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    assert sentence(path).startswith(expected)


def test_a_missing_file_a_directory_and_a_pipe(tmp_path: Path) -> None:
    assert "there is no such file (`tokenswarm data fetch sharegpt` downloads" in sentence(tmp_path / "none.json")
    assert "this is a directory: name the data set file inside it" in sentence(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "this is not a regular file" in sentence(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    assert "the file can't be read" in sentence(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(ROW)
    path.chmod(0)
    assert "the file can't be read: Permission denied" in sentence(path)


def test_no_usable_row_says_why(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(
        '[{"conversations": []}, {"conversations": []}, {"conversations": [{"from": "gpt", "value": "x"}]}]'
    )
    assert sentence(path) == ": none of its 3 rows can be used (2 empty_conversation, 1 no_user_turn)"
    path.write_text('{"timestamp": 0, "input_length": 5}\n')
    assert (
        "(1 unknown_shape); known shapes are ShareGPT, Alpaca, messages and prompt rows; line 1 has 'timest"
        in sentence(path)
    )
    path.write_text('[{"conversations": []},\n {"query": "x", "response": "y"}]')
    assert sentence(path).endswith("; line 2 has 'query', 'response'")
    path.write_text('{"version": "1.0", "data": [{"prompt": "x"}]}')  # as GuideLLM's documentation has it
    assert sentence(path).endswith(
        "line 1 has 'version', 'data'; are its rows those under 'data'? `jq -c '.[\"data\"][]'` takes them out"
    )
    path.write_text("[[1], [2]]")
    assert sentence(path).endswith("; line 1 has no object")
    path.write_text(ROW)
    assert "(1 unknown_shape); the format was set to alpaca: try auto; line 1 has " in sentence(path, format="alpaca")


def test_a_row_over_the_size_limit_is_a_fault_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitter, "ROW_BYTES_MAX", 1 << 20)
    path = tmp_path / "data.json"
    path.write_text(f'[{ROW},\n{{"prompt": "{"x" * (3 << 20)}"}}]')
    assert sentence(path) == ":2: not valid JSON: a row of more than 16 MiB, or a quote or bracket is missing"


def test_broken_rows_may_be_skipped_up_to_a_share(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([ROW] * 8 + ["{broken", '{"prompt": NaN}']))
    library = opened(path, skip_bad_ratio=0.2)
    assert library.info.drops == {"bad_json": 2}
    assert (library.info.rows_read, library.info.rows_kept) == (10, 8)
    said = sentence(path, skip_bad_ratio=0.19)
    assert said.startswith(":9: not valid JSON")
    assert said.endswith("(2 of 10 rows are broken, more than skip_bad_ratio allows)")
    assert sentence(path).startswith(":9: not valid JSON")


def test_a_file_that_changes_under_the_run_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{ROW}\n{ROW}\n")
    library = opened(path)
    with path.open("r+") as file:
        file.write("x" * 200)
    with pytest.raises(DatasetError, match="row 1 is not what it was: the file was changed while it was in use"):
        library.conversation(0)


def test_a_row_that_is_edited_and_stays_one_is_said_and_rows_that_stay_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "Old words"}\n{"prompt": "Others"}\n')
    library = opened(path, shuffle_seed=None)
    with path.open("r+") as file:
        file.write('{"prompt": "New')
        file.seek(0, 2)
        file.write('{"prompt": "One more"}\n')
    assert library.conversation(1).turns[0].user == "Others"
    with pytest.raises(DatasetError, match="row 1 is not what it was"):
        library.conversation(0)


def test_synthetic_needs_lengths_and_files_need_a_path() -> None:
    with pytest.raises(DatasetError, match="no lengths are given"):
        open_library(DataSettings(path=None, format="synthetic"))
    with pytest.raises(DatasetError, match="no data set file is named"):
        open_library(DataSettings(path=None))
