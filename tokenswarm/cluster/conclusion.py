"""Before and after the controller: the results folder and the manifest first, then summary, verdict, gates, reports.

`open_run` raises UserError before any load; `conclude` turns what the controller knows into files, a table and an exit
code. If the disk fails meanwhile, the table is still printed and the exit code says so.
"""

from __future__ import annotations

import enum
import functools
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, RenderableType

from tokenswarm.clock import monotonic_ns
from tokenswarm.cluster import calibration, poller, push
from tokenswarm.cluster.entrance import say
from tokenswarm.cluster.look import Looked, look_again
from tokenswarm.cluster.members import Member
from tokenswarm.cluster.neighbour import Neighbour
from tokenswarm.cluster.run_end import RunEnd
from tokenswarm.cluster.soak import SoakWatch
from tokenswarm.cluster.stages import Searching
from tokenswarm.cluster.watchers import Watcher
from tokenswarm.engines.failure import hide_in, secret_words
from tokenswarm.errors import ExitCode, ResultsError
from tokenswarm.judge import gates, verdict
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.judge.search import gone, of_stage
from tokenswarm.measure.snapshot import Merged
from tokenswarm.measure.stills import Stills
from tokenswarm.own_process import command_of
from tokenswarm.profile.environment import github_summary, in_github, secret_headers
from tokenswarm.profile.plan import length_s
from tokenswarm.profile.profile import Profile
from tokenswarm.reports import console as terminal
from tokenswarm.reports import manifest as manifests
from tokenswarm.reports import markdown, output, told
from tokenswarm.reports.folder import ResultsFolder, link_latest, new_run_id
from tokenswarm.reports.pipelines import github, gitlab, junit
from tokenswarm.result.summary import Summary, changing, plan_of, summarize, to_json

PACKAGES = ("tokenswarm", "locust", "gevent", "httptools", "msgspec", "aiohttp", "prometheus-client")


TOO_LATE = "the load had ended before this signal: its results are written to their end (again to stop at once)"
FILES = ("requests.jsonl", "summary.json", "report.md", "junit.xml", "metrics.txt", "report.html")


class Reached(enum.IntEnum):
    """How far a run has come, for who is asked to end it."""

    BEGUN = 0
    COUNTED = 1  # the load is over, its numbers are known: there is nothing left to cut short
    WRITTEN = 2  # all that there is for files; what follows is said
    TOLD = 3


class Run(msgspec.Struct):
    """A run that may begin: everything was checked."""

    profile: Profile
    arrivals: int | None  # that the schedule has in its window, where it is known before
    folder: ResultsFolder
    manifest: dict[str, Any]
    progress: terminal.Progress
    show: Callable[[RenderableType], None]  # the result, once it is there
    neighbour: Neighbour
    form: output.Form = "tables"
    search: Searching | None = None
    reached: Reached = Reached.BEGUN
    stills: Stills = msgspec.field(default_factory=Stills)


