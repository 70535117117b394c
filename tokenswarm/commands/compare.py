"""`tokenswarm compare BASE… --against NEW…`: groups of runs against each other; the exit code is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenswarm.errors import ConfigError, ExitCode, ResultsError
from tokenswarm.judge import alike
from tokenswarm.judge.compare import MARGINS, METRICS, Metric, compare, measured, metrics_of
from tokenswarm.judge.ranksum import RUNS_MAX
from tokenswarm.profile import options
from tokenswarm.profile.environment import github_summary, in_github
from tokenswarm.profile.typed_yaml import suggestion
from tokenswarm.reports.saved import read_manifest, read_summary
from tokenswarm.result.comparison import SCHEMA_VERSION, Comparison, Group, Kind, Run
from tokenswarm.result.foreign import formats

CODES = {"worse": ExitCode.WORSE, "can't tell": ExitCode.CANT_TELL, "better": ExitCode.OK, "same": ExitCode.OK}


def main(words: list[str]) -> int:
    """Compare; raises ConfigError, ResultsError."""
    parser = options.parser_of("compare")
    parser.add_argument(
        "base",
        nargs="*",
        metavar="BASE",
        help="results folders, folders of them, or result files of other tools: what was",
    )
    parser.add_argument("--against", nargs="+", required=True, metavar="NEW", help="the same: what is held against it")
    parser.add_argument("--baseline", metavar="FILE", help="a group that --save wrote, in place of BASE")
    parser.add_argument("--save", metavar="FILE", help="write the NEW runs as a group, a baseline for later")
    parser.add_argument("--differ", metavar="WHAT,…", default="", help="the point: " + ", ".join(alike.SUBJECTS))
    parser.add_argument("--metric", metavar="NAME", action="append", default=[], help="only these (may be repeated)")
    parser.add_argument(
        "--margin", metavar="KIND=SHARE", action="append", default=[],
        help="what still counts as the same: " + ", ".join(f"{kind}={share:g}" for kind, share in MARGINS.items()),
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the comparison as JSON on stdout")
    parser.add_argument("--markdown", metavar="FILE", help="write it for a pull request's comment")
    given = parser.parse_args(words)
    if bool(given.base) == bool(given.baseline):
        raise ConfigError("compare: give the baseline once: BASE folders, or --baseline FILE")
    margins = _margins(given.margin)
    base = read_group(Path(given.baseline)) if given.baseline else read_runs(given.base, "BASE")
    new = read_runs(given.against, "--against")
    tool = same_words(base, new)
    metrics = _metrics(given.metric, metrics_of(tool) if tool else METRICS)
    check(base, new, _subjects(given.differ))
    found = compare(base, new, margins, metrics)
    if tool:
        found = msgspec.structs.replace(found, definitions=tool, apart=_apart(tool, [*base, *new]))
    if given.save:
        if tool and not all(run.tool for run in new):
            raise ConfigError(f"--save: the NEW runs are ours, read by the definitions of {tool}; save them without it")
        _write(
            Path(given.save),
            msgspec.json.format(
                msgspec.json.encode(Group(runs=tuple(msgspec.structs.replace(run, folder=None) for run in new)))
            )
            + b"\n",
        )
    if given.markdown:
        from tokenswarm.reports import comparison as told

        _write(Path(given.markdown), told.markdown(found).encode())
    _print(found, as_json=given.json)
    _tell_github(found)
    return int(CODES[found.word])


def _apart(tool: str, runs: Sequence[Run]) -> str:
    unknown = [subject for subject in alike.SUBJECTS if any(not run.about.get(subject) for run in runs)]
    return formats.FORMATS[tool].apart + (f"; not known of each run: {', '.join(unknown)}" if unknown else "")


def _tell_github(found: Comparison) -> None:
    """The job's summary and an annotation, in a step of a workflow."""
    if not in_github():
        return
    from tokenswarm.reports import comparison as told
    from tokenswarm.reports.pipelines import github

    worse = [finding.metric for finding in found.findings if finding.word == "worse"]
    lines = [github.annotation("error", "tokenswarm: worse", f"the new runs are worse in {', '.join(worse)}")]
    unwritten = github.tell(lines if worse else [], told.markdown(found), github_summary())
    if unwritten:
        raise ResultsError(unwritten)


