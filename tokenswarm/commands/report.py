"""`tokenswarm report DIR`: print the tables of a finished run again, and write its report.html again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tokenswarm.errors import ExitCode
from tokenswarm.profile import options
from tokenswarm.reports import console as terminal
from tokenswarm.reports.saved import read_summary, write_page


def main(words: list[str]) -> int:
    """Tell a finished run again; raises UserError."""
    parser = options.parser_of("report")
    parser.add_argument("folder", help="a results folder, for example results/latest")
    folder = Path(parser.parse_args(words).folder)
    summary = read_summary(folder)
    if folder.is_dir():
        write_page(folder, summary)
    Console().print(terminal.report(summary, str(folder)))
    return int(ExitCode.OK)
