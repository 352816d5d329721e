"""Data sets and grants: who is refused, who is held and goes on, who is stopped, and where nothing may ever run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scheduler.domain.agent import Launch
from scheduler.domain.classification import Classification
from scheduler.domain.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, SuanliError
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.governance.data import Action, GrantStatus, OnRevoke, Replica
from scheduler.planning.policy import DataSet as PolicyDataSet
from scheduler.planning.policy import Policy, PoolPolicy
from scheduler.planning.types import PoolKey
from scheduler.service import granting, registering, rounds
from scheduler.service.model import Attempt
from tests.unit.service.harness import T0_MS, Site, launches, node, only, spec, stops
from tests.unit.service.stewards import READ, Stewards

HOUR_MS = 3_600_000
USE: dict[str, Any] = {"data_sets": ["census"], "purpose": "thesis", "max_runtime_ms": HOUR_MS}
HELD = (JobState.HELD, "GRANT")
PREEMPTED = AttemptOutcome.PREEMPTED


@pytest.fixture
def stewards(site: Site) -> Stewards:
    return Stewards(site)


def live(site: Site, job_id: str) -> Attempt:
    attempt = site.engine.state.jobs[job_id].live
    assert attempt is not None
    return attempt


def refusal(work: Callable[[], object]) -> SuanliError:
    with pytest.raises(SuanliError) as caught:
        work()
    return caught.value


# --- submission -------------------------------------------------------------------------------------------------------


def test_without_a_grant_it_is_refused_with_every_reason(site: Site, stewards: Stewards) -> None:
    stewards.put(listed=True, purposes=("census",))
    stewards.put("scores", listed=True, home_region="west")
    stewards.request("scores")

    error = refusal(lambda: site.submit_one(**USE | {"data_sets": ["scores", "census"]}))

    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.field) == ("DATA_NOT_GRANTED", "jobs[0].data_sets")
    assert error.metadata["reasons"].split(",") == [
        "scores:GRANT_NOT_APPROVED",
        "census:PURPOSE_NOT_ALLOWED",
        "census:NO_GRANT",
        "scores:REGION_NOT_ALLOWED",
    ]
    assert "ask its steward, sam" in error.message


def test_what_there_is_not_and_what_may_not_be_known_are_the_same(site: Site, stewards: Stewards) -> None:
    stewards.put()
    errors = [
        refusal(lambda name=name: site.submit_one(**USE | {"data_sets": [name]})) for name in ("census", "nothing")
    ]
    for name, error in zip(("census", "nothing"), errors, strict=True):
        assert isinstance(error, InvalidArgument)
        assert (error.reason, error.field) == ("DATA_SET_NOT_FOUND", "jobs[0].data_sets[0]")
        assert error.message.replace(name, "X") == errors[0].message.replace("census", "X")
    # Those of the owner know of it, and need a grant, too.
    assert refusal(lambda: site.submit_one(institution="south", **USE)).reason == "DATA_NOT_GRANTED"


def test_with_a_grant_it_runs_and_public_data_needs_none(site: Site, stewards: Stewards) -> None:
    stewards.put()
    stewards.put("weather", classification=Classification.PUBLIC, home_region="")
    stewards.grant()
    assert site.state(site.submit_one(**USE | {"data_sets": ["census", "weather"]})) is JobState.STARTING
    assert site.state(site.submit_one(**USE | {"data_sets": ["census@2024"]})) is JobState.STARTING
    assert refusal(lambda: site.submit_one(**USE | {"data_sets": ["census@1999"]})).reason == "DATA_SET_NOT_FOUND"
    assert refusal(lambda: site.submit_one(**USE | {"purpose": "party"})).reason == "DATA_NOT_GRANTED"


def test_it_has_to_hold_until_the_end(site: Site, stewards: Stewards) -> None:
    stewards.put()
    stewards.grant(to_ms=T0_MS + HOUR_MS)
    assert site.submit_one(**USE)
    error = refusal(lambda: site.submit_one(**USE | {"max_runtime_ms": HOUR_MS + 1}))
    assert "GRANT_ENDS_TOO_EARLY" in error.metadata["reasons"]


def test_a_grant_may_be_for_one_project_only(site: Site, stewards: Stewards) -> None:
    stewards.put()
    stewards.grant(project="default")
    assert site.submit_one(**USE)
    assert refusal(lambda: stewards.request(project="none")).reason == "PROJECT_NOT_FOUND"


def test_what_the_policy_alone_names_needs_no_grant_until_it_is_registered() -> None:
    site = Site(
        policy=Policy(data_sets={"census": PolicyDataSet(1, ("east",), ("east", "west")), "census@1": PolicyDataSet(1)})
    )
    stewards = Stewards(site)
    assert site.state(site.submit_one(**USE)) is JobState.STARTING
    stewards.put(listed=True, home_region="west")
    # What runs was not given what is registered since.
    assert stops(site.wait(1_000)) == []
    assert refusal(lambda: site.submit_one(**USE)).reason == "DATA_NOT_GRANTED"
    # The policy's word on versions of a registered name is none.
    assert refusal(lambda: site.submit_one(**USE | {"data_sets": ["census@1"]})).reason == "DATA_SET_NOT_FOUND"
    assert site.engine.state.policy.data_sets["census"].allowed_regions == ("west",)
    assert site.engine.state.base_policy.data_sets["census"].allowed_regions == ("east", "west")


# --- launch -----------------------------------------------------------------------------------------------------------


def blocked(site: Site, **values: Any) -> tuple[str, str]:
    """A job that fills the node, and one that waits behind it."""
    return site.running(cpu=8_000, max_runtime_ms=10 * HOUR_MS), site.submit_one(**USE | values)


def test_a_queued_job_is_held_at_launch_when_its_grant_would_end_too_early(site: Site, stewards: Stewards) -> None:
    stewards.put()
    stewards.grant(to_ms=T0_MS + 2 * HOUR_MS)
    running, waiting = blocked(site)
    site.wait(HOUR_MS + 60_000)
    site.east.finished(running)
    assert site.reason(waiting) == HELD
    assert "ends before the job would" in site.job(waiting).message
    explained = site.engine.explain(waiting)
    assert explained is not None
    assert explained.explanation.code == "GRANT"
    stewards.grant()
    assert site.state(waiting) is JobState.STARTING


def test_a_revoked_grant_holds_the_queue_and_a_new_one_lets_it_go(site: Site, stewards: Stewards) -> None:
    stewards.put()
    grant = stewards.grant()
    running, waiting = blocked(site)
    stewards.revoke(grant)
    assert site.reason(waiting) == HELD
    site.east.finished(running)
    assert site.reason(waiting) == HELD
    site.restart()
    site.wait(1_000)
    assert site.reason(waiting) == HELD
    stewards.grant()
    assert site.state(waiting) is JobState.STARTING


def test_after_a_restart_a_held_job_still_waits_for_its_grant(site: Site, stewards: Stewards) -> None:
    stewards.put()
    grant = stewards.grant()
    _, waiting = blocked(site)
    stewards.revoke(grant)
    later = stewards.grant(from_ms=T0_MS + HOUR_MS, to_ms=T0_MS + 100 * HOUR_MS)
    site.restart()
    site.wait(1_000)
    assert site.reason(waiting) == HELD
    assert site.engine.state.governance.register.grants[later.grant] == later
    assert site.engine.state.policy.data_sets["census"].allowed_regions == ("east",)
    # Time alone lets it go.
    site.wait(HOUR_MS)
    assert site.state(waiting) is JobState.QUEUED


def test_an_array_whose_grant_goes_starts_no_more_tasks(site: Site, stewards: Stewards) -> None:
    stewards.put(on_revoke=OnRevoke.FINISH)
    grant = stewards.grant()
    array = site.submit_one(**USE | {"size": 4, "cpu": 4_000})
    assert site.state(array) is JobState.RUNNING
    stewards.revoke(grant)
    assert site.reason(array) == (JobState.RUNNING, "GRANT")
    site.east.started(f"{array}.0")
    site.east.finished(f"{array}.0")
    assert not site.events(f"{array}.2")
    stewards.grant()
    assert site.events(f"{array}.2")


def test_the_applier_refuses_what_planning_should_not_have_placed(site: Site, stewards: Stewards) -> None:
    stewards.put(home_region="west")
    stewards.grant()
    site.add_region("west", [node("w1")])
    job_id = site.submit_one(**USE)
    assert site.job(job_id).region == "west"
    state = site.engine.state
    job = state.jobs[job_id]
    assert not rounds._may_start(state, job, PoolKey("east", "cpu"), ["n1"], "")
    assert rounds._may_start(state, job, PoolKey("west", "cpu"), ["w1"], "")


# --- residency and trust ----------------------------------------------------------------------------------------------


def test_no_job_is_placed_where_its_data_may_not_be(site: Site, stewards: Stewards) -> None:
    stewards.put(home_region="west")
    stewards.grant()
    site.add_region("west", [node("w1")])
    ids = [site.submit_one(cpu=4_000, **USE) for _ in range(4)]
    assert [site.state(job_id) for job_id in ids] == [JobState.STARTING] * 2 + [JobState.QUEUED] * 2
    assert {site.job(job_id).region for job_id in ids[:2]} == {"west"}
    error = refusal(lambda: site.submit_one(required_regions=["east"], **USE))
    assert "census:REGION_NOT_ALLOWED" in error.metadata["reasons"]


def test_jobs_go_where_a_copy_lies(site: Site, stewards: Stewards) -> None:
    stewards.put(allowed_regions=("west",), replicas={"west": Replica("/data/census", 100)})
    stewards.grant()
    site.add_region("west", [node("w1")])
    assert site.job(site.submit_one(**USE)).region == "west"
    assert site.engine.state.policy.data_sets["census"].size_mib == 100


def test_sensitive_data_goes_only_into_pools_that_are_trusted_with_it() -> None:
    site = Site(nodes=[node("e1", tier="sandbox")])
    stewards = Stewards(site)
    stewards.put(classification=Classification.SENSITIVE)
    stewards.grant()
    assert "census:POOL_TIER_TOO_LOW" in refusal(lambda: site.submit_one(**USE)).metadata["reasons"]
    trusted = PoolPolicy(trust=Classification.SENSITIVE)
    site.add_region("west", [node("w1")])
    site.engine.state.use_policy(Policy(pools={"east/cpu": trusted}))
    job_id = site.submit_one(**USE)
    assert site.job(job_id).region == "east"
    site.east.started(job_id)
    # What is not trusted any more loses what is running there.
    site.engine.state.use_policy(Policy())
    assert stops(site.wait(1_000)) == [(job_id, PREEMPTED)]


SENSITIVE = Classification.SENSITIVE
TRUSTED = Policy(pools={"east/cpu": PoolPolicy(trust=SENSITIVE)})


@pytest.mark.parametrize("tier", ["process", "auto", ""])
def test_sensitive_data_does_not_go_where_jobs_are_not_kept_apart(tier: str) -> None:
    site = Site(policy=TRUSTED, nodes=[node("e1", tier=tier)])
    stewards = Stewards(site)
    stewards.put(classification=SENSITIVE)
    stewards.put("scores", classification=Classification.RESTRICTED)
    stewards.grant()
    stewards.grant("scores")
    error = refusal(lambda: site.submit_one(**USE))
    assert error.metadata["reasons"] == "census:ISOLATION_NOT_ENFORCED"
    assert "the nodes do not keep jobs apart" in str(error)
    assert site.state(site.submit_one(**USE | {"data_sets": ["scores"]})) is JobState.STARTING


@pytest.mark.parametrize("tier", ["sandbox", "pod"])
def test_of_a_mixed_pool_it_has_the_nodes_that_keep_jobs_apart(tier: str) -> None:
    site = Site(policy=TRUSTED, nodes=[node("e1"), node("e2", tier=tier), node("e3", tier="process")])
    stewards = Stewards(site)
    stewards.put(classification=SENSITIVE)
    stewards.grant()
    ids = [site.submit_one(cpu=4_000, **USE) for _ in range(3)]
    assert [site.state(job_id) for job_id in ids] == [JobState.STARTING] * 2 + [JobState.QUEUED]
    assert {replica.node_id for job_id in ids[:2] for replica in live(site, job_id).replicas} == {"e2"}
    state = site.engine.state
    waiting = state.jobs[ids[2]]
    assert not rounds._may_start(state, waiting, PoolKey("east", "cpu"), ["e1"], "")
    assert not rounds._may_start(state, waiting, PoolKey("east", "cpu"), ["e2", "e3"], "")
    assert rounds._may_start(state, waiting, PoolKey("east", "cpu"), ["e2"], "")


def test_the_agent_is_told_so_for_as_long_as_the_attempt_lives() -> None:
    site = Site(policy=TRUSTED, nodes=[node("e1", tier="sandbox")])
    stewards = Stewards(site)
    stewards.put(classification=SENSITIVE, on_revoke=OnRevoke.FINISH)
    stewards.grant()
    plain, job_id = site.submit_one(), site.submit_one(**USE)
    stewards.withdraw()
    site.east.held.clear()
    told = {each.ref.job_id: each.isolated for each in only(Launch, site.east.connect())}
    assert told == {plain: False, job_id: True}


def test_a_node_that_lets_jobs_reach_each_other_from_now_on_loses_it() -> None:
    site = Site(policy=TRUSTED, nodes=[node("e1", tier="sandbox")])
    stewards = Stewards(site)
    stewards.put(classification=SENSITIVE, on_revoke=OnRevoke.FINISH)
    stewards.grant()
    job_id, plain = site.running(**USE), site.running()
    site.east.nodes = [node("e1", tier="process")]
    assert stops(site.wait(1_000)) == [(job_id, PREEMPTED)]
    assert site.state(plain) is JobState.RUNNING


def test_a_region_that_is_no_longer_allowed_loses_even_what_may_finish(site: Site, stewards: Stewards) -> None:
    stewards.put(on_revoke=OnRevoke.FINISH)
    stewards.grant()
    job_id = site.running(**USE)
    moved = replace(site.engine.state.governance.register.data_sets["census", "2024"], home_region="west")
    registering.put_data_set(site.engine.state, moved, "sam", "south")
    assert stops(site.turn()) == [(job_id, PREEMPTED)]


# --- revoking ---------------------------------------------------------------------------------------------------------


def test_a_running_job_is_stopped_and_held_until_it_is_granted_again(site: Site, stewards: Stewards) -> None:
    stewards.put()
    grant = stewards.grant()
    job_id = site.running(**USE)
    assert stops(stewards.revoke(grant)) == [(job_id, PREEMPTED)]
    assert "was revoked" in site.job(job_id).message
    assert stops(site.wait(1_000)) == []
    site.east.finished(job_id, PREEMPTED)
    assert site.reason(job_id) == HELD
    assert launches(site.wait(1_000)) == []
    stewards.grant()
    assert site.state(job_id) is JobState.STARTING


def test_one_that_may_finish_does(site: Site, stewards: Stewards) -> None:
    stewards.put(on_revoke=OnRevoke.FINISH)
    grant = stewards.grant()
    job_id = site.running(**USE)
    assert stops(stewards.revoke(grant)) == []
    site.east.finished(job_id)
    assert site.state(job_id) is JobState.SUCCEEDED


def test_another_grant_keeps_it_running(site: Site, stewards: Stewards) -> None:
    stewards.put()
    first, _ = stewards.grant(), stewards.grant(version="2024")
    site.running(**USE)
    assert stops(stewards.revoke(first)) == []


def test_a_withdrawal_stops_those_that_read_that_version(site: Site, stewards: Stewards) -> None:
    stewards.put(version="2023")
    stewards.grant()
    older = site.running(**USE)
    site.wait(1_000)
    stewards.put(version="2024")
    newer = site.running(**USE)
    # By now the name stands for 2023 again, which is not what the newer job was given.
    assert stops(stewards.withdraw("2024")) == [(newer, PREEMPTED)]
    assert stops(stewards.withdraw("2023")) == [(older, PREEMPTED)]
    assert refusal(lambda: site.submit_one(**USE)).metadata["reasons"] == "census:DATA_SET_WITHDRAWN"


def test_one_that_runs_beyond_its_grant_is_stopped(site: Site, stewards: Stewards) -> None:
    stewards.put()
    stewards.grant(to_ms=T0_MS + HOUR_MS + 1_000)
    job_id = site.submit_one(**USE)
    site.wait(60_000)
    site.east.started(job_id)
    assert stops(site.wait(HOUR_MS - 60_000)) == []
    assert stops(site.wait(1_000)) == [(job_id, PREEMPTED)]


# --- the register -----------------------------------------------------------------------------------------------------


def test_a_version_keeps_its_owner_its_content_and_its_end(site: Site, stewards: Stewards) -> None:
    digest = "sha256:" + "a" * 64
    stewards.put(content_hash=digest)
    assert stewards.put(content_hash=digest, title="new").title == "new"
    assert refusal(lambda: stewards.put(content_hash="")).reason == "DATA_SET_FIXED"
    error = refusal(lambda: stewards.put(version="2025", institution="north"))
    assert isinstance(error, PermissionDenied)
    assert error.reason == "DATA_SET_NAME_TAKEN"
    assert isinstance(refusal(lambda: stewards.put("other", steward="nobody")), NotFound)
    stewards.withdraw()
    assert stewards.withdraw() == []
    assert refusal(lambda: stewards.put(content_hash=digest)).reason == "DATA_SET_WITHDRAWN"


def test_nobody_approves_what_they_have_asked_for(site: Site, stewards: Stewards) -> None:
    stewards.put()
    asked = stewards.request()
    state = site.engine.state
    assert stewards.request() == asked
    assert (
        refusal(lambda: registering.decide_grant(state, asked.grant, True, "", "sue", "south")).reason == "OWN_REQUEST"
    )
    assert refusal(lambda: registering.decide_grant(state, asked.grant, True, "", "ada", "north")).reason == (
        "OTHER_INSTITUTION"
    )
    assert isinstance(refusal(lambda: registering.decide_grant(state, asked.grant, True, "", "x", "west")), NotFound)
    assert refusal(lambda: stewards.revoke(asked)).reason == "GRANT_NOT_APPROVED"
    done = registering.decide_grant(state, asked.grant, False, "no", "sam", "south")
    assert (done.status, done.decider, done.decision_reason) == (GrantStatus.REFUSED, "sam", "no")
    assert registering.decide_grant(state, asked.grant, False, "again", "sam", "south") == done
    assert (
        refusal(lambda: registering.decide_grant(state, asked.grant, True, "", "sam", "south")).reason
        == "GRANT_DECIDED"
    )


def test_a_request_is_for_the_own_institution_and_for_known_data(site: Site, stewards: Stewards) -> None:
    stewards.put()
    state, ask = site.engine.state, stewards.request()
    assert isinstance(refusal(lambda: registering.request_grant(state, ask, "x", "west")), NotFound)
    stewards.put("open", listed=True)
    foreign = registering.Grant("", "south", "", "open", "*", "thesis", READ, GrantStatus.REQUESTED)
    assert refusal(lambda: registering.request_grant(state, foreign, "ada", "north")).reason == "OTHER_INSTITUTION"
    assert isinstance(refusal(lambda: stewards.request(to_ms=T0_MS)), InvalidArgument)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_inherit_the_highest_level_and_need_a_grant_to_export(site: Site, stewards: Stewards) -> None:
    stewards.put(classification=Classification.SENSITIVE)
    stewards.put("weather", classification=Classification.PUBLIC)
    state, asked = site.engine.state, spec(**USE | {"data_sets": ["census", "weather"]})
    read = granting.inputs_of(state, asked, T0_MS, T0_MS)
    assert granting.highest(read) is Classification.SENSITIVE
    assert granting.highest([]) is None
    stewards.grant()
    assert [each.name for each in granting.not_exportable(state, asked, read)] == ["census"]
    export = stewards.grant(actions=READ | {Action.EXPORT})
    assert granting.not_exportable(state, asked, read) == []
    stewards.revoke(export)
    assert [each.name for each in granting.not_exportable(state, asked, read)] == ["census"]
