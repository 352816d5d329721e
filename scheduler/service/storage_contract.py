"""What is kept in the artifact store and by whom, as the API layer and the keeper of the store ask for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from scheduler.domain.holdings import HoldingRecord
from scheduler.domain.records import JobRecord
from scheduler.service.storage_ports import HoldingQuery


class Upload(NamedTuple):
    """A blob that somebody has sent, or (``since_ms`` > 0) had sent before it was recorded."""

    digest: str
    size_bytes: int
    since_ms: int = 0


class ProjectStorage(NamedTuple):
    """What a project (empty: all of the institution's) has stored. ``limit_bytes`` -1: no limit."""

    institution: str
    project: str
    items: int
    size_bytes: int
    limit_bytes: int


class Deletion(NamedTuple):
    """What was deleted, or would be; ``kept``: how many were not, as unfinished jobs need them. ``after``: where it goes on, None: it does not."""

    items: int
    size_bytes: int
    kept: int
    after: HoldingRecord | None


class Needs(NamedTuple):
    """What must stay in the store beside what is held: folders that unfinished jobs name; and everything stored after ``unheard_ms``,
    which a region may have stored and not have been able to say."""

    folders: frozenset[str]
    unheard_ms: int


class StorageService(Protocol):
    """See ``scheduler.service.storing.ArtifactHoldings``."""

    def take_in(self, institution: str, project: str, size: int) -> None:
        """Keep room for bytes that come in. ``ResourceExhausted`` (QUOTA_STORED); ``NotFound`` for an unknown project."""
        ...

    def give_back(self, institution: str, project: str, size: int) -> None:
        """They have come, or will not."""
        ...

    async def hold_uploads(self, institution: str, project: str, user: str, uploads: Sequence[Upload]) -> None:
        """Record that a project holds blobs, which are in the store; what it holds already stays as it is."""
        ...

    async def find_holdings(self, digests: Sequence[str], institution: str | None) -> list[HoldingRecord]:
        """Whatever an institution, or (None) anybody, holds under these digests."""
        ...

    async def holds_output(self, job: JobRecord, kind: int, attempt: int = 0) -> bool:
        """Whether what a job left (of logs: an attempt) is still held."""
        ...

    async def list_holdings(self, query: HoldingQuery) -> list[HoldingRecord]:
        """A page."""
        ...

    def storage_of(self, institution: str) -> list[ProjectStorage]:
        """Of an institution, or ("") of all: each project that has stored something or has a quota, and the sum, with project "" ."""
        ...

    def deletions(self, institution: str) -> int:
        """How often something of an institution's was deleted since this process leads."""
        ...

    def named_folders(self) -> frozenset[str]:
        """The folders that unfinished jobs name."""
        ...

    async def delete_holdings(
        self, query: HoldingQuery, needed: Collection[str], reason: str, validate_only: bool
    ) -> Deletion:
        """Delete a page of what is held, but for uploads in ``needed`` and what unfinished jobs left; recorded in the audit log."""
        ...
