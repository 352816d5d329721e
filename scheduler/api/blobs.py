"""Blobs and results: between the callers' streams and the artifact store, whose calls block and therefore run in threads."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, NamedTuple, Protocol, TypeVar

from protos.suanli.v1 import jobs_pb2
from scheduler.api.data import require_export
from scheduler.api.gate import first_of
from scheduler.api.limiting import Limiting
from scheduler.api.visibility import Caller, institution_scope, project_scope, tell_foreign, visible_jobs
from scheduler.catalog.artifacts import ArtifactStore, FileEntry
from scheduler.domain.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from scheduler.domain.holdings import HoldingKind
from scheduler.domain.records import JobRecord
from scheduler.service.contract import Service
from scheduler.service.storage_contract import Upload
from scheduler.wire import check
from scheduler.wire.cache import BoundedCache

T = TypeVar("T")
CHUNK_BYTES = 1024 * 1024
MAX_BLOB_BYTES = 4 * 1024**3
MAX_DIGESTS = 10_000
MAX_UPLOADS = 32
# So that nobody keeps everybody else from uploading.
MAX_UPLOADS_OF_USER = 16
IDLE_TIMEOUT_S = 120.0
DEFAULT_PROJECT = "default"
_THREADS = 8
# Paths of known folders, kept so that a thousand jobs with one folder ask the store once.
_KNOWN_PATHS = 200_000


class Artifacts:
    """The store behind asyncio. Its failures become our errors."""

    def __init__(self, store: ArtifactStore, uploads: Path) -> None:
        self._store = store
        self.uploads = uploads
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="suanli-artifacts")
        self._folders: BoundedCache[str, Mapping[str, str]] = BoundedCache(_KNOWN_PATHS)

    async def run(self, work: Callable[[], T]) -> T:
        """Do blocking work in a thread. ``Unavailable`` when the storage is away."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except FileNotFoundError as error:
            raise NotFound("The artifact store does not hold that.", reason="ARTIFACT_NOT_FOUND") from error
        except OSError as error:
            raise Unavailable(
                f"The artifact store does not answer ({type(error).__name__}); try again in a moment.",
                reason="ARTIFACT_STORE",
            ) from error

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those the store does not hold, in the order asked."""
        return await self.run(lambda: [digest for digest in digests if not self._store.has(digest)])

    async def folder(self, digest: str) -> tuple[FileEntry, ...]:
        """The files of a folder. ``NotFound`` for an unknown one or what is no folder."""
        try:
            return await self.run(lambda: self._store.read_manifest(digest))
        except ValueError as error:
            raise NotFound(f"{digest} is not the manifest of a folder.", reason="NOT_A_FOLDER") from error

    async def folder_files(self, digest: str) -> Mapping[str, str]:
        """The digests of the files in a folder by path, from memory where they are known."""
        files = self._folders.get(digest)
        if files is None:
            files = {entry.path: entry.digest for entry in await self.folder(digest)}
            self._folders.put(digest, files, len(files) + 1)
        return files

    async def keep(self, path: Path, digest: str) -> None:
        """Store a local file."""
        await self.run(lambda: self._store.put_file(path, digest))

    async def read(self, digest: str, offset: int) -> AsyncGenerator[bytes]:
        """A blob's bytes from an offset on, in chunks."""
        stream = await self.run(lambda: self._store.open_blob(digest, offset))
        try:
            while chunk := await self.run(lambda: stream.read(CHUNK_BYTES)):
                yield chunk
        finally:
            await self.run(stream.close)

    def close(self) -> None:
        """Stop the threads once they are idle."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class Holder(NamedTuple):
    """Who is to hold an upload."""

    institution: str
    project: str


class UploadAccess(Protocol):
    """See ``scheduler.api.artifact_access.ArtifactAccess``."""

    async def uploads(
        self, caller: Caller, institution: str, digests: Sequence[str], project: str = ""
    ) -> frozenset[str]:
        """Which of these an institution (or one project of it) has uploaded."""
        ...


class BlobApi:
    """The methods of JobService that move bytes."""

    def __init__(
        self,
        service: Service,
        artifacts: Artifacts,
        access: UploadAccess,
        limiting: Limiting,
        max_blob_bytes: int = MAX_BLOB_BYTES,
    ) -> None:
        self._service = service
        self._artifacts = artifacts
        self._access = access
        self._limiting = limiting
        self._max_bytes = max_blob_bytes
        self._uploads: Counter[str] = Counter()

    async def find_missing_blobs(
        self, request: jobs_pb2.FindMissingBlobsRequest, caller: Caller
    ) -> jobs_pb2.FindMissingBlobsResponse:
        """Which blobs need be uploaded: those that the institution does not hold, whoever else may."""
        check.count(len(request.digests), MAX_DIGESTS, "digests", "digests")
        digests = [check.digest(digest, f"digests[{index}]") for index, digest in enumerate(request.digests)]
        institution = institution_scope(caller, request.institution, "institution")
        held = await self._access.uploads(caller, institution, digests)
        gone = frozenset(await self._artifacts.missing([digest for digest in digests if digest in held]))
        return jobs_pb2.FindMissingBlobsResponse(
            digests=[digest for digest in digests if digest not in held or digest in gone]
        )

    async def upload_blob(
        self, requests: AsyncIterator[jobs_pb2.UploadBlobRequest], caller: Caller
    ) -> jobs_pb2.UploadBlobResponse:
        """Take one blob. It is stored whole, with the content its digest says, or not at all."""
        for count, limit in ((self._uploads.total(), MAX_UPLOADS), (self._uploads[caller.user], MAX_UPLOADS_OF_USER)):
            if count >= limit:
                raise ResourceExhausted(f"{limit} uploads are under way; try again in a moment.", reason="UPLOADS")
        self._uploads[caller.user] += 1
        try:
            return await self._upload(requests, caller)
        finally:
            self._uploads[caller.user] -= 1
            self._uploads += Counter()  # Whoever uploads nothing is not kept.

    async def _upload(
        self, requests: AsyncIterator[jobs_pb2.UploadBlobRequest], caller: Caller
    ) -> jobs_pb2.UploadBlobResponse:
        request = await first_of(requests, IDLE_TIMEOUT_S, "digest")
        digest = check.digest(request.digest, "digest")
        holder = self._holder(request, caller)
        # What is held already takes no more room, however often it is sent.
        counted = digest not in await self._access.uploads(caller, holder.institution, [digest], holder.project)
        incoming = 0
        file = await self._artifacts.run(self._scratch)
        try:
            hasher, size = hashlib.sha256(), 0
            while request is not None:
                if request.digest and request.digest != digest:
                    check.invalid("digest", "it is given in the first message only.")
                size += len(request.data)
                self._check_size(len(request.data), size)
                if counted:
                    self._service.take_in(*holder, len(request.data))
                    incoming += len(request.data)
                self._limiting.upload(caller, len(request.data))
                await self._artifacts.run(_appending(file, hasher, request.data))
                request = await _following(requests)
            found = f"sha256:{hasher.hexdigest()}"
            if found != digest:
                raise InvalidArgument(
                    f"digest: the content's is {found}, not {digest}; upload it again.",
                    reason="DIGEST_MISMATCH",
                    field="digest",
                )
            await self._artifacts.run(file.flush)
            # Stored first: what is recorded is there. What is killed in between is nobody's, and is collected some day.
            await self._artifacts.keep(Path(file.name), digest)
            await self._service.hold_uploads(*holder, caller.user, [Upload(digest, size)])
            if await self._artifacts.missing([digest]):
                # It was there before, was old and nobody's, and has just been collected.
                await self._artifacts.keep(Path(file.name), digest)
        finally:
            self._service.give_back(*holder, incoming)
            await asyncio.shield(self._artifacts.run(file.close))
        return jobs_pb2.UploadBlobResponse(digest=digest, size_bytes=size)

    def _holder(self, request: jobs_pb2.UploadBlobRequest, caller: Caller) -> Holder:
        institution = institution_scope(caller, request.institution, "institution")
        project = project_scope(caller, request.project, "project")
        check.optional_slug(institution, "institution", "an institution's id")
        check.optional_slug(project, "project", "a project's id")
        if not institution and project:
            check.invalid("project", "name the institution, too.")
        # What the platform's own people send for nobody is the platform's.
        holder = Holder(institution, (project or DEFAULT_PROJECT) if institution else "")
        self._service.take_in(*holder, 0)
        return holder

    def _scratch(self) -> IO[bytes]:
        self._artifacts.uploads.mkdir(parents=True, exist_ok=True)
        return NamedTemporaryFile(dir=self._artifacts.uploads)

    def _check_size(self, chunk: int, size: int) -> None:
        if chunk > CHUNK_BYTES:
            check.invalid("data", f"{chunk:,} bytes in one message are too many; send at most {CHUNK_BYTES:,}.")
        if size > self._max_bytes:
            raise ResourceExhausted(
                f"data: a blob may have {self._max_bytes:,} bytes at most; register larger data as a data set.",
                reason="BLOB_TOO_LARGE",
                field="data",
            )

    async def list_results(self, request: jobs_pb2.ListResultsRequest, caller: Caller) -> jobs_pb2.ListResultsResponse:
        """The files of a job's results."""
        manifest = (await self._with_results(request.job_id, caller)).results
        files = await self._artifacts.folder(manifest) if manifest else ()
        return jobs_pb2.ListResultsResponse(
            files=[jobs_pb2.ResultFile(path=f.path, digest=f.digest, size_bytes=f.size_bytes) for f in files],
            manifest=manifest,
        )

    async def download_result(
        self, request: jobs_pb2.DownloadResultRequest, caller: Caller
    ) -> AsyncIterator[jobs_pb2.DownloadResultResponse]:
        """One file of a job's results."""
        check.integer(request.offset, 0, 1 << 62, "offset", "bytes")
        record = await self._with_results(request.job_id, caller)
        await require_export(self._service, caller, record)
        files = await self._artifacts.folder(record.results) if record.results else ()
        file = next((f for f in files if f.path == request.path), None)
        if file is None:
            raise NotFound(
                f"path: the results of {request.job_id} have no file {check.shown(request.path)}; `suanli fetch` lists them.",
                reason="RESULT_NOT_FOUND",
                field="path",
            )
        if request.offset > file.size_bytes:
            check.invalid("offset", f"the file has {file.size_bytes:,} bytes only.")
        await tell_foreign(self._service, caller, "DownloadResult", record)
        offset = request.offset
        if offset == file.size_bytes:
            # Nothing is left to read; one empty message says that the file was found.
            yield jobs_pb2.DownloadResultResponse(offset=offset)
            return
        async for chunk in self._artifacts.read(file.digest, offset):
            yield jobs_pb2.DownloadResultResponse(offset=offset, data=chunk)
            offset += len(chunk)

    async def _with_results(self, job_id: str, caller: Caller) -> JobRecord:
        check.job_id(job_id, "job_id")
        record = (await visible_jobs(self._service, caller, [job_id], "job_id"))[0]
        if record.array_size:
            raise FailedPrecondition(
                f"{job_id} is an array; each of its tasks has results of its own, as in {job_id}.0.",
                reason="IS_ARRAY",
                field="job_id",
            )
        if record.results and not await self._service.holds_output(record, HoldingKind.RESULT):
            raise NotFound(f"The results of {job_id} were deleted.", reason="RESULTS_DELETED", field="job_id")
        return record


def _appending(file: IO[bytes], hasher: hashlib._Hash, data: bytes) -> Callable[[], None]:
    def work() -> None:
        hasher.update(data)
        file.write(data)

    return work


async def _following(requests: AsyncIterator[jobs_pb2.UploadBlobRequest]) -> jobs_pb2.UploadBlobRequest | None:
    try:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            return await anext(requests, None)
    except TimeoutError:
        raise InvalidArgument(f"The upload stood still for {IDLE_TIMEOUT_S:g} s.", reason="UPLOAD_STALLED") from None
