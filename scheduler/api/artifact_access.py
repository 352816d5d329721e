"""Who may use what is in the artifact store. Whatever a caller may not use is as if it were not there.

Uploads are the institution's: a colleague who knows a digest may use what it names. What jobs left behind may be used by whoever may
read it. A folder that was uploaded may be used when all its files may: a manifest that merely names what others hold opens nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler.api.blobs import Artifacts
from scheduler.api.data import require_export
from scheduler.api.limits import scope_within
from scheduler.api.permissions import Scope
from scheduler.api.visibility import Caller
from scheduler.domain.errors import NotFound, PermissionDenied
from scheduler.domain.holdings import HoldingKind, HoldingRecord
from scheduler.service.contract import Service
from scheduler.wire.cache import BoundedCache

_READS = "suanli.v1.JobService/DownloadResult"
_KNOWN_FOLDERS = 10_000
_Known = tuple[str, str, str]
"""Institution, the one project that the credential is for, digest."""


class ArtifactAccess:
    """Answers from the record of who holds what."""

    def __init__(self, service: Service, artifacts: Artifacts) -> None:
        self._service = service
        self._artifacts = artifacts
        self._usable: BoundedCache[_Known, int] = BoundedCache(_KNOWN_FOLDERS)
        """Uploaded folders whose files may all be used, with how often something had been deleted by then."""

    async def uploads(
        self, caller: Caller, institution: str, digests: Sequence[str], project: str = ""
    ) -> frozenset[str]:
        """Which of these an institution (or one project of it) has uploaded; of a credential for one project, that one."""
        rows = await self._service.find_holdings(digests, institution)
        only = project or caller.project
        return frozenset(row.digest for row in rows if row.kind == HoldingKind.UPLOAD and only in ("", row.project))

    async def folder(self, caller: Caller, institution: str, digest: str) -> Mapping[str, str]:
        """The files of a folder, digests by path, that a job of the institution is to run in. ``NotFound``; ``PermissionDenied`` for
        a folder that a job made of data that may not be taken out."""
        deletions, known = self._service.deletions(institution), (institution, caller.project, digest)
        if self._usable.get(known) == deletions:
            return await self._artifacts.folder_files(digest)
        anybodys = caller.scope is Scope.ANY
        rows = await self._service.find_holdings([digest], None if anybodys else institution)
        rows = [row for row in rows if caller.project in ("", row.project)]
        if not rows:
            raise _not_there(digest)
        if any(row.kind == HoldingKind.UPLOAD for row in rows):
            files = await self._artifacts.folder_files(digest)
            if anybodys:
                return files
            wanted = list(dict.fromkeys(files.values()))
            if len(await self.uploads(caller, institution, wanted)) == len(wanted):
                self._usable.put(known, deletions, 1)
                return files
        if not await self._left_by_a_readable_job(caller, rows):
            raise _not_there(digest)
        return await self._artifacts.folder_files(digest)

    async def needed_files(self) -> frozenset[str]:
        """The folders that unfinished jobs name, and their files."""
        folders = self._service.named_folders()
        found = set(folders)
        for folder in folders:
            try:
                found.update((await self._artifacts.folder_files(folder)).values())
            except NotFound:
                # It was removed by hand: the job will say so when it starts.
                continue
        return frozenset(found)

    async def _left_by_a_readable_job(self, caller: Caller, rows: Sequence[HoldingRecord]) -> bool:
        try:
            reader = caller._replace(scope=scope_within(_READS, caller.credential))
        except PermissionDenied:
            return False
        if reader.scope is Scope.PROJECT:
            reader = reader._replace(leads=self._service.led_by(caller.user))
        refusal: PermissionDenied | None = None
        for row in rows:
            if not row.job_id or not reader.owns(row.user, row.project):
                continue
            try:
                await require_export(self._service, reader, (await self._service.get_jobs([row.job_id]))[0])
                return True
            except PermissionDenied as error:
                refusal = error
        if refusal is not None:
            raise refusal
        return False


def _not_there(digest: str) -> NotFound:
    return NotFound(f"The artifact store does not hold {digest}.", reason="ARTIFACT_NOT_FOUND")
