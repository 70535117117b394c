"""docker-compose.yml as Compose reads it without any variable set, for the tests of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((REPO / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == SERVICES["init"]["image"])


def default(text: str) -> str:
    """What Compose makes of `${NAME:-default}` when the variable is not set, and of `$$`."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert not re.search(r"(?<!\$)\$(?!\$)", text), f"Compose would look for a variable in {text!r}"
    return text.replace("$$", "$")


def command(name: str) -> list[str]:
    return [default(str(word)) for word in SERVICES[name]["command"]]


def words(name: str) -> list[str]:
    """The words of the one command that a service runs at last, without its shell."""
    found = command(name)
    if found[:2] != ["sh", "-ec"]:
        return found
    last = found[2].replace("\\\n", " ").strip().splitlines()[-1]
    return shlex.split(last.removeprefix("exec "))
