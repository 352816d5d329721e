"""Data sets and grants, as plain immutable values. Instants are milliseconds since 1970 UTC; 0 means none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from types import MappingProxyType

from scheduler.domain.classification import Classification


class OnRevoke(IntEnum):
    """What becomes of running jobs whose grant goes."""

    STOP = 1
    FINISH = 2


class Action(IntEnum):
    """What a grant allows: to read data in a job, and to take a job's results and logs out of the platform."""

    READ = 1
    EXPORT = 2


class GrantStatus(IntEnum):
    """Where a grant stands."""

    REQUESTED = 1
    APPROVED = 2
    REFUSED = 3
    REVOKED = 4


@dataclass(frozen=True, slots=True)
class Replica:
    """A copy in a region: where it lies there, as its keepers know it, its size and its checksum."""

    location: str
    size_mib: int
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A version of a data set.

    ``institution`` owns it and ``steward`` (a user) answers for it. ``deidentification`` is 0 (as collected) to 3 (anonymous).
    ``home_region`` and ``allowed_regions`` are where it may be processed; neither: anywhere. ``replicas``, by region, are where it
    lies; when there are any, only there. ``purposes``: those it may be used for; none: any. ``listed``: everybody may find it.
    """

    name: str
    version: str
    institution: str
    steward: str
    classification: Classification
    title: str = ""
    personal: bool = False
    minors: bool = False
    deidentification: int = 0
    home_region: str = ""
    allowed_regions: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    size_mib: int = 0
    content_hash: str = ""
    replicas: Mapping[str, Replica] = field(default_factory=lambda: MappingProxyType({}))
    schema_json: str = ""
    retention_until_ms: int = 0
    on_revoke: OnRevoke = OnRevoke.STOP
    listed: bool = False
    withdrawn_ms: int = 0
    withdrawn_reason: str = ""
    author: str = ""
    create_ms: int = 0

    @property
    def reference(self) -> str:
        """ "census@2024"."""
        return f"{self.name}@{self.version}"

    @property
    def residency(self) -> tuple[str, ...]:
        """The regions in which it may be processed; none: anywhere."""
        return tuple(sorted({self.home_region, *self.allowed_regions} - {""}))

    @property
    def places(self) -> tuple[str, ...]:
        """The regions in which a job can read it: where a copy lies, of those allowed; none: anywhere."""
        return tuple(sorted(self.replicas)) or self.residency


@dataclass(frozen=True, slots=True)
class Grant:
    """That an institution, or one of its projects, may use a data set for a purpose in [from_ms, to_ms); ``to_ms`` 0: without end.

    ``version`` is a pattern in which * stands for anything. ``deidentification``: versions below this level are not meant.
    """

    grant: str
    institution: str
    project: str
    data_set: str
    version: str
    purpose: str
    actions: frozenset[Action]
    status: GrantStatus
    deidentification: int = 0
    from_ms: int = 0
    to_ms: int = 0
    requester: str = ""
    request_reason: str = ""
    request_ms: int = 0
    decider: str = ""
    decision_reason: str = ""
    decide_ms: int = 0
    revoker: str = ""
    revoke_reason: str = ""
    revoke_ms: int = 0

    def is_for(self, institution: str, project: str, data_set: DataSet) -> bool:
        """Whether it is about this project's use of this version at all."""
        return (
            self.institution == institution
            and self.project in ("", project)
            and self.data_set == data_set.name
            and fnmatchcase(data_set.version, self.version)
        )