def open_run(looked: Looked, results: str, command: Sequence[str], *, alone: bool = True, quiet: bool = False) -> Run:
    """Make the folder, write the first manifest. Raises UserError.

    `alone`: nobody else writes to the terminal meanwhile. `quiet`: and neither do we, until the end.
    """
    profile, findings = looked.profile, looked.findings
    now = datetime.now(UTC)
    folder = ResultsFolder.create(Path(results), new_run_id(now, secrets.token_hex(2)))
    folder.rotate_bytes = profile.soak.rotate_bytes
    manifest = manifests.build(
        run_id=folder.run_id,
        started=now,
        profile=profile,
        command=as_typed(command),
        versions={name: metadata.version(name) for name in PACKAGES},
        git_revision=_git_revision(),
        engine=hide_in(msgspec.to_builtins(findings), secret_words(secret_headers(profile))),
        host=_host_facts(),
        calibration=msgspec.to_builtins(calibration.kept()),
    )
    folder.write_json("manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    for note in findings.notes if not quiet else ():
        say(note)
    progress = terminal.Progress(Console(stderr=True, quiet=quiet), alone=alone, whole_s=length_s(profile))
    return Run(profile, looked.arrivals, folder, manifest, progress, Console().print, looked.neighbour)


def as_typed(command: Sequence[str]) -> list[str]:
    """The command with its program by name: the file behind it may be one that can't be started.

    Its words are the bytes that were given: Python reads a path as half characters where the locale is none of UTF-8.
    """
    program = Path(command[0]) if command else Path("tokenswarm")
    words = (os.fsencode(word).decode("utf-8", "replace") for word in command[1:])
    return [program.name if program.suffix != ".py" else "tokenswarm", *words]


class Company:
    """What goes along with a run: live progress, the push to an exporter, the poller of the engine's own metrics."""

    def __init__(self, run: Run, members: Callable[[], Iterable[Member]]) -> None:
        self.summary: Summary | None = None  # once the run is over
        self._run = run
        self._poller = poller.of_run(run.profile, run.manifest, say)
        self._push = push.of_run(run.profile, run.manifest, members, say, self._poller)
        pages = self._poller.pages
        self._soak = SoakWatch(
            run.folder,
            run.profile.soak.window_s,
            lambda: [page.watch for page in pages],
            self._told_so_far,
            run.progress.note,
        )

    @property
    def watchers(self) -> list[Watcher]:
        return [self._run.progress, self._push, self._poller, self._soak, self._run.stills]

    def accompany(self, go: Callable[[], RunEnd]) -> ExitCode:
        """Be there while `go` runs, then conclude. Raises UserError where no load could be sent."""
        with self._push, self._poller:
            self._run.neighbour.begin()
            with self._run.progress:
                end = go()
            code, summary = conclude(self._run, end, self._add)
            self._push.finish(end.merged, summary.verdict)
        self.summary = summary
        return code

    def restarts(self) -> int:
        """Of the engine, that its metrics told so far."""
        return self._soak.returns()

    def _told_so_far(self, merged: Merged) -> bytes:
        """What engines and GPUs told, for a report of the run before its end."""
        summary = summarize(merged, partial=True)
        self._poller.fill(summary, monotonic_ns())
        return told.encode(summary)

    def _add(self, summary: Summary, merged: Merged) -> None:
        """What was watched beside the requests."""
        self._poller.finish(summary)
        summary.soak = self._soak.finish(merged, changing(summary))


def conclude(run: Run, end: RunEnd, add: Callable[[Summary, Merged], None]) -> tuple[ExitCode, Summary]:
    """Summary, verdict, gates; everything on disk; the table on stdout; the exit code."""
    run.reached = Reached.COUNTED
    plan = [
        msgspec.structs.replace(plan_of(number, stage), arrivals=run.arrivals)
        for number, stage in enumerate(end.stages)
    ]
    evidence = _evidence(run, end)
    cut_short, bars = end.interrupted or bool(evidence.left or end.aborted), run.profile.bars
    summary = summarize(end.merged, plan=plan, partial=cut_short, bars=bars)
    add(summary, end.merged)
    if run.search is None:
        summary.gates = gates.evaluate(run.profile.slo, summary, end.merged, bars)
        summary.verdict = verdict.judge(evidence, summary)
    else:
        _judge_search(run, run.search, evidence, summary)
    code = verdict.exit_code(summary.verdict, summary.gates, end.interrupted)
    problem = _write(run, end, summary) or (ResultsError(end.unwritten[0]) if end.unwritten else None)
    run.reached = Reached.WRITTEN
    if run.form == "tables":
        run.show(terminal.report(summary, str(run.folder.path), written=problem is None))
    else:
        print(output.written_as(run.form, summary, str(run.folder.path)), end="", flush=True)
    if problem is not None:
        say(str(problem))
        code = ExitCode.RESULTS
    if run.folder.has(run.folder.spool.name):
        path = run.folder.path
        say(f"rows that requests.jsonl lacks are in {run.folder.spool}: `tokenswarm report --merge {path}` adds them")
    run.reached = Reached.TOLD
    return code, summary


def kept(folder: ResultsFolder) -> str:
    """What a run that is stopped at once leaves behind, and how to make more of it."""
    path = folder.path
    if folder.has(folder.spool.name):
        mend = f"`tokenswarm report --merge {path}` makes a partial result of it"
        return f"What the workers wrote is in {folder.spool}: {mend}"
    missing = [name for name in FILES if not folder.has(name)]
    if missing == ["report.html"]:
        return f"{path} lacks report.html: `tokenswarm report {path}` makes it"
    return f"{path} lacks {', '.join(missing)}" if missing else f"The results are in {path}"


def _judge_search(run: Run, search: Searching, evidence: Evidence, summary: Summary) -> None:
    """Gates and verdict are of the load that is the answer: those that did not pass are meant to be too much."""
    summary.search = search.answer
    number = search.stage_of_answer
    alone = of_stage(evidence.merged, number)
    part = summarize(alone, plan=[plan_of(number, evidence.profile.load.stages[0])], partial=summary.partial)
    part.stages = [stage for stage in summary.stages if stage.stage == number]
    summary.gates = gates.evaluate(run.profile.slo, part, alone)
    remarks = [*evidence.remarks, *filter(None, [gone(search.search, evidence.merged)])]
    known = msgspec.structs.replace(
        evidence,
        merged=alone,
        rows=None,
        users=(),
        changed={},
        remarks=tuple(remarks),
        stills=tuple(still for still in evidence.stills if still.stage == number),
    )
    summary.verdict = verdict.judge(known, part)


def _write(run: Run, end: RunEnd, summary: Summary) -> ResultsError | None:
    """Write what can be written; the first problem, if any."""
    own = summary.instrument
    manifest = manifests.finish(
        run.manifest,
        ended=datetime.now(UTC),
        dataset=end.dataset,
        workers=_workers(end),
        stamps={"receive": own.stamp, "send": own.sent_stamp, "sends_unstamped": own.sends_unstamped},
    )
    page = markdown.render(summary, manifest)
    documents = {
        "summary.json": to_json(summary),
        "manifest.json": msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n",
        "report.md": page.encode(),
        "junit.xml": junit.render(summary, manifest).encode(),
        "metrics.txt": gitlab.render(summary).encode(),
    }
    steps: list[Callable[[], object]] = [run.folder.close_rows]
    steps += [functools.partial(run.folder.write_json, name, data) for name, data in documents.items()]
    steps.append(functools.partial(_write_page, run.folder.path))
    problem: ResultsError | None = None
    for step in steps:
        try:
            step()
        except ResultsError as error:
            problem = problem or error
    if other := link_latest(run.folder.path.parent, run.folder.path):
        say(other)
    if in_github() and (unwritten := github.tell(github.annotations_of(summary), page, github_summary())):
        say(unwritten)
    return problem


def _write_page(folder: Path) -> None:
    """report.html, by a process of its own: a million rows are seconds of work, and workers must still be heard.

    In a session of its own, too: a Ctrl-C now is for us. Raises ResultsError.
    """
    command = command_of("tokenswarm.reports.html", str(folder))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, start_new_session=True
        )
    except OSError as error:
        raise ResultsError(f"{folder / 'report.html'}: could not be made: {error.strerror}") from None
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        said = done.stderr.strip().splitlines() or [f"who makes it ended with {how}"]
        raise ResultsError(said[-1] if "report.html" in said[-1] else f"{folder / 'report.html'}: {said[-1]}")


