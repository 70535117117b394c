"""`tokenswarm run … --repeat N [--against-host URL | --baseline FILE|DIR]`: several runs, in turn, and what they say.

Each run is a process of its own, as if it had been typed, with a folder of its own in the group's folder. Two sides
take turns (A B B A …), so that a machine that warms up moves both. Whatever ends a run, those that are done stay.
What compares is imported once a run is there: a second side that is not is told at once.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.clock import NS_PER_S, monotonic_ns
from tokenswarm.commands import run_process
from tokenswarm.commands.group_options import REPEAT, Asked
from tokenswarm.commands.run import ROUNDS
from tokenswarm.errors import MALFORMED, ConfigError, ExitCode, ResultsError, UserError
from tokenswarm.profile import options
from tokenswarm.profile.load import ENDLESS_S
from tokenswarm.profile.plan import length_s, plan, time_text
from tokenswarm.profile.profile import Profile
from tokenswarm.reports.folder import link_latest
from tokenswarm.reports.numbers import harmless
from tokenswarm.reports.output import as_document
from tokenswarm.reports.saved import LEAVE_OUT
from tokenswarm.result.comparison import RUNS_MAX, Run, Side

START_S = 4.0  # about how long a run takes beside its load: processes, preflight, reports

OWN = ("--repeat", "--against-host", "--against-name", "--baseline", "--differ", "--metric", "--margin", "--history",
       "--host", "--results")  # fmt: skip
OWN_FLAGS = ("--json", "--quiet")

ENDS_ALL = (ExitCode.RESULTS,)  # a full disk is full for the next run, too
ENDS_AT_FIRST = (ExitCode.TARGET, ExitCode.CONFIG)  # where nothing was measured of a side yet
RANK = (ExitCode.INTERRUPTED, ExitCode.RESULTS, ExitCode.CONFIG, ExitCode.TARGET, ExitCode.INTERNAL, ExitCode.INVALID,
        ExitCode.GATE_FAILED, ExitCode.INCONCLUSIVE, ExitCode.OK)  # fmt: skip
"""Which code a group without a comparison ends with: the first of these that one of its runs had."""


class Made(msgspec.Struct):
    """A side while it grows. `codes`: of its runs, in order; `left_out`: a sentence for each that does not count."""

    name: str
    host: str | None  # None: the profile's own
    folder: Path
    codes: list[int] = []
    runs: list[Run] = []
    left_out: list[str] = []


class Group(msgspec.Struct):
    """All that is asked for, and what is there by now. `words`: what each run is told, but its target."""

    sides: list[Made]
    order: list[int]  # the side of each run
    baseline: list[Run] | None
    asked: Asked
    folder: Path
    words: list[str]
    given: dict[str, Any]
    each_s: float  # planned, then as seen; 0: not known yet
    spent_s: float = 0.0
    interrupts: int = 0
    stopped: str = ""  # why the rest of the runs is not made
    code: int | None = None  # that this ends with


def main(given: dict[str, Any], words: list[str]) -> int:
    """Make the group; its exit code. Raises UserError before any load."""
    group = _planned(given, words)
    with run_process.signals_to(lambda *_: _interrupt(group)):
        for place in range(len(group.order)):
            if group.interrupts or group.stopped:
                break
            _one(group, place)
    return _conclude(group)


def _planned(given: dict[str, Any], words: list[str]) -> Group:
    """Everything checked, the plan said, the folder made. Raises UserError."""
    if given["against_host"] and given["baseline"]:
        raise ConfigError("--against-host and --baseline: two things to be held against; give one of them")
    if given["expect_workers"] is not None:
        raise ConfigError("--repeat starts each run anew, and remote workers leave with theirs: no --expect-workers")
    if given["csv"]:
        raise ConfigError("--csv is of one run; --repeat has --json")
    n = _times(given)
    asked = Asked.of(given)
    profile = options.read_profile(given["profile"], given, options.of_run(given))
    from tokenswarm.cluster.look import planned  # after mistakes in words: gevent takes a while

    profile, _ = planned(profile)
    endless = any(stage.duration >= ENDLESS_S for stage in profile.load.stages)
    if endless and profile.load.requests is None:
        raise ConfigError("a run until Ctrl-C can't be repeated: give its stages a duration")
    baseline = _stored(given, profile, asked)
    if given["against_host"]:
        _see(given)
    now = datetime.now(UTC)
    folder = Path(given["results"]) / f"group-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    hosts = [given["host"], *([given["against_host"]] if given["against_host"] else [])]
    names = ["baseline", given["against_name"] or "new"] if len(hosts) > 1 else ["new" if baseline else "runs"]
    folders = [folder / letter for letter in "ab"] if len(hosts) > 1 else [folder]
    sides = [Made(harmless(name, 80), host, place) for name, host, place in zip(names, hosts, folders, strict=True)]
    order = in_turn(n) if len(sides) > 1 else [0] * n
    each_s = 0.0 if endless else length_s(profile) + START_S
    group = Group(sides, order, baseline, asked, folder, passed_on(words, given), given, each_s)
    _make(folders)
    if not given["quiet"]:
        _say_plan(group, profile)
    return group


def _stored(given: dict[str, Any], profile: Profile, asked: Asked) -> list[Run] | None:
    """The baseline, if any, that these runs can be held against; a history that can be written. Raises ConfigError."""
    if not given["baseline"] and not given["history"] and not asked.metrics:
        return None
    from tokenswarm.commands import compare, groups

    baseline = groups.read_group(Path(given["baseline"])) if given["baseline"] else None
    compare.chosen(asked, baseline[0].tool if baseline else "")  # a wrong name is told before the runs
    if baseline is not None:
        groups.check([baseline[0]], [groups.foreseen(profile, baseline[0])], asked.point)
    if given["history"]:
        groups.check_history(given["history"])
    return baseline


def _see(given: dict[str, Any]) -> None:
    """Is the second side there, too? Before the first one is measured. Raises UserError."""
    from tokenswarm.cluster.look import look

    look(options.read_profile(given["profile"], given, options.of_run(given, "against_host")))


def in_turn(n: int) -> list[int]:
    """The side of each of n pairs of runs: A B, B A, A B, …, so that a steady drift moves both sides alike."""
    return [side for pair in range(n) for side in ((0, 1) if pair % 2 == 0 else (1, 0))]


def _times(given: dict[str, Any]) -> int:
    text = given["repeat"]
    if text is None:
        return REPEAT if given["against_host"] else 1
    if not str(text).isascii() or not str(text).isdigit() or not 1 <= int(text) <= RUNS_MAX:
        raise ConfigError(f"--repeat {str(text)[:40]}: takes 1 to {RUNS_MAX} runs")
    return int(text)


def passed_on(words: list[str], given: dict[str, Any]) -> list[str]:
    """The words of one run: without those of the group, and without the target and the place of the results."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in OWN:
            skip = True
        elif word not in OWN_FLAGS and word.partition("=")[0] not in OWN:
            kept.append(word)
    if given["dataset"] is not None and "--dataset" not in {word.partition("=")[0] for word in kept}:
        kept = ["--set", ROUNDS, *kept, "--dataset", given["dataset"]]  # the bundled samples, told once
    return kept


