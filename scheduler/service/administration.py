"""The administrative use cases of the live server; ``ControlPlane`` inherits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from scheduler.domain.errors import NotFound
from scheduler.domain.records import (
    ApiKeyRecord,
    InstitutionRecord,
    PolicyRecord,
    PriceListRecord,
    ProjectRecord,
    QuotaRecord,
    UserRecord,
)
from scheduler.domain.resources import ZERO, Resources
from scheduler.planning.types import NodeView, PoolKey
from scheduler.service import policies, prices, tenants
from scheduler.service.contract import (
    Gauges,
    NodeStatus,
    PolicyDraft,
    PolicyPut,
    PoolStatus,
    PriceListDraft,
    PriceListPut,
    QuotaStatus,
    RegionStatus,
)
from scheduler.service.engine import Engine
from scheduler.service.model import Node, Region
from scheduler.service.people import NO_LIMITS, KeyLimits
from scheduler.service.ports import Store
from scheduler.service.stored_quota import storage_of, stored_bytes

T = TypeVar("T")


class Administration:
    """Tenants, keys, quotas, policies, price lists, regions and nodes. Reads answer from memory, after everything so far is durable."""

    engine: Engine
    _store: Store

    async def _change(self, work: Callable[[], T]) -> T:
        """Do a step in memory and wait until it is durable."""
        raise NotImplementedError

    async def _settled(self, work: Callable[[], T]) -> T:
        """Read from the store what is there once everything so far is durable."""
        raise NotImplementedError

    async def put_institution(self, record: InstitutionRecord, actor: str) -> InstitutionRecord:
        """See ``Service``."""
        return await self._change(lambda: tenants.put_institution(self.engine.state, record))

    async def list_institutions(self) -> list[InstitutionRecord]:
        """See ``Service``."""
        found = self.engine.state.institutions
        return await self._change(lambda: [found[key] for key in sorted(found)])

    async def put_project(self, record: ProjectRecord, actor: str) -> ProjectRecord:
        """See ``Service``."""
        return await self._change(lambda: tenants.put_project(self.engine.state, record))

    async def list_projects(self, institution: str) -> list[ProjectRecord]:
        """See ``Service``."""
        found = self.engine.state.projects
        return await self._change(
            lambda: [found[key] for key in sorted(found) if not institution or key[0] == institution]
        )

    async def put_user(self, record: UserRecord, actor: str) -> UserRecord:
        """See ``Service``."""
        return await self._change(lambda: tenants.put_user(self.engine.state, record))

    async def list_users(self, institution: str) -> list[UserRecord]:
        """See ``Service``."""
        found = self.engine.state.users
        return await self._change(
            lambda: [found[u] for u in sorted(found) if not institution or found[u].institution == institution]
        )

    def find_user(self, user: str) -> UserRecord | None:
        """See ``Service``."""
        return self.engine.state.users.get(user)

    async def provision_user(self, record: UserRecord, actor: str) -> UserRecord:
        """See ``Service``."""
        users = self.engine.state.users
        return await self._change(lambda: users.get(record.user) or tenants.put_user(self.engine.state, record))

    async def create_api_key(
        self, user: str, title: str, expire_ms: int, actor: str, limits: KeyLimits = NO_LIMITS
    ) -> tuple[ApiKeyRecord, str]:
        """See ``Service``."""
        return await self._change(lambda: tenants.create_api_key(self.engine.state, user, title, expire_ms, limits))

    async def adopt_api_key(self, user: str, title: str, key: str) -> ApiKeyRecord:
        """See ``Service``."""
        return await self._change(lambda: tenants.adopt_api_key(self.engine.state, user, title, key))

    async def list_api_keys(self, institution: str, user: str) -> list[ApiKeyRecord]:
        """See ``Service``."""
        state = self.engine.state
        keys = [
            k._replace(last_used_ms=state.key_uses.get(k.prefix, k.last_used_ms))
            for k in sorted(state.api_keys.values())
            if (not institution or k.institution == institution) and (not user or k.user == user)
        ]
        return await self._change(lambda: keys)

    async def revoke_api_key(self, prefix: str, actor: str) -> ApiKeyRecord:
        """See ``Service``."""
        return await self._change(lambda: tenants.revoke_api_key(self.engine.state, prefix))

    def authenticate(self, key: str) -> ApiKeyRecord:
        """See ``Service``."""
        return tenants.authenticate(self.engine.state, key)

    def led_by(self, user: str) -> frozenset[str]:
        """See ``Service``."""
        record = self.engine.state.users.get(user)
        return record.leads if record else frozenset()

    async def set_quota(self, record: QuotaRecord, actor: str) -> QuotaRecord:
        """See ``Service``."""
        return await self._change(lambda: tenants.set_quota(self.engine.state, record))

    async def list_quotas(self, institution: str) -> list[QuotaStatus]:
        """See ``Service``."""
        return await self._change(lambda: self._quotas(institution))

    async def get_policy(self, version: int) -> PolicyRecord:
        """See ``Service``."""
        if not version:
            return await self._change(lambda: policies.active_policy(self.engine.state))
        found = await self._settled(lambda: self._store.find_policy(version))
        if found is None:
            raise NotFound(
                f"There is no version {version} of the policy; `suanli policy history` lists them.",
                reason="POLICY_NOT_FOUND",
                field="version",
            )
        return found

    async def put_policy(self, draft: PolicyDraft, actor: str) -> PolicyPut:
        """See ``Service``."""

        def put() -> PolicyPut:
            record = policies.put_policy(self.engine.state, draft, actor)
            return PolicyPut(record, policies.warnings_of(self.engine.state, draft))

        return await self._change(put)

    async def list_policies(self, before_version: int, limit: int) -> list[PolicyRecord]:
        """See ``Service``."""
        return await self._settled(lambda: self._store.list_policies(before_version, limit))

    async def get_price_list(self, version: int) -> PriceListRecord:
        """See ``Service``."""
        state = self.engine.state
        in_force = state.metering.prices.at(state.now())
        number = version or (in_force.version if in_force is not None else 0)
        found = await self._settled(lambda: self._store.find_price_list(number))
        if found is not None:
            return found
        which = f"There is no version {version} of the price list" if version else "No price list is in force"
        raise NotFound(f"{which}; `suanli price list` shows them.", reason="PRICE_LIST_NOT_FOUND", field="version")

    async def put_price_list(self, draft: PriceListDraft, actor: str) -> PriceListPut:
        """See ``Service``."""
        return await self._change(lambda: prices.put_price_list(self.engine.state, draft, actor))

    async def list_price_lists(self, before_version: int, limit: int) -> list[PriceListRecord]:
        """See ``Service``."""
        return await self._change(lambda: prices.list_price_lists(self.engine.state, before_version, limit))

    async def create_enrolment_token(self, region: str, ttl_ms: int, actor: str) -> tuple[str, int]:
        """See ``Service``."""
        return await self._change(lambda: tenants.create_enrolment_token(self.engine.state, region, ttl_ms))

    async def enrol_agent(self, token: str, region: str, agent_name: str) -> str:
        """See ``Service``."""
        return await self._change(lambda: tenants.enrol_agent(self.engine.state, token, region, agent_name))

    async def list_regions(self) -> list[RegionStatus]:
        """See ``Service``."""
        return await self._change(self._regions)

    async def list_pools(self, region: str) -> list[PoolStatus]:
        """See ``Service``."""
        return await self._change(lambda: [p for p in self._pools() if not region or p.key.region == region])

    async def list_nodes(self, region: str, pool: str) -> list[NodeStatus]:
        """See ``Service``."""
        return await self._change(lambda: self._nodes(region, pool))

    async def drain_node(self, region: str, node: str, draining: bool, evict: bool, actor: str) -> NodeStatus:
        """See ``Service``."""

        def drain() -> NodeStatus:
            found = tenants.find_node(self.engine.state, region, node)
            tenants.drain_node(self.engine.state, found, draining, evict, actor)
            return self._node(found)

        return await self._change(drain)

    def gauges(self) -> Gauges:
        """See ``Service``."""
        state = self.engine.state
        return Gauges(
            jobs={key: count for key, count in state.job_counts.items() if count},
            regions=self._regions(),
            pools=self._pools(),
            quotas=self._quotas(""),
            leader_epoch=state.epoch,
            ledger_sequence=state.counters.ledger_seq,
            event_sequence=state.counters.event_seq,
            policy_version=state.policy_record.version if state.policy_record else 0,
            predictions=state.predictor.accuracy(),
            audit_sequence=state.audit.sequence,
            audit_verified=state.audit.verified,
            storage=storage_of(state, ""),
        )

    def _quotas(self, institution: str) -> list[QuotaStatus]:
        state = self.engine.state
        return [
            QuotaStatus(state.quotas[key], state.tenants[key].in_use, stored_bytes(state, *key))
            for key in sorted(state.quotas)
            if not institution or key[0] == institution
        ]

    def _regions(self) -> list[RegionStatus]:
        by_region: dict[str, list[NodeView]] = {}
        for (region, _), node in self.engine.state.nodes.items():
            by_region.setdefault(region, []).append(node.view)
        regions = self.engine.state.regions
        return [_region(regions[key], by_region.get(key, [])) for key in sorted(regions)]

    def _pools(self) -> list[PoolStatus]:
        pools = self.engine.state.pools
        return [_pool(key, list(pools[key].values())) for key in sorted(pools)]

    def _nodes(self, region: str, pool: str) -> list[NodeStatus]:
        nodes = [
            node
            for node in self.engine.state.nodes.values()
            if (not region or node.view.region == region) and (not pool or node.view.pool == pool)
        ]
        nodes.sort(key=lambda node: (node.view.region, node.view.pool, node.view.name, node.view.node_id))
        return [self._node(node) for node in nodes]

    def _node(self, node: Node) -> NodeStatus:
        region = self.engine.state.regions[node.view.region]
        view = node.view
        return NodeStatus(view if region.online else _unreachable(view), len(node.attempts))


def _unreachable(view: NodeView) -> NodeView:
    """A node of a region nobody hears from is not shown as up."""
    return replace(view, up=False)


def _amounts(nodes: list[NodeView]) -> tuple[Resources, Resources]:
    """The capacity of these nodes and what is held on them."""
    capacity = free = ZERO
    for view in nodes:
        capacity, free = capacity.plus(view.capacity), free.plus(view.free)
    return capacity, capacity.minus(free)


def _region(region: Region, nodes: list[NodeView]) -> RegionStatus:
    capacity, allocated = _amounts(nodes)
    return RegionStatus(region.record(), region.online, len(nodes), capacity, allocated, len(region.attempts))


def _pool(key: PoolKey, nodes: list[NodeView]) -> PoolStatus:
    capacity, allocated = _amounts(nodes)
    draining = sum(view.draining for view in nodes)
    isolated = sum(view.isolated for view in nodes)
    accelerator = next((view.accelerator for view in nodes if view.accelerator), "")
    return PoolStatus(key, accelerator, len(nodes), draining, isolated, capacity, allocated)
