"""The register of data sets within the state: what planning sees of it, and its rows."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from scheduler.domain.classification import Classification
from scheduler.domain.data_records import DataSetRecord, GrantRecord
from scheduler.governance.data import Action, DataSet, Grant, GrantStatus, OnRevoke, Replica
from scheduler.governance.register import Register
from scheduler.planning import policy as planning

if TYPE_CHECKING:
    from scheduler.service.job import Job


class Governance:
    """The register, the live jobs that use data, and when to look at them again."""

    def __init__(self) -> None:
        self.register = Register()
        self.jobs: dict[int, Job] = {}
        """Live jobs whose spec names data sets, by number."""
        self.again = False
        """Something has changed that they depend on."""
        self.look_ms = 0
        """When time alone may have changed something."""


def governed(policy: planning.Policy, register: Register) -> planning.Policy:
    """The policy with what the register says of data sets; where both name one, the register's word is the one that counts."""
    if not register:
        return policy
    data_sets = dict(policy.data_sets)
    for name in register.names():
        newest = register.resolve(name)
        if newest is not None:
            data_sets[name] = _planned(newest)
        for each in register.versions(name):
            data_sets[each.reference] = _planned(each)
    return replace(policy, data_sets=MappingProxyType(data_sets))


def _planned(data_set: DataSet) -> planning.DataSet:
    size_mib = max((copy.size_mib for copy in data_set.replicas.values()), default=data_set.size_mib)
    return planning.DataSet(size_mib, tuple(sorted(data_set.replicas)), data_set.places, data_set.classification)


def data_set_of(record: DataSetRecord) -> DataSet:
    """The data set of a stored row."""
    values = record._asdict() | {
        "classification": Classification(record.classification),
        "allowed_regions": tuple(json.loads(record.allowed_regions)),
        "purposes": tuple(json.loads(record.purposes)),
        "replicas": MappingProxyType({region: Replica(*copy) for region, copy in json.loads(record.replicas).items()}),
        "on_revoke": OnRevoke(record.on_revoke),
    }
    values |= {name: bool(values[name]) for name in ("personal", "minors", "listed")}
    return DataSet(name=values.pop("data_set"), **values)


def data_set_record(data_set: DataSet) -> DataSetRecord:
    """The row to store."""
    values = {name: getattr(data_set, name, None) for name in DataSetRecord._fields} | {
        "data_set": data_set.name,
        "classification": int(data_set.classification),
        "allowed_regions": json.dumps(data_set.allowed_regions),
        "purposes": json.dumps(data_set.purposes, ensure_ascii=False),
        "replicas": json.dumps(
            {region: [copy.location, copy.size_mib, copy.checksum] for region, copy in data_set.replicas.items()},
            ensure_ascii=False,
            sort_keys=True,
        ),
        "on_revoke": int(data_set.on_revoke),
    }
    values |= {name: int(getattr(data_set, name)) for name in ("personal", "minors", "listed")}
    return DataSetRecord(**values)  # type: ignore[arg-type]


def grant_of(record: GrantRecord) -> Grant:
    """The grant of a stored row."""
    values = record._asdict() | {
        "actions": frozenset(map(Action, json.loads(record.actions))),
        "status": GrantStatus(record.status),
    }
    return Grant(grant=values.pop("grant_id"), **values)


def grant_record(grant: Grant) -> GrantRecord:
    """The row to store."""
    values = {name: getattr(grant, name, None) for name in GrantRecord._fields} | {
        "grant_id": grant.grant,
        "actions": json.dumps(sorted(map(int, grant.actions))),
        "status": int(grant.status),
    }
    return GrantRecord(**values)  # type: ignore[arg-type]
