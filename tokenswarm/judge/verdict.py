"""May this run be believed? A table of rules, each from what is known to one Doubt or None; the status is the worst.

A `note` doubts nothing, `degraded` some numbers, `invalid` all of them. Rules only look for faults, so that adding a
fault never improves a verdict. Thresholds, and what to do about each code: docs/verdict.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenswarm.errors import ExitCode
from tokenswarm.judge.rules import (
    accounting,
    answers,
    arrivals,
    bars,
    contamination,
    instrument,
    load,
    ollama,
    path,
    sample,
    server,
    soak,
    telemetry,
)
from tokenswarm.judge.rules.evidence import SEVERITIES, Evidence, Rule
from tokenswarm.result.summary import Doubt, Gate, Summary, Verdict

__all__ = ["RULES", "Evidence", "exit_code", "judge"]

RULES: tuple[Rule, ...] = (
    *accounting.RULES, *load.RULES, *arrivals.RULES, *answers.RULES, *server.RULES, *ollama.RULES, *path.RULES,
    *bars.RULES, *instrument.RULES, *sample.RULES, *soak.RULES, *telemetry.RULES, *contamination.RULES,
)  # fmt: skip

MEANT_BY_SMOKE = frozenset({"short-run", "dataset-wrapped", "few-samples"})
"""What follows from being short, and is a note where the profile says `purpose: smoke`."""


def judge(evidence: Evidence, summary: Summary) -> Verdict:
    """Ask every rule; the worst doubts first. `summary` needs neither its verdict nor its gates yet."""
    doubts = [_as_meant(doubt, evidence) for rule in RULES if (doubt := rule(evidence, summary)) is not None]
    doubts.sort(key=lambda doubt: -SEVERITIES.index(doubt.severity))
    worst = doubts[0].severity if doubts else "note"
    return Verdict(
        status="INVALID" if worst == "invalid" else "DEGRADED" if worst == "degraded" else "VALID", doubts=doubts
    )


def _as_meant(doubt: Doubt, evidence: Evidence) -> Doubt:
    """A smoke test that was meant as one is no worse for being short; it still says what it can't be used for."""
    if evidence.profile.purpose != "smoke" or doubt.code not in MEANT_BY_SMOKE or doubt.severity == "invalid":
        return doubt
    return msgspec.structs.replace(
        doubt, severity="note", message=f"As a smoke test, which it was meant to be: {doubt.message}"
    )


def exit_code(verdict: Verdict, gates: Sequence[Gate], interrupted: bool) -> ExitCode:
    """13 beats 11 beats 10 beats 12 beats 0: who stopped it, may it be believed, did it fail, is it undecided.

    A run that was not judged counts as INVALID. DEGRADED alone is 0: the numbers stand, with reservations.
    """
    results = {gate.result for gate in gates}
    if interrupted:
        return ExitCode.INTERRUPTED
    if verdict.status in (None, "INVALID"):
        return ExitCode.INVALID
    if "fail" in results:
        return ExitCode.GATE_FAILED
    return ExitCode.INCONCLUSIVE if "inconclusive" in results else ExitCode.OK
