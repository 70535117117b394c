"""`tokenswarm report DIR`: print a run's tables again, and write its report.html again; of one that goes on, so far.

`--merge` first brings back what dead workers, or a dead master, left on disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenswarm.errors import ConfigError, ExitCode, ResultsError
from tokenswarm.profile import options


def main(words: list[str]) -> int:
    """Tell a finished run again; raises UserError."""
    parser = options.parser_of("report")
    parser.add_argument("folder", nargs="+", help="a results folder, for example results/latest")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="add the rows that dead workers left: in the results folder, and in further folders of remote workers",
    )
    options.add_forms(parser)
    given = parser.parse_args(words)
    from tokenswarm.reports import output  # after the words: the page and the tables take a while
    from tokenswarm.reports.saved import read_summary, write_page

    folders = [_folder(Path(word)) for word in given.folder]
    unwritten: ResultsError | None = None
    if given.merge:
        from tokenswarm.commands.merge import merge

        home, summary, told = merge(folders)
        print(f"tokenswarm: {told}", file=sys.stderr)
    elif len(folders) > 1:
        raise ConfigError("report takes one folder; --merge takes several")
    else:
        home = folders[0]
        from tokenswarm.commands import report_so_far

        live = report_so_far.goes_on(home)
        summary = report_so_far.partial(home) if live else read_summary(home)
        try:
            for problem in write_page(home, summary, report_so_far.rows(home) if live else ()) if home.is_dir() else ():
                print(f"tokenswarm: {problem}", file=sys.stderr)
        except ResultsError as error:  # a folder that is somebody else's, or an archive's, can be read all the same
            unwritten = error
    form = output.form_of(vars(given))
    if form != "tables":
        print(output.written_as(form, summary, str(home)), end="")
    else:
        from rich.console import Console

        from tokenswarm.reports import console as terminal

        Console().print(terminal.report(summary, str(home), written=home.is_dir() and unwritten is None))
    if unwritten is not None:
        raise unwritten
    return int(ExitCode.OK)


def _folder(path: Path) -> Path:
    """The results folder that is meant where one of its files was named."""
    names = ("summary.json", "manifest.json", "requests.jsonl", "windows.jsonl", "report.html", "report.md")
    return path.parent if path.name in names else path
