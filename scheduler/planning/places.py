"""Where the jobs of one shape may go, and where they go next."""

from __future__ import annotations

from itertools import groupby

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.spec import Shape
from scheduler.planning.fit import Rank, SiteKey, labels_match, rank, replicas_when_empty, site_allowed
from scheduler.planning.sites import Left, Ranking, Site


class Places:
    """The sites a shape may use, in tiers of equal preference, for institutions of one home region.

    A site without room is forgotten for the round: nothing is released while a round goes on, so this is exact.
    """

    def __init__(self, sites: list[Site], shape: Shape, home_region: str) -> None:
        self.shape = shape
        allowed = [site for site in sites if site_allowed(site.key, shape)]
        ranked = sorted((rank(site.key, shape, home_region), site.key, site) for site in allowed)
        self._tiers: list[tuple[Rank, list[Site]]] = [
            (key, [site for _, _, site in tier]) for key, tier in groupby(ranked, key=lambda each: each[0])
        ]
        self._rankings: list[list[Ranking]] | None = None
        self._usable_empty: list[Site] | None = None

    def place(self) -> tuple[SiteKey, tuple[ReplicaPlacement, ...]] | None:
        """Place one job of the shape and count it as placed, or answer None: it fits nowhere for the rest of the round."""
        if self._rankings is None:
            self._rankings = [[site.ranking(self.shape) for site in tier if not site.closed] for _, tier in self._tiers]
        rankings = self._rankings
        while rankings:
            found = self._place_in(rankings[0])
            if found is not None:
                return found
            del rankings[0]
        return None

    def _place_in(self, tier: list[Ranking]) -> tuple[SiteKey, tuple[ReplicaPlacement, ...]] | None:
        """Try the sites of a tier, the one with the tightest node first; drop those without room."""
        while tier:
            chosen = tier[0] if len(tier) == 1 else _tightest(tier)
            placed = chosen.place(self.shape.replicas)
            if placed is not None:
                return chosen.site.key, placed
            tier.remove(chosen)
        return None

    def usable_when_empty(self) -> list[Site]:
        """The sites whose schedulable nodes could hold the job if nothing else stood on them.

        GPU nodes count for a job without GPUs only when no site without GPUs could.
        """
        if self._usable_empty is None:
            holds = [(key, site) for key, tier in self._tiers for site in tier if self._holds_empty(site)]
            last_resort = min((key.spare_gpus for key, _ in holds), default=0)
            self._usable_empty = [site for key, site in holds if key.spare_gpus == last_resort]
        return self._usable_empty

    def _holds_empty(self, site: Site) -> bool:
        missing = self.shape.replicas
        for node in site.nodes:
            if labels_match(node, self.shape):
                missing -= replicas_when_empty(self.shape.request, node)
                if missing <= 0:
                    return True
        return False


def _tightest(tier: list[Ranking]) -> Ranking:
    """The ranking whose best node has the least left; ties go to the first node id, then to the first site."""
    best: tuple[Left, str, int] | None = None
    for number, ranking in enumerate(tier):
        left = ranking.best()
        if left is not None:
            candidate = (left._replace(node=0), ranking.site.nodes[left.node].node_id, number)
            if best is None or candidate < best:
                best = candidate
    return tier[best[2]] if best is not None else tier[0]
