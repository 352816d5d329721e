"""What a caller may see and touch. Whatever lies outside is as if it were not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scheduler.api.limits import Credential
from scheduler.api.permissions import Scope
from scheduler.domain.errors import Hidden, NotFound, PermissionDenied
from scheduler.domain.records import JobRecord
from scheduler.service.contract import Service


class Caller(NamedTuple):
    """Who calls, and in which scope the method called is open to that role and to the credential."""

    user: str
    institution: str
    role: int
    region: str
    scope: Scope
    leads: frozenset[str] = frozenset()
    """The projects of the own institution that the caller leads; filled in where the scope is PROJECT."""
    credential: Credential = Credential()

    @property
    def project(self) -> str:
        """The one project that the credential is for; empty: all."""
        return self.credential.project

    def owns(self, user: str, project: str) -> bool:
        """Whether what a user of the own institution made in a project is the caller's to touch."""
        return self.scope not in (Scope.OWN, Scope.PROJECT) or user == self.user or project in self.leads


def job_not_found(job_id: str, field: str) -> NotFound:
    """The one answer for a job that is not there and for one that the caller may not know of."""
    return NotFound(f"There is no job {job_id[:64]!r}; `suanli ps` lists yours.", reason="JOB_NOT_FOUND", field=field)


def other_institution(field: str, institution: str) -> PermissionDenied:
    """The answer to who names an institution that is not the key's."""
    return PermissionDenied(
        f"{field}: your key is for institution {institution!r}; leave the field empty or name that one.",
        reason="OTHER_INSTITUTION",
        field=field,
    )


def require_led(caller: Caller, projects: Iterable[str], field: str) -> None:
    """``PermissionDenied`` for a project lead who names a project that it does not lead. Whoever manages more passes."""
    if caller.scope is not Scope.PROJECT:
        return
    for project in projects:
        if project not in caller.leads:
            raise PermissionDenied(
                f"{field}: you do not lead project {project[:64]!r}; name one of those you lead.",
                reason="NOT_YOUR_PROJECT",
                field=field,
            )


def institution_scope(caller: Caller, asked: str, field: str) -> str:
    """The institution to read: the asked one, or the caller's own. Empty (all) only for a caller who may see all."""
    if caller.scope is Scope.ANY:
        return asked
    if asked and asked != caller.institution:
        raise other_institution(field, caller.institution)
    return caller.institution


def project_scope(caller: Caller, asked: str, field: str) -> str:
    """The project to read or to submit to: the asked one, or the one that the caller's credential is for."""
    if asked and caller.project and asked != caller.project:
        raise PermissionDenied(
            f"{field}: your key or token is for project {caller.project!r} only; leave the field empty or name that one.",
            reason="CREDENTIAL_PROJECT_LIMIT",
            field=field,
        )
    return asked or caller.project


async def tell_foreign(service: Service, caller: Caller, action: str, job: JobRecord) -> None:
    """Have it recorded, before anything is given, that the caller reads what belongs to somebody else's job."""
    if job.user != caller.user:
        await service.tell_access(action, job)


async def visible_jobs(service: Service, caller: Caller, job_ids: Sequence[str], field: str) -> list[JobRecord]:
    """The jobs in the order asked. ``NotFound`` names the first that is unknown or not to be known of.

    A job the caller may know of but not touch (a colleague's) raises ``PermissionDenied``.
    """
    records: Sequence[JobRecord]
    try:
        records = await service.get_jobs(job_ids)
    except NotFound:
        records = await _known_prefix(service, job_ids)
    for record in records:
        foreign = caller.scope is not Scope.ANY and record.institution != caller.institution
        # Ids of projects are unique within an institution only.
        if caller.project and (record.institution, record.project) != (caller.institution, caller.project):
            foreign = True
        if foreign:
            same = job_not_found(record.job_id, field)
            raise Hidden(same.message, reason=same.reason, field=same.field)
    if len(records) < len(job_ids):
        raise job_not_found(job_ids[len(records)], field)
    for record in records:
        if not caller.owns(record.user, record.project):
            raise PermissionDenied(
                f"Job {record.job_id} is {record.user}'s; only {record.user}, whoever leads the project and the admins of the "
                "institution may do this.",
                reason="NOT_YOUR_JOB",
                field=field,
            )
    return list(records)


async def _known_prefix(service: Service, job_ids: Sequence[str]) -> list[JobRecord]:
    """The jobs before the first unknown one. Found by halving, as the service does not say which one is unknown."""
    known: list[JobRecord] = []
    low, high = 0, len(job_ids)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            known += await service.get_jobs(job_ids[low:middle])
            low = middle
        except NotFound:
            high = middle
    return known
