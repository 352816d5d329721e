"""JobService: submit, read, watch, cancel, explain and logs."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from protos.suanli.v1 import jobs_pb2
from scheduler.api.artifact_access import ArtifactAccess
from scheduler.api.blobs import Artifacts
from scheduler.api.data import require_export
from scheduler.api.logs import LogBroker, LogPart, LogTarget, stored_chunks, stored_log
from scheduler.api.paging import decode_number, encode_token, page_size, question
from scheduler.api.permissions import Scope
from scheduler.api.visibility import (
    Caller,
    institution_scope,
    other_institution,
    project_scope,
    tell_foreign,
    visible_jobs,
)
from scheduler.catalog.catalogue import Algorithm, Catalogue
from scheduler.domain.errors import FailedPrecondition, NotFound, Unavailable
from scheduler.domain.holdings import HoldingKind
from scheduler.domain.records import AttemptRecord, JobRecord
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import TERMINAL, AttemptState
from scheduler.service.contract import Service, Submission
from scheduler.service.ports import EventQuery, JobQuery
from scheduler.wire import check
from scheduler.wire.admin import resources_to_proto
from scheduler.wire.explanation import explanation_to_proto
from scheduler.wire.jobs import (
    attempt_to_proto,
    event_to_proto,
    job_to_proto,
    query_from_proto,
)
from scheduler.wire.spec import SpecCodec

MAX_BATCH = 10_000
MAX_WATCHED = 1000
# A list with a label filter looks at so many jobs for one page, then answers with what it found and a token.
MAX_SCANNED = 20_000
_SCAN_PAGE = 1000
_EVENT_PAGE = 1000
# A client takes messages of 4 MiB, unless it says otherwise.
_EVENTS_SENT = 400
_LIST_BYTES = 2 * 1024 * 1024
_LOG_DATA = 1024 * 1024


class JobApi:
    """The methods of JobService that are about jobs; ``BlobApi`` has those that move bytes."""

    def __init__(
        self,
        service: Service,
        codec: SpecCodec,
        catalogue: Catalogue,
        artifacts: Artifacts,
        access: ArtifactAccess,
        logs: LogBroker,
    ) -> None:
        self._service = service
        self._access = access
        self._codec = codec
        self._artifacts = artifacts
        self._logs = logs
        self._algorithms = [_algorithm(algorithm) for algorithm in catalogue.all()]

    async def submit_jobs(self, request: jobs_pb2.SubmitJobsRequest, caller: Caller) -> jobs_pb2.SubmitJobsResponse:
        """Check every specification, then have all of them accepted."""
        if not 1 <= len(request.jobs) <= MAX_BATCH:
            check.invalid("jobs", f"{len(request.jobs):,} jobs in one call; give 1 to {MAX_BATCH:,}.")
        if check.REQUEST_ID.fullmatch(request.request_id) is None:
            check.invalid("request_id", "give at most 128 printable ASCII characters without spaces, such as a UUID.")
        read, institution = self._codec.read, caller.institution
        for index, message in enumerate(request.jobs):
            message.project = project_scope(caller, message.project, f"jobs[{index}].project")
        specs = [
            read(message, field=f"jobs[{index}]", institution=institution) for index, message in enumerate(request.jobs)
        ]
        if caller.scope is not Scope.ANY:
            _check_institution(specs, institution)
        await self._check_folders(specs, caller)
        submitted = await self._service.submit(
            Submission(
                caller.user,
                specs,
                request.request_id,
                _fingerprint(request) if request.request_id else b"",
                request.validate_only,
            )
        )
        ids = () if request.validate_only else submitted.job_ids
        return jobs_pb2.SubmitJobsResponse(job_ids=ids, duplicate=submitted.duplicate)

    async def _check_folders(self, specs: Sequence[JobSpec], caller: Caller) -> None:
        """Every working folder is in the artifact store, the caller may use it, and it holds the script that is to be run."""
        checked = None
        for index, spec in enumerate(specs):
            workload = spec.workload
            if not workload.working_folder or workload.kind == "algorithm" or (workload, spec.institution) == checked:
                continue
            checked = (workload, spec.institution)
            try:
                paths = await self._access.folder(caller, spec.institution, workload.working_folder)
            except NotFound:
                check.invalid(
                    f"jobs[{index}].working_folder",
                    f"the artifact store has no folder {workload.working_folder}; upload its files and its manifest first.",
                )
            if (
                workload.kind == "python"
                and workload.argv[1] != "-m"
                and posixpath.normpath(workload.argv[1]) not in paths
            ):
                check.invalid(
                    f"jobs[{index}].python.script",
                    f"the working folder has no file {check.shown(workload.argv[1])}; give a path relative to it.",
                )

    async def get_job(self, request: jobs_pb2.GetJobRequest, caller: Caller) -> jobs_pb2.GetJobResponse:
        """One job with its attempts."""
        record = await self._one(request.job_id, caller)
        job = job_to_proto(record, self._codec)
        attempts = await self._service.attempts_of(record.job_id)
        if attempts:
            names = await self._node_names(attempts)
            job.attempts.extend(attempt_to_proto(attempt, names) for attempt in attempts)
        return jobs_pb2.GetJobResponse(job=job)

    async def _node_names(self, attempts: Sequence[AttemptRecord]) -> dict[tuple[str, str], str]:
        names: dict[tuple[str, str], str] = {}
        for region, pool in sorted({(attempt.region, attempt.pool) for attempt in attempts}):
            for node in await self._service.list_nodes(region, pool):
                names[region, node.view.node_id] = node.view.name
        return names

    async def list_jobs(self, request: jobs_pb2.ListJobsRequest, caller: Caller) -> jobs_pb2.ListJobsResponse:
        """A page, newest first."""
        size = page_size(request.page_size)
        query = query_from_proto(request.filter)
        query = replace(
            query,
            institution=institution_scope(caller, query.institution, "filter.institution"),
            project=project_scope(caller, query.project, "filter.project"),
        )
        labels = sorted(request.filter.labels.items())
        asked = question("ListJobs", query, labels)
        query = replace(query, before_job_no=decode_number(request.page_token, asked))
        if labels:
            records, more = await self._scan(query, dict(labels), size)
        else:
            records = await self._service.list_jobs(replace(query, limit=size + 1))
            more = records[size - 1].job_no if len(records) > size else 0
        page = _of_bounded_size(records[:size])
        if len(page) < min(size, len(records)):
            more = page[-1].job_no
        return jobs_pb2.ListJobsResponse(
            jobs=[job_to_proto(record, self._codec) for record in page],
            next_page_token=encode_token(str(more), asked) if more else "",
        )

    async def _scan(self, query: JobQuery, labels: dict[str, str], size: int) -> tuple[list[JobRecord], int]:
        """Up to ``size`` jobs with these labels, and where the list goes on (0: it does not)."""
        found: list[JobRecord] = []
        for _ in range(MAX_SCANNED // _SCAN_PAGE):
            page = await self._service.list_jobs(replace(query, limit=_SCAN_PAGE))
            for record in page:
                if labels.items() <= dict(self._codec.decode(record.spec).labels).items():
                    found.append(record)
                    if len(found) == size:
                        return found, record.job_no
            if len(page) < _SCAN_PAGE:
                return found, 0
            query = replace(query, before_job_no=page[-1].job_no)
        return found, query.before_job_no

    async def watch_jobs(
        self, request: jobs_pb2.WatchJobsRequest, caller: Caller
    ) -> AsyncIterator[jobs_pb2.WatchJobsResponse]:
        """Events from a sequence number on."""
        check.integer(request.after_sequence, -1, 1 << 62, "after_sequence")
        check.optional_slug(request.project, "project", "a project's id")
        check.count(len(request.job_ids), MAX_WATCHED, "job_ids", "jobs")
        ids = tuple(check.job_id(job_id, f"job_ids[{index}]") for index, job_id in enumerate(request.job_ids))
        institution = institution_scope(caller, request.institution, "institution")
        if ids:
            await visible_jobs(self._service, caller, ids, "job_ids")
        project = project_scope(caller, request.project, "project")
        query = EventQuery(request.after_sequence, _EVENT_PAGE, ids, institution, project)
        async for events, sequence in self._service.watch(query):
            for start in range(0, len(events), _EVENTS_SENT):
                part = events[start : start + _EVENTS_SENT]
                upto = sequence if start + _EVENTS_SENT >= len(events) else part[-1].sequence
                yield jobs_pb2.WatchJobsResponse(events=[event_to_proto(event) for event in part], sequence=upto)
            if not events:
                yield jobs_pb2.WatchJobsResponse(sequence=sequence)
        raise stepped_down()

    async def cancel_jobs(self, request: jobs_pb2.CancelJobsRequest, caller: Caller) -> jobs_pb2.CancelJobsResponse:
        """Ask for jobs to be cancelled, all or none."""
        if not 1 <= len(request.job_ids) <= MAX_BATCH:
            check.invalid("job_ids", f"{len(request.job_ids):,} jobs in one call; give 1 to {MAX_BATCH:,}.")
        check.text(request.reason, 1024, "reason")
        ids = list(
            dict.fromkeys(check.job_id(job_id, f"job_ids[{index}]") for index, job_id in enumerate(request.job_ids))
        )
        await visible_jobs(self._service, caller, ids, "job_ids")
        cancelling, ended = await self._service.cancel(ids, caller.user, request.reason)
        return jobs_pb2.CancelJobsResponse(cancelling=cancelling, already_ended=ended)

    async def explain_job(self, request: jobs_pb2.ExplainJobRequest, caller: Caller) -> jobs_pb2.ExplainJobResponse:
        """Why a job waits and when it will start; of one not submitted, too."""
        if request.HasField("spec"):
            return await self._explain_spec(request, caller)
        record = await self._one(request.job_id, caller)
        what_if = None
        if request.HasField("what_if"):
            what_if = self._codec.with_change(self._codec.decode(record.spec), request.what_if, field="what_if")
        return explanation_to_proto(await self._service.explain(request.job_id, what_if))

    async def _explain_spec(self, request: jobs_pb2.ExplainJobRequest, caller: Caller) -> jobs_pb2.ExplainJobResponse:
        if request.job_id:
            check.invalid("spec", "job_id is given, too; ask about one of them.")
        request.spec.project = project_scope(caller, request.spec.project, "spec.project")
        spec = self._codec.read(request.spec, field="spec", institution=caller.institution)
        if caller.scope is not Scope.ANY and spec.institution != caller.institution:
            raise other_institution("spec.institution", caller.institution)
        if request.HasField("what_if"):
            spec = self._codec.with_change(spec, request.what_if, field="what_if")
        return explanation_to_proto(await self._service.explain_spec(spec, caller.user))

    async def list_algorithms(
        self, request: jobs_pb2.ListAlgorithmsRequest, caller: Caller
    ) -> jobs_pb2.ListAlgorithmsResponse:
        """The catalogue."""
        del request, caller
        return jobs_pb2.ListAlgorithmsResponse(algorithms=self._algorithms)

    async def tail_logs(
        self, request: jobs_pb2.TailLogsRequest, caller: Caller
    ) -> AsyncIterator[jobs_pb2.TailLogsResponse]:
        """One replica's log; waits for the attempt to start when asked to follow."""
        check.integer(request.attempt, 0, 1 << 30, "attempt")
        check.integer(request.rank, 0, 4095, "rank")
        if request.stream not in jobs_pb2.LogStream.values():
            check.invalid("stream", "give STDOUT or STDERR, or leave it out for both.")
        record = await self._one(request.job_id, caller)
        if record.array_size:
            raise FailedPrecondition(
                f"{record.job_id} is an array; each of its tasks has a log of its own, as in {record.job_id}.0.",
                reason="IS_ARRAY",
                field="job_id",
            )
        await require_export(self._service, caller, record)
        attempt = await self._started_attempt(record, request)
        replicas = len(json.loads(attempt.placement))
        if request.rank >= replicas:
            check.invalid("rank", f"the job has {replicas} replicas; give 0 to {replicas - 1}.")
        await tell_foreign(self._service, caller, "TailLogs", record)
        async with aclosing(await self._log_chunks(record, attempt, request)) as chunks:
            async for stream, offset, data in chunks:
                # A log is followed for days; a grant to export may have gone by then.
                await require_export(self._service, caller, record)
                for start in range(0, len(data), _LOG_DATA):
                    yield jobs_pb2.TailLogsResponse(
                        stream=stream,
                        offset=offset + start,
                        data=data[start : start + _LOG_DATA],
                        attempt=attempt.attempt,
                        rank=request.rank,
                    )

    async def _log_chunks(
        self, record: JobRecord, attempt: AttemptRecord, request: jobs_pb2.TailLogsRequest
    ) -> AsyncGenerator[LogPart]:
        """From the artifact store, where the log of an ended attempt outlives its node; else from the region's agent."""
        if attempt.logs and not await self._service.holds_output(record, HoldingKind.LOG, attempt.attempt):
            raise NotFound(
                f"The logs of attempt {attempt.attempt} of {record.job_id} were deleted.", reason="LOGS_DELETED"
            )
        stored = await stored_log(self._artifacts, attempt.logs, request.rank)
        if stored:
            return stored_chunks(self._artifacts, stored, request.stream, request.offset)
        target = LogTarget(attempt.job_id, attempt.attempt, request.rank)
        return self._logs.pull(attempt.region, target, request.stream, request.offset, request.follow).chunks()

    async def _started_attempt(self, record: JobRecord, request: jobs_pb2.TailLogsRequest) -> AttemptRecord:
        """The attempt asked for, once its processes have been started."""
        attempt = await self._attempt(record.job_id, request.attempt)
        if attempt is not None and _has_begun(attempt):
            return attempt
        if request.attempt and attempt is None and request.attempt <= record.attempt:
            raise NotFound(
                f"Attempt {request.attempt} of {record.job_id} is not kept any more.", reason="ATTEMPT_NOT_FOUND"
            )
        if not request.follow or record.state in TERMINAL:
            raise FailedPrecondition(
                f"{record.job_id} has not been started, so it has no log; ask with follow to wait for it, or `suanli why` "
                "for the reason."
                if record.state not in TERMINAL
                else f"{record.job_id} ended without such an attempt, so there is no log.",
                reason="NOT_STARTED",
                field="job_id",
            )
        # A task that was never started ends with its array, without an event of its own.
        ids = {record.job_id, record.array_id} - {""}
        query = EventQuery(record.sequence, _EVENT_PAGE, tuple(sorted(ids)))
        async for events, _ in self._service.watch(query):
            own = [event for event in events if event.job_id == record.job_id]
            if own:
                attempt = await self._attempt(record.job_id, request.attempt)
                if attempt is not None and _has_begun(attempt):
                    return attempt
            if any(event.job_id in ids and event.state in TERMINAL for event in events):
                raise FailedPrecondition(
                    f"{record.job_id} ended before it was started, so it has no log.",
                    reason="NOT_STARTED",
                    field="job_id",
                )
        raise stepped_down()

    async def _attempt(self, job_id: str, number: int) -> AttemptRecord | None:
        attempts = await self._service.attempts_of(job_id)
        if number:
            return next((attempt for attempt in attempts if attempt.attempt == number), None)
        return attempts[-1] if attempts else None

    async def _one(self, job_id: str, caller: Caller) -> JobRecord:
        check.job_id(job_id, "job_id")
        return (await visible_jobs(self._service, caller, [job_id], "job_id"))[0]


