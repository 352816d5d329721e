"""Whatever the snapshot: the invariants hold, and explanations agree with the plan."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.feasible import could_ever_fit, places_for
from scheduler.planning.plan import plan
from scheduler.planning.policy import Policy
from scheduler.planning.types import UNLIMITED, PoolKey, Snapshot, TenantView
from tests.unit.planning.builders import ListQueue, World, node, shape

REGIONS = ("east", "west")
TYPES = ("", "A100", "H20")
NOW_MS = 1000


@st.composite
def nodes(draw, number: int):
    region = draw(st.sampled_from(REGIONS))
    gpus = draw(st.sampled_from((0, 0, 1, 2, 4)))
    kind = draw(st.sampled_from(TYPES)) if gpus else ""
    pool = (
        draw(st.sampled_from((f"gpu-{kind.lower() or 'any'}", "mixed")))
        if gpus
        else draw(st.sampled_from(("cpu", "mixed")))
    )
    view = node(f"n{number}", f"{region}/{pool}", draw(st.sampled_from((4, 8, 16))) * 1000, 8192, gpus, kind)
    gpu_free = tuple(draw(st.sampled_from((0, 250, 500, GPU_UNIT, GPU_UNIT))) for _ in range(gpus))
    free = Resources(draw(st.integers(0, view.capacity.cpu_milli)), draw(st.integers(0, 8192)), sum(gpu_free))
    labels = (("zone", draw(st.sampled_from("ab"))),)
    return replace(
        view,
        free=free,
        gpu_free=gpu_free,
        labels=labels,
        up=draw(st.integers(0, 9)) > 0,
        draining=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def shapes(draw):
    return shape(
        draw(st.sampled_from((500, 1000, 3000))),
        draw(st.sampled_from((256, 1024, 4096))),
        draw(st.sampled_from((0, 0, 250, 400, 1000, 2000))),
        draw(st.sampled_from((1, 1, 1, 2, 5))),
        accelerators=draw(st.sampled_from(((), (), ("A100",), ("H20", "A100")))),
        preferred_regions=draw(st.sampled_from(((), (), ("west",)))),
        required_regions=draw(st.sampled_from(((), (), ("east",)))),
        pools=draw(st.sampled_from(((), (), ("cpu", "east/mixed", "gpu-any")))),
        node_selector=draw(st.sampled_from(((), (), (("zone", "a"),)))),
    )


def tenants():
    quotas = st.one_of(st.just(UNLIMITED), st.builds(Resources, st.just(9000), st.just(20_000), st.just(2000)))
    held = st.builds(Resources, st.integers(0, 8000), st.integers(0, 8000), st.sampled_from((0, 0, 1000)))
    return st.builds(TenantView, st.integers(1, 5), held, quotas, st.sampled_from(("", *REGIONS)))


@st.composite
def worlds(draw):
    made = World([draw(nodes(number)) for number in range(draw(st.integers(0, 7)))])
    wanted = draw(st.lists(shapes(), min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 6))):
        made.add(
            draw(st.sampled_from("ab")),
            draw(st.sampled_from(wanted)),
            draw(st.integers(1, 4)),
            project=draw(st.sampled_from("pq")),
            priority=draw(st.sampled_from(PriorityClass)),
            submit_ms=draw(st.integers(0, NOW_MS)),
            tasks=draw(st.sampled_from((1, 1, 3))),
        )
    made.institutions = {name: draw(tenants()) for name in made.institutions}
    made.projects = {key: draw(tenants()) for key in made.projects}
    made.offline = draw(st.sampled_from((frozenset(), frozenset(), frozenset({"west"}))))
    return made


policies = st.builds(
    Policy, max_starts_per_round=st.sampled_from((1, 3, 512)), max_passed_over_ms=st.sampled_from((100, 500, 2000))
)


@settings(max_examples=150, deadline=None)
@given(worlds(), policies)
def test_capacity_gangs_and_quotas_hold(world, policy):
    key_of = {job.job_no: key for key, jobs in world.lines.items() for job in jobs}
    made = plan(world.snapshot(), policy, NOW_MS)
    assert len(made.starts) <= policy.max_starts_per_round
    for start in made.starts:
        key = key_of[start.job_no]
        world.start(start)  # asserts capacity, per GPU too, and that the gang is whole
        held = (world.institutions[key.institution], world.projects[key.institution, key.project])
        for view in held:
            for used, more, limit in zip(view.in_use, key.shape.total, view.quota, strict=True):
                assert not more or used <= limit
    if not made.truncated:
        later = plan(world.snapshot(), policy, NOW_MS)
        if policy.max_passed_over_ms > NOW_MS:
            assert later.starts == (), "a round that ended by itself left nothing that could start"


@settings(max_examples=100, deadline=None)
@given(worlds(), policies, st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_stored_does_not_matter(world, policy, random):
    def shuffled(mapping):
        items = list(mapping.items())
        random.shuffle(items)
        return dict(items)

    one = world.snapshot()
    pools = shuffled({pool: shuffled(members) for pool, members in one.pools.items()})
    queue = ListQueue(shuffled(world.lines))
    other = Snapshot(pools, queue, shuffled(one.institutions), shuffled(one.projects), one.online_regions)
    assert plan(one, policy, NOW_MS) == plan(other, policy, NOW_MS)


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_what_is_refused_at_submit_never_starts_and_what_is_not_starts_when_all_is_empty(world):
    world.nodes = [
        replace(view, free=view.capacity, gpu_free=(GPU_UNIT,) * len(view.gpu_free), up=True, draining=False)
        for view in world.nodes
    ]
    world.offline = frozenset()
    world.institutions = {name: TenantView(1) for name in world.institutions}
    world.projects = {key: TenantView(1) for key in world.projects}
    lines = world.lines
    for key, jobs in lines.items():
        world.lines = {key: jobs[:1]}
        starts = plan(world.snapshot(), Policy(), NOW_MS).starts
        refused = could_ever_fit(world.snapshot().pools, key.shape) is not None
        assert bool(starts) == (not refused and bool(world.nodes))
        # Where it is started is among the places it is said to fit in, and there are such places if and only if it starts.
        places = places_for(world.snapshot().pools, key.shape)
        assert bool(places) == bool(starts)
        assert {(PoolKey(start.region, start.pool), start.accelerator) for start in starts} <= set(places)
