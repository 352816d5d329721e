"""Bytes to and from the artifact store: only what is missing goes up, everything that comes down is checked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

from artifacts import is_safe_path
from protos.suanli.v1 import jobs_pb2
from suanli.connection import Connection
from suanli.errors import FolderError, InvalidArgument, SuanliError, TransferError
from suanli.folder import LocalBlob, PackedFolder

CHUNK_BYTES = 512 * 1024
AT_ONCE = 4
_ASK_AT_ONCE = 10_000
# Enough for a gigabyte on a slow line; a blob of none takes no time.
_UPLOAD_TIMEOUT_S = 3600.0


class Holder(NamedTuple):
    """Who is to hold an upload. Empty: the caller's institution, its project "default"."""

    institution: str = ""
    project: str = ""


NOBODY = Holder()


async def upload(connection: Connection, packed: PackedFolder, holder: Holder = NOBODY) -> str:
    """Store what the institution does not hold yet and return the folder's manifest."""
    await upload_blobs(connection, packed.blobs, holder)
    return packed.manifest


async def upload_blobs(connection: Connection, blobs: tuple[LocalBlob, ...], holder: Holder = NOBODY) -> None:
    """Store blobs that are missing; the last one after all others, since it names them."""
    missing: set[str] = set()
    digests = list(dict.fromkeys(blob.digest for blob in blobs))
    for start in range(0, len(digests), _ASK_AT_ONCE):
        request = jobs_pb2.FindMissingBlobsRequest(
            digests=digests[start : start + _ASK_AT_ONCE], institution=holder.institution
        )
        missing.update((await connection.call(connection.jobs.FindMissingBlobs, request, idempotent=True)).digests)
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(blob: LocalBlob) -> None:
        async with gate:
            await connection.persist(lambda: _send(connection, blob, holder))

    wanted = [blob for blob in blobs if blob.digest in missing]
    for group in (wanted[:-1], wanted[-1:]):
        async with _task_group() as tasks:
            for blob in group:
                tasks.create_task(send(blob))


@contextlib.asynccontextmanager
async def _task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first failure itself, not a group of failures."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _send(connection: Connection, blob: LocalBlob, holder: Holder) -> None:
    problem: list[OSError] = []
    try:
        await connection.jobs.UploadBlob(_noting(_chunks(blob, holder), problem), timeout=_UPLOAD_TIMEOUT_S)
    except (SuanliError, asyncio.CancelledError) as error:
        if problem:
            raise FolderError(f"{blob.path} cannot be read: {problem[0].strerror or problem[0]}.") from None
        if isinstance(error, InvalidArgument) and error.reason == "DIGEST_MISMATCH" and blob.path:
            raise FolderError(f"{blob.path} changed while it was uploaded; submit again.") from error
        raise


async def _noting(
    requests: AsyncIterator[jobs_pb2.UploadBlobRequest], problem: list[OSError]
) -> AsyncIterator[jobs_pb2.UploadBlobRequest]:
    """Pass requests on; gRPC would hide why they end."""
    try:
        async for request in requests:
            yield request
    except OSError as error:
        problem.append(error)
        raise


async def _chunks(blob: LocalBlob, holder: Holder) -> AsyncIterator[jobs_pb2.UploadBlobRequest]:
    first = jobs_pb2.UploadBlobRequest(digest=blob.digest, institution=holder.institution, project=holder.project)
    if blob.path is None:
        view = memoryview(blob.content)
        for start in range(0, len(view), CHUNK_BYTES):
            first.data = bytes(view[start : start + CHUNK_BYTES])
            yield first
            first = jobs_pb2.UploadBlobRequest()
        if not blob.content:
            yield first
        return
    with await asyncio.to_thread(blob.path.open, "rb") as file:
        sent = 0
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            first.data = chunk
            yield first
            first = jobs_pb2.UploadBlobRequest()
            sent += len(chunk)
        if not sent:
            yield first


async def list_results(connection: Connection, job_id: str) -> list[jobs_pb2.ResultFile]:
    """Return the files of a job's results."""
    request = jobs_pb2.ListResultsRequest(job_id=job_id)
    response = await connection.call(connection.jobs.ListResults, request, idempotent=True)
    return list(response.files)


async def download(connection: Connection, job_id: str, file: jobs_pb2.ResultFile) -> AsyncIterator[bytes]:
    """Yield one file of a job's results, going on where it was after a disconnect; raises when it is damaged."""
    offset = 0
    digest = hashlib.sha256()

    def ask() -> jobs_pb2.DownloadResultRequest:
        return jobs_pb2.DownloadResultRequest(job_id=job_id, path=file.path, offset=offset)

    async with aclosing(connection.resume(connection.jobs.DownloadResult, ask)) as responses:
        async for response in responses:
            if response.offset != offset:
                raise TransferError(f"{file.path}: the server sent byte {response.offset:,} instead of {offset:,}.")
            offset += len(response.data)
            digest.update(response.data)
            yield response.data
    if offset != file.size_bytes or f"sha256:{digest.hexdigest()}" != file.digest:
        raise TransferError(f"{file.path} arrived damaged; fetch it again.")


async def read_result(connection: Connection, job_id: str, file: jobs_pb2.ResultFile, max_bytes: int) -> bytes:
    """Return one file of a job's results, of bounded size."""
    if file.size_bytes > max_bytes:
        raise TransferError(f"{file.path} has {file.size_bytes:,} bytes; {max_bytes:,} are the most taken into memory.")
    return b"".join([chunk async for chunk in download(connection, job_id, file)])


async def fetch(connection: Connection, job_id: str, destination: Path, only: tuple[str, ...] = ()) -> list[Path]:
    """Copy a job's results into a folder and return their paths. Files that are there already, unchanged, stay.

    ``only``: these paths of the results, each a file or a folder.
    """
    files = await list_results(connection, job_id)
    if only:
        files = [
            file
            for file in files
            if any(file.path == one or file.path.startswith(f"{one.rstrip('/')}/") for one in only)
        ]
    for file in files:
        if not is_safe_path(file.path):
            raise TransferError(f"The results hold the unsafe path {file.path[:100]!r}; nothing was written.")
    gate = asyncio.Semaphore(AT_ONCE)

    async def get(file: jobs_pb2.ResultFile) -> None:
        async with gate:
            await _fetch_one(connection, job_id, file, destination)

    async with _task_group() as tasks:
        for file in files:
            tasks.create_task(get(file))
    return [destination / file.path for file in files]


async def _fetch_one(connection: Connection, job_id: str, file: jobs_pb2.ResultFile, destination: Path) -> None:
    target = destination / file.path
    try:
        await asyncio.to_thread(_make_parents, target, destination)
        if await asyncio.to_thread(_is_the_same, target, file):
            return
        handle, scratch = tempfile.mkstemp(prefix=".suanli-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                async for chunk in download(connection, job_id, file):
                    await asyncio.to_thread(out.write, chunk)
            os.chmod(scratch, 0o644)
            os.replace(scratch, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
    except OSError as error:
        raise FolderError(f"{target} cannot be written: {error.strerror or error}.") from None


def _make_parents(target: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    # Never through a link that stood in the folder before, which may point anywhere.
    current = destination
    for part in target.relative_to(destination).parts[:-1]:
        current = current / part
        if current.is_symlink():
            raise FolderError(f"{target} would be written through the link {current}.")
        current.mkdir(exist_ok=True)


def _is_the_same(target: Path, file: jobs_pb2.ResultFile) -> bool:
    if target.is_symlink() or not target.is_file() or target.stat().st_size != file.size_bytes:
        return False
    with target.open("rb") as source:
        return f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}" == file.digest
