"""Rules about what was counted: each request accounted for, each worker there to the end, answers that are answers."""

from __future__ import annotations

from tokenswarm.judge.rules.evidence import Evidence, Rule, doubt, everything, steady
from tokenswarm.result.summary import Doubt, Requests, Summary

FAILED_SHARE_MAX = 0.5  # beyond this the latencies are those of the lucky few
TRUNCATED_SHARE_MAX = 0.01  # MLPerf's audit of token counts allows no more
RECONNECT_SHARE = 0.01


def accounting_mismatch(evidence: Evidence, summary: Summary) -> Doubt | None:
    """intended = sent + dropped; sent = ok + failed + cancelled + censored, which the outcomes add up to.

    Requests in flight on a worker that never sent its final report are not known to have ended.
    """
    counts = summary.requests
    ended = counts.ok + counts.failed + counts.cancelled + counts.censored
    due = counts.sent + counts.dropped
    named = sum(counts.by_outcome.values())
    exact = evidence.merged.final
    if named == ended and (due == counts.intended and ended == counts.sent if exact else ended <= counts.sent):
        return None
    return doubt(
        "accounting-mismatch",
        "invalid",
        f"Requests are unaccounted for: {counts.intended} intended, {counts.sent} sent + {counts.dropped} dropped, "
        f"{ended} ended ({named} by outcome). This is a bug or a lost report: keep the results and report it.",
        intended=counts.intended,
        sent=counts.sent,
        dropped=counts.dropped,
        ended=ended,
        by_outcome=named,
    )


def rows_mismatch(evidence: Evidence, summary: Summary) -> Doubt | None:
    counts = summary.requests
    ended = counts.ok + counts.failed + counts.cancelled + counts.censored
    if evidence.rows is None or not evidence.merged.final or evidence.rows == ended:
        return None
    return doubt(
        "rows-mismatch",
        "invalid",
        f"requests.jsonl has {evidence.rows} rows for {ended} requests that ended: do not compute anything from it; "
        f"look for a full disk or a broken network, then run again.",
        rows=evidence.rows,
        ended=ended,
    )


