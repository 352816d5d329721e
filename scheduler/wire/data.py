"""Data sets, grants and decisions about them: protocol messages and what they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from protos.suanli.v1 import data_pb2
from scheduler.domain.classification import Classification
from scheduler.governance.data import Action, DataSet, Grant, GrantStatus, OnRevoke, Replica
from scheduler.governance.lineage import Run, events_of
from scheduler.service.data_contract import Access, Outputs
from scheduler.wire import check
from scheduler.wire.admin import MAX_TIME_MS, MAX_TITLE

MAX_SIZE_MIB = 1 << 48
MAX_REGIONS = 100
MAX_PURPOSES = 100
MAX_PURPOSE = 256
MAX_LOCATION = 1_000
MAX_SCHEMA = 64 * 1024
MAX_REASON = 1_000
MAX_DEIDENTIFICATION = 3
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
PATTERN = re.compile(r"[A-Za-z0-9._*-]{1,32}")
GRANT_ID = re.compile(r"[a-z0-9]{1,32}")


def name(value: str, field: str) -> str:
    """A data set's name."""
    if NAME.fullmatch(value) is None:
        check.invalid(
            field, f"{check.shown(value)} is not a data set's name; use letters, digits and . _ -, at most 64."
        )
    return value


def version(value: str, field: str) -> str:
    """A version."""
    if VERSION.fullmatch(value) is None:
        check.invalid(field, f"{check.shown(value)} is not a version; use letters, digits and . _ -, at most 32.")
    return value


def grant_id(value: str, field: str) -> str:
    """A grant's id (whether there is such a grant is not checked)."""
    if GRANT_ID.fullmatch(value) is None:
        check.invalid(field, f"{check.shown(value)} is not a grant's id; `suanli grant list` shows them.")
    return value


def reason(value: str, field: str, *, required: bool = True) -> str:
    """Why something is done."""
    check.text(value, MAX_REASON, field)
    if required and not value.strip():
        check.invalid(field, "it is empty; say in at most 1,000 characters why.")
    return value


def data_set_from_proto(message: data_pb2.DataSet) -> DataSet:
    """A checked data set; author, times and withdrawal are the server's to set. ``InvalidArgument`` names the field."""
    path = "data_set"
    if message.classification not in set(map(int, Classification)):
        names = ", ".join(level.name for level in Classification)
        check.invalid(f"{path}.classification", f"{message.classification} is no classification; give one of {names}.")
    if message.on_revoke not in (0, *OnRevoke):
        check.invalid(f"{path}.on_revoke", f"{message.on_revoke} is none; give STOP or FINISH.")
    digest = check.digest(message.content_hash, f"{path}.content_hash") if message.content_hash else ""
    found = DataSet(
        name=name(message.name, f"{path}.name"),
        version=version(message.version, f"{path}.version"),
        institution=check.slug(message.institution, f"{path}.institution", "an institution's id"),
        steward=check.slug(message.steward, f"{path}.steward", "a user's id"),
        classification=Classification(message.classification),
        title=check.text(message.title, MAX_TITLE, f"{path}.title"),
        personal=message.personal,
        minors=message.minors,
        deidentification=_level(message.deidentification, f"{path}.deidentification"),
        home_region=check.optional_slug(message.home_region, f"{path}.home_region", "a region's id"),
        allowed_regions=_regions(message.allowed_regions, f"{path}.allowed_regions"),
        purposes=_purposes(message.purposes, f"{path}.purposes"),
        size_mib=check.integer(message.size_mib, 0, MAX_SIZE_MIB, f"{path}.size_mib", "MiB"),
        content_hash=digest,
        replicas=_replicas(message.replicas, f"{path}.replicas"),
        schema_json=_schema(message.schema_json, f"{path}.schema_json"),
        retention_until_ms=check.integer(message.retention_until_ms, 0, MAX_TIME_MS, f"{path}.retention_until_ms"),
        on_revoke=OnRevoke(message.on_revoke or OnRevoke.STOP),
        listed=message.listed,
    )
    if not found.home_region and found.classification is not Classification.PUBLIC:
        check.invalid(f"{path}.home_region", "it is empty; say where the data may be processed, unless it is public.")
    if found.residency and (away := sorted(set(found.replicas) - set(found.residency))):
        check.invalid(
            f"{path}.replicas[{away[0]}]", "the data may not be in this region; allow the region or leave it out."
        )
    return found


def _level(value: int, field: str) -> int:
    return check.integer(value, 0, MAX_DEIDENTIFICATION, field)


def _regions(regions: Sequence[str], field: str) -> tuple[str, ...]:
    check.count(len(regions), MAX_REGIONS, field, "regions")
    return tuple(sorted({check.slug(each, f"{field}[{n}]", "a region's id") for n, each in enumerate(regions)}))


def _purposes(purposes: Sequence[str], field: str) -> tuple[str, ...]:
    check.count(len(purposes), MAX_PURPOSES, field, "purposes")
    return tuple(sorted({_purpose(each, f"{field}[{number}]") for number, each in enumerate(purposes)}))


def _purpose(value: str, field: str) -> str:
    check.text(value, MAX_PURPOSE, field)
    if not value.strip():
        check.invalid(field, "it is empty; say what the data is used for, as jobs name it.")
    return value


