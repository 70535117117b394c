"""Who holds tokens back: signs in the stream, the engine's word beside it, real proxies as they come and mended."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sample_runs
from proxies import proxy
from running import SAMPLES, Finished, program, tokenswarm
from simulator_process import Server, simulator

from tokenswarm.client.response import Response
from tokenswarm.judge.rules.contamination import router_retries
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.judge.rules.path import MENDS, by_name, lost_by, tokens_held_back
from tokenswarm.measure.held import EVENTS_MIN, Held
from tokenswarm.measure.sketch import Sketch
from tokenswarm.record import EngineTimes, RequestRecord
from tokenswarm.result.summary import Doubt

MS = 1_000_000
TTFT, ITL, N = 100 * MS, 20 * MS, 64


def answer(arrivals_ns: list[int], **more: Any) -> RequestRecord:
    """The record of an answer whose content events came at these moments after it was sent."""
    sent = 5 * MS
    stamps = [sent + at for at in arrivals_ns]
    gaps = [b - a for a, b in pairwise(stamps) if b > a]
    fields: dict[str, Any] = {
        "sent_ns": sent, "first_ns": stamps[0], "last_ns": stamps[-1], "done_ns": stamps[-1] + MS,
        "headers_ns": stamps[0], "output_tokens": len(stamps), "events": len(stamps), "gaps_ns": tuple(gaps),
        "merged_events": len(stamps) - 1 - len(gaps), "reads": len(gaps) + 2, "token_stamps_ns": tuple(stamps),
    }  # fmt: skip
    return sample_runs.request(0, sent, **{**fields, **more})


def made(ttft: int = TTFT, itl: int = ITL, n: int = N) -> list[int]:
    return [ttft + itl * i for i in range(n)]


def in_blocks(times: list[int], tokens: int) -> list[int]:
    return [times[min(len(times) - 1, i // tokens * tokens + tokens - 1)] for i in range(len(times))]


def corked(times: list[int], window: int = 200 * MS) -> list[int]:
    found, open_until = [], times[0] + window
    for at in times:
        if at > open_until:
            open_until = at + window
        found.append(min(open_until, times[-1]))
    return found


def signs(record: RequestRecord) -> set[str]:
    held = Held()
    held.add(record)
    return {name for name in ("stored", "announced", "packed", "blocks", "corked") if getattr(held, name)}


STREAMS: dict[str, tuple[RequestRecord, set[str]]] = {
    "as it was made": (answer(made()), set()),
    "two tokens a step": (answer(in_blocks(made(), 2)), set()),
    "bursts of eight, quicker than a cork": (answer(in_blocks(made(), 8)), set()),
    "stored whole": (answer([1361 * MS] * N), {"stored"}),
    "stored whole, two reads": (answer([1361 * MS] * 40 + [1362 * MS] * 24), {"stored"}),
    "stored whole, with a length": (answer([1361 * MS] * N, announced=True), {"stored", "announced"}),
    "packed and stored": (answer([1361 * MS] * N, packed=True), {"stored", "packed"}),
    "packed, event by event": (answer(made(), packed=True), {"packed"}),
    "blocks": (answer(in_blocks(made(), 21), blocks=3), {"blocks"}),
    "a cork": (answer(corked(made())), {"corked"}),
    "a cork, as HAProxy of a busy machine": (
        answer([at * MS for at in [211] * 10 + [399] * 10 + [619] * 10 + [839] * 8 + [881] * 2]),
        {"corked"},
    ),
    "each 150 ms": (answer(corked(made(), 150 * MS)), set()),
    "too short to tell": (answer([900 * MS] * (EVENTS_MIN - 1)), set()),
    "a quick engine after a long wait": (answer(made(5000 * MS, 2 * MS)), set()),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_signs_of_a_stream(name: str) -> None:
    record, wanted = STREAMS[name]
    assert signs(record) == wanted


def judged(record: RequestRecord, metrics: dict[str, Any] | None = None, marks: dict[str, str] | None = None,
           lag_s: float = 0.0001, late_share: float = 1.0) -> Doubt | None:  # fmt: skip
    """What the rule says of a run of 60 such answers, with the engine's metrics beside them."""
    merged = sample_runs.run(ok=1)
    block = merged.block(0)
    block.held = Held()
    for name in ("ttft", "tpot", "e2e"):
        setattr(block, name, Sketch())
    for _ in range(60):
        block.held.add(record)
        for name, value in (("ttft", record.ttft_ns), ("tpot", record.tpot_ns), ("e2e", record.e2e_ns)):
            if value is not None:
                getattr(block, name).add(value / 1e9)
    block.ok, block.output_tokens, block.events = 60, 60 * record.output_tokens, 60 * record.events
    late = round(late_share * 100_000)
    merged.workers[0].instrument.rx_lag.add(lag_s, late)
    if late < 100_000:
        merged.workers[0].instrument.rx_lag.add(0.0001, 100_000 - late)
    summary = sample_runs.summary(merged)
    if metrics is not None:
        summary.server["metrics"] = {"latency": metrics, "sources": []}
    evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile(), marks=marks or {})
    return tokens_held_back(evidence, summary)


