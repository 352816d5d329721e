"""Which nodes may run jobs at all, and how: what the configuration asks for held against what each node can do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from workers.core_launch import pool_of
from workers.core_types import PoolRule
from workers.executor import types as ex
from workers.executor.isolation import ISOLATION_LABEL, LIMITS_LABEL, TRUSTED, Isolation, Isolations, Tier, tier_on

log = logging.getLogger("workers.agent")


class NodeIsolation:
    """Remembers the nodes. One that cannot have what its pool demands is refused: it is not reported, and gets no jobs."""

    def __init__(self, isolations: Isolations, rules: Sequence[PoolRule]) -> None:
        self._isolations = isolations
        self._rules = rules
        self._of: dict[str, Isolation] = {}
        self._refused: dict[str, str] = {}

    def admit(self, node: ex.NodeUp) -> ex.NodeUp | None:
        """Return the node with a label that names its tier, or None when it is refused; says so in the log."""
        pool = pool_of(node, self._rules)
        isolation = self._isolations.of(pool)
        pod_problem = node.pod_problems.get(isolation.pod, "it has not been tried")
        tier = tier_on(isolation, node.sandbox_problem, pod_problem)
        if tier is None:
            lacking = f"a sandbox, and it has none: {node.sandbox_problem}"
            if isolation.tier is Tier.POD:
                lacking = f"pods, and it cannot have them: {pod_problem}"
            self._of.pop(node.node_id, None)
            self._refused[node.node_id] = (
                f"node {node.name} is refused: jobs of pool {pool!r} must run in {lacking}. "
                "Mend that, or trust the pool's jobs with 'isolation: {tier: process}'."
            )
            log.error("%s", self._refused[node.node_id])
            return None
        if tier is Tier.PROCESS:
            why = node.sandbox_problem if isolation.tier is Tier.AUTO else "its pool's tier is 'process'"
            log.warning("node %s runs jobs WITHOUT A SANDBOX, for people who trust each other: %s", node.name, why)
        self._refused.pop(node.node_id, None)
        self._of[node.node_id] = isolation
        labels = {**node.labels, ISOLATION_LABEL: tier.value}
        if tier is Tier.SANDBOX:
            labels[LIMITS_LABEL] = kept = ",".join(node.limits) or "none"
            log.info(
                "node %s: limits of sandboxes that its kernel keeps: %s; the others are watched only", node.name, kept
            )
        return dataclasses.replace(node, labels=labels)

    def is_refused(self, node_id: str) -> bool:
        """Whether a node's events are none of ours."""
        return node_id in self._refused

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        self._of.pop(node_id, None)
        self._refused.pop(node_id, None)

    @property
    def refusal(self) -> str:
        """When nodes were refused and none is left, a sentence about one of them; else nothing."""
        return "" if self._of else next(iter(self._refused.values()), "")

    def isolate(self, node_id: str, launch: ex.Launch) -> ex.Launch:
        """Return the launch with what the node's pool declares now, which may be newer than the executor there."""
        return dataclasses.replace(launch, isolation=self._of.get(node_id, STRICTEST))


STRICTEST = dataclasses.replace(TRUSTED, tier=Tier.SANDBOX)
"""For a node that has just gone: nothing is started by mistake."""