def _make(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise ResultsError(f"{folder}: can't make the results folder: {error.strerror}") from None


def _say_plan(group: Group, profile: Profile) -> None:
    n, many = len(group.order), len(group.sides)
    whole, most = n * group.each_s, n * (group.each_s + profile.phases.drain)
    one = plan(profile).removeprefix("plan: ")
    turns = f", in turn ({' '.join('AB'[side] for side in group.order[:8])}{' …' if n > 8 else ''})" if many > 1 else ""
    long = (
        f"about {time_text(whole)}, {time_text(most)} at most" if group.each_s else "the first shows how long it takes"
    )
    _say(f"plan: {n} run{'s' * (n != 1)}{turns}, each: {one}; {long}")
    hosts = [side.host or ", ".join(profile.target) for side in group.sides]
    if many > 1:
        _say(f"A is {hosts[0]} ({group.sides[0].name}), B is {hosts[1]} ({group.sides[1].name})")
        if hosts[0].rstrip("/") == hosts[1].rstrip("/"):
            _say("A and B are the same target: this measures how much two equal sides differ")
    if group.baseline is not None:
        _say(f"then they are held against {len(group.baseline)} stored runs of {group.given['baseline']}")


def _one(group: Group, place: int) -> None:
    """Make one run, and take it to its side."""
    number = group.order[place]
    side = group.sides[number]
    here = f"run {place + 1}/{len(group.order)}" + (f", {'AB'[number]}" if len(group.sides) > 1 else "")
    if not group.given["quiet"]:
        left = time_text(float(round((len(group.order) - place) * group.each_s)))
        _say(f"{here}: about {left} left" if group.each_s else here)
    began_ns = monotonic_ns()
    code, run_id = _process(group, side)
    group.spent_s += (monotonic_ns() - began_ns) / NS_PER_S
    group.each_s = group.spent_s / (place + 1)
    side.codes.append(code)
    folder = side.folder / run_id if run_id else None
    if folder is None:
        side.left_out.append(f"{here} ended with exit {code} and made no results")
    else:
        _take(group, side, folder, here)
    counts = side.runs[-1].status if folder and side.runs and side.runs[-1].run_id == run_id else "does not count"
    if not group.given["quiet"] or counts == "does not count":
        _say(f"{here}: {counts}, exit {code}" + (f", {folder}" if folder else ""))
    nothing_yet = not side.runs and len(side.codes) == 1
    if code in ENDS_ALL or (code in ENDS_AT_FIRST and nothing_yet):
        group.code = code
        group.stopped = f"{here} ended with exit {code}, as the next ones would"


def _take(group: Group, side: Made, folder: Path, here: str) -> None:
    """The finished run to its side; to the history, too, whatever became of it."""
    from tokenswarm.commands import groups

    try:
        if group.given["history"]:
            groups.remember_run(group.given["history"], folder)
    except UserError as error:
        _say(str(error))
    try:
        run = groups.read_run(folder.resolve())
    except ConfigError as error:
        side.left_out.append(f"{here}: {error}".replace(LEAVE_OUT, ""))
        return
    side.runs.append(run)
    others = group.baseline if group.baseline is not None else group.sides[0].runs if side is not group.sides[0] else []
    try:
        if others and side.runs:
            groups.check(others, side.runs, group.asked.point)
        elif len(group.sides) > 1 and group.sides[1].runs:
            groups.check(side.runs, group.sides[1].runs, group.asked.point)
    except ConfigError as error:
        group.code, group.stopped = int(ExitCode.CONFIG), str(error).removeprefix("compare: ")


def _process(group: Group, side: Made) -> tuple[int, str]:
    """(exit code, run id or "") of `tokenswarm run` as a process of its own, which Ctrl-C reaches only through us."""
    target = ["--host", side.host] if side.host is not None else []
    words = [*group.words, *target]
    own = ["--results", str(side.folder), "--started-by", shlex.join(["tokenswarm", "run", *words]), "--json"]
    command = [*run_process.COMMAND, *words, *own]
    command += ["--quiet"] if group.given["quiet"] else []
    with (
        tempfile.TemporaryFile() as out,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True) as process,
    ):
        code = run_process.see_out(process, lambda: group.interrupts)
        out.seek(0)
        try:
            run_id = msgspec.json.decode(out.read(), type=_RunId).run_id
        except MALFORMED:
            run_id = ""
    return code, run_id


