"""The run's side of a push: it arrives, it never holds the run up, and it says once that it does not arrive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import gevent.server
import pytest
from exporter_process import Exporter, Samples, names, running, value
from load_run import SyntheticRun

from tokenswarm.client.page import request
from tokenswarm.client.response import TransportError
from tokenswarm.client.transport import make_target
from tokenswarm.cluster import push
from tokenswarm.cluster.push import Push, of_run
from tokenswarm.errors import ConfigError
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.environment import push_headers
from tokenswarm.profile.load import Stage
from tokenswarm.profile.profile import Profile
from tokenswarm.profile.target import Tls
from tokenswarm.record import Outcome
from tokenswarm.result import envelope
from tokenswarm.result.summary import Doubt, Verdict, summarize
from tokenswarm.telemetry.join import StageTold
from tokenswarm.telemetry.kv import KvBlock

MANIFEST = {
    "run_id": "run-pushed",
    "engine": {"version": {"/version": "0.33.0"}},
    "git_revision": "0123456789abcdef",
}


def profile(url: str | None, more: str = "") -> Profile:
    lines = f"""
target: http://127.0.0.1:1
name: nightly
engine: {{model: small}}
dataset: {{format: synthetic}}
load: {{stages: [{{users: 4}}, {{users: 8}}]}}
telemetry: {{push: {url or "null"}{more}}}
"""
    return profiles.load(lines, "test")


class Said:
    """What the user was told; what the cluster looks like."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.members = [SimpleNamespace(prepared=True, done=False, lost="", left="") for _ in range(3)]

    def push(self, url: str | None, more: str = "", **options: Any) -> Push:
        manifest = {**MANIFEST, "run_id": options.pop("run_id", MANIFEST["run_id"])}
        return of_run(profile(url, more), manifest, lambda: self.members, self.sentences.append, **options)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(push, "INTERVAL_S", 0.05)
    monkeypatch.setattr(push, "PATIENCE_S", 20.0)  # an exporter that works is waited for, however busy the machine
    return Said()


