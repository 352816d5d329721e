"""Who holds what in the artifact store, on the live server; ``ControlPlane`` inherits it.

Rows are read from the store and changed in memory's name, so whoever changes rows of ended jobs and uploads holds a lock from the
reading on until the change is durable: nothing is counted twice, or taken away twice. What unfinished jobs hold is memory's alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from scheduler.domain.errors import NotFound
from scheduler.domain.holdings import HoldingKey, HoldingKind, HoldingRecord
from scheduler.domain.records import JobRecord
from scheduler.service import stored_quota
from scheduler.service.auditing import tell
from scheduler.service.engine import Engine
from scheduler.service.ports import Store
from scheduler.service.state import State
from scheduler.service.storage_contract import Deletion, Needs, ProjectStorage, Upload
from scheduler.service.storage_ports import HoldingQuery

T = TypeVar("T")
_NAMED_IN_AUDIT = 20


class ArtifactHoldings:
    """What is held, by whom, how much of it; and what the keeper of the store needs to know."""

    engine: Engine
    _store: Store

    def __init__(self) -> None:
        self._changing_holdings = asyncio.Lock()
        self._uploading: dict[HoldingKey, asyncio.Future[None]] = {}

    async def _change(self, work: Callable[[], T]) -> T:
        """Do a step in memory and wait until it is durable."""
        raise NotImplementedError

    async def _settled(self, work: Callable[[], T]) -> T:
        """Read from the store what is there once everything so far is durable."""
        raise NotImplementedError

    # --- uploads ----------------------------------------------------------------------------------------------------

    def take_in(self, institution: str, project: str, size: int) -> None:
        """See ``StorageService``."""
        state = self.engine.state
        if institution and (institution, project) not in state.projects:
            raise NotFound(
                f'Institution "{institution}" has no project "{project}"; `suanli project list` shows its projects.',
                reason="PROJECT_NOT_FOUND",
                field="project",
            )
        stored_quota.take_in(state, institution, project, size)

    def give_back(self, institution: str, project: str, size: int) -> None:
        """See ``StorageService``."""
        stored_quota.give_back(self.engine.state, institution, project, size)

    async def hold_uploads(self, institution: str, project: str, user: str, uploads: Sequence[Upload]) -> None:
        """See ``StorageService``. Others who send the same at the same time wait for each other; a deletion waits for none of them."""
        kind = int(HoldingKind.UPLOAD)
        wanted = {HoldingKey(institution, project, kind, each.digest): each for each in uploads}
        while under_way := [self._uploading[key] for key in wanted if key in self._uploading]:
            await asyncio.wait(under_way)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._uploading.update(dict.fromkeys(wanted, done))
        try:
            held = {row.key for row in await self._settled(lambda: self._store.get_holdings(list(wanted)))}
            await self._change(lambda: self._hold(user, {key: wanted[key] for key in wanted if key not in held}))
        finally:
            for key in wanted:
                del self._uploading[key]
            done.set_result(None)

    def _hold(self, user: str, uploads: dict[HoldingKey, Upload]) -> None:
        state = self.engine.state
        for key, each in uploads.items():
            since_ms = each.since_ms or state.now()
            record = HoldingRecord(*key, each.digest, "", user, each.size_bytes, since_ms)
            state.storage.put(record, None)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def find_holdings(self, digests: Sequence[str], institution: str | None) -> list[HoldingRecord]:
        """See ``StorageService``."""
        return await self._settled(lambda: self._store.find_holdings(digests, institution))

    async def holds_output(self, job: JobRecord, kind: int, attempt: int = 0) -> bool:
        """See ``StorageService``."""
        item = f"{job.job_id}/{attempt}" if kind == HoldingKind.LOG else job.job_id
        key = HoldingKey(job.institution, job.project, int(kind), item)
        return bool(await self._settled(lambda: self._store.get_holdings([key])))

    async def list_holdings(self, query: HoldingQuery) -> list[HoldingRecord]:
        """See ``StorageService``."""
        return await self._settled(lambda: self._store.list_holdings(query))

    def storage_of(self, institution: str) -> list[ProjectStorage]:
        """See ``StorageService``."""
        return stored_quota.storage_of(self.engine.state, institution)

    def deletions(self, institution: str) -> int:
        """See ``StorageService``."""
        return self.engine.state.storage.deletions.get(institution, 0)

    def named_folders(self) -> frozenset[str]:
        """See ``StorageService``."""
        return frozenset(self.engine.state.storage.named)

    # --- deleting ---------------------------------------------------------------------------------------------------

    async def delete_holdings(
        self, query: HoldingQuery, needed: Collection[str], reason: str, validate_only: bool
    ) -> Deletion:
        """See ``StorageService``."""
        async with self._changing_holdings:
            found = await self._settled(lambda: self._store.list_holdings(query))
            # What was named, or uploaded anew, while the rows were read is seen from here on: nothing is awaited any more.
            state = self.engine.state
            going = [
                row
                for row in found
                if row.job_id not in state.jobs
                and row.digest not in needed
                and row.digest not in state.storage.named
                and row.key not in self._uploading
            ]
            size = sum(row.counted_bytes for row in going)
            after = found[-1] if len(found) == query.limit else None
            if going and not validate_only:
                await self._change(lambda: _drop(state, query, going, size, reason))
            return Deletion(len(going), size, len(found) - len(going), after)

    # --- for the keeper of the store -----------------------------------------------------------------------------------

    async def unmeasured(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next holdings without a size."""
        return await self._settled(lambda: self._store.unmeasured_holdings(after, limit))

    async def note_sizes(self, sizes: Sequence[tuple[HoldingRecord, int]]) -> None:
        """Count holdings that were read without a size; what has changed or gone since then is left alone."""
        async with self._changing_holdings:
            keys = [record.key for record, _ in sizes]
            now = {row.key: row for row in await self._settled(lambda: self._store.get_holdings(keys))}

            def note() -> None:
                state = self.engine.state
                for record, size in sizes:
                    if now.get(record.key) == record:
                        state.storage.measured(record, size, record.job_id in state.jobs)

            await self._change(note)

    async def holdings_page(self, after: HoldingKey | None, limit: int) -> list[HoldingRecord]:
        """The next holdings of everybody."""
        return await self._settled(lambda: self._store.holdings_after(after, limit))

    async def jobs_page(self, first_job_no: int, count: int) -> list[JobRecord]:
        """Jobs by number."""
        return await self._settled(lambda: self._store.jobs_by_number(first_job_no, count))

    def institutions_by_id(self) -> list[str]:
        """All institutions."""
        return sorted(self.engine.state.institutions)

    def storage_mark(self, name: str) -> str:
        """What was remembered under a name; empty before."""
        return self.engine.state.storage.marks.get(name, "")

    async def set_storage_mark(self, name: str, value: str) -> None:
        """Remember something over restarts."""
        await self._change(lambda: self.engine.state.storage.mark(name, value))

    def needs(self) -> Needs:
        """What must stay in the store although nobody may hold it, as of now."""
        state = self.engine.state
        return Needs(frozenset(state.storage.named), unheard_ms(state))


def unheard_ms(state: State) -> int:
    """Since when something may have been stored that the control plane has not heard of; now, where everybody is heard.

    A region that is silent may have stored what its attempts left. The replicas of a gang store when each of them ends, and
    it is told when the last one has.
    """
    since = state.now()
    for region in state.regions.values():
        if not region.online and region.attempts:
            since = min(since, region.last_seen_ms)
        since = min([since, *(a.grant_ms for a in region.attempts.values() if len(a.replicas) > 1)])
    return since


def _drop(state: State, query: HoldingQuery, going: Sequence[HoldingRecord], size: int, reason: str) -> None:
    for row in going:
        state.storage.drop(row)
    deleted = {
        "items": len(going),
        "size_bytes": size,
        "jobs": sorted({row.job_id for row in going} - {""})[:_NAMED_IN_AUDIT],
        "digests": [row.digest for row in going[:_NAMED_IN_AUDIT]],
    }
    target = f"{query.institution}/{query.project}" if query.project else query.institution
    tell(state, "DeleteArtifacts", target, query.institution, None, deleted, reason)
