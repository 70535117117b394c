"""`tokenswarm report DIR`: print the tables of a finished run again, and write its report.html again.

`--merge` first brings back what dead workers, or a dead master, left on disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from tokenswarm.commands.merge import merge
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import options
from tokenswarm.reports import console as terminal
from tokenswarm.reports.saved import read_summary, write_page


def main(words: list[str]) -> int:
    """Tell a finished run again; raises UserError."""
    parser = options.parser_of("report")
    parser.add_argument("folder", nargs="+", help="a results folder, for example results/latest")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="add the rows that dead workers left: in the results folder, and in further folders of remote workers",
    )
    given = parser.parse_args(words)
    folders = [_folder(Path(word)) for word in given.folder]
    if given.merge:
        home, summary, told = merge(folders)
        print(f"tokenswarm: {told}", file=sys.stderr)
    elif len(folders) > 1:
        raise ConfigError("report takes one folder; --merge takes several")
    else:
        home = folders[0]
        summary = read_summary(home)
        if home.is_dir():
            write_page(home, summary)
    Console().print(terminal.report(summary, str(home), written=home.is_dir()))
    return int(ExitCode.OK)


def _folder(path: Path) -> Path:
    """The results folder that is meant where one of its files was named."""
    return path.parent if path.name in ("summary.json", "manifest.json", "report.html") else path
