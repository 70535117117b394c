"""Rows in several files: closed, compressed, read as one, and named where one is missing, cut or can't be written."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_runs import run

from tokenswarm.errors import ResultsError
from tokenswarm.reports.folder import ResultsFolder
from tokenswarm.reports.html import page
from tokenswarm.reports.html.requests import read
from tokenswarm.reports.html.samples import sample
from tokenswarm.reports.rows import Lines, closed_files, compress, missing_files, row_files
from tokenswarm.reports.spool import Owner, Spool
from tokenswarm.result.summary import summarize

RUN_ID = "20261124-001500-ab12"


def line(number: int) -> bytes:
    return b'{"id":"r%d","worker":0,"stage":0,"phase":"steady","outcome":"ok","intended_s":%d}\n' % (number, number)


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    """A folder whose files hold ten rows."""
    made = ResultsFolder.create(tmp_path, RUN_ID)
    made.rotate_bytes = 10 * len(line(10)) - 20
    return made


def fill(folder: ResultsFolder, rows: int, *, packed: int = 99) -> None:
    for number in range(10, 10 + rows):
        folder.append_rows(line(number))
        while folder.closed:
            full = folder.closed.pop(0)
            if int(full.name.split(".")[1]) <= packed:
                compress(full)


def ids(folder: Path) -> list[str]:
    return [text.split(b'"')[3].decode() for path in row_files(folder) for text in Lines(path)]


def test_files_that_are_full_are_closed_and_read_in_their_order(folder: ResultsFolder) -> None:
    fill(folder, 35, packed=2)
    names = [path.name for path in row_files(folder.path)]
    assert names == ["requests.0001.jsonl.gz", "requests.0002.jsonl.gz", "requests.0003.jsonl", "requests.jsonl"]
    assert ids(folder.path) == [f"r{number}" for number in range(10, 45)]
    assert gzip.decompress((folder.path / names[0]).read_bytes()) == b"".join(map(line, range(10, 20)))
    drawn = read(row_files(folder.path), 100.0)
    assert (drawn.n, drawn.unreadable, drawn.problems) == (35, 0, [])


def test_without_a_size_there_is_one_file(tmp_path: Path) -> None:
    folder = ResultsFolder.create(tmp_path, RUN_ID)
    fill(folder, 35)
    assert [path.name for path in row_files(folder.path)] == ["requests.jsonl"]


def test_a_file_that_is_there_in_both_forms_is_read_once(folder: ResultsFolder) -> None:
    """As after a master was killed between the two."""
    fill(folder, 25)
    whole = folder.path / "requests.0001.jsonl"
    whole.write_bytes(gzip.decompress((folder.path / "requests.0001.jsonl.gz").read_bytes()))
    (folder.path / "requests.0002.jsonl.gz.part").write_bytes(b"half")
    assert closed_files(folder.path)[1] == whole
    assert ids(folder.path) == [f"r{number}" for number in range(10, 35)]


def test_a_file_that_is_missing_is_named(folder: ResultsFolder) -> None:
    fill(folder, 45)
    (folder.path / "requests.0002.jsonl.gz").unlink()
    told = "requests.0002.jsonl.gz: no such file, but later ones are there: copy it back, its rows are in no other"
    assert missing_files(row_files(folder.path)) == told
    (folder.path / "requests.0003.jsonl.gz").unlink()
    assert missing_files(row_files(folder.path)).startswith("requests.0002.jsonl.gz: no such file (and 1 more)")
    problems: list[str] = []
    text = page.render(summarize(run()), {}, row_files(folder.path), problems)
    assert problems == [missing_files(row_files(folder.path))]
    assert "requests.0002.jsonl.gz: no such file" in text


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        (lambda data: data[: len(data) // 2], "ends too early"),
        (lambda data: data[:-8] + b"\0" * 8, "is damaged"),
        (lambda _: b"no gzip at all\n", "is damaged"),
        (lambda data: data[:40] + b"\xff" * 20 + data[60:], "is damaged"),
    ],
    ids=["cut", "checksum", "other", "bits"],
)
def test_a_file_that_is_cut_or_damaged_is_told_with_its_line(folder: ResultsFolder, damage: object, how: str) -> None:
    fill(folder, 35)
    path = folder.path / "requests.0002.jsonl.gz"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    drawn = read(row_files(folder.path), 100.0)
    (problem,) = drawn.problems
    named, at, rest = problem.split(":", 2)
    assert named == path.name
    assert rest.startswith(f" the compressed file {how}")
    assert "copy it again" in rest
    assert 1 <= int(at) <= 11
    assert drawn.n == 25 + int(at) - 1, "rows of the other files, and those before the damage"


def test_a_comparison_reads_all_files_and_tells_of_one_that_is_damaged(folder: ResultsFolder) -> None:
    fill(folder, 35, packed=2)
    found = sample(row_files(folder.path), RUN_ID)
    assert (found.rows, found.whole, found.reason) == (35, True, "")
    path = folder.path / "requests.0002.jsonl.gz"
    path.write_bytes(path.read_bytes()[:40])
    found = sample(row_files(folder.path), RUN_ID)
    assert found.rows == 25
    assert found.reason == f"requests.0002.jsonl.gz of {RUN_ID} can't be read (it is cut off, or damaged)"
    assert sample([], RUN_ID).reason == f"requests.jsonl of {RUN_ID} holds no request"


def test_an_empty_compressed_file_is_no_row_and_no_crash(folder: ResultsFolder) -> None:
    fill(folder, 25)
    (folder.path / "requests.0001.jsonl.gz").write_bytes(b"")
    assert read(row_files(folder.path), 100.0).n == 15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a tmpfs needs root and the right to mount")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_disk_that_is_full_while_compressing_costs_no_row(small_disk: Path) -> None:
    folder = ResultsFolder.create(small_disk, RUN_ID)
    folder.rotate_bytes = 50_000
    noise = os.urandom(25_000).hex().encode()  # so that its compressed form does not fit either
    folder.append_rows(noise + b"\n")
    (full,) = folder.closed
    with pytest.raises(ResultsError, match=r"requests\.0001\.jsonl\.gz: could not be written: No space left.*stay in"):
        compress(full)
    assert [path.name for path in folder.path.iterdir() if path.name != ".spool"] == ["requests.0001.jsonl"]
    assert next(iter(Lines(full))) == noise + b"\n"
    folder.append_rows(b"the next row\n")
    assert [path.name for path in row_files(folder.path)] == ["requests.0001.jsonl", "requests.jsonl"]


def test_a_window_that_does_not_fit_leaves_none_behind(small_disk: Path) -> None:
    folder = ResultsFolder.create(small_disk, RUN_ID)
    folder.append_line("windows.jsonl", b"one\n")
    with pytest.raises(ResultsError, match=r"windows\.jsonl: could not be written: No space left"):
        folder.append_line("windows.jsonl", b"x" * 100_000)
    assert (folder.path / "windows.jsonl").read_bytes() == b"one\n"


def test_a_spool_gives_its_parts_once_and_loses_no_row(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Owner(run_id=RUN_ID, worker=3, workers=4, host="h", pid=1), parts=True)
    rows = [b"%07d%s\n" % (number, b"x" * 1000) for number in range(2500)]
    for row in rows:
        spool.write(row)
    spool.flush()
    first = spool.take()
    assert first is not None
    assert first.name == "worker-3.0001.jsonl"
    spool.close()
    rest = b"".join(spool.blocks(10_000))
    assert first.read_bytes() + rest == b"".join(rows)
    first.unlink()
    spool.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_can_begin_no_new_file_goes_on_in_the_old_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Owner(run_id=RUN_ID, worker=0, workers=1, host="h", pid=1), parts=True)
    (tmp_path / "worker-0.0001.jsonl").mkdir()  # a file can't be renamed to a folder
    rows = [b"%07d%s\n" % (number, b"x" * 1000) for number in range(1200)]
    for row in rows:
        spool.write(row)
    spool.close()
    assert (spool.take(), spool.lost, spool.failure) == (None, 0, None)
    assert spool.path.read_bytes() == b"".join(rows)
