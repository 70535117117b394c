#!/usr/bin/env bash
# One latency that is no number ends the mean of a histogram of Prometheus' Python client for good, and is not counted.
#
# prometheus_client 0.26.0, numpy 2.4.6, Python 3.11. The time per output token of three answers is observed, (end - first
# token) / (tokens - 1); one has a single token, so in numpy it is 0/0: a NaN, with a warning at most. A thousand more follow.
# A good guess is an error, or an observation in the last bucket, as +Inf takes all. Seen: neither. The count and all buckets
# leave it out, as NaN is below no bound, +Inf included; the sum is NaN from now on, until the process is started anew.
# Percentiles of it look right, so nobody looks; but each panel and alert on rate(x_sum) / rate(x_count), also for windows
# hours later, has no value any more, and a threshold on it never fires.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check prometheus_client==0.26.0 numpy==2.4.6
cat >"$work/try.py" <<'PY'
import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest

registry = CollectorRegistry()
tpot = Histogram("tpot_seconds", "Time per output token", registry=registry, buckets=[0.01, 0.1])
first, end, tokens = np.array([0.1, 0.1, 0.1]), np.array([1.1, 0.1, 2.1]), np.array([21, 1, 41])
with np.errstate(invalid="ignore"):
    for seconds in (end - first) / (tokens - 1):
        tpot.observe(seconds)
for _ in range(1000):
    tpot.observe(0.05)
page = generate_latest(registry).decode().splitlines()
print("\n".join(line for line in page if "#" not in line and "_created" not in line))
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected='tpot_seconds_bucket{le="0.01"} 0.0
tpot_seconds_bucket{le="0.1"} 1002.0
tpot_seconds_bucket{le="+Inf"} 1002.0
tpot_seconds_count 1002.0
tpot_seconds_sum NaN'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
