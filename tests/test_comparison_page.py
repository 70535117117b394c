"""comparison.html, trend.html, a path's page: what is drawn is what was compared, foreign text stays text, all fits."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from test_compare import told, write
from test_report_html import CORPUS, dots, figure, parse, rows
from test_report_html_browser import MEASURE, opened

from tokenswarm.commands import groups
from tokenswarm.errors import ExitCode
from tokenswarm.judge import trend
from tokenswarm.judge.compare import METRICS, compare
from tokenswarm.reports import between
from tokenswarm.reports.html import comparison, samples
from tokenswarm.reports.html import trend as trend_page
from tokenswarm.result.comparison import Comparison, Run
from tokenswarm.result.history import SCHEMA_VERSION, Line
from tokenswarm.result.path import Finding, Level, PathReport, Side, Trace

NINE = [metric.name for metric in METRICS]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], list[Run]]:
    """Five runs and five that are 12 % slower, each with its requests."""
    folder = tmp_path_factory.mktemp("runs")
    found: list[list[Run]] = []
    for side, scale in (("a", 1.0), ("b", 1.12)):
        for number in range(5):
            path = write(folder / side, f"{side}-{number}", scale=scale + 0.003 * number)
            lines = (json.dumps({**row, "ttft_s": row["ttft_s"] * scale}) for row in rows(60, 1))
            (path / "requests.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        found.append(groups.read_runs([str(folder / side)], side))
    return found[0], found[1]


@pytest.fixture(scope="module")
def found(sides: tuple[list[Run], list[Run]]) -> Comparison:
    return compare(*sides)


@pytest.fixture(scope="module")
def page(sides: tuple[list[Run], list[Run]], found: Comparison) -> ElementTree.Element:
    return parse(comparison.render(found, *sides))


def whiskers(chart: ElementTree.Element) -> list[tuple[float, float]]:
    marks = [mark for mark in chart.iter("path") if "data-low" in mark.attrib]
    return [(float(mark.attrib["data-low"]), float(mark.attrib["data-high"])) for mark in marks]


def text(page: ElementTree.Element, section: str) -> str:
    part = page.find(f".//section[@id='{section}']")
    assert part is not None, section
    return " ".join("".join(part.itertext()).split())


def test_the_effects_are_those_of_the_comparison(page: ElementTree.Element, found: Comparison) -> None:
    chart = figure(page, "effects")
    shown = [one for one in found.findings if one.ratio is not None]
    assert [x for x, _ in dots(chart)] == [one.ratio - 1 for one in shown if one.ratio]
    assert whiskers(chart) == [(one.low - 1, one.high - 1) for one in shown if one.low and one.high]


def test_every_run_is_drawn_with_its_value_and_its_bar(
    page: ElementTree.Element, found: Comparison, sides: tuple[list[Run], list[Run]]
) -> None:
    finding = next(one for one in found.findings if one.metric == "ttft_s.p50")
    chart = figure(page, "runs-ttft-s-p50")
    assert sorted(y for _, y in dots(chart)) == sorted(v for v in (*finding.a, *finding.b) if v is not None)
    bars = [run.percentiles["ttft_s"]["p50"][1:] for side in sides for run in side]
    assert sorted(whiskers(chart)) == sorted(bars)
    assert all(low <= value <= high for (low, high), (_, value) in zip(whiskers(chart), dots(chart), strict=True))


def test_percentiles_of_a_side_span_all_of_its_runs(
    page: ElementTree.Element, sides: tuple[list[Run], list[Run]]
) -> None:
    drawn = whiskers(figure(page, "percentiles-ttft"))
    for side, (low, high) in zip(sides, (drawn[0], drawn[len(drawn) // 2]), strict=True):
        bars = [run.percentiles["ttft_s"]["p50"] for run in side]
        assert (low, high) == (min(bar[1] for bar in bars), max(bar[2] for bar in bars if bar[2] is not None))


def test_distributions_are_drawn_of_each_run_and_of_both_sides(page: ElementTree.Element) -> None:
    lines = [path.attrib["class"] for path in figure(page, "cdf-ttft").iter("path") if "curve" in path.attrib["class"]]
    assert lines.count("line curve single side-a") == lines.count("line curve single side-b") == 5
    assert lines[-2:] == ["line curve side-a", "line curve side-b"]


def test_the_table_says_the_words_and_how_many_runs_would_tell(page: ElementTree.Element, found: Comparison) -> None:
    said = text(page, "verdicts")
    for one in found.findings:
        assert one.metric in said
        if one.runs_needed:
            assert f"{one.runs_needed} runs a side, {one.runs_needed - 5} more" in said
    assert "✗ worse" in said


def test_what_differs_in_the_set_ups_is_told(sides: tuple[list[Run], list[Run]]) -> None:
    other = [msgspec.structs.replace(run, setup={**run.setup, "target": "http://b:1", "git revision": "abc"})
             for run in sides[1]]  # fmt: skip
    said = text(parse(comparison.render(compare(sides[0], other), sides[0], other)), "differs")
    assert "http://127.0.0.1:8000" in said
    assert "http://b:1" in said
    assert "git revision" in said
    same = parse(comparison.render(compare(*sides), *sides))
    assert "Nothing that the manifests tell" in text(same, "differs")


def test_a_stored_group_has_no_distribution_and_says_so(sides: tuple[list[Run], list[Run]]) -> None:
    stored = [msgspec.structs.replace(run, folder=None) for run in sides[0]]
    page = parse(comparison.render(compare(stored, sides[1]), stored, sides[1]))
    assert "because the requests of baseline are not at hand" in text(page, "distributions")
    assert len(dots(figure(page, "runs-ttft-s-p50"))) == 10


def evil(sides: tuple[list[Run], list[Run]]) -> str:
    """A comparison in which every text that can be foreign is."""
    changed = [
        [
            msgspec.structs.replace(run, run_id=f"{n}{CORPUS[n]}", status=CORPUS[n], setup={CORPUS[n]: CORPUS[-n]})
            for n, run in enumerate(side)
        ]
        for side in sides
    ]
    found = compare(*changed)
    named = [msgspec.structs.replace(side, name=name) for side, name in zip((found.a, found.b), CORPUS, strict=False)]
    found = msgspec.structs.replace(found, a=named[0], b=named[1], left_out=CORPUS, apart=CORPUS[2], definitions="k6")
    return comparison.render(found, *changed)


def test_foreign_text_opens_no_element(page: ElementTree.Element, sides: tuple[list[Run], list[Run]]) -> None:
    foreign = parse(evil(sides))
    known = {element.tag for element in page.iter()} | {"span", "li"}
    assert {element.tag for element in foreign.iter()} <= known
    names = {name for element in foreign.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or name in ("src", "data")]
    assert "<script>alert(1)</script>" in "".join(foreign.itertext())


def test_large_files_are_read_in_parts_that_stand_for_the_whole(tmp_path: Path) -> None:
    path, n = tmp_path / "requests.jsonl", 60_000
    pad = "x" * 300
    with path.open("w") as file:
        for i in range(n):
            row = {"phase": "steady", "outcome": "ok", "ttft_s": (i * 7919 % n + 1) / n, "pad": pad}
            file.write(json.dumps(row) + "\n")
    assert path.stat().st_size > samples.BYTES_MAX
    seen = samples.sample([path], "r")
    assert not seen.whole
    assert not seen.unreadable
    assert samples.BYTES_MAX // 500 < seen.rows < n
    for q in (0.1, 0.5, 0.99):
        assert seen.sketches["ttft_s"].quantile(q) == pytest.approx(q, abs=0.02)


@pytest.mark.parametrize("data", [b"", b"{", b'{"phase": 1}\n', b"\xff\xfe\n" * 5])
def test_damaged_rows_are_none_and_no_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_bytes(data)
    seen = samples.sample([tmp_path / "requests.jsonl"], "r")
    assert seen.rows == 0
    assert "holds no request" in seen.reason


def test_all_files_of_a_long_run_are_read_and_a_cut_one_is_named(tmp_path: Path) -> None:
    row = b'{"phase": "steady", "outcome": "ok", "ttft_s": 0.1}\n'
    files = [tmp_path / name for name in ("requests.0001.jsonl.gz", "requests.0002.jsonl.gz", "requests.jsonl")]
    for path, n in zip(files, (30, 20, 10), strict=True):
        path.write_bytes(gzip.compress(row * n) if path.suffix == ".gz" else row * n)
    seen = samples.sample(files, "r")
    assert (seen.rows, seen.sketches["ttft_s"].n, seen.whole, seen.reason) == (60, 60, True, "")
    files[1].write_bytes(files[1].read_bytes()[:-12])
    seen = samples.sample(files, "r")
    assert seen.rows == 40
    assert "requests.0002.jsonl.gz of r can't be read" in seen.reason
    assert "requests.0001.jsonl.gz: no such file" in samples.sample(files[1:], "r").reason


def test_a_page_names_the_rows_that_it_could_not_draw(sides: tuple[list[Run], list[Run]], tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(str(sides[1][0].folder), folder)
    (folder / "requests.0001.jsonl.gz").write_bytes(gzip.compress((folder / "requests.jsonl").read_bytes())[:-12])
    new = [msgspec.structs.replace(sides[1][0], folder=str(folder)), *sides[1][1:]]
    text = "".join(parse(comparison.render(compare(*sides), sides[0], new)).itertext())
    assert f"requests.0001.jsonl.gz of {new[0].run_id} can't be read" in text


def test_documents_beside_each_other(
    sides: tuple[list[Run], list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [Path(side[0].folder or "").parent for side in sides]
    code, out, _ = told(capsys, names[0], "--against", names[1], "--to", tmp_path / "deep" / "c", "--json")
    assert code == ExitCode.WORSE
    files = {path.name: path.read_text("utf-8") for path in (tmp_path / "deep" / "c").iterdir()}
    assert set(files) == {"comparison.json", "comparison.md", "comparison.html"}
    assert json.loads(files["comparison.json"]) == json.loads(out)
    parse(files["comparison.html"])
    (tmp_path / "file").write_text("")
    code, out, err = told(capsys, names[0], "--against", names[1], "--to", tmp_path / "file")
    assert code == ExitCode.RESULTS
    assert "can't make the folder" in err
    assert "the new runs: worse" in out, "what came out is told, whatever can't be written"


def history(n: int = 24) -> list[Line]:
    start = datetime(2026, 11, 1, 3, tzinfo=UTC)
    return [
        Line(
            schema_version=SCHEMA_VERSION, kind="run", at=start + timedelta(days=i if i < 8 else i + 9),
            run_id=f"run-{i}", profile="nightly", model=CORPUS[0], host=CORPUS[1],
            status="INVALID" if i == 5 else "VALID",
            values=dict.fromkeys(NINE, (1 + 0.01 * (i % 3)) * (1.2 if i > 14 else 1.0)),
            bars={"ttft_s.p50": (0.99, 1.3)}, setup={CORPUS[3]: "old" if i < 9 else CORPUS[4]},
        )
        for i in range(n)
    ]  # fmt: skip


def trend_html(lines: list[Line]) -> str:
    drawn = [
        trend_page.Drawn(
            one.name, one.points, one.left_out,
            [trend_page.Mark(c.metric, c.place, c.ratio, c.worse) for c in one.changes], trend.gap_s(one.points),
        )
        for one in trend.series(lines)
    ]  # fmt: skip
    return trend_page.render(CORPUS[0], drawn, NINE, [], list(CORPUS))


def test_a_trend_draws_the_values_the_change_the_hole_and_what_is_invalid() -> None:
    page = parse(trend_html(history()))
    chart = figure(page, "s1-ttft-s-p50")
    assert [y for _, y in dots(chart)] == [line.values["ttft_s.p50"] for line in history() if line.status == "VALID"]
    assert len([p for p in chart.iter("path") if p.attrib["class"] == "line single side-a"]) == 2, "a hole of nine days"
    assert [p for p in chart.iter("path") if p.attrib["class"] == "knee"], "the mark of the change"
    assert "+19" in "".join(chart.itertext()) or "+20" in "".join(chart.itertext())
    assert len([p for p in chart.iter("path") if p.attrib["class"] == "cross"]) == 1
    assert "<script>" not in trend_html(history())


@pytest.mark.parametrize("shares", [(1.0, 0.6), (0.98, 0.999), (1.0, 1.0), (0.02, 0.9)])
def test_no_axis_of_shares_goes_beyond_all(shares: tuple[float, float]) -> None:
    a, b = (
        [Run(run_id=f"{name}{i}", values={"ok_ratio": share - 0.01 * i, "e2e_s.p50": 1.0}) for i in range(2)]
        for name, share in zip("ab", shares, strict=True)
    )
    lines = [
        msgspec.structs.replace(line, values={"ok_ratio": shares[i % 2]})
        for i, line in enumerate(history(6))
    ]  # fmt: skip
    for page, name in ((comparison.render(compare(a, b), a, b), "runs-ok-ratio"), (trend_html(lines), "s1-ok-ratio")):
        texts = [(part.text or "").strip() for part in figure(parse(page), name).iter("text")]
        ticks = [float(text.removesuffix("%")) for text in texts if re.fullmatch(r"[\d.]+%", text)]
        assert len(ticks) > 1, texts
        assert max(ticks) <= 100


def path_html() -> str:
    """Of a proxy with a long address, which holds tokens."""
    side = Side(ok=64, added_ttft_s=-0.00123, added_e2e_s=0.0123, gap_p50_s=0.02, gap_p99_s=0.123, merged_ratio=0.123)
    return between.page(
        PathReport(
            via=f"http://{'proxy.' * 20}example:8080", upstream="http://127.0.0.1:8800", api="openai-chat",
            verdict="delays", findings=(Finding(code="tokens-held-back", word="delays", message=", ".join(CORPUS)),),
            levels=tuple(Level(streams=n, answers=64, direct=side, via=side) for n in (1, 16, 64)),
            trace=Trace(sent_s=(0.1, 0.12, 0.14), seen_s=(0.1, 0.15, 0.15)),
            checks=(("engine: error_mid:4", "error_object past the path and through it"), ("gzip", CORPUS[0])),
        )
    )  # fmt: skip


@pytest.mark.parametrize(("width", "theme"), [(1280, 1), (390, 0)], ids=["desk, light", "phone, dark"])
@pytest.mark.parametrize("which", ["comparison", "trend", "path"])
def test_the_pages_fit_and_are_silent(
    which: str, width: int, theme: int, sides: tuple[list[Run], list[Run]], tmp_path: Path
) -> None:
    page = {"comparison": lambda: evil(sides), "trend": lambda: trend_html(history()), "path": path_html}[which]()
    script = MEASURE.replace(
        "bad, texts, scrolled}", "bad, texts, scrolled, colour: getComputedStyle(document.body).backgroundColor}"
    )
    allowed = page.replace("default-src", "script-src 'unsafe-inline'; default-src")
    measured = allowed.replace("</head>", f"{script}</head>")
    flags = (f"--window-size={width},900", f"--blink-settings=preferredColorScheme={theme}")
    document, console = opened(measured, tmp_path, *flags)
    assert console == []
    title = re.search(r"<title>(.*?)</title>", document)
    assert title is not None
    result: dict[str, Any] = json.loads(title[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert result["bad"] == []
    assert result["texts"] > (5 if which == "path" else 60)
    assert (int(re.findall(r"\d+", result["colour"])[0]) > 128) == bool(theme)
