"""How good the forecast of starts is, when runtimes turn out as predicted and when they do not.

    python -m benchmarks.forecast --nodes 32 --jobs 1500 --seed 1 [--policy suanli]

Jobs run on a cluster until half of them have started; then each one that waits is told when it will start, and the cluster runs on.
With ``spread`` s a job takes between 1/s and s times as long as predicted (evenly in the logarithm). Nothing is submitted later, so what
newcomers do to an estimate is not in these figures. The last line is JSON: for each spread the median of the absolute error in minutes and in
parts of the wait, and the part of the starts that lay within the range.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from dataclasses import replace

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.explain import explain
from scheduler.planning.forecast import Forecast, Replay, Scenario
from scheduler.planning.frozen import FrozenQueue, freeze
from scheduler.planning.plan import Planner
from scheduler.planning.policy import PRESETS, Policy
from scheduler.planning.rank import rank_of
from scheduler.planning.types import GroupKey, NodeView, PendingJob, PoolKey, RunningView, Snapshot, TenantView

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
SPREADS = (1.0, 1.5, 3.0)
INSTITUTIONS = ("north", "south", "west")


class Truth(Replay):
    """What really happens: jobs take as long as ``factor`` makes them."""

    def __init__(self, snapshot: Snapshot, policy: Policy, factor: dict[int, float]) -> None:
        self.factor = factor
        self.runtimes_ms: dict[int, int] = {}
        super().__init__(snapshot, policy, 0, Scenario.EXPECTED)

    def _runtime_ms(self, job: PendingJob) -> int:
        return max(1, min(job.limit_ms, round(job.expected_ms * self.factor[job.job_no])))


class Predicted:
    """What was expected of those that run, less what they have run."""

    def __init__(self, expected_ms: dict[int, int]) -> None:
        self.expected_ms = expected_ms

    def remaining_ms(self, running: RunningView, now_ms: int) -> int:
        """An attempt that has run longer than expected is expected to go on for a tenth of that."""
        expected_ms, elapsed_ms = self.expected_ms[running.job_no], now_ms - running.start_ms
        left_ms = expected_ms - elapsed_ms
        return min(running.limit_end_ms - now_ms, left_ms if left_ms > 0 else max(1, elapsed_ms // 10))


def workload(nodes: int, jobs: int, policy: Policy, draw: random.Random) -> Snapshot:
    """Nodes of 8 GPUs, and a queue of jobs of 1 to 16."""
    whole = Resources(128_000, 1 << 20, 8 * GPU_UNIT)
    views = {
        f"n{n:04}": NodeView("east", f"n{n:04}", f"n{n:04}", "gpu", "A100", (), whole, whole, (GPU_UNIT,) * 8)
        for n in range(nodes)
    }
    sizes = [(g, r) for g, r, times in ((1, 1, 12), (2, 1, 4), (4, 1, 3), (8, 1, 3), (8, 2, 1)) for _ in range(times)]
    lines: dict[GroupKey, list[PendingJob]] = {}
    for job_no in range(1, jobs + 1):
        gpus, replicas = draw.choice(sizes)
        shape = Shape(Resources(8000 * gpus, 32_768 * gpus, GPU_UNIT * gpus), replicas)
        expected_ms = round(math.exp(draw.uniform(math.log(5 * MINUTE_MS), math.log(12 * HOUR_MS))))
        key = GroupKey(draw.choice(INSTITUTIONS), "p", f"u{job_no % 7}", PriorityClass.NORMAL, False, shape)
        rank = rank_of(policy.order, job_no, key.priority, shape.total, expected_ms)
        job = PendingJob(rank, job_no, 1, job_no, expected_ms, 4 * expected_ms, 0)
        lines.setdefault(key, []).append(job)
    queue = FrozenQueue({key: sorted(line) for key, line in lines.items()}, 0)
    institutions = {name: TenantView(1000) for name in INSTITUTIONS}
    projects = {(name, "p"): TenantView(1000) for name in INSTITUTIONS}
    return Snapshot({PoolKey("east", "gpu"): views}, queue, institutions, projects, frozenset({"east"}))


def measure(nodes: int, jobs: int, policy: Policy, seed: int, spread: float) -> dict[str, float]:
    """Forecast at half time, and compare."""
    draw = random.Random(seed)
    start = workload(nodes, jobs, policy, draw)
    queue = start.queue
    all_jobs = {job.job_no: job for key in queue.groups() for job in queue.jobs(key)}
    width = math.log(spread)
    truth = Truth(start, policy, {number: math.exp(draw.uniform(-width, width)) for number in all_jobs})
    while len(truth.started) < jobs // 2:
        truth.until(min(set(all_jobs) - truth.started.keys()), lambda: len(truth.started) < jobs // 2)
    now_ms = truth.now_ms
    runtimes = Predicted({number: job.expected_ms for number, job in all_jobs.items()})
    live = truth.snapshot()
    first = live.queue.groups()[0]
    snapshot = freeze(replace(live, runtimes=runtimes), (first, live.queue.head(first)))
    frozen = snapshot.queue
    forecast, planner = Forecast(snapshot, policy, now_ms), Planner()
    told = {}
    for key in frozen.groups():
        for job in frozen.jobs(key):
            told[job.job_no] = forecast.expected_start(key, job, explain(planner, snapshot, policy, now_ms, (key, job)))
    for number in told:
        truth.until(number)
    errors = [abs(truth.started[number] - each.at_ms) for number, each in told.items()]
    waits = [max(MINUTE_MS, truth.started[number] - now_ms) for number in told]
    within = [
        each.earliest_ms <= truth.started[number] <= (each.latest_ms or truth.started[number])
        for number, each in told.items()
    ]
    return {
        "jobs": len(told),
        "median_error_minutes": round(statistics.median(errors) / MINUTE_MS, 2),
        "median_error_of_wait": round(statistics.median(e / w for e, w in zip(errors, waits, strict=True)), 4),
        "exact": round(sum(error == 0 for error in errors) / len(errors), 4),
        "within_range": round(sum(within) / len(within), 4),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policy", choices=sorted(PRESETS), default="suanli")
    given = parser.parse_args()
    policy = PRESETS[given.policy]
    found = {str(spread): measure(given.nodes, given.jobs, policy, given.seed, spread) for spread in SPREADS}
    print(json.dumps({"policy": given.policy, "by_spread": found}))


if __name__ == "__main__":
    main()