class _RunId(msgspec.Struct):
    run_id: str


def _interrupt(group: Group) -> None:
    """The first signal ends the run in order and makes no more; a second one ends it at once."""
    group.interrupts += 1
    if group.interrupts == 1:
        _say("interrupted: this run ends in order, and no more are made (again to stop at once)")


def _conclude(group: Group) -> int:
    """Say what was left out, keep the groups, compare where there is something to compare; the exit code."""
    from tokenswarm.commands import compare, groups

    for side in group.sides:
        for sentence in side.left_out:
            _say(f"left out: {sentence}")
        if side.runs:
            compare.write(side.folder / groups.GROUP_NAME, groups.encoded(side.runs))
    made = sum(len(side.codes) for side in group.sides)
    if made < len(group.order):
        why = group.stopped or "interrupted"
        _say(f"{made} of {len(group.order)} runs were made: {why}; what is done is kept in {group.folder}")
    _link_latest(group)
    code = _compared(group) if group.code != ExitCode.CONFIG else None
    if group.interrupts:
        return int(ExitCode.INTERRUPTED)
    if group.code is not None:
        return group.code
    if code is not None:
        failed = ExitCode.GATE_FAILED in group.sides[-1].codes and code != ExitCode.WORSE
        return int(ExitCode.GATE_FAILED) if failed else code
    codes = {code for side in group.sides for code in side.codes}
    return int(next(known for known in (*RANK, *codes) if known in codes))


