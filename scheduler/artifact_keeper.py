"""Keeps the artifact store and the record of who holds what together, on the leader: measures what jobs left, enters what was there
before there was a record, deletes what has been kept long enough, and removes blobs that nobody holds any more.

A blob is removed when no one holds it and no unfinished job names it, as of a moment after which it was not stored again: whoever stores
what is there makes it young, and only what is older than the grace period goes. What a region has stored and not yet said counts as
needed: while a region is silent, or a gang runs, nothing that was stored since then is removed. When anything that
has to be read cannot be, nothing is removed at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from scheduler.catalog.artifacts import StoredBlob, SweptStore
from scheduler.domain.errors import SuanliError
from scheduler.domain.holdings import HoldingKey, HoldingKind, HoldingRecord
from scheduler.service.control_plane import ControlPlane
from scheduler.service.marking import Marked
from scheduler.service.ports import Clock, IdSource, SpecCodec
from scheduler.service.storage_contract import Upload
from scheduler.service.storage_ports import HoldingQuery

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_S = 2.0
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
PAGE = 500
_SEEN = 10_000
PREFIXES = tuple(f"{number:02x}" for number in range(256))
OUTPUTS = (int(HoldingKind.RESULT), int(HoldingKind.CHECKPOINT), int(HoldingKind.LOG))
ADOPT_UNTIL, ADOPTED, OWNER, SWEEPS = "adopt_until", "adopted", "owner", "sweeps"


@dataclass(frozen=True)
class KeeperSettings:
    """Intervals and ages. 0 hours or days: never."""

    collect_every_ms: int = DAY_MS
    grace_ms: int = DAY_MS
    outputs_kept_ms: int = 0
    uploads_kept_ms: int = 0


class Swept(NamedTuple):
    """What a sweep has found: all blobs, and those that it removed."""

    blobs: int
    size_bytes: int
    removed: int
    removed_bytes: int


class KeeperObserver(Protocol):
    """Counts what the keeper does."""

    def swept(self, size_bytes: int, removed_bytes: int, at_s: float) -> None:
        """A sweep has ended that found so much and removed part of it."""
        ...


class _StoppedError(Exception):
    """This process leads no more."""


class ArtifactKeeper:
    """One leader's. ``own_folders`` stores the folders of the catalogue, which are the platform's, and says which they are."""

    def __init__(
        self,
        plane: ControlPlane,
        store: SweptStore,
        codec: SpecCodec,
        clock: Clock,
        ids: IdSource,
        own_folders: Callable[[], Collection[str]],
        settings: KeeperSettings,
        observer: KeeperObserver,
    ) -> None:
        self._plane = plane
        self._store = store
        self._codec = codec
        self._clock = clock
        self._ids = ids
        self._own_folders = own_folders
        self._settings = settings
        self._observer = observer
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="suanli-keeper")

    async def run(self) -> None:
        """Everything, in turn, until cancelled or until this process leads no more. What fails is tried again."""
        next_ms = self._clock.now_ms() + HOUR_MS
        stored_own = False
        while self._plane.is_leader:
            try:
                if not stored_own:
                    await self._run(self._own_folders)
                    stored_own = True
                await self.measure()
                await self.adopt()
                if self._clock.now_ms() >= next_ms:
                    next_ms = self._clock.now_ms() + (self._settings.collect_every_ms or HOUR_MS)
                    await self.expire()
                    if self._settings.collect_every_ms:
                        await self.collect()
            except _StoppedError:
                return
            except (SuanliError, OSError) as error:
                log.warning("the artifact store is not kept for the moment: %r", error)
            except Exception:
                # It must not end the server, nor stop for good: what it left undone is found again.
                log.exception("the artifact store is not kept for the moment")
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """Stop the threads once they are idle."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # --- measuring --------------------------------------------------------------------------------------------------

    async def measure(self) -> None:
        """Find out how large what jobs left is."""
        after: HoldingKey | None = None
        while page := await self._plane.unmeasured(after, PAGE):
            sizes = []
            for record in page:
                size = await self._run(lambda digest=record.digest: self._size(digest))  # type: ignore[misc]
                if size is not None:
                    sizes.append((record, size))
            await self._plane.note_sizes(sizes)
            after = page[-1].key

    def _size(self, digest: str) -> int | None:
        """Of a folder with its manifest; None when the store does not say."""
        try:
            own = self._store.blob_size(digest)
            try:
                return own + sum(entry.size_bytes for entry in self._store.read_manifest(digest))
            except ValueError:
                return own
        except FileNotFoundError:
            log.warning("%s is held, and is not in the artifact store", digest)
            return 0
        except OSError as error:
            log.warning("%s could not be measured: %r", digest, error)
            return None

    # --- what was there before ----------------------------------------------------------------------------------------

    @property
    def adopted(self) -> bool:
        """Whether everything that jobs named before there was a record is in it."""
        return int(self._plane.storage_mark(ADOPTED) or 0) >= int(self._plane.storage_mark(ADOPT_UNTIL) or 0)

    async def adopt(self) -> None:
        """Enter the folders that jobs of earlier releases name as uploads of their projects. Goes on where it was stopped."""
        seen: dict[tuple[str, str, str], None] = {}
        while not self.adopted:
            done, until = (int(self._plane.storage_mark(name) or 0) for name in (ADOPTED, ADOPT_UNTIL))
            for job in await self._plane.jobs_page(done + 1, min(PAGE, until - done)):
                workload = self._codec.decode(job.spec).workload
                named = (job.institution, job.project, workload.working_folder)
                if workload.kind == "algorithm" or not workload.working_folder or named in seen:
                    continue
                seen[named] = None
                if len(seen) > _SEEN:
                    del seen[next(iter(seen))]
                await self._adopt_folder(named, job.user, job.submit_ms)
            await self._plane.set_storage_mark(ADOPTED, str(min(until, done + PAGE)))

    async def _adopt_folder(self, named: tuple[str, str, str], user: str, since_ms: int) -> None:
        institution, project, folder = named
        found = await self._run(lambda: self._uploads(folder, since_ms))
        for start in range(0, len(found), PAGE):
            await self._plane.hold_uploads(institution, project, user, found[start : start + PAGE])

    def _uploads(self, folder: str, since_ms: int) -> list[Upload]:
        try:
            files = {entry.digest: entry.size_bytes for entry in self._store.read_manifest(folder)}
            files[folder] = self._store.blob_size(folder)
        except (FileNotFoundError, ValueError):
            return []
        return [Upload(digest, size, since_ms) for digest, size in files.items()]

    # --- retention --------------------------------------------------------------------------------------------------

    async def expire(self) -> None:
        """Delete what has been kept for as long as the settings say."""
        for kinds, kept_ms in (
            (OUTPUTS, self._settings.outputs_kept_ms),
            ((int(HoldingKind.UPLOAD),), self._settings.uploads_kept_ms),
        ):
            if not kept_ms:
                continue
            before_ms = self._clock.now_ms() - kept_ms
            for institution in ("", *self._plane.institutions_by_id()):
                await self._expire(HoldingQuery(institution, kinds=kinds, before_ms=before_ms, limit=PAGE), kept_ms)

    async def _expire(self, query: HoldingQuery, kept_ms: int) -> None:
        reason = f"Kept for {kept_ms // DAY_MS} days."
        while True:
            folders = self._plane.named_folders()
            needed = await self._run(lambda folders=folders: self._with_files(folders))  # type: ignore[misc]
            deletion = await self._plane.delete_holdings(query, needed, reason, False)
            if deletion.after is None:
                return
            last = deletion.after
            query = HoldingQuery(
                query.institution,
                kinds=query.kinds,
                before_ms=query.before_ms,
                limit=query.limit,
                after=(last.since_ms, last.project, last.kind, last.item),
            )

    def _with_files(self, folders: Iterable[str]) -> frozenset[str]:
        found: set[str] = set()
        for folder in folders:
            found.add(folder)
            found.update(self._files(folder))
        return frozenset(found)

    def _files(self, folder: str) -> list[str]:
        """The files of a folder; none of one that is not there or is none. ``OSError`` when the store is away."""
        try:
            return [entry.digest for entry in self._store.read_manifest(folder)]
        except (FileNotFoundError, ValueError):
            return []

    # --- removing ---------------------------------------------------------------------------------------------------

    async def collect(self) -> Swept | None:
        """Remove what nobody holds. None when that may not be done: not everything is entered yet, or the store is another platform's."""
        if not self.adopted or not await self._is_ours():
            return None
        sweep = int(self._plane.storage_mark(SWEEPS) or 0) + 1
        # Before anything is looked at: what is stored from here on is young.
        needs = self._plane.needs()
        before_ms = min(self._clock.now_ms(), needs.unheard_ms) - self._settings.grace_ms
        marked = Marked(sweep)
        # Stored anew, too: as a standby this process may have waited for longer than what nobody holds is kept.
        known = {*needs.folders, *await self._run(self._own_folders)}
        await self._mark_folders(marked, known)
        await self._mark_held(marked)
        await self._plane.set_storage_mark(SWEEPS, str(sweep))
        await self._run(self._store.recover)
        found = Swept(0, 0, 0, 0)
        for prefix in PREFIXES:
            blobs = await self._run(lambda prefix=prefix: list(self._store.list_blobs(prefix)))  # type: ignore[misc]
            # A job that was accepted meanwhile may name what was about to be given up.
            new = self._plane.named_folders() - known
            known |= new
            await self._mark_folders(marked, new)
            if not self._plane.is_leader:
                raise _StoppedError
            doomed = [blob for blob in blobs if blob.modified_ms <= before_ms and blob.digest not in marked]
            removed = await self._run(lambda doomed=doomed: self._remove(doomed, before_ms))  # type: ignore[misc]
            found = Swept(
                found.blobs + len(blobs),
                found.size_bytes + sum(blob.size_bytes for blob in blobs),
                found.removed + len(removed),
                found.removed_bytes + sum(blob.size_bytes for blob in removed),
            )
        self._observer.swept(found.size_bytes, found.removed_bytes, self._clock.now_ms() / 1000)
        log.info("swept the artifact store: %d blobs, of which %d were nobody's", found.blobs, found.removed)
        return found

    async def _is_ours(self) -> bool:
        """Whether no other platform keeps its things in this store: it would lose them."""
        own = self._plane.storage_mark(OWNER)
        if not own:
            own = self._ids.token(16).hex()
            await self._plane.set_storage_mark(OWNER, own)
        owner = await self._run(lambda: self._store.owner(own))
        if owner != own:
            log.error(
                "the artifact store belongs to another platform (its file 'owner' says %s, not %s): nothing is removed",
                owner,
                own,
            )
        return owner == own

    async def _mark_folders(self, marked: Marked, folders: Iterable[str]) -> None:
        for digest in await self._run(lambda: self._with_files(folders)):
            marked.add(digest)

    async def _mark_held(self, marked: Marked) -> None:
        after: HoldingKey | None = None
        while page := await self._plane.holdings_page(after, PAGE):
            await self._run(lambda page=page: self._mark(marked, page))  # type: ignore[misc]
            after = page[-1].key

    def _mark(self, marked: Marked, page: Sequence[HoldingRecord]) -> None:
        for record in page:
            marked.add(record.digest)
            # The files of an uploaded folder are uploads of their own.
            if record.kind != HoldingKind.UPLOAD:
                for digest in self._files(record.digest):
                    marked.add(digest)

    def _remove(self, doomed: Sequence[StoredBlob], before_ms: int) -> list[StoredBlob]:
        return [blob for blob in doomed if self._store.remove(blob.digest, before_ms)]