def says(ttft: float = 0.1, tpot: float = 0.02, e2e: float = 1.361, n: int = 61) -> dict[str, Any]:
    return {name: {"n": n, "mean": mean} for name, mean in (("ttft_s", ttft), ("tpot_s", tpot), ("e2e_s", e2e))}


HELD_BACK = [name for name, (_, found) in STREAMS.items() if found - {"packed"}]


@pytest.mark.parametrize("name", HELD_BACK)
def test_what_is_held_back_is_told_with_the_engines_word_and_without(name: str) -> None:
    for metrics in (None, says()):
        found = judged(STREAMS[name][0], metrics)
        assert found is not None
        assert (found.code, found.severity, found.evidence["sign"] is not None) == (
            "tokens-held-back",
            "degraded",
            True,
        )
        assert ("The engine says TTFT 100 ms" in found.message) == (metrics is not None)
        assert len(found.message) < 500


def test_a_delay_that_merges_nothing_is_told_by_the_engines_word() -> None:
    """Tokens each 250 ms behind a cork: no token shares a read, and TTFT is twice the truth."""
    slow = made(TTFT, 250 * MS, 16)
    found = judged(answer([slow[0] + 106 * MS, *slow[1:]]), says(0.1, 0.25, 3.852))
    assert found is not None
    assert "the client saw 206 ms" in found.message
    assert "option http-no-delay" in found.message


@pytest.mark.parametrize(
    ("arrivals", "metrics"),
    [
        (made(), says()),
        (made(TTFT + 300 * MS), says(e2e=1.361)),  # a slow network: the end is as late
        (in_blocks(made(), 10), says(0.28, 0.02, 1.361)),  # the engine itself sends each tenth token
        ([1361 * MS] * N, says(1.36, 0.00001, 1.361)),  # the engine itself makes all of it at the end
        (made(TTFT + 300 * MS), says(n=200)),  # the engine speaks of other requests, too
        (made(TTFT + 15 * MS), says(tpot=0.0203)),
    ],
    ids=["direct", "slow network", "bursts", "one step", "others", "a little"],
)
def test_an_engine_that_is_slow_or_sends_in_bursts_is_not_held_back(
    arrivals: list[int], metrics: dict[str, Any]
) -> None:
    assert judged(answer(arrivals), metrics) is None


def test_tokens_that_the_engine_made_and_did_not_show_are_no_delay() -> None:
    """Thinking that is not streamed: the first event is the 17th token, and the pace looks quicker than it was."""
    shown = answer(made()[16:], output_tokens=N, engine=EngineTimes(total_ns=1361 * MS, decode_ns=1260 * MS))
    assert judged(shown) is None


def test_the_times_in_the_answers_tell_without_metrics() -> None:
    times = EngineTimes(total_ns=1361 * MS, decode_ns=1260 * MS)
    assert judged(answer(made(), engine=times)) is None
    late = [TTFT + 420 * MS, *(max(TTFT + 420 * MS, at) for at in made()[1:])]
    found = judged(answer(late, engine=times))
    assert found is not None
    assert "The engine says TTFT 101 ms, the client saw 520 ms" in found.message


def test_a_client_that_reads_late_is_not_cleared() -> None:
    assert judged(answer(in_blocks(made(), 21), blocks=3), says(), lag_s=0.4) is None


