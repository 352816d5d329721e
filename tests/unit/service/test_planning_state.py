"""What planning is shown: users and their past, what runs, what is held of each pool, and what has changed."""

from __future__ import annotations

import pytest

from scheduler.domain.agent import Checkpointed
from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.states import AttemptOutcome
from scheduler.planning.policy import OrderPolicy, Policy
from scheduler.planning.types import Changes, PoolKey, PoolUse, Snapshot
from scheduler.service.holdings import REFRESHED_AT_ONCE
from tests.unit.service.harness import Site, node, spec

HALF_LIFE_MS = 600_000
HOUR_MS = 3_600_000
ADA = ("north", "default", "ada")


@pytest.fixture
def site() -> Site:
    return Site(policy=Policy(order=OrderPolicy(half_life_ms=HALF_LIFE_MS)))


def shown(site: Site) -> Snapshot:
    return site.engine.state.snapshot()


def changed(site: Site) -> Changes:
    changes = site.engine.state.take_changes()
    assert changes is not None
    return changes


def wait_in_steps(site: Site, ms: int) -> None:
    for _ in range(0, ms, 60_000):
        site.wait(60_000)


class TestUsers:
    def test_a_user_is_there_as_long_as_something_is_held_or_remembered(self, site: Site) -> None:
        assert shown(site).users == {}
        job_id = site.running(cpu=4_000)
        assert shown(site).users[ADA].in_use == Resources(4_000, 64, 0)
        assert shown(site).users[ADA].weight == 1000
        wait_in_steps(site, HALF_LIFE_MS)
        site.east.finished(job_id)
        assert shown(site).users[ADA].in_use == ZERO
        assert shown(site).users[ADA].past == Resources(2_000, 32, 0)

        # After fourteen half-lives less than half a milli-core is left.
        wait_in_steps(site, 13 * HALF_LIFE_MS)
        assert shown(site).users == {}
        assert site.engine.state.holdings.users == {}

    def test_the_past_of_all_three_levels_is_kept_over_a_restart(self, site: Site) -> None:
        job_id = site.running(cpu=4_000)
        site.wait(HALF_LIFE_MS)
        site.east.finished(job_id)
        site.running(cpu=1_000, institution="south")
        site.wait(61_000)
        before = shown(site)
        site.restart()
        after = shown(site)

        assert before.institutions["north"].past.cpu_milli == 1_864
        assert (after.users, after.projects, after.institutions) == (before.users, before.projects, before.institutions)

    def test_the_past_fades_at_the_half_life_of_the_time(self, site: Site) -> None:
        job_id = site.running(cpu=8_000)
        site.wait(HALF_LIFE_MS)
        site.east.finished(job_id)
        site.wait(HALF_LIFE_MS)
        site.engine.state.use_policy(Policy(order=OrderPolicy(half_life_ms=2 * HALF_LIFE_MS)))
        site.policy = site.engine.state.policy
        site.wait(2 * HALF_LIFE_MS)

        assert shown(site).users[ADA].past == Resources(1_000, 8, 0)
        site.restart()
        assert shown(site).users[ADA].past == Resources(1_000, 8, 0)

    def test_a_tick_looks_at_a_bounded_number_of_those_not_seen_for_a_minute(self, site: Site) -> None:
        holdings = site.engine.state.holdings
        users = REFRESHED_AT_ONCE + 100
        for number in range(users):
            site.submit(spec(cpu=1, memory=16), user=f"u{number}")
        site.clock.at_ms += 61_000
        now = site.engine.state.now()

        def old() -> int:
            return sum(ms < now for ms in holdings.shown_ms.values())

        assert old() == users + 2
        site.engine.tick()
        assert old() == users + 2 - REFRESHED_AT_ONCE
        site.engine.tick()
        assert old() == 0


