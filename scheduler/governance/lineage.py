"""What a job read and made, as OpenLineage run events (https://openlineage.io/spec/2-0-2/OpenLineage.json)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from scheduler.governance.data import DataSet

PRODUCER = "https://suanli.io/scheduler"
_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_VERSION_FACET = (
    "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
)
_FACET = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/"
NAMESPACE = "suanli"


class Run(NamedTuple):
    """An attempt of a job: ``inputs`` are the versions it was given, ``end`` is START's counterpart, empty while it runs."""

    job_id: str
    attempt: int
    institution: str
    project: str
    user: str
    name: str
    purpose: str
    algorithm: str
    region: str
    inputs: tuple[DataSet, ...]
    start_ms: int
    end_ms: int
    end: str
    results: str
    classification: str


def events_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A START for each attempt that started, and a COMPLETE, FAIL or ABORT for each that ended."""
    events = []
    for run in runs:
        if run.start_ms:
            events.append(_event(run, "START", run.start_ms))
        if run.end and run.start_ms:
            events.append(_event(run, run.end, run.end_ms))
    return events


def _event(run: Run, kind: str, at_ms: int) -> dict[str, Any]:
    name = run.algorithm.partition("@")[0] or run.name
    facet = _custom(
        "RunFacet",
        jobId=run.job_id,
        attempt=run.attempt,
        user=run.user,
        purpose=run.purpose,
        region=run.region,
        classification=run.classification,
    )
    return {
        "eventType": kind,
        "eventTime": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "producer": PRODUCER,
        "schemaURL": _SPEC,
        "run": {
            "runId": str(uuid5(NAMESPACE_URL, f"suanli:{run.job_id}:{run.attempt}")),
            "facets": {"suanli": facet},
        },
        "job": {
            "namespace": f"{NAMESPACE}/{run.institution}/{run.project}",
            "name": name or run.job_id,
            "facets": {"suanli_algorithm": _custom("JobFacet", algorithm=run.algorithm)} if run.algorithm else {},
        },
        "inputs": [_input(data_set) for data_set in run.inputs],
        "outputs": [_output(run)] if run.results and kind != "START" else [],
    }


def _input(data_set: DataSet) -> dict[str, Any]:
    version = {
        "_producer": PRODUCER,
        "_schemaURL": _VERSION_FACET,
        "datasetVersion": data_set.version,
    }
    more = _custom(
        "DatasetFacet",
        contentHash=data_set.content_hash,
        classification=data_set.classification.name.lower(),
        owner=data_set.institution,
    )
    return {
        "namespace": f"{NAMESPACE}/data",
        "name": data_set.name,
        "facets": {"version": version, "suanli": more},
    }


def _output(run: Run) -> dict[str, Any]:
    facet = _custom("DatasetFacet", contentHash=run.results, classification=run.classification)
    return {
        "namespace": f"{NAMESPACE}/results",
        "name": f"{run.institution}/{run.project}/{run.job_id}",
        "facets": {"suanli": facet},
    }


def _custom(kind: str, **values: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": f"{_FACET}{kind}", **values}