def test_a_busy_machine_hides_no_proxy_that_two_witnesses_tell_of() -> None:
    """The engine's word and most of the answers; one read in fifty came late, which the word alone does not stand."""
    told = judged(answer(corked(made())), says(), lag_s=0.4, late_share=0.02)
    assert told is not None
    assert "each 200 ms" in told.message
    late = answer([max(160 * MS, at) for at in made()])
    assert judged(late, says()) is not None
    assert judged(late, says(), lag_s=0.4, late_share=0.02) is None


def test_the_headers_of_the_answer_choose_the_mend() -> None:
    record = STREAMS["stored whole"][0]
    for marks, wanted in (
        ({"server": "nginx/1.22.1"}, "proxy_buffering off"),
        ({"via": "1.1 varnish (Varnish/7.1)"}, "no `beresp.do_gzip`"),
        ({"x-powered-by": "Express"}, "no `compression()`"),
        ({"server": "uvicorn"}, "server.stream-response-body = 1"),
    ):
        found = judged(record, says(), marks)
        assert found is not None
        assert wanted in found.message
    assert all(by_name({header: pattern}) is not None for header, pattern, _ in MENDS)
    assert by_name({"server": "uvicorn"}) is None


def test_a_proxy_that_is_known_to_lose_answers_is_named_where_it_may_have() -> None:
    told = lost_by({"server": "Caddy, uvicorn"}, {"ok": 80, "empty": 4})
    assert "`buffer_requests`" in told
    assert lost_by({"server": "Caddy"}, {"ok": 80, "reset": 4}) == ""
    assert lost_by({"server": "uvicorn"}, {"ok": 80, "empty": 4}) == ""


def test_no_false_alarm_in_a_hundred_clean_runs() -> None:
    draw = random.Random(11)
    for _ in range(100):
        ttft, itl, n = int(draw.uniform(5, 900)) * MS, int(draw.uniform(3, 300)) * MS, draw.randrange(8, 200)
        times = [ttft + i * itl + int(draw.uniform(0, 0.2) * itl) for i in range(n)]
        record = answer(times)
        wobble = draw.uniform(0.97, 1.03)
        total = (times[-1]) / 1e9
        assert judged(record, says(ttft / 1e9 * wobble, itl / 1e9 * draw.uniform(0.98, 1.02), total * wobble)) is None
        assert judged(record) is None


def test_a_gateway_that_says_it_asked_again_is_told() -> None:
    merged = sample_runs.run(ok=60, retries=2)
    evidence = Evidence(merged=merged, expected_workers=1, profile=sample_runs.profile())
    found = router_retries(evidence, sample_runs.summary(merged))
    assert found is not None
    assert "a gateway says of 60 answers" in found.message
    calm = sample_runs.run(ok=60)
    assert router_retries(msgspec.structs.replace(evidence, merged=calm), sample_runs.summary(calm)) is None


PROFILE = """
name: held
target: {url}
dataset: {{path: {data}, output_tokens: {{fixed: 40}}}}
load: {{stages: [{{users: 5, duration: 5s}}]}}
phases: {{warmup: 1s, settle: 0s, drain: 20s}}
telemetry: {{engine_metrics: [{metrics}]}}
workers: 1
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    with simulator("--preset", "paced", "--allow-fault-header") as server:
        yield server


def runs(cases: dict[str, str], home: Path) -> dict[str, Finished]:
    """A run of each profile, side by side."""
    with ExitStack() as stack:
        started = {}
        for name, text in cases.items():
            folder = home / name
            folder.mkdir()
            (folder / "p.yaml").write_text(text, encoding="utf-8")
            started[name] = stack.enter_context(program(tokenswarm("run", "p.yaml"), folder))
        return {name: one.finish() for name, one in started.items()}


def sentence(run: Finished) -> str:
    return next((d["message"] for d in run.summary["verdict"]["doubts"] if d["code"] == "tokens-held-back"), "")


def test_each_ending_of_the_engine_is_told_by_its_sign(engine: Server, tmp_path: Path) -> None:
    """Without the engine's word, by the stream alone; and with nothing held back there is no such doubt."""
    wanted = {"blocks": "blocks of 4096", "cork": "each 200 ms", "stored": "Content-Length", "no_done": ""}
    text = PROFILE.format(url=engine.url, data=SAMPLES / "sharegpt.json", metrics="")
    found = runs({kind: f"{text}engine: {{headers: {{x-sim-fault: {kind}}}}}\n" for kind in wanted}, tmp_path)
    for kind, words in wanted.items():
        assert words in sentence(found[kind]), found[kind].out
        assert bool(words) == bool(sentence(found[kind])), found[kind].out
    assert found["cork"].manifest["engine"]["probes"][0]["marks"] == {"server": "tokenswarm-simulate"}


