"""Whatever the snapshot: explanations agree with what the planner then does."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.explain import explain, explain_changed
from scheduler.planning.plan import Planner, plan
from scheduler.planning.policy import PRESETS, BackfillPolicy, DataSet, Guarantee, PoolPolicy
from scheduler.planning.types import UNLIMITED, Changes, Snapshot, TenantView
from scheduler.planning.what_if import Change, ChangedQueue, changed
from tests.unit.planning.builders import ListQueue, World, node, shape

UNCHANGED = Changes()
NOW_MS = 7_200_000
MINUTE_MS = 60_000


@st.composite
def shapes(draw):
    replicas = draw(st.sampled_from((1, 1, 1, 2, 4)))
    pack = draw(st.sampled_from(("", "", "zone", "node"))) if replicas > 1 else ""
    return shape(
        draw(st.sampled_from((500, 1000, 2000, 3000, 6000))),
        draw(st.sampled_from((64, 256, 4096))),
        draw(st.sampled_from((0, 0, 0, 250, 1000, 2000))),
        replicas,
        accelerators=draw(st.sampled_from(((), (), (), ("H20", "A100")))),
        required_regions=draw(st.sampled_from(((), (), (), ("east",)))),
        pools=draw(st.sampled_from(((), (), (), ("cpu", "east/mixed")))),
        node_selector=draw(st.sampled_from(((), (), (), (("zone", "a"),)))),
        data_sets=draw(st.sampled_from(((), (), (), ("census",)))),
        pack=pack,
        pack_required=bool(pack) and draw(st.booleans()),
    )


@st.composite
def nodes(draw, number: int):
    gpus = draw(st.sampled_from((0, 0, 0, 1, 2)))
    region = draw(st.sampled_from(("east", "east", "west")))
    pool = draw(st.sampled_from(("gpu", "mixed"))) if gpus else draw(st.sampled_from(("cpu", "cpu", "spot", "mixed")))
    return node(
        f"n{number}",
        f"{region}/{pool}",
        draw(st.sampled_from((4000, 8000))),
        8192,
        gpus,
        draw(st.sampled_from(("A100", "H20"))) if gpus else "",
        labels=(("zone", draw(st.sampled_from("ab"))),),
        up=draw(st.integers(0, 9)) > 0,
        draining=draw(st.integers(0, 9)) == 0,
    )


def add_jobs(draw, made: World, wanted, count: int) -> None:
    for _ in range(count):
        made.add(
            draw(st.sampled_from("abc")),
            draw(st.sampled_from(wanted)),
            draw(st.integers(1, 4)),
            project=draw(st.sampled_from("pq")),
            priority=draw(st.sampled_from((PriorityClass.NORMAL, PriorityClass.NORMAL, PriorityClass.HIGH))),
            preemptible=draw(st.booleans()),
            submit_ms=draw(st.integers(0, NOW_MS)),
            tasks=draw(st.sampled_from((1, 1, 3))),
            limit_ms=draw(st.sampled_from((10, 60, 600))) * MINUTE_MS,
            grace_ms=draw(st.sampled_from((0, MINUTE_MS))),
        )


@st.composite
def worlds(draw):
    """Some of the jobs run already, as the planner placed them; others have come since."""
    made = World([draw(nodes(number)) for number in range(draw(st.integers(1, 6)))])
    wanted = draw(st.lists(shapes(), min_size=1, max_size=4))
    add_jobs(draw, made, wanted, draw(st.integers(0, 4)))
    made.apply(plan(made.snapshot(), PRESETS["fifo"], 0))
    made.now_ms = NOW_MS
    made.lines = {key: jobs for key, jobs in made.lines.items() if jobs}
    add_jobs(draw, made, wanted, draw(st.integers(1, 4)))
    quotas = st.one_of(st.just(UNLIMITED), st.just(UNLIMITED), st.just(Resources(9000, 20_000, 2000)))
    made.institutions = {
        name: TenantView(draw(st.integers(1, 3)), view.in_use, draw(quotas), draw(st.sampled_from(("", "west"))))
        for name, view in made.institutions.items()
    }
    made.projects = {key: TenantView(1, view.in_use, draw(quotas)) for key, view in made.projects.items()}
    made.offline = draw(st.sampled_from((frozenset(), frozenset(), frozenset({"west"}))))
    return made


GUARANTEES = (
    Guarantee("a", "east/cpu", Resources(4000, 8192), borrowing=Resources(4000, 8192)),
    Guarantee("b", "east/cpu", Resources(4000, 8192), lending=Resources(2000, 4096)),
)
policies = st.builds(
    lambda preset, starts, overdue, guarantees, reservations: replace(
        PRESETS[preset],
        max_starts_per_round=starts,
        max_passed_over_ms=overdue,
        guarantees=guarantees,
        backfill=BackfillPolicy(reservations),
        pools={"east/spot": PoolPolicy(spot=True), "west/spot": PoolPolicy(spot=True)},
        data_sets={"census": DataSet(1, ("west",), ("west",))},
    ),
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from((2, 512)),
    st.sampled_from((MINUTE_MS, NOW_MS * 2)),
    st.sampled_from(((), (), GUARANTEES)),
    st.sampled_from((0, 1, 16)),
)


@settings(max_examples=200, deadline=None)
@given(worlds(), policies)
def test_explanations_agree_with_the_plan(world, policy):
    snapshot = world.snapshot()
    planned = plan(snapshot, policy, NOW_MS)
    starts = {start.job_no for start in planned.starts}
    planner = Planner()
    for key, jobs in world.lines.items():
        for job in jobs:
            told = explain(planner, snapshot, policy, NOW_MS, (key, job))
            assert (told.code == "NEXT") == (job.job_no in starts), told
            assert told.message
            assert told.message[0] != " "
            assert [reason.pool for reason in told.pools] == sorted(snapshot.pools)
            if told.code != "NEXT":
                assert told.blockers[0].code == told.code
                assert told.blockers[0].message in told.message
            if told.reservation is not None:
                assert told.reservation in planned.reservations
            fits = any(reason.code in ("FITS", "RESERVED") for reason in told.pools)
            if told.code in ("FIT", "SPOT", "DATA_RESIDENCY", "TOPOLOGY", "BORROWING"):
                assert not fits, told
            elif told.code not in ("QUOTA", "PREEMPTING"):
                assert fits, told


@settings(max_examples=200, deadline=None)
@given(worlds(), policies)
def test_explaining_leaves_the_planner_as_it_was(world, policy):
    snapshot = world.snapshot()
    planner = Planner()
    first = planner.plan(snapshot, policy, NOW_MS)
    for key, jobs in world.lines.items():
        explain(planner, replace(snapshot, changes=UNCHANGED), policy, NOW_MS, (key, jobs[0]))
        explain_changed(
            planner, replace(snapshot, changes=UNCHANGED), policy, NOW_MS, (key, jobs[0]), Change(cpu_milli=500)
        )
    assert planner.plan(replace(snapshot, changes=UNCHANGED), policy, NOW_MS) == first


@settings(max_examples=600, deadline=None)
@given(worlds(), policies)
def test_what_is_said_to_start_now_with_a_change_does_start_when_submitted_so(world, policy):
    snapshot = world.snapshot()
    planner = Planner()
    for key, jobs in world.lines.items():
        job = jobs[-1]
        told = explain(planner, snapshot, policy, NOW_MS, (key, job))
        for remedy in told.remedies:
            if remedy.now:
                assert remedy.change is not None
                supposed = _with(snapshot, policy, key, job, remedy.change)
                starts = {start.job_no for start in plan(supposed, policy, NOW_MS).starts}
                assert job.job_no in starts, remedy
                answer = explain_changed(planner, snapshot, policy, NOW_MS, (key, job), remedy.change)
                assert answer.code == "NEXT"


def _with(snapshot: Snapshot, policy, key, job, change: Change) -> Snapshot:
    return replace(snapshot, queue=ChangedQueue(snapshot.queue, (key, job.job_no), changed(key, job, change, policy)))


@settings(max_examples=100, deadline=None)
@given(worlds(), policies)
def test_the_order_of_storage_does_not_matter(world, policy):
    snapshot = world.snapshot()
    turned = replace(
        snapshot,
        pools={pool: dict(reversed(nodes.items())) for pool, nodes in reversed(snapshot.pools.items())},
        queue=ListQueue(dict(reversed(world.lines.items()))),
        institutions=dict(reversed(snapshot.institutions.items())),
        projects=dict(reversed(snapshot.projects.items())),
    )
    for key, jobs in world.lines.items():
        assert explain(Planner(), snapshot, policy, NOW_MS, (key, jobs[0])) == explain(
            Planner(), turned, policy, NOW_MS, (key, jobs[0])
        )
