"""Rounds in sequence, with jobs that end: shares follow the weights, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.plan import plan
from scheduler.planning.policy import LEVELS, OrderPolicy, Policy
from tests.unit.planning.builders import World, node, shape

STEP_MS = 1000
FAIR = OrderPolicy(LEVELS)


class Run:
    """Plays rounds one STEP_MS apart; each job runs for a fixed number of steps."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world, self.policy = world, policy
        self.step = 0
        self.running: list[tuple[int, int]] = []
        self.held = Counter()
        self.started: dict[int, int] = {}

    def play(self, runtimes: dict[int, int], default: int) -> None:
        world = self.world
        for end, launch_seq in [each for each in self.running if each[0] <= self.step]:
            world.end(launch_seq)
            self.running.remove((end, launch_seq))
        world.now_ms = self.step * STEP_MS
        for start in plan(world.snapshot(), self.policy, world.now_ms).starts:
            runtime = runtimes.get(start.job_no, default)
            key, line = next((k, j) for k, jobs in world.lines.items() for j in jobs if j.job_no == start.job_no)
            world.lines[key][world.lines[key].index(line)] = line._replace(limit_ms=runtime * STEP_MS)
            launched = world.start(start)
            self.started[start.job_no] = self.step
            self.running.append((self.step + runtime, launched.launch_seq))
        for view in world.running.values():
            self.held[view.group.institution] += view.group.shape.total.cpu_milli
        self.step += 1


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from((5, 10**6)))
def test_held_capacity_follows_the_weights(weight_a, weight_b, runtime, patience):
    """Even with everything overdue: what has waited long goes first only below its tenant's fair part."""
    world = World([node(f"n{i}", cpu=6000, memory=1 << 20) for i in range(4)])
    # All of a's jobs are older, and of two sizes.
    world.add("a", shape(2000), 900)
    world.add("a", shape(1000), 900)
    world.add("b", shape(1000), 1800, submit_ms=STEP_MS)
    world.institutions["a"] = world.institutions["a"].__class__(weight_a)
    world.institutions["b"] = world.institutions["b"].__class__(weight_b)
    run = Run(world, Policy(order=FAIR, max_passed_over_ms=patience * STEP_MS))
    for _ in range(40):
        run.play({}, runtime)
    whole = 24_000 * 40
    for name, weight in (("a", weight_a), ("b", weight_b)):
        fair = whole * weight / (weight_a + weight_b)
        # A job is granted whole: two of the largest over or under in each step.
        assert abs(run.held[name] - fair) <= 4000 * 40, (name, run.held[name] / 40, fair / 40)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from("az"), st.integers(2, 4), st.integers(1, 4), st.booleans())
def test_a_big_gang_starts_though_small_jobs_never_cease(stream, gang_nodes, runtime, same_institution):
    world = World([node(f"n{i}", cpu=2000) for i in range(4)])
    wanted: Shape = shape(2000, replicas=gang_nodes)
    owner = stream if same_institution else "m"
    (gang,) = world.add(owner, wanted, project="big")
    policy = Policy(order=FAIR, max_passed_over_ms=10 * STEP_MS)
    run = Run(world, policy)
    # Small jobs hold every node before the gang's first chance.
    fill = [world.add(stream, shape(1000), submit_ms=0, priority=PriorityClass.HIGH)[0] for _ in range(8)]
    runtimes = {number: 3 + at % 5 for at, number in enumerate(fill)}
    for step in range(60):
        world.add(stream, shape(1000), 8, submit_ms=step * STEP_MS)
        run.play(runtimes, runtime)
        if gang in run.started:
            break
    # Overdue after 10 steps; by then each node is drained within the longest runtime.
    assert run.started.get(gang, 10**6) <= 10 + 8 + runtime


def test_without_the_bound_the_same_gang_does_starve():
    """Shows that the test above tests something."""
    world = World([node("n0", cpu=2000)])
    (gang,) = world.add("m", shape(2000))
    world.add("a", shape(1000), 2)
    run = Run(world, Policy(order=FAIR, max_passed_over_ms=10**9))
    runtimes = {2: 1}
    for step in range(60):
        world.add("a", shape(1000), 2, submit_ms=step * STEP_MS)
        run.play(runtimes, 2)
    assert gang not in run.started


def test_two_streams_of_whole_pool_gangs_take_turns():
    world = World([node("n0", cpu=2000)])
    jobs = {name: world.add(name, shape(2000), 10) for name in "ab"}
    run = Run(world, Policy(order=FAIR, max_passed_over_ms=2 * STEP_MS))
    for _ in range(20):
        run.play({}, 1)
    assert all(number in run.started for numbers in jobs.values() for number in numbers)
