"""The hot path replayed from memory, for counting instructions: they do not depend on what else the machine does.

`python -m bench.replay READER WIRE ANSWERS` reads so many answers of 128 tokens, an event a read, as a worker does:
receive, decode, mark, count, a row, and says how much CPU that took, s. WIRE is a key of WIRES. `--signs`: only what is
done with an answer for rules alone, so many times. Under callgrind it switches counting on around that: see `counted`.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gevent

from bench.sender import BenchError
from tokenswarm.client.decoding import Decoder
from tokenswarm.client.exchange import Exchange
from tokenswarm.client.native import open_native
from tokenswarm.client.pool import Pool
from tokenswarm.client.response import NO_MARKS, Response
from tokenswarm.client.sending import Client
from tokenswarm.client.transport import Connection, make_target
from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.engines.dialects import DIALECTS
from tokenswarm.measure import recorder as counting
from tokenswarm.measure.recorder import Recorder
from tokenswarm.measure.timeline import Timeline
from tokenswarm.profile.phases import Timeouts
from tokenswarm.profile.target import Tls
from tokenswarm.reports.jsonl import row

REPO = Path(__file__).resolve().parent.parent
TOKENS = 128
WARM = 2  # answers that are not counted
SWEEP_READS = {True: 36, False: 12}  # at 50 tokens/s, between two sweeps that decode a stream; of stamps: the third
HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 29 Nov 2026 05:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
)
EVENT = (
    'data: {"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1764300000,"model":"bench",'
    '"choices":[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n'
)
USAGE = (
    'data: {"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1764300000,"model":"bench","choices":[],'
    '"usage":{"prompt_tokens":16,"total_tokens":144,"completion_tokens":128}}\n\n'
)
LINE = '{"model":"bench","created_at":"2026-11-28T16:36:%02d.%09dZ",%s,"done":%s}\n'
LAST = (
    'true,"done_reason":"length","total_duration":2613824000,"load_duration":5061521,"prompt_eval_count":16,'
    '"prompt_eval_duration":5803000,"eval_count":128,"eval_duration":2601699900'
)


def vllm_chat(number: int) -> list[str]:
    """The events of one answer, as vLLM sends them."""
    events = [EVENT % (number, '"role":"assistant","content":""', "null")]
    events += [EVENT % (number, f'"content":" word{n}"', "null") for n in range(TOKENS)]
    return [*events, EVENT % (number, "", '"length"'), USAGE % number, "data: [DONE]\n\n"]


def ollama(number: int, words: str) -> list[str]:
    """The lines of one answer, as Ollama sends them: each has a moment of its own."""
    said = [(words % f" word{n}", "false") for n in range(TOKENS)] + [(words % "", LAST)]
    return [LINE % (number % 60, 7_654_321 * n, text, done) for n, (text, done) in enumerate(said)]


WIRES: dict[str, tuple[tuple[str, str], bytes, Callable[[int], list[str]]]] = {
    "vllm": (("openai", "chat"), b"text/event-stream; charset=utf-8", vllm_chat),
    "ollama chat": (
        ("ollama", "chat"),
        b"application/x-ndjson",
        partial(ollama, words='"message":{"role":"assistant","content":"%s"}'),
    ),
    "ollama generate": (("ollama", "generate"), b"application/x-ndjson", partial(ollama, words='"response":"%s"')),
}


def answer(wire: str, number: int) -> list[bytes]:
    """The reads of one answer: an event is a chunk."""
    _, content_type, events = WIRES[wire]
    chunks = (b"%x\r\n%s\r\n" % (len(event), event.encode()) for event in events(number))
    return [HEAD % content_type, *chunks, b"0\r\n\r\n"]


class Replay:
    """One reader, and a worker's counting behind it."""

    def __init__(self, reader: str, wire: str) -> None:
        self.recorder = Recorder("bench", 0, start_ns=monotonic_ns())
        self.recorder.open_window(0, monotonic_ns())
        self.decoder = Decoder(lambda: None, open_native(self.recorder.instrument, lambda: None, reader))
        pool = Pool(make_target("http://127.0.0.1:1", Tls()), 5.0, fresh=False)
        self.client = Client(
            DIALECTS[WIRES[wire][0]],
            pool,
            self.decoder,
            self.recorder,
            timeouts=Timeouts(),
            headers={},
            event_bytes_max=1 << 20,
            keep_text=False,
            on_record=lambda _: None,
        )

    def once(self, reads: list[bytes]) -> None:
        """One answer; each message of the pair is one read."""
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for data in reads:
            peer.send(data)
        connection = Connection(gevent.socket.socket(fileno=ours.detach()), None, (None, None), 0)
        timeline = Timeline(tokens_max=TOKENS, ignore_eos=True)
        exchange = Exchange(self.client, connection, timeline)
        timeline.sent_ns = timeline.intended_ns = exchange.response.last_read_ns = monotonic_ns()
        ended: list[bool] = []
        due: list[bool] = []
        exchange.reading.start(lambda: ended.append(True), lambda: due.append(True))
        read = self.decoder.native.poll if self.decoder.native else connection._on_readable
        for number in range(1, len(reads) + 1):
            read()
            if due or number % SWEEP_READS[exchange.reading.splitting] == 0:
                due.clear()
                exchange.decode(32)
        assert ended
        while not exchange.decode(32):
            pass
        exchange.reading.stop()
        outcome, _, _ = exchange.conclude()
        response = exchange.response
        timeline.done_ns = response.last_read_ns
        timeline.announced, timeline.retries = response.announced, response.retries
        record = timeline.finish(outcome, id="0-0", stage=0, phase="steady", conversation="0", turn=0)
        assert record.ok, record
        assert record.events == TOKENS
        self.recorder.add(record)
        row(record, 0, self.recorder.start_ns, save_text=False)
        connection.close()
        peer.close()
        self.record = record

    def signs(self, times: int) -> None:
        """What a worker does with an answer for rules alone, so many times."""
        recorder, record, response = self.recorder, self.record, Response()
        block = recorder._block(record.stage, record.phase)
        for _ in range(times):
            response.marks = NO_MARKS
            response._mark(b"server", b"uvicorn")
            assert not response.announced
            assert not response.retries
            block.periods.add((record.done_ns - recorder.start_ns) // NS_PER_S, failed=False)
            recorder._loads.count(block, record)
            block.held.add(record)
            counting._hold_against_asked(block, record)


def main() -> None:
    reader, wire, answers, *flags = sys.argv[1:]
    replay = Replay(reader, wire)
    scripts = [answer(wire, number) for number in range(WARM if "--signs" in flags else int(answers) + WARM)]
    for script in scripts[:WARM]:
        replay.once(script)
    under = os.environ.get("BENCH_CALLGRIND")
    if under:
        subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], check=True, capture_output=True)
    began_s = time.process_time()
    if "--signs" in flags:
        replay.signs(int(answers))
    for script in scripts[WARM:]:
        replay.once(script)
    took_s = time.process_time() - began_s
    if under:
        subprocess.run(["callgrind_control", "-i", "off", str(os.getpid())], check=True, capture_output=True)
    print(took_s)


