"""Who holds what in the artifact store: the rows that are kept of it. ``records`` says what rows are."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

UNMEASURED = -1
"""The size of what was reported a moment ago and has not been looked at yet."""


class HoldingKind(IntEnum):
    """By what something is held. The numbers are those of ``suanli.v1.ArtifactKind``."""

    UPLOAD = 1
    """A blob that a user sent."""
    RESULT = 2
    """The folder of a job's results."""
    CHECKPOINT = 3
    """The folder of a job's newest checkpoint."""
    LOG = 4
    """The folder of an attempt's logs."""


class HoldingKey(NamedTuple):
    """What names a holding. ``item``: an upload's digest, a job's id, or (of logs) "job/attempt"."""

    institution: str
    project: str
    kind: int
    item: str


class HoldingRecord(NamedTuple):
    """A project holds a blob, or a folder with all its files, since ``since_ms``; its first fields are a ``HoldingKey``.

    ``size_bytes`` counts the manifest and every file of a folder in full, however many others hold them; ``UNMEASURED`` before it is
    known. ``job_id`` is empty for uploads; ``user`` is whoever sent it first, or submitted the job. ``institution`` is empty for what
    the platform's own users sent for nobody.
    """

    institution: str
    project: str
    kind: int
    item: str
    digest: str
    job_id: str
    user: str
    size_bytes: int
    since_ms: int

    @property
    def key(self) -> HoldingKey:
        """What names it."""
        return HoldingKey(self.institution, self.project, self.kind, self.item)

    @property
    def counted_bytes(self) -> int:
        """What it adds to the sums."""
        return max(0, self.size_bytes)


class StoredRecord(NamedTuple):
    """How many things a project holds, and their sizes together; written in the transaction that changes either."""

    institution: str
    project: str
    items: int
    size_bytes: int


class StorageMark(NamedTuple):
    """How far a task that survives restarts has come, by its name (``scheduler.service.storing``)."""

    name: str
    value: str
