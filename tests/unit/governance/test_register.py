"""What names stand for, who may know of what, and lineage."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import jsonschema

from scheduler.domain.classification import Classification
from scheduler.governance.data import Action, DataSet, Grant, GrantStatus, Replica
from scheduler.governance.lineage import Run, events_of
from scheduler.governance.register import NEVER, Register

CENSUS = DataSet("census", "2023", "north", "sam", Classification.RESTRICTED, home_region="east", create_ms=10)
NEWER = replace(CENSUS, version="2024", create_ms=20)
GRANT = Grant("g1", "south", "", "census", "*", "thesis", frozenset({Action.READ}), GrantStatus.APPROVED)


def register(*data_sets: DataSet) -> Register:
    found = Register()
    for each in data_sets:
        found.put(each)
    return found


def test_a_name_stands_for_the_newest_version_that_was_not_withdrawn() -> None:
    known = register(NEWER, CENSUS)
    assert known.resolve("census") == NEWER
    assert known.resolve("census", 19) == known.resolve("census@2023") == CENSUS
    assert known.resolve("census", 9) is known.resolve("census@1") is known.resolve("scores") is None
    withdrawn = replace(NEWER, withdrawn_ms=30)
    known.put(withdrawn)
    assert known.resolve("census") == CENSUS
    assert known.resolve("census", 25) == known.resolve("census@2024") == withdrawn
    assert known.meant("census", 15, 25) == [CENSUS, withdrawn]
    assert known.meant("census", 25, 40) == [withdrawn, CENSUS]
    assert known.meant("census@2024", 0, 40) == [withdrawn]
    known.put(replace(CENSUS, withdrawn_ms=31))
    assert known.resolve("census") == withdrawn


def test_who_may_know_of_it() -> None:
    known = register(CENSUS)
    assert known.knows("north", CENSUS)
    assert not known.knows("south", CENSUS)
    assert known.knows("south", replace(CENSUS, listed=True))
    assert known.knows("south", replace(CENSUS, classification=Classification.PUBLIC))
    known.put_grant(replace(GRANT, status=GrantStatus.REVOKED))
    assert known.knows("south", CENSUS)
    assert not known.knows("west", CENSUS)


def test_where_it_can_be_processed() -> None:
    wide = replace(CENSUS, allowed_regions=("west",))
    assert CENSUS.places == ("east",)
    assert wide.places == ("east", "west")
    assert replace(wide, replicas={"west": Replica("/d", 1)}).places == ("west",)
    assert replace(CENSUS, home_region="").places == ()


def test_when_time_alone_changes_a_decision() -> None:
    known = register(replace(CENSUS, retention_until_ms=90))
    assert known.next_change_ms(50) == 90
    known.put_grant(replace(GRANT, from_ms=60, to_ms=80))
    assert [known.next_change_ms(at) for at in (50, 60, 80, 90)] == [60, 80, 90, NEVER]
    known.put_grant(replace(GRANT, from_ms=60, to_ms=80, status=GrantStatus.REFUSED))
    assert known.next_change_ms(50) == 90


# What https://openlineage.io/spec/2-0-2/OpenLineage.json requires of a run event; the Python client ships no schema.
_FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {"_producer": {"type": "string"}, "_schemaURL": {"type": "string", "format": "uri"}},
    },
}
_DATA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["namespace", "name"],
        "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": _FACETS},
    },
}
RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventTime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$"},
        "producer": {"type": "string", "pattern": "^https://"},
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"format": "uuid"}, "facets": _FACETS},
        },
        "job": {"type": "object", "required": ["namespace", "name"], "properties": {"facets": _FACETS}},
        "inputs": _DATA,
        "outputs": _DATA,
    },
}


def test_lineage_is_told_as_openlineage_run_events() -> None:
    first = Run(
        "j1",
        1,
        "south",
        "p",
        "ada",
        "fit",
        "thesis",
        "irt@1.0",
        "east",
        (CENSUS,),
        1000,
        2000,
        "ABORT",
        "",
        "restricted",
    )
    last = first._replace(attempt=2, start_ms=3000, end_ms=4000, end="COMPLETE", results="sha256:ab", inputs=(NEWER,))
    waiting = first._replace(attempt=3, start_ms=0, end="", end_ms=0)

    events = events_of([first, last, waiting])

    for event in events:
        jsonschema.validate(event, RUN_EVENT)
        UUID(event["run"]["runId"])
    assert [(event["eventType"], event["inputs"][0]["facets"]["version"]["datasetVersion"]) for event in events] == [
        ("START", "2023"),
        ("ABORT", "2023"),
        ("START", "2024"),
        ("COMPLETE", "2024"),
    ]
    assert len({event["run"]["runId"] for event in events}) == 2
    assert [len(event["outputs"]) for event in events] == [0, 0, 0, 1]
    assert events[3]["outputs"][0]["facets"]["suanli"]["classification"] == "restricted"
    assert events[3]["job"]["name"] == "irt"
    assert events[3]["eventTime"] == "1970-01-01T00:00:04.000+00:00"
