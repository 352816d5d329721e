"""Submission: all or nothing, within the tenants' bounds, once for each request_id; every refusal names its field."""

from __future__ import annotations

import pytest

from scheduler.domain.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SuanliError,
)
from scheduler.domain.records import ProjectRecord
from scheduler.domain.resources import Resources
from scheduler.domain.spec import JobSpec
from scheduler.domain.states import JobState
from scheduler.service import tenants
from scheduler.service.state import Settings
from scheduler.store import memory
from tests.unit.service.harness import SETTINGS, Site, make, node, spec

OK, ANY = 1, 2
HUGE = 9_000


def refused(site: Site, kind: type[SuanliError], *specs: JobSpec, **values: str) -> SuanliError:
    """The error of a submission; that nothing of it is left is checked too."""
    before = (dict(site.engine.state.jobs), site.engine.state.live_jobs, site.engine.state.counters.job_no)
    with pytest.raises(kind) as caught:
        site.submit(*specs, **values)
    assert not site.engine.take_turn()
    assert before == (site.engine.state.jobs, site.engine.state.live_jobs, site.engine.state.counters.job_no)
    return caught.value


def test_a_job_is_stored_before_it_is_acknowledged_and_launched_after(site: Site) -> None:
    job_id = site.submit_one()
    assert site.reason(job_id) == (JobState.STARTING, "")
    assert [event.kind for event in site.events(job_id)] == ["SUBMITTED", "STATE"]
    assert list(site.east.held) == [job_id]


@pytest.mark.parametrize(
    ("bad", "kind", "reason", "field"),
    [
        (spec("nowhere"), NotFound, "INSTITUTION_NOT_FOUND", "jobs[1].institution"),
        (spec(project="nothing"), NotFound, "PROJECT_NOT_FOUND", "jobs[1].project"),
        (spec(cpu=HUGE), FailedPrecondition, "NEVER_FITS", "jobs[1].resources"),
        (spec(gpu=1_000), FailedPrecondition, "NEVER_FITS", "jobs[1].resources"),
        (spec(replicas=9), FailedPrecondition, "NEVER_FITS", "jobs[1].resources"),
        (spec(required_regions=["mars"]), InvalidArgument, "REGION_NOT_FOUND", "jobs[1].required_regions[0]"),
        (spec(preferred_regions=["east", "mars"]), InvalidArgument, "REGION_NOT_FOUND", "jobs[1].preferred_regions[1]"),
        (spec(pools=["gpu"]), InvalidArgument, "POOL_NOT_FOUND", "jobs[1].pools"),
        (spec(after={0: OK, "jx": OK}), NotFound, "DEPENDENCY_NOT_FOUND", "jobs[1].dependencies[1].job_id"),
        (spec(after={7: OK}), InvalidArgument, "INVALID_ARGUMENT", "jobs[1].dependencies[0].batch_index"),
        (spec(after={1: OK}), InvalidArgument, "DEPENDENCY_CYCLE", "jobs[1].dependencies"),
    ],
)
def test_one_bad_job_refuses_the_whole_batch_and_is_named(
    site: Site, bad: JobSpec, kind: type[SuanliError], reason: str, field: str
) -> None:
    error = refused(site, kind, spec(), bad, spec())
    assert (error.reason, error.field) == (reason, field)


def test_what_never_fits_names_the_nearest_pool_and_what_lacks(site: Site) -> None:
    error = refused(site, FailedPrecondition, spec(cpu=HUGE))
    assert error.metadata == {"nearest_pool": "east/cpu", "lacking_cpu": "1000"}


def test_what_fits_is_judged_again_when_nodes_change(site: Site) -> None:
    site.east.finished(site.submit_one(cpu=8_000))
    site.east.nodes = [node("n1", Resources(4_000, 32_768, 0))]
    site.east.report()
    refused(site, FailedPrecondition, spec(cpu=8_000))
    site.east.nodes = [node("n1"), node("n2", Resources(16_000, 32_768, 0))]
    site.east.report()
    assert site.submit(spec(cpu=16_000))


def test_a_shape_is_looked_for_once_until_a_node_changes(site: Site) -> None:
    site.submit(spec(), spec(cpu=2_000))
    assert len(site.engine.state.feasible) == 2
    site.east.nodes.append(node("n2"))
    site.east.report()
    assert not site.engine.state.feasible


def test_nothing_is_refused_as_too_big_before_any_node_is_known() -> None:
    site = Site(nodes=())
    assert site.state(site.submit_one(cpu=HUGE)) is JobState.QUEUED


def test_validate_only_checks_everything_and_keeps_nothing(site: Site) -> None:
    assert site.submit(spec(), request_id="r1", validate_only=True) == []
    assert not site.engine.state.jobs
    assert site.engine.find_request(make([spec()], "r1")) is None
    with pytest.raises(NotFound):
        site.submit(spec("nowhere"), validate_only=True)


def test_a_cycle_is_found_however_long(site: Site) -> None:
    ring = [spec(after={(i + 1) % 2_000: OK}) for i in range(2_000)]
    error = refused(site, InvalidArgument, *ring)
    assert error.field == "jobs[0].dependencies"
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in error.message


def test_another_institutions_job_is_unknown_to_depend_on(site: Site) -> None:
    theirs = site.submit_one(institution="south")
    assert refused(site, NotFound, spec(after={theirs: ANY})).reason == "DEPENDENCY_NOT_FOUND"
    site.east.started(theirs)
    site.east.finished(theirs)
    assert refused(site, NotFound, spec(after={theirs: ANY})).reason == "DEPENDENCY_NOT_FOUND"


