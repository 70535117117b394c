#!/usr/bin/env bash
# TraceStorm replays a trace of 40 requests a second as 20, and the time that each waited for its turn is in no number.
#
# tracestorm 0.0.2 ("a replay tool for LLM requests") with openai 1.109.1, Python 3.11. 120 arrivals of its own trace at 40 a
# second to a server that takes any number at once and answers each after half a second; what it reports of each request is
# read from its queue, where its own report reads it.
# A good guess is a replay: 120 requests within 3 s, about 20 of them under way, each with a TTFT of 0.5 s, since the server is
# as fast for all. Seen: never more than 10 under way, since a player has ten senders that each wait for their answer; the last
# request leaves some 3 s late. Its TTFT is 0.5 s as well, from the send: nothing tells that half of the rate was sent.
# A tool that replays a trace by the clock has no such limit, or counts what was late or dropped.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==1.109.1
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps tracestorm==0.0.2
cat >"$work/try.py" <<'PY'
import json
import logging
import queue
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from tracestorm.request_generator import generate_request
from tracestorm.trace_generator import generate_trace
from tracestorm.trace_player import play

logging.disable(logging.INFO)
RATE, SECONDS, ANSWER_S = 40, 3, 0.5
EVENT = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
         "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}
BODY = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(EVENT).encode()
came, under_way, most, lock = [], 0, 0, threading.Lock()


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        global under_way, most
        with lock:
            came.append(time.monotonic())
            under_way += 1
            most = max(most, under_way)
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(ANSWER_S)
        with lock:
            under_way -= 1
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)


class Listening(ThreadingHTTPServer):
    request_queue_size = 200


server = Listening(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
trace = generate_trace(RATE, "uniform", SECONDS)
told = queue.Queue()
play("player", trace, generate_request("m", len(trace)), f"http://127.0.0.1:{server.server_port}/v1", "none", told)
results = [told.get() for _ in trace]
ttft = sorted(records[1] - records[0] for records in (result["time_records"] for _, _, result in results))
late = (came[-1] - came[0]) - (trace[-1] - trace[0]) / 1000
print(f"tracestorm {version('tracestorm')}: {len(trace)} arrivals within {trace[-1] / 1000:.2f} s; they came within "
      f"{came[-1] - came[0]:.2f} s, {most} under way at most; TTFT as told: {ttft[0]:.2f} to {ttft[-1]:.2f} s, "
      f"the last request left {late:.2f} s late")
if not (most <= 10 and late > 2 and ttft[len(ttft) // 2] < late / 2 and not any(result["error"] for _, _, result in results)):
    sys.exit("the behaviour is another one now")
PY
"$work/venv/bin/python" "$work/try.py"
