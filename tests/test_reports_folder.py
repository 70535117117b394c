"""The results folder holds whole files or none, says why in one sentence, and keeps `latest` right."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tokenswarm.errors import ResultsError
from tokenswarm.reports import folder as folders
from tokenswarm.reports.folder import LIVE_NAME, ResultsFolder, link_latest, new_run_id

RUN_ID = "20261124-001500-ab12"


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    return ResultsFolder.create(tmp_path / "results", RUN_ID)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a tmpfs needs root and the right to mount")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_run_ids_sort_by_time_and_hold_nothing_odd() -> None:
    now = datetime(2026, 11, 24, 0, 15, tzinfo=UTC)
    assert new_run_id(now, "ab12") == RUN_ID
    with pytest.raises(ValueError):
        new_run_id(now, "../x")


def test_a_new_folder_is_empty_but_for_the_spool(folder: ResultsFolder) -> None:
    assert (folder.run_id, folder.path.name) == (RUN_ID, RUN_ID)
    assert [path.name for path in folder.path.iterdir()] == [".spool"]
    assert folder.spool.is_dir()


@pytest.mark.parametrize("run_id", ["", "../evil", "a/b", "A", "x" * 65, "-", "a\x00"])
def test_odd_run_ids_are_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ResultsError):
        ResultsFolder.create(tmp_path, run_id)


def test_a_folder_that_is_there_is_not_written_over(folder: ResultsFolder) -> None:
    with pytest.raises(ResultsError) as error:
        ResultsFolder.create(folder.path.parent, folder.run_id)
    assert "exists already" in str(error.value)


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(ResultsError) as error:
        ResultsFolder.create(tmp_path / "results", RUN_ID)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResultsError) as error:
        ResultsFolder.create(tmp_path, RUN_ID)
    assert "Permission denied" in str(error.value)


def test_rows_are_appended_and_the_spool_goes(folder: ResultsFolder) -> None:
    folder.append_rows(b'{"a":1}\n')
    folder.append_rows(b'{"a":2}\n{"a":3}\n')
    folder.close_rows()
    folder.close_rows()
    assert (folder.path / "requests.jsonl").read_bytes() == b'{"a":1}\n{"a":2}\n{"a":3}\n'
    assert not folder.spool.exists()


def test_a_spool_that_still_holds_rows_stays(folder: ResultsFolder) -> None:
    (folder.spool / "worker-0.jsonl").write_bytes(b"{}\n")
    folder.close_rows()
    assert (folder.spool / "worker-0.jsonl").exists()


def test_documents_replace_each_other_whole(folder: ResultsFolder) -> None:
    folder.write_json("summary.json", b"{}")
    folder.write_json("summary.json", b'{"a":1}')
    folder.write_text("report.md", "# é \ud83d")
    assert (folder.path / "summary.json").read_bytes() == b'{"a":1}'
    assert (folder.path / "report.md").read_text("utf-8") == "# é ?"
    assert not list(folder.path.glob("*.part"))
    for name in ("../x", "a/b", "", ".hidden/x"):
        with pytest.raises(ValueError):
            folder.write_json(name, b"")


def test_a_full_disk_leaves_no_half_document(folder: ResultsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json("summary.json", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    for name in ("summary.json", "report.html"):
        with pytest.raises(ResultsError) as error:
            folder.write_json(name, b"new")
        assert "No space left on device" in str(error.value)
    assert (folder.path / "summary.json").read_bytes() == b"old"
    assert sorted(path.name for path in folder.path.iterdir()) == [".spool", "summary.json"]


def test_rows_on_a_full_disk_end_with_a_whole_row(small_disk: Path) -> None:
    folder = ResultsFolder.create(small_disk, RUN_ID)
    batch = b'{"padding":"' + b"x" * 1000 + b'"}\n'
    for _ in range(50):
        folder.append_rows(batch)
    with pytest.raises(ResultsError) as error:
        folder.append_rows(batch * 100)
    assert "No space left" in str(error.value)
    folder.append_rows(batch)  # told once; what follows is dropped
    with pytest.raises(ResultsError):
        folder.close_rows()
    rows = (folder.path / "requests.jsonl").read_bytes()
    assert rows
    assert len(rows) % len(batch) == 0


def test_nothing_fits_nothing_is_left(small_disk: Path) -> None:
    folder = ResultsFolder.create(small_disk, RUN_ID)
    with pytest.raises(ResultsError):
        folder.append_rows(b"x" * 300_000 + b"\n")
    with pytest.raises(ResultsError):
        folder.write_json("summary.json", b"y" * 300_000)
    assert [path for path in folder.path.rglob("*") if path.is_file()] == []


def test_a_disk_that_becomes_read_only_is_a_sentence_at_each_step(small_disk: Path) -> None:
    """Even what is to be removed can't be; and none of it is anything but a ResultsError."""
    folder = ResultsFolder.create(small_disk, RUN_ID)
    folder.write_live(LIVE_NAME, b"{}")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    steps: list[Callable[[], object]] = [
        lambda: folder.append_rows(b"{}\n"),
        lambda: folder.write_json("summary.json", b"{}"),
        lambda: folder.write_live(LIVE_NAME, b"{}"),
        lambda: folder.append_line("windows.jsonl", b"{}\n"),
        folder.close_rows,
    ]
    for step in steps:
        with pytest.raises(ResultsError, match="Read-only file system"):
            step()
    assert link_latest(small_disk, folder.path) == ""
    assert (folder.has("summary.json"), folder.has(".spool")) == (False, True)


def test_latest_follows_the_newest_run(tmp_path: Path, folder: ResultsFolder) -> None:
    assert link_latest(tmp_path / "results", folder.path) == ""
    later = ResultsFolder.create(tmp_path / "results", "20261124-001501-cd34")
    assert link_latest(tmp_path / "results", later.path) == ""
    latest = tmp_path / "results" / "latest"
    assert latest.readlink() == Path("20261124-001501-cd34")
    assert latest.resolve() == later.path.resolve()


def test_no_links_no_trouble(folder: ResultsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert link_latest(folder.path.parent, folder.path) == ""


def test_a_real_folder_named_latest_is_left_alone(tmp_path: Path, folder: ResultsFolder) -> None:
    (tmp_path / "results" / "latest").mkdir()
    (tmp_path / "results" / "latest" / "mine").write_text("keep")
    assert "latest is no link, and stays what it is: this run is in" in link_latest(folder.path.parent, folder.path)
    assert (tmp_path / "results" / "latest" / "mine").read_text() == "keep"
    assert not list((tmp_path / "results").glob(".latest*"))