class TestQuotas:
    """Hard, per institution and per project."""

    def test_unfinished_jobs_are_bounded_with_arrays_counted_by_task(self, site: Site) -> None:
        site.quota(jobs=10)
        array = site.submit_one(size=7)
        error = refused(site, ResourceExhausted, spec(), spec(size=3))
        assert (error.reason, error.field) == ("QUOTA_JOBS", "jobs[1]")
        site.submit(spec(), spec(size=2))
        refused(site, ResourceExhausted, spec())
        assert site.submit(spec("south"))
        site.east.started(f"{array}.0")
        site.east.finished(f"{array}.0")
        assert site.submit(spec())
        refused(site, ResourceExhausted, spec())

    def test_a_cancelled_array_gives_its_tasks_back(self, site: Site) -> None:
        site.quota(jobs=10)
        array = site.submit_one(size=10, cpu=8_000)
        site.cancel(array)
        assert site.engine.state.tenants["north", ""].live_jobs == 1
        site.submit(spec(size=9))
        refused(site, ResourceExhausted, spec())

    def test_a_project_has_its_own(self, site: Site) -> None:
        tenants.put_project(site.engine.state, ProjectRecord("north", "lab", "", 1_000, 0))
        site.quota(jobs=3)
        site.quota(project="lab", jobs=1)
        site.submit(spec(project="lab"))
        assert 'project "lab"' in refused(site, ResourceExhausted, spec(project="lab")).message
        site.submit(spec(), spec())
        assert 'institution "north"' in refused(site, ResourceExhausted, spec()).message

    def test_the_platform_has_a_bound_too(self) -> None:
        site = Site(Settings(max_live_jobs=4))
        assert refused(site, ResourceExhausted, spec(size=5)).reason == "TOO_MANY_JOBS"
        site.submit(spec(size=4))
        assert refused(site, ResourceExhausted, spec("south")).reason == "TOO_MANY_JOBS"

    def test_what_is_held_at_once_is_bounded_and_the_rest_waits(self, site: Site) -> None:
        site.quota(cpu=3_000)
        ids = site.submit(*(spec() for _ in range(5)))
        assert sorted(site.east.held) == ids[:3]
        site.east.finished(ids[0])
        assert sorted(site.east.held) == ids[1:4]
        site.quota(cpu=8_000)
        assert sorted(site.east.held) == ids[1:]

    def test_what_is_more_than_the_quota_alone_is_refused(self, site: Site) -> None:
        site.quota(cpu=3_000)
        error = refused(site, FailedPrecondition, spec(cpu=2_000, replicas=2))
        assert (error.reason, error.field) == ("QUOTA_NEVER_FITS", "jobs[0].resources")

    def test_a_lowered_quota_stops_nothing_that_runs(self, site: Site) -> None:
        ids = site.submit(spec(), spec(), spec())
        site.check_fit = False
        site.quota(cpu=1_500, jobs=1)
        assert [site.state(job_id) for job_id in ids] == [JobState.STARTING] * 3
        assert site.engine.state.tenants["north", ""].in_use.cpu_milli == 3_000
        assert refused(site, ResourceExhausted, spec()).reason == "QUOTA_JOBS"


class TestRequestIds:
    """The same request_id is the same submission."""

    def test_the_same_body_is_found_and_another_refused(self, site: Site) -> None:
        site.submit(spec(), spec(), request_id="r1")
        found = site.engine.find_request(make([spec(), spec()], "r1"))
        assert found is not None
        assert [job.job_id for job in site.store.jobs_by_number(found.first_job_no, found.job_count)] == [
            "j000001",
            "j000002",
        ]
        with pytest.raises(AlreadyExists) as caught:
            site.engine.find_request(make([spec(cpu=2_000)], "r1"))
        assert (caught.value.reason, caught.value.field) == ("REQUEST_ID_REUSED", "request_id")

    def test_each_user_has_their_own(self, site: Site) -> None:
        site.submit(spec(), request_id="r1", user="ada")
        assert site.engine.find_request(make([spec(cpu=2_000)], "r1", user="bob")) is None

    def test_it_is_known_after_a_restart(self, site: Site) -> None:
        site.submit(spec(), request_id="r1")
        site.restart()
        assert site.engine.find_request(make([spec()], "r1")) is not None
        with pytest.raises(AlreadyExists):
            site.engine.find_request(make([spec(cpu=2_000)], "r1"))

    def test_memory_forgets_the_oldest_and_says_so(self, site: Site) -> None:
        for number in range(SETTINGS.remembered_requests):
            site.submit(spec(), request_id=f"r{number}")
        assert site.engine.state.requests_complete
        site.submit(spec(), request_id="one more")
        assert not site.engine.state.requests_complete
        assert site.engine.find_request(make([spec()], "r0")) is None
        assert site.engine.find_request(make([spec()], "r1")) is not None
        assert site.store.find_request("ada", "r0") is not None

    def test_a_restart_that_loads_only_the_newest_says_so(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(3):
            site.submit(spec(), request_id=f"r{number}")
        monkeypatch.setattr(memory, "REQUESTS_LOADED", 2)
        site.restart()
        assert not site.engine.state.requests_complete
        assert set(site.engine.state.requests) == {("ada", "r1"), ("ada", "r2")}

    def test_a_refused_submission_leaves_its_request_id_free(self, site: Site) -> None:
        refused(site, NotFound, spec("nowhere"), request_id="r1")
        assert site.submit(spec(), request_id="r1")