@pytest.fixture
def impatient(said: Said, monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(push, "PATIENCE_S", 0.3)
    return said


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with running("load") as started:
        yield started


def base(exporter: Exporter) -> str:
    return exporter.url.removesuffix("/metrics")


def of_this(samples: Samples, name: str, run_id: str = "run-pushed", **labels: str) -> float | None:
    return value(samples, name, run_id=run_id, engine="openai", model="small", scenario="nightly", **labels)


def wait_for_push(pushing: Push, more: int = 1) -> None:
    """Until that many pushes that begin from now on have arrived (one may be on its way already)."""
    wanted = pushing.pushed + more + 1
    with gevent.Timeout(60):
        while pushing.pushed < wanted:
            gevent.sleep(0.01)


def test_a_run_is_pushed_from_its_begin_to_its_verdict(said: Said, exporter: Exporter) -> None:
    played = SyntheticRun("run-pushed")
    with said.push(base(exporter)) as pushing:
        wait_for_push(pushing)
        samples = exporter.samples()
        assert of_this(samples, "tokenswarm_requests_total", outcome="ok") == 0
        assert of_this(samples, "tokenswarm_workers", state="ready") == 3
        pushing.phase(0, "steady", Stage(users=4), 30.0)
        played.advance()
        pushing.tick(played.inbox.merged())
        pushing.note("nothing comes of notes")
        wait_for_push(pushing)
        samples = exporter.samples()
        assert of_this(samples, "tokenswarm_requests_started_total") == 60
        assert of_this(samples, "tokenswarm_run_phase", phase="steady") == 1
        assert of_this(samples, "tokenswarm_target_users") == 4
        began = of_this(samples, "tokenswarm_stage_start_timestamp_seconds", stage="0")
        assert began is not None
        assert 0 <= time.time() - began < 60
        assert of_this(samples, "tokenswarm_stage_start_timestamp_seconds", stage="1") is None, "it has not begun"
        assert of_this(samples, "tokenswarm_workers", state="running") == 3
        said.members[0].lost = "its heartbeat stopped"
        said.members[1].done = True
        said.members[2].left, said.members[2].done = "was ended by a signal (SIGTERM)", True
        merged = played.play()
        pushing.finish(
            merged, Verdict(status="DEGRADED", doubts=[Doubt(code="loop-lag", severity="degraded", message="")])
        )
    samples = exporter.samples()
    assert of_this(samples, "tokenswarm_requests_started_total") == sum(block.sent for block in merged.blocks)
    assert of_this(samples, "tokenswarm_run_verdict", status="DEGRADED") == 1
    assert of_this(samples, "tokenswarm_run_doubt", code="loop-lag", severity="degraded") == 1
    assert of_this(samples, "tokenswarm_workers", state="missing") == 2
    assert of_this(samples, "tokenswarm_workers", state="done") == 1
    started = of_this(samples, "tokenswarm_run_start_timestamp_seconds")
    ended = of_this(samples, "tokenswarm_run_end_timestamp_seconds")
    assert started is not None
    assert ended is not None
    assert 0 < ended - started < 60
    info = next(dict(labels) for name, labels in samples if name == "tokenswarm_run_info")
    assert (info["engine_version"], info["git_revision"], info["dataset"]) == ("0.33.0", "0123456789ab", "synthetic")
    assert (pushing.dropped, said.sentences) == (0, [])


def test_a_run_that_fails_on_the_way_still_says_that_it_is_over(said: Said, exporter: Exporter) -> None:
    def fail() -> None:
        with said.push(base(exporter)) as pushing:
            wait_for_push(pushing)
            raise ConfigError("no worker came")

    with pytest.raises(ConfigError):
        fail()
    samples = exporter.samples()
    assert of_this(samples, "tokenswarm_run_end_timestamp_seconds") is not None
    assert of_this(samples, "tokenswarm_run_verdict", status="VALID") == 0


def test_a_user_who_wants_out_does_not_wait_for_a_push(said: Said) -> None:
    with deaf() as url:
        pushing = said.push(url)
        with pytest.raises(SystemExit), pushing:
            raise SystemExit(13)
        assert (pushing.pushed, pushing.dropped) == (0, 0)  # no last push was tried


def test_without_an_exporter_the_run_goes_on_and_says_so_once(said: Said) -> None:
    with said.push("http://127.0.0.1:1") as pushing:
        with gevent.Timeout(10):
            while pushing.dropped < 5:
                gevent.sleep(0.01)
        pushing.finish(SyntheticRun("run-pushed").inbox.merged())
    assert len(said.sentences) == 1
    assert "http://127.0.0.1:1" in said.sentences[0]
    assert "refused" in said.sentences[0]


def test_without_a_target_nothing_is_done(said: Said) -> None:
    with said.push(None) as pushing:
        gevent.sleep(0.1)
        pushing.finish(SyntheticRun("run-pushed").inbox.merged())
    assert (pushing.pushed, pushing.dropped, said.sentences) == (0, 0, [])


@contextlib.contextmanager
def deaf(answer: bytes = b"") -> Iterator[str]:
    """A server that takes everything and answers with `answer`, or never."""

    def serve(sock: Any, _: Any) -> None:
        with contextlib.suppress(OSError):
            sock.recv(65_536)
            if answer:
                sock.sendall(answer)
                sock.recv(1)
            else:
                gevent.sleep(30)

    server = gevent.server.StreamServer(("127.0.0.1", 0), serve)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stop(timeout=0)


def test_a_slow_exporter_costs_the_run_nothing_and_drops_are_counted(impatient: Said) -> None:
    ticks = 0
    with deaf() as url, impatient.push(url) as pushing:
        began_s = time.monotonic()
        while pushing.dropped < 3 and time.monotonic() - began_s < 20:
            pushing.tick(SyntheticRun("run-pushed").inbox.merged())
            gevent.sleep(0.005)
            ticks += 1
        assert pushing.dropped == 3
        assert time.monotonic() - began_s >= 0.8 * 3 * 0.3  # one after the other
    assert ticks > 2 * 3  # the run went on meanwhile, and not from one push to the next
    assert "no answer within 0.3 s" in impatient.sentences[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 422 x\r\ncontent-length: 11\r\n\r\nold version", "HTTP 422, old version"),
        (
            b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n",
            "HTTP 404, no reason given; is that the address of `python -m",
        ),
        (b"<html>hello</html>\r\n\r\n", "framing"),
    ],
)
def test_a_server_that_is_no_exporter_is_named_with_its_answer(said: Said, answer: bytes, words: str) -> None:
    with deaf(answer) as url, said.push(url) as pushing, gevent.Timeout(10):
        while not pushing.dropped:
            gevent.sleep(0.01)
    assert words in said.sentences[0]