class TestRunning:
    def test_a_view_follows_its_attempt(self, site: Site) -> None:
        job_id = site.submit_one(
            cpu=4_000, name="train", max_runtime_ms=HOUR_MS, preemptible=True, grace_period_ms=9_000
        )
        granted = site.clock.at_ms
        (view,) = shown(site).running.values()
        assert (view.start_ms, view.saved_ms, view.limit_end_ms) == (granted, granted, granted + HOUR_MS)
        assert (view.name, view.region, view.pool, view.grace_ms) == ("train", "east", "cpu", 9_000)
        assert (view.group.user, view.group.preemptible) == ("ada", True)

        site.wait(5_000)
        site.east.started(job_id, age_ms=1_000)
        (view,) = shown(site).running.values()
        assert (view.start_ms, view.saved_ms, view.limit_end_ms) == (
            granted + 4_000,
            granted + 4_000,
            granted + 4_000 + HOUR_MS,
        )

        site.wait(5_000)
        site.east.event(site.east.held[job_id], Checkpointed("sha256:c"), age_ms=500)
        (view,) = shown(site).running.values()
        assert view.saved_ms == granted + 9_500
        site.restart()
        assert shown(site).running == {view.launch_seq: view}

        site.wait(5_000)
        site.cancel(job_id)
        (view,) = shown(site).running.values()
        assert (view.stopped_by_ms, view.for_job_no) == (site.clock.at_ms + 9_000, 0)
        site.east.finished(job_id, AttemptOutcome.CANCELLED)
        assert shown(site).running == {}

    def test_what_is_held_of_a_pool_and_what_of_it_is_firm(self) -> None:
        site = Site(nodes=[node("n1"), node("g1", Resources(8_000, 8_192, 2_000), "gpu", "A100")])
        firm = site.submit_one(cpu=2_000)
        loose = site.submit_one(cpu=1_000, preemptible=True)
        site.submit_one(institution="south", cpu=500, gpu=1_000)
        pool = PoolKey("east", "cpu")

        assert shown(site).pool_use == {
            ("north", pool): PoolUse(Resources(3_000, 128, 0), Resources(2_000, 64, 0)),
            ("south", PoolKey("east", "gpu")): PoolUse(Resources(500, 64, 1_000), Resources(500, 64, 1_000)),
        }
        site.east.finished(loose)
        assert shown(site).pool_use["north", pool] == PoolUse(Resources(2_000, 64, 0), Resources(2_000, 64, 0))
        site.east.finished(firm)
        assert ("north", pool) not in shown(site).pool_use


class TestChanges:
    def test_nothing_is_known_at_first_and_after_another_policy(self, site: Site) -> None:
        site.engine.state.take_changes()
        site.engine.state.use_policy(Policy())
        assert site.engine.state.take_changes() is None
        assert changed(site) == Changes()

    def test_each_change_is_told_once(self, site: Site) -> None:
        state = site.engine.state
        state.take_changes()
        first = site.submit_one(cpu=8_000)
        (running,) = state.running
        (line,) = {view.group for view in state.running.values()}
        # The round took notice of the line and started the job; what its start changed is for the next.
        assert changed(site) == Changes({("east", "n1")}, {line}, {running})
        assert changed(site) == Changes()

        site.east.started(first)
        assert changed(site) == Changes(running={running})
        second = site.submit_one(cpu=8_000)
        site.cancel(second)
        assert changed(site) == Changes(groups={line})
        site.east.finished(first)
        assert changed(site) == Changes({("east", "n1")}, set(), {running})

    def test_nothing_is_collected_while_no_region_is_connected(self, site: Site) -> None:
        site.engine.state.take_changes()
        site.east.hang_up()
        for number in range(3):
            site.cancel(site.submit_one(cpu=number + 1))

        assert len(site.engine.state.queue.take_changed()) <= 1
        site.east.connect()
        assert site.engine.state.take_changes() is None

    def test_nodes_that_come_change_or_go(self, site: Site) -> None:
        state = site.engine.state
        state.take_changes()
        site.east.nodes = [node("n1", Resources(1_000, 1_024, 0)), node("n2")]
        site.east.report()
        assert changed(site).nodes == {("east", "n1"), ("east", "n2")}
        site.east.nodes = []
        site.east.report()
        assert changed(site).nodes == {("east", "n1"), ("east", "n2")}

    def test_an_array_whose_tasks_start_or_end_changes_its_line(self, site: Site) -> None:
        (array,) = site.submit(spec(cpu=4_000, size=4, max_parallel=3))
        (line,) = site.engine.state.queue.groups()
        assert changed(site).groups == {line}
        site.east.finished(f"{array}.0")
        assert line in changed(site).groups

    def test_a_round_without_news_is_made_now_and_then_while_somebody_waits(self, site: Site) -> None:
        site.running(cpu=8_000)
        state = site.engine.state
        site.wait(state.settings.max_round_gap_ms)
        assert state.last_round_ms < state.now()
        site.submit_one(cpu=8_000)
        first_ms = state.last_round_ms
        site.wait(state.settings.max_round_gap_ms - 1)
        assert state.last_round_ms == first_ms
        site.wait(1)
        assert state.last_round_ms == state.now()
