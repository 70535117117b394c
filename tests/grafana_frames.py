"""What Grafana does between a panel's JSON and the picture, as far as our dashboards need it.

Variables are substituted, targets asked of a Prometheus, answers made into frames, transformations applied. As
@grafana/data 12.4 and 13.2 do: table frames name the value `Value #REF` where a panel has several targets, and a label
that a series lacks is empty; joinByField sorts keys that are numbers, and an absent series is an absent column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_server import Prometheus

FOLDER = Path(__file__).resolve().parent.parent / "grafana" / "dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}

Frame = dict[str, list[Any]]
"""Columns by display name, all of one length; None where there is nothing."""


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels but rows; those in collapsed rows, too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or []
        else:
            yield panel


def all_targets() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(dashboard, panel, target)"""
    return [
        (name, panel, target)
        for name, dashboard in DASHBOARDS.items()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def substitute(text: str, variables: dict[str, str]) -> str:
    """As Grafana does; a variable that nobody defined is a failure."""

    def one(match: re.Match[str]) -> str:
        return variables[match.group(1) or match.group(2)]

    return re.sub(r"\$\{(\w+)\}|\$(\w+)", one, text)


def value(text: str) -> float:
    return float(text)


def table_frame(prometheus: Prometheus, expr: str, at: float, name: str) -> Frame:
    """An instant query in the format `table`."""
    found = prometheus.api("query", query=expr, time=str(at))["result"]
    labels = sorted({label for one in found for label in one["metric"]})
    if not found:
        return {}
    frame: Frame = {"Time": [float(one["value"][0]) for one in found]}
    frame |= {label: [one["metric"].get(label, "") for one in found] for label in labels}
    return {**frame, name: [value(one["value"][1]) for one in found]}


def time_frames(prometheus: Prometheus, target: dict[str, Any], expr: str, start: float, end: float) -> list[Frame]:
    """A range query in the format `time_series`: a frame a series, its value named by the legend."""
    found = prometheus.api("query_range", query=expr, start=str(start), end=str(end), step="1")["result"]
    frames = []
    for one in found:
        legend = re.sub(
            r"\{\{(\w+)\}\}", lambda m, labels=one["metric"]: labels.get(m.group(1), ""), target["legendFormat"]
        )
        frames.append({"Time": [p[0] for p in one["values"]], legend: [value(p[1]) for p in one["values"]]})
    return frames


def join(frames: list[Frame], by: str) -> Frame:
    """The transformation joinByField, outer. Columns that several frames have get numbers, from 1."""
    with_key = [frame for frame in frames if by in frame]
    keys = list(dict.fromkeys(key for frame in with_key for key in frame[by]))
    if all(_is_number(key) for key in keys):  # sorted by their difference, which text has none
        keys.sort(key=float)
    names = [name for frame in with_key for name in frame if name != by]
    out: Frame = {by: keys} if with_key else {}
    taken: dict[str, int] = {}
    for frame in with_key:
        index = {key: row for row, key in enumerate(frame[by])}
        for name, column in frame.items():
            if name != by:
                taken[name] = taken.get(name, 0) + 1
                shown = f"{name} {taken[name]}" if names.count(name) > 1 else name
                out[shown] = [column[index[key]] if key in index else None for key in keys]
    return out


def _is_number(key: Any) -> bool:
    try:
        return math.isfinite(float(key))
    except ValueError:
        return False


def transform(frames: list[Frame], steps: list[dict[str, Any]]) -> Frame:
    """All transformations of a panel; the one frame that is left."""
    for step in steps:
        options = step["options"]
        if step["id"] == "joinByField":
            assert options["mode"] == "outer"
            frames = [join(frames, options["byField"])]
            continue
        assert len(frames) == 1, f"{step['id']} of {len(frames)} frames"
        (frame,) = frames
        if step["id"] == "sortBy":
            frame = sort(frame, options["sort"][0]["field"])
        elif step["id"] == "convertFieldType":
            for change in options["conversions"]:
                assert change["destinationType"] == "number"
                frame = {**frame, change["targetField"]: [float(x) for x in frame.get(change["targetField"], [])]}
        elif step["id"] == "filterFieldsByName":
            frame = {name: column for name, column in frame.items() if name in options["include"]["names"]}
        elif step["id"] == "organize":
            order = sorted(frame, key=lambda name: options["indexByName"].get(name, 99))
            frame = {options["renameByName"].get(name, name): frame[name] for name in order}
        else:
            raise AssertionError(f"no such transformation here: {step['id']}")
        frames = [frame]
    return frames[0] if frames else {}


def sort(frame: Frame, by: str) -> Frame:
    if by not in frame:
        return frame
    order = sorted(range(len(frame[by])), key=lambda row: (frame[by][row] is None, frame[by][row] or 0))
    return {name: [column[row] for row in order] for name, column in frame.items()}


def frames_of(
    prometheus: Prometheus, panel: dict[str, Any], variables: dict[str, str], start: float, end: float
) -> Frame:
    """The frame that a table or XY chart draws at `end`."""
    several = len(panel["targets"]) > 1
    frames: list[Frame] = []
    for target in panel["targets"]:
        expr = substitute(target["expr"], variables)
        if target.get("instant"):
            name = f"Value #{target['refId']}" if several else "Value"
            frames.append(table_frame(prometheus, expr, end, name))
        else:
            frames += time_frames(prometheus, target, expr, start, end)
    return transform(frames, panel.get("transformations", []))


def drawn(panel: dict[str, Any], frame: Frame) -> dict[str, list[tuple[float, float]]]:
    """The points of each series of an XY chart."""
    series = {}
    for one in panel["options"]["series"]:
        assert one["frame"]["matcher"] == {"id": "byIndex", "options": 0}
        x, y = (frame.get(one[axis]["matcher"]["options"], []) for axis in "xy")
        assert {one[axis]["matcher"]["id"] for axis in "xy"} == {"byName"}
        points = [(a, b) for a, b in zip(x, y, strict=False) if a is not None and b is not None]
        series[one["name"]["fixed"]] = [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]
    return series