def worker_lost(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.lost:
        return None
    names = ", ".join(f"{name}: {reason}" for name, reason in evidence.lost.items())
    return doubt(
        "worker-lost",
        "invalid",
        f"{len(evidence.lost)} of {evidence.expected_workers} workers were lost ({names}), so less load than planned "
        f"was sent, or what came after its last report is missing: look at its log, memory and network, run again."
        f"{_master_stood_still(evidence)}",
        lost=dict(evidence.lost),
        expected=evidence.expected_workers,
    )


def _master_stood_still(evidence: Evidence) -> str:
    seconds = evidence.stood_still_s
    cause = f" The master itself stood still for {seconds:.3g} s, and heard nobody: was it stopped, or its machine?"
    return cause if seconds else ""


def worker_left(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.left:
        return None
    names = ", ".join(f"{name} {reason}" for name, reason in evidence.left.items())
    return doubt(
        "worker-left",
        "invalid",
        f"{len(evidence.left)} of {evidence.expected_workers} workers left before the run's end ({names}). Its "
        f"requests are all counted, but less load was sent than planned: let every worker live until the master ends, "
        f"and change no data set that is in use.",
        left=dict(evidence.left),
        expected=evidence.expected_workers,
    )


def never_ended(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.recovered:
        return None
    return doubt(
        "never-ended",
        "invalid",
        f"The master died before the run ended. {evidence.recovered} Run it again to compare it with others.",
    )


def goes_on(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.goes_on:
        return None
    return doubt("goes-on", "degraded", f"The run has not ended. {evidence.goes_on} Ask again once it is over.")


def worker_missing(evidence: Evidence, _summary: Summary) -> Doubt | None:
    here = len(evidence.merged.workers)
    if here + len(evidence.lost) >= evidence.expected_workers or evidence.recovered or evidence.goes_on:
        return None
    return doubt(
        "worker-missing",
        "invalid",
        f"Only {here} of {evidence.expected_workers} workers ever reported, so less load was sent than planned: "
        f"start them all before the run.",
        reported=here,
        expected=evidence.expected_workers,
    )


def final_report_missing(evidence: Evidence, _summary: Summary) -> Doubt | None:
    silent = [worker.worker for worker in evidence.merged.workers if not worker.final]
    if len(silent) <= len(evidence.lost) or evidence.recovered or evidence.goes_on:
        return None
    return doubt(
        "final-report-missing",
        "invalid",
        f"No final report came from worker {', '.join(map(str, silent))}: its last requests are not counted; let the "
        f"run end by itself, and look at that worker's log.",
        workers=silent,
    )


def worker_refused(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.refused:
        return None
    parts = {"workers were refused and sent no load": evidence.refused_workers}
    parts["messages of strangers came to the master's port and were dropped"] = evidence.dropped_messages
    counted = "; ".join(f"{n} {what}" for what, n in parts.items() if n)
    return doubt(
        "worker-refused",
        "note",
        f"{counted}. The first: {evidence.refused[0]}.",
        refused=list(evidence.refused),
        workers=evidence.refused_workers,
        messages=evidence.dropped_messages,
    )


def worker_silent(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.silences:
        return None
    names = ", ".join(f"{name} for {seconds:.3g} s" for name, seconds in evidence.silences.items())
    return doubt(
        "worker-silent",
        "degraded",
        f"Nothing came from {names}, and then it was back: what it counted meanwhile is in these results, but a phase "
        f"that began meanwhile began late on it. Look at the network between it and the master, and at its CPU."
        f"{_master_stood_still(evidence)}",
        silent_s=dict(evidence.silences),
    )


def reports_missing(evidence: Evidence, _summary: Summary) -> Doubt | None:
    missing = {str(worker.worker): len(worker.missing) for worker in evidence.merged.workers if worker.missing}
    if not missing:
        return None
    return doubt(
        "reports-missing",
        "note",
        f"{sum(missing.values())} live reports never came. Totals are complete, since reports are cumulative, but the "
        f"live view had gaps: look at the network between workers and master.",
        missing=missing,
    )


def run_trouble(evidence: Evidence, _summary: Summary) -> Doubt | None:
    """What the controller remarked, but for what `worker-lost` already says."""
    said = {f"{name} was lost during the run: {why}" for name, why in evidence.lost.items()}
    said |= {f"{name}: {why}" for name, why in evidence.lost.items()} | {"no worker is left"}
    remarks = [text for text in evidence.remarks if text not in said]
    if not remarks:
        return None
    return doubt(
        "run-trouble", "invalid", f"The run did not go as planned: {'; '.join(remarks)}. Mend it and run again.",
        remarks=remarks,
    )  # fmt: skip


def users_changed(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.changed:
        return None
    stage, (planned, made) = next(iter(evidence.changed.items()))
    return doubt(
        "users-changed",
        "invalid",
        f"The number of users was changed by hand from {planned} to {made} within stage {stage + 1}: its numbers are "
        f"of both loads. Stop the run and start another one for each load, or write stages into a profile.",
        changed={str(number): list(users) for number, users in evidence.changed.items()},
    )


def interrupted(evidence: Evidence, _summary: Summary) -> Doubt | None:
    if not evidence.interrupted:
        return None
    return doubt(
        "interrupted",
        "degraded",
        "A signal ended the run early: the results are partial. Let it run to its end before comparing it.",
    )


def aborted(evidence: Evidence, summary: Summary) -> Doubt | None:
    if not evidence.aborted:
        return None
    return doubt(
        "aborted",
        "invalid",
        f"{evidence.aborted[0].upper()}{evidence.aborted[1:]}. Mend it and run again; `load.abort_on_fail` decides "
        "when a load that fails is ended.",
        failed=summary.requests.failed,
        ok=summary.requests.ok,
    )


def error_kinds(counts: Requests) -> str:
    """The three most frequent kinds, each with what was said of one of them."""
    said = [(kind, n, counts.error_says.get(kind, "")) for kind, n in list(counts.by_error.items())[:3]]
    return "; ".join(f"{kind} ({n}{': ' + text if text else ''})" for kind, n, text in said)


def no_success(evidence: Evidence, summary: Summary) -> Doubt | None:
    if summary.requests_steady.ok:
        return None
    errors, due = error_kinds(summary.requests), steady(evidence).intended
    why = f"the errors were: {errors}" if errors else "the windows may be shorter than one answer"
    if evidence.profile.load.open and not due:
        why = "none was due in one: take a higher rate, or a longer window"
    return doubt(
        "no-success",
        "invalid",
        f"No request that began in a steady window succeeded, so there is nothing to report; {why}.",
        ok=summary.requests.ok,
        failed=summary.requests.failed,
        intended_steady=due,
    )


def mostly_failed(_evidence: Evidence, summary: Summary) -> Doubt | None:
    counts = summary.requests_steady
    finished = counts.ok + counts.failed
    if not counts.ok or counts.failed <= FAILED_SHARE_MAX * finished:
        return None
    errors = error_kinds(counts)
    return doubt(
        "mostly-failed",
        "invalid",
        f"{counts.failed} of {finished} requests failed: latencies of the rest say little. Lower the load, or mend the "
        "server." + (f" The errors were: {errors}." if errors else ""),
        failed=counts.failed,
        finished=finished,
    )


def truncated_answers(_evidence: Evidence, summary: Summary) -> Doubt | None:
    counts = summary.requests
    truncated, finished = counts.by_outcome.get("truncated", 0), counts.ok + counts.failed
    truncated -= counts.by_error.get("choices missing", 0)  # those ended properly; `choices-missing` tells of them
    if truncated <= TRUNCATED_SHARE_MAX * finished:
        return None
    silent = counts.by_error.get("silent end", 0)  # `silent-ends` tells of them
    who = (
        "the server ends them itself, and tells no error. Look at its log"
        if silent >= truncated
        else ("the server or a proxy cuts streams short. Look at its log and its timeouts")
    )
    return doubt(
        "truncated-answers",
        "invalid",
        f"{truncated} of {finished} answers ended without the protocol's own end (more than 1 %): {who}.",
        truncated=truncated,
        finished=finished,
    )


def reconnects(_evidence: Evidence, summary: Summary) -> Doubt | None:
    share = summary.requests.reconnects / max(1, summary.requests.sent)
    if share <= RECONNECT_SHARE:
        return None
    return doubt(
        "reconnects",
        "note",
        f"{summary.requests.reconnects} of {summary.requests.sent} requests found their pooled connection closed and "
        f"opened a new one: the server closes connections between answers, or resets requests. Set `connections: "
        f"fresh` to have every request open its own: a reset is a failure then.",
        reconnects=summary.requests.reconnects,
        sent=summary.requests.sent,
    )


def impossible_values(evidence: Evidence, summary: Summary) -> Doubt | None:
    refused, negative = summary.instrument.values_refused, summary.instrument.values_negative
    if not refused and not negative:
        return None
    return doubt(
        "impossible-values",
        "invalid",
        f"{refused} measured values were no finite numbers and {negative} durations were negative, which can't be: "
        f"a clock went backwards, or this is a bug. Run again; if it stays, keep the results and report it.",
        refused=refused,
        negative=negative,
        requests=everything(evidence).ok,
    )


RULES: tuple[Rule, ...] = (
    accounting_mismatch,
    rows_mismatch,
    worker_lost,
    worker_left,
    never_ended,
    goes_on,
    worker_missing,
    final_report_missing,
    worker_refused,
    worker_silent,
    reports_missing,
    run_trouble,
    users_changed,
    interrupted,
    aborted,
    no_success,
    mostly_failed,
    truncated_answers,
    reconnects,
    impossible_values,
)