def _print(found: Comparison, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        from rich.console import Console

        from tokenswarm.reports import comparison as told

        Console().print(told.report(found))


def read_runs(names: Sequence[str], side: str) -> list[Run]:
    """The runs of results folders, or of folders that hold such; each once. Raises ConfigError."""
    folders: dict[Path, None] = {}
    foreign: dict[str, Run] = {}
    for name in names:
        folder = Path(name)
        if (folder.is_file() or "#" in name) and folder.name != "summary.json" and (run := formats.read(name)):
            foreign[name] = run
        elif folder.is_dir() and not (folder / "summary.json").exists():
            inner = sorted(path.parent.resolve() for path in folder.glob("*/summary.json"))
            if not inner:
                raise ConfigError(f"{name}: holds no summary.json, and no folder that does; name finished runs")
            folders.update(dict.fromkeys(inner))
        else:
            folders[(folder if folder.is_dir() else folder.parent).resolve()] = None
            if not folder.exists():
                read_summary(folder)  # says that there is none
    if len(folders) + len(foreign) > RUNS_MAX:
        raise ConfigError(f"compare: {side} has {len(folders) + len(foreign)} runs; {RUNS_MAX} are the most")
    return [*(_read(folder) for folder in folders), *foreign.values()]


def same_words(base: list[Run], new: list[Run]) -> str:
    """The tool whose definitions hold, where files of one are among the runs; ours are then read by these.

    Raises ConfigError where several tools would have to agree, or a run of ours is no longer at hand.
    """
    tools = sorted({run.tool for run in (*base, *new)} - {""})
    if len(tools) > 1:
        raise ConfigError(
            f"compare: {' and '.join(tools)} mean different things by the same names; hold each against runs of ours"
        )
    if not tools:
        return ""
    for runs in (base, new):
        for number, run in enumerate(runs):
            if run.tool:
                continue
            if not Path(run.run_id).name or run.folder is None:
                raise ConfigError(
                    f"compare: {run.run_id} comes from a stored group, which has no {tools[0]} definitions"
                )
            values = formats.translated(read_summary(Path(run.folder)), tools[0])
            runs[number] = msgspec.structs.replace(run, values=values)
    return tools[0]


def _read(folder: Path) -> Run:
    summary = read_summary(folder)
    if summary.partial:
        raise ConfigError(f"{folder}: is partial: the run was interrupted; leave it out")
    if summary.verdict.status == "INVALID":
        codes = ", ".join(doubt.code for doubt in summary.verdict.doubts if doubt.severity == "invalid")
        raise ConfigError(
            f"{folder}: is INVALID ({codes}): its numbers can't be believed; leave it out or run it again"
        )
    manifest = read_manifest(folder)
    if not manifest:
        raise ConfigError(f"{folder}: has no manifest.json, so nobody knows what was run; leave it out")
    status = summary.verdict.status or "not judged"
    about = alike.about(manifest)
    return Run(run_id=summary.run_id, values=measured(summary), about=about, status=status, folder=str(folder))


def read_group(path: Path) -> list[Run]:
    """The runs of a file that --save wrote. Raises ConfigError."""
    try:
        group = msgspec.json.decode(path.read_bytes(), type=Group)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no group of runs that `compare --save` wrote: {error}") from None
    if group.schema_version != SCHEMA_VERSION:
        raise ConfigError(f"{path}: has schema version {group.schema_version}, this program reads {SCHEMA_VERSION}")
    if not group.runs or len(group.runs) > RUNS_MAX:
        raise ConfigError(f"{path}: holds {len(group.runs)} runs; it takes 1 to {RUNS_MAX}")
    return list(group.runs)


def check(base: Sequence[Run], new: Sequence[Run], point: Sequence[str]) -> None:
    """Are these runs alike in everything but the point, and two groups? Raises ConfigError."""
    both = sorted({run.run_id for run in base} & {run.run_id for run in new})
    if both:
        raise ConfigError(f"compare: run {both[0]} stands on both sides; a run can't be held against itself")
    for side, runs in (("BASE", base), ("--against", new)):
        for what, how in alike.differences(runs).items():
            raise ConfigError(f"compare: the runs of {side} differ in {what}: {how}; a group is one thing run again")
    for what, how in alike.differences([base[0], new[0]]).items():
        if what not in point:
            raise ConfigError(f"compare: the two sides differ in {what}: {how}; if that is the point: --differ {what}")


def _subjects(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in alike.SUBJECTS:
            raise ConfigError(f"--differ: there is no subject `{name[:40]}`{suggestion(name, list(alike.SUBJECTS))}")
    return names


def _metrics(names: Sequence[str], of: Sequence[Metric]) -> list[Metric]:
    known = {metric.name: metric for metric in of}
    for name in names:
        if name not in known:
            raise ConfigError(f"--metric: `{name[:40]}` is not compared{suggestion(name, list(known))}")
    return [metric for metric in of if not names or metric.name in names]


def _margins(pairs: Sequence[str]) -> dict[Kind, float]:
    margins = dict(MARGINS)
    for pair in pairs:
        kind, _, share = pair.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if kind not in margins or not 0 < value < 10:
            raise ConfigError(f"--margin {pair[:60]}: write KIND=SHARE, such as tail=0.15; kinds: {', '.join(margins)}")
        margins[kind] = value
    return margins


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ResultsError(f"{path}: can't be written: {error.strerror}") from None
