"""Traces: arrivals of a real service, with the lengths of their prompts and answers. One reader a format in `traces/`.

A file is read once, in order of its rows, into columns; what is odd but usable is told in `notes`, what is not raises
DatasetError with file and line. Times are s from the first row.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path

import msgspec

from tokenswarm.errors import ConfigError, DatasetError, not_text
from tokenswarm.load import Arrival
from tokenswarm.load.schedule import Planned
from tokenswarm.load.traces import Faulty, Reader, Row, azure, bailian, burstgpt, mooncake, plain
from tokenswarm.profile.load import ENDLESS_S, Load, Stage
from tokenswarm.profile.typed_yaml import Seconds

FORMATS = {"azure": azure, "burstgpt": burstgpt, "bailian": bailian, "mooncake": mooncake, "plain": plain}
"""A row a format: `head(line) -> reader or None`, where a reader makes a Row of each further line. In the order in
which `auto` asks: Mooncake's fields are among Bailian's."""

LINE_BYTES_MAX = 1 << 20
ROWS_MAX = 20_000_000
SILENCE_S = 60.0  # a gap is told of from here on, where it is also so many times the mean gap:
SILENCE_GAPS = 100.0
BREATH = 5_000  # rows between two calls of `breathe`


class Trace(msgspec.Struct):
    """Columns, a row an arrival. `blocks`, of `block_tokens` each, only where the file has them."""

    path: str
    at_s: array[float]
    input_tokens: array[int]
    output_tokens: array[int]
    blocks: list[tuple[int, ...]]
    notes: list[str]
    block_tokens: int = 0

    @property
    def span_s(self) -> float:
        """From the first arrival to where the next would come: one mean gap behind the last."""
        n = len(self.at_s)
        return self.at_s[-1] * n / (n - 1) if n > 1 else 1.0

    def cut(self, start_s: float, length_s: float | None) -> Trace:
        """The part from `start_s` on, `length_s` long; its times begin at 0. Raises DatasetError where it is empty."""
        end_s = float("inf") if length_s is None else start_s + length_s
        keep = [i for i, at_s in enumerate(self.at_s) if start_s <= at_s < end_s]
        if not keep:
            raise DatasetError(
                f"{self.path}: no arrival lies in the window that `load.trace` asks for; the trace lasts "
                f"{self.at_s[-1]:g} s"
            )
        first, last = keep[0], keep[-1] + 1
        return Trace(
            self.path,
            array("d", (at_s - start_s for at_s in self.at_s[first:last])),
            self.input_tokens[first:last],
            self.output_tokens[first:last],
            self.blocks[first:last],
            self.notes,
            self.block_tokens,
        )

    def arrivals(self, time_scale: float, *, loop: bool) -> Iterator[Arrival]:
        """In order of time, `time_scale` times as far apart; with `loop` from the begin again, without end.

        Each time with blocks of its own: a cache that has seen the trace once would know all of it.
        """
        n, blocks = len(self.at_s), self.blocks or [()] * len(self.at_s)
        above = 1 + max((max(row, default=0) for row in blocks), default=0) if loop else 0
        for turn in itertools.count() if loop else range(1):
            begin_s = turn * self.span_s
            columns = zip(self.at_s, self.input_tokens, self.output_tokens, blocks, strict=True)
            for number, (at_s, tokens_in, tokens_out, prefix) in enumerate(columns, turn * n):
                own = tuple(block + turn * above for block in prefix) if turn else prefix
                yield Arrival(number, (begin_s + at_s) * time_scale, tokens_in, tokens_out, own)


def read_trace(
    path: Path, wanted: str = "auto", breathe: Callable[[], None] = lambda: None, block_tokens: int | None = None
) -> Trace:
    """The whole file. `breathe` is called now and then, for whoever must not be held up. Raises DatasetError.

    `block_tokens`: of its `hash_ids`; None: the format's own; 0: they are not looked at.
    """
    with _opened(path) as file:
        if said := not_text(file.peek(64).lstrip()):
            raise DatasetError(f"{path}: {said}")
        lines = _lines(path, file)
        head = next(lines, None)
        if head is None:
            raise DatasetError(f"{path}: the file holds no rows")
        reader = _reader(path, head, wanted)
        if block_tokens is not None:
            if block_tokens and not reader.block_tokens:
                raise DatasetError(f"{path}: this trace has no `hash_ids`: leave out `load.trace.block_tokens`")
            reader.block_tokens = block_tokens
        return _read(path, lines if reader.has_header else itertools.chain((head,), lines), reader, breathe)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: no such file (`load.trace.path`; `tokenswarm data fetch ADDRESS --to FILE` downloads one)"
        ) from None
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error.strerror}") from None


def _lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not empty."""
    for number, line in enumerate(file, 1):
        if len(line) > LINE_BYTES_MAX:
            raise DatasetError(f"{path}:{number}: a line of {len(line)} bytes; is this a trace?")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise DatasetError(f"{path}:{number}: is not UTF-8 text") from None
        if text:
            yield number, text


def _reader(path: Path, head: tuple[int, str], wanted: str) -> Reader:
    """What reads a file that begins with this line."""
    names = list(FORMATS) if wanted == "auto" else [wanted]
    tried: Iterator[Reader | None] = (FORMATS[name].head(head[1]) for name in names)
    found = next((reader for reader in tried if reader is not None), None)
    if found is None:
        kinds = ", ".join(FORMATS) if wanted == "auto" else wanted
        raise DatasetError(f"{path}:{head[0]}: the first line is not that of a trace ({kinds}): `load.trace.format`")
    return found


