"""`tokenswarm report --merge RESULTS [FOLDER…]`: what dead workers, or a dead master, left on disk, as a run again.

The folders of remote workers are copied into the `.spool` of the run's own folder first, so that everything is in one
place, a second merge changes nothing, and nothing that was read is deleted. Rows are added once, by worker and id.
Where the master wrote no summary it is computed from the workers' last reports, marked partial, and INVALID.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.commands import unended
from tokenswarm.errors import MALFORMED, ConfigError, ResultsError
from tokenswarm.judge.rules.evidence import Evidence
from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import Inbox, Merged, SnapshotError
from tokenswarm.reports import manifest as manifests
from tokenswarm.reports import markdown
from tokenswarm.reports.folder import ResultsFolder
from tokenswarm.reports.rows import ROWS_NAME, Lines, missing_files, row_files
from tokenswarm.reports.saved import read_summary, write_page
from tokenswarm.reports.spool import Owner
from tokenswarm.result.summary import Summary, to_json

MANIFEST = "manifest.json"


class _Row(msgspec.Struct):
    id: str
    worker: int


class Rows(msgspec.Struct):
    """What the merge did with rows: `added` now, `total` in the file, `torn` lines that are no rows."""

    added: int = 0
    total: int = 0
    torn: int = 0
    problems: list[str] = []  # files that could not be read to their end, in sentences


def merge(folders: Sequence[Path]) -> tuple[Path, Summary, str]:
    """(results folder, summary, what was done in a sentence). Raises ConfigError, ResultsError."""
    home, manifest = _run_of(folders)
    try:
        owners = _collect(home, str(manifest["run_id"]), folders)
        rows = _add_rows(home, owners)
        ended = (home / "summary.json").exists() and not _was_rebuilt(home)
        if not ended:
            if not owners:
                raise ConfigError(f"{home}: the run has no summary, and no worker left anything in its .spool")
            _rebuild(home, manifest, owners, rows)
    except OSError as error:
        raise ResultsError(f"{error.filename or home}: {error.strerror}") from None
    summary = read_summary(home)
    write_page(home, summary)
    return home, summary, _told(owners, rows)


def _run_of(folders: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    homes = {folder.resolve() for folder in folders if (folder / MANIFEST).is_file()}
    if len(homes) != 1:
        names = ", ".join(sorted(map(str, homes)))
        why = f"{names} are different runs: merge each on its own" if homes else f"none of them holds a {MANIFEST}"
        raise ConfigError(f"--merge: {why}; name one results folder, then folders that remote workers left")
    (home,) = homes
    try:
        manifest = msgspec.json.decode((home / MANIFEST).read_bytes(), type=dict[str, Any])
        manifest["run_id"], manifest["profile"]
    except (*MALFORMED, KeyError, OSError) as error:
        raise ConfigError(f"{home / MANIFEST}: is no manifest of a run: {error}") from None
    return home, manifest


def _collect(home: Path, run_id: str, folders: Sequence[Path]) -> list[Owner]:
    """Whose files there are; those of other folders are copied to `home`/.spool. No other run's, no living one's."""
    spool = home / ".spool"
    for folder in folders:
        found = [path for place in (folder, folder / ".spool") for path in sorted(place.glob("worker-*.json"))]
        if not found and folder.resolve() != home:
            raise ConfigError(f"{folder}: holds neither a run nor what a worker left of one")
        for path in found:
            owner = _owner(path)
            if owner.run_id != run_id:
                raise ConfigError(f"{path}: belongs to run {owner.run_id}, not to {run_id}; merge each run on its own")
            if path.parent.resolve() != spool.resolve():
                spool.mkdir(exist_ok=True)
                for file in (p for p in path.parent.glob(f"{path.stem}.*") if p.suffix in (".json", ".jsonl", ".part")):
                    shutil.copyfile(file, spool / f"{file.name}.new")
                    (spool / f"{file.name}.new").replace(spool / file.name)
    owners = [_owner(path) for path in sorted(spool.glob("worker-*.json"))]
    for owner in owners:
        if _lives(owner):
            raise ConfigError(f"{owner.name} is still at work: the run goes on; end it, or wait for its end")
    return sorted(owners, key=lambda owner: owner.worker)


def _owner(path: Path) -> Owner:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Owner)
    except MALFORMED as error:
        raise ConfigError(f"{path}: does not say whose rows these are: {error}") from None


def _lives(owner: Owner) -> bool:
    """Whether the worker is a process of this machine that still runs."""
    try:
        here = Path("/proc/sys/kernel/hostname").read_text().strip() == owner.host
        command = Path(f"/proc/{owner.pid}/cmdline").read_bytes() if here else b""
    except OSError:
        return False
    return b"tokenswarm" in command or b"locust" in command


def _add_rows(home: Path, owners: Sequence[Owner]) -> Rows:
    """requests.jsonl with the rows of the spools that no file of rows has; written whole, or left as it was.

    Kept in memory are keys of rows in the spools: in a long run those that were not handed over yet.
    """
    newest, new = home / ROWS_NAME, home / f"{ROWS_NAME}.part"
    left = [path for owner in owners for path in _left_by(home, owner)]
    rows = Rows()
    lacking = {key for path in left for _, key in _lines(path, Rows())}
    files = row_files(home)
    if missing := missing_files(files):
        rows.problems.append(f"{home}/{missing}")
    for path in files:
        for _, key in _lines(path, rows):
            lacking.discard(key)
            rows.total += 1
    if lacking:
        try:
            with new.open("wb") as file:
                if newest.exists():
                    file.writelines(line for line, _ in _lines(newest, Rows()))
                for path in left:
                    for line, key in _lines(path, rows):
                        if key in lacking:
                            lacking.discard(key)
                            file.write(line)
                            rows.total += 1
                            rows.added += 1
            new.replace(newest)
        finally:
            new.unlink(missing_ok=True)
    else:
        rows.torn += sum(_torn(path) for path in left)
    return rows


def _left_by(home: Path, owner: Owner) -> list[Path]:
    """The files of a worker's rows in the spool, oldest first."""
    spool = home / ".spool"
    return [*sorted(spool.glob(f"worker-{owner.worker}.[0-9]*.jsonl")), spool / f"worker-{owner.worker}.jsonl"]