def _replicas(replicas: Mapping[str, data_pb2.DataReplica], field: str) -> Mapping[str, Replica]:
    check.count(len(replicas), MAX_REGIONS, field, "replicas")
    found = {}
    for region, copy in sorted(replicas.items()):
        path = f"{field}[{region[:64]}]"
        check.slug(region, path, "a region's id")
        checksum = check.digest(copy.checksum, f"{path}.checksum") if copy.checksum else ""
        size_mib = check.integer(copy.size_mib, 0, MAX_SIZE_MIB, f"{path}.size_mib", "MiB")
        found[region] = Replica(check.text(copy.location, MAX_LOCATION, f"{path}.location"), size_mib, checksum)
    return MappingProxyType(found)


def _schema(text: str, field: str) -> str:
    if len(text.encode()) > MAX_SCHEMA:
        check.invalid(field, f"it is longer than {MAX_SCHEMA:,} bytes; shorten it.")
    if text:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            check.invalid(field, "it is not JSON.")
    return text


def data_set_to_proto(data_set: DataSet) -> data_pb2.DataSet:
    """A data set."""
    return data_pb2.DataSet(
        name=data_set.name,
        version=data_set.version,
        institution=data_set.institution,
        steward=data_set.steward,
        classification=int(data_set.classification),  # type: ignore[arg-type]
        title=data_set.title,
        personal=data_set.personal,
        minors=data_set.minors,
        deidentification=data_set.deidentification,
        home_region=data_set.home_region,
        allowed_regions=data_set.allowed_regions,
        purposes=data_set.purposes,
        size_mib=data_set.size_mib,
        content_hash=data_set.content_hash,
        replicas={
            region: data_pb2.DataReplica(location=copy.location, size_mib=copy.size_mib, checksum=copy.checksum)
            for region, copy in data_set.replicas.items()
        },
        schema_json=data_set.schema_json,
        retention_until_ms=data_set.retention_until_ms,
        on_revoke=int(data_set.on_revoke),  # type: ignore[arg-type]
        listed=data_set.listed,
        withdrawn_time_ms=data_set.withdrawn_ms,
        withdrawn_reason=data_set.withdrawn_reason,
        author=data_set.author,
        create_time_ms=data_set.create_ms,
    )


def request_from_proto(message: data_pb2.Grant, why: str, institution: str) -> Grant:
    """A checked request; ``institution`` is the caller's, for one that names none. ``InvalidArgument`` names the field."""
    path = "grant"
    actions = frozenset(message.actions or [data_pb2.GRANT_ACTION_READ])
    if not actions <= set(Action):
        check.invalid(f"{path}.actions", "give READ, EXPORT or both.")
    pattern = message.version or "*"
    if PATTERN.fullmatch(pattern) is None:
        check.invalid(f"{path}.version", f"{check.shown(pattern)} is no version; * in it stands for anything.")
    return Grant(
        grant="",
        institution=check.slug(message.institution or institution, f"{path}.institution", "an institution's id"),
        project=check.optional_slug(message.project, f"{path}.project", "a project's id"),
        data_set=name(message.data_set, f"{path}.data_set"),
        version=pattern,
        purpose=_purpose(message.purpose, f"{path}.purpose"),
        actions=frozenset(map(Action, actions)),
        status=GrantStatus.REQUESTED,
        deidentification=_level(message.deidentification, f"{path}.deidentification"),
        from_ms=check.integer(message.from_ms, 0, MAX_TIME_MS, f"{path}.from_ms", "ms since 1970"),
        to_ms=check.integer(message.to_ms, 0, MAX_TIME_MS, f"{path}.to_ms", "ms since 1970"),
        request_reason=reason(why, "reason"),
    )


def grant_to_proto(grant: Grant) -> data_pb2.Grant:
    """A grant."""
    return data_pb2.Grant(
        id=grant.grant,
        institution=grant.institution,
        project=grant.project,
        data_set=grant.data_set,
        version=grant.version,
        purpose=grant.purpose,
        actions=sorted(map(int, grant.actions)),  # type: ignore[arg-type]
        deidentification=grant.deidentification,
        from_ms=grant.from_ms,
        to_ms=grant.to_ms,
        status=int(grant.status),  # type: ignore[arg-type]
        requester=grant.requester,
        request_reason=grant.request_reason,
        request_time_ms=grant.request_ms,
        decider=grant.decider,
        decision_reason=grant.decision_reason,
        decision_time_ms=grant.decide_ms,
        revoker=grant.revoker,
        revoke_reason=grant.revoke_reason,
        revoke_time_ms=grant.revoke_ms,
    )


def access_to_proto(access: Access) -> data_pb2.CheckAccessResponse:
    """A decision with all its reasons."""
    return data_pb2.CheckAccessResponse(
        allowed=access.decision.allowed,
        reasons=[
            data_pb2.AccessReason(code=each.code, data_set=each.data_set, grant=each.grant, message=each.sentence)
            for each in access.decision.reasons
        ],
        grants=access.decision.grants,
        pools=[str(pool) for pool in access.pools],
        classification=int(access.classification or 0),  # type: ignore[arg-type]
    )


def lineage_to_proto(outputs: Outputs, runs: Sequence[Run], results: str) -> data_pb2.GetLineageResponse:
    """What a job read and made."""
    return data_pb2.GetLineageResponse(
        inputs=[
            data_pb2.LineageInput(
                name=each.name,
                version=each.version,
                content_hash=each.content_hash,
                classification=int(each.classification),  # type: ignore[arg-type]
            )
            for each in outputs.inputs
        ],
        results=results,
        algorithm=runs[-1].algorithm if runs else "",
        classification=int(outputs.classification or 0),  # type: ignore[arg-type]
        events_json=json.dumps(events_of(runs), ensure_ascii=False),
    )
