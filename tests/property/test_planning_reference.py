"""Whatever the snapshot and the policy: the fast planner answers as the plain one."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings

from scheduler.planning.plan import plan
from tests.property.planning_worlds import NOW_MS, random_policy, random_world, seeds, with_mix
from tests.property.reference_planner import reference_plan


@settings(max_examples=500)
@given(seeds)
def test_the_fast_planner_answers_as_the_plain_one(seed):
    rng = Random(seed)
    policy = random_policy(rng)
    snapshot = with_mix(rng, random_world(rng, policy).snapshot())
    assert plan(snapshot, policy, NOW_MS) == reference_plan(snapshot, policy, NOW_MS)