@pytest.mark.parametrize("more", ["/metrics", "/metrics/", "/push/v1"])
def test_the_address_that_the_exporter_says_when_it_starts_will_do(said: Said, exporter: Exporter, more: str) -> None:
    with said.push(base(exporter) + more) as pushing:
        wait_for_push(pushing)
    assert (pushing.dropped, said.sentences) == (0, [])


def test_the_token_comes_from_the_environment_and_shows_nowhere(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("s3cret")
    with running("load", "--token-file", str(tmp_path / "token")) as guarded:
        monkeypatch.setenv("PUSH_TOKEN", "s3cret")
        told = profile(base(guarded), ", push_token_env: PUSH_TOKEN")
        with of_run(told, MANIFEST, list, said.sentences.append) as pushing:
            wait_for_push(pushing)
        page = guarded.text(Authorization="Bearer s3cret")
        assert "tokenswarm_run_info" in page
        assert "s3cret" not in page
        assert b"s3cret" not in profiles.encode(told)
        with said.push(base(guarded)) as refused:
            gevent.sleep(0.2)
        assert refused.dropped
        assert "HTTP 401" in said.sentences[0]


@pytest.mark.parametrize(("environ"), [{}, {"PUSH_TOKEN": ""}, {"PUSH_TOKEN": "two\nlines"}, {"PUSH_TOKEN": "é"}])
def test_a_token_that_is_not_there_is_a_sentence_before_the_load(environ: dict[str, str]) -> None:
    told = profile("http://127.0.0.1:1", ", push_token_env: PUSH_TOKEN")
    with pytest.raises(ConfigError) as caught:
        push_headers(told.telemetry, environ)
    assert "PUSH_TOKEN" in str(caught.value)
    assert push_headers(told.telemetry, {"PUSH_TOKEN": "abc"}) == {"authorization": "Bearer abc"}


@pytest.mark.parametrize(
    "telemetry",
    ["push: ftp://x", "push: http://user:pw@x:9646", "push: 'http://x:9646/?q=1'", "push_token_env: 'Bearer abc'"],
)
def test_a_wrong_telemetry_section_is_one_sentence_that_repeats_no_secret(telemetry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        profiles.load(f"target: http://x\ndataset: {{format: synthetic}}\ntelemetry: {{{telemetry}}}\n", "p.yaml")
    assert "p.yaml:3" in str(caught.value)
    assert "telemetry." in str(caught.value)
    assert "pw" not in str(caught.value)
    assert "Bearer" not in str(caught.value)


def test_a_request_gives_up_in_time_wherever_it_hangs() -> None:
    with deaf() as url:
        target = make_target(url, Tls())
        for size in (10, 50_000_000):  # waiting for the answer; sending to one who does not read
            began = time.monotonic()
            with pytest.raises(TransportError) as caught:
                request(target, "POST", envelope.PATH, {}, bytes(size), timeout_s=0.2)
            assert caught.value.outcome is Outcome.TIMEOUT
            assert time.monotonic() - began < 5


def test_parts_of_blocks_that_did_not_change_are_the_same_bytes() -> None:
    played, parts = SyntheticRun("run-pushed"), envelope.Parts()
    first = parts.of(played.inbox.merged())
    for _ in range(3):
        played.advance()
    before = parts.of(played.inbox.merged())
    played.advance()
    after = parts.of(played.inbox.merged())
    assert len(first) == 1
    assert before[0] is after[0]  # the warm-up is over
    assert before[1] is not after[1]
    push_of = envelope.Envelope(seq=1, run=played.state, merged=after)
    merged, _ = envelope.join(envelope.decode(envelope.encode(push_of)), {})
    assert merged == played.inbox.merged()


def test_names_of_metrics_do_not_depend_on_the_run(exporter: Exporter) -> None:
    assert all(name.startswith("tokenswarm_") for name in names(exporter.samples()))


def test_the_kv_cache_goes_along_and_what_nobody_tells_is_absent(said: Said, exporter: Exporter) -> None:
    told = KvBlock(
        predicted_bytes_per_token=131_072.0, predicted_bytes_mean=5e8, capacity_bytes=2e9, batch_at_full=16.5
    )
    asked = []

    class Teller:
        def kv(self, merged: Merged) -> KvBlock:
            asked.append(merged)
            return told

        def stages(self, _merged: Merged) -> dict[int, StageTold]:
            return {0: StageTold(engine_batch=3.5, engine_waiting=0.5), 1: StageTold(power_w_mean=700.0)}

        def targets(self) -> dict[str, list[str]]:
            return {}

    with said.push(base(exporter), teller=Teller(), run_id="run-kv") as pushing:
        pushing.phase(1, "drain", None, 1.0)
        assert pushing._state.stage_starts == {}, "a drain begins no stage"
        wait_for_push(pushing)
        samples = exporter.samples()
        assert of_this(samples, "tokenswarm_kv_cache_bytes_per_token", "run-kv", source="predicted") == 131_072
        assert of_this(samples, "tokenswarm_kv_cache_bytes_per_token", "run-kv", source="engine") is None
        assert of_this(samples, "tokenswarm_kv_cache_predicted_bytes", "run-kv") == 5e8
        assert of_this(samples, "tokenswarm_kv_cache_capacity_bytes", "run-kv") == 2e9
        assert of_this(samples, "tokenswarm_kv_cache_batch_at_full", "run-kv") == 16.5
        assert "tokenswarm_kv_cache_used_bytes" not in names(samples)
        told.used_bytes_mean, told.bytes_per_token = 4e8, 65_536.0
        wait_for_push(pushing)
        samples = exporter.samples()
        assert of_this(samples, "tokenswarm_kv_cache_used_bytes", "run-kv") == 4e8
        assert of_this(samples, "tokenswarm_kv_cache_bytes_per_token", "run-kv", source="engine") == 65_536
        assert of_this(samples, "tokenswarm_stage_engine_batch", "run-kv", stage="0") == 3.5
        assert of_this(samples, "tokenswarm_stage_engine_waiting", "run-kv", stage="0") == 0.5
        assert of_this(samples, "tokenswarm_stage_engine_batch", "run-kv", stage="1") is None
        assert "tokenswarm_stage_joules_per_output_token" not in names(samples), "no token yet"
        merged = SyntheticRun("run-kv").play()
        pushing.finish(merged)
    tokens_per_s = summarize(merged).stages[1].throughput.output_tokens_per_s
    assert tokens_per_s is not None
    told_j = of_this(exporter.samples(), "tokenswarm_stage_joules_per_output_token", "run-kv", stage="1")
    assert told_j == 700.0 / tokens_per_s
    assert all(isinstance(merged, Merged) for merged in asked)
