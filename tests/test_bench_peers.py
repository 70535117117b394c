"""Other load generators beside ours: each report is read right, wrong streams are wrong, and what fails is a line.

The samples of tests/data/peers are what the pinned versions wrote of 60 requests, without each request's own numbers.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
from pathlib import Path

import pytest

from bench import peers, sender, wrong_streams
from bench.loadgens import aiperf, evalscope, genai_bench, guidellm, inference_perf, sglang, vllm
from bench.loadgens.peer import Job, Peer, Told, last_words, run
from bench.sender import BenchError, Pace
from tokenswarm import __version__

DATA = Path(__file__).parent / "data"
SHORT = Pace(ttft_ms=10, itl_ms=2, tokens=5, jitter=0.5)

needs_sender = pytest.mark.skipif(
    not sys.platform.startswith("linux") or sender.compiler() is None,
    reason="the paced sender needs Linux and a C compiler (cc)",
)


def job(folder: Path) -> Job:
    return Job(folder, folder, "http://127.0.0.1:1", streams=20, requests=60, tokens=132)


WROTE: list[tuple[Peer, dict[str, str], Told]] = [
    (
        vllm.PEER,
        {"peers/vllm_rs.json": "told.json"},
        Told(60, 0, 7920, (101.106918, 104.62575392), (19.988208, 26.5292135)),
    ),
    (
        aiperf.PEER,
        {"peers/aiperf.json": "told/profile_export_aiperf.json"},
        Told(60, 0, 7920, (123.882475, 311.4697953), (19.8425305, 89.67941626)),
    ),
    (
        sglang.PEER,
        {"foreign/sglang.json": "told.json"},
        Told(60, 0, 7920, (101.9102215, 112.04983147), (20.0031405, 28.59871748)),
    ),
    (
        guidellm.PEER,
        {"peers/guidellm.json": "told.json"},
        Told(60, 0, 7920, (101.06682777, 146.38304710), (19.93630861, 20.34459041), mean_itl=True),
    ),
    (
        evalscope.PEER,
        {
            "peers/evalscope_summary.json": "sim/parallel_20_number_60/benchmark_summary.json",
            "peers/evalscope_percentile.json": "sim/parallel_20_number_60/benchmark_percentile.json",
        },
        Told(60, 0, 7920, (103.235, 129.1748), (19.1997, 78.1099)),
    ),
    (
        inference_perf.PEER,
        {"peers/inference_perf.json": "told/summary_lifecycle_metrics.json"},
        Told(60, 0, 7920, (100.50345250, 117.72344484), (20.02445700, 33.64703692)),
    ),
    (
        genai_bench.PEER,
        {"peers/genai_bench.json": "told/D8_132_text-to-text_num_concurrency_20_time_10s.json"},
        Told(60, 0, 7920, (250.23655300, 1311.13305360), (20.11651688, 21.44871186), mean_itl=True),
    ),
]


@pytest.mark.parametrize(("peer", "files", "expected"), WROTE, ids=[peer.name for peer, _, _ in WROTE])
def test_what_a_peer_wrote_is_read(peer: Peer, files: dict[str, str], expected: Told, tmp_path: Path) -> None:
    for name, to in files.items():
        (tmp_path / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / name, tmp_path / to)
    told = peer.read(job(tmp_path), "")
    assert told._replace(ttft_ms=None, itl_ms=None) == expected._replace(ttft_ms=None, itl_ms=None)
    assert told.ttft_ms == pytest.approx(expected.ttft_ms)
    assert told.itl_ms == pytest.approx(expected.itl_ms)


@pytest.mark.parametrize("peer", [peer for peer in peers.PEERS if peer not in (vllm.PYTHON, sglang.PYTHON)])
def test_a_command_names_the_load_and_writes_only_into_its_folder(peer: Peer, tmp_path: Path) -> None:
    words = peer.command(job(tmp_path))
    config = "".join(path.read_text() for path in tmp_path.glob("*.yml"))  # inference-perf has no options for it
    text = " ".join(words) + config
    assert "http://127.0.0.1:1" in text
    for number in ("20", "60", "132"):
        assert number in text.replace(str(tmp_path), "")
    assert str(tmp_path) in text


def test_a_report_without_a_success_has_no_percentiles(tmp_path: Path) -> None:
    whole = json.loads((DATA / "peers" / "guidellm.json").read_text())
    metrics = whole["benchmarks"][0]["metrics"]
    for name in ("time_to_first_token_ms", "inter_token_latency_ms", "output_token_count"):
        metrics[name]["successful"] = None
    metrics["request_totals"] = {"successful": 0, "errored": 8, "incomplete": 0, "total": 8}
    (tmp_path / "told.json").write_text(json.dumps(whole))
    assert guidellm.PEER.read(job(tmp_path), "") == Told(0, 8, 0, None, None, mean_itl=True)


def body_of(stream: wrong_streams.Stream) -> tuple[int, bytes, bool]:
    """Status, body, and whether it came to its end."""
    with wrong_streams.serving(stream) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("POST", "/v1/chat/completions", "{}")
        answer = connection.getresponse()
        try:
            return answer.status, answer.read(), True
        except http.client.IncompleteRead as cut:
            return answer.status, cut.partial, False
        finally:
            connection.close()


def test_each_wrong_stream_is_what_its_name_says() -> None:
    got = {name: body_of(stream) for name, stream in (wrong_streams.WRONG | wrong_streams.ODD).items()}
    hellos = {name: body.count(b" hello") for name, (_, body, _) in got.items()}
    assert [name for name, (status, _, _) in got.items() if status != 200] == ["503"]
    assert [name for name, (_, _, end) in got.items() if not end] == ["connection closed after 5 tokens"]
    assert [name for name, (_, body, _) in got.items() if b'"finish_reason": "length"' in body] == list(
        wrong_streams.ODD
    )
    assert [name for name, (_, body, _) in got.items() if b'"completion_tokens": 10' in body] == ["two tokens an event"]
    assert {name for name, (_, body, _) in got.items() if b"engine is dead" in body} == {
        "an error object alone",
        "an error object after 5 tokens",
    }
    assert {name: count for name, count in hellos.items() if count} == {
        "an error object after 5 tokens": 5,
        "a clean end after 5 tokens": 5,
        "connection closed after 5 tokens": 5,
        "no usage": 10,
        "two tokens an event": 10,
    }


def test_completions_say_the_same_in_their_own_words() -> None:
    whole = wrong_streams.as_completions(wrong_streams.ODD["two tokens an event"].events)
    assert whole[-1] == "[DONE]"
    events = [json.loads(event) for event in whole[:-1]]
    assert {event["object"] for event in events} == {"text_completion"}
    assert [choice["text"] for event in events for choice in event["choices"]] == [" hello hello"] * 5 + [""]
    assert events[-1]["usage"]["completion_tokens"] == 10
    assert wrong_streams.as_completions(wrong_streams.WRONG["an error object alone"].events)[0] == wrong_streams.ERROR


def test_all_that_a_run_started_ends_with_it(tmp_path: Path) -> None:
    left = tmp_path / "left"
    child = f"import time; time.sleep(2); open({str(left)!r}, 'w')"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(BenchError, match=r"not done after 1 s"):
        run([sys.executable, "-c", parent], 1.0)
    with pytest.raises(BenchError, match="exit code 3: the reason"):
        run([sys.executable, "-c", "import sys; print('the reason\\n ====', file=sys.stderr); sys.exit(3)"], 20.0)
    run([sys.executable, "-c", "import time; time.sleep(2)"], 20.0)
    assert not left.exists()


def test_last_words_break_no_table() -> None:
    assert last_words("first\nValueError: a | b\x1b[0m\n\n=====\n") == "ValueError: a / b[0m"
    assert last_words("OSError: no space\nsee /tmp/log\n") == "OSError: no space"
    assert last_words("") == ""


@needs_sender
def test_a_peer_is_held_against_the_sender_and_one_that_cant_be_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Our own client is a peer as the others are. One alone is tried, and the page stays as it is."""

    def refuse(*_: object) -> None:
        raise BenchError("there is no such wheel")

    for name, value in {"PAGE": tmp_path / "PEERS.md", "STREAMS": (1, 2, 3), "TOKENS": 5, "PACE": SHORT}.items():
        monkeypatch.setattr(peers, name, value)
    monkeypatch.setattr(peers, "WRONG", {"clean end": wrong_streams.WRONG["a clean end after 5 tokens"]})
    other, third = (peers.OURS._replace(name=name, install=refuse) for name in ("other", "third"))
    monkeypatch.setattr(peers, "PEERS", (other, third))
    monkeypatch.setattr(sys, "argv", ["peers", "--cache", str(tmp_path), "--only", "other", "--streams", "1", "2"])
    assert peers.main() == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "PEERS.md").exists()
    assert "| 1 | 3 of 3 |" in text
    assert "| 2 | 6 of 6 |" in text
    assert "| tokenswarm (a worker's client) | F | 8 ok, 10 tokens each | 8 ok, 10 tokens each |" in text
    assert f"other {__version__}: there is no such wheel" in text
    assert "third" not in text, "it was not asked for"


