"""Instructions of an event in the replayed hot path, held to what is written down: `make check-native` runs it.

`instructions.py [--write]`. They depend on the interpreter's build and the compiler, so each has figures of its own in
instructions.json; where there are none, or no valgrind, that is said and nothing is judged. A busy machine adds to them
(timers come due more often), so the least of some counts is what counts. `--write` puts it down. Exit code 1 where an
event takes more than 5 % more.
"""

from __future__ import annotations

import functools
import json
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

WRITTEN = Path(__file__).with_name("instructions.json")
MORE = 1.05
COUNTS = {  # (reader, wire)
    "native": ("native", "vllm"),
    "native, ollama chat": ("native", "ollama chat"),
    "native, ollama generate": ("native", "ollama generate"),
    "python": ("python", "vllm"),
}
TRIES = 3


def build() -> str:
    """What the figures belong to."""
    return f"CPython {platform.python_version()}, {platform.python_compiler()}, {platform.machine()}"


def least(count: Callable[[], float], enough: float) -> int:
    """The least of some counts; no more are made once one is `enough`."""
    found = count()
    for _ in range(TRIES - 1):
        if found <= enough:
            break
        found = min(found, count())
    return round(found)


def held(counted: Mapping[str, float], written: Mapping[str, float]) -> dict[str, str]:
    """A sentence for each count that is more than was written down."""
    found = {}
    for name, before in written.items():
        now, (reader, _, wire) = counted[name], name.partition(", ")
        if now > before * MORE:
            of = f" of {wire}" if wire else ""
            found[name] = f"the {reader} reader takes {now:.0f} instructions an event{of}, more than {before:.0f} + 5 %"
    return found


def main(words: list[str]) -> int:
    from bench import replay
    from tokenswarm.client.which_reader import reader_name

    if shutil.which("valgrind") is None:
        print("check-native: no instructions are counted, there is no valgrind")
        return 0
    every = json.loads(WRITTEN.read_text("utf-8")) if WRITTEN.exists() else {}
    known = {} if "--write" in words else every.get(build(), {})
    counted = {
        name: least(functools.partial(replay.instructions, *count), known.get(name, 0) * MORE)
        for name, count in COUNTS.items()
        if count[0] in ("python", reader_name())
    }
    print(f"check-native: instructions an event: {counted}")
    if "--write" in words:
        WRITTEN.write_text(json.dumps({**every, build(): counted}, indent=2, sort_keys=True) + "\n", "utf-8")
    elif build() not in every:
        print(f"check-native: nothing is written down for {build()}; `instructions.py --write` does it")
    else:
        wrong = held(counted, {name: n for name, n in every[build()].items() if name in counted})
        print("\n".join(f"check-native: {line}" for line in wrong.values()) or "check-native: that is held")
        return int(bool(wrong))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    sys.exit(main(sys.argv[1:]))
