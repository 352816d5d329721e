"""A planner that carries over what has not changed answers, every round, as one that looks at everything anew."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from unittest.mock import patch

import pytest
from hypothesis import given, settings

from scheduler.domain.resources import Resources
from scheduler.planning import plan as planning
from scheduler.planning.plan import Planner, plan
from scheduler.planning.policy import Policy
from scheduler.planning.types import Changes, Snapshot
from tests.property.planning_worlds import (
    INSTITUTIONS,
    MINUTE_MS,
    NOW_MS,
    queue_some,
    random_node,
    random_policy,
    random_shape,
    random_tenant,
    random_world,
    run_something,
    seeds,
)
from tests.unit.planning.builders import World


class Story:
    """A world to which things happen; knows what has changed since it was last asked."""

    def __init__(self, rng: Random, *, preemption: bool) -> None:
        self.rng, self.preemption = rng, preemption
        self.policy = random_policy(rng, preemption=preemption)
        self.world: World = random_world(rng, self.policy)
        self.shapes = [random_shape(rng) for _ in range(6)]
        self.next_node = 100
        for _ in range(4):
            self.a_node_joins()
        self.before: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The state now, with all that differs from the last answer named in ``changes``."""
        now, before = self.world.snapshot(), self.before
        self.before = now
        if before is None:
            return now

        def nodes(snapshot):
            return {(view.region, view.node_id): view for of in snapshot.pools.values() for view in of.values()}

        def differ(old, new):
            return {key for key in {**old, **new} if old.get(key) != new.get(key)}

        lines = [dict(snapshot.queue.lines) for snapshot in (before, now)]
        changes = Changes(
            differ(nodes(before), nodes(now)), differ(*lines), differ(dict(before.running), dict(now.running))
        )
        return replace(now, changes=changes)

    def apply(self, made: planning.Plan) -> None:
        """Make most of a plan true; some starts are refused, as when they have become stale."""
        for eviction in made.evictions:
            running = self.world.running[eviction.launch_seq]
            stopped_by_ms = self.world.now_ms + eviction.grace_ms
            self.world.running[eviction.launch_seq] = replace(
                running, stopped_by_ms=max(1, stopped_by_ms), for_job_no=eviction.for_job_no
            )
            self.world.claims[eviction.for_job_no] = next(
                key for key, jobs in self.world.lines.items() if any(j.job_no == eviction.for_job_no for j in jobs)
            )
        for start in made.starts:
            if self.rng.random() < 0.8:
                self.world.start(start)

    # --- what may happen ----------------------------------------------------------------------------------------------

    def jobs_come(self) -> None:
        queue_some(self.rng, self.world, self.shapes, self.policy.order, 2, self.world.now_ms)

    def jobs_leave(self) -> None:
        lines = [key for key, jobs in self.world.lines.items() if jobs]
        if lines:
            jobs = self.world.lines[self.rng.choice(lines)]
            gone = jobs.pop(self.rng.randrange(len(jobs)))
            self.world.claims.pop(gone.job_no, None)

    def attempts_end(self) -> None:
        for launch_seq in self.rng.sample(sorted(self.world.running), min(2, len(self.world.running))):
            self.world.end(launch_seq)

    def an_attempt_saves(self) -> None:
        if self.world.running:
            launch_seq = self.rng.choice(sorted(self.world.running))
            self.world.running[launch_seq] = replace(self.world.running[launch_seq], saved_ms=self.world.now_ms)

    def a_node_joins(self) -> None:
        self.world.nodes.append(random_node(self.rng, self.next_node))
        self.next_node += 1

    def a_node_goes(self) -> None:
        busy = {(each.region, replica.node_id) for each in self.world.running.values() for replica in each.replicas}
        idle = [view for view in self.world.nodes if (view.region, view.node_id) not in busy]
        if idle:
            self.world.nodes.remove(self.rng.choice(idle))

    def a_node_changes(self) -> None:
        if self.world.nodes:
            at = self.rng.randrange(len(self.world.nodes))
            view = self.world.nodes[at]
            self.world.nodes[at] = self.rng.choice(
                (
                    replace(view, draining=not view.draining),
                    replace(view, up=not view.up),
                    replace(view, labels=(("rack", self.rng.choice("rs")),)),
                    replace(view, capacity=view.capacity.plus(Resources(1000)), free=view.free.plus(Resources(1000))),
                )
            )

    def a_node_moves_pool(self) -> None:
        busy = {(each.region, replica.node_id) for each in self.world.running.values() for replica in each.replicas}
        for at, view in enumerate(self.world.nodes):
            if (view.region, view.node_id) not in busy and not view.capacity.gpu_milli:
                self.world.nodes[at] = replace(view, pool="cpu" if view.pool == "mixed" else "mixed")
                return

    def a_region_comes_or_goes(self) -> None:
        self.world.offline = self.rng.choice(
            (*[frozenset()] * 6, frozenset({"east"}), frozenset({"west"}), frozenset({"east", "west"}))
        )

    def a_tenant_changes(self) -> None:
        name = self.rng.choice(INSTITUTIONS)
        old = self.world.institutions[name]
        self.world.institutions[name] = replace(random_tenant(self.rng, top=True), in_use=old.in_use)
        project = (name, self.rng.choice("pq"))
        in_use = self.world.projects[project].in_use
        self.world.projects[project] = replace(random_tenant(self.rng, top=False), in_use=in_use)

    def the_policy_changes(self) -> None:
        if self.rng.random() < 0.3:
            self.policy = random_policy(self.rng, preemption=self.preemption)

    def something_runs(self) -> None:
        if self.world.nodes:
            run_something(self.rng, self.world, self.shapes, self.world.now_ms)

    EVENTS = (
        jobs_come,
        jobs_come,
        jobs_leave,
        attempts_end,
        attempts_end,
        an_attempt_saves,
        a_node_joins,
        a_node_goes,
        a_node_changes,
        a_node_moves_pool,
        a_region_comes_or_goes,
        a_tenant_changes,
        the_policy_changes,
        something_runs,
    )

    def go_on(self) -> None:
        """A minute or less passes."""
        self.world.now_ms += self.rng.choice((1000, 10_000, MINUTE_MS))
        for event in self.rng.sample(self.EVENTS, self.rng.choice((0, 1, 1, 3))):
            event(self)


