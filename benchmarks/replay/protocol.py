"""SRTF and SRSF exactly as the published simulations ran them, to prove that a replay of a trace measures the same thing.

The protocol (artifact of Muri, SIGCOMM 2022; ``../shared/traces/philly-muri/README.md``): events are arrivals and completions.
At each, every running job loses its rescheduling overhead of the progress it made since the last event, all jobs are sorted by
remaining time (SRTF) or remaining time x GPUs (SRSF), and placed afresh, first fit, on an empty cluster; what does not fit is
skipped. So a job may move or stop at any event for nothing but that overhead. No live system can do this; it is a yardstick.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.replay.trace import Cluster, Job, Outcome

SAME_INSTANT_S = 1e-9


class _Region:
    """One region while it is filled from empty: the free GPUs of each node, in order."""

    __slots__ = ("empty", "free", "free_total", "size")

    def __init__(self, cluster: Cluster) -> None:
        self.size = cluster.gpus_per_node
        self.free = [self.size] * cluster.nodes
        self.free_total = cluster.region_gpus
        self.empty = cluster.nodes

    def put(self, num_gpu: int, whole_nodes: int) -> bool:
        """Place a gang on the first nodes that hold it; False if there are none."""
        if whole_nodes:
            if whole_nodes > self.empty:
                return False
            left = whole_nodes
            for index, free in enumerate(self.free):
                if left and free == self.size:
                    self.free[index] = 0
                    left -= 1
            self.empty -= whole_nodes
            self.free_total -= whole_nodes * self.size
            return True
        if num_gpu > self.free_total:
            return False
        for index, free in enumerate(self.free):
            if free >= num_gpu:
                self.empty -= free == self.size
                self.free[index] = free - num_gpu
                self.free_total -= num_gpu
                return True
        return False


class _Replay:
    def __init__(self, jobs: list[Job], cluster: Cluster, by_service: bool) -> None:
        self.jobs = jobs
        self.cluster = cluster
        self.outcomes = [Outcome(job) for job in jobs]
        self.remaining = [job.service_s for job in jobs]
        weights = [job.num_gpu if by_service else 1 for job in jobs]
        self.order: Callable[[int], tuple[float, int]] = lambda i: (self.remaining[i] * weights[i], i)
        self.region_no = {name: number for number, name in enumerate(cluster.regions)}
        self.waiting_or_running: list[int] = []
        self.running: list[int] = []
        self.now = 0.0

    def run(self) -> list[Outcome]:
        arrivals = sorted(range(len(self.jobs)), key=lambda i: (self.jobs[i].submit_s, i))
        arrived = 0
        while arrived < len(arrivals) or self.waiting_or_running:
            next_arrival = self.jobs[arrivals[arrived]].submit_s if arrived < len(arrivals) else math.inf
            next_end = min((self.now + self.remaining[i] for i in self.running), default=math.inf)
            ended = self.advance(min(next_arrival, next_end))
            here = [i for i in self.waiting_or_running if i not in ended]
            while arrived < len(arrivals) and self.jobs[arrivals[arrived]].submit_s <= self.now:
                here.append(arrivals[arrived])
                arrived += 1
            self.waiting_or_running = sorted(here, key=self.order)
            self.place(ended)
        return self.outcomes

    def advance(self, until: float) -> set[int]:
        """Let time pass; the running jobs progress, less their overhead, or end."""
        passed = until - self.now
        ended = {i for i in self.running if self.now + self.remaining[i] <= until + SAME_INSTANT_S}
        for i in self.running:
            self.outcomes[i].held_s += passed
            if i in ended:
                self.outcomes[i].end_s = until
            else:
                self.remaining[i] -= max(0.0, passed - self.jobs[i].overhead_s)
        self.now = until
        return ended

    def place(self, ended: set[int]) -> None:
        """Place everything afresh, in order."""
        regions = [_Region(self.cluster) for _ in self.cluster.regions]
        before, self.running = self.running, []
        for i in self.waiting_or_running:
            if self.put(self.jobs[i], regions):
                self.running.append(i)
        kept = set(self.running)
        for i in before:
            if i not in kept and i not in ended:
                self.outcomes[i].preemptions += 1

    def put(self, job: Job, regions: list[_Region]) -> bool:
        """The home region first, then the one with most GPUs free."""
        whole_nodes = self.cluster.nodes_for(job.num_gpu)
        home = regions[self.region_no.get(job.home_region, 0)]
        if home.put(job.num_gpu, whole_nodes):
            return True
        others = sorted((r for r in regions if r is not home), key=lambda region: -region.free_total)
        return any(region.put(job.num_gpu, whole_nodes) for region in others)


def replay(jobs: list[Job], cluster: Cluster, by_service: bool) -> list[Outcome]:
    """SRSF (``by_service``) or SRTF; one outcome for each job, in the order given."""
    return _Replay(jobs, cluster, by_service).run()
