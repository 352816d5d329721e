"""What the planner knows of nodes and running attempts, carried from round to round."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.fit import SiteKey, site_of
from scheduler.planning.mix import NodeKind
from scheduler.planning.scoring import Scorer
from scheduler.planning.sites import Site
from scheduler.planning.types import NodeView, PoolKey, RunningView, Snapshot

NodeId = tuple[str, str]
"""(region, node id)"""


class Board:
    """The sites with their nodes, and what runs where.

    ``structure`` rises when sites or the fixed properties of nodes change, ``capacity_version`` also when a node starts or stops to
    take work or a region comes or goes.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.sites: list[Site] = []
        self.structure = 0
        self.capacity_version = 0
        self.round_no = 0
        self.capacity = ZERO
        self.pool_capacity: dict[PoolKey, Resources] = {}
        self.running: dict[int, RunningView] = {}
        self.evictable: dict[tuple[str, SiteKey], dict[PriorityClass, dict[int, RunningView]]] = {}
        """Preemptible attempts that are not being stopped, by institution and site, then by class."""
        self.leaving: dict[str, dict[int, RunningView]] = {}
        """Attempts that are being stopped, by institution."""
        self._where: dict[NodeId, Site] = {}
        self._online: frozenset[str] | None = None
        """The regions known to be connected; None: what is in service has to be counted anew."""
        self._touched: set[Site] = set()

    # --- following the snapshot ---------------------------------------------------------------------------------------

    def begin(self, snapshot: Snapshot) -> None:
        """Start a round: become what the snapshot says."""
        self.round_no += 1
        changes = snapshot.changes
        structure = self.structure
        if changes is None or not self.sites:
            self._see_all_nodes(snapshot)
        else:
            self._see_nodes(snapshot, changes.nodes)
        for site in self.sites:
            site.begin()
        if self.structure != structure or changes is None:
            self._see_running(snapshot, None, anew=self.structure != structure)
        else:
            self._see_running(snapshot, changes.running, anew=False)
        self._see_regions(snapshot.online_regions)

    def _see_nodes(self, snapshot: Snapshot, nodes: Iterable[NodeId]) -> None:
        for node in nodes:
            site = self._where.get(node)
            view = snapshot.pools.get(site.key.pool_key, {}).get(node[1]) if site else None
            if site is None or view is None or site_of(view) != site.key or not site.is_same_node(view):
                self._see_all_nodes(snapshot)
                return
        for node in nodes:
            site = self._where[node]
            number = site.number[node[1]]
            in_service = site.in_service[number]
            site.refresh(number, snapshot.pools[site.key.pool_key][node[1]])
            if site.in_service[number] != in_service:
                self._online = None

    def _see_all_nodes(self, snapshot: Snapshot) -> None:
        grouped: dict[SiteKey, dict[str, NodeView]] = {}
        for nodes in snapshot.pools.values():
            for view in nodes.values():
                grouped.setdefault(site_of(view), {})[view.node_id] = view
        known = {site.key: site for site in self.sites}
        self.sites = []
        changed = len(known) != len(grouped)
        for key in sorted(grouped):
            views = grouped[key]
            site = known.get(key)
            if site is None or len(views) != len(site.ids) or not all(map(site.is_same_node, views.values())):
                site = Site(key, views, self.scorer)
                changed = True
            else:
                for node_id, view in views.items():
                    site.refresh(site.number[node_id], view)
            self.sites.append(site)
        self._online = None
        if changed:
            self.structure += 1
            self._tell_scorer()
            self._where = {(site.key.region, node_id): site for site in self.sites for node_id in site.ids}

    def _tell_scorer(self) -> None:
        views = [view for site in self.sites for view in site.views]
        most = [max((view.capacity[resource] for view in views), default=0) for resource in range(len(ZERO))]
        kinds = [NodeKind(site.key.accelerator, site.key.has_gpus) for site in self.sites]
        self.scorer.see_fleet(kinds, Resources(*most), max((len(view.gpu_free) for view in views), default=0))

    def _see_running(self, snapshot: Snapshot, launches: Iterable[int] | None, *, anew: bool) -> None:
        if anew:
            for site in self.sites:
                site.counts[:] = 0
            self.running.clear()
            self.evictable.clear()
            self.leaving.clear()
        if launches is None:
            launches = [*snapshot.running, *(seq for seq in self.running if seq not in snapshot.running)]
        for launch_seq in launches:
            before, after = self.running.get(launch_seq), snapshot.running.get(launch_seq)
            if before is after:
                continue
            if before is not None:
                self._forget(before)
            if after is not None:
                self._expect(after)

    def _expect(self, running: RunningView) -> None:
        self.running[running.launch_seq] = running
        if running.stopped_by_ms:
            self.leaving.setdefault(running.group.institution, {})[running.launch_seq] = running
        for site in self._sites_of(running):
            site.expect_release(running, end_at_latest_ms(running))
            if running.group.preemptible and not running.stopped_by_ms:
                by_class = self.evictable.setdefault((running.group.institution, site.key), {})
                by_class.setdefault(running.group.priority, {})[running.launch_seq] = running

    def _forget(self, running: RunningView) -> None:
        del self.running[running.launch_seq]
        group = running.group
        self.leaving.get(group.institution, {}).pop(running.launch_seq, None)
        for site in self._sites_of(running):
            site.forget_release(running)
            by_class = self.evictable.get((group.institution, site.key), {})
            of_class = by_class.get(group.priority, {})
            if of_class.pop(running.launch_seq, None) is not None and not of_class:
                del by_class[group.priority]
                if not by_class:
                    del self.evictable[group.institution, site.key]

    def _sites_of(self, running: RunningView) -> list[Site]:
        found = dict.fromkeys(self._where.get((running.region, replica.node_id)) for replica in running.replicas)
        return [site for site in found if site is not None]

    def site_of(self, region: str, node_id: str) -> Site | None:
        """The site a node belongs to."""
        return self._where.get((region, node_id))

    def _see_regions(self, online: frozenset[str]) -> None:
        if online == self._online:
            return
        self._online = online
        self.capacity_version += 1
        self.pool_capacity = {}
        self.capacity = ZERO
        for site in self.sites:
            site.online = site.key.region in online
            if site.online:
                total = Resources(*(int(each) for each in site.capacity[site.in_service].sum(axis=0)))
                before = self.pool_capacity.get(site.key.pool_key, ZERO)
                self.pool_capacity[site.key.pool_key] = before.plus(total)
                self.capacity = self.capacity.plus(total)


def end_at_latest_ms(running: RunningView) -> int:
    """When an attempt has given back what it holds, whatever it does."""
    return running.stopped_by_ms or running.limit_end_ms + running.grace_ms
