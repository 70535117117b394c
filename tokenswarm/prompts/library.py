"""One pipeline for every data set: read, normalise, filter, order, shard. Every row read is kept or counted as dropped.

`open_library(settings)` or, in slices of some 10 ms, `open_steps(settings)`; then `library.shard(i, n)` is worker i's
endless iterator. A file of any size is indexed in one pass in bounded memory and its rows are read by offset. No clock,
no environment: the cache folder is a setting. Raises DatasetError, one sentence each.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Sequence
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Literal
from zlib import crc32

import msgspec

from tokenswarm.errors import DatasetError
from tokenswarm.prompts import Conversation, Turn, alpaca, jsonl, sharegpt
from tokenswarm.prompts import index as index_file
from tokenswarm.prompts.index import UNKNOWN, Index, count
from tokenswarm.prompts.info import ESTIMATE, UNANSWERED, DataInfo, Spread, spread
from tokenswarm.prompts.lengths import NO_LIMITS, CountTokens, Limits, estimate_tokens, limits_fault
from tokenswarm.prompts.order import Shard
from tokenswarm.prompts.reading import Reading, Rules, dropped, request_in, row_id, without_nulls
from tokenswarm.prompts.source import RowFault, Source, decode_row, file_status
from tokenswarm.prompts.synthetic import Synthetic, count_words, generate

READERS: dict[str, ModuleType] = {"sharegpt": sharegpt, "alpaca": alpaca, "jsonl": jsonl}
"""Format -> reader, in the order in which `auto` asks: Alpaca rows may hold a `text` that must not be sent."""

SYNTHETIC_SAMPLE_ROWS = 200  # rows that the lengths in `info` are taken from; generating 200 takes some 20 ms


class DataSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What decides which rows are used and in which order. `path` None only with format synthetic."""

    path: str | None
    format: str = "auto"  # or a key of READERS, or "synthetic"
    conversations: Literal["single", "multi"] = "multi"
    rules: Rules = Rules()
    duplicates: Literal["keep", "drop"] = "keep"
    need_answer: bool = False  # drop rows without an answer or stated length (and later turns from the first such on)
    limits: Limits = NO_LIMITS
    output_tokens_fixed: int | None = None  # the answers' length that limits are applied to; None: the data set's
    shuffle_seed: int | None = 1  # None: file order
    skip_bad_ratio: float = 0.0  # share of rows that may be broken JSON
    synthetic: Synthetic | None = None
    cache_dir: str | None = None  # None: no cached index
    tokenizer: str | None = None  # the name of count_tokens; where that has none the index is not cached


class Progress(msgspec.Struct, frozen=True, gc=False):
    bytes_done: int
    bytes_total: int


class Library:
    """An opened data set. Its rows are numbered 0 .. len - 1 in file order."""

    def __init__(self, info: DataInfo, read: Callable[[int], Conversation]) -> None:
        self.info = info
        self.conversation = read

    def __len__(self) -> int:
        return self.info.rows_kept

    def shard(self, index: int, count: int, users: int | None = None) -> Shard[Conversation]:
        """Worker `index` of `count`: its conversations of the one seeded order, endlessly; `users`: of all workers."""
        return Shard(self.conversation, len(self), index, count, self.info.seed, users)


def describe(library: Library) -> DataInfo:
    return library.info


def open_library(
    settings: DataSettings,
    on_progress: Callable[[Progress], None] | None = None,
    count_tokens: CountTokens | None = None,
) -> Library:
    """Open the data set in one go; `on_progress` is called about every 10 ms of work."""
    steps = open_steps(settings, count_tokens)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            library: Library = end.value
            return library
        if on_progress is not None:
            on_progress(progress)


def open_steps(settings: DataSettings, count_tokens: CountTokens | None = None) -> Generator[Progress, None, Library]:
    """Open the data set in slices: `library = yield from open_steps(settings)`, or drive it beside an event loop."""
    if settings.format == "synthetic":
        return _open_synthetic(settings, count_tokens)
    if settings.path is None:
        raise DatasetError("no data set file is named (`dataset.path`), and the format is not synthetic")
    path = Path(settings.path)
    if count_tokens is None:
        settings = msgspec.structs.replace(settings, tokenizer=None)  # or an estimate would be cached under its name
    status = file_status(path)
    fingerprint = _fingerprint(settings)
    cache: Path | None = None
    if settings.cache_dir is not None and (count_tokens is None or settings.tokenizer is not None):
        cache = index_file.cache_file(Path(settings.cache_dir), path, fingerprint)
    key = index_file.cache_key(path, status, fingerprint)
    index = None if cache is None else index_file.load(cache, key)
    cached = index is not None
    if index is None:
        index = yield from _index_steps(path, status.st_size, settings, count_tokens)
        if cache is not None:
            index_file.save(cache, key, index)
    spreads = []
    for column in (index.turns, index.inputs, [tokens for tokens in index.outputs if tokens != UNKNOWN]):
        yield Progress(status.st_size, status.st_size)  # sorting 100,000 rows takes 10 ms a column
        spreads.append(spread(column))
    info = _file_info(settings, status.st_size, index, spreads, _tokens_from(settings, count_tokens), cached)
    return Library(info, _reader_of(path, settings, index))