def _torn(path: Path) -> int:
    rows = Rows()
    for _ in _lines(path, rows):
        pass
    return rows.torn


def _lines(path: Path, rows: Rows) -> Iterator[tuple[bytes, tuple[int, str]]]:
    """Whole rows with (worker, id); lines that are none, such as the last one of a killed process, are counted."""
    if not path.exists():
        return
    lines = Lines(path)
    for line in lines:
        try:
            row = msgspec.json.decode(line, type=_Row) if line.endswith(b"\n") else None
        except MALFORMED:
            row = None
        if row is None:
            rows.torn += 1
        else:
            yield line, (row.worker, row.id)
    if lines.problem:
        rows.problems.append(f"{path.parent}/{lines.problem}")


def _was_rebuilt(home: Path) -> bool:
    return any(doubt.code == "never-ended" for doubt in read_summary(home).verdict.doubts)


def _rebuild(home: Path, manifest: dict[str, Any], owners: Sequence[Owner], rows: Rows) -> None:
    """summary.json, manifest.json and report.md of a run whose master wrote none."""
    profile = unended.profile_of(home, manifest)
    merged = _merged(home, str(manifest["run_id"]))
    summary = unended.summary_of(home, merged, profile)
    evidence = Evidence(
        merged=merged,
        expected_workers=max(owner.workers for owner in owners),
        profile=profile,
        rows=rows.total,
        marks=manifests.marks(manifest),
        recovered=_told(owners, rows) + " Missing are the last second, streams that were open, and the last "
        "ten seconds of what engine and GPUs told.",
    )
    unended.judge(home, summary, evidence)
    last_s = max(path.stat().st_mtime for path in (home / ".spool").glob("worker-*.jsonl"))
    whole = manifests.finish(
        manifest,
        ended=datetime.fromtimestamp(last_s, UTC),
        dataset=manifest.get("dataset") or {},
        workers=[{"index": o.worker, "host": o.host, "pid": o.pid, "lost": "the master died"} for o in owners],
    )
    folder = ResultsFolder(home)
    folder.write_json(MANIFEST, msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
    folder.write_text("report.md", markdown.render(summary, whole))
    folder.write_json("summary.json", to_json(summary))


def _merged(home: Path, run_id: str) -> Merged:
    """The sum of the last report of each worker, stage and phase. A file that is none is left out."""
    inbox = Inbox(run_id)
    for path in sorted((home / ".spool").glob("worker-*.part")):
        try:
            report = snapshot.decode(path.read_bytes())
        except SnapshotError:
            continue
        try:
            inbox.put(report)
        except SnapshotError as error:
            raise ConfigError(f"{path}: {error}") from None
    merged = inbox.merged()
    for worker in merged.workers:
        worker.missing = []  # only the newest were kept
    return merged


def _told(owners: Sequence[Owner], rows: Rows) -> str:
    if not owners:
        whole = "Nothing was left to bring back: every worker had handed its rows over."
        return " ".join([whole, *(f"{problem}." for problem in rows.problems)])
    count = max(owner.workers for owner in owners)
    absent = [str(n) for n in range(count) if n not in {owner.worker for owner in owners}]
    told = f"{rows.total} rows are there, what {len(owners)} of {count} workers left included"
    if rows.torn:
        told += f"; {rows.torn} {'line was torn and is' if rows.torn == 1 else 'lines were torn and are'} left out"
    if rows.problems:
        told += f"; {'; '.join(rows.problems)}"
    if absent:
        told += f"; nothing of worker {', '.join(absent)} is here: name the folder that it left, if it did"
    return told + "."
