"""The summary of a run that has none: it goes on, or its master died. Of sums and a manifest that lie on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.errors import MALFORMED, ConfigError
from tokenswarm.judge import gates, verdict
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.measure.snapshot import Merged
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.profile import Profile
from tokenswarm.reports import told
from tokenswarm.reports.windows import read_soak
from tokenswarm.result.summary import Summary, changing, plan_of, summarize


def profile_of(home: Path, manifest: dict[str, Any]) -> Profile:
    """What the run was asked for. Raises ConfigError."""
    try:
        return profiles.decode(msgspec.json.encode(manifest["profile"]))
    except (*MALFORMED, KeyError) as error:
        raise ConfigError(f"{home / 'manifest.json'}: its profile can't be read: {error}") from None


def summary_of(home: Path, merged: Merged, profile: Profile) -> Summary:
    """The stages that began, marked partial; not judged yet."""
    last = max((block.stage for block in merged.blocks), default=-1)
    plan = [plan_of(number, stage) for number, stage in enumerate(profile.load.stages) if number <= last]
    summary = summarize(merged, plan=plan, partial=True, bars=profile.bars)
    summary.soak = read_soak(home, profile.soak.window_s, changing(summary))
    return summary


def judge(home: Path, summary: Summary, evidence: Evidence) -> Summary:
    """The same with its gates and verdict, and with what engines and GPUs told until some seconds before.

    That comes last: counters of an engine that goes on are of another moment than the sums, and convict nobody.
    """
    profile = evidence.profile
    summary.gates = gates.evaluate(profile.slo, summary, evidence.merged, profile.bars)
    summary.verdict = verdict.judge(evidence, summary)
    told.put_back(summary, home / ".spool")
    return summary
