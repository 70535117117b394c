#!/usr/bin/env bash
# Locust's OpenTelemetry histogram of latencies puts all that is faster than five seconds into one bucket.
#
# locust 2.47.0 with its extra otel, opentelemetry-sdk 1.45.1, Python 3.11. Requests of 0.1 s and of 4 s are told to Locust, and
# `--otel` writes its metrics to the console.
# A good guess is buckets for a web request, some milliseconds to ten seconds. Seen: 0, 5, 10, 25 and so on to 10000: the metric
# is in seconds, and the SDK's bounds, which Locust leaves as they are, are made for milliseconds. Both fall into one bucket.
# histogram_quantile draws a straight line through it: p50 2.5 s and p99 4.95 s for every server that answers within 5 s, at
# every load. Only the mean, the sum over the count, says anything.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'locust[otel]==2.47.0' opentelemetry-sdk==1.45.1
cat >"$work/locustfile.py" <<'PY'
import gevent
from locust import User, task


class Chat(User):
    @task
    def ask(self):
        gevent.sleep(0.1)
        for name, seconds in {"fast": 0.1, "slow": 4}.items():
            self.environment.events.request.fire(request_type="POST", name=name, response_time=1000 * seconds,
                                                 response_length=1, exception=None, context={})
PY
cat >"$work/read.py" <<'PY'
import json
import sys

text, points, decoder = sys.stdin.read(), {}, json.JSONDecoder()
while (start := text.find('{\n    "resource_metrics"')) >= 0:
    page, end = decoder.raw_decode(text[start:])
    text = text[start + end:]
    for resource in page["resource_metrics"]:
        for metric in (m for scope in resource["scope_metrics"] for m in scope["metrics"]):
            if metric["name"] == "locust.client.duration":
                points.update({p["attributes"]["name"]: p for p in metric["data"]["data_points"]})
                print(f"unit {metric['unit']}") if len(points) == 2 else None
for name, point in sorted(points.items()):
    bounds = ["-inf", *point["explicit_bounds"], "inf"]
    where = [f"{bounds[i]} to {bounds[i + 1]}" for i, n in enumerate(point["bucket_counts"]) if n]
    print(f"{name}, mean {point['sum'] / point['count']:.1f}: {where}")
PY
cd "$work"
OTEL_METRICS_EXPORTER=console OTEL_TRACES_EXPORTER=none OTEL_LOGS_EXPORTER=none \
  venv/bin/locust --headless --users 1 --run-time 2s --otel >told 2>log
seen=$(venv/bin/python read.py <told | sort -u)
expected="fast, mean 0.1: ['0.0 to 5.0']
slow, mean 4.0: ['0.0 to 5.0']
unit s"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
