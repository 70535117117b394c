"""A file far larger than the allowed memory is opened in bounded memory, and its rows are read back right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FILE_BYTES = 150 << 20
GROWTH_BYTES_MAX = 100 << 20  # a block, a row of 15 MiB in three forms, and the index: far below the file

CHILD = """
import gc, json, sys
import psutil
from tokenswarm.prompts.library import DataSettings, open_library

process = psutil.Process()
base = peak = process.memory_info().rss
steps = 0

def watch(progress):
    global peak, steps
    peak = max(peak, process.memory_info().rss)
    steps += 1

library = open_library(DataSettings(path=sys.argv[1]), on_progress=watch)
shard = library.shard(0, 1)
read = sum(len(next(shard).turns) for _ in range(200))
peak = max(peak, process.memory_info().rss)
print(json.dumps({"growth": peak - base, "steps": steps, "rows": len(library), "read": read,
                  "last": library.conversation(len(library) - 1).id}))
"""


def write_file(path: Path) -> int:
    """A ShareGPT-like array of FILE_BYTES and more, with one row of 15 MiB in the middle. The number of rows."""
    question = json.dumps(
        "What does the " + "very " * 40 + 'long \\ "quoted" sentence mean, with [brackets] and {braces}?'
    )
    answer = json.dumps("It means:\n" + "a line of the answer, neither short nor long\n" * 120)
    turn = '{"from": "human", "value": %s}, {"from": "gpt", "value": %s}' % (question, answer)  # noqa: UP031 - braces
    row = '{"id": "%06d_0", "conversations": [' + turn + "]}"
    rows = FILE_BYTES // len(row)
    huge = '{"id": "huge_0", "conversations": [{"from": "human", "value": "' + "x" * (15 << 20) + '"}]}'
    with path.open("w") as file:
        file.write("[\n")
        for number in range(rows):
            file.write(row % number)
            file.write(",\n")
            if number == rows // 2:
                file.write(huge + ",\n")
        file.write('{"id": "last_0", "conversations": [{"from": "human", "value": "the end"}]}\n]\n')
    return rows + 2


def test_a_large_array_is_opened_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    rows = write_file(path)
    assert path.stat().st_size > FILE_BYTES
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    path.unlink()
    seen = json.loads(done.stdout)
    assert seen["rows"] == rows
    assert seen["last"] == "last_0"
    assert seen["read"] == 200
    assert seen["steps"] >= FILE_BYTES // (256 << 10), "the caller gets its loop back at every block"
    assert seen["growth"] < GROWTH_BYTES_MAX, f"{seen['growth'] >> 20} MiB more than before"