def _fingerprint(settings: DataSettings) -> bytes:
    """The settings that change the index, as bytes."""
    changes_nothing = {"path": None, "shuffle_seed": None, "cache_dir": None, "synthetic": None}
    return msgspec.msgpack.encode(msgspec.structs.replace(settings, **changes_nothing))


def _index_steps(
    path: Path, size: int, settings: DataSettings, count_tokens: CountTokens | None
) -> Generator[Progress, None, Index]:
    index = Index()
    seen: set[bytes] = set()
    first_fault = unknown = ""
    source = Source(path)
    for done, rows in source:
        for offset, raw in rows:
            number = index.rows_read
            index.rows_read += 1
            try:
                row = decode_row(raw)
            except RowFault as fault:
                first_fault = first_fault or source.row_sentence(fault, offset)
                if settings.skip_bad_ratio == 0:
                    raise DatasetError(first_fault) from None
                count(index.drops, "bad_json")
                continue
            name, reading = read_row(row, number, settings)
            count(index.formats, name)
            reason = reading.reason
            if reading.conversation is not None:
                turns, input_tokens, output_tokens, reason = _measure(reading.conversation, settings, count_tokens)
                if not reason and _is_repeat(reading.conversation, seen):
                    index.duplicates += 1
                    reason = "duplicate" if settings.duplicates == "drop" else ""
            if reason:
                if reason == "unknown_shape" and not unknown:
                    unknown = f"; line {source.line_at(offset)} has {keys_of(row)}"
                count(index.drops, reason)
                continue
            for note in reading.notes:
                count(index.notes, note)
            index.keep(offset, raw, number, turns, input_tokens, output_tokens)
        yield Progress(done, size)
    index.sha256 = source.sha256
    bad = index.drops.get("bad_json", 0)
    if bad > settings.skip_bad_ratio * index.rows_read:
        raise DatasetError(
            f"{first_fault} ({bad} of {index.rows_read} rows are broken, more than skip_bad_ratio allows)"
        )
    if not len(index):
        raise DatasetError(_nothing_usable(path, settings, index) + unknown)
    return index


def read_row(row: object, number: int, settings: DataSettings) -> tuple[str, Reading]:
    """The format of a row, and what it holds under these settings: its first turn, or all of them."""
    name, known = _reader_of_row(row, settings.format)
    if name == "unknown":
        return settings.format if settings.format != "auto" else name, dropped("unknown_shape")
    reading: Reading = READERS[name].read(known, row_id(known, number + 1), settings.rules)
    conversation = reading.conversation
    if conversation is None:
        return name, reading
    turns = conversation.turns[:1] if settings.conversations == "single" else conversation.turns
    if settings.need_answer:
        turns = tuple(takewhile(_has_answer, turns))
        if not turns:
            return name, dropped("no_answer")
    if len(turns) < len(conversation.turns):
        conversation = msgspec.structs.replace(conversation, turns=turns)
    unanswered = (UNANSWERED,) if any(turn.answer is None for turn in turns[:-1]) else ()
    return name, Reading(conversation, notes=(*reading.notes, *unanswered))


def _reader_of_row(row: object, wanted: str) -> tuple[str, object]:
    """(the format whose reader takes it, the row as it is given to that). An empty column decides nothing."""
    names = list(READERS) if wanted == "auto" else [wanted]
    for tried in (without_nulls(row), row, request_in(row)):
        for name in names:
            if READERS[name].matches(tried):
                return name, tried
    return "unknown", row


def _has_answer(turn: Turn) -> bool:
    return turn.answer is not None or turn.output_tokens is not None


def _measure(
    conversation: Conversation, settings: DataSettings, count_tokens: CountTokens | None
) -> tuple[int, int, int | None, str]:
    """(turns, tokens of the longest prompt, tokens of all answers, why it is outside the limits or "")."""
    tokens = count_tokens or estimate_tokens
    system = tokens(conversation.system) if conversation.system else 0
    lengths: list[tuple[int, int | None]] = []
    for turn in conversation.turns:
        answer = turn.output_tokens
        if settings.output_tokens_fixed is not None:
            answer = settings.output_tokens_fixed
        elif answer is None and turn.answer is not None:
            answer = tokens(turn.answer)
        lengths.append((tokens(turn.user), answer))
    answers = [answer for _, answer in lengths if answer is not None]
    history = sum(answer or 0 for _, answer in lengths[:-1])
    longest = system + sum(user for user, _ in lengths) + history
    fault = limits_fault(settings.limits, system, lengths)
    return len(lengths), longest, sum(answers) if answers else None, fault