def told_of(**fields: object) -> peers.Tried:
    sent = {"ttft_ns": {"p50": 100e6, "p99": 101e6}, "itl_ns": {"p50": 20e6, "p99": 24e6}, "lateness_ns": {"p99": 1e6}}
    tried = peers.Tried(20, Told(60, 0, 600, (101.0, 151.0), (20.5, 21.0)), sent, 600, 60, 6.0)
    return tried._replace(**fields)  # type: ignore[arg-type]


def test_a_mean_of_a_request_is_not_held_against_the_p99_of_gaps() -> None:
    exact = told_of()
    assert peers.rows_of(peers.OURS, [exact])[0][3:5] == ["+1.0 / +50.0", "+0.5 / -3.0"]
    mean = told_of(told=exact.told._replace(mean_itl=True))
    assert peers.rows_of(peers.OURS, [mean])[0][4] == "+0.5 / –"
    none = told_of(told=exact.told._replace(ttft_ms=None))
    assert peers.rows_of(peers.OURS, [none])[0][3] == "not told"


def test_the_cost_of_a_start_is_not_that_of_events() -> None:
    rows = peers.rows_of(peers.OURS, [told_of(), told_of(streams=100, tokens=3000, cpu_s=6.12)])
    assert [row[5:7] for row in rows] == [["10000", ""], ["2040", "50"]]
    assert peers.rows_of(peers.OURS, [told_of(), told_of(tokens=3000, cpu_s=5.0)])[1][6] == "lost in the start's"


def test_a_peer_that_has_had_its_time_says_so(tmp_path: Path) -> None:
    trial = peers.Trial(peers.OURS, tmp_path, peers.Cores(0, 1), 0.0)
    assert trial.streams() == [peers.OURS.name, *["its time was over"] * 8]
