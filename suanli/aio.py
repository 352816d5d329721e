"""The asyncio client. ``suanli.Client`` is the same, for programs without a loop."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Unpack

from protos.suanli.v1 import admin_pb2, artifacts_pb2, budgets_pb2, common_pb2, jobs_pb2, prices_pb2, usage_pb2
from suanli import functions, transfer
from suanli.artifact_choice import ArtifactChoice, Deleted, filter_of
from suanli.connection import Connection, connect
from suanli.errors import InvalidArgument, WaitTimeout
from suanli.folder import PackedFolder, pack, pack_files
from suanli.info import ENDED, JobInfo, info_of, state_name
from suanli.job import AsyncJob
from suanli.settings import Settings
from suanli.spec import WORKLOADS, JobOptions, build_spec, check_names
from suanli.values import Usage, usage_of

MAX_BATCH = 10_000
MAX_WATCHED = 1_000
_AT_ONCE = 16
DIMENSIONS = {
    name.removeprefix("USAGE_DIMENSION_").lower(): number
    for name, number in usage_pb2.UsageDimension.items()
    if number != usage_pb2.USAGE_DIMENSION_UNSPECIFIED
}


class AsyncClient:
    """A connection to a control plane; also an ``async with``. ``Settings.resolve`` says what the arguments default to.

    ``patience_s``: for how many seconds calls are repeated while the control plane cannot be reached. Every submission
    carries an id of its own, so that a repeated one is still one. Belongs to the event loop that makes the first call.
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
        self.settings = Settings.resolve(address, api_key, state_dir, ca, profile)
        self._patience_s = patience_s
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """The stubs of all services, for what this class has no method for."""
        if self._connection is None:
            self._connection = connect(self.settings, self._patience_s)
        return self._connection

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Jobs go on."""
        if self._connection is not None:
            await self._connection.close()

    # --- submit ---------------------------------------------------------------------------------------------------

    async def submit(self, *, request_id: str = "", **options: Unpack[JobOptions]) -> AsyncJob:
        """Submit a job; returns when it is durable. ``JobOptions`` lists the keywords."""
        return (await self.submit_many([options], request_id=request_id))[0]

    async def submit_many(self, jobs: Sequence[Mapping[str, Any]], *, request_id: str = "") -> list[AsyncJob]:
        """Submit up to 10,000 jobs, all or none. Each is a mapping with the keywords of ``submit``."""
        response = await self._submit(jobs, request_id or str(uuid.uuid4()), False)
        return [AsyncJob(self, job_id) for job_id in response.job_ids]

    async def check(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Have jobs checked without submitting them; raises what ``submit_many`` would raise."""
        await self._submit(jobs, "", True)

    async def explain(
        self, options: Mapping[str, Any], change: jobs_pb2.JobChange | None = None
    ) -> jobs_pb2.ExplainJobResponse:
        """Say of a job that is not submitted when it would start, and why not at once. ``options`` as those of ``submit``."""
        check_names(options)
        spec = self._mine(build_spec(*await self._with_folder(options, {})))
        request = jobs_pb2.ExplainJobRequest(spec=spec, what_if=change)
        return await self.connection.call(self.connection.jobs.ExplainJob, request, idempotent=True)

    async def estimate(self, options: Mapping[str, Any]) -> prices_pb2.EstimateCostResponse:
        """Say what a job that is not submitted would cost, in each pool where it could run. ``options`` as those of ``submit``."""
        check_names(options)
        spec = self._mine(build_spec(*await self._with_folder(options, {})))
        request = prices_pb2.EstimateCostRequest(job=spec)
        return await self.connection.call(self.connection.usage.EstimateCost, request, idempotent=True)

    async def budgets(
        self, *, institution: str = "", project: str = "", include_past: bool = False
    ) -> list[budgets_pb2.BudgetStatus]:
        """Return budgets with how they stand, by id. Amounts are in a budget's unit; see ``suanli.v1.BudgetUnit``."""
        request = budgets_pb2.ListBudgetsRequest(institution=institution, project=project, include_past=include_past)
        found: list[budgets_pb2.BudgetStatus] = []
        while True:
            response = await self.connection.call(self.connection.usage.ListBudgets, request, idempotent=True)
            found += response.budgets
            if not response.next_page_token:
                return found
            request.page_token = response.next_page_token

    async def _submit(
        self, jobs: Sequence[Mapping[str, Any]], request_id: str, check_only: bool
    ) -> jobs_pb2.SubmitJobsResponse:
        if not 1 <= len(jobs) <= MAX_BATCH:
            raise InvalidArgument(f"{len(jobs):,} jobs in one call; give 1 to {MAX_BATCH:,}.", field="jobs")
        folders: dict[tuple[str, ...], str] = {}
        specs = []
        for index, options in enumerate(jobs):
            try:
                check_names(options)
                specs.append(build_spec(*await self._with_folder(options, folders)))
            except InvalidArgument as error:
                if len(jobs) == 1:
                    raise
                raise InvalidArgument(
                    f"jobs[{index}].{error.message}", reason=error.reason, field=f"jobs[{index}].{error.field}"
                ) from None
        request = jobs_pb2.SubmitJobsRequest(jobs=specs, request_id=request_id, validate_only=check_only)
        return await self._send(request)

    async def _send(self, request: jobs_pb2.SubmitJobsRequest) -> jobs_pb2.SubmitJobsResponse:
        for spec in request.jobs:
            self._mine(spec)
        return await self.connection.call(self.connection.jobs.SubmitJobs, request, idempotent=True)

    def _mine(self, spec: jobs_pb2.JobSpec) -> jobs_pb2.JobSpec:
        """The specification, of the institution of the settings where it names none."""
        spec.institution = spec.institution or self.settings.institution
        return spec

    async def _with_folder(
        self, options: Mapping[str, Any], known: dict[tuple[str, ...], str]
    ) -> tuple[dict[str, Any], str]:
        """Upload the folder, or the single script, that the options name; once for equal ones of a batch."""
        found = dict(options)
        folder, script = found.pop("folder", None), found.get("script")
        if folder is None and script is None:
            return found, ""
        holder = self._holder(found.get("institution"), found.get("project"))
        key = (str(folder), "" if folder is not None else str(script), *holder)
        if folder is None:
            found["script"] = Path(str(script)).name
        if key not in known:
            packed = await asyncio.to_thread(_packed, folder, script)
            known[key] = await transfer.upload(self.connection, packed, holder)
        return found, known[key]

    def _holder(self, institution: object, project: object) -> transfer.Holder:
        """Whoever a job is of holds its folder."""
        return transfer.Holder(str(institution or self.settings.institution), str(project or ""))

    # --- functions ------------------------------------------------------------------------------------------------

    async def submit_function(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        """Submit a call of a Python function; the job's ``result()`` is its value. Options as for ``submit``."""
        return await self._submit_calls(function, [(arguments, keywords or {})], options)

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in a job and return its value, or raise its exception. ``submit_function`` takes options."""
        return await (await self.submit_function(function, args, kwargs)).result()

    async def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], **options: Unpack[JobOptions]
    ) -> list[Any]:
        """Call a function for every item, as the tasks of one array, and return the values in order.

        Raises the exception of the first call, in that order, that raised one.
        """
        calls: list[tuple[Sequence[Any], Mapping[str, Any]]] = [((item,), {}) for item in items]
        if not calls:
            return []
        options["array"] = len(calls)
        array = await self._submit_calls(function, calls, options)
        await array.wait()
        gate = asyncio.Semaphore(_AT_ONCE)

        async def value(task: AsyncJob) -> Any:
            async with gate:
                return await task.result()

        values = await asyncio.gather(*(value(task) for task in await array.tasks()), return_exceptions=True)
        for one in values:
            if isinstance(one, BaseException):
                raise one
        return values

    async def _submit_calls(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]],
        options: JobOptions,
    ) -> AsyncJob:
        given: dict[str, Any] = dict(options)
        for name in (*WORKLOADS, "args", "parameters", "folder"):
            if given.get(name) is not None:
                raise InvalidArgument(f"{name}: the job is to call a function, and takes none.", field=name)
        given["labels"] = {**(given.get("labels") or {}), functions.LABEL: "cloudpickle"}
        given.setdefault("name", functions.name_of(function))
        given["script"] = functions.RUNNER
        spec = build_spec(given)
        packed = await asyncio.to_thread(functions.pack_call, function, calls)
        holder = self._holder(spec.institution, spec.project)
        spec.working_folder = await transfer.upload(self.connection, packed, holder)
        response = await self._send(jobs_pb2.SubmitJobsRequest(jobs=[spec], request_id=str(uuid.uuid4())))
        return AsyncJob(self, response.job_ids[0])

    # --- read -----------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> AsyncJob:
        """Return a handle of a job by its id, without asking whether there is one."""
        return AsyncJob(self, job_id)

    async def jobs(
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
    ) -> AsyncGenerator[JobInfo, None]:
        """Yield jobs, the newest first."""
        filter_ = jobs_pb2.JobFilter(
            institution=institution, project=project, user=user, name=name, region=region, array_id=array, labels=labels
        )
        filter_.states.extend(state_number(state) for state in states)
        token, left = "", limit
        while left is None or left > 0:
            size = 500 if left is None else min(500, left)
            request = jobs_pb2.ListJobsRequest(filter=filter_, page_size=size, page_token=token)
            page = await self.connection.call(self.connection.jobs.ListJobs, request, idempotent=True)
            for job in page.jobs:
                yield info_of(job)
            token = page.next_page_token
            left = None if left is None else left - len(page.jobs)
            if not token:
                return

    async def watch(
        self,
        *,
        after_sequence: int = -1,
        job_ids: Sequence[str] = (),
        institution: str = "",
        project: str = "",
    ) -> AsyncGenerator[jobs_pb2.JobEvent, None]:
        """Yield events of jobs as they happen, without gap or repeat, across disconnects.

        ``after_sequence``: those after this one; 0: from the oldest kept; -1: only new ones.
        """
        position = after_sequence

        def ask() -> jobs_pb2.WatchJobsRequest:
            return jobs_pb2.WatchJobsRequest(
                after_sequence=position, job_ids=job_ids, institution=institution, project=project
            )

        async with aclosing(self.connection.resume(self.connection.jobs.WatchJobs, ask)) as responses:
            async for response in responses:
                for event in response.events:
                    yield event
                position = response.sequence

    async def wait_all(
        self,
        jobs: Iterable[AsyncJob | str],
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[JobInfo]:
        """Wait until all these jobs have ended, however, and return how, in order.

        WaitTimeout after ``timeout`` seconds; the jobs go on. A control plane that goes away meanwhile is waited for.
        """
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        ended: dict[str, JobInfo] = {}
        try:
            async with asyncio.timeout(timeout):
                for start in range(0, len(ids), MAX_WATCHED // 2):
                    await self._wait(list(dict.fromkeys(ids[start : start + MAX_WATCHED // 2])), ended)
        except TimeoutError:
            what = f"Job {ids[0]} has" if len(ids) == 1 else f"{len(set(ids) - ended.keys()):,} jobs have"
            raise WaitTimeout(
                f"{what} not ended within {timeout:g} s; they go on."
                if len(ids) > 1
                else f"{what} not ended within {timeout:g} s; it goes on."
            ) from None
        return [ended[job_id] for job_id in ids]

    async def _wait(self, job_ids: Sequence[str], ended: dict[str, JobInfo]) -> None:
        """Fill ``ended`` until it has all these jobs; at most half of MAX_WATCHED, as tasks' arrays are watched too."""
        waiting: dict[str, JobInfo] = {}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(job_id: str) -> None:
            async with gate:
                info = await AsyncJob(self, job_id).status()
            if info.ended:
                ended[job_id] = info
                waiting.pop(job_id, None)
            else:
                waiting[job_id] = info

        await asyncio.gather(*map(look, job_ids))
        if not waiting:
            return
        # A task that never started ends with its array, without an event of its own.
        arrays = {info.proto.array_id for info in waiting.values()} - {""}
        since = min(info.proto.sequence for info in waiting.values())
        async with aclosing(self.watch(after_sequence=since, job_ids=[*waiting, *arrays - waiting.keys()])) as events:
            async for event in events:
                if state_name(event.state) not in ENDED:
                    continue
                touched = [job_id for job_id, info in waiting.items() if event.job_id in (job_id, info.proto.array_id)]
                await asyncio.gather(*map(look, touched))
                if not waiting:
                    return

    async def cancel(self, job_ids: Sequence[str], reason: str = "") -> list[str]:
        """Ask for jobs to be cancelled, all or none; returns those that had not ended."""
        request = jobs_pb2.CancelJobsRequest(job_ids=job_ids, reason=reason)
        response = await self.connection.call(self.connection.jobs.CancelJobs, request, idempotent=True)
        return list(response.cancelling)

    async def usage(
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
        for name in by:
            if name not in DIMENSIONS:
                raise InvalidArgument(f"by: {name!r} is none of {', '.join(DIMENSIONS)}.", field="by")
        request = usage_pb2.GetUsageRequest(
            institution=institution,
            project=project,
            from_ms=from_ms,
            to_ms=to_ms,
            group_by=[DIMENSIONS[name] for name in by],
            include_running=running,
        )
        return usage_of(await self.connection.call(self.connection.usage.GetUsage, request, idempotent=True), tuple(by))

    async def artifacts(
        self, *, largest_first: bool = False, limit: int | None = None, **chosen: Unpack[ArtifactChoice]
    ) -> AsyncGenerator[artifacts_pb2.Artifact, None]:
        """Yield what is kept in the artifact store, the newest first. ``ArtifactChoice`` lists the keywords that choose."""
        order = artifacts_pb2.ARTIFACT_ORDER_LARGEST if largest_first else artifacts_pb2.ARTIFACT_ORDER_NEWEST
        request = artifacts_pb2.ListArtifactsRequest(filter=filter_of(chosen), order=order)
        left = limit
        while left is None or left > 0:
            request.page_size = 500 if left is None else min(500, left)
            page = await self.connection.call(self.connection.artifacts.ListArtifacts, request, idempotent=True)
            for one in page.artifacts:
                yield one
            left = None if left is None else left - len(page.artifacts)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    async def delete_artifacts(
        self, *, reason: str = "", dry_run: bool = False, **chosen: Unpack[ArtifactChoice]
    ) -> Deleted:
        """Delete what is kept of jobs, digests, kinds or an age; what unfinished jobs need stays. ``dry_run``: only say how much."""
        request = artifacts_pb2.DeleteArtifactsRequest(filter=filter_of(chosen), reason=reason, validate_only=dry_run)
        deleted = Deleted(0, 0, 0)
        while True:
            part = await self.connection.call(self.connection.artifacts.DeleteArtifacts, request, idempotent=True)
            deleted = Deleted(
                deleted.items + part.items, deleted.size_bytes + part.size_bytes, deleted.kept + part.kept
            )
            request.page_token = part.next_page_token
            if not part.next_page_token:
                return deleted

    async def storage(self, institution: str = "") -> list[artifacts_pb2.Storage]:
        """Return how much is stored, by project, beside the quotas on it."""
        request = artifacts_pb2.GetStorageRequest(institution=institution)
        found: list[artifacts_pb2.Storage] = []
        while True:
            page = await self.connection.call(self.connection.artifacts.GetStorage, request, idempotent=True)
            found += page.storage
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def algorithms(self) -> list[jobs_pb2.Algorithm]:
        """Return the catalogue."""
        request = jobs_pb2.ListAlgorithmsRequest()
        response = await self.connection.call(self.connection.jobs.ListAlgorithms, request, idempotent=True)
        return list(response.algorithms)

    async def whoami(self) -> admin_pb2.WhoAmIResponse:
        """Return who the key belongs to."""
        request = admin_pb2.WhoAmIRequest()
        return await self.connection.call(self.connection.admin.WhoAmI, request, idempotent=True)


def _packed(folder: Any, script: Any) -> PackedFolder:
    if folder is not None:
        return pack(Path(str(folder)).expanduser())
    path = Path(str(script)).expanduser()
    return pack_files([(path.name, path)])


def state_number(name: str) -> common_pb2.JobState.ValueType:
    """The contract's number of a state's name, in any case."""
    try:
        return common_pb2.JobState.Value(f"JOB_STATE_{name.upper()}")
    except ValueError:
        known = [state_name(number) for number in common_pb2.JobState.values() if number]
        raise InvalidArgument(f"state: {name[:40]!r} is none of {', '.join(known)}.", field="states") from None