def instructions(reader: str, wire: str = "vllm") -> float:
    """Instructions an event, in user space: what more answers take, so that starting the count costs nothing."""
    few, many = 20, 60
    return (counted(reader, wire, many) - counted(reader, wire, few)) / (many - few) / TOKENS


def signs_instructions(reader: str, wire: str = "vllm") -> float:
    """The same of what a worker does for rules alone. Counted by itself: two counts of answers differ by more."""
    few, many = 200, 1200
    return (counted(reader, wire, many, "--signs") - counted(reader, wire, few, "--signs")) / (many - few) / TOKENS


def cpu_shares(reader: str, answers: int, pairs: int, wire: str = "vllm") -> list[float]:
    """CPU of what is done for rules alone, of that of so many answers: pairs of runs in turn."""
    found = []
    for _ in range(pairs):
        whole, alone = (
            float(subprocess.run(
                [sys.executable, "-m", "bench.replay", reader, wire, str(times * answers), *flags],
                check=True, capture_output=True, text=True, cwd=REPO,
            ).stdout) / times
            for times, flags in ((1, ()), (50, ("--signs",)))
        )  # fmt: skip
        found.append(alone / whole)
    return sorted(found)


def counted(reader: str, wire: str, answers: int, *flags: str) -> int:
    """Instructions of so many answers. Raises BenchError."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        command += [sys.executable, "-m", "bench.replay", reader, wire, str(answers), *flags]
        environ = {**os.environ, "BENCH_CALLGRIND": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, env=environ, timeout=600)
        if done.returncode:
            raise BenchError(f"bench.replay failed under valgrind:\n{done.stderr[-2000:]}")
        totals = re.findall(r"^(?:totals|summary): (\d+)", out.read_text(encoding="utf-8"), re.MULTILINE)
    return int(totals[-1])


if __name__ == "__main__":
    main()
