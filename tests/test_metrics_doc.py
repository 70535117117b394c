"""docs/metrics.md is true: every field has a row, and the worked stream gives the examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from tokenswarm.engines import Delta, Usage
from tokenswarm.measure.instrument import InstrumentReport
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.slo import Slo
from tokenswarm.measure.snapshot import Inbox
from tokenswarm.measure.statistics import samples_needed
from tokenswarm.measure.timeline import Timeline
from tokenswarm.record import Outcome, RequestRecord
from tokenswarm.result import summary as summaries
from tokenswarm.result.summary import Latency, Requests, Summary, Throughput, Tokens, summarize

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
START_NS, MS = 7_000_000_000_000, 1_000_000


def rows() -> dict[str, list[str]]:
    """Cells of each table row whose first cell is one field in backticks."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")
    ]
    return {match[1]: row[1:] for row in cells if (match := re.fullmatch(r"`([\w.]+)`", row[0]))}


ROWS = rows()
EXAMPLE_COLUMN = {"latency": 2, "throughput": 2, "requests": 2, "tokens": 2, "conventions": 1}
EXAMPLES = {
    path: float(cells[EXAMPLE_COLUMN.get(path.split(".")[0], 2)])
    for path, cells in ROWS.items()
    if not path.startswith("instrument.")
}


def worked_record() -> RequestRecord:
    stream = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])  # type: ignore[index]  # the page has one

    def at(ms: int) -> int:
        return START_NS + ms * MS

    timeline = Timeline()
    timeline.intended_ns, timeline.sent_ns, timeline.done_ns = (
        at(stream["intended"]),
        at(stream["sent"]),
        at(stream["done"]),
    )
    timeline.connect_ns = stream["connect"] * MS
    timeline.mark(at(stream["first_event"]), Delta())
    times = [(ms, "reasoning") for ms in stream["reasoning"]] + [(ms, "content") for ms in stream["content"]]
    for (ms, kind), tokens in zip(times, stream["tokens"], strict=True):
        timeline.mark(at(ms), Delta(**{kind: "word", "tokens": tokens}))
    timeline.mark(at(stream["last_event"]), Delta(finished=((0, "stop"),)))
    usage = Usage(prompt_tokens=stream["prompt_tokens"], output_tokens=stream["output_tokens"])
    timeline.mark(at(stream["done"]), Delta(usage=usage))
    record = timeline.finish(Outcome.OK, id="r", stage=0, phase="steady", conversation="c", turn=0)
    return msgspec.structs.replace(
        record, first_event_ns=at(stream["first_event"]), last_event_ns=at(stream["last_event"])
    )


@pytest.fixture(scope="module")
def result() -> Summary:
    recorder = Recorder("run", 0, Slo(ttft_s=0.2, tpot_s=0.03), start_ns=START_NS)
    recorder.open_window(0, START_NS)
    recorder.intended(0, "steady")
    recorder.started(0, "steady")
    recorder.ended(decoding=False)
    recorder.add(worked_record())
    recorder.close_window(0, START_NS + 1000 * MS)
    inbox = Inbox("run")
    inbox.put(recorder.snapshot(START_NS + 1000 * MS, final=True))
    return summarize(inbox.merged())


def value_at(result: Summary, path: str) -> object:
    value = msgspec.to_builtins(result)
    for name in path.split("."):
        value = value[name]
    return value.get("mean", value) if isinstance(value, dict) else value


@pytest.mark.parametrize("path", EXAMPLES)
def test_the_worked_stream_gives_the_example(result: Summary, path: str) -> None:
    assert value_at(result, path) == pytest.approx(EXAMPLES[path], rel=1e-8, abs=1e-12)


FIELDS = {
    "latency": Latency.__struct_fields__,
    "throughput": Throughput.__struct_fields__,
    "requests": [name for name in Requests.__struct_fields__ if not name.startswith(("by_", "error_"))],
    "tokens": ("input", "output", "per_event", "reasoning", "cached"),
    "instrument": [name for name in InstrumentReport.__struct_fields__ if name != "cpu_ratio_max"],
}


@pytest.mark.parametrize("path", [f"{block}.{name}" for block, names in FIELDS.items() for name in names])
def test_every_field_has_a_row(path: str) -> None:
    assert path in ROWS
    assert all(ROWS[path])


def test_every_field_is_named_somewhere_on_the_page() -> None:
    words = set(re.findall(r"\w+", PAGE))
    named = {name for struct in (Requests, Tokens, InstrumentReport) for name in struct.__struct_fields__}
    named |= {*summaries.Stat.__struct_fields__, *summaries.SloCount.__struct_fields__, "batch_mean", "decoding_mean"}
    named |= {*summaries.Steadiness.__struct_fields__, "steadiness", "conventions", "server", "failed_latency"}
    assert named - words == set()


def test_every_distribution_of_another_tool_has_a_row(result: Summary) -> None:
    for tool, section in result.conventions.items():
        for name, value in section.items():
            if isinstance(value, dict):
                assert f"conventions.{tool}.{name}" in ROWS


def test_every_row_names_a_field(result: Summary) -> None:
    for path in ROWS:
        value_at(result, path)


def test_the_sample_sizes_on_the_page_are_those_of_the_code() -> None:
    stated = dict(re.findall(r"p([\d.]+) (\d[\d ]*\d)(?=[,.])", PAGE))
    for p in ("50", "90", "95", "99", "99.9"):
        assert samples_needed(float(p) / 100) == int(stated[p].replace(" ", "")), p
