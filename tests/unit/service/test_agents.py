"""The control plane's side of the agent protocol: sessions, reports, events, leases; what is stale changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protos.suanli.v1 import jobs_pb2
from scheduler.domain.agent import (
    AttemptEvent,
    AttemptEvents,
    AttemptRef,
    Checkpointed,
    EventAck,
    Finished,
    Hello,
    Lease,
    Started,
    StateReport,
    Stop,
    Welcome,
)
from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.planning.types import PoolKey
from scheduler.service import tenants
from tests.unit.service.harness import SETTINGS, Agent, Site, launches, node, only, spec, stops

O = AttemptOutcome  # noqa: E741
TTL_MS = SETTINGS.lease_ttl_ms
HEARTBEAT_MS = SETTINGS.heartbeat_interval_ms
MOVE = jobs_pb2.PARTITION_POLICY_MOVE
FINISHED = Finished(O.SUCCEEDED)


class TestSessions:
    def test_hello_is_answered_with_where_the_spool_stands(self, site: Site) -> None:
        job_id = site.submit_one()
        site.east.started(job_id)
        (welcome,) = only(Welcome, site.east.hello())
        assert welcome == Welcome(site.engine.state.epoch, HEARTBEAT_MS, 1)

    def test_a_new_spool_begins_at_nothing(self, site: Site) -> None:
        site.running()
        site.east.spool, site.east.event_seq = "spool-2", 0
        assert only(Welcome, site.east.hello())[0].acked_event_seq == 0
        site.restart(connect=False)
        assert only(Welcome, site.east.hello())[0].acked_event_seq == 0

    def test_an_agent_of_another_region_is_refused(self, site: Site) -> None:
        session = site.engine.open_session()
        with pytest.raises(FailedPrecondition) as caught:
            site.engine.receive("east", session, Hello("west", "b", "s", "1"))
        assert caught.value.reason == "WRONG_REGION"
        assert site.east.report()

    def test_work_comes_only_after_the_nodes_are_reported(self, site: Site) -> None:
        site.east.hang_up()
        job_id = site.submit_one()
        assert launches(site.east.hello()) == []
        assert launches(site.east.report()) == [job_id]

    def test_a_superseded_session_is_not_listened_to(self, site: Site) -> None:
        job_id = site.submit_one()
        old = site.east.session
        site.east.connect()
        new = site.east.session
        ref = site.east.held[job_id]
        events = AttemptEvents((AttemptEvent(1, ref, 0, FINISHED),))
        for message in (Hello("east", "boot", "old-spool", "1"), StateReport(99, 9, (), ()), events):
            site.engine.receive("east", old, message)
        site.engine.close_session("east", old)
        assert site.turn() == []
        assert site.state(job_id) is JobState.STARTING
        assert site.engine.is_listened_to("east", new)
        assert site.east.report()

    def test_a_hang_up_touches_no_job_and_stops_new_ones(self, site: Site) -> None:
        job_id = site.running()
        site.east.hang_up()
        waiting = site.submit_one()
        site.wait(10 * TTL_MS)
        assert (site.state(job_id), site.state(waiting)) == (JobState.RUNNING, JobState.QUEUED)
        assert launches(site.east.connect()) == [waiting]


class TestEvents:
    def test_they_are_acknowledged_once_durable(self, site: Site) -> None:
        job_id = site.submit_one()
        assert only(EventAck, site.east.started(job_id)) == [EventAck(1)]

    def test_a_copy_changes_nothing_and_is_acknowledged_again(self, site: Site) -> None:
        job_id = site.submit_one()
        ref = site.east.held[job_id]
        site.east.started(job_id)
        before = site.events(job_id)
        assert site.east.event(ref, Started(), seq=1) == [EventAck(1)]
        assert site.events(job_id) == before

    def test_after_a_gap_nothing_counts_until_it_is_filled(self, site: Site) -> None:
        job_id = site.submit_one()
        ref = site.east.held[job_id]
        assert site.east.event(ref, FINISHED, seq=2) == [EventAck(0)]
        assert site.state(job_id) is JobState.STARTING
        site.east.say(AttemptEvents((AttemptEvent(1, ref, 0, Started()), AttemptEvent(2, ref, 0, FINISHED))))
        assert site.turn() == [EventAck(2)]
        assert site.state(job_id) is JobState.SUCCEEDED

    @pytest.mark.parametrize(
        "stale",
        [
            lambda ref: replace(ref, attempt=ref.attempt - 1),
            lambda ref: replace(ref, attempt=ref.attempt + 1),
            lambda ref: replace(ref, lease_epoch=ref.lease_epoch + 1),
            lambda ref: replace(ref, lease_epoch=ref.lease_epoch - 1),
            lambda ref: replace(ref, job_id="jnone"),
        ],
    )
    @pytest.mark.parametrize("event", [Started(), FINISHED, Checkpointed("sha256:c")])
    def test_a_report_of_any_other_attempt_changes_nothing(
        self, site: Site, stale: object, event: Started | Finished | Checkpointed
    ) -> None:
        job_id = site.submit_one(max_retries=1)
        site.east.finished(job_id, O.FAILED)
        before = site.job(job_id)
        assert only(EventAck, site.east.event(stale(site.east.held[job_id]), event))  # type: ignore[operator]
        assert site.job(job_id) == before

    def test_another_regions_agent_cannot_report_it(self, site: Site) -> None:
        west = site.add_region("west", [node("w1")])
        job_id = site.submit_one(required_regions=["east"])
        west.event(site.east.held[job_id], FINISHED)
        assert site.state(job_id) is JobState.STARTING

    def test_a_checkpoint_goes_with_the_next_launch(self, site: Site) -> None:
        job_id = site.running(max_retries=1)
        site.east.event(site.east.held[job_id], Checkpointed("sha256:c"))
        commands = site.east.finished(job_id, O.FAILED)
        assert [command.checkpoint for command in commands if hasattr(command, "checkpoint")] == ["sha256:c"]

    def test_an_event_counts_over_a_restart_of_the_control_plane(self, site: Site) -> None:
        job_id = site.running()
        site.restart()
        site.east.finished(job_id)
        assert site.state(job_id) is JobState.SUCCEEDED


class TestReports:
    def test_a_lease_answers_each_new_report_only(self, site: Site) -> None:
        (lease,) = only(Lease, site.east.report())
        assert (lease.report_seq, lease.ttl_ms) == (site.east.report_seq, TTL_MS)
        site.east.report_seq -= 1
        assert site.east.report() == []

    def test_the_floor_is_below_every_launch_that_may_still_count(self, site: Site) -> None:
        def floor() -> int:
            return only(Lease, site.east.report())[0].launch_floor

        assert floor() == 1
        ids = site.submit(spec(), spec(), spec())
        assert floor() == 1
        site.east.finished(ids[1])
        assert floor() == 1
        site.east.finished(ids[0])
        assert floor() == 3
        site.restart()
        assert floor() == 3
        site.east.finished(ids[2])
        assert floor() == 4

    def test_a_launch_that_got_lost_is_sent_again_but_not_at_once(self, site: Site) -> None:
        job_id = site.submit_one()
        ref = site.east.held.pop(job_id)
        assert launches(site.east.report()) == []
        commands = site.wait(HEARTBEAT_MS + 1)
        assert launches(commands) == [job_id]
        assert site.east.held[job_id] == ref

    def test_a_launch_is_sent_again_after_a_restart_of_the_control_plane(self, site: Site) -> None:
        job_id = site.submit_one()
        ref = site.east.held.pop(job_id)
        site.restart(connect=False)
        assert launches(site.east.connect()) == [job_id]
        assert site.east.held[job_id] == ref

    def test_a_running_attempt_the_agent_does_not_have_is_lost(self, site: Site) -> None:
        job_id = site.running()
        site.clock.at_ms += 5_000
        del site.east.held[job_id]
        assert launches(site.wait(HEARTBEAT_MS + 1)) == [job_id]
        assert (site.job(job_id).losses, site.job(job_id).attempt) == (1, 2)

    def test_a_report_older_than_an_accepted_event_decides_nothing(self, site: Site) -> None:
        job_id = site.submit_one()
        site.clock.at_ms += 2 * HEARTBEAT_MS
        site.east.started(job_id)
        assert only(Lease, site.east.report(held=[], event_seq=0))
        assert site.state(job_id) is JobState.RUNNING

    def test_an_attempt_nobody_wants_is_stopped(self, site: Site) -> None:
        site.east.held["jold"] = AttemptRef("jold", 3, 1)
        assert stops(site.east.report()) == [("jold", O.CANCELLED)]

    def test_a_stop_is_repeated_until_it_is_reported(self, site: Site) -> None:
        job_id = site.running()
        site.cancel(job_id)
        assert stops(site.east.report()) == []
        assert stops(site.wait(HEARTBEAT_MS + 1)) == [(job_id, O.CANCELLED)]
        del site.east.held[job_id]
        assert stops(site.wait(HEARTBEAT_MS + 1)) == [(job_id, O.CANCELLED)]
        assert site.state(job_id) is JobState.RUNNING


class TestNodes:
    def test_a_node_that_goes_takes_no_work_and_is_forgotten_when_empty(self, site: Site) -> None:
        job_id = site.running()
        site.east.nodes = []
        site.east.report()
        waiting = site.submit_one()
        assert site.state(waiting) is JobState.QUEUED
        assert not site.engine.state.nodes["east", "n1"].view.up
        site.restart()
        assert not site.engine.state.nodes["east", "n1"].view.up
        site.east.finished(job_id, O.NODE_LOST)
        site.east.report()
        assert not site.engine.state.nodes
        assert not site.store.load().nodes
        assert not site.engine.state.pools

    def test_one_that_comes_back_still_holds_what_it_held(self, site: Site) -> None:
        site.running(cpu=6_000)
        nodes, site.east.nodes = site.east.nodes, []
        site.east.report()
        site.east.nodes = nodes
        site.east.report()
        assert site.engine.state.nodes["east", "n1"].view.free.cpu_milli == 2_000
        assert site.state(site.submit_one(cpu=4_000)) is JobState.QUEUED

    @pytest.mark.parametrize("restart", [False, True])
    def test_a_gpu_that_went_and_came_back_is_not_granted_twice(self, restart: bool) -> None:
        two, one = (node("g1", Resources(8_000, 32_768, gpus * 1_000), "gpu", "A100") for gpus in (2, 1))
        site = Site(nodes=[two])
        ids = site.submit(spec(gpu=1_000), spec(gpu=1_000))
        site.east.finished(ids[0])
        site.east.nodes = [one]
        site.check_fit = False
        site.east.report()
        if restart:
            site.restart()
        site.east.nodes = [two]
        site.east.report()
        site.check_fit = True
        site.submit_one(gpu=1_000)
        assert site.state(site.submit_one(gpu=1_000)) is JobState.QUEUED

    def test_one_that_shrinks_takes_nothing_more_until_it_has_room(self, site: Site) -> None:
        job_id = site.running(cpu=6_000)
        site.check_fit = False
        site.east.nodes = [node("n1", Resources(4_000, 32_768, 0))]
        site.east.report()
        waiting = site.submit_one(cpu=100)
        assert site.state(waiting) is JobState.QUEUED
        assert launches(site.east.finished(job_id)) == [waiting]
        assert site.engine.state.nodes["east", "n1"].view.free.cpu_milli == 3_900

    def test_one_that_changes_pool_leaves_the_old_one(self, site: Site) -> None:
        job_id = site.running()
        site.east.nodes = [node("n1", pool="big")]
        site.east.report()
        assert list(site.engine.state.pools) == [PoolKey("east", "big")]
        site.east.finished(job_id)
        assert site.engine.state.pools[PoolKey("east", "big")]["n1"].free.cpu_milli == 8_000

    def test_a_report_of_nothing_new_writes_nothing(self, site: Site) -> None:
        site.east.report()
        before = site.commits
        site.east.report()
        assert site.commits == before

    def test_a_draining_node_takes_no_work_and_keeps_what_runs(self, site: Site) -> None:
        job_id = site.running()
        found = tenants.find_node(site.engine.state, "east", "n1")
        tenants.drain_node(site.engine.state, found, True, False, "op")
        waiting = site.submit_one()
        site.restart()
        assert (site.state(job_id), site.state(waiting)) == (JobState.RUNNING, JobState.QUEUED)
        found = tenants.find_node(site.engine.state, "east", "n1")
        tenants.drain_node(site.engine.state, found, False, False, "op")
        assert launches(site.turn()) == [waiting]

    @pytest.mark.parametrize("gone_between", [False, True])
    def test_a_drained_node_stays_so_when_it_comes_back_under_another_id(self, site: Site, gone_between: bool) -> None:
        found = tenants.find_node(site.engine.state, "east", "n1")
        tenants.drain_node(site.engine.state, found, True, False, "op")
        (old,) = site.east.nodes
        if gone_between:
            site.east.nodes = []
            site.east.report()
            site.restart()
        site.east.nodes = [replace(old, node_id="n1-again")]
        site.east.report()
        assert [n.view.draining for n in site.engine.state.nodes.values()] == [True]
        site.submit_one()
        assert not launches(site.turn())

    def test_eviction_stops_what_runs_and_queues_it_again(self, site: Site) -> None:
        site.east.nodes.append(node("n2"))
        ids = site.submit(spec(cpu=8_000), spec(cpu=8_000))
        site.east.report()
        live = site.engine.state.jobs[ids[0]].live
        assert live is not None
        found = tenants.find_node(site.engine.state, "east", live.replicas[0].node_id)
        tenants.drain_node(site.engine.state, found, True, True, "op")
        assert stops(site.turn()) == [(ids[0], O.PREEMPTED)]
        assert not launches(site.east.finished(ids[0], O.PREEMPTED))
        assert site.reason(ids[0]) == (JobState.QUEUED, "PREEMPTED")

    def test_a_cancellation_overrides_an_eviction_and_not_the_other_way(self, site: Site) -> None:
        job_id = site.running()
        found = tenants.find_node(site.engine.state, "east", "n1")
        tenants.drain_node(site.engine.state, found, True, True, "op")
        assert stops(site.turn()) == [(job_id, O.PREEMPTED)]
        assert stops(site.cancel(job_id)) == [(job_id, O.CANCELLED)]
        tenants.drain_node(site.engine.state, found, True, True, "op")
        assert stops(site.turn()) == []


class TestSilence:
    """MOVE_AFTER: a lease, a tenth of it for the clocks, and the job's own grace."""

    GRACE_MS = 3_000
    MOVE_AFTER = TTL_MS + TTL_MS // 10 + GRACE_MS

    def moving(self, site: Site) -> tuple[str, Agent]:
        job_id = site.running(partition_policy=MOVE, grace_period_ms=self.GRACE_MS)
        return job_id, site.add_region("west", [node("w1")])

    def test_a_job_that_may_move_does_so_after_lease_and_grace(self, site: Site) -> None:
        job_id, west = self.moving(site)
        for ms in (TTL_MS, self.MOVE_AFTER - TTL_MS):
            site.clock.at_ms += ms
            west.report()
            site.engine.tick()
            assert not launches(site.turn())
        site.clock.at_ms += 1
        site.engine.tick()
        assert launches(site.turn()) == [job_id]
        assert (site.job(job_id).region, site.job(job_id).losses) == ("west", 1)

    def test_the_old_attempt_is_stopped_and_its_end_ignored_when_the_region_is_back(self, site: Site) -> None:
        job_id, west = self.moving(site)
        old = site.east.held[job_id]
        site.clock.at_ms += self.MOVE_AFTER + 1
        west.report()
        site.engine.tick()
        assert launches(site.turn()) == [job_id]
        assert [stop.ref for stop in only(Stop, site.east.connect())] == [old]
        site.east.event(old, FINISHED)
        assert site.state(job_id) is JobState.STARTING
        west.finished(job_id)
        assert site.state(job_id) is JobState.SUCCEEDED

    def test_a_job_that_waits_is_left_alone_however_long(self, site: Site) -> None:
        job_id = site.running(grace_period_ms=0)
        site.add_region("west", [node("w1")])
        site.wait(1_000 * TTL_MS, silent=True)
        assert site.reason(job_id) == (JobState.RUNNING, "")
        site.east.connect()
        site.east.finished(job_id)
        assert site.state(job_id) is JobState.SUCCEEDED

    def test_nothing_moves_before_this_process_has_been_up_as_long(self, site: Site) -> None:
        job_id, west = self.moving(site)
        site.clock.at_ms += 100 * self.MOVE_AFTER
        site.restart(connect=False)
        west.connect()
        site.clock.at_ms += self.MOVE_AFTER
        west.report()
        site.engine.tick()
        assert not launches(site.turn())
        site.clock.at_ms += 1
        site.engine.tick()
        assert launches(site.turn()) == [job_id]

    def test_after_a_lease_of_silence_only_a_new_session_counts(self, site: Site) -> None:
        site.wait(TTL_MS, silent=True)
        assert site.engine.is_listened_to("east", site.east.session)
        site.wait(1, silent=True)
        assert not site.engine.is_listened_to("east", site.east.session)
        job_id = site.submit_one()
        assert site.east.report() == []
        assert launches(site.east.connect()) == [job_id]
