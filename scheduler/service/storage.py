"""What the control plane remembers of the artifact store: sums by tenant, and what unfinished jobs hold and name.

The rows themselves are in the store only, of which there may be millions. Every change goes through ``put`` and ``drop``, which keep
the sums with the rows, so that both are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from scheduler.domain.holdings import (
    UNMEASURED,
    HoldingKey,
    HoldingKind,
    HoldingRecord,
    StorageMark,
    StoredRecord,
)

if TYPE_CHECKING:
    from scheduler.service.job import Job

Tenant = tuple[str, str]
"""Institution and project."""


class StorageRecords(NamedTuple):
    """What has changed: rows to write, rows to delete, sums, marks."""

    holdings: list[HoldingRecord]
    gone: list[HoldingKey]
    stored: list[StoredRecord]
    marks: list[StorageMark]


class Storage:
    """The part of the state that is about stored artifacts."""

    def __init__(self) -> None:
        self.sums: dict[Tenant, StoredRecord] = {}
        self.of_institutions: dict[str, int] = {}
        """Bytes, by institution."""
        self.incoming: dict[Tenant, int] = {}
        """Bytes of uploads that are under way, which have to find room, too."""
        self.live: dict[HoldingKey, HoldingRecord] = {}
        """Results and checkpoints of unfinished jobs."""
        self.named: dict[str, int] = {}
        """How many unfinished jobs name a folder as what they run."""
        self.marks: dict[str, str] = {}
        self.deletions: dict[str, int] = {}
        """How often something of an institution's was deleted: what was found before may not be there any more."""
        self._changed: dict[HoldingKey, HoldingRecord | None] = {}
        self._changed_sums: dict[Tenant, None] = {}
        self._changed_marks: dict[str, None] = {}

    def load(
        self, holdings: Iterable[HoldingRecord], stored: Iterable[StoredRecord], marks: Iterable[StorageMark]
    ) -> None:
        """Take over what the store holds."""
        self.live = {record.key: record for record in holdings if record.kind != HoldingKind.LOG}
        for record in stored:
            self.sums[record.institution, record.project] = record
            self._count(record.institution, record.size_bytes)
        self.marks = dict(marks)

    def take_records(self) -> StorageRecords:
        """What has changed since the last call."""
        changed, self._changed = self._changed, {}
        sums, self._changed_sums = self._changed_sums, {}
        marks, self._changed_marks = self._changed_marks, {}
        return StorageRecords(
            [record for record in changed.values() if record is not None],
            [key for key, record in changed.items() if record is None],
            [self.sums[key] for key in sums],
            [StorageMark(name, self.marks[name]) for name in marks],
        )

    # --- steps ------------------------------------------------------------------------------------------------------

    def put(self, record: HoldingRecord, before: HoldingRecord | None) -> None:
        """Write a holding in the place of ``before``, the row of this key as it is now (None: there is none)."""
        self._changed[record.key] = record
        self._add(record, 0 if before else 1, record.counted_bytes - (before.counted_bytes if before else 0))

    def drop(self, record: HoldingRecord) -> None:
        """Delete a holding, which is as it is now."""
        self._changed[record.key] = None
        self._add(record, -1, -record.counted_bytes)
        self.deletions[record.institution] = self.deletions.get(record.institution, 0) + 1

    def mark(self, name: str, value: str) -> None:
        """Remember how far something has come."""
        self.marks[name] = value
        self._changed_marks[name] = None

    def _add(self, record: HoldingRecord, items: int, size: int) -> None:
        key = (record.institution, record.project)
        before = self.sums.get(key, StoredRecord(*key, 0, 0))
        self.sums[key] = StoredRecord(*key, before.items + items, before.size_bytes + size)
        self._changed_sums[key] = None
        self._count(record.institution, size)

    def _count(self, institution: str, size: int) -> None:
        self.of_institutions[institution] = self.of_institutions.get(institution, 0) + size

    # --- jobs -------------------------------------------------------------------------------------------------------

    def hold_output(self, job: Job, kind: HoldingKind, digest: str, now_ms: int, attempt: int = 0) -> None:
        """An unfinished job has left a folder in the store; it takes the place of what it left before. Of logs: of an attempt."""
        if not digest:
            return
        item = f"{job.job_id}/{attempt}" if kind is HoldingKind.LOG else job.job_id
        key = HoldingKey(job.spec.institution, job.spec.project, int(kind), item)
        before = self.live.get(key)
        if before is not None and before.digest == digest:
            return
        record = HoldingRecord(*key, digest, job.job_id, job.user, UNMEASURED, now_ms)
        self.put(record, before)
        if kind is not HoldingKind.LOG:
            self.live[key] = record

    def measured(self, record: HoldingRecord, size: int, job_is_live: bool) -> None:
        """The size of a holding is known. ``record`` is the row as it was read; a newer one of a live job is left alone."""
        if record.key in self.live or (job_is_live and record.kind != HoldingKind.LOG):
            if self.live.get(record.key) != record:
                return
            self.live[record.key] = record._replace(size_bytes=size)
        self.put(record._replace(size_bytes=size), record)

    def job_added(self, job: Job) -> None:
        """An unfinished job names its folder."""
        folder = job.spec.workload.working_folder
        if folder:
            self.named[folder] = self.named.get(folder, 0) + 1

    def job_gone(self, job: Job) -> None:
        """The job has ended: what it holds stays, and is not replaced any more."""
        folder = job.spec.workload.working_folder
        if folder:
            left = self.named[folder] - 1
            if left:
                self.named[folder] = left
            else:
                del self.named[folder]
        if job.results or job.checkpoint:
            for kind in (HoldingKind.RESULT, HoldingKind.CHECKPOINT):
                self.live.pop(HoldingKey(job.spec.institution, job.spec.project, int(kind), job.job_id), None)
