"""report.html: its numbers are those of the summary, foreign text is only text, and what is missing is said."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_runs

from tokenswarm.clock import NS_PER_S
from tokenswarm.judge.gates import evaluate
from tokenswarm.judge.verdict import Evidence, judge
from tokenswarm.measure.sketch import Sketch
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile.slo import Percentiles, Slo
from tokenswarm.record import Outcome
from tokenswarm.reports.html import page as html
from tokenswarm.reports.html import sweep as html_sweep
from tokenswarm.reports.html.requests import BLOCK_BYTES, FAILURES_MAX, LINE_BYTES_MAX, POINTS_MAX, Sample, read
from tokenswarm.reports.jsonl import row
from tokenswarm.result.summary import Doubt, Summary, to_json

SLO = Slo(ttft_s=Percentiles(p50=0.5, p99=2.0), failed_ratio=0.05)
THROUGHPUTS = (40.0, 200.0, 480.0, 500.0)
CORPUS = (
    "<script>alert(1)</script>",
    "</title></style></svg><img src=http://evil.example/x onerror=alert(1)>",
    "'\"><a href=javascript:alert(1)>x</a>",
    "\x1b[31m\x00\x07\r\n\u202e\ufeff\ud800",
    "]]><!--<![CDATA[&lt;&#0;&bogus;",
    "</code></pre><style>@import url(http://evil.example)</style>",
)


def sweep(stages: int = 4, ok: int = 700, **options: Any) -> Summary:
    """A judged run whose stages have the throughputs above, at 8, 16, 32, 64 users."""
    merged = sample_runs.run(ok, slo=SLO, stages=stages, **options)
    summary = sample_runs.summary(merged)
    for stage, tokens_per_s in zip(summary.stages, THROUGHPUTS, strict=False):
        stage.throughput.output_tokens_per_s = tokens_per_s
        stage.batch_mean = 0.9 * (stage.concurrency or 0)
    summary.gates = evaluate(SLO, summary, merged)
    evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile(SLO))
    summary.verdict = judge(evidence, summary)
    return summary


def rows(n: int = 100, stages: int = 4, failed: int = 0, **changes: Any) -> Iterator[dict[str, Any]]:
    """The rows of requests like those of `sample_runs.run`."""
    draw = sample_runs.lognormal(0.1, 0.5)
    for stage in range(stages):
        for i in range(n + failed):
            at_ns = int((5 + 110 * stage + 100 * i / (n + failed)) * NS_PER_S)
            if i < failed:
                record = sample_runs.failure(i, at_ns, Outcome.HTTP_5XX, "http 503", stage=stage, **changes)
            else:
                record = sample_runs.request(i, at_ns, ttft_s=draw(i), stage=stage, **changes)
            yield msgspec.json.decode(row(record, 0, 0, save_text=False))


def parse(page: str) -> ElementTree.Element:
    """Strict: the page is well-formed XML, so nothing foreign opened or closed an element or attribute."""
    return ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", page.removeprefix("<!DOCTYPE html>\n")))


def figure(page: ElementTree.Element, name: str, variant: str = "desk") -> ElementTree.Element:
    found = page.find(f".//figure[@id='{name}']/svg[@class='chart {variant}']")
    assert found is not None, name
    return found


def dots(chart: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(dot.attrib["data-x"]), float(dot.attrib["data-y"])) for dot in chart.iter("circle")]


@pytest.fixture(scope="module")
def page() -> ElementTree.Element:
    return parse(html.render(sweep(), {"command": ["tokenswarm", "run"]}, rows()))


@pytest.mark.parametrize("variant", ["desk", "phone"])
def test_throughput_is_that_of_the_stages(page: ElementTree.Element, variant: str) -> None:
    users, batch = [8.0, 16.0, 32.0, 64.0], [7.2, 14.4, 28.8, 57.6]
    over_users = figure(page, "throughput-over-concurrency", variant)
    assert dots(over_users) == list(zip(users, THROUGHPUTS, strict=True))
    over_batch = dots(figure(page, "throughput-over-batch", variant))
    assert over_batch == [(pytest.approx(x), y) for x, y in zip(batch, THROUGHPUTS, strict=True)]
    titles = [title.text for title in over_users.iter("title")]
    assert titles[1] == "16 users, 14.4 in flight: 200 tokens/s"


def test_points_stand_where_the_axes_say(page: ElementTree.Element) -> None:
    """From two ticks of each axis follows its scale; every point must lie on it."""
    chart = figure(page, "throughput-over-batch")
    ticks = {text.text: text.attrib for text in chart.iter("text") if "tick" in text.attrib["class"]}
    x0, x1 = float(ticks["0"]["x"]), float(ticks["20"]["x"])
    y0, y1 = float(ticks["0"]["y"]), float(ticks["200"]["y"])
    labels = [text for text in chart.iter("text") if text.attrib["class"] == "tick mid"]
    x0 = float(next(text for text in labels if text.text == "0").attrib["x"])
    y0 = float(next(t for t in chart.iter("text") if t.attrib["class"] == "tick end" and t.text == "0").attrib["y"])
    for circle in chart.iter("circle"):
        x, y = float(circle.attrib["data-x"]), float(circle.attrib["data-y"])
        assert float(circle.attrib["cx"]) == pytest.approx(x0 + (x1 - x0) * x / 20, abs=0.2)
        assert float(circle.attrib["cy"]) + 4 == pytest.approx(y0 + (y1 - y0) * y / 200, abs=0.2)


def test_latency_over_users_is_that_of_the_stages(page: ElementTree.Element) -> None:
    summary = sweep()
    expected = {
        (float(stage.concurrency or 0), value)
        for stage in summary.stages
        for value in (stage.latency.ttft_s.p50, stage.latency.ttft_s.p99)
    }
    assert len(expected) == 8
    assert set(dots(figure(page, "ttft-over-concurrency"))) == expected
    itl = {(float(s.concurrency or 0), v) for s in summary.stages for v in (s.latency.itl_s.p50, s.latency.itl_s.p99)}
    assert set(dots(figure(page, "itl-over-concurrency"))) == itl
    hockey = dots(figure(page, "latency-over-throughput"))
    assert hockey[:4] == [(x, s.latency.ttft_s.p99) for x, s in zip(THROUGHPUTS, summary.stages, strict=True)]
    speed = dots(figure(page, "speed-over-batch"))
    assert [y for _, y in speed] == [pytest.approx(1 / (s.latency.tpot_s.mean or 0)) for s in summary.stages]


def test_the_knee_is_marked_where_ninety_percent_are_reached(page: ElementTree.Element) -> None:
    knee = html_sweep.knee(sweep().stages)
    assert knee is not None
    assert knee.concurrency == 32  # 480 of 500
    chart = figure(page, "throughput-over-concurrency")
    assert "knee: 32 users" in [text.text for text in chart.iter("text")]
    mark = next(path for path in chart.iter("path") if path.attrib["class"] == "knee")
    circle = next(circle for circle in chart.iter("circle") if circle.attrib["data-x"] == "32.0")
    assert mark.attrib["d"].startswith(f"M{circle.attrib['cx']} ")


def test_a_sweep_that_ends_at_the_knee_says_so() -> None:
    summary = sweep(stages=3)
    text = html.render(summary, {}, rows(stages=3))
    assert "the sweep ended before the server was saturated" in text
    assert "the last stage: not saturated yet" in text
    assert "not saturated yet" not in html.render(sweep(), {}, rows())


@pytest.mark.parametrize(
    ("gained", "waiting", "claim"),
    [
        (100.0, None, "not saturated yet"),
        (81.0, 0.0, "not saturated yet"),
        (79.0, 0.0, "this sweep does not say"),  # 16 to 32 users, 79 % more
        (30.0, None, "this sweep does not say"),
        (100.0, 32.0, "32 requests waited in the engine"),
    ],
)
def test_no_sweep_is_called_unsaturated_that_may_not_be(gained: float, waiting: float | None, claim: str) -> None:
    summary = sweep(stages=3)
    summary.stages[2].throughput.output_tokens_per_s = THROUGHPUTS[1] * (1 + gained / 100)
    if waiting is not None:
        block = sample_runs._engine_block(summary.stages[2], 64.0)
        block["waiting"] = {"mean": waiting, "max": waiting}
        summary.stages[2].server = {"metrics": block}
    text = html.render(summary, {}, rows(stages=3))
    assert claim in text
    assert ("not saturated yet" in text) == (claim == "not saturated yet")
    assert ("ended before the server was saturated" in text) == (claim == "not saturated yet")


def test_a_percentile_without_enough_samples_is_not_drawn_and_that_is_said() -> None:
    summary = sweep(ok=100)  # enough for p50 and p90
    assert summary.stages[0].latency.ttft_s.p99 is None
    found = parse(html.render(summary, {}, rows()))
    chart = figure(found, "ttft-over-concurrency")
    labels = [text.text for text in chart.iter("text") if "note" in text.attrib["class"]]
    assert sorted(labels) == ["p50", "p90"]
    caption = found.find(".//figure[@id='ttft-over-concurrency']/figcaption")
    assert caption is not None
    assert "p99: not drawn where a stage has too few samples" in str(caption.text)


def test_every_latency_of_the_summary_is_in_the_table(page: ElementTree.Element) -> None:
    cells = [[cell.text for cell in line] for line in page.findall(".//section[@id='latency']//tbody/tr")]
    assert [line[0] for line in cells] == ["TTFT", "TTFT, as due", "ITL", "TPOT", "E2E", "E2E, as due", "worst gap"]
    assert cells[0][1] == "2800"


def test_stages_have_their_colour_in_every_chart(page: ElementTree.Element) -> None:
    legend = page.find(".//ul[@class='legend']")
    assert legend is not None
    colours = [item.attrib["class"] for item in legend]
    assert len(set(colours)) == 4
    for name in ("throughput-over-concurrency", "throughput-over-batch", "speed-over-batch"):
        assert [dot.attrib["class"].split()[-1] for dot in figure(page, name).iter("circle")] == colours
    curves = [
        path.attrib["class"].split()[-1]
        for path in figure(page, "cdf-ttft").iter("path")
        if "curve" in path.attrib["class"]
    ]
    shades = [rect.attrib["class"].split()[-1] for rect in figure(page, "time-ttft").iter("rect")]
    assert curves == colours == shades


def test_tokens_and_requests_over_time_lose_nothing() -> None:
    drawn = read(rows(200), 450.0)
    expected = [item for item in rows(200) if item["outcome"] == "ok"]
    assert sum(drawn.tokens.means()) * drawn.bin_s == pytest.approx(sum(item["output_tokens"] for item in expected))
    open_s = sum(item["done_s"] - item["sent_s"] for item in expected)
    assert sum(drawn.in_flight.means()) * drawn.bin_s == pytest.approx(open_s)


def by_hand(items: list[dict[str, Any]], duration_s: float) -> tuple[list[float], list[float], int]:
    """Mean requests in flight and tokens/s of each bin, one row and bin after another; the width in bins."""
    bin_s, n = read([], duration_s).bin_s, len(read([], duration_s).tokens.means())
    flight, tokens = [0.0] * n, [0.0] * n
    for item in items:
        sent_s, first_s, last_s = item["sent_s"], item["first_s"], item["last_s"]
        ended_s = item["done_s"] if item["done_s"] is not None else last_s if last_s is not None else duration_s
        for index in range(n):
            low, high = index * bin_s, (index + 1) * bin_s
            flight[index] += max(0.0, min(high, ended_s) - max(low, sent_s)) / bin_s
            if item["outcome"] == "ok":
                share = max(0.0, min(high, last_s) - max(low, first_s)) / (last_s - first_s) if last_s > first_s else 0
                at_once = 1 if last_s > first_s else item["output_tokens"]
                tokens[index] += (share * (item["output_tokens"] - 1) + (low <= first_s < high) * at_once) / bin_s
    return flight, tokens, n


def test_rows_in_blocks_are_drawn_as_one_by_one(tmp_path: Path) -> None:
    """Open, failed, instant and overlong answers, more of them than a block of the file holds."""
    duration_s = 90.0
    template, items = next(rows(1, 1)), []
    draw = random.Random(3)
    for number in range(1500):
        sent_s = draw.uniform(0, 95)
        first_s = sent_s + draw.expovariate(5)
        last_s = first_s + draw.choice((0.0, draw.expovariate(0.2)))
        outcome = "ok" if number % 10 else "http_5xx"
        items.append({**template, "id": "x" * 400, "stage": number // 800, "outcome": outcome, "sent_s": sent_s,
                      "first_s": first_s, "last_s": last_s, "done_s": last_s if number % 7 else None,
                      "ttft_s": first_s - sent_s, "output_tokens": 1 + number % 40})  # fmt: skip
    items[5] |= {"done_s": None, "last_s": None, "outcome": "censored"}
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in items))
    assert path.stat().st_size > 2 * BLOCK_BYTES
    drawn = read(path, duration_s)
    flight, tokens, _ = by_hand(items, duration_s)
    assert drawn.n == len(items)
    assert drawn.in_flight.means() == pytest.approx(flight, abs=1e-6)
    assert drawn.tokens.means() == pytest.approx(tokens, abs=1e-6)
    ok = [item for item in items if item["outcome"] == "ok"]
    for stage in (0, 1):
        expected = Sketch(item["ttft_s"] for item in ok if item["stage"] == stage and item["phase"] == "steady")
        sketch = drawn.stages[stage].tallies["ttft_s"].sketch()
        assert (sketch.n, sketch.counts, sketch.min, sketch.max) == (
            expected.n, expected.counts, expected.min, expected.max
        )  # fmt: skip
        assert sketch.sum == pytest.approx(expected.sum)
    assert sum(sketch.n for sketch in drawn.rolling) == len(ok)
    assert drawn.failures.n == sum(item["outcome"] == "http_5xx" for item in items)


def test_a_row_longer_than_a_block_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    item = {**next(rows(1, 1)), "text": "long " * BLOCK_BYTES}
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in [*rows(20, 1), item, *rows(20, 1)]))
    drawn = read(path, 100.0)
    assert (drawn.n, drawn.unreadable) == (41, 0)


def test_a_line_without_an_end_takes_no_memory_without_end(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    with path.open("wb") as file:
        file.truncate(3 * LINE_BYTES_MAX)
        file.seek(0, 2)
        file.write(b"\n" + b"".join(msgspec.json.encode(one) + b"\n" for one in rows(20, 1)))
    tracemalloc.start()
    drawn = read(path, 100.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.n == 20
    assert drawn.unreadable >= 1
    assert peak < 3 * LINE_BYTES_MAX


def test_each_item_is_as_likely_in_a_sample_however_it_is_offered() -> None:
    counts: Counter[int] = Counter()
    for seed in range(400):
        sample: Sample[int] = Sample(20, seed)
        items = list(range(200))
        while items:
            some, items = items[: 1 + seed % 37], items[1 + seed % 37 :]
            sample.offer(some)
        assert (len(sample.items), sample.n, len(set(sample.items))) == (20, 200, 20)
        counts.update(item // 20 for item in sample.items)
    for decile in range(10):  # 800 expected in each, standard deviation 26
        assert 670 < counts[decile] < 930, counts


def test_the_page_of_a_run_is_made_by_another_process(tmp_path: Path) -> None:
    """Beside its event loop, and in less CPU than the rows of a large run take."""
    summary = sweep(stages=1)
    (tmp_path / "summary.json").write_bytes(to_json(summary))
    (tmp_path / "manifest.json").write_text("{}", "utf-8")
    (tmp_path / "requests.jsonl").write_bytes(
        b"".join(msgspec.json.encode(item) + b"\n" for item in rows(300, 1)) * 100
    )
    program = (
        "import json, resource, sys; from pathlib import Path\n"
        "from tokenswarm.cluster import conclusion\n"
        "before = resource.getrusage(resource.RUSAGE_SELF)\n"
        "conclusion._write_page(Path(sys.argv[1]))\n"
        "own, child = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([own.ru_utime - before.ru_utime, child.ru_utime]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    own_s, child_s = json.loads(done.stdout)
    assert own_s < child_s / 2
    page = parse((tmp_path / "report.html").read_text("utf-8"))
    assert figure(page, "time-in-flight") is not None
    (tmp_path / "summary.json").write_text("{", "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "ResultsError" in done.stderr
    assert "is no summary of a run" in done.stderr


def test_a_page_is_drawn_with_what_was_imported_for_it(tmp_path: Path) -> None:
    """A module more while it is drawn is memory at the peak: those that read a package's files took 0.6 MB of 3."""
    (tmp_path / "summary.json").write_bytes(to_json(sweep()))
    (tmp_path / "requests.jsonl").write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in rows(300, 4)))
    program = (
        "import sys; from pathlib import Path\n"
        "from tokenswarm.reports import saved; from tokenswarm.reports.html import page\n"
        "before, folder = set(sys.modules), Path(sys.argv[1])\n"
        "saved.write_page(folder, saved.read_summary(folder))\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
    assert (tmp_path / "report.html").exists()


def test_the_values_of_the_bins_are_in_the_chart() -> None:
    summary = sweep(stages=1)
    chart = figure(parse(html.render(summary, {}, rows(stages=1))), "time-in-flight")
    drawn = read(rows(stages=1), summary.duration_s)
    bins = [
        (float(rect.attrib["data-x"]), float(rect.attrib["data-y"]))
        for rect in chart.iter("rect")
        if "data-x" in rect.attrib
    ]
    assert bins == [(i * drawn.bin_s, value) for i, value in enumerate(drawn.in_flight.means())]
    title = next(rect for rect in chart.iter("rect") if "data-x" in rect.attrib)[0].text
    assert title == "0 s: 0.00 requests"


def test_failures_are_crosses_with_their_kind() -> None:
    page = parse(html.render(sweep(ends={Outcome.HTTP_5XX: 3}), {}, rows(50, failed=3)))
    crosses = [path for path in figure(page, "time-in-flight").iter("path") if path.attrib["class"] == "cross"]
    assert len(crosses) == 12
    assert "http 503" in str(crosses[0][0].text)
    shown = page.findall(".//section[@id='failures']//tr")
    assert [cell.text for cell in shown[0]][:2] == ["http_5xx: service unavailable", "12"]


ABSENT = {
    "one stage": (
        lambda: html.render(sweep(stages=1), {}, rows(stages=1)),
        "Latency over throughput; Speed of each user over measured batch, because the run has one stage,",
    ),
    "no success": (
        lambda: html.render(sweep(stages=1, ok=0, ends={Outcome.HTTP_5XX: 20}), {}, rows(0, 1, failed=20)),
        "TTFT of each request, because no successful request gave a first token.",
    ),
    "no success, distributions": (
        lambda: html.render(sweep(stages=1, ok=0, ends={Outcome.HTTP_5XX: 20}), {}, rows(0, 1, failed=20)),
        "E2E: share of requests within, because fewer than two successful requests of the steady windows have it.",
    ),
    "no success, tokens": (
        lambda: html.render(sweep(stages=1, ok=0, ends={Outcome.HTTP_5XX: 20}), {}, rows(0, 1, failed=20)),
        "Output tokens per second, because no request succeeded.",
    ),
    "stages without throughput": (
        lambda: html.render(sweep(stages=3, ok=0), {}, rows(0)),
        "because fewer than two stages have a value for it.",
    ),
    "no rows": (
        lambda: html.render(sweep(), {}, []),
        "Requests in flight; Output tokens per second; TTFT of each request, because requests.jsonl holds no request.",
    ),
    "rows not given": (lambda: html.render(sweep(), {}, None), "because requests.jsonl was not given."),
    "no file": (
        lambda: html.render(sweep(), {}, Path("/nowhere/requests.jsonl")),
        "because requests.jsonl can&#x27;t be read (No such file or directory).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ABSENT)
def test_a_chart_without_data_is_left_out_with_its_reason(case: str) -> None:
    draw, reason = ABSENT[case]
    text = draw()
    assert reason in text
    for chart in parse(text).iter("figure"):
        drawn = {element.tag for element in chart.iter()} & {"circle", "rect"}
        lines = [path for path in chart.iter("path") if not {"grid", "axis"} & set(path.attrib["class"].split())]
        assert drawn or lines, chart.attrib["id"]


def test_an_empty_run_is_a_page() -> None:
    page = parse(html.render(sample_runs.summary(Merged(run_id="x")), {}, None))
    assert page.find(".//figure") is None
    assert page.find(".//section[@id='stages']") is None
    assert "not judged" in "".join(page.find(".//h1").itertext())  # type: ignore[union-attr]  # the page has one


def test_a_partial_run_says_so() -> None:
    summary = sweep(stages=1)
    summary.partial = True
    assert "partial: the run was cut short" in html.render(summary, {}, rows(stages=1))


def test_damaged_rows_are_counted_and_the_others_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    good = b"".join(msgspec.json.encode(item) + b"\n" for item in rows(50, 1))
    path.write_bytes(good + b'{"stage": 0, "phase"\n\xff\xfe\n{"stage": 0}\n{"intended_s": 1e300}\n' + good[:100])
    drawn = read(path, 100.0)
    assert (drawn.n, drawn.unreadable) == (50, 5)
    assert "5 lines of requests.jsonl are no rows and are not drawn" in html.render(sweep(stages=1), {}, path)
    assert read([{"stage": 0, "phase": "steady", "outcome": "ok", "intended_s": math.nan}], 1.0).unreadable == 1


ELEMENTS = set(
    re.findall(
        r"\S+",
        "html head meta link title style body main header section h1 h2 h3 p b a i span small ul li dl dt dd code pre "
        "figure figcaption div table thead tbody tr th td svg path rect circle text",
    )
)
ATTRIBUTES = set(
    re.findall(
        r"\S+",
        "lang charset http-equiv content name rel href class id aria-label aria-hidden role viewBox "
        "preserveAspectRatio d x y cx cy r width height data-x data-y",
    )
)


@pytest.mark.parametrize("evil", CORPUS)
def test_foreign_text_is_only_text(evil: str) -> None:
    summary = sweep(stages=2, ends={Outcome.HTTP_5XX: 2})
    summary.run_id = evil
    summary.requests.by_error = {evil: 3}
    summary.verdict.doubts.append(Doubt(code=evil, severity="note", message=evil))
    summary.gates[0].metric = summary.gates[0].reason = evil
    summary.server = {evil: {"n": 1, "mean": 1.0}, "x": evil}
    summary.gpu = {evil: 1.0}
    summary.instrument.stamp = evil  # type: ignore[assignment]  # a damaged file could say so
    manifest = {
        "command": [evil], "engine": {"model": evil, "version": {evil: evil}},
        "profile": {"target": [evil], "name": evil},
        "dataset": {"path": evil, "sha256": evil}, "host": {"hostname": evil}, "versions": {evil: evil},
        "started": evil, "seeds": {evil: evil}, "git_revision": evil,
    }  # fmt: skip
    items = [{**item, "error_kind": evil if item["error_kind"] else None, "phase": "steady"} for item in rows(20, 2, 3)]
    text = html.render(summary, manifest, items)
    text.encode("utf-8")
    page = parse(text)
    assert {element.tag for element in page.iter()} <= ELEMENTS
    assert {name for element in page.iter() for name in element.attrib} <= ATTRIBUTES
    links = {element.attrib["href"] for element in page.iter() if "href" in element.attrib}
    assert links <= {"data:,", "#doubts", "#gates"}
    assert len(page.findall(".//style")) == 1
    shown = " ".join("".join(page.itertext()).split())
    assert " ".join("".join(c if c.isprintable() else " " for c in evil).split()) in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufeff]", text)


def test_the_page_forbids_scripts_and_the_network(page: ElementTree.Element) -> None:
    policy = page.find(".//meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    assert policy.attrib["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    style = page.findtext(".//style") or ""
    assert not re.search(r"url\(|@import|@font-face|expression|https?:", style)


def test_a_large_run_stays_small() -> None:
    """Memory and bytes are bounded by the number of bins, buckets and sampled points, not by that of the rows."""
    summary = sweep()
    peaks, sizes = [], []
    template = next(rows(1, 1))

    def many(n: int) -> Iterator[dict[str, Any]]:
        for i in range(n):
            value = 0.05 * (1 + (i * 0.618034) % 1 * 40)
            outcome = "http_5xx" if i % 50 == 0 else "ok"
            start = 440 * i / n
            yield {**template, "stage": 4 * i // n, "outcome": outcome, "sent_s": start, "first_s": start + value,
                   "last_s": start + 2 * value, "done_s": start + 2 * value, "ttft_s": value, "e2e_s": 2 * value,
                   "tpot_s": value / 10, "itl_mean_s": value / 11, "error_kind": "http 503"}  # fmt: skip

    for n in (15_000, 60_000):
        tracemalloc.start()
        text = html.render(summary, {}, many(n))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(len(text.encode()))
    assert peaks[1] < 1.1 * peaks[0]
    assert sizes[1] < 1.1 * sizes[0]
    assert sizes[1] < 2_000_000
    drawn = read(many(15_000), 440.0)
    assert len(drawn.ttft.items) == POINTS_MAX
    assert len(drawn.failures.items) == FAILURES_MAX
    assert drawn.failures.n == 300
