"""`tokenswarm search PROFILE`: the largest rate, or number of users, whose gates still pass."""

from __future__ import annotations

from typing import Any

from tokenswarm.commands import run
from tokenswarm.errors import ConfigError
from tokenswarm.profile import options, typed_yaml

HELP = (
    "Tries loads between the bounds of the profile's `search`, or of --rate LOW,HIGH or --users LOW,HIGH, until the "
    "largest one that keeps all limits of `slo` is known. Exit code 0: found; 10: not even the least load keeps them."
)


def main(words: list[str]) -> int:
    """Search; raises UserError before any load."""
    parser = run.make_parser("search", HELP)
    options.refuse_secrets(words)
    given = vars(parser.parse_args(words))
    for name in ("trace", "duration", "requests"):
        if given[name] is not None:
            raise ConfigError(f"--{name} is of `tokenswarm run`: a search chooses its loads itself")
    if given["rate"] is not None and given["users"] is not None:
        raise ConfigError("--rate and --users: a search looks for one of them; give one")
    bounds = []
    for name, other in (("rate", "users"), ("users", "rate")):
        if given[name] is not None:
            said = _bounds(given[name], name)
            bounds += [
                (f"search.{key}", typed_yaml.parse_value(value, f"--{name}"))
                for key, value in ((name, said), (other, "~"))
            ]
            given[name] = None
    return run.start({**given, "search": True, "bounds": bounds})


def _bounds(text: Any, name: str) -> str:
    """`1,64`, `1..64` or `[1, 64]` as YAML has it."""
    parts = str(text).strip("[] ").replace("..", ",").split(",")
    if len(parts) != 2:
        raise ConfigError(f"--{name} {str(text)[:40]}: a search takes two bounds, for example --{name} 1,64")
    return f"[{parts[0].strip()}, {parts[1].strip()}]"
