"""`tokenswarm completion SHELL`: a script that lets bash, zsh or fish complete commands, options and bundled names.

The script holds the words, so that a press of Tab starts no program. They are read from each command's own help.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Mapping

from tokenswarm.commands import COMMANDS
from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import bundled, options

SHELLS = ("bash", "zsh", "fish")
OPTION = re.compile(r"^  (?:-\w, )?(--[a-z][\w-]*)", re.MULTILINE)  # where a help explains it
NAMES = {"run": "profile", "observe": "profile", "profiles": "profile", "locustfile": "locustfile"}
"""The commands whose first word is a bundled name."""


def main(words: list[str]) -> int:
    """Print the script; raises ConfigError."""
    parser = options.parser_of("completion")
    parser.add_argument("shell", help=" or ".join(SHELLS))
    shell = parser.parse_args(words).shell
    if shell not in SHELLS:
        raise ConfigError(f"completion: `{shell[:40]}` is not one of {', '.join(SHELLS)}")
    known = _words()
    print(_fish(known) if shell == "fish" else _bash(known, zsh=shell == "zsh"), end="")
    return int(ExitCode.OK)


def _words() -> dict[str, list[str]]:
    """{command: its options, and the bundled names it takes}."""
    found = {}
    for command, (module, _) in COMMANDS.items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            importlib.import_module(COMMANDS["run"][0] if command == "demo" else module).main(["--help"])
        names = list(bundled.named(NAMES[command])) if command in NAMES else []
        verbs = ["fetch", "info"] if command == "data" else list(SHELLS) if command == "completion" else []
        found[command] = [*names, *verbs, *sorted(set(OPTION.findall(text.getvalue())))]
    return found


def _bash(known: Mapping[str, list[str]], *, zsh: bool) -> str:
    cases = "\n".join(f"    {command}) words='{' '.join(words)}' ;;" for command, words in known.items())
    slo = " ".join(bundled.named("SLO file"))
    head = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return f"""{head}_tokenswarm() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(known)} --help --version' -- "$word"))
    return
  fi
  if [ "${{COMP_WORDS[COMP_CWORD - 1]}}" = --slo ]; then
    COMPREPLY=($(compgen -W '{slo}' -- "$word") $(compgen -f -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _tokenswarm tokenswarm
"""


def _fish(known: Mapping[str, list[str]]) -> str:
    lines = [f"complete -c tokenswarm -n __fish_use_subcommand -f -a '{' '.join(known)}'"]
    for command, words in known.items():
        here = f"-n '__fish_seen_subcommand_from {command}'"
        plain = [word for word in words if not word.startswith("-")]
        lines += [f"complete -c tokenswarm {here} -a '{' '.join(plain)}'"] if plain else []
        lines += [f"complete -c tokenswarm {here} -l {word[2:]}" for word in words if word.startswith("--")]
    slo = " ".join(bundled.named("SLO file"))
    return "\n".join([*lines, f"complete -c tokenswarm -l slo -r -a '{slo}'"]) + "\n"
