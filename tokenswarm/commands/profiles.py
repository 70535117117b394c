"""`tokenswarm profiles [NAME]`: what comes with the install and can be named; the text of one, to start an own one."""

from __future__ import annotations

from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import bundled, options
from tokenswarm.profile.typed_yaml import suggestion

USES = {
    "profile": "profiles: tokenswarm run NAME --host URL",
    "SLO file": "SLO files: tokenswarm run … --slo NAME",
    "locustfile": "locustfiles: locust -f $(tokenswarm locustfile NAME) --host URL",
}


def main(words: list[str]) -> int:
    """Run `profiles`; raises ConfigError."""
    parser = options.parser_of("profiles")
    parser.add_argument("name", nargs="?", help="print this profile or SLO file; without a name, list all")
    given = parser.parse_args(words)
    print(_text(given.name) if given.name is not None else _list(), end="")
    return int(ExitCode.OK)


def _text(name: str) -> str:
    found = bundled.named("SLO file") | bundled.named("profile")
    if name not in found:
        raise ConfigError(f"profiles: there is none called `{name[:40]}`{suggestion(name, list(found))}")
    return found[name].read_text("utf-8")


def _list() -> str:
    lines = []
    for kind, use in USES.items():
        there = bundled.named(kind)
        width = max(map(len, there), default=0)
        lines += [use, *(f"  {name:{width}}  {bundled.about(path)}" for name, path in there.items()), ""]
    return "\n".join(lines)
