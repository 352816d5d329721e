"""Taking jobs in, and cancelling them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scheduler.domain.agent import Stop
from scheduler.domain.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from scheduler.domain.records import JobRecord, RequestRecord
from scheduler.domain.resources import Resources
from scheduler.domain.spec import Dependency, DependencyCondition, JobSpec
from scheduler.domain.states import TERMINAL, AttemptOutcome, JobState
from scheduler.metering.prices import Place
from scheduler.planning.feasible import Infeasible, UnknownPlace, could_ever_fit
from scheduler.planning.policy import Policy
from scheduler.service.auditing import tell
from scheduler.service.contract import Submission
from scheduler.service.covering import Wants, check_covered
from scheduler.service.ending import drop_unstarted, end_array_if_done, job_ended
from scheduler.service.granting import check_granted
from scheduler.service.job import Job
from scheduler.service.state import State
from scheduler.service.stored_quota import check_may_submit


def find_request(state: State, submission: Submission) -> RequestRecord | None:
    """The earlier submission with this request_id that memory knows of; ``AlreadyExists`` when its body was another."""
    record = state.requests.get((submission.user, submission.request_id)) if submission.request_id else None
    if record is not None:
        check_same_request(record, submission)
    return record


def check_same_request(record: RequestRecord, submission: Submission) -> None:
    """Refuse a request_id that was used for something else."""
    if record.fingerprint != submission.fingerprint:
        raise AlreadyExists(
            f'request_id "{submission.request_id}" was used before with another body; use a new one for a new submission.',
            reason="REQUEST_ID_REUSED",
            field="request_id",
        )


def submit(state: State, policy: Policy, submission: Submission, ended: Mapping[str, JobRecord]) -> list[str]:
    """Accept all jobs of a submission, or none. ``ended`` holds the ended jobs among its dependencies.

    Raises ``InvalidArgument``, ``NotFound``, ``FailedPrecondition`` or ``ResourceExhausted`` naming the field.
    """
    specs = submission.specs
    _check_cycles(specs)
    if state.feasible_under is not policy:
        state.feasible.clear()
        state.feasible_under = policy
    room: dict[tuple[str, str], int] = {}
    places: dict[Wants, list[Place]] = {}
    granted: set[tuple[object, ...]] = set()
    for index, spec in enumerate(specs):
        field = f"jobs[{index}]"
        _check_tenant(state, spec, field)
        _check_room(state, spec, field, room)
        check_may_submit(state, spec.institution, spec.project, field)
        check_granted(state, spec, field, granted)
        if (spec.shape, spec.preemptible) not in state.feasible:
            _check_shape(state, policy, spec, field)
            state.remember_feasible(spec.shape, spec.preemptible)
        check_covered(state, spec, field, places)
        for number, dependency in enumerate(spec.dependencies):
            _check_dependency(state, spec, dependency, ended, f"{field}.dependencies[{number}]")
    if submission.validate_only:
        return []
    now = state.now()
    first_job_no = state.counters.job_no + 1
    ids = [state.ids.job_id(now) for _ in specs]
    jobs = [_add(state, spec, ids, submission.user, job_id, now) for spec, job_id in zip(specs, ids, strict=True)]
    for job in jobs:
        _settle_dependencies(state, job, ended)
    if submission.request_id:
        _remember(state, submission, first_job_no, now)
    return ids


def _add(state: State, spec: JobSpec, ids: Sequence[str], user: str, job_id: str, now: int) -> Job:
    if any(d.batch_index >= 0 for d in spec.dependencies):
        resolved = tuple(
            replace(d, job_id=ids[d.batch_index], batch_index=-1) if d.batch_index >= 0 else d
            for d in spec.dependencies
        )
        spec = state.codec.with_dependencies(spec, resolved)
    job = Job(
        job_no=state.next_job_no(),
        job_id=job_id,
        spec=spec,
        user=user,
        state=JobState.HELD if spec.dependencies else JobState.QUEUED,
        submit_ms=now,
    )
    if spec.dependencies:
        job.reason = "DEPENDENCY"
        job.message = f"Waits for {len(spec.dependencies)} other job{'s' if len(spec.dependencies) > 1 else ''}."
        job.waits_for = set()
    state.add_job(job)
    state.emit(job, "SUBMITTED")
    if job.state is JobState.QUEUED:
        state.enqueue(job)
    return job


def _settle_dependencies(state: State, job: Job, ended: Mapping[str, JobRecord]) -> None:
    """Wait for those dependencies that have not ended; let the job go, or end it, when there is none to wait for."""
    if job.waits_for is None:
        return
    for dependency in job.spec.dependencies:
        other = ended.get(dependency.job_id)
        if dependency.job_id in state.jobs:
            if dependency.job_id not in job.waits_for:
                job.waits_for.add(dependency.job_id)
                state.dependents.setdefault(dependency.job_id, {})[job.job_no] = job
        elif dependency.condition is DependencyCondition.AFTER_OK and (
            other is None or other.state != JobState.SUCCEEDED
        ):
            job_ended(state, job, JobState.CANCELLED, "DEPENDENCY_FAILED", f"Job {dependency.job_id} did not succeed.")
            return
    if not job.waits_for:
        state.set_state(job, JobState.QUEUED)


def _remember(state: State, submission: Submission, first_job_no: int, now: int) -> None:
    record = RequestRecord(
        submission.user, submission.request_id, submission.fingerprint, first_job_no, len(submission.specs), now
    )
    state.record.requests.append(record)
    state.requests[record.user, record.request_id] = record
    while len(state.requests) > state.settings.remembered_requests:
        state.requests.popitem(last=False)
        state.requests_complete = False


# --- checks -------------------------------------------------------------------------------------------------------------


def _check_tenant(state: State, spec: JobSpec, field: str) -> None:
    if spec.institution not in state.institutions:
        raise NotFound(
            f'There is no institution "{spec.institution}"; `suanli institution list` shows those you may use.',
            reason="INSTITUTION_NOT_FOUND",
            field=f"{field}.institution",
        )
    if (spec.institution, spec.project) not in state.projects:
        raise NotFound(
            f'Institution "{spec.institution}" has no project "{spec.project}"; `suanli project list` shows its projects.',
            reason="PROJECT_NOT_FOUND",
            field=f"{field}.project",
        )


def _most_jobs(state: State, key: tuple[str, str]) -> int:
    """How many unfinished jobs a tenant may have (-1: no limit); a project without a quota as many as the server's settings say."""
    if key[1] and key not in state.quotas and state.settings.max_project_jobs:
        return state.settings.max_project_jobs
    return state.tenants[key].max_live_jobs


