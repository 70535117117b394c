"""The pipeline on real files, its counts, its cache, its slices; and the samples that the project ships."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from tokenswarm.profile.dataset import Dataset, OutputTokens, TokenRange
from tokenswarm.prompts import from_profile, index, library
from tokenswarm.prompts.info import info_text, spread
from tokenswarm.prompts.lengths import VLLM_LIMITS, LengthLaw, Limits, estimate_tokens
from tokenswarm.prompts.library import DataSettings, Library, Progress, describe, open_library, open_steps
from tokenswarm.prompts.reading import Rules
from tokenswarm.prompts.synthetic import Synthetic

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "configs" / "samples"
QUIRKS = HERE / "data" / "sharegpt_quirks.json"
Shared = Callable[[str], Path]


def opened(path: Path, **settings: object) -> Library:
    return open_library(DataSettings(path=str(path), **settings))  # type: ignore[arg-type]  # any field of the struct


def adds_up(got: Library) -> bool:
    return got.info.rows_read == got.info.rows_kept + sum(got.info.drops.values()) and len(got) == got.info.rows_kept


def test_sharegpt_first_turns_of_v3(shared: Shared) -> None:
    got = opened(shared("data/sharegpt_v3_filtered_500_first_turn.json"))
    assert adds_up(got)
    assert (got.info.format, got.info.rows_read, got.info.rows_kept, got.info.drops) == ("sharegpt", 500, 500, {})
    assert got.info.duplicates == 1
    assert got.info.rows_with_answer == 0
    assert got.info.sha256 == "1dfcb9e6a6b794145128a3d2dd2f3c83aff8f11c806654e77aede2b0cda30e0e"


def test_sharegpt_first_turns_of_the_raw_part(shared: Shared) -> None:
    path = shared("data/sharegpt_sg90k_part1_first_turn_2978.json")
    got = opened(path)
    assert adds_up(got)
    # one message a row: 2,958 human (one of them empty), 16 system, 4 gpt
    assert got.info.drops == {"no_user_turn": 20, "empty_value": 1}
    assert (got.info.rows_read, got.info.rows_kept, got.info.duplicates) == (2978, 2957, 96)
    strict = opened(path, rules=Rules(leading_assistant="drop"), duplicates="drop")
    assert adds_up(strict)
    assert strict.info.drops == {"no_user_turn": 16, "starts_with_assistant": 4, "empty_value": 1, "duplicate": 96}


def test_limits_drop_what_a_plain_count_drops(shared: Shared) -> None:
    path = shared("data/sharegpt_sg90k_part1_first_turn_2978.json")
    texts = [
        turn["value"]
        for row in json.loads(path.read_text())
        for turn in row["conversations"]
        if turn["from"] == "human"
    ]
    settings = DataSettings(path=str(path), limits=Limits(input_min=16, input_max=2000))
    got = open_library(settings, count_tokens=len)  # a "token" is a character: exact, and easy to count by hand
    assert adds_up(got)
    assert got.info.drops["prompt_too_short"] == sum(0 < len(text) < 16 for text in texts)
    assert got.info.drops["prompt_too_long"] == sum(len(text) > 2000 for text in texts)
    assert got.info.input_tokens is not None
    assert (got.info.input_tokens.min, got.info.input_tokens.max) == (16, max(n for n in map(len, texts) if n <= 2000))
    estimated = opened(path, limits=VLLM_LIMITS)
    assert estimated.info.drops["prompt_too_short"] == sum(0 < estimate_tokens(text) < 4 for text in texts)
    assert estimated.info.drops["prompt_too_long"] == sum(estimate_tokens(text) > 1024 for text in texts)


def test_alpaca_with_its_no_input_markers(shared: Shared) -> None:
    path = shared("data/alpaca_2000_subset_gumbelsoft.json")
    got = opened(path)
    assert adds_up(got)
    assert (got.info.format, got.info.rows_kept, got.info.rows_with_answer) == ("alpaca", 2000, 2000)
    # No input 13, Noinput 11, No Input 5, No input. 4, noinput 2: 35; and <noinput> in brackets, quotes, backticks: 9
    assert got.info.notes == {"no_input_marker": 44}
    rows = json.loads(path.read_text())
    assert sum(row["input"] in ("No input", "Noinput", "No Input", "No input.", "noinput") for row in rows) == 35
    at = next(n for n, row in enumerate(rows) if row["input"] == "No input.")
    assert got.conversation(at).turns[0].user == rows[at]["instruction"]


def test_code_alpaca_with_two_empty_outputs(shared: Shared) -> None:
    path = shared("data/code_alpaca_2k.json")
    got = opened(path)
    assert (got.info.rows_kept, got.info.rows_with_answer, got.info.notes) == (2017, 2015, {"no_input_marker": 1})
    answered = opened(path, need_answer=True)
    assert adds_up(answered)
    assert answered.info.drops == {"no_answer": 2}


def test_multi_turn_files(shared: Shared) -> None:
    tools = opened(shared("data/llamafactory_sharegpt_toolcall_demo.json"))
    assert adds_up(tools)
    assert tools.info.rows_kept == 300
    assert sum(len(tools.conversation(row).turns) for row in range(300)) == 746  # its human messages
    assert all(turn.answer for row in range(300) for turn in tools.conversation(row).turns)
    assert tools.info.notes == {"tool_skipped": 153, "tools_left_out": 300}
    dummy = opened(shared("data/fastchat_dummy_conversation.json"))
    assert (dummy.info.rows_kept, dummy.info.duplicates) == (500, 346)
    assert dummy.info.turns is not None
    assert (dummy.info.turns.min, dummy.info.turns.max) == (1, 3)
    single = opened(shared("data/fastchat_dummy_conversation.json"), conversations="single")
    assert single.info.turns is not None
    assert single.info.turns.max == 1
    assert all(len(single.conversation(row).turns) == 1 for row in range(500))


def test_jsonl_files(shared: Shared) -> None:
    bench = opened(shared("data/mt_bench_question.jsonl"))
    assert (bench.info.format, bench.info.rows_kept) == ("jsonl", 80)
    assert [len(bench.conversation(row).turns) for row in range(80)] == [2] * 80
    assert bench.conversation(0).id == "81"
    seed = opened(shared("data/self_instruct_user_oriented.jsonl"))
    assert (seed.info.format, seed.info.rows_kept) == ("alpaca", 252)
    assert sum("### Input:" not in (seed.conversation(row).template or "") for row in range(252)) == 44
    with pytest.raises(Exception, match="12031 rows can be used \\(12031 unknown_shape\\)"):
        opened(shared("data/mooncake_conversation_trace.jsonl"))


def test_every_quirk_is_kept_or_counted() -> None:
    got = opened(QUIRKS)
    assert adds_up(got)
    assert got.info.rows_read == 51
    assert got.info.drops == {
        "empty_conversation": 2,
        "no_user_turn": 2,
        "empty_value": 3,
        "bad_turn": 5,
        "unknown_shape": 2,
    }
    assert got.info.duplicates == 1
    ids = [got.conversation(row).id for row in range(len(got))]
    assert ids[0] == "plain_0"
    assert "49" in ids, "a row without an id goes by its number, counted from 1 over all rows"


@pytest.mark.parametrize("name", ["sharegpt_quirks.json", "alpaca_quirks.json"])
def test_containers_byte_order_mark_and_line_ends_make_no_difference(name: str, tmp_path: Path) -> None:
    source = HERE / "data" / name
    wanted = opened(source)
    rows = json.loads(source.read_text(encoding="utf-8"))
    lines = [json.dumps(row).encode() for row in rows]
    variants = {
        "lines": b"\n".join(lines),
        "crlf": b"\r\n".join(lines) + b"\r\n",
        "bom": b"\xef\xbb\xbf" + b"\n".join(lines),
        "bom-array": b"\xef\xbb\xbf \r\n" + json.dumps(rows, indent=3).replace("\n", "\r\n").encode(),
        "compact": json.dumps(rows, separators=(",", ":")).encode(),
    }
    for variant, data in variants.items():
        path = tmp_path / variant
        path.write_bytes(data)
        got = opened(path)
        assert got.info.drops == wanted.info.drops, variant
        assert [got.conversation(row) for row in range(len(got))] == [
            wanted.conversation(row) for row in range(len(wanted))
        ], variant


def test_need_answer_cuts_the_conversation_where_answers_end() -> None:
    got = opened(QUIRKS, need_answer=True)
    kept = {got.conversation(row).id: got.conversation(row) for row in range(len(got))}
    assert [turn.user for turn in kept["ends-with-human_0"].turns] == ["A?"]
    assert "empty-answer_0" not in kept
    assert got.info.drops["no_answer"] == 1


def test_a_fixed_output_length_is_what_limits_see(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "long enough a prompt", "answer": "no"}\n')
    with pytest.raises(Exception, match="1 answer_too_short"):
        opened(path, limits=VLLM_LIMITS)
    assert len(opened(path, limits=VLLM_LIMITS, output_tokens_fixed=128)) == 1
    with pytest.raises(Exception, match="1 total_too_long"):
        opened(path, limits=VLLM_LIMITS, output_tokens_fixed=2048)


def test_shards_of_a_library_are_its_conversations() -> None:
    got = opened(SAMPLES / "sharegpt.json")
    whole = [conversation.id for conversation in islice(got.shard(0, 1), len(got))]
    assert sorted(whole) == sorted(got.conversation(row).id for row in range(len(got)))
    assert whole[:4] == ["standup_0", "css-center_0", "nginx-upload_0", "cap_0"], "seed 1, on every machine"
    parts = [[conversation.id for conversation in islice(got.shard(index, 3), 15)] for index in range(3)]
    assert [parts[n % 3][n // 3] for n in range(len(got))] == whole
    plain = opened(SAMPLES / "sharegpt.json", shuffle_seed=None)
    assert next(plain.shard(0, 1)).id == "nginx-upload_0"


def test_the_samples_are_clean_and_of_mixed_lengths() -> None:
    chats, tasks = opened(SAMPLES / "sharegpt.json"), opened(SAMPLES / "alpaca.json")
    for sample in (chats, tasks):
        assert sample.info.drops == sample.info.notes == {}
        assert sample.info.duplicates == 0
        assert sample.info.rows_kept >= 40
        assert sample.info.rows_with_answer == sample.info.rows_kept
    assert (chats.info.format, tasks.info.format) == ("sharegpt", "alpaca")
    assert chats.info.turns is not None
    assert chats.info.turns.max >= 3
    assert chats.info.output_tokens is not None
    assert chats.info.output_tokens.min < 10
    assert chats.info.output_tokens.max > 400


# the cache


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    passes: list[Path] = []
    real = library.Source

    def counted(path: Path) -> library.Source:
        passes.append(path)
        return real(path)

    monkeypatch.setattr(library, "Source", counted)
    return passes


def everything(got: Library) -> object:
    return got.info.drops, got.info.sha256, got.info.notes, [got.conversation(row) for row in range(len(got))]


def test_the_second_time_the_index_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch)
    first = opened(QUIRKS, cache_dir=str(tmp_path / "new" / "folder"))
    again = opened(QUIRKS, cache_dir=str(tmp_path / "new" / "folder"))
    assert len(passes) == 1
    assert (first.info.cached, again.info.cached) == (False, True)
    assert everything(first) == everything(again)
    opened(QUIRKS, cache_dir=str(tmp_path / "new" / "folder"), shuffle_seed=9)
    assert len(passes) == 1, "the order is not part of the index"
    opened(QUIRKS, cache_dir=str(tmp_path / "new" / "folder"), conversations="single")
    assert len(passes) == 2
    open_library(DataSettings(path=str(QUIRKS), cache_dir=str(tmp_path / "new" / "folder")), count_tokens=len)
    assert len(passes) == 3, "an unnamed tokenizer is not trusted to be the same one"
    named = DataSettings(path=str(QUIRKS), cache_dir=str(tmp_path / "new" / "folder"), tokenizer="letters")
    assert open_library(named).info.cached, "a name without its tokenizer counts nothing: it is the estimate"
    counted = open_library(named, count_tokens=len)
    assert not counted.info.cached
    assert open_library(named, count_tokens=len).info == msgspec.structs.replace(counted.info, cached=True)
    assert counted.info.tokens_from == "counted by letters"


def test_a_changed_file_is_indexed_again(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "first"}\n')
    assert opened(path, cache_dir=str(tmp_path)).conversation(0).turns[0].user == "first"
    before = path.stat()
    path.write_text('{"prompt": "other"}\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same mtime: only ctime tells
    got = opened(path, cache_dir=str(tmp_path))
    assert got.conversation(0).turns[0].user == "other"
    assert got.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 50, None])
def test_a_broken_cache_file_is_replaced(tmp_path: Path, damage: bytes | None) -> None:
    wanted = everything(opened(QUIRKS, cache_dir=str(tmp_path)))
    (cache,) = tmp_path.glob("index-*.msgpack")
    whole = cache.read_bytes()
    cache.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:] if damage is None else damage)
    repaired = opened(QUIRKS, cache_dir=str(tmp_path))
    assert not repaired.info.cached
    assert everything(repaired) == wanted
    assert opened(QUIRKS, cache_dir=str(tmp_path)).info.cached


def test_a_new_version_of_the_readers_does_not_trust_old_indexes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(QUIRKS, cache_dir=str(tmp_path))
    monkeypatch.setattr(index, "INDEX_VERSION", index.INDEX_VERSION + 1)
    assert not opened(QUIRKS, cache_dir=str(tmp_path)).info.cached
    assert len(list(tmp_path.iterdir())) == 1, "the stale index is replaced, not kept beside the new one"


def test_a_cache_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert len(opened(QUIRKS, cache_dir=str(tmp_path / "file" / "below"))) == 37


def test_a_cache_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    opened(QUIRKS, cache_dir=str(tmp_path))
    (cache,) = tmp_path.iterdir()
    cache.unlink()
    (cache / "in the way").mkdir(parents=True)
    assert not opened(QUIRKS, cache_dir=str(tmp_path)).info.cached
    assert list(tmp_path.iterdir()) == [cache]


def _open_in_a_process(folder: str) -> str:
    return repr(everything(opened(QUIRKS, cache_dir=folder)))


def test_several_workers_may_index_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        answers = pool.map(_open_in_a_process, [str(tmp_path)] * 8, chunksize=1)
    assert len(set(answers)) == 1
    assert [file.suffix for file in tmp_path.iterdir()] == [".msgpack"], "no temporary file is left"


# slices, settings, text


def test_opening_yields_between_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenswarm.prompts.source.BLOCK_BYTES", 1000)
    size = QUIRKS.stat().st_size
    seen = list(open_steps(DataSettings(path=str(QUIRKS))))
    assert [step.bytes_done for step in seen] == [*range(1000, size, 1000), *[size] * 5]
    assert all(step.bytes_total == size for step in seen)
    got = opened(QUIRKS)
    assert got.info.sha256 == hashlib.sha256(QUIRKS.read_bytes()).hexdigest(), "over all blocks"
    again: list[Progress] = []
    assert len(open_library(DataSettings(path=str(QUIRKS)), on_progress=again.append)) == 37
    assert again == seen


def test_synthetic_data_sets_are_libraries_too() -> None:
    wanted = Synthetic(
        rows=20,
        turns=2,
        input_tokens=LengthLaw(kind="fixed", mean=30),
        output_tokens=LengthLaw(kind="uniform", min=5, max=9),
    )
    got = open_library(DataSettings(path=None, format="synthetic", synthetic=wanted))
    assert (got.info.rows_read, got.info.rows_kept, got.info.path, got.info.sha256) == (20, 20, None, None)
    assert len({conversation.id for conversation in islice(got.shard(1, 2), 10)}) == 10
    assert [len(turn.user.split()) for turn in got.conversation(3).turns] == [30, 30]
    assert got.info.tokens_from == "estimated: one word is one token"
    assert got.info.input_tokens is not None
    assert 60 + 5 <= got.info.input_tokens.min <= got.info.input_tokens.max <= 60 + 9, "two questions and an answer"
    single = open_library(DataSettings(path=None, format="synthetic", synthetic=wanted, conversations="single"))
    assert len(single.conversation(3).turns) == 1


def test_info_is_readable_text() -> None:
    text = info_text(describe(opened(SAMPLES / "alpaca.json", limits=Limits(output_min=2))))
    assert "rows           42 read = 41 kept + 1 dropped" in text
    assert "  dropped      1 answer_too_short" in text
    assert "tokens are     estimated: characters / 4" in text
    assert "order          shuffled, seed 1" in text
    plain = DataSettings(path=str(SAMPLES / "alpaca.json"), tokenizer="letters", shuffle_seed=None)
    counted = info_text(open_library(plain, count_tokens=len).info)
    assert "tokens are     counted by letters" in counted
    assert "order          as in the file" in counted


def test_spread_is_nearest_rank() -> None:
    assert spread([]) is None
    got = spread(range(1, 101))
    assert got is not None
    assert (got.min, got.p50, got.p95, got.max, got.mean) == (1, 50, 95, 100, 50.5)
    one = spread([7])
    assert one is not None
    assert (one.min, one.p50, one.p95, one.max) == (7, 7, 7, 7)


def test_the_profile_maps_onto_settings(tmp_path: Path) -> None:
    section = Dataset(
        path="x.json",
        length_filter="vllm",
        input_tokens=TokenRange(max=500),
        answer_tokens=TokenRange(max=900),
        leading_assistant="drop",
        shuffle=False,
        output_tokens=OutputTokens(fixed=64),
    )
    got = from_profile.data_settings(section, tmp_path)
    assert got.limits == Limits(input_min=4, input_max=500, output_min=4, output_max=900, total_max=2048)
    assert (got.rules.leading_assistant, got.shuffle_seed, got.output_tokens_fixed) == ("drop", None, 64)
    assert got.cache_dir == str(tmp_path)
    assert from_profile.prompt_policy(section).output.tokens == 64
    drawn = Dataset(format="synthetic", output_tokens=OutputTokens(mean=100.0, stddev=10.0, max=120))
    law = from_profile.prompt_policy(drawn).output.law
    assert law is not None
    assert (law.kind, law.mean, law.std, law.max) == ("normal", 100.0, 10.0, 120)
    assert open_library(from_profile.data_settings(drawn, None)).info.rows_kept == 1000


@pytest.mark.parametrize("path", ["configs/samples/sharegpt.json", "/other/install/configs/samples/alpaca.json"])
def test_a_bundled_sample_is_where_this_install_has_it(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = from_profile.data_settings(Dataset(path=path), None).path
    assert found is not None
    assert Path(found).is_file()
    assert Path(found).name == Path(path).name
    own = tmp_path / "configs" / "samples" / Path(path).name
    own.parent.mkdir(parents=True)
    own.write_text("[]")
    here = from_profile.data_settings(Dataset(path=f"configs/samples/{own.name}"), None).path
    assert here == f"configs/samples/{own.name}", "what is there is what was meant"
    assert from_profile.data_settings(Dataset(path="samples/x.json"), None).path == "samples/x.json"
    assert from_profile.data_settings(Dataset(path="configs/samples/x.json"), None).path == "configs/samples/x.json"
