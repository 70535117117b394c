#!/usr/bin/env bash
# HdrHistogram for Python leaves out what is above its range, and raises nothing.
#
# hdrhistogram 0.10.8, Python 3.11. 95 latencies of 100 ms and 5 of 2 min go into a histogram of 1 ms to 1 min, and into one of
# 1 ms to 1 h that is then added to a fresh one of 1 min.
# A good guess is an exception, as in Java's HdrHistogram, or the upper bound. Seen: record_value and record_corrected_value give
# False back, which nobody looks at, and keep nothing: 95 values, no slower than 100 ms, p99 100 ms. add does raise.
# The range's end is in practice the time-out, and so a server gets better by each answer that passes it. The bound is none to
# rely on either: it is rounded up to a power of two, here 65.535 s.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check hdrhistogram==0.10.8
cat >"$work/try.py" <<'PY'
from hdrh.histogram import HdrHistogram

values = [100] * 95 + [120_000] * 5
for name in ("record_value", "record_corrected_value"):
    histogram = HdrHistogram(1, 60_000, 3)
    for value in values:
        getattr(histogram, name)(value, *([200] if "corrected" in name else []))
    print(f"{name}: {histogram.get_total_count()} values, p99 {histogram.get_value_at_percentile(99)},"
          f" largest {histogram.get_max_value()}")
wide = HdrHistogram(1, 3_600_000, 3)
for value in values:
    wide.record_value(value)
print("of an hour: p99", round(wide.get_value_at_percentile(99), -3), "of", wide.get_total_count())
try:
    HdrHistogram(1, 60_000, 3).add(wide)
except IndexError:
    print("add raises")
print("kept:", [ms for ms in (60_000, 60_001, 65_535, 65_536) if HdrHistogram(1, 60_000, 3).record_value(ms)])
PY
seen=$("$work/venv/bin/python" "$work/try.py")
expected="record_value: 95 values, p99 100, largest 100
record_corrected_value: 95 values, p99 100, largest 100
of an hour: p99 120000 of 100
add raises
kept: [60000, 60001, 65535]"
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { echo "this has changed; expected:"; printf '%s\n' "$expected"; exit 1; }
