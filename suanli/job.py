"""A job, as the asyncio client has it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.suanli.v1 import jobs_pb2
from suanli import functions, transfer
from suanli.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from suanli.info import JobInfo, failure_of, info_of
from suanli.spec import build_change
from suanli.values import STREAMS, Lines, LogChunk, LogLine

if TYPE_CHECKING:
    from suanli.aio import AsyncClient


class AsyncJob:
    """A job, by its id."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def status(self) -> JobInfo:
        """Ask how it stands."""
        connection = self._client.connection
        request = jobs_pb2.GetJobRequest(job_id=self.id)
        response = await connection.call(connection.jobs.GetJob, request, idempotent=True)
        return info_of(response.job)

    async def wait(self, timeout: float | None = None) -> JobInfo:  # noqa: ASYNC109 - the word every such API has
        """Wait until it has ended, however, and return how. WaitTimeout after ``timeout`` seconds; the job goes on."""
        return (await self._client.wait_all([self], timeout))[0]

    async def why(self, **instead: Any) -> jobs_pb2.ExplainJobResponse:
        """Say why it waits, when it will probably start and what would help: a sentence in ``message``, and data.

        ``instead``: as if it asked for this instead, in the words of ``submit``: ``why(memory="8GiB", only_regions=[])``. Nothing is
        changed.
        """
        connection = self._client.connection
        what_if = build_change(instead) if instead else None
        request = jobs_pb2.ExplainJobRequest(job_id=self.id, what_if=what_if)
        return await connection.call(connection.jobs.ExplainJob, request, idempotent=True)

    async def cancel(self, reason: str = "") -> bool:
        """Ask for it to be cancelled; False when it had ended already."""
        return bool(await self._client.cancel([self.id], reason))

    async def tasks(self) -> list[AsyncJob]:
        """Return handles of an array's tasks, in order. FailedPrecondition when it is no array."""
        info = await self.status()
        if not info.proto.HasField("array"):
            raise FailedPrecondition(
                f"Job {self.id} is no array, so it has no tasks.", reason="NO_ARRAY", field="job_id"
            )
        return [AsyncJob(self._client, f"{self.id}.{index}") for index in range(info.proto.array.size)]

    async def logs(
        self, *, follow: bool = False, rank: int = 0, attempt: int = 0, stream: str = ""
    ) -> AsyncGenerator[LogLine, None]:
        """Yield the lines of one replica's log; ``follow``: until the attempt ends. ``stream``: stdout or stderr."""
        lines = Lines()
        async with aclosing(self.log_chunks(follow=follow, rank=rank, attempt=attempt, stream=stream)) as chunks:
            async for chunk in chunks:
                for line in lines.add(chunk):
                    yield line
        for line in lines.end():
            yield line

    async def log_chunks(
        self, *, follow: bool = False, rank: int = 0, attempt: int = 0, stream: str = "", tail_bytes: int = 0
    ) -> AsyncGenerator[LogChunk, None]:
        """Yield a log as bytes, without gap or repeat across disconnects. ``tail_bytes``: only so many at the end."""
        wanted = _stream_number(stream)
        offsets: dict[str, int] = {}
        asked = attempt

        def ask() -> jobs_pb2.TailLogsRequest:
            names = [STREAMS[wanted]] if wanted else list(STREAMS.values())
            # Both streams go on from one number: from the lower, and what was seen is skipped.
            start = min(offsets.get(name, 0) for name in names) if offsets else -tail_bytes
            return jobs_pb2.TailLogsRequest(
                job_id=self.id, attempt=asked, rank=rank, stream=wanted, offset=start, follow=follow
            )

        connection = self._client.connection
        async with aclosing(connection.resume(connection.jobs.TailLogs, ask)) as parts:
            async for part in parts:
                asked = part.attempt or asked
                name = STREAMS.get(part.stream, "stdout")
                seen = offsets.get(name, part.offset)
                data = part.data[max(0, seen - part.offset) :]
                offsets[name] = max(seen, part.offset + len(part.data))
                if data:
                    yield LogChunk(name, offsets[name] - len(data), data)

    async def files(self) -> list[jobs_pb2.ResultFile]:
        """List the files of its results."""
        return await transfer.list_results(self._client.connection, self.id)

    async def fetch(self, destination: str | os.PathLike[str], *only: str) -> list[Path]:
        """Copy its results, or only some files or folders of them, into a folder; returns their paths."""
        return await transfer.fetch(self._client.connection, self.id, Path(destination), only)

    async def result(
        self,
        destination: str | os.PathLike[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Any:
        """Wait, then return a function's value, or the folder into which the results of any other job were fetched.

        ``destination`` defaults to ``suanli-results/<job id>``. Raises a JobError when the job did not succeed, or what
        the function raised, with a RemoteError that holds its traceback as the cause. An array's tasks have results of
        their own: see ``tasks``.
        """
        info = await self.wait(timeout)
        if info.proto.HasField("array"):
            raise FailedPrecondition(
                f"Job {self.id} is an array, and each of its tasks has results of its own; see tasks().",
                reason="IS_ARRAY",
                field="job_id",
            )
        if functions.LABEL in info.proto.spec.labels:
            return await self._value(info)
        if not info.succeeded:
            raise failure_of(info)
        folder = Path(destination) if destination is not None else Path("suanli-results", self.id)
        await self.fetch(folder)
        return folder

    async def _value(self, info: JobInfo) -> Any:
        me = await self._client.whoami()
        if info.user != me.user:
            raise PermissionDenied(
                f"Job {self.id} is of {info.user}: its value is a pickle, which could run their code here; use fetch.",
                reason="NOT_YOUR_JOB",
                field="job_id",
            )
        files = {file.path: file for file in await self.files()} if info.proto.results else {}
        name = functions.VALUE_FILE if info.succeeded else functions.ERROR_FILE
        content = None
        if name in files:
            connection = self._client.connection
            content = await transfer.read_result(connection, self.id, files[name], functions.MAX_VALUE_BYTES)
        if not info.succeeded:
            raise functions.failure(info, content)
        if content is None:
            raise NotFound(f"The results of job {self.id} hold no value.", reason="RESULT_NOT_FOUND")
        return await asyncio.to_thread(functions.load_value, content)


def _stream_number(name: str) -> jobs_pb2.LogStream.ValueType:
    numbers = {"": jobs_pb2.LOG_STREAM_UNSPECIFIED, **{text: number for number, text in STREAMS.items()}}
    if name not in numbers:
        raise InvalidArgument(f"stream: {name[:40]!r} is neither stdout nor stderr.", field="stream")
    return numbers[name]