def _is_repeat(conversation: Conversation, seen: set[bytes]) -> bool:
    """Whether an earlier row asks the same. 64 bits of hash: 100,000 rows hold a false hit once in 4 billion."""
    digest = blake2b((conversation.system or "").encode(), digest_size=8)
    for turn in conversation.turns:
        digest.update(b"\0" + turn.user.encode())
    size = len(seen)
    seen.add(digest.digest())
    return len(seen) == size


def _nothing_usable(path: Path, settings: DataSettings, index: Index) -> str:
    if not index.rows_read:
        return f"{path}: the file holds no rows"
    reasons = ", ".join(f"{n} {name}" for name, n in sorted(index.drops.items(), key=lambda row: -row[1]))
    hint = ""
    if "unknown_shape" in index.drops:
        hint = (
            "; known shapes are ShareGPT, Alpaca, messages and prompt rows"
            if settings.format == "auto"
            else f"; the format was set to {settings.format}: try auto"
        )
    return f"{path}: none of its {index.rows_read} rows can be used ({reasons}){hint}"


def keys_of(row: object) -> str:
    """What a row of no known shape has in place of one."""
    if not isinstance(row, dict):
        return f"{'an empty value' if not row else 'no object'}"
    names = [repr(name[:40]) for name in list(row)[:6]]
    told = ", ".join([*names, *(["…"] if len(row) > 6 else [])]) or "no keys"
    inner = (name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict))
    if name := next(inner, ""):
        told += f"; are its rows those under {name[:40]!r}? `jq -c '.[\"{name[:40]}\"][]'` takes them out"
    return told


def _reader_of(path: Path, settings: DataSettings, index: Index) -> Callable[[int], Conversation]:
    """Read a kept row again by its offset. Holds the file open: a file replaced during the run changes nothing."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read(row: int) -> Conversation:
        raw = os.pread(file, index.lengths[row], index.offsets[row])
        number, conversation = index.numbers[row], None
        if crc32(raw) == index.sums[row]:
            conversation = read_row(decode_row(raw), number, settings)[1].conversation
        if conversation is None:
            raise DatasetError(f"{path}: row {number + 1} is not what it was: the file was changed while it was in use")
        return conversation

    weakref.finalize(read, os.close, file)
    return read


def _tokens_from(settings: DataSettings, count_tokens: CountTokens | None, estimate: str = ESTIMATE) -> str:
    return estimate if count_tokens is None else f"counted by {settings.tokenizer or 'a tokenizer'}"


def _file_info(
    settings: DataSettings,
    size: int,
    index: Index,
    spreads: Sequence[Spread | None],  # turns, prompt tokens, answer tokens
    tokens_from: str,
    cached: bool,
) -> DataInfo:
    return DataInfo(
        path=settings.path,
        format=max(index.formats, key=lambda name: index.formats[name], default="unknown"),
        bytes=size,
        sha256=index.sha256,
        rows_read=index.rows_read,
        rows_kept=len(index),
        drops=index.drops,
        notes=index.notes,
        duplicates=index.duplicates,
        conversations=settings.conversations,
        turns=spreads[0],
        input_tokens=spreads[1],
        output_tokens=spreads[2],
        rows_with_answer=len(index) - index.outputs.count(UNKNOWN),
        tokens_from=tokens_from,
        seed=settings.shuffle_seed,
        cached=cached,
    )


def _open_synthetic(settings: DataSettings, count_tokens: CountTokens | None) -> Library:
    wanted = settings.synthetic
    if wanted is None:
        raise DatasetError("the format is synthetic, but no lengths are given for it")
    single = settings.conversations == "single"

    def read(row: int) -> Conversation:
        conversation = generate(wanted, row, count_tokens)
        return msgspec.structs.replace(conversation, turns=conversation.turns[:1]) if single else conversation

    sampled = range(min(wanted.rows, SYNTHETIC_SAMPLE_ROWS))
    sample = [_measure(read(row), settings, count_tokens or count_words) for row in sampled]
    info = DataInfo(
        path=None,
        format="synthetic",
        bytes=0,
        sha256=None,
        rows_read=wanted.rows,
        rows_kept=wanted.rows,
        drops={},
        notes={UNANSWERED: wanted.rows} if wanted.turns > 1 and not single else {},
        duplicates=0,
        conversations=settings.conversations,
        turns=spread(row[0] for row in sample),
        input_tokens=spread(row[1] for row in sample),
        output_tokens=spread(row[2] for row in sample if row[2] is not None),
        rows_with_answer=wanted.rows,
        tokens_from=_tokens_from(settings, count_tokens, "estimated: one word is one token"),
        seed=settings.shuffle_seed,
        cached=False,
    )
    return Library(info, read)
