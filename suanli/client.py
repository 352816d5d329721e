"""The client for programs without a loop: every call runs on the asyncio client, on a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

from protos.suanli.v1 import admin_pb2, artifacts_pb2, budgets_pb2, jobs_pb2, prices_pb2
from suanli.aio import AsyncClient
from suanli.artifact_choice import ArtifactChoice, Deleted
from suanli.info import JobInfo
from suanli.job import AsyncJob
from suanli.settings import Settings
from suanli.spec import JobOptions
from suanli.values import LogChunk, LogLine, Usage

T = TypeVar("T")


class _Loop:
    """An event loop on a thread. Interrupting a call (Ctrl-C) cancels it there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="suanli-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("suanli.Client blocks; use suanli.AsyncClient here")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if self._loop.is_running():
                self.run(_close(items))

    def stop(self) -> None:
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
        if not self._loop.is_running() and not self._loop.is_closed():
            self._loop.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


class Client:
    """A connection to a control plane; also a ``with``. ``Settings.resolve`` says what the arguments default to.

    May be used from several threads. ``patience_s``: for how many seconds calls are repeated while the control plane
    cannot be reached.
    """

    def __init__(
        self,
        address: str | None = None,
        api_key: str | None = None,
        *,
        state_dir: str | os.PathLike[str] | None = None,
        ca: str | os.PathLike[str] | None = None,
        profile: str | None = None,
        patience_s: float = 30.0,
    ) -> None:
        self._async = AsyncClient(address, api_key, state_dir=state_dir, ca=ca, profile=profile, patience_s=patience_s)
        self._loop = _Loop()
        self._finalizer = weakref.finalize(self, self._loop.stop)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Jobs go on."""
        if self._finalizer.alive:
            self._loop.run(self._async.close())
            self._finalizer()

    @property
    def settings(self) -> Settings:
        """Where the control plane is."""
        return self._async.settings

    def submit(self, *, request_id: str = "", **options: Unpack[JobOptions]) -> Job:
        """Submit a job; returns when it is durable. ``JobOptions`` lists the keywords."""
        return self._wrap(self._loop.run(self._async.submit(request_id=request_id, **options)))

    def submit_many(self, jobs: Sequence[Mapping[str, Any]], *, request_id: str = "") -> list[Job]:
        """Submit up to 10,000 jobs, all or none. Each is a mapping with the keywords of ``submit``."""
        return [self._wrap(job) for job in self._loop.run(self._async.submit_many(jobs, request_id=request_id))]

    def check(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Have jobs checked without submitting them; raises what ``submit_many`` would raise."""
        self._loop.run(self._async.check(jobs))

    def explain(
        self, options: Mapping[str, Any], change: jobs_pb2.JobChange | None = None
    ) -> jobs_pb2.ExplainJobResponse:
        """Say of a job that is not submitted when it would start, and why not at once. ``options`` as those of ``submit``."""
        return self._loop.run(self._async.explain(options, change))

    def estimate(self, options: Mapping[str, Any]) -> prices_pb2.EstimateCostResponse:
        """Say what a job that is not submitted would cost, in each pool where it could run. ``options`` as those of ``submit``."""
        return self._loop.run(self._async.estimate(options))

    def budgets(
        self, *, institution: str = "", project: str = "", include_past: bool = False
    ) -> list[budgets_pb2.BudgetStatus]:
        """Return budgets with how they stand, by id. Amounts are in a budget's unit; see ``suanli.v1.BudgetUnit``."""
        asked = self._async.budgets(institution=institution, project=project, include_past=include_past)
        return self._loop.run(asked)

    def submit_function(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit a call of a Python function; the job's ``result()`` is its value."""
        return self._wrap(self._loop.run(self._async.submit_function(function, arguments, keywords, **options)))

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in a job and return its value, or raise its exception. ``submit_function`` takes options."""
        return self._loop.run(self._async.run(function, *args, **kwargs))

    def map(self, function: Callable[[Any], Any], items: Iterable[Any], **options: Unpack[JobOptions]) -> list[Any]:
        """Call a function for every item, as the tasks of one array, and return the values in order."""
        return self._loop.run(self._async.map(function, items, **options))

    def job(self, job_id: str) -> Job:
        """Return a handle of a job by its id, without asking whether there is one."""
        return self._wrap(self._async.job(job_id))

    def jobs(
        self,
        *,
        institution: str = "",
        project: str = "",
        user: str = "",
        states: Sequence[str] = (),
        name: str = "",
        region: str = "",
        array: str = "",
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[JobInfo]:
        """Yield jobs, the newest first."""
        found = self._async.jobs(
            institution=institution,
            project=project,
            user=user,
            states=states,
            name=name,
            region=region,
            array=array,
            labels=labels,
            limit=limit,
        )
        return self._loop.iterate(found)

    def artifacts(
        self, *, largest_first: bool = False, limit: int | None = None, **chosen: Unpack[ArtifactChoice]
    ) -> Iterator[artifacts_pb2.Artifact]:
        """Yield what is kept in the artifact store, the newest first. ``ArtifactChoice`` lists the keywords that choose."""
        return self._loop.iterate(self._async.artifacts(largest_first=largest_first, limit=limit, **chosen))

    def delete_artifacts(self, *, reason: str = "", dry_run: bool = False, **chosen: Unpack[ArtifactChoice]) -> Deleted:
        """Delete what is kept of jobs, digests, kinds or an age; what unfinished jobs need stays. ``dry_run``: only say how much."""
        return self._loop.run(self._async.delete_artifacts(reason=reason, dry_run=dry_run, **chosen))

    def storage(self, institution: str = "") -> list[artifacts_pb2.Storage]:
        """Return how much is stored, by project, beside the quotas on it."""
        return self._loop.run(self._async.storage(institution))

    def watch(
        self, *, after_sequence: int = -1, job_ids: Sequence[str] = (), institution: str = "", project: str = ""
    ) -> Iterator[jobs_pb2.JobEvent]:
        """Yield events of jobs as they happen, without gap or repeat, across disconnects; see AsyncClient.watch."""
        events = self._async.watch(
            after_sequence=after_sequence, job_ids=job_ids, institution=institution, project=project
        )
        return self._loop.iterate(events)

    def wait_all(self, jobs: Iterable[Job | str], timeout: float | None = None) -> list[JobInfo]:
        """Wait until all these jobs have ended, however, and return how, in order."""
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        return self._loop.run(self._async.wait_all(ids, timeout))

    def cancel(self, job_ids: Sequence[str], reason: str = "") -> list[str]:
        """Ask for jobs to be cancelled, all or none; returns those that had not ended."""
        return self._loop.run(self._async.cancel(job_ids, reason))

    def usage(
        self,
        *,
        by: Sequence[str] = ("institution",),
        institution: str = "",
        project: str = "",
        from_ms: int = 0,
        to_ms: int = 0,
        running: bool = False,
    ) -> Usage:
        """Return sums over the ledger by institution, project, user, region, pool, accelerator or month."""
        return self._loop.run(
            self._async.usage(
                by=by, institution=institution, project=project, from_ms=from_ms, to_ms=to_ms, running=running
            )
        )

    def algorithms(self) -> list[jobs_pb2.Algorithm]:
        """Return the catalogue."""
        return self._loop.run(self._async.algorithms())

    def whoami(self) -> admin_pb2.WhoAmIResponse:
        """Return who the key belongs to."""
        return self._loop.run(self._async.whoami())

    def _wrap(self, job: AsyncJob) -> Job:
        return Job(self, self._loop, job)


class Job:
    """A job, by its id. Keeps its client open."""

    def __init__(self, client: Client, loop: _Loop, job: AsyncJob) -> None:
        self._client = client
        self._loop = loop
        self._job = job

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self._job.id

    def status(self) -> JobInfo:
        """Ask how it stands."""
        return self._loop.run(self._job.status())

    def wait(self, timeout: float | None = None) -> JobInfo:
        """Wait until it has ended, however, and return how. WaitTimeout after ``timeout`` seconds; the job goes on."""
        return self._loop.run(self._job.wait(timeout))

    def why(self, **instead: Any) -> jobs_pb2.ExplainJobResponse:
        """Say why it waits, when it will probably start and what would help: a sentence in ``message``, and data.

        ``instead``: as if it asked for this instead, in the words of ``submit``: ``why(memory="8GiB", only_regions=[])``. Nothing is
        changed.
        """
        return self._loop.run(self._job.why(**instead))

    def cancel(self, reason: str = "") -> bool:
        """Ask for it to be cancelled; False when it had ended already."""
        return self._loop.run(self._job.cancel(reason))

    def tasks(self) -> list[Job]:
        """Return handles of an array's tasks, in order. FailedPrecondition when it is no array."""
        return [Job(self._client, self._loop, task) for task in self._loop.run(self._job.tasks())]

    def logs(self, *, follow: bool = False, rank: int = 0, attempt: int = 0, stream: str = "") -> Iterator[LogLine]:
        """Yield the lines of one replica's log; ``follow``: until the attempt ends. ``stream``: stdout or stderr."""
        return self._loop.iterate(self._job.logs(follow=follow, rank=rank, attempt=attempt, stream=stream))

    def log_chunks(
        self, *, follow: bool = False, rank: int = 0, attempt: int = 0, stream: str = "", tail_bytes: int = 0
    ) -> Iterator[LogChunk]:
        """Yield a log as bytes, without gap or repeat across disconnects. ``tail_bytes``: only so many at the end."""
        chunks = self._job.log_chunks(follow=follow, rank=rank, attempt=attempt, stream=stream, tail_bytes=tail_bytes)
        return self._loop.iterate(chunks)

    def files(self) -> list[jobs_pb2.ResultFile]:
        """List the files of its results."""
        return self._loop.run(self._job.files())

    def fetch(self, destination: str | os.PathLike[str], *only: str) -> list[Path]:
        """Copy its results, or only some files or folders of them, into a folder; returns their paths."""
        return self._loop.run(self._job.fetch(destination, *only))

    def result(self, destination: str | os.PathLike[str] | None = None, timeout: float | None = None) -> Any:
        """Wait, then return a function's value, or the folder into which results were fetched; see AsyncJob.result."""
        return self._loop.run(self._job.result(destination, timeout))