def _check_room(state: State, spec: JobSpec, field: str, room: dict[tuple[str, str], int]) -> None:
    """Bounds on jobs that have not ended: the platform's and the tenants' own; and on what one job may ever hold."""
    count = max(1, spec.array_size)
    room["", ""] = room.get(("", ""), state.settings.max_live_jobs - state.live_jobs) - count
    if room["", ""] < 0:
        raise ResourceExhausted(
            f"The platform holds its limit of {state.settings.max_live_jobs:,} unfinished jobs; submit again when some have ended.",
            reason="TOO_MANY_JOBS",
            field=field,
        )
    for project in ("", spec.project):
        key = (spec.institution, project)
        tenant = state.tenants[key]
        name = f'project "{project}"' if project else f'institution "{spec.institution}"'
        most = _most_jobs(state, key)
        if most >= 0:
            room[key] = room.get(key, most - tenant.live_jobs) - count
            if room[key] < 0:
                raise ResourceExhausted(
                    f"The quota of {name} is {most:,} unfinished jobs, and this submission would pass it; "
                    "submit again when some have ended, or ask an operator for more.",
                    reason="QUOTA_JOBS",
                    field=field,
                )
        if not spec.shape.total.fits(tenant.quota):
            raise FailedPrecondition(
                f"The job asks for {_words(spec.shape.total)} in all, more than the quota of {name} "
                f"({_words(tenant.quota)}), so it could never start; ask for less, or an operator for more.",
                reason="QUOTA_NEVER_FITS",
                field=f"{field}.resources",
            )


def _words(amount: Resources) -> str:
    parts = [
        "any CPU" if amount.cpu_milli >= 1 << 62 else f"{amount.cpu_milli / 1000:g} CPU",
        "any memory" if amount.memory_mib >= 1 << 62 else f"{amount.memory_mib:,} MiB",
        "any GPU" if amount.gpu_milli >= 1 << 62 else f"{amount.gpu_milli / 1000:g} GPU",
    ]
    return ", ".join(parts)


def _check_shape(state: State, policy: Policy, spec: JobSpec, field: str) -> None:
    """Refuse what no pool can ever hold. Nothing is refused before any node of the wanted regions is known."""
    for name in ("required_regions", "preferred_regions"):
        for number, region in enumerate(getattr(spec.shape, name)):
            if region not in state.regions:
                known = ", ".join(sorted(state.regions)) or "none yet"
                raise InvalidArgument(
                    f'There is no region "{region}"; the regions are: {known}.',
                    reason="REGION_NOT_FOUND",
                    field=f"{field}.{name}[{number}]",
                )
    found = could_ever_fit(state.pools, spec.shape, policy, spec.preemptible)
    if isinstance(found, Infeasible):
        raise FailedPrecondition(
            sentence(found.message),
            reason="NEVER_FITS",
            field=f"{field}.resources",
            metadata={"nearest_pool": str(found.pool)}
            | {f"lacking_{name}": str(amount) for name, amount in found.lacking.items()},
        )
    if isinstance(found, UnknownPlace) and spec.shape.pools and state.pools:
        raise InvalidArgument(sentence(found.message), reason="POOL_NOT_FOUND", field=f"{field}.pools")


