"""`tokenswarm trend FILE.jsonl`: a history by what was measured, on the terminal and as trend.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tokenswarm.commands.compare import write
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import options
from tokenswarm.profile.typed_yaml import suggestion

PAGE_NAME = "trend.html"


def main(words: list[str]) -> int:
    """Tell a history; raises ConfigError, ResultsError."""
    parser = options.parser_of("trend")
    parser.add_argument("file", metavar="FILE", help="what --history of run and compare appended to")
    parser.add_argument("--to", metavar="FILE", help=f"the page (default: {PAGE_NAME} beside the history)")
    parser.add_argument("--metric", metavar="NAME", action="append", default=[], help="only these (may be repeated)")
    given = parser.parse_args(words)
    from tokenswarm.judge import trend  # after the words: the tables and the page take a while
    from tokenswarm.judge.compare import METRICS
    from tokenswarm.reports import history
    from tokenswarm.reports.numbers import harmless

    metrics = _metrics(given.metric, [metric.name for metric in METRICS])
    path = Path(given.file)
    lines, problems = history.read(path)
    for problem in problems[: history.PROBLEMS_TOLD]:
        print(f"tokenswarm: {harmless(problem, 1_000)}", file=sys.stderr)
    if len(problems) > history.PROBLEMS_TOLD:
        print(f"tokenswarm: and {len(problems) - history.PROBLEMS_TOLD} further lines", file=sys.stderr)
    found = trend.series(lines)
    if not found:
        raise ConfigError(f"{path}: holds no run" + (": none of its lines can be read" if problems else " yet"))
    from tokenswarm.reports import trend as told  # after mistakes: the tables and the page take longer
    from tokenswarm.reports.html import trend as page

    drawn = [
        page.Drawn(
            name=one.name,
            points=one.points,
            left_out=one.left_out,
            marks=[page.Mark(c.metric, c.place, c.ratio, c.worse) for c in one.changes if c.metric in metrics],
            gap_s=trend.gap_s(one.points),
        )
        for one in found
    ]
    comparisons = [line for line in lines if line.kind == "comparison"]
    target = Path(given.to) if given.to else path.with_name(PAGE_NAME)
    from rich.console import Console

    Console().print(told.report(drawn, metrics))  # ahead of what may not be written
    write(target, page.render(path.name, drawn, metrics, comparisons, problems).encode())
    print(f"page: {target}")
    return int(ExitCode.OK)


def _metrics(names: Sequence[str], known: list[str]) -> list[str]:
    for name in names:
        if name not in known:
            raise ConfigError(f"--metric: `{name[:40]}` is not compared{suggestion(name, known)}")
    return [name for name in known if not names or name in names]
