"""What the store holds is all the engine needs: after any history, a new one made from it is the old one's equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protos.suanli.v1 import jobs_pb2
from scheduler.domain.agent import Checkpointed
from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.resources import ZERO, Resources
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.planning.policy_text import read_policy
from scheduler.planning.types import Eviction
from scheduler.planning.usage import decayed
from scheduler.service import policies, rounds, tenants
from scheduler.service.contract import PolicyDraft
from scheduler.service.engine import Engine
from scheduler.service.holdings import REFRESH_MS
from scheduler.service.model import Tenant
from tests.simulation.invariants import planning_sees_what_is
from tests.unit.service.harness import CODEC, Site, node, spec

OUTCOMES = [
    AttemptOutcome.SUCCEEDED,
    AttemptOutcome.FAILED,
    AttemptOutcome.NODE_LOST,
    AttemptOutcome.PREEMPTED,
    AttemptOutcome.TIMED_OUT,
    AttemptOutcome.CANCELLED,
]
NODES = [node("n1", Resources(4_000, 8_192, 0)), node("g1", Resources(4_000, 8_192, 2_000), "gpu", "A100")]


def observable(engine: Engine) -> dict[str, Any]:
    """Everything of an engine that decides what it does next, in comparable form."""
    state = engine.state
    return {
        "jobs": {job.job_id: job.record() for job in state.jobs.values()},
        "waits": {job.job_id: job.waits_for for job in state.jobs.values() if job.waits_for},
        "tasks": {job.job_id: sorted(job.live_tasks) for job in state.jobs.values() if job.live_tasks is not None},
        "queue": {key: list(state.queue.jobs(key)) for key in state.queue.groups()},
        "queued": state.queue.size_total,
        "attempts": {
            launch_seq: (attempt.record(), attempt.job.job_id, attempt.job.live is attempt)
            for launch_seq, attempt in state.attempts.items()
        },
        "of_region": {region.region: list(region.attempts) for region in state.regions.values()},
        "nodes": {key: (node.view, node.attempts) for key, node in state.nodes.items()},
        "pools": state.pools,
        "tenants": {
            key: (tenant.weight, tenant.quota, tenant.home_region, tenant.live_jobs, tenant.max_live_jobs)
            for key, tenant in state.tenants.items()
        },
        "held": {
            key: (tenant.in_use, tenant.average)
            for key, tenant in state.holdings.all_tenants()
            if tenant.in_use != ZERO or _past(engine, tenant) != ZERO
        },
        "pool_use": state.holdings.pool_use,
        # When a stop that was ordered takes effect, and for whom, is known to the leader that ordered it.
        "running": {
            launch_seq: replace(view, stopped_by_ms=int(view.stopped_by_ms > 0), for_job_no=0)
            for launch_seq, view in state.running.items()
        },
        "dependents": {job_id: set(waiting) for job_id, waiting in state.dependents.items()},
        "timers": sorted(
            timer for timer in state.timers if (job := state.jobs_by_no.get(timer[1])) and job.failures == timer[2]
        ),
        "live_jobs": state.live_jobs,
        "counts": {key: count for key, count in state.job_counts.items() if count},
        "counters": state.counters,
        "regions": {region.region: region.record()._replace(last_seen_ms=0) for region in state.regions.values()},
        "requests": dict(state.requests),
        "policy": (engine.policy, state.policy_record),
        "stored": (
            state.storage.sums,
            {name: size for name, size in state.storage.of_institutions.items() if size},
            state.storage.live,
            state.storage.named,
        ),
    }


def _past(engine: Engine, tenant: Tenant) -> Resources:
    half_life_ms = engine.state.policy.order.half_life_ms
    return decayed(tenant.average, tenant.in_use, engine.state.now(), half_life_ms).amount


class Histories(RuleBasedStateMachine):
    """Researchers, an agent, an operator and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.site = Site(nodes=NODES)
        self.ids: list[str] = []
        self.requests = 0

    # --- what may happen --------------------------------------------------------------------------------------------

    @rule(
        institution=st.sampled_from(["north", "south"]),
        cpu=st.sampled_from([500, 1_000, 2_000, 4_000]),
        gpu=st.sampled_from([0, 0, 500, 1_000]),
        replicas=st.sampled_from([1, 1, 2]),
        size=st.sampled_from([0, 0, 1, 5]),
        max_parallel=st.sampled_from([0, 1, 2]),
        max_retries=st.sampled_from([0, 2]),
        backoff_ms=st.sampled_from([0, 1_000]),
        preemptible=st.booleans(),
        priority_class=st.sampled_from([1, 2, 3]),
        partition_policy=st.sampled_from([jobs_pb2.PARTITION_POLICY_WAIT, jobs_pb2.PARTITION_POLICY_MOVE]),
        conditions=st.lists(st.sampled_from([1, 2]), max_size=2),
        data=st.data(),
    )
    def submit(self, size: int, max_parallel: int, conditions: list[int], data: st.DataObject, **values: Any) -> None:
        mine = [job_id for job_id in self.ids if self.site.job(job_id).institution == values["institution"]]
        after: dict[str | int, int] = {
            data.draw(st.sampled_from(mine[-8:])): condition for condition in conditions if mine
        }
        array = {"size": size, "max_parallel": max_parallel} if size else {}
        self.requests += 1
        specs = [
            spec(after=after, **array, **values),
            spec(values["institution"], after={0: 1}),
            spec(values["institution"], after={0: 2, 1: 2}),
        ]
        try:
            self.ids += self.site.submit(*specs, request_id=f"r{self.requests}")
        except FailedPrecondition as error:
            if error.reason not in ("NEVER_FITS", "QUOTA_NEVER_FITS"):
                raise
            assert not self.site.engine.take_turn()

    @precondition(lambda self: self.site.engine.state.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.site.cancel(data.draw(st.sampled_from(sorted(self.site.engine.state.jobs))))

    @precondition(lambda self: self.site.east.held)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES), age_ms=st.sampled_from([0, 300, 10**9]))
    def finish(self, data: st.DataObject, outcome: AttemptOutcome, age_ms: int) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.site.east.held)))
        left = {name: data.draw(st.sampled_from(["", "sha256:1", "sha256:2"])) for name in ("results", "checkpoint")}
        self.site.east.finished(job_id, outcome, age_ms, message="over", logs=f"sha256:{job_id}", **left)

    @rule(data=st.data(), size=st.integers(0, 2**40))
    def measure(self, data: st.DataObject, size: int) -> None:
        rows = self.site.store.unmeasured_holdings(None, 100)
        if rows:
            row = data.draw(st.sampled_from(rows))
            state = self.site.engine.state
            state.storage.measured(row, size, row.job_id in state.jobs)
            self.site.turn()

    @precondition(lambda self: self.site.east.held)
    @rule(data=st.data(), checkpoint=st.booleans())
    def report_event(self, data: st.DataObject, checkpoint: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.site.east.held)))
        if checkpoint:
            self.site.east.event(self.site.east.held[job_id], Checkpointed(f"sha256:c{self.requests % 3}"))
        else:
            self.site.east.started(job_id)

    @precondition(lambda self: self.site.engine.state.attempts and self.site.engine.state.queue.size_total)
    @rule(data=st.data(), rule=st.sampled_from(["RECLAIM", "PRIORITY"]), grace_ms=st.sampled_from([0, 60_000]))
    def evict(self, data: st.DataObject, rule: str, grace_ms: int) -> None:
        state = self.site.engine.state
        attempt = state.attempts[data.draw(st.sampled_from(sorted(state.attempts)))]
        waiting = data.draw(
            st.sampled_from(sorted(number for number, j in state.jobs_by_no.items() if j in state.queue))
        )
        stopping = attempt.stop_outcome is not None
        rounds.evict(state, Eviction(attempt.launch_seq, attempt.job.job_no, waiting, rule, grace_ms))
        assert (attempt.stop_outcome is not None) == (stopping or attempt.job.spec.preemptible)
        self.site.turn()

    @rule(half_life=st.sampled_from(["1m", "7d"]), shortness=st.sampled_from([0, 10]), starts=st.sampled_from([2, 512]))
    def put_policy(self, half_life: str, shortness: int, starts: int) -> None:
        order = f"{{shortness: {shortness}, past: {{half_life: {half_life}}}}}"
        document = f"order: {order}\nround: {{max_starts: {starts}}}\n"
        policies.put_policy(self.site.engine.state, PolicyDraft(document, read_policy(document)), "admin")
        self.site.turn()

    @rule(ms=st.sampled_from([1, 500, 2_500, 30_000, 300_000]), silent=st.booleans())
    def wait(self, ms: int, silent: bool) -> None:
        self.site.wait(ms, silent=silent)

    @rule()
    def connect(self) -> None:
        self.site.east.connect()

    @rule()
    def hang_up(self) -> None:
        self.site.east.hang_up()

    @rule(count=st.integers(0, 2))
    def change_nodes(self, count: int) -> None:
        self.site.east.nodes = NODES[:count]
        self.site.east.report()

    @rule(draining=st.booleans(), evict=st.booleans())
    def drain(self, draining: bool, evict: bool) -> None:
        found = self.site.engine.state.nodes.get(("east", "n1"))
        if found is not None:
            tenants.drain_node(self.site.engine.state, found, draining, evict, "op")
            self.site.turn()

    @rule(cpu=st.sampled_from([-1, 4_000, 8_000]))
    def set_quota(self, cpu: int) -> None:
        self.site.check_fit = False
        self.site.quota("south", cpu=cpu)

    @rule()
    def restart(self) -> None:
        self.site.restart()

    # --- what must hold after each ----------------------------------------------------------------------------------

    @invariant()
    def the_store_alone_gives_the_same_engine(self) -> None:
        live = self.site.engine
        again = Engine(self.site.clock, self.site.ids, CODEC, self.site.policy, self.site.settings)
        again.rebuild(self.site.store.load(), live.state.epoch)
        before, after = observable(live), observable(again)
        before["requests"] = {key: after["requests"].get(key) for key in before["requests"]}
        after["requests"] = {key: after["requests"][key] for key in before["requests"]}
        for name, value in before.items():
            assert after[name] == value, name

    @invariant()
    def what_is_stored_adds_up(self) -> None:
        sums: dict[tuple[str, str], list[int]] = {}
        for row in self.site.store.holdings_after(None, 10_000):
            found = sums.setdefault((row.institution, row.project), [0, 0])
            found[0] += 1
            found[1] += row.counted_bytes
        stored = self.site.engine.state.storage.sums
        assert {key: [row.items, row.size_bytes] for key, row in stored.items() if row.items} == sums

    @invariant()
    def indexes_agree(self) -> None:
        state = self.site.engine.state
        assert set(state.jobs_by_no.values()) == set(state.jobs.values())
        for job in state.jobs.values():
            waiting = job.state is JobState.QUEUED or (job.state is JobState.RUNNING and job.array_size > 0)
            assert (job in state.queue) == (waiting and job.startable_tasks > 0), job.job_id
            assert (job.live is not None) == (job.state in (JobState.STARTING, JobState.RUNNING) and not job.array_size)

    @invariant()
    def planning_sees_what_is(self) -> None:
        planning_sees_what_is(self.site.engine)

    @invariant()
    def a_past_is_never_shown_older_than_a_minute_at_a_tick(self) -> None:
        state = self.site.engine.state
        state.holdings.refresh(state.now())
        for key, tenant in state.holdings.all_tenants():
            view = state.holdings.view_of(key)
            shown_ms = state.holdings.shown_ms.get(key)
            if shown_ms is None:
                assert view.past == tenant.in_use == ZERO
            else:
                assert shown_ms > state.now() - REFRESH_MS
                assert view.in_use == tenant.in_use


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
