"""`tokenswarm profiles [NAME]`: what comes with the install and can be named; the text of one, to start an own one."""

from __future__ import annotations

from pathlib import Path

from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import bundled, options
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.typed_yaml import suggestion

FETCH = "  ShareGPT: `tokenswarm data fetch sharegpt`; where traces are: `tokenswarm profiles NAME`"
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
        lines.append(use)
        for name, path in there.items():
            files = _files(path) if kind == "profile" else []
            needs = f"; needs {' and '.join(files)}" if files else ""
            lines.append(f"  {name:{width}}  {bundled.about(path)}{needs}")
        lines += [FETCH] if kind == "profile" else []
        lines.append("")
    return "\n".join(lines)


def _files(path: Path) -> list[str]:
    """What a bundled profile sends that is not bundled."""
    profile = profiles.load(path.read_text("utf-8"), str(path))
    files = (profile.dataset.path, profile.load.trace and profile.load.trace.path)
    return ["ShareGPT" if file.startswith("ShareGPT") else file for file in files if file and "/" not in file]