@pytest.mark.parametrize(
    ("name", "mend"),
    [("nginx", "proxy_buffering off"), ("haproxy", "http-no-delay"), ("lighttpd", "stream-response-body = 1")],
)
def test_a_proxy_as_it_comes_is_named_and_mended_it_is_not(
    engine: Server, tmp_path: Path, name: str, mend: str
) -> None:
    """Each before an engine of its own: the engine's word is of all its requests."""
    with (
        proxy(name, tmp_path / "default", engine.url.removeprefix("http://")) as url,
        simulator("--preset", "paced") as other,
        proxy(name, tmp_path / "mended", other.url.removeprefix("http://"), mended=True) as mended,
    ):
        urls = {"as-it-comes": url, "is-mended": mended}
        data = SAMPLES / "sharegpt.json"
        found = runs({k: PROFILE.format(url=u, data=data, metrics="auto") for k, u in urls.items()}, tmp_path)
    assert "The engine says TTFT" in sentence(found["as-it-comes"]), found["as-it-comes"].out
    assert mend in sentence(found["as-it-comes"])
    assert sentence(found["is-mended"]) == ""


PATH_DOUBTS = {
    "tokens-held-back", "half-answers", "path-timeout", "router-retries", "requests-elsewhere", "requests-lost",
    "foreign-load", "server-tokens-disagree", "engine-telemetry-gaps",
}  # fmt: skip


def path_doubts(run: Finished) -> set[str]:
    return {d["code"] for d in run.summary["verdict"]["doubts"]} & PATH_DOUBTS


def test_proxies_that_pass_tokens_on_have_no_doubt_and_a_cache_has_its_own(tmp_path: Path) -> None:
    """Those of Debian for which no mend is due, and Varnish, which keeps /metrics, with its mend: side by side."""
    data = SAMPLES / "sharegpt.json"
    with ExitStack() as stack:

        def behind(name: str, folder: str, more: str = "") -> tuple[str, Server]:
            server = stack.enter_context(simulator("--preset", "paced"))
            upstream = server.url.removeprefix("http://")
            return stack.enter_context(proxy(name, tmp_path / folder, upstream, more=more)), server

        cases = {}
        gzip = {"varnish": "sub vcl_backend_response { set beresp.do_gzip = true; }"}
        for name in ("caddy", "apache2", "squid", "varnish"):
            url, _ = behind(name, f"{name}-conf", gzip.get(name, ""))
            cases[name] = PROFILE.format(url=url, data=data, metrics="auto")
        url, server = behind("varnish", "mended-conf")
        cases["mended"] = PROFILE.format(url=url, data=data, metrics=f"{server.url}/metrics")
        found = runs(cases, tmp_path)
    wanted = {"varnish": {"engine-telemetry-gaps", "tokens-held-back"}}
    assert {name: path_doubts(run) for name, run in found.items()} == {name: wanted.get(name, set()) for name in cases}
    (gaps,) = (d for d in found["varnish"].summary["verdict"]["doubts"] if d["code"] == "engine-telemetry-gaps")
    assert "A cache on the path answers at http://127.0.0.1:" in gaps["message"]
    assert "no `beresp.do_gzip`" in sentence(found["varnish"])
    assert found["caddy"].manifest["engine"]["probes"][0]["marks"]["server"] == "Caddy, tokenswarm-simulate"


def test_what_one_answer_says_of_the_path_stands_in_no_other() -> None:
    """A mark that many answers have is kept once."""
    told = []
    for second in (b"via: 1.1 one\r\n", b"", b"Server: uvicorn\r\n"):
        response = Response()
        response.feed(b"HTTP/1.1 200 OK\r\nServer: Caddy\r\n" + second + b"date: today\r\n\r\n", 1, 0)
        told.append(response.marks)
    assert told == [{"server": "Caddy", "via": "1.1 one"}, {"server": "Caddy"}, {"server": "Caddy, uvicorn"}]
