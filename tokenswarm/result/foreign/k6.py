"""k6's `--summary-export`, or the data of `handleSummary` as JSON: HTTP only, it knows no tokens. Milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenswarm.result.foreign.found import Format, Found, at, number

WHICH = {"p50": "med", "p95": "p(95)", "p99": "p(99)"}


def _metric(part: Mapping[str, Any], name: str) -> Any:
    found = at(part, "metrics", name)
    return at(found, "values") if isinstance(at(found, "values"), Mapping) else found


def _read(part: Mapping[str, Any], _: Mapping[str, Any]) -> Found:
    spread = _metric(part, "http_req_duration")
    values = {f"e2e_s.{ours}": number(at(spread, theirs), 1e-3) for ours, theirs in WHICH.items()}
    values["requests_per_s"] = number(at(_metric(part, "http_reqs"), "rate"))
    failed = _metric(part, "http_req_failed")
    share = number(at(failed, "rate")) if at(failed, "rate") is not None else number(at(failed, "value"))
    count = number(at(_metric(part, "http_reqs"), "count"))
    load = {"vus_max": at(_metric(part, "vus_max"), "value")} if _metric(part, "vus_max") else {}
    failed = None if count is None or share is None else count * share
    return Found(values=values, completed=None if count is None else count - (failed or 0.0), failed=failed, load=load)


FORMAT = Format(
    tool="k6",
    matches=lambda whole: isinstance(at(whole, "metrics", "http_req_duration"), Mapping),
    parts=lambda whole: [whole],
    read=_read,
    ours={
        "e2e_s": (("latency", "e2e_s"), 1.0),
        "requests_per_s": (("throughput", "requests_per_s"), 1.0),
    },
    apart="http_req_duration holds failed requests, too, and every other request of the script; http_req_waiting ends "
    "with the first byte of the head and is no TTFT, so it is not held against one",
)
