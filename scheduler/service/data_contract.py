"""The use cases of data stewards and of those who use data, as the API layer calls them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from scheduler.domain.classification import Classification
from scheduler.domain.records import JobRecord
from scheduler.domain.spec import JobSpec
from scheduler.governance.data import DataSet, Grant
from scheduler.governance.decision import Decision
from scheduler.governance.lineage import Run
from scheduler.planning.types import PoolKey


class Access(NamedTuple):
    """What is decided of a spec: whether it may start now, in which pools, and what its outputs would inherit."""

    decision: Decision
    pools: list[PoolKey]
    classification: Classification | None


class Outputs(NamedTuple):
    """A job's inputs, the classification its outputs inherit, and the sensitive inputs without a live grant to export."""

    inputs: list[DataSet]
    classification: Classification | None
    not_exportable: list[DataSet]


class DataService(Protocol):
    """See ``scheduler.service.data.DataGovernance``."""

    async def put_data_set(self, data_set: DataSet, author: str, institution: str) -> DataSet:
        """Register a version or change its terms; ``institution`` is the caller's, "" for the platform, as below.

        ``NotFound``; ``PermissionDenied``: OTHER_INSTITUTION, DATA_SET_NAME_TAKEN; ``FailedPrecondition``: DATA_SET_WITHDRAWN,
        DATA_SET_FIXED.
        """
        ...

    async def list_data_sets(self, institution: str) -> list[DataSet]:
        """Those that an institution may know of, or ("") all, by name and version."""
        ...

    async def get_data_set(self, reference: str, institution: str) -> DataSet:
        """By name (the newest version) or "name@version"; ``NotFound``."""
        ...

    async def withdraw_data_set(self, name: str, version: str, reason: str, author: str, institution: str) -> DataSet:
        """For good; jobs that use it are held, and those running stopped if it says so. ``NotFound``, ``PermissionDenied``."""
        ...

    async def request_grant(self, asked: Grant, requester: str, institution: str) -> Grant:
        """Ask for a grant. ``NotFound`` for the data set and the tenants; ``PermissionDenied`` for another institution."""
        ...

    async def decide_grant(self, grant: str, approve: bool, reason: str, decider: str, institution: str) -> Grant:
        """``NotFound``; ``PermissionDenied``: OTHER_INSTITUTION, OWN_REQUEST; ``FailedPrecondition``: GRANT_DECIDED."""
        ...

    async def revoke_grant(self, grant: str, reason: str, revoker: str, institution: str) -> Grant:
        """``NotFound``; ``PermissionDenied``: OTHER_INSTITUTION; ``FailedPrecondition``: GRANT_NOT_APPROVED."""
        ...

    async def list_grants(self, institution: str, data_set: str) -> list[Grant]:
        """Those of an institution and of its data sets, or ("") all, newest first; of one data set when it is named."""
        ...

    async def check_access(self, spec: JobSpec) -> Access:
        """Whether a job may use the data it names, and where."""
        ...

    async def outputs_of(self, record: JobRecord) -> Outputs:
        """What a job read, and whether its results and logs may be taken out now."""
        ...

    async def lineage(self, record: JobRecord) -> list[Run]:
        """What its attempts read and made, oldest first."""
        ...
