"""The one decision: may this job use this data, there, from then to then? Refused with every reason, not the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from scheduler.domain.classification import Classification
from scheduler.governance.data import Action, DataSet, Grant, GrantStatus


class Code(StrEnum):
    """Why data may not be used."""

    UNKNOWN = "DATA_SET_UNKNOWN"
    WITHDRAWN = "DATA_SET_WITHDRAWN"
    RETENTION = "RETENTION_OVER"
    PURPOSE = "PURPOSE_NOT_ALLOWED"
    REGION = "REGION_NOT_ALLOWED"
    TIER = "POOL_TIER_TOO_LOW"
    ISOLATION = "ISOLATION_NOT_ENFORCED"
    NO_GRANT = "NO_GRANT"
    NOT_APPROVED = "GRANT_NOT_APPROVED"
    REFUSED = "GRANT_REFUSED"
    REVOKED = "GRANT_REVOKED"
    NOT_YET = "GRANT_NOT_YET_LIVE"
    ENDS = "GRANT_ENDS_TOO_EARLY"
    GRANT_PURPOSE = "GRANT_FOR_OTHER_PURPOSE"
    ACTION = "ACTION_NOT_GRANTED"
    DEIDENTIFICATION = "DEIDENTIFICATION_TOO_LOW"


PLACE_CODES = frozenset({Code.REGION, Code.TIER, Code.ISOLATION})
"""Those that another pool may cure."""
_STATUS = {
    GrantStatus.REQUESTED: (Code.NOT_APPROVED, "is requested and not approved yet"),
    GrantStatus.REFUSED: (Code.REFUSED, "was refused"),
    GrantStatus.REVOKED: (Code.REVOKED, "was revoked"),
}


class Use(NamedTuple):
    """What a job would do: use data sets, as its spec names them, at start_ms and up to end_ms."""

    institution: str
    project: str
    purpose: str
    data_sets: tuple[str, ...]
    start_ms: int
    end_ms: int
    action: Action = Action.READ


class Place(NamedTuple):
    """A pool: its region, the highest level of data that may go there, and whether its nodes keep jobs apart."""

    region: str
    tier: Classification
    isolated: bool = True


class Reason(NamedTuple):
    """One thing that stands against it. ``data_set`` as the job names it; ``grant`` is empty where none is concerned."""

    code: Code
    data_set: str
    sentence: str
    grant: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Allowed when nothing stands against it. ``grants``: by data set, the grant that allows it; public data needs none."""

    reasons: tuple[Reason, ...]
    grants: Mapping[str, str]

    @property
    def allowed(self) -> bool:
        """Whether it may be."""
        return not self.reasons

    @property
    def text(self) -> str:
        """All reasons as sentences."""
        return " ".join(reason.sentence for reason in self.reasons)


def decide(use: Use, place: Place | None, data_sets: Mapping[str, DataSet | None], grants: Iterable[Grant]) -> Decision:
    """Whether a use may be; without a ``place``, whether it may be in some place.

    ``data_sets``: what the names in ``use.data_sets`` stand for; None or left out: nothing. Of several grants one that fits in all
    is enough; when none does, what stands against each is a reason.
    """
    grants = tuple(grants)
    reasons: list[Reason] = []
    used: dict[str, str] = {}
    for name in use.data_sets:
        data_set = data_sets.get(name)
        if data_set is None:
            reasons.append(Reason(Code.UNKNOWN, name, f'There is no data set "{name}".'))
            continue
        reasons += _of_data(use, name, data_set)
        if place is not None:
            reasons += _of_place(place, name, data_set)
        if data_set.classification is not Classification.PUBLIC:
            grant, against = _of_grants(use, name, data_set, grants)
            reasons += against
            if grant:
                used[name] = grant
    return Decision(tuple(reasons), used)


def _of_data(use: Use, name: str, data_set: DataSet) -> Iterator[Reason]:
    if data_set.withdrawn_ms:
        yield Reason(Code.WITHDRAWN, name, f'Data set "{name}" has been withdrawn.')
    if _ends(data_set.retention_until_ms, use):
        yield Reason(Code.RETENTION, name, f'Data set "{name}" may not be kept until the job would end.')
    if data_set.purposes and use.purpose not in data_set.purposes:
        allowed = ", ".join(data_set.purposes)
        yield Reason(Code.PURPOSE, name, f'Data set "{name}" may be used for {allowed}, not for "{use.purpose}".')


def _ends(to_ms: int, use: Use) -> bool:
    """Whether something that holds until ``to_ms``, exclusive, 0 for without end, ends before the use does."""
    return to_ms != 0 and (use.start_ms >= to_ms or use.end_ms > to_ms)


def _of_place(place: Place, name: str, data_set: DataSet) -> Iterator[Reason]:
    if data_set.places and place.region not in data_set.places:
        allowed = ", ".join(data_set.places)
        yield Reason(Code.REGION, name, f'Data set "{name}" can be processed in {allowed}, not in {place.region}.')
    if place.tier < data_set.classification:
        level, tier = data_set.classification.name.lower(), place.tier.name.lower()
        yield Reason(Code.TIER, name, f'Data set "{name}" is {level}, and the pool takes data up to {tier}.')
    if data_set.classification.needs_isolation and not place.isolated:
        level = data_set.classification.name.lower()
        yield Reason(Code.ISOLATION, name, f'Data set "{name}" is {level}, and the nodes do not keep jobs apart.')


def _of_grants(use: Use, name: str, data_set: DataSet, grants: Iterable[Grant]) -> tuple[str, list[Reason]]:
    """The first grant that allows it, or what stands against all of them."""
    against: list[Reason] = []
    found = False
    for grant in grants:
        if grant.is_for(use.institution, use.project, data_set):
            found = True
            reasons = list(_of_grant(use, name, data_set, grant))
            if not reasons:
                return grant.grant, []
            against += reasons
    if not found:
        who = f"{use.institution}/{use.project}"
        sentence = f'{who} has no grant for data set "{name}"; ask its steward, {data_set.steward}, for one.'
        against.append(Reason(Code.NO_GRANT, name, sentence))
    return "", against


def _of_grant(use: Use, name: str, data_set: DataSet, grant: Grant) -> Iterator[Reason]:
    def reason(code: Code, words: str) -> Reason:
        return Reason(code, name, f'Grant {grant.grant} for data set "{name}" {words}.', grant.grant)

    if grant.status in _STATUS:
        yield reason(*_STATUS[grant.status])
    if grant.from_ms > use.start_ms:
        yield reason(Code.NOT_YET, "does not hold yet")
    if _ends(grant.to_ms, use):
        yield reason(Code.ENDS, "ends before the job would")
    if grant.purpose != use.purpose:
        yield reason(Code.GRANT_PURPOSE, f'is for purpose "{grant.purpose}", not "{use.purpose}"')
    if use.action not in grant.actions:
        yield reason(Code.ACTION, f"does not allow to {use.action.name.lower()}")
    if data_set.deidentification < grant.deidentification:
        yield reason(
            Code.DEIDENTIFICATION,
            f"asks for de-identification level {grant.deidentification}, and the data has {data_set.deidentification}",
        )
