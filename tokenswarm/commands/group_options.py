"""The options of a comparison, and of several runs: apart from what does it, which a single run need not wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokenswarm.errors import ConfigError
from tokenswarm.judge.alike import SUBJECTS
from tokenswarm.profile.typed_yaml import suggestion
from tokenswarm.result.comparison import MARGINS, RUNS_MAX, Kind

REPEAT = 5  # runs a side, where --against-host comes alone


def of_comparison(parser: Any) -> None:
    """What a comparison is asked for."""
    group = parser.add_argument_group("how runs are held against each other")
    group.add_argument("--differ", metavar="WHAT,…", default="", help="the point: " + ", ".join(SUBJECTS))
    group.add_argument("--metric", metavar="NAME", action="append", default=[], help="only these (may be repeated)")
    group.add_argument(
        "--margin", metavar="KIND=SHARE", action="append", default=[],
        help="what still counts as the same: " + ", ".join(f"{kind}={share:g}" for kind, share in MARGINS.items()),
    )  # fmt: skip
    group.add_argument("--history", metavar="FILE", help="append a line to this JSONL file (tokenswarm trend reads it)")


def of_several_runs(parser: Any) -> None:
    """What makes a group of runs of `tokenswarm run`."""
    group = parser.add_argument_group("several runs")
    group.add_argument("--repeat", metavar="N", help=f"so many runs, 1 to {RUNS_MAX}, in a folder of theirs")
    group.add_argument(
        "--against-host", metavar="URL", help=f"and as many of this target, in turn; then compare ({REPEAT} a side)"
    )
    group.add_argument("--against-name", metavar="NAME", help="what to call that side (default: new)")
    group.add_argument(
        "--baseline", metavar="FILE|DIR", help="hold the runs against a stored group: compare --save, run --repeat"
    )
    of_comparison(parser)


def several_wanted(given: dict[str, Any]) -> bool:
    """Do these options ask for more than one run by itself? Raises ConfigError for what makes no sense alone."""
    for name in ("against_name", "differ", "metric", "margin"):
        if given[name] and not (given["against_host"] or given["baseline"]):
            raise ConfigError(f"--{name.replace('_', '-')} goes with --against-host or --baseline")
    return any(given[name] is not None for name in ("repeat", "against_host", "baseline"))


class Asked(msgspec.Struct, frozen=True):
    """How to compare: margins, which metrics, and what may differ between the sides."""

    margins: dict[Kind, float]
    metrics: list[str]
    point: list[str]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Asked:
        """As the options say. Raises ConfigError."""
        return cls(_margins(given["margin"]), given["metric"], _subjects(given["differ"]))


def _subjects(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SUBJECTS:
            raise ConfigError(f"--differ: there is no subject `{name[:40]}`{suggestion(name, list(SUBJECTS))}")
    return names


def _margins(pairs: Sequence[str]) -> dict[Kind, float]:
    margins = dict(MARGINS)
    for pair in pairs:
        kind, _, share = pair.partition("=")
        try:
            value = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
        except ValueError:
            value = -1.0
        if kind not in margins or not 0 < value < 1:
            example = "write KIND=SHARE, below 1, such as tail=0.15 or tail=15%"
            raise ConfigError(f"--margin {pair[:60]}: {example}; kinds: {', '.join(margins)}")
        margins[kind] = value
    return margins