def _evidence(run: Run, end: RunEnd) -> Evidence:
    return Evidence(
        merged=end.merged,
        expected_workers=end.expected_workers,
        lost={member.name: member.lost for member in end.members if member.lost},
        left={member.name: member.left for member in end.members if member.left and not member.lost},
        refused=tuple(end.strangers.sentences),
        refused_workers=end.strangers.workers,
        dropped_messages=end.strangers.messages,
        silences={m.name: m.silence_s for m in end.members if m.silence_s and not m.lost},
        stood_still_s=end.stood_still_s,
        users=end.users,
        clock_step_s=end.clock_step_s,
        dataset=end.dataset,
        rows=end.rows,
        interrupted=end.interrupted,
        remarks=tuple(end.remarks),
        changed=end.changed,
        aborted=end.aborted,
        beside=run.neighbour.beside(),
        marks=manifests.marks(run.manifest),
        stills=run.stills.found(),
        gone="" if run.search is not None or end.interrupted else look_again(run.profile, end.merged),
        profile=run.profile,
    )


def _workers(end: RunEnd) -> list[dict[str, Any]]:
    return [
        {"index": m.index, "host": m.host, "pid": m.pid, "reader": m.reader, "rows": m.rows, "lost": m.lost}
        for m in end.members
    ]


def _host_facts() -> dict[str, Any]:
    return {
        "hostname": platform.node(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _git_revision() -> str | None:
    """The revision of the folder we stand in: which state of the user's configuration this was."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
