"""What engines and GPUs told, apart from the rest of a summary: kept while a run goes on, and read before its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.errors import MALFORMED
from tokenswarm.reports.folder import TOLD_NAME
from tokenswarm.result.summary import Stage, Summary


class Told(msgspec.Struct, frozen=True):
    """As in summary.json: `server.metrics` and `gpu`, of the run and by the number of each stage."""

    server: Any = None
    gpu: dict[str, Any] = {}
    stages: dict[int, Told] = {}


def encode(summary: Summary) -> bytes:
    """What was told so far."""
    stages = {stage.stage: Told(stage.server.get("metrics"), stage.gpu) for stage in summary.stages}
    return msgspec.json.encode(Told(summary.server.get("metrics"), summary.gpu, stages))


def put_back(summary: Summary, spool: Path) -> None:
    """Give a summary of the sums alone what was told, as far as it can be read."""
    try:
        found = msgspec.json.decode((spool / TOLD_NAME).read_bytes(), type=Told)
    except (OSError, *MALFORMED):
        return
    _put(summary, found)
    for stage in summary.stages:
        _put(stage, found.stages.get(stage.stage, Told()))


def _put(part: Summary | Stage, told: Told) -> None:
    if told.server is not None:
        part.server["metrics"] = told.server
    part.gpu.update(told.gpu)
