"""What `--help` of each command ends with: an example, exit codes; and the defaults, which stand in the profile."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

import msgspec

RUN_CODES = """\
exit codes:
  0 every gate passed   10 a gate failed   11 INVALID: don't believe the numbers   12 a gate is undecided
  13 interrupted        14 the target      15 configuration or data set            16 results not written
  20 worse, 21 can't be told: with --against-host or --baseline
"""
CODES = "exit codes: 0 done, 15 a mistake in the command or its files{more}\n"

ENDS: dict[str, tuple[str, str]] = {
    # command: example, exit codes
    "run": ("tokenswarm run smoke --host http://127.0.0.1:8000", RUN_CODES),
    "observe": ("tokenswarm observe smoke --host http://127.0.0.1:8000 --for 10m", RUN_CODES),
    "worker": (
        "TOKENSWARM_RUN_TOKEN=… tokenswarm worker --master-host 10.0.0.1 --master-port 5557",
        "exit codes: 0 the run is over, 11 the master went silent, or without this worker's rows, 13 told to end,\n"
        "            14 no master there, or no load, 15 a wrong option or token, no data set, or refused\n",
    ),
    "data": ("tokenswarm data fetch sharegpt && tokenswarm data info FILE", CODES.format(more=", 16 not written")),
    "kv": ("tokenswarm kv config.json --memory 40GiB --context 8192", CODES.format(more="")),
    "report": ("tokenswarm report results/latest --csv > stages.csv", CODES.format(more=", 16 not written")),
    "search": (
        "tokenswarm search search --host http://127.0.0.1:8000 --slo chat-interactive",
        "exit codes: 0 a load was found, 10 not even the least load keeps the limits; else those of `tokenswarm run`\n",
    ),
    "calibrate": ("tokenswarm calibrate --streams 50,200,800", CODES.format(more=", 16 not written")),
    "compare": (
        "tokenswarm compare results/main-* --against results/branch-* --margin tail=0.15",
        "exit codes: 0 better or the same, 20 worse in a metric, 21 can't be told from so many runs,\n"
        "            15 not comparable, 16 not written\n",
    ),
    "trend": ("tokenswarm trend history.jsonl --metric ttft_s.p50", CODES.format(more=", 16 not written")),
    "plan": (
        "tokenswarm plan results/h100,price=2.50 results/l40s,price=0.90 --trace trace.csv --slo chat-interactive",
        "exit codes: 0 so many carry it, 12 they may, by too few requests to be sure, 10 no kind keeps the limits,\n"
        "            15 a mistake in the command or its files\n",
    ),
    "profiles": ("tokenswarm profiles smoke > mine.yaml", CODES.format(more="")),
    "locustfile": ("locust -f $(tokenswarm locustfile chat) --host http://127.0.0.1:8000", CODES.format(more="")),
    "completion": ("source <(tokenswarm completion bash)", CODES.format(more="")),
    "translate": (
        "tokenswarm translate 'vllm bench serve --request-rate 10 --num-prompts 500' > mine.yaml",
        CODES.format(more=""),
    ),
}


def end_of(command: str) -> str:
    """The last lines of a command's help."""
    example, codes = ENDS.get(command, ("", ""))
    return f"for example:\n  {example}\n\n{codes}" if example else ""


def formatter(default_of: Callable[[str], str]) -> type[argparse.HelpFormatter]:
    """A formatter that keeps the last lines as they are, and names each option's default; `default_of`: an option's."""

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text if "\n" in text else textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)

        def _get_help_string(self, action: argparse.Action) -> str | None:
            text = action.help
            if not text or "default" in text:
                return text
            known = next((value for name in action.option_strings if (value := default_of(name))), "")
            if not known and action.default not in (None, False, argparse.SUPPRESS, []):
                known = str(action.default)
            return f"{text} (default: {known.replace('%', '%%')})" if known else text

    return Formatter


def default_of_key(kind: type[msgspec.Struct], key: str) -> str:
    """The default of a dotted key of the profile, as one would write it; "" where there is none."""
    value: Any = kind
    for name in key.split("."):
        fields = (
            {field.name: field for field in msgspec.structs.fields(value)}
            if hasattr(value, "__struct_fields__")
            else {}
        )
        if name not in fields:
            return ""
        value = fields[name].default
        if value is msgspec.NODEFAULT:
            value = fields[name].type
    if value is None or isinstance(value, type) or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}s"
    return str(value) if isinstance(value, str | int) else ""
