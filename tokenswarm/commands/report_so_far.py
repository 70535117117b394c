"""`tokenswarm report RESULTS` of a run that goes on: its newest sums and windows, as a partial summary. Writes nothing.

The master keeps its sums in the spool, some seconds old at most, so that it does not matter where the workers are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenswarm.clock import NS_PER_S, realtime_ns
from tokenswarm.commands import unended
from tokenswarm.errors import ConfigError
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import Merged, SnapshotError
from tokenswarm.profile.profile import Profile
from tokenswarm.reports import manifest as manifests
from tokenswarm.reports.folder import LIVE_NAME
from tokenswarm.reports.saved import read_manifest
from tokenswarm.result.summary import Summary

STALE_S = 60.0  # sums that are older are those of a master that died


def goes_on(home: Path) -> bool:
    """Whether this is a run that has not ended: sums of its master, and no summary."""
    return home.is_dir() and not (home / "summary.json").exists() and _live(home).exists()


def _live(home: Path) -> Path:
    return home / ".spool" / LIVE_NAME


def partial(home: Path) -> Summary:
    """The summary so far. Raises ConfigError."""
    path = _live(home)
    try:
        merged, age_s = snapshot.decode_merged(path.read_bytes()), realtime_ns() / NS_PER_S - path.stat().st_mtime
    except SnapshotError as error:
        raise ConfigError(f"{path}: {error}; wait for the run's end") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}; the run may just have ended: ask again") from None
    if age_s > STALE_S:
        raise ConfigError(
            f"{path}: was written {age_s:.0f} s ago, so the run's master is dead or stands still: "
            f"`tokenswarm report --merge {home}` makes a partial result of what is on disk"
        )
    manifest = read_manifest(home)
    return _summary(home, merged, unended.profile_of(home, manifest), manifest, age_s)


def _summary(home: Path, merged: Merged, profile: Profile, manifest: dict[str, Any], age_s: float) -> Summary:
    summary = unended.summary_of(home, merged, profile)
    evidence = Evidence(
        merged=merged,
        expected_workers=len(merged.workers),
        profile=profile,
        marks=manifests.marks(manifest),
        goes_on=f"These are its numbers {summary.duration_s:.0f} s after its start, written {max(0.0, age_s):.0f} s "
        "ago. What needs the order of requests, or engine and client at one moment, comes at the end.",
    )
    return unended.judge(home, summary, evidence)


def rows(home: Path) -> list[Path]:
    """Rows that workers of this machine have not handed over; parts that are on their way are left out."""
    return sorted(path for path in (home / ".spool").glob("worker-*.jsonl") if path.name.count(".") == 1)
