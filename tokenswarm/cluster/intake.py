"""What workers say of a run, taken in on the master: ready or failed, reports, rows, done. The results come in here."""

from __future__ import annotations

from typing import Any

import gevent

from tokenswarm.cluster.hand_over import inflate
from tokenswarm.cluster.members import Cluster, Member
from tokenswarm.cluster.messages import ToMaster, ToWorker
from tokenswarm.cluster.watchers import Watchers
from tokenswarm.errors import ConfigError, ExitCode, ResultsError, TargetError, UserError
from tokenswarm.measure import snapshot
from tokenswarm.measure.snapshot import Inbox, Merged, SnapshotError
from tokenswarm.reports.folder import ResultsFolder
from tokenswarm.reports.rows import compress

_ERRORS: dict[int, type[UserError]] = {
    ExitCode.TARGET: TargetError,
    ExitCode.CONFIG: ConfigError,
    ExitCode.RESULTS: ResultsError,
}


class Intake:
    """Handles the members' messages of one run, and keeps what they brought."""

    def __init__(self, cluster: Cluster, folder: ResultsFolder, watchers: Watchers) -> None:
        self._cluster = cluster
        self._folder = folder
        self._watchers = watchers
        self._inbox = Inbox(folder.run_id)
        self._failed: UserError | None = None
        self.rows = 0  # written
        self._packing: gevent.Greenlet | None = None
        self._unpacked = ""  # why full files stay uncompressed
        self.unwritten: list[str] = []  # where rows could not be written, in sentences
        cluster.on(ToMaster.PREPARED, self._on_prepared)
        cluster.on(ToMaster.PROGRESS, self._on_progress)
        cluster.on(ToMaster.FAILED, self._on_failed)
        cluster.on(ToMaster.REPORT, self._on_report)
        cluster.on(ToMaster.ROWS, self._on_rows)
        cluster.on(ToMaster.DONE, self._on_done)
        cluster.on(ToMaster.TROUBLE, self._on_trouble)

    def merged(self) -> Merged:
        """All reports so far, added up."""
        return self._inbox.merged()

    def fail(self, error: UserError) -> None:
        """The run can't begin; a reason that is known already stays."""
        self._failed = self._failed or error

    def raise_failure(self) -> None:
        """Raises UserError where it is known that the run can't begin."""
        if self._failed is not None:
            raise self._failed

    def _on_prepared(self, member: Member, data: dict[str, Any]) -> None:
        member.prepared = True
        member.dataset = data["dataset"]
        member.reader = data.get("reader", "")

    def _on_progress(self, member: Member, data: dict[str, Any]) -> None:
        self._watchers.note(f"{member.name}: {data['text']}")

    def _on_failed(self, member: Member, data: dict[str, Any]) -> None:
        kind = _ERRORS.get(int(data["code"]), ConfigError)
        alone = len(self._cluster.members) == 1
        self._failed = kind(data["sentence"] if alone else f"{member.name}: {data['sentence']}")

    def _on_report(self, member: Member, data: bytes) -> None:
        try:
            report = snapshot.decode(data)
            if report.worker != member.index:
                raise SnapshotError(f"it reports as worker {report.worker}; that is not counted")
            self._inbox.put(report)
            member.spent = report.spent
        except SnapshotError as error:
            self._watchers.remark(f"{member.name}: {error}")

    def _on_rows(self, member: Member, data: dict[str, Any]) -> None:
        rows = inflate(data["data"])
        if rows is None:
            self._watchers.remark(f"{member.name}: rows came that can't be read; they are not counted")
            rows = b""
        try:
            self._folder.append_rows(rows)
        except ResultsError as error:
            self._rows_unwritten(str(error))
        if self._folder.closed and not self._packing:  # none, or one that has ended
            self._packing = gevent.spawn(self._pack)
        member.rows += rows.count(b"\n")
        self.rows += rows.count(b"\n") if self._folder.failure is None else 0
        self._cluster.send(member, ToWorker.ACK, {"seq": data["seq"], "written": self._folder.failure is None})

    def _pack(self) -> None:
        """Compress full files, in a thread. Where the disk is full they stay as they are, which is said once."""
        while self._folder.closed:
            path = self._folder.closed.pop(0)
            try:
                gevent.get_hub().threadpool.apply(compress, (path,))
            except ResultsError as error:
                if not self._unpacked:
                    self._watchers.note(str(error))
                self._unpacked = str(error)

    def in_flight(self) -> int:
        """Requests under way, as the last reports of workers that are not lost have it."""
        here = {member.index for member in self._cluster.in_run if not member.lost}
        return sum(worker.in_flight for worker in self.merged().workers if worker.worker in here)

    def settled(self) -> Merged:
        """All reports, added up, once full files are compressed: the run is over."""
        if self._packing is not None:
            self._packing.join()
        return self.merged()

    def _on_done(self, member: Member, data: dict[str, Any]) -> None:
        member.done = True
        if member.lost:
            member.lost += "; it came back, and handed its rows over"
        self._cluster.send(member, ToWorker.ACK, {"seq": data["seq"]})
        if member.rows != data["rows"]:
            self._watchers.remark(f"{member.name} wrote {data['rows']} rows, {member.rows} arrived")

    def _on_trouble(self, _member: Member, data: dict[str, Any]) -> None:
        self._rows_unwritten(str(data["sentence"])[:400])

    def _rows_unwritten(self, sentence: str) -> None:
        """Once for each disk, not for each worker."""
        if sentence not in self.unwritten:
            self.unwritten.append(sentence)
            self._watchers.remark(sentence)
