"""When a waiting job will start: the forecast against what a run then does."""

from __future__ import annotations

import heapq
from dataclasses import replace

from scheduler.domain.resources import Resources
from scheduler.planning.explain import explain
from scheduler.planning.explanation import ExpectedStart
from scheduler.planning.forecast import Forecast, Replay, Scenario
from scheduler.planning.frozen import freeze
from scheduler.planning.plan import Planner, plan
from scheduler.planning.policy import PRESETS, Policy
from scheduler.planning.types import GroupKey, PendingJob, RunningView, TenantView
from tests.unit.planning.builders import World, node, shape

MINUTE_MS = 60_000


class Known:
    """Runtimes that turn out as predicted."""

    def __init__(self, ends_ms: dict[int, int]) -> None:
        self.ends_ms = ends_ms

    def remaining_ms(self, running: RunningView, now_ms: int) -> int:
        return self.ends_ms[running.launch_seq] - now_ms


def simulate(world: World, policy: Policy, ends: dict[int, int]) -> dict[int, int]:
    """Run the world to its end, planning afresh after every end; returns when each job started."""
    heap = [(end_ms, seq) for seq, end_ms in ends.items()]
    heapq.heapify(heap)
    started: dict[int, int] = {}
    while True:
        jobs = {job.job_no: job for line in world.lines.values() for job in line}
        made = plan(world.snapshot(), policy, world.now_ms)
        for start in made.starts:
            view = world.start(start)
            started.setdefault(start.job_no, world.now_ms)
            heapq.heappush(heap, (world.now_ms + jobs[start.job_no].expected_ms, view.launch_seq))
        assert not made.evictions
        if made.truncated:
            continue
        if not heap:
            return started
        world.now_ms = heap[0][0]
        while heap and heap[0][0] == world.now_ms:
            world.end(heapq.heappop(heap)[1])


def busy_world() -> tuple[World, dict[int, int]]:
    """Two nodes full of work, and a queue of two institutions with jobs of many sizes."""
    world = World([node("n1"), node("n2")])
    for number in range(8):
        world.add("ab"[number % 2], shape(1000 * (1 + number % 4)), expected_ms=MINUTE_MS * (7 + 3 * number))
    world.apply(plan(world.snapshot(), PRESETS["fifo"], 0))
    ends = {seq: view.start_ms + MINUTE_MS * (5 + seq) for seq, view in world.running.items()}
    for number in range(40):
        world.add(
            "ab"[number % 3 == 0],
            shape(500 * (1 + number % 7), replicas=1 + (number % 11 == 0)),
            expected_ms=MINUTE_MS * (3 + number * 7 % 20),
            submit_ms=number,
            limit_ms=MINUTE_MS * 60,
        )
    world.lines = {key: jobs for key, jobs in world.lines.items() if jobs}
    return world, ends


def test_with_runtimes_as_predicted_the_forecast_is_exact_under_every_policy():
    for policy in PRESETS.values():
        quiet = replace(policy, preemption=replace(policy.preemption, priority=False, shorter_milli=0, reclaim=False))
        world, ends = busy_world()
        snapshot = replace(world.snapshot(), runtimes=Known(ends))
        replay = Replay(snapshot, quiet, 0, Scenario.EXPECTED)
        numbers = [job.job_no for line in world.lines.values() for job in line]
        told = {number: replay.until(number) for number in numbers}
        assert told == simulate(world, quiet, ends)


def of(world: World, job_no: int) -> tuple[GroupKey, PendingJob]:
    return next((key, job) for key, line in world.lines.items() for job in line if job.job_no == job_no)


def expected(world: World, job_no: int, policy: Policy | None = None) -> ExpectedStart:
    policy = policy or Policy()
    snapshot = world.snapshot()
    job = of(world, job_no)
    told = explain(Planner(), snapshot, policy, world.now_ms, job)
    return Forecast(freeze(snapshot, job), policy, world.now_ms).expected_start(*job, told)


def test_the_range_comes_from_shorter_and_longer_runtimes():
    world = World([node("n1")])
    world.add("a", shape(8000), limit_ms=60 * MINUTE_MS)
    world.apply(plan(world.snapshot(), Policy(), 0))
    world.lines.clear()
    world.add("a", shape(8000), expected_ms=20 * MINUTE_MS, limit_ms=100 * MINUTE_MS, rank=1)
    (job,) = world.add("a", shape(8000), rank=2)
    assert expected(world, job) == (
        ExpectedStart(80 * MINUTE_MS, 40 * MINUTE_MS, 160 * MINUTE_MS, "MEDIUM", "FORECAST")
    )


def test_there_is_no_estimate_for_what_nothing_that_runs_stands_in_the_way_of():
    world = World([node("n1", draining=True)])
    (job,) = world.add("a", shape())
    assert expected(world, job).message == "no estimate: it would not start even when all that runs now had ended"
    world = World([node("n1")])
    world.institutions["a"] = TenantView(1, Resources(8000), Resources(8000, 1 << 30))
    (job,) = world.add("a", shape())
    assert expected(world, job) == ExpectedStart(
        message="no estimate: its quota does not allow it even when all that runs now has ended"
    )


def test_beyond_the_bound_the_rate_is_drawn_on():
    world = World([node("n1", cpu=1000)])
    world.add("a", shape(), 3000, expected_ms=MINUTE_MS)
    (job,) = world.add("a", shape(), rank=1 << 40)
    told = expected(world, job, PRESETS["fifo"])
    assert (told.basis, told.confidence) == ("RATE", "LOW")
    assert 0.95 < told.at_ms / (3000 * MINUTE_MS) < 1.05


def test_the_live_queue_and_snapshot_are_left_alone():
    world, ends = busy_world()
    snapshot = replace(world.snapshot(), runtimes=Known(ends))
    before = (dict(snapshot.running), {key: list(jobs) for key, jobs in world.lines.items()}, list(world.nodes))
    key, job = of(world, max(job.job_no for line in world.lines.values() for job in line))
    Replay(freeze(snapshot, (key, job)), Policy(), 0, Scenario.LONG).until(job.job_no)
    assert before == (dict(snapshot.running), world.lines, world.nodes)


def test_only_the_heads_of_long_lines_are_copied():
    world = World([node("n1")])
    world.add("a", shape(), 30_000)
    world.add("b", shape(), 3)
    key, job = next((key, line[-1]) for key, line in world.lines.items() if key.institution == "b")
    frozen = freeze(world.snapshot(), (key, job)).queue
    assert [frozen.size(line) for line in frozen.groups()] == [10_000, 3]
    (own,) = (line for line in frozen.groups() if line.institution == "a")
    far = world.lines[own][25_000]
    assert freeze(world.snapshot(), (own, far)).queue.size(own) == 10_000


def test_without_time_for_a_replay_what_runs_now_says_how_fast_the_queue_moves():
    world = World([node("n1", cpu=4000)])
    world.add("a", shape(), 4, limit_ms=60 * MINUTE_MS)
    world.apply(plan(world.snapshot(), Policy(), 0))
    world.lines.clear()
    world.add("a", shape(), 39)
    (job,) = world.add("a", shape(), rank=1 << 40)
    (found, told) = of(world, job), explain(Planner(), world.snapshot(), Policy(), 0, of(world, job))
    forecast = Forecast(freeze(world.snapshot(), found), Policy(), 0)
    at = forecast.expected_start(*found, replace(told, reservation=None), lambda: False)
    # 40 places, and every hour 4 of those that run end.
    assert (at.at_ms, at.basis, at.confidence) == (600 * MINUTE_MS, "RATE", "LOW")
