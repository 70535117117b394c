"""`tokenswarm compare BASE… --against NEW…`: groups of runs against each other; the exit code is the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenswarm.commands import group_options, groups
from tokenswarm.commands.group_options import Asked
from tokenswarm.errors import ConfigError, ExitCode, ResultsError
from tokenswarm.judge import alike
from tokenswarm.judge.compare import METRICS, Metric, compare, metrics_of
from tokenswarm.profile import options
from tokenswarm.profile.environment import github_summary, in_github
from tokenswarm.profile.typed_yaml import suggestion
from tokenswarm.reports.output import as_document
from tokenswarm.result.comparison import Comparison, Run
from tokenswarm.result.foreign import formats

CODES = {"worse": ExitCode.WORSE, "can't tell": ExitCode.CANT_TELL, "better": ExitCode.OK, "same": ExitCode.OK}

DOCUMENTS = ("comparison.json", "comparison.md", "comparison.html")


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
    parser.add_argument(
        "--baseline", metavar="FILE|DIR", help="a group that --save or run --repeat wrote, in place of BASE"
    )
    parser.add_argument("--save", metavar="FILE", help="write the NEW runs as a group, a baseline for later")
    parser.add_argument("--json", action="store_true", help="the comparison as JSON on stdout")
    parser.add_argument("--markdown", metavar="FILE", help="write it for a pull request's comment")
    parser.add_argument("--to", metavar="DIR", help="write comparison.html, comparison.md and comparison.json there")
    group_options.of_comparison(parser)
    given = parser.parse_args(words)
    if bool(given.base) == bool(given.baseline):
        raise ConfigError("compare: give the baseline once: BASE folders, or --baseline FILE")
    asked = Asked.of(vars(given))
    if given.history:
        groups.check_history(given.history)
    base = groups.read_group(Path(given.baseline)) if given.baseline else groups.read_runs(given.base, "BASE")
    new = groups.read_runs(given.against, "--against")
    found = hold(base, new, asked)
    if given.save and found.definitions and not all(run.tool for run in new):
        tool = found.definitions
        raise ConfigError(f"--save: the NEW runs are ours, read by the definitions of {tool}; save them without it")
    tell(found, as_json=given.json)  # ahead of what may not be written
    if given.save:
        write(Path(given.save), groups.encoded(new))
    if given.markdown:
        from tokenswarm.reports import comparison as told

        write(Path(given.markdown), told.markdown(found).encode())
    if given.to:
        write_documents(Path(given.to), found, base, new)
    if given.history:
        remember(Path(given.history), found, [*base, *new])
    if given.to and not given.json:
        print(f"page: {Path(given.to) / DOCUMENTS[2]}")
    if given.save and not given.json:
        print(f"saved: {given.save}")
    return int(CODES[found.word])


def hold(base: list[Run], new: list[Run], asked: Asked) -> Comparison:
    """The comparison of two groups that were read. Raises ConfigError where they can't be compared."""
    tool = groups.same_words(base, new)
    metrics = chosen(asked, tool)
    groups.check(base, new, asked.point)
    found = compare(base, new, asked.margins, metrics)
    if tool:
        found = msgspec.structs.replace(found, definitions=tool, apart=_apart(tool, [*base, *new]))
    return found


def write_documents(folder: Path, found: Comparison, base: Sequence[Run], new: Sequence[Run]) -> None:
    """comparison.json, comparison.md and comparison.html, each whole or not at all. Raises ResultsError."""
    from tokenswarm.reports import comparison as told
    from tokenswarm.reports.html import comparison as page

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"{folder}: can't make the folder: {error.strerror}") from None
    as_json = msgspec.json.format(msgspec.json.encode(found)) + b"\n"
    for name, data in zip(
        DOCUMENTS, (as_json, told.markdown(found).encode(), page.render(found, base, new).encode()), strict=True
    ):
        write(folder / name, data)


def remember(path: Path, found: Comparison, runs: Sequence[Run]) -> None:
    """A line of this comparison at the end of a history. Raises ResultsError."""
    from tokenswarm.reports import history

    history.append(path, [history.of_comparison(found, max(run.started for run in runs))])


def tell(found: Comparison, *, as_json: bool) -> None:
    """Print it, and tell GitHub's runner where this is a step of a workflow."""
    if as_json:
        print(as_document(found))
    else:
        from rich.console import Console

        from tokenswarm.reports import comparison as told

        Console().print(told.report(found))
    _tell_github(found)


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


def chosen(asked: Asked, tool: str) -> list[Metric]:
    """What is compared, by the words of that tool ("": ours). Raises ConfigError for a name that there is not."""
    names, of = asked.metrics, metrics_of(tool) if tool else METRICS
    known = {metric.name: metric for metric in of}
    for name in names:
        if name not in known:
            raise ConfigError(f"--metric: `{name[:40]}` is not compared{suggestion(name, list(known))}")
    return [metric for metric in of if not names or metric.name in names]


def write(path: Path, data: bytes) -> None:
    """A file whole, or not at all. Raises ResultsError."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a pipe, /dev/stdout
            return
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ResultsError(f"{path}: can't be written: {error.strerror}") from None