def sentence(text: str) -> str:
    """A planner's words as a sentence: a capital at the beginning, a full stop at the end."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _check_dependency(
    state: State, spec: JobSpec, dependency: Dependency, ended: Mapping[str, JobRecord], field: str
) -> None:
    if dependency.batch_index >= 0:
        return
    job = state.jobs.get(dependency.job_id)
    other = job.spec.institution if job else None
    if other is None and dependency.job_id in ended:
        other = ended[dependency.job_id].institution
    # Another institution's job is treated as unknown, so that its existence is not told.
    if other != spec.institution:
        raise NotFound(
            f'There is no job "{dependency.job_id}" in institution "{spec.institution}" to depend on.',
            reason="DEPENDENCY_NOT_FOUND",
            field=f"{field}.job_id",
        )


def _check_cycles(specs: Sequence[JobSpec]) -> None:
    """Jobs of one submission may depend on one another, but not in a circle (only they can: ids are not known before)."""
    edges = {
        index: [d.batch_index for d in spec.dependencies if d.batch_index >= 0]
        for index, spec in enumerate(specs)
        if spec.dependencies
    }
    waiting = {index: len(set(targets)) for index, targets in edges.items()}
    dependents: dict[int, list[int]] = {}
    for index, targets in edges.items():
        for number, target in enumerate(targets):
            if target >= len(specs):
                raise InvalidArgument(
                    f"batch_index {target} is out of range: the call has {len(specs)} jobs, counted from 0.",
                    field=f"jobs[{index}].dependencies[{number}].batch_index",
                )
        for target in set(targets):
            dependents.setdefault(target, []).append(index)
    free = [index for index in dependents if not waiting.get(index)]
    while free:
        for index in dependents.get(free.pop(), ()):
            waiting[index] -= 1
            if waiting[index] == 0:
                free.append(index)
    stuck = sorted(index for index, count in waiting.items() if count)
    if stuck:
        raise InvalidArgument(
            f"The dependencies of jobs {', '.join(map(str, stuck[:10]))} of this call form a cycle; none of them could ever start.",
            reason="DEPENDENCY_CYCLE",
            field=f"jobs[{stuck[0]}].dependencies",
        )


# --- cancel -------------------------------------------------------------------------------------------------------------


def cancel(state: State, job_ids: Sequence[str], user: str, reason: str) -> list[str]:
    """Ask for jobs to be cancelled; returns those that had not ended. Ids memory does not know are passed over."""
    cancelling = []
    for job_id in job_ids:
        job = state.jobs.get(job_id)
        if job is not None:
            cancelling.append(job_id)
            if job.user != user:
                before = {"user": job.user, "state": job.state.name}
                tell(state, "CancelJobs", job_id, job.spec.institution, before, {"cancel_requested": True}, reason)
            message = f"Cancelled by {user}." if not reason else f"Cancelled by {user}: {reason}"
            cancel_job(state, job, message)
    return cancelling


def cancel_job(state: State, job: Job, message: str) -> None:
    """Cancel one job, array or task that has not ended. Idempotent."""
    if job.array_size:
        _cancel_array(state, job, message)
    elif job.live is not None:
        _stop(state, job, message)
    elif job.state not in TERMINAL:
        job_ended(state, job, JobState.CANCELLED, "CANCELLED", message)


def _cancel_array(state: State, array: Job, message: str) -> None:
    drop_unstarted(state, array)
    if not array.cancel_requested:
        array.cancel_requested = True
        array.reason, array.message = "CANCELLED", message
        state.emit(array, "CANCEL_REQUESTED")
    for task in list((array.live_tasks or {}).values()):
        cancel_job(state, task, message)
    end_array_if_done(state, array)


def _stop(state: State, job: Job, message: str) -> None:
    if not job.cancel_requested:
        job.cancel_requested = True
        job.reason, job.message = "CANCELLING", message
        state.emit(job, "CANCEL_REQUESTED")
    stop_attempt(state, job, AttemptOutcome.CANCELLED, message)


def stop_attempt(
    state: State, job: Job, outcome: AttemptOutcome, message: str, grace_ms: int = -1, for_job_no: int = 0
) -> None:
    """Order the job's live attempt to be stopped. A cancellation overrides an earlier order, never the other way.

    ``grace_ms`` is the notice given, the job's own when it is negative; ``for_job_no`` the waiting job it is stopped for.
    """
    attempt = job.live
    if attempt is None or attempt.stop_outcome in (outcome, AttemptOutcome.CANCELLED):
        return
    attempt.stop_outcome = outcome
    attempt.told_ms = state.now()
    attempt.stop_grace_ms = grace_ms if grace_ms >= 0 else job.spec.grace_ms
    attempt.stopped_by_ms = attempt.told_ms + attempt.stop_grace_ms
    # What a cancellation of the victim frees is still for the job that was to have it.
    attempt.for_job_no = for_job_no or attempt.for_job_no
    state.touch_attempt(attempt)
    state.show_running(attempt)
    state.send(state.regions[attempt.region], Stop(attempt.ref, attempt.stop_grace_ms, outcome, message))
