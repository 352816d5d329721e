"""Plays rounds of planning: starts and evictions are made true, attempts end exactly at their limits, those stopped queue again."""

from __future__ import annotations

from dataclasses import replace

from scheduler.planning.board import end_at_latest_ms
from scheduler.planning.plan import plan
from scheduler.planning.policy import Policy
from scheduler.planning.types import Eviction, GroupKey, PendingJob, Plan
from tests.unit.planning.builders import World


class Play:
    """``endless``: attempts run until they are stopped."""

    def __init__(self, world: World, policy: Policy, *, endless: bool = False) -> None:
        self.world, self.policy, self.endless = world, policy, endless
        self.evictions: list[Eviction] = []
        self.started_ms: dict[int, int] = {}
        self.known: dict[int, tuple[GroupKey, PendingJob]] = {}

    def until(self, now_ms: int) -> None:
        """Let time pass: who has to end by then ends."""
        world = self.world
        world.now_ms = now_ms
        for launch_seq, running in list(world.running.items()):
            if running.stopped_by_ms:
                if running.stopped_by_ms <= now_ms:
                    world.end(launch_seq)
                    if running.job_no in self.known:
                        key, job = self.known[running.job_no]
                        world.lines.setdefault(key, []).append(job._replace(tasks=1))
            elif not self.endless and end_at_latest_ms(running) <= now_ms:
                world.end(launch_seq)

    def round(self) -> Plan:
        """Plan, and make the plan true."""
        world = self.world
        self.known |= {job.job_no: (key, job) for key, jobs in world.lines.items() for job in jobs}
        made = plan(world.snapshot(), self.policy, world.now_ms)
        for each in made.evictions:
            running = world.running[each.launch_seq]
            stopped_by_ms = max(1, world.now_ms + each.grace_ms)
            world.running[each.launch_seq] = replace(running, stopped_by_ms=stopped_by_ms, for_job_no=each.for_job_no)
            world.claims[each.for_job_no] = self.known[each.for_job_no][0]
        self.evictions += made.evictions
        for start in made.starts:
            self.started_ms[start.job_no] = world.now_ms
            world.start(start)
        return made

    def next_end_ms(self) -> int | None:
        """When the next attempt ends at the latest."""
        return min((end_at_latest_ms(each) for each in self.world.running.values()), default=None)
