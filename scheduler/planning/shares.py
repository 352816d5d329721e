"""Dominant shares in exact integers, and quotas, over what a round has handed out so far.

A tenant's dominant share is the largest of its shares of the platform's CPU, memory and GPUs; fairness compares it divided
by the tenant's weight. All shares have the common denominator ``total_cpu x total_memory x total_gpu`` and all weights of
one level a common multiple, so the comparison is one of integers and never rounds.
"""

from __future__ import annotations

from math import lcm

from scheduler.domain.resources import Resources
from scheduler.planning.types import Snapshot, TenantView


class Scale:
    """Turns amounts into numerators of dominant shares.

    ``denominator`` belongs to every numerator; a resource nobody offers counts for nothing. With no capacity at all every
    share is 0.
    """

    def __init__(self, capacity: Resources) -> None:
        self.denominator = 1
        for amount in capacity:
            if amount > 0:
                self.denominator *= amount
        self.cpu, self.memory, self.gpu = (self.denominator // each if each > 0 else 0 for each in capacity)

    def numerator(self, held: Resources) -> int:
        """The dominant share of ``held``, times ``denominator``."""
        return max(held.cpu_milli * self.cpu, held.memory_mib * self.memory, held.gpu_milli * self.gpu)


class Account:
    """What one tenant holds in the course of a round. ``share`` is comparable within the accounts of one level."""

    __slots__ = ("_factor", "_scale", "in_use", "quota", "share", "view", "weight")

    def __init__(self, view: TenantView, scale: Scale, common_weight: int) -> None:
        self.view = view
        self.weight = max(1, view.weight)
        self.quota = view.quota
        self.in_use = view.in_use
        self._scale = scale
        self._factor = common_weight // self.weight
        self.share = self.share_of(self.in_use)

    def allows(self, more: Resources) -> bool:
        """Whether ``more`` can be added without going over the quota in any resource it has a part of."""
        used, quota = self.in_use, self.quota
        return (
            (not more.cpu_milli or used.cpu_milli + more.cpu_milli <= quota.cpu_milli)
            and (not more.memory_mib or used.memory_mib + more.memory_mib <= quota.memory_mib)
            and (not more.gpu_milli or used.gpu_milli + more.gpu_milli <= quota.gpu_milli)
        )

    def add(self, more: Resources) -> None:
        """Hold ``more`` from now on."""
        self.in_use = self.in_use.plus(more)
        self.share = self.share_of(self.in_use)

    def share_of(self, held: Resources) -> int:
        """The weighted share if the tenant held this."""
        return self._scale.numerator(held) * self._factor

    @property
    def numerator(self) -> int:
        """The unweighted dominant share, times the scale's denominator."""
        return self._scale.numerator(self.in_use)

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return not any(self.in_use)


class Accounts:
    """The accounts of all institutions and projects of a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.scale = Scale(schedulable_capacity(snapshot))
        common = lcm(*(max(1, view.weight) for view in snapshot.institutions.values()))
        self.institutions = {key: Account(view, self.scale, common) for key, view in snapshot.institutions.items()}
        weights: dict[str, int] = {}
        for (institution, _), view in snapshot.projects.items():
            weights[institution] = lcm(weights.get(institution, 1), max(1, view.weight))
        self.projects = {key: Account(view, self.scale, weights[key[0]]) for key, view in snapshot.projects.items()}

    def allow(self, institution: str, project: str, more: Resources) -> bool:
        """Whether neither quota would be exceeded."""
        return self.institutions[institution].allows(more) and self.projects[institution, project].allows(more)

    def add(self, institution: str, project: str, more: Resources) -> None:
        """Count a start."""
        self.institutions[institution].add(more)
        self.projects[institution, project].add(more)


def schedulable_capacity(snapshot: Snapshot) -> Resources:
    """The capacity of all nodes that work may be placed on."""
    cpu_milli = memory_mib = gpu_milli = 0
    for pool, nodes in snapshot.pools.items():
        if pool.region in snapshot.online_regions:
            for node in nodes.values():
                if node.up and not node.draining:
                    cpu, memory, gpu = node.capacity
                    cpu_milli += cpu
                    memory_mib += memory
                    gpu_milli += gpu
    return Resources(cpu_milli, memory_mib, gpu_milli)