def _compared(group: Group) -> int | None:
    """The comparison's exit code, with its documents written and told; None where there is nothing to compare."""
    from tokenswarm.commands import compare

    new = group.sides[-1].runs
    base = group.baseline if group.baseline is not None else group.sides[0].runs if len(group.sides) > 1 else None
    if base is None:
        _tell_group(group, new)
        return None
    if not base or not new:
        empty = "A" if not base else "B" if len(group.sides) > 1 else "these"
        _say(f"nothing can be compared: no run of {empty} counts")
        return None
    found = compare.hold(base, new, group.asked)
    names = ("baseline" if group.baseline is not None else group.sides[0].name, group.sides[-1].name)
    left = tuple(sentence for side in group.sides for sentence in side.left_out)
    found = msgspec.structs.replace(found, a=_named(found.a, names[0]), b=_named(found.b, names[1]), left_out=left)
    compare.tell(found, as_json=group.given["json"])  # ahead of what may not be written: the runs took long
    compare.write_documents(group.folder, found, base, new)
    if group.given["history"]:
        compare.remember(Path(group.given["history"]), found, [*base, *new])
    if not group.given["json"]:
        print(f"comparison: {group.folder / compare.DOCUMENTS[2]}")
    return int(compare.CODES[found.word])


def _named(side: Side, name: str) -> Side:
    return msgspec.structs.replace(side, name=name)


def _tell_group(group: Group, runs: list[Run]) -> None:
    """How much the runs of one thing vary."""
    if group.given["json"]:
        from tokenswarm.commands import groups

        print(as_document(msgspec.json.decode(groups.encoded(runs))))
        return
    from rich.console import Console

    from tokenswarm.reports import comparison as told

    if not runs:
        _say("no run of these counts: there is nothing to tell, and no baseline")
        return
    Console().print(told.variation(runs))
    print(f"group: {group.folder}, a baseline for `tokenswarm run … --baseline {group.folder}`")


def _link_latest(group: Group) -> None:
    """`latest` beside the group's folder, to its last run: what `tokenswarm report results/latest` is meant to tell."""
    last = max((Path(run.folder) for side in group.sides for run in side.runs if run.folder), default=None,
               key=lambda folder: folder.name)  # fmt: skip
    if last is None:
        return
    if other := link_latest(group.folder.parent.resolve(), last):
        _say(other)


def _say(sentence: str) -> None:
    print(f"tokenswarm: {harmless(sentence, 4_000)}", file=sys.stderr, flush=True)
