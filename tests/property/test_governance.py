"""The decision about data against a plain reference that looks at every rule by itself."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.classification import Classification
from scheduler.governance.data import Action, DataSet, Grant, GrantStatus, Replica
from scheduler.governance.decision import Place, Use, decide

REGIONS = st.sampled_from(["east", "west", "north"])
PURPOSES = st.sampled_from(["thesis", "report"])
NAMES = ("census", "scores")
TIMES = st.integers(0, 6)


@st.composite
def data_sets(draw: st.DrawFn, name: str) -> DataSet:
    home = draw(st.sampled_from(["", "east", "west"]))
    allowed = tuple(draw(st.lists(REGIONS, max_size=2, unique=True)))
    residency = sorted({home, *allowed} - {""})
    copies = draw(st.lists(st.sampled_from(residency), unique=True)) if residency else []
    return DataSet(
        name=name,
        version=draw(st.sampled_from(["2023", "2024"])),
        institution="owner",
        steward="sam",
        classification=draw(st.sampled_from(Classification)),
        deidentification=draw(st.integers(0, 3)),
        home_region=home,
        allowed_regions=allowed,
        replicas={region: Replica("/data", 1) for region in copies},
        purposes=tuple(draw(st.lists(PURPOSES, max_size=1))),
        retention_until_ms=draw(TIMES),
        withdrawn_ms=draw(st.sampled_from([0, 0, 0, 3])),
    )


GRANTS = st.builds(
    Grant,
    grant=st.just(""),
    institution=st.sampled_from(["north", "north", "south"]),
    project=st.sampled_from(["", "default", "other"]),
    data_set=st.sampled_from(NAMES),
    version=st.sampled_from(["*", "2024", "202*", "1999"]),
    purpose=PURPOSES,
    actions=st.frozensets(st.sampled_from(Action)),
    status=st.sampled_from([GrantStatus.APPROVED, GrantStatus.APPROVED, *GrantStatus]),
    deidentification=st.integers(0, 3),
    from_ms=TIMES,
    to_ms=TIMES,
)


def live_throughout(from_ms: int, to_ms: int, use: Use) -> tuple[bool, bool]:
    """Whether it has begun at the start and lasts to the end, millisecond by millisecond."""
    instants = range(use.start_ms, max(use.end_ms, use.start_ms + 1))
    return all(at >= from_ms for at in instants), to_ms == 0 or all(at < to_ms for at in instants)


def against_grant(use: Use, data_set: DataSet, grant: Grant) -> set[str]:
    begun, lasts = live_throughout(grant.from_ms, grant.to_ms, use)
    rules = {
        "GRANT_NOT_APPROVED": grant.status is not GrantStatus.REQUESTED,
        "GRANT_REFUSED": grant.status is not GrantStatus.REFUSED,
        "GRANT_REVOKED": grant.status is not GrantStatus.REVOKED,
        "GRANT_NOT_YET_LIVE": begun,
        "GRANT_ENDS_TOO_EARLY": lasts,
        "GRANT_FOR_OTHER_PURPOSE": grant.purpose == use.purpose,
        "ACTION_NOT_GRANTED": use.action in grant.actions,
        "DEIDENTIFICATION_TOO_LOW": data_set.deidentification >= grant.deidentification,
    }
    return {code for code, met in rules.items() if not met}


def reference(
    use: Use, place: Place | None, known: dict[str, DataSet | None], grants: list[Grant]
) -> set[tuple[str, ...]]:
    """(data set, code, grant) of all that stands against it."""
    found: set[tuple[str, ...]] = set()
    for name in use.data_sets:
        data_set = known.get(name)
        if data_set is None:
            found.add((name, "DATA_SET_UNKNOWN", ""))
            continue
        regions = {data_set.home_region, *data_set.allowed_regions} - {""}
        where = regions & set(data_set.replicas) if data_set.replicas else regions
        rules = {
            "DATA_SET_WITHDRAWN": not data_set.withdrawn_ms,
            "RETENTION_OVER": live_throughout(0, data_set.retention_until_ms, use)[1],
            "PURPOSE_NOT_ALLOWED": not data_set.purposes or use.purpose in data_set.purposes,
            "REGION_NOT_ALLOWED": place is None or not where or place.region in where,
            "POOL_TIER_TOO_LOW": place is None or place.tier >= data_set.classification,
            "ISOLATION_NOT_ENFORCED": place is None or place.isolated or data_set.classification != 4,
        }
        found |= {(name, code, "") for code, met in rules.items() if not met}
        if data_set.classification is Classification.PUBLIC:
            continue
        about = [
            grant
            for grant in grants
            if grant.data_set == data_set.name
            and fnmatchcase(data_set.version, grant.version)
            and grant.institution == use.institution
            and (not grant.project or grant.project == use.project)
        ]
        against = {grant.grant: against_grant(use, data_set, grant) for grant in about}
        if not about:
            found.add((name, "NO_GRANT", ""))
        elif all(against.values()):
            found |= {(name, code, grant) for grant, codes in against.items() for code in codes}
    return found


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_every_reason_is_given_and_no_other(data: st.DataObject) -> None:
    known: dict[str, DataSet | None] = {name: data.draw(st.none() | data_sets(name)) for name in NAMES}
    grants = [
        Grant(**{name: getattr(each, name) for name in Grant.__slots__} | {"grant": f"g{number}"})
        for number, each in enumerate(data.draw(st.lists(GRANTS, max_size=5)))
    ]
    start_ms = data.draw(TIMES)
    use = Use(
        institution="north",
        project="default",
        purpose=data.draw(PURPOSES),
        data_sets=tuple(data.draw(st.lists(st.sampled_from([*NAMES, "none"]), unique=True, max_size=3))),
        start_ms=start_ms,
        end_ms=start_ms + data.draw(st.integers(0, 3)),
        action=data.draw(st.sampled_from(Action)),
    )
    place = data.draw(st.none() | st.builds(Place, REGIONS, st.sampled_from(Classification), st.booleans()))

    decision = decide(use, place, known, grants)

    expected = reference(use, place, known, grants)
    assert {(each.data_set, str(each.code), each.grant) for each in decision.reasons} == expected
    assert len(decision.reasons) == len(expected)
    assert decision.allowed == (not expected)
    assert all(each.sentence in decision.text and each.sentence.endswith(".") for each in decision.reasons)
    for name, grant in decision.grants.items():
        data_set = known[name]
        assert data_set is not None
        assert against_grant(use, data_set, next(each for each in grants if each.grant == grant)) == set()
