"""What jobs may use which data: questions to the register, as it is now."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.domain.classification import Classification
from scheduler.domain.errors import FailedPrecondition, InvalidArgument
from scheduler.domain.spec import JobSpec
from scheduler.governance.data import Action, DataSet
from scheduler.governance.decision import PLACE_CODES, Code, Decision, Place, Reason, Use
from scheduler.planning.fit import NO_POOL_POLICY, pool_allowed, region_allowed
from scheduler.planning.types import PoolKey
from scheduler.service.state import State


def check_granted(state: State, spec: JobSpec, field: str, granted: set[tuple[object, ...]]) -> None:
    """Refuse a job that names data it may not use. ``granted``: what the same call has been granted; added to.

    ``InvalidArgument`` (DATA_SET_NOT_FOUND) for what there is not, or what its institution may not know of;
    ``FailedPrecondition`` (DATA_NOT_GRANTED) with everything else that stands against it.
    """
    asked = (spec.institution, spec.project, spec.purpose, spec.data_sets, spec.shape, spec.max_runtime_ms)
    if not spec.data_sets or asked in granted:
        return
    for number, name in enumerate(spec.data_sets):
        if not is_known(state, spec.institution, name):
            raise InvalidArgument(
                f'There is no data set "{name}"; `suanli data list` shows those you may know of.',
                reason="DATA_SET_NOT_FOUND",
                field=f"{field}.data_sets[{number}]",
            )
    decision, _ = access(state, spec)
    if decision.reasons:
        raise FailedPrecondition(
            f"The data is not granted. {decision.text}",
            reason="DATA_NOT_GRANTED",
            field=f"{field}.data_sets",
            metadata={"reasons": ",".join(f"{each.data_set}:{each.code}" for each in decision.reasons)},
        )
    granted.add(asked)


def is_known(state: State, institution: str, name: str) -> bool:
    """Whether an institution may name this data set: registered ones it may know of, and those that the policy alone names."""
    register = state.governance.register
    data_set = register.resolve(name)
    return register.knows(institution, data_set) if data_set is not None else _only_in_policy(state, name)


def _only_in_policy(state: State, name: str) -> bool:
    return name in state.base_policy.data_sets and not state.governance.register.versions(name.partition("@")[0])


def access(state: State, spec: JobSpec) -> tuple[Decision, list[PoolKey]]:
    """Whether a job may start now, and in which pools of those that it may run in.

    Where every such pool has something against it, that is among the reasons.
    """
    now = state.now()
    use = use_of(state, spec, now, now + spec.max_runtime_ms)
    use = use._replace(data_sets=tuple(name for name in use.data_sets if is_known(state, spec.institution, name)))
    decision = state.governance.register.decide(use)
    unknown = [
        Reason(Code.UNKNOWN, name, f'There is no data set "{name}".')
        for name in spec.data_sets
        if not is_known(state, spec.institution, name)
    ]
    decision = Decision((*unknown, *decision.reasons), decision.grants)
    shape = spec.shape
    places = {
        pool: place_of(state, pool)
        for pool in state.pools
        if region_allowed(pool.region, shape) and pool_allowed(pool, shape)
    }
    against = {pool: _of_place(state, use, place) for pool, place in places.items()}
    if not places:
        # Nothing is known of these regions but their names.
        against = {
            PoolKey(region, ""): _of_place(state, use, Place(region, Classification.SENSITIVE))
            for region in shape.required_regions
        }
    pools = sorted(pool for pool in places if not against[pool])
    if against and not pools and all(against.values()):
        found = {(each.code, each.data_set): each for reasons in against.values() for each in reasons}
        decision = Decision((*decision.reasons, *found.values()), decision.grants)
    return decision, pools


def _of_place(state: State, use: Use, place: Place) -> list[Reason]:
    return [each for each in state.governance.register.decide(use, place).reasons if each.code in PLACE_CODES]


def use_of(state: State, spec: JobSpec, start_ms: int, end_ms: int, action: Action = Action.READ) -> Use:
    """What a job would do with the data that is registered."""
    names = tuple(name for name in spec.data_sets if not _only_in_policy(state, name))
    return Use(spec.institution, spec.project, spec.purpose, names, start_ms, end_ms, action)


def place_of(state: State, pool: PoolKey, nodes: Iterable[str] | None = None) -> Place:
    """A pool as data is concerned, or some of its nodes by their ids, all of them together."""
    if nodes is None:
        known = state.pools.get(pool, {}).values()
        isolated = not known or any(node.isolated for node in known)
    else:
        isolated = all(state.nodes[pool.region, node].view.isolated for node in nodes)
    return Place(pool.region, state.policy.pools.get(str(pool), NO_POOL_POLICY).trust, isolated)


# --- outputs ------------------------------------------------------------------------------------------------------------


def inputs_of(state: State, spec: JobSpec, from_ms: int, to_ms: int) -> list[DataSet]:
    """The registered data that a job may have read between two instants."""
    register = state.governance.register
    found = [each for name in spec.data_sets for each in register.meant(name, from_ms, to_ms)]
    return list({each.reference: each for each in found}.values())


def not_exportable(state: State, spec: JobSpec, inputs: Iterable[DataSet]) -> list[DataSet]:
    """Those sensitive inputs for which no live grant allows to take results out."""
    now = state.now()
    use = use_of(state, spec, now, now, Action.EXPORT)
    return [
        each
        for each in inputs
        if each.classification is Classification.SENSITIVE
        and not state.governance.register.decide(use._replace(data_sets=(each.reference,))).allowed
    ]


def highest(inputs: Iterable[DataSet]) -> Classification | None:
    """The classification that outputs inherit; None when nothing registered was read."""
    return max((each.classification for each in inputs), default=None)
