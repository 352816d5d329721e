"""The rows that are kept of data sets and grants. ``records`` says what rows are."""

from __future__ import annotations

from typing import NamedTuple


class DataSetRecord(NamedTuple):
    """A version of a data set (``scheduler.governance.data.DataSet``).

    ``classification`` and ``on_revoke`` are numbers of their enums; ``allowed_regions``, ``purposes`` and ``replicas`` are JSON;
    ``personal``, ``minors`` and ``listed`` are 0 or 1.
    """

    data_set: str
    version: str
    institution: str
    steward: str
    classification: int
    title: str
    personal: int
    minors: int
    deidentification: int
    home_region: str
    allowed_regions: str
    purposes: str
    size_mib: int
    content_hash: str
    replicas: str
    schema_json: str
    retention_until_ms: int
    on_revoke: int
    listed: int
    withdrawn_ms: int
    withdrawn_reason: str
    author: str
    create_ms: int


class GrantRecord(NamedTuple):
    """A grant (``scheduler.governance.data.Grant``): ``actions`` is JSON, ``status`` a ``GrantStatus``."""

    grant_id: str
    institution: str
    project: str
    data_set: str
    version: str
    purpose: str
    actions: str
    status: int
    deidentification: int
    from_ms: int
    to_ms: int
    requester: str
    request_reason: str
    request_ms: int
    decider: str
    decision_reason: str
    decide_ms: int
    revoker: str
    revoke_reason: str
    revoke_ms: int
