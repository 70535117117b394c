"""The same page as delimited protobuf (io.prometheus.client.MetricFamily): the only way to native histograms.

Written by hand: a dozen fields of metrics.proto do not justify a dependency. Histograms carry both their native buckets
(of the schema of the densest classic ones) and the classic ones, so that a scraper may keep either. Values are those of
the text page.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from exporters.load.render import LABEL_NAMES, le
from exporters.load.runs import Labels, Run
from exporters.load.table import CONSTANT_LABELS, FAMILIES, HISTOGRAM_HELP, SUMMARIES, Histogram
from tokenswarm.measure.sketch import Sketch

CONTENT_TYPE = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

_MEDIA = "application/vnd.google.protobuf"
_TYPES = {"counter": 0, "gauge": 1, "summary": 2, "histogram": 4}
_VALUE_FIELDS = {"counter": 3, "gauge": 2}
ZERO_THRESHOLD = 2.0**-128
"""Prometheus' default: values up to it count as zero."""

_double = struct.Struct("<d").pack


def wanted(accept: str) -> bool:
    """Does an Accept header prefer this format to text? (Prometheus does with native histograms switched on.)"""
    proto = text = 0.0
    for item in accept.split(","):
        media, *parameters = (part.strip() for part in item.lower().split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if media == _MEDIA and "encoding=delimited" in parameters:
            proto = max(proto, quality)
        elif media in ("text/plain", "text/*", "*/*"):
            text = max(text, quality)
    return proto > text


def varint(number: int) -> bytes:
    """Base 128, least significant group first; `number` >= 0."""
    if number < 128:
        return bytes((number,))
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _bytes(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def _number(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def _float(field: int, number: float) -> bytes:
    return varint(field << 3 | 1) + _double(number)


@lru_cache(maxsize=100_000)
def _labels(pairs: tuple[tuple[str, str], ...]) -> bytes:
    return b"".join(_bytes(1, _bytes(1, name.encode()) + _bytes(2, value.encode())) for name, value in pairs)


@lru_cache(maxsize=10_000)
def _bound(key: int, schema: int) -> bytes:
    return _float(2, float(le(key, schema)))


def histogram_message(histogram: Histogram, sketch: Sketch) -> bytes:
    """The Histogram message: classic and native buckets of one sketch."""
    keys = histogram.keys
    classic = zip(keys, histogram.cumulative(sketch), strict=True)
    parts = [_number(1, sketch.n), _float(2, sketch.sum)]
    parts += [_bytes(3, _number(1, count) + _bound(key, histogram.schema)) for key, count in classic]
    parts += [_number(5, _zigzag(histogram.schema)), _float(6, ZERO_THRESHOLD), _number(7, sketch.zero)]
    parts += _spans(sketch.fold(histogram.schema))
    return b"".join(parts)


def _spans(counts: Mapping[int, int]) -> list[bytes]:
    """Runs of neighbouring buckets, then the counts, each as its difference from the one before."""
    spans: list[list[int]] = []
    deltas, before, expected = bytearray(), 0, 0
    for key, count in counts.items():
        if spans and key == expected:
            spans[-1][1] += 1
        else:
            spans.append([key - expected, 1])
        deltas += varint(_zigzag(count - before))
        before, expected = count, key + 1
    if not spans:
        # Without a span the histogram would pass for a classic one: the specification asks for an empty one.
        return [_bytes(12, _number(1, 0) + _number(2, 0))]
    return [
        *(_bytes(12, _number(1, _zigzag(offset)) + _number(2, length)) for offset, length in spans),
        _bytes(13, bytes(deltas)),
    ]


def family(name: str, text: str, kind: str, metrics: Iterable[bytes]) -> bytes:
    """One delimited MetricFamily; b"" where it has no metrics."""
    body = b"".join(_bytes(4, metric) for metric in metrics)
    if not body:
        return b""
    body = _bytes(1, name.encode()) + _bytes(2, text.encode()) + _number(3, _TYPES[kind]) + body
    return varint(len(body)) + body


def sample(kind: str, labels: tuple[tuple[str, str], ...], value: float) -> bytes:
    """One Metric of a counter or gauge."""
    return _labels(labels) + _bytes(_VALUE_FIELDS[kind], _float(1, float(value)))


def _summaries(name: str, values: Mapping[str, list[tuple[Labels, float]]]) -> Iterator[tuple[Labels, bytes]]:
    """Labels and Summary of each row of a summary's count."""
    quantiles: dict[Labels, bytes] = {}
    for labels, value in values.get(name, ()):
        one = _bytes(3, _float(1, float(labels[-1])) + _float(2, value))
        quantiles[labels[:-1]] = quantiles.get(labels[:-1], b"") + one
    sums = dict(values.get(f"{name}_sum", ()))
    for labels, count in values.get(f"{name}_count", ()):
        yield labels, _number(1, int(count)) + _float(2, sums[labels]) + quantiles.get(labels, b"")


def page(runs: Mapping[str, Run], now_ns: int) -> bytes:
    """All families of all runs."""
    current = [
        (run, tuple(zip(CONSTANT_LABELS, run.labels, strict=True)), run.current(now_ns)) for run in runs.values()
    ]
    parts = []
    for name, declared in FAMILIES.items():
        metrics = [
            sample(declared.kind, (*constant, *zip(LABEL_NAMES[name], labels, strict=True)), value)
            for _, constant, values in current
            for labels, value in values.get(name, ())
        ]
        parts.append(family(name, declared.help, declared.kind, metrics))
    for name, (text, own) in SUMMARIES.items():
        metrics = [
            _labels((*constant, *zip(own, labels, strict=True))) + _bytes(4, summary)
            for _, constant, values in current
            for labels, summary in _summaries(name, values)
        ]
        parts.append(family(name, text, "summary", metrics))
    for name, text in HISTOGRAM_HELP.items():
        metrics = [
            _labels((*constant, *histogram.labels)) + _bytes(7, histogram_message(histogram, sketch))
            for run, constant, _ in current
            for owner, histogram, sketch in run.readings.histograms
            if owner == name
        ]
        parts.append(family(name, text, "histogram", metrics))
    return b"".join(parts)
