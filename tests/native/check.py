"""The reader in C under sanitizers: strict warnings, address and undefined behaviour, mutated streams, leaks.

`make check-native` runs it: `check.py [SECONDS [SEED]]`. It compiles what is in C, tokenswarm/client/_reader.c and
tokenswarm/measure/_counting.c, beside the real ones, with -Wall -Wextra -Werror and both sanitizers, loads it into
Python with the sanitizers' runtime, counts gaps as Python does, and plays streams until the time is over: those of
tests/streams, the scripts of the tests and tests/native/corpus, cut, changed, spliced. After each, the reader in Python
must have told the same. What differs is written to tests/native/found, to be moved
into the corpus. Exit code 1 then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
TESTS = HERE.parent
REPO = TESTS.parent
SECONDS = 60.0
GAPS = 2_000  # answers whose gaps are counted
STEP = b"\x00--step--\x00"  # between the reads of a corpus file
SANITIZE = ("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
SPICE = (
    b"\r\n",
    b"\n\n",
    b"\n",
    b"\r",
    b"0\r\n\r\n",
    b";x=y",
    b"data: ",
    b": \n\n",
    b"\\u00e9",
    b"\xc3\xa9",
    b"\xff",
    b"\\",
    b'"',
)


def main() -> int:
    if "--fuzz" in sys.argv:
        return fuzz(float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    seconds = sys.argv[1] if len(sys.argv) > 1 else str(SECONDS)
    seed = sys.argv[2] if len(sys.argv) > 2 else str(random.randrange(10**6))
    build = load(REPO / ".ci" / "build_reader.py", "build_reader")
    with tempfile.TemporaryDirectory() as folder:
        for source in build.SOURCES:
            library = Path(folder) / f"{source.stem}.abi3.so"
            if subprocess.run(build.command(source, library, *build.STRICT, *SANITIZE), check=False).returncode:
                return 1
        environ = {**os.environ, "PYTHONMALLOC": "malloc", "LD_PRELOAD": runtime(build), "PYTHONPATH": str(REPO)}
        environ |= {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        command = [sys.executable, __file__, "--fuzz", seconds, seed, folder]
        print(f"check-native: {seconds} s of mutated streams, seed {seed}", flush=True)
        return subprocess.run(command, env=environ, check=False, timeout=float(seconds) * 3 + 120).returncode


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def runtime(build: ModuleType) -> str:
    """The sanitizer's library, which must be in the process before Python is."""
    compiler = build.command(Path("x"), Path("y"))[0]
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    path = found.stdout.strip()
    if not Path(path).is_absolute() or shutil.which(compiler) is None:
        sys.exit(f"check-native: {compiler} has no libasan.so")
    return path


def fuzz(seconds: float, seed: int, folder: Path) -> int:
    import tokenswarm.client
    from tokenswarm.measure import counting

    sys.path.insert(0, str(TESTS))
    tokenswarm.client._reader = load(folder / "_reader.abi3.so", "tokenswarm.client._reader")  # type: ignore[attr-defined]  # not the real one
    counting.IN_C = load(folder / "_counting.abi3.so", "tokenswarm.measure._counting")
    from exchanges import Setup
    from test_counting import assert_both_count_alike
    from two_readers import clients, play

    seeds, chance = corpus(), random.Random(seed)
    for _ in range(GAPS):
        magnitude = chance.randrange(1, 70)
        assert_both_count_alike(tuple(chance.randrange(-1, 1 << magnitude) for _ in range(chance.randrange(300))))
    setups = [Setup("python"), Setup("native")]
    until_s, number = time.monotonic() + seconds, 0
    kinds = (("openai", "chat"), ("openai", "completions"), ("ollama", "chat"), ("ollama", "generate"))
    pairs = [clients(setups, kind=kind, event_bytes_max=size) for kind in kinds for size in (300, 1 << 20)]
    while time.monotonic() < until_s or number < len(seeds):
        steps = seeds[number] if number < len(seeds) else mutated(chance, seeds)
        number += 1
        with (folder / "last").open("wb") as last:
            last.write(STEP.join(steps))
        lazily, pair = chance.random() < 0.3, chance.choice(pairs)
        told = [play(client, [*steps, "close"], lazily=lazily) for client in pair]
        if told[0] != told[1]:
            differing = {name: (told[0][name], told[1][name]) for name in told[0] if told[0][name] != told[1][name]}
            print(f"check-native: the readers differ: {differing}\nkept as {keep(STEP.join(steps))}", file=sys.stderr)
            return 1
    print(f"check-native: {number} streams, no difference and no fault", flush=True)
    return 0


def keep(data: bytes) -> Path:
    path = HERE / "found" / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def corpus() -> list[list[bytes]]:
    """Lists of reads."""
    from raw_server import LAST_CHUNK, chunk, head
    from test_readers import CHANGED, SCRIPTS, other

    found = [[step for step in script if isinstance(step, bytes)] for script in SCRIPTS.values()]
    found += [[head(), chunk(other()), chunk(other() + said), chunk(other()), LAST_CHUNK] for said in CHANGED.values()]
    for path in sorted((TESTS / "streams").iterdir()):
        if path.suffix in (".sse", ".ndjson"):
            lines = path.read_bytes()[:4000].splitlines(keepends=True)
            found.append([head(), *map(chunk, lines), LAST_CHUNK])
    found += [path.read_bytes().split(STEP) for path in sorted((HERE / "corpus").glob("*"))]
    return [steps for steps in found if steps]


def mutated(chance: random.Random, seeds: list[list[bytes]]) -> list[bytes]:
    steps = list(chance.choice(seeds))
    if chance.random() < 0.3:
        other = chance.choice(seeds)
        steps = steps[: chance.randrange(len(steps) + 1)] + other[chance.randrange(len(other)) :]
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(steps)) if steps else 0
        data = bytearray(steps[at]) if steps else bytearray(b"x")
        place = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[place:place] = chance.choice(SPICE)
            case 1 if data:
                data[min(place, len(data) - 1)] = chance.randrange(256)
            case 2:
                del data[place : place + chance.randrange(1, 9)]
            case 3:
                data[place:place] = data[place : place + chance.randrange(40)] * chance.randrange(1, 60)
            case _ if steps:
                steps[at:at] = steps[at : at + 2] * chance.randrange(1, 4)
                continue
        steps[at : at + 1] = [bytes(data)]
    wire = b"".join(steps)
    if wire and chance.random() < 0.7:  # cut it elsewhere
        cuts = sorted({0, len(wire), *(chance.randrange(len(wire)) for _ in range(chance.randrange(1, 20)))})
        steps = [wire[a:b] for a, b in itertools.pairwise(cuts)]
    return [step for step in steps if step]


if __name__ == "__main__":
    sys.exit(main())