def _read(path: Path, lines: Iterable[tuple[int, str]], reader: Reader, breathe: Callable[[], None]) -> Trace:
    notes = _Notes(path)
    trace = Trace(str(path), array("d"), array("q"), array("q"), [], [], reader.block_tokens)
    first_s = 0.0
    for number, text in lines:
        try:
            row = reader.row(text)
        except Faulty as fault:
            raise DatasetError(f"{path}:{number}: {fault}") from None
        if not trace.at_s:
            first_s = row.at_s
        _add(trace, row, row.at_s - first_s, number, notes)
        if len(trace.at_s) % BREATH == 0:
            breathe()
    if not trace.at_s:
        raise DatasetError(f"{path}: the file holds no rows below its head")
    trace.notes = notes.told(trace)
    return trace


def _add(trace: Trace, row: Row, at_s: float, number: int, notes: _Notes) -> None:
    if len(trace.at_s) >= ROWS_MAX:
        raise DatasetError(f"{trace.path}:{number}: more than {ROWS_MAX} rows")
    gap_s = at_s - trace.at_s[-1] if trace.at_s else 0.0
    if gap_s < 0:
        raise DatasetError(
            f"{trace.path}:{number}: its time lies {-gap_s:g} s before that of the row above: sort the trace by time"
        )
    notes.look(row, gap_s, number, first=not trace.at_s)
    trace.at_s.append(at_s)
    trace.input_tokens.append(max(1, row.input_tokens))
    trace.output_tokens.append(max(1, row.output_tokens))
    if row.blocks or trace.blocks:
        trace.blocks += [()] * (len(trace.at_s) - 1 - len(trace.blocks))  # the rows before the first that has some
        trace.blocks.append(row.blocks)


class _Notes:
    """What is odd about a trace, counted, each with the first line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._odd: dict[str, list[int]] = {}  # what -> [how often, first line]
        self._silence = (0.0, 0)  # the longest, and the line behind it

    def look(self, row: Row, gap_s: float, number: int, *, first: bool) -> None:
        if row.input_tokens == 0 or row.output_tokens == 0:
            self._odd.setdefault("0 tokens, sent as 1", [0, number])[0] += 1
        if gap_s == 0 and not first:
            self._odd.setdefault("the time of the row above, sent at once", [0, number])[0] += 1
        self._silence = max(self._silence, (gap_s, number), key=lambda known: known[0])

    def told(self, trace: Trace) -> list[str]:
        told = [
            f"{self._path}:{line}: {n} row{'s have' if n > 1 else ' has'} {what} (here the first)"
            for what, (n, line) in self._odd.items()
        ]
        longest_s, line = self._silence
        if longest_s >= SILENCE_S and longest_s >= SILENCE_GAPS * trace.span_s / len(trace.at_s):
            told.append(f"{self._path}:{line}: nothing arrives for {longest_s:g} s before this row")
        return told


def digest(path: Path) -> str:
    """The SHA-256 of a trace's file. Raises DatasetError."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trace_of(load: Load, breathe: Callable[[], None] = lambda: None) -> Trace:
    """The arrivals that the profile asks for. Raises DatasetError; where its file is not the run's, too."""
    assert load.trace is not None
    known = load.trace.sha256
    if known is not None and (found := digest(Path(load.trace.path))) != known:
        raise DatasetError(
            f"{load.trace.path}: another file than the run's: its SHA-256 is {found[:12]}…, and `load.trace.sha256` "
            f"{known[:12]}…: put the same trace on the master and on every machine with workers"
        )
    whole = read_trace(Path(load.trace.path), load.trace.format, breathe, load.trace.block_tokens)
    return whole.cut(load.trace.start, load.trace.length)


def planned(load: Load, trace: Trace, lead_s: float) -> Planned:
    """The stage with the trace's own length where the profile gives none. Raises ConfigError."""
    assert load.trace is not None
    scale, stage = load.trace.time_scale, load.stages[0]
    if load.trace.loop and not trace.span_s:
        raise ConfigError(
            f"{trace.path}: all its arrivals have one time, so nothing says when it begins again: leave out "
            "`load.trace.loop`"
        )
    last_s = trace.at_s[-1] * scale
    if stage.duration == ENDLESS_S and not load.trace.loop:
        if last_s < lead_s:
            raise ConfigError(
                f"the warm-up of {lead_s:g} s is all that the trace lasts ({last_s:g} s at `load.trace.time_scale` "
                f"{scale:g}): shorten `phases.warmup`, or say `load.trace.loop: true`"
            )
        stage = Stage(duration=Seconds(last_s - lead_s + 0.001))
    end_s = lead_s + stage.duration
    if not load.trace.loop and end_s > trace.span_s * scale + 1:
        raise ConfigError(
            f"`load.stages.0.duration`: with the warm-up it lasts {end_s:g} s, the trace {trace.span_s * scale:g} s "
            f"(`load.trace.time_scale` {scale:g}): shorten it, or say `load.trace.loop: true`"
        )
    if stage.duration == ENDLESS_S:
        return Planned(stage, None)
    until = itertools.takewhile(lambda one: one.at_s < end_s, trace.arrivals(scale, loop=load.trace.loop))
    return Planned(stage, sum(one.at_s >= lead_s for one in until))