def stepped_down() -> Unavailable:
    """A stream of events has ended, which it does only when this process leads no more."""
    return Unavailable("This process has stepped down; ask again from where the stream ended.", reason="NOT_LEADER")


def _of_bounded_size(records: list[JobRecord]) -> list[JobRecord]:
    """As many of the records, from the first, as one message can carry; at least one."""
    size = 0
    for index, record in enumerate(records):
        size += len(record.spec) + len(record.message) * 3 + 512
        if size > _LIST_BYTES and index:
            return records[:index]
    return records


def _has_begun(attempt: AttemptRecord) -> bool:
    return attempt.state in (AttemptState.RUNNING, AttemptState.ENDED)


def _check_institution(specs: Sequence[JobSpec], institution: str) -> None:
    for index, spec in enumerate(specs):
        if spec.institution != institution:
            raise other_institution(f"jobs[{index}].institution", institution)


def _fingerprint(request: jobs_pb2.SubmitJobsRequest) -> bytes:
    """The hash of the request without its id, the same whatever order a client's library writes maps in."""
    body = jobs_pb2.SubmitJobsRequest(jobs=request.jobs, validate_only=request.validate_only)
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def _algorithm(algorithm: Algorithm) -> jobs_pb2.Algorithm:
    manifest = algorithm.manifest
    return jobs_pb2.Algorithm(
        name=manifest.name,
        version=manifest.version,
        title=manifest.title,
        summary=manifest.summary,
        licence=manifest.licence,
        parameters_schema_json=json.dumps(manifest.parameters, sort_keys=True, ensure_ascii=False),
        resources=resources_to_proto(manifest.resources),
        replicas=manifest.replicas,
        artifact=algorithm.folder,
        outputs=dict(manifest.outputs),
    )
