"""The load exporter tells what the report tells, refuses what it can't use, and is whole again after one push."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from exporter_process import Exporter, Samples, parse, promtool_findings, run, running, value
from load_run import SyntheticRun, post
from prometheus_client.parser import text_string_to_metric_families

from exporters.load.table import HISTOGRAMS, QUANTILES, REASONS
from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import LATENCIES, Block, Merged
from tokenswarm.result import envelope
from tokenswarm.result.summary import Summary, summarize

COUNTED = ("tokenswarm_exporter_push_errors_total", "tokenswarm_requests_total")
LABELS = {"engine": "openai", "model": "small", "scenario": "sweep"}


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with running("load") as started:
        yield started


@pytest.fixture(scope="module")
def finished(exporter: Exporter) -> tuple[SyntheticRun, Merged, Summary]:
    """A run that was pushed to its end, and its summary."""
    played = SyntheticRun("run-finished")
    merged = played.play()
    assert post(exporter.url, played.body(merged)) == (204, "")
    return played, merged, summarize(merged, plan=played.state.stages)


def of_run(samples: Samples, run_id: str, name: str, **labels: str) -> float | None:
    return value(samples, name, run_id=run_id, **LABELS, **labels)


def errors(samples: Samples) -> dict[str, float]:
    return {reason: value(samples, "tokenswarm_exporter_push_errors_total", reason=reason) or 0 for reason in REASONS}


def test_counters_are_the_requests_of_the_summary(
    exporter: Exporter, finished: tuple[SyntheticRun, Merged, Summary]
) -> None:
    _, merged, summary = finished
    samples, requests = exporter.samples(), summary.requests
    told = {
        outcome: of_run(samples, "run-finished", "tokenswarm_requests_total", outcome=outcome)
        for outcome in ("ok", "error", "cancelled", "censored")
    }
    assert told == {
        "ok": requests.ok,
        "error": requests.failed,
        "cancelled": requests.cancelled,
        "censored": requests.censored,
    }
    assert min(told.values(), key=lambda n: n or 0)  # each occurs, so that each is tested
    assert of_run(samples, "run-finished", "tokenswarm_requests_started_total") == requests.sent
    assert of_run(samples, "run-finished", "tokenswarm_requests_intended_total") == requests.intended
    for error, count in requests.by_outcome.items():
        if error not in ("ok", "cancelled", "censored"):
            assert of_run(samples, "run-finished", "tokenswarm_request_errors_total", error_type=error) == count
    assert of_run(samples, "run-finished", "tokenswarm_slo_requests_total", met="yes") == summary.slo.met
    not_met = of_run(samples, "run-finished", "tokenswarm_slo_requests_total", met="no")
    assert not_met == summary.slo.judged - summary.slo.met
    tokens = sum(block.output_tokens for block in merged.blocks)
    assert of_run(samples, "run-finished", "tokenswarm_output_tokens_total", token_source="server") == tokens


def test_quantile_gauges_are_the_percentiles_of_the_summary_to_the_digit(
    exporter: Exporter, finished: tuple[SyntheticRun, Merged, Summary]
) -> None:
    summary, samples = finished[2], exporter.samples()
    shown = 0
    for metric in LATENCIES:
        stat = getattr(summary.latency, f"{metric}_s")
        for quantile, name in QUANTILES.items():
            told = of_run(
                samples,
                "run-finished",
                "tokenswarm_latency_quantile_seconds",
                metric=metric,
                window="run",
                quantile=quantile,
            )
            assert told == getattr(stat, name)
            shown += told is not None
    assert shown > 20
    assert summary.latency.tpot_s.p999 is None  # too few samples: absent, not 0


def test_stages_are_those_of_the_summary(exporter: Exporter, finished: tuple[SyntheticRun, Merged, Summary]) -> None:
    samples = exporter.samples()
    for stage in finished[2].stages:
        name = str(stage.stage)
        rate = of_run(samples, "run-finished", "tokenswarm_stage_output_tokens_per_second", stage=name)
        assert rate == stage.throughput.output_tokens_per_s
        assert of_run(samples, "run-finished", "tokenswarm_stage_batch", stage=name) == stage.batch_mean
        assert of_run(samples, "run-finished", "tokenswarm_stage_concurrency", stage=name) == stage.concurrency
        p95 = of_run(
            samples,
            "run-finished",
            "tokenswarm_stage_latency_seconds",
            stage=name,
            metric="ttft",
            quantile="0.95",
        )
        assert p95 == stage.latency.ttft_s.p95


def test_histograms_are_cumulative_complete_and_hold_the_steady_requests(
    exporter: Exporter, finished: tuple[SyntheticRun, Merged, Summary]
) -> None:
    families = {family.name: family for family in text_string_to_metric_families(exporter.text())}
    for name, histograms in HISTOGRAMS.items():
        if name in ("tokenswarm_server_load_seconds", "tokenswarm_server_decode_seconds"):
            assert name not in families  # this engine told none, and is no Ollama
            continue
        for histogram in histograms:
            own = dict(histogram.labels)
            rows = [
                sample
                for sample in families[name].samples
                if sample.labels["run_id"] == "run-finished" and own.items() <= sample.labels.items()
            ]
            counts = [sample.value for sample in rows if sample.name.endswith("_bucket")]
            edges = [float(sample.labels["le"]) for sample in rows if sample.name.endswith("_bucket")]
            assert edges == sorted(set(edges))
            assert counts == sorted(counts)
            assert len(counts) == len(histogram.keys) + 1
            assert counts[-1] == next(sample.value for sample in rows if sample.name.endswith("_count"))
    told = exporter.samples()
    for part in ("queue", "prefill", "first_token"):  # the engine's own words, of whichever engine they are
        count = of_run(told, "run-finished", f"tokenswarm_server_{part}_seconds_count", phase="steady")
        assert count == finished[2].latency.ttft_s.n
    ok = finished[2].requests.ok
    for family, each in (("tokenswarm_draft_tokens_total", 8), ("tokenswarm_accepted_draft_tokens_total", 6)):
        assert of_run(told, "run-finished", family) == ok * each
    steady = finished[2].latency.ttft_s
    assert (
        of_run(exporter.samples(), "run-finished", "tokenswarm_time_to_first_token_seconds_count", phase="steady")
        == steady.n
    )


def test_edges_of_buckets_are_powers_of_two_with_six_digits(exporter: Exporter) -> None:
    post(exporter.url, SyntheticRun("run-edges").body())
    text = exporter.text()
    found = re.findall(r'time_to_first_token_seconds_bucket\{run_id="run-edges".*le="([^"]+)"', text)
    # 4 an octave from 2^-10, 32 from 2^-8 (4 ms), 4 again from 2^5 (32 s) to 2^9
    keys = [*range(-320, -256, 8), *range(-256, 160), *range(160, 289, 8)]
    assert found == [*(f"{2 ** (key / 32):.6g}" for key in keys), "+Inf"]
    assert {"0.000976562", "0.00195312", "0.015625", "0.5", "1", "32", "512"} <= set(found)


def test_every_label_set_is_there_with_zero_from_the_first_push(exporter: Exporter) -> None:
    played = SyntheticRun("run-new")
    post(exporter.url, played.body(Merged(run_id="run-new")))
    first = {key: v for key, v in exporter.samples().items() if ("run_id", "run-new") in key[1]}
    post(exporter.url, played.body(played.play()))
    last = {key: v for key, v in exporter.samples().items() if ("run_id", "run-new") in key[1]}
    new = {name for name, labels in last.keys() - first.keys()}
    assert new == {
        "tokenswarm_latency_quantile_seconds",  # once there are enough samples
        "tokenswarm_latency_quantile_bound_seconds",
        "tokenswarm_run_end_timestamp_seconds",
        *(name for name, _ in last if name.startswith(("tokenswarm_stage_", "tokenswarm_worker_"))),
        *(name for name, _ in last if name.startswith("tokenswarm_server_")),  # an engine that tells them
    }
    counters = {v for (name, _), v in first.items() if name.endswith(("_total", "_bucket", "_count", "_sum"))}
    assert counters == {0.0}


def test_promtool_finds_nothing_to_mend_and_runs_share_each_family(
    exporter: Exporter, finished: tuple[SyntheticRun, Merged, Summary]
) -> None:
    del finished
    post(exporter.url, SyntheticRun("run-beside", engine="ollama").body())
    text = exporter.text()
    assert promtool_findings(text) == ""
    types = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(types) == len(set(types))
    assert parse(text)
    assert "tokenswarm_server_queue_seconds_bucket" in text


def test_labels_are_escaped(exporter: Exporter) -> None:
    post(exporter.url, SyntheticRun("run-quotes", model='a"b\\c\nd').body())
    found = [labels for name, labels in exporter.samples() if ("run_id", "run-quotes") in labels]
    assert found
    assert all(("model", 'a"b\\c\nd') in labels for labels in found)


def broken_parts(played: SyntheticRun, *parts: bytes) -> bytes:
    push = played.envelope()
    push.merged = list(parts)
    return envelope.encode(push)


def bad(played: SyntheticRun, **changes: object) -> bytes:
    """A push with other values of its run, whatever their type."""
    push = msgspec.to_builtins(played.envelope())
    push["run"].update(changes)
    return msgspec.msgpack.encode(push)


_PART = snapshot.encode(Merged(run_id="run-wrong", blocks=[Block(stage=0, phase="steady")]))

WRONG = {
    "empty": ("malformed", 400, lambda _: b""),
    "html": ("malformed", 400, lambda _: b"<html>504</html>"),
    "half": ("malformed", 400, lambda played: played.body()[:-3]),
    "a list": ("malformed", 400, lambda _: msgspec.msgpack.encode([1, 2])),
    "another version": (
        "schema_version",
        422,
        lambda played: msgspec.msgpack.encode({**msgspec.to_builtins(played.envelope()), "schema_version": 2}),
    ),
    "counts of another version": (
        "malformed",
        400,
        lambda played: broken_parts(played, msgspec.msgpack.encode({"schema_version": 99, "run_id": "run-wrong"})),
    ),
    "garbage counts": ("malformed", 400, lambda played: broken_parts(played, b"\xc1")),
    "counts of another run": (
        "malformed",
        400,
        lambda played: broken_parts(played, snapshot.encode(Merged(run_id="other"))),
    ),
    "a block twice": ("malformed", 400, lambda played: broken_parts(played, _PART, _PART + b"")),
    "an unknown phase": (
        "malformed",
        400,
        lambda played: broken_parts(
            played, snapshot.encode(Merged(run_id="run-wrong", blocks=[Block(stage=0, phase="x")]))
        ),
    ),
    "a negative stage number": ("malformed", 400, lambda played: bad(played, stage=-7)),
    "a time that is none": ("malformed", 400, lambda played: bad(played, start_timestamp_s=float("nan"))),
    "a run id that is a path": ("malformed", 400, lambda played: bad(played, run_id="../x")),
    "a stage planned twice": ("malformed", 400, lambda played: bad(played, stages=[{"stage": 1}, {"stage": 1}])),
    "17 MiB": ("oversized", 413, lambda _: bytes(17 << 20)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_push_that_can_not_be_used_says_why_is_counted_and_changes_nothing(exporter: Exporter, what: str) -> None:
    reason, status, make = WRONG[what]
    played = SyntheticRun("run-wrong", stages=(4,), seconds=3)
    played.seq = 100
    played.advance()
    post(exporter.url, played.body())
    before = exporter.samples(*COUNTED)
    got, sentence = post(exporter.url, make(played))
    after = exporter.samples(*COUNTED)
    assert got == status
    assert len(sentence.strip()) > 10
    assert "Traceback" not in sentence
    assert sentence.count("\n") == 1
    assert {r: n - errors(before)[r] for r, n in errors(after).items() if n != errors(before)[r]} == {reason: 1}
    name = "tokenswarm_requests_total"
    assert of_run(after, "run-wrong", name, outcome="ok") == of_run(before, "run-wrong", name, outcome="ok") != 0


def test_a_form_of_a_web_page_can_not_push(exporter: Exporter) -> None:
    before = errors(exporter.samples(*COUNTED))["content_type"]
    body = SyntheticRun("run-form").body()
    assert post(exporter.url, body, Content_Type="text/plain")[0] == 415
    assert post(exporter.url, body, Content_Encoding="gzip")[0] == 415
    assert errors(exporter.samples(*COUNTED))["content_type"] == before + 2


def raw_push(exporter: Exporter, head: str, body: bytes = b"", *, close: bool = False) -> bytes:
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=60) as sock:
        lines = f"POST /push/v1 HTTP/1.1\r\nhost: x\r\ncontent-type: {envelope.CONTENT_TYPE}\r\n{head}\r\n\r\n"
        sock.sendall(lines.encode() + body)
        if close:
            sock.shutdown(socket.SHUT_WR)
        told = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in told and (piece := sock.recv(65_536)):
                told += piece
        return told


def test_a_push_that_breaks_off_is_counted(exporter: Exporter) -> None:
    before = errors(exporter.samples(*COUNTED))
    raw_push(exporter, "content-length: 1000", b"\x84", close=True)
    exporter.wait_for(lambda samples: errors(samples)["broken"] == before["broken"] + 1, *COUNTED)


def test_a_push_without_an_end_is_cut_off_by_size_and_by_time(exporter: Exporter) -> None:
    before = errors(exporter.samples(*COUNTED))
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=60) as sock:
        head = f"POST /push/v1 HTTP/1.1\r\nhost: x\r\ncontent-type: {envelope.CONTENT_TYPE}\r\n"
        sock.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(18):
                sock.sendall(chunk)
        exporter.wait_for(lambda samples: errors(samples)["oversized"] == before["oversized"] + 1, *COUNTED)
    assert b" 408 " in raw_push(exporter, "content-length: 1000", b"\x84")
    assert errors(exporter.samples(*COUNTED))["slow"] == before["slow"] + 1


def test_a_token_guards_pushes_and_scrapes(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct horse\n")
    right = {"Authorization": "Bearer correct horse"}
    with running("load", "--token-file", str(token)) as guarded:
        body = SyntheticRun().body()
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "correct horse"}):
            status, sentence = post(guarded.url, body, **wrong)
            assert (status, "token" in sentence) == (401, True)
        assert 'unauthorized"} 3' in guarded.text(**right)
        assert post(guarded.url, body, **right)[0] == 204
        assert "tokenswarm_run_info" in guarded.text(**right)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--listen", "0.0.0.0:0"), "add --token-file (TLS alone does not say who may push), or --insecure-listen"),
        (("--keep", "0s"), "--keep"),
        (("--keep", "soon"), "--keep"),
        (("--nonsense",), "--nonsense"),
        (("--listen", "127.0.0.1"), "HOST:PORT"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_15(args: tuple[str, ...], words: str) -> None:
    ended = run("load", *args)
    assert ended.returncode == 15
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_one_sentence_and_exit_15(exporter: Exporter) -> None:
    ended = run("load", "--listen", f"127.0.0.1:{exporter.port}")
    assert (ended.returncode, ended.stderr.count("\n")) == (15, 1)


def test_after_kill_9_and_restart_the_next_push_restores_every_total() -> None:
    played = SyntheticRun("run-killed")
    for _ in range(4):
        played.advance()
    with running("load") as first:
        post(first.url, played.body())
        before = first.samples()
        port = first.port
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(timeout=60)
    played.advance()
    with running("load", "--listen", f"127.0.0.1:{port}") as second:
        assert not [labels for _, labels in second.samples() if ("run_id", "run-killed") in labels]
        post(second.url, played.body())
        after = second.samples()
    name = "tokenswarm_requests_total"
    merged = summarize(played.inbox.merged())
    assert of_run(after, "run-killed", name, outcome="ok") == merged.requests.ok
    assert (of_run(before, "run-killed", name, outcome="ok") or 0) < merged.requests.ok
    assert of_run(after, "run-killed", "tokenswarm_time_to_first_token_seconds_count", phase="steady") == (
        merged.latency.ttft_s.n
    )


def test_rude_peers_cost_no_memory_and_no_push(exporter: Exporter) -> None:
    played = SyntheticRun("run-crowd")
    played.advance()

    def crowd() -> None:
        post(exporter.url, played.body())
        stuck = [socket.create_connection(("127.0.0.1", exporter.port), timeout=60) for _ in range(20)]
        for sock in stuck:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        half_open = [socket.create_connection(("127.0.0.1", exporter.port), timeout=60) for _ in range(20)]
        for sock in half_open:
            sock.sendall(b"POST /push/v1 HTTP/1.1\r\nhost: x\r\n")
        for _ in range(50):
            assert "tokenswarm_run_info" in exporter.text()
        played.advance()
        assert post(exporter.url, played.body())[0] == 204
        for sock in stuck + half_open:
            sock.close()

    process = psutil.Process(exporter.process.pid)
    crowd()
    crowd()
    settled = process.memory_info().rss
    for _ in range(3):
        crowd()
    of_each = 3 * 20 * len(exporter.text())  # a page for each of the stuck; what good scrapes leave behind is less
    assert process.memory_info().rss - settled < of_each / 2
    end_s = time.monotonic() + 20
    while process.num_fds() > 40:
        assert time.monotonic() < end_s
        time.sleep(0.1)