def play(seed: int, rounds: int, *, preemption: bool) -> int:
    """Compare every round of a story; answers how much was decided in it."""
    rng = Random(seed)
    story = Story(rng, preemption=preemption)
    planner = Planner()
    decisions = 0
    for _ in range(rounds):
        snapshot, now_ms = story.snapshot(), story.world.now_ms
        carried = planner.plan(snapshot, story.policy, now_ms)
        assert carried == plan(replace(snapshot, changes=None), story.policy, now_ms)
        decisions += len(carried.starts) + len(carried.evictions)
        if rng.random() < 0.8:
            story.apply(carried)
        story.go_on()
    return decisions


@settings(max_examples=60)
@given(seeds)
def test_a_planner_that_carries_over_answers_as_a_new_one(seed):
    play(seed, 25, preemption=False)


@settings(max_examples=60)
@given(seeds)
def test_so_it_does_when_attempts_are_stopped_for_others(seed):
    play(seed, 25, preemption=True)


@settings(max_examples=30)
@given(seeds)
def test_so_it_does_when_its_looks_are_used_up(seed):
    with patch.object(planning, "MAX_LOOKS", 2):
        play(seed, 25, preemption=seed % 2 == 0)


def test_a_site_made_anew_while_no_region_is_connected_takes_nothing():
    story = Story(Random(0), preemption=False)
    story.world = World([random_node(Random(1), 1)], institutions=dict(story.world.institutions), now_ms=NOW_MS)
    story.world.projects = {(name, "p"): story.world.institutions[name] for name in INSTITUTIONS}
    story.world.offline = frozenset({"east", "west"})
    planner = Planner()
    assert not planner.plan(story.snapshot(), Policy(), NOW_MS).starts
    story.a_node_joins()
    story.world.add("a", random_shape(Random(1)), project="p")
    story.shapes = []
    assert not planner.plan(story.snapshot(), Policy(), NOW_MS).starts


@pytest.mark.parametrize("preemption", [False, True])
def test_the_stories_are_eventful(preemption: bool):
    """So that the tests above test something."""
    assert sum(play(seed, 25, preemption=preemption) for seed in range(6)) > 50
