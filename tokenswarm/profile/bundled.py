"""What an install brings and can be named: profiles, SLO files, locustfiles. A checkout has them beside the package."""

from __future__ import annotations

import re
from pathlib import Path

from tokenswarm.errors import ConfigError
from tokenswarm.profile import typed_yaml

PACKAGE = Path(__file__).resolve().parent.parent

KINDS: dict[str, tuple[str, str]] = {
    # kind: folder, how its files end
    "profile": ("configs/profiles", ".yaml"),
    "SLO file": ("configs/slo", ".yaml"),
    "locustfile": ("locustfiles", ".py"),
}


def configs() -> Path:
    """The folder of bundled profiles and samples. Raises ConfigError."""
    return _folder("configs/profiles").parent


def named(kind: str) -> dict[str, Path]:
    """{name: file} of what is bundled, in order. Raises ConfigError."""
    folder, end = KINDS[kind]
    return {path.stem: path for path in sorted(_folder(folder).glob(f"*{end}")) if path.stem != "__init__"}


def find(kind: str, word: str) -> str:
    """The file that a user means: one of this path, else the bundled one of this name. Raises ConfigError."""
    if "://" in word:  # not repeated: it may hold a password
        raise ConfigError(f"the {kind} is an address, where a file or a name stands: give the target as --host URL")
    path = Path(word)
    if path.name != word or path.suffix or not word or (is_there(path) and path.is_file()):
        return word
    there = named(kind)
    if word in there:
        return str(there[word])
    if is_there(path):
        return word
    missing = f"{typed_yaml.shown(word)}: no such file, and no bundled {kind} has that name"
    raise ConfigError(f"{missing} (`tokenswarm profiles` lists them){typed_yaml.suggestion(word, list(there))}")


def is_there(path: Path) -> bool:
    """Whether anything has this path. What the system won't look at is not there; who reads it says why."""
    try:
        return path.exists()
    except OSError:
        return False


def about(path: Path) -> str:
    """What a bundled file says of itself first, up to the end of that sentence or clause."""
    lines = path.read_text("utf-8").splitlines()[:2]
    text = " ".join(line.strip('"# ') for line in lines if line[:1] in '#"')
    return re.split(r"[.:;](?=\s|$)", text)[0]


def _folder(name: str) -> Path:
    for root in (PACKAGE, PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise ConfigError(f"the bundled {name} are missing; reinstall tokenswarm")
