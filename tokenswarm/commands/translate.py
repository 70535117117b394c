"""`tokenswarm translate 'vllm bench serve …'`: another tool's command as a profile, and what of it has no equal."""

from __future__ import annotations

import shlex

from tokenswarm.errors import ExitCode
from tokenswarm.profile import options
from tokenswarm.profile.translate import TOOLS, translate


def main(words: list[str]) -> int:
    """Print the profile; raises ConfigError."""
    parser = options.parser_of("translate")
    parser.add_argument("command", help=f"the command, in quotes: {', '.join(TOOLS)}")
    bare = len(words) > 1 and not words[0].startswith("-")  # as it is typed, without the quotes
    command = parser.parse_args([shlex.join(words)] if bare else words).command
    print(translate(command).text(), end="")
    return int(ExitCode.OK)
