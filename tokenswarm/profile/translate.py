"""Other tools' commands in our words: a command line in, a profile out, and what of it has no equal here.

A tool is a table of its options, in `tools/`: each sets a key of the profile by a function, is void here for a
reason, or is not known, which is said. docs/comparability.md is held to these tables.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import msgspec
import yaml

from tokenswarm.errors import ConfigError
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.tools import aiperf, guidellm, serving
from tokenswarm.profile.tools.values import Option, Refused, Tool, put
from tokenswarm.profile.typed_yaml import shown

TOOLS = serving.TOOLS | aiperf.TOOLS | guidellm.TOOLS
"""A row a tool whose commands are translated."""

SHELL = re.compile(r"\d*>.*|&>.*|<|\|.*|&+|;.*|#.*|2>&1")
"""Where a command ends and its shell goes on: pipes, files, the next command, a comment."""

VARIABLE = re.compile(r"\$\{?[A-Za-z_]")
TEXT = "the profile of this command"


class Translated(msgspec.Struct, frozen=True):
    """`profile`: nested keys. `lacks`: what has no equal, by option. `remarks`: what is not quite the same."""

    tool: str
    profile: dict[str, Any]
    lacks: dict[str, str]
    remarks: list[str]

    def text(self) -> str:
        """The profile as YAML, with what it lacks as comments. No word of the command is repeated: it may be a key."""
        told = [f"# Of a command of {self.tool}."]
        told += [f"# not quite the same: {remark}" for remark in self.remarks]
        told += [f"# has no equal here: {shown(option)}: {why}" for option, why in self.lacks.items()]
        return "\n".join(told) + "\n" + yaml.safe_dump(self.profile, sort_keys=False, allow_unicode=True, width=1000)


def translate(command: str) -> Translated:
    """Raises ConfigError where it is no command of a tool that is known, or a value can't be read."""
    name, tool, words = _command(command)
    plain: dict[str, Any] = {}
    profile: dict[str, Any] = {"name": "translated", "target": "http://127.0.0.1:8000"}
    lacks: dict[str, str] = {}
    for option, value in _pairs(words, tool):
        row = tool.options.get(option)
        if row is None:
            close = difflib.get_close_matches(option, tool.options, n=1, cutoff=0.8)
            lacks[option] = f"not known; did you mean `{close[0]}`?" if close else "not known"
        elif not row.key:
            lacks[option] = row.why
        else:
            made = _read(option, row, value)
            if not row.key.startswith("~"):
                put(profile, row.key, made)
            elif row.adds:
                plain[row.key[1:]] = [*plain.get(row.key[1:], []), *made]
            else:
                plain[row.key[1:]] = made
    remarks: list[str] = []
    try:
        tool.finish(plain, profile, remarks)
    except Refused as error:
        raise ConfigError(f"translate: {error}") from None
    found = Translated(name, profile, lacks, remarks)
    profiles.load(found.text(), TEXT)
    return found


def _command(command: str) -> tuple[str, Tool, list[str]]:
    """The tool and the words behind its name: what stands before it (a prompt, variables, docker) is of the shell."""
    try:
        words = [word for word in shlex.split(command) if word != "\n"]
    except ValueError as error:
        raise ConfigError(f"translate: the command can't be split into words: {error}") from None
    names = [PurePath(word).name for word in words]
    for at in range(len(words)):
        for name, tool in TOOLS.items():
            for start in tool.starts:
                if tuple(names[at : at + len(start)]) == start:
                    return name, tool, _of_the_command(words[at + len(start) :])
    known = ", ".join(f"`{name} …`" for name in TOOLS)
    raise ConfigError(f"translate: give one command in quotes, of {known}")


def _of_the_command(words: Sequence[str]) -> list[str]:
    """The words up to where the shell goes on."""
    found: list[str] = []
    for word in words:
        if SHELL.fullmatch(word):
            break
        found.append(word.removesuffix(";"))
        if word.endswith(";"):
            break
    return found


def _pairs(words: Sequence[str], tool: Tool) -> list[tuple[str, str]]:
    """(option, its value) of a command's words; several values of one option are joined by a space."""
    found: list[tuple[str, str]] = []
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            option, _, value = word.partition("=")
            found.append((_whole_name(option, tool), value))
        elif found and (row := tool.options.get(found[-1][0])) is not None and row.read is None:
            raise ConfigError(f"translate: `{shown(word)}`: {found[-1][0]} takes no value")
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {word}".strip())
        else:
            raise ConfigError(f"translate: `{shown(word)}` is no option")
    return found


def _whole_name(option: str, tool: Tool) -> str:
    """With dashes for underscores, and in full where argparse takes the beginning of a name for the whole."""
    if option in tool.options:
        return option
    option = option.replace("_", "-")
    meant = [name for name in tool.options if name.startswith(option)] if tool.shortens and len(option) > 2 else []
    return option if option in tool.options or len(meant) != 1 else meant[0]


def _read(option: str, row: Option, value: str) -> Any:
    if row.read is None:
        return True
    if VARIABLE.search(value):
        raise ConfigError(f"translate: {option} {shown(value)}: is a variable of your shell; write its value")
    try:
        if not value:
            raise ValueError
        return row.read(value)
    except Refused as error:
        raise ConfigError(f"translate: {option} {shown(value)}: {error}") from None
    except (ValueError, OverflowError):
        raise ConfigError(f"translate: {option} {shown(value)}: can't be read as its value") from None
