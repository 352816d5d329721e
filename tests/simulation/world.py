"""A whole platform in virtual time: control plane, two regions, researchers, faults; and what must hold after every step."""

from __future__ import annotations

from scheduler.catalog.resolve import ResolvedAlgorithm
from scheduler.domain.records import InstitutionRecord, QuotaRecord
from scheduler.domain.states import JobState
from scheduler.planning.types import Eviction
from scheduler.service import rounds, tenants
from scheduler.service.engine import Engine
from scheduler.store.memory import MemoryStore
from scheduler.wire.spec import SpecCodec
from tests.simulation import invariants
from tests.simulation.clients import INSTITUTIONS, Clients
from tests.simulation.control import Control
from tests.simulation.faults import Faults
from tests.simulation.kernel import Kernel, SimulatedIds
from tests.simulation.region import Region, SimNode


class NoAlgorithms:
    """The simulated researchers run commands only."""

    def resolve(self, name: str, version: str, parameters_json: str, field: str) -> ResolvedAlgorithm:
        """Never asked."""
        raise AssertionError(name)


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.kernel = Kernel(seed)
        self.faults = faults
        self.ids = SimulatedIds(self.kernel)
        self.store = MemoryStore(self.kernel)
        self.codec = SpecCodec(NoAlgorithms())
        self.regions = {
            "east": Region(
                self,
                "east",
                [
                    SimNode("e-cpu-1", 4_000, 8_192, 0, "cpu", ""),
                    SimNode("e-cpu-2", 4_000, 4_096, 0, "cpu", ""),
                    SimNode("e-gpu-1", 8_000, 16_384, 2, "gpu", "NVIDIA-A100"),
                ],
            ),
            "west": Region(
                self,
                "west",
                [
                    SimNode("w-cpu-1", 6_000, 8_192, 0, "cpu", ""),
                    SimNode("w-gpu-1", 4_000, 8_192, 1, "gpu", "NVIDIA-L4"),
                ],
            ),
        }
        self.control = Control(self)
        self.clients = Clients(self)
        self.ledger_checked = invariants.LedgerCheck(self.store)
        self.events_checked = invariants.EventCheck(self.store)

    def begin(self) -> None:
        """Bring everything up, with two institutions, one of them on a quota."""
        self.control.boot()
        engine = self.control.engine
        assert engine is not None
        for name in INSTITUTIONS:
            tenants.put_institution(engine.state, InstitutionRecord(name, "", 1000, "", 0))
        tenants.set_quota(engine.state, QuotaRecord(INSTITUTIONS[1], "", 7_000, -1, 2_000, -1))
        for name in self.regions:
            tenants.ensure_region(engine.state, name)
        self.control.changed(self._opened)

    def _opened(self) -> None:
        for region in self.regions.values():
            region.boot()
        self._when_known()
        kernel, faults = self.kernel, self.faults
        self._again(faults.control_crash_ms, self.control.crash)
        self._again(faults.evict_ms, self._evict)
        for region in self.regions.values():
            self._again(faults.agent_crash_ms, lambda r=region: self._crash_agent(r))
            self._again(faults.disconnect_ms, region.disconnect)
            self._again(faults.freeze_ms, lambda r=region: r.freeze(kernel.between(500, 30_000)))
            self._again(faults.partition_ms, lambda r=region: r.partition(kernel.between(1_000, 60_000)))
            for node in region.nodes.values():
                self._again(faults.node_crash_ms, lambda r=region, n=node: r.crash_node(n))

    def _when_known(self) -> None:
        """Researchers come once all nodes are known: before that, nothing could be refused as too big for any of them."""
        engine = self.control.engine
        nodes = sum(len(region.nodes) for region in self.regions.values())
        if engine is not None and len(engine.state.nodes) == nodes:
            self.clients.start()
        else:
            self.kernel.after(100, self._when_known)

    def _again(self, mean_ms: int, action: object) -> None:
        """Do something at random times, until the faults are over."""
        if not mean_ms:
            return

        def act() -> None:
            if self.clients.active:
                action()  # type: ignore[operator]
                self._again(mean_ms, action)

        self.kernel.after(self.kernel.between(mean_ms // 10, 2 * mean_ms), act)

    def _evict(self) -> None:
        engine = self.control.engine
        if engine is None or not engine.state.attempts:
            return
        state, rng = engine.state, self.kernel.rng
        waiting = sorted(job.job_no for job in state.jobs.values() if job in state.queue)
        if not waiting:
            return
        attempt = state.attempts[rng.choice(sorted(state.attempts))]
        rule, grace_ms = rng.choice(["RECLAIM", "FAIR_SHARE", "PRIORITY", "SHORTER"]), rng.choice([0, 500, 5_000])
        eviction = Eviction(attempt.launch_seq, attempt.job.job_no, rng.choice(waiting), rule, grace_ms)
        rounds.evict(state, eviction)
        self.control.changed()

    def _crash_agent(self, region: Region) -> None:
        if region.core is not None:
            region.crash(self.kernel.chance(self.faults.spool_loss))

    def run(self, busy_ms: int, settle_ms: int = 3_600_000) -> None:
        """Let the world go on under faults, then without, until every job has ended."""
        start = self.kernel.now_ms()
        self.begin()
        while self.kernel.now_ms() < start + busy_ms:
            self.kernel.step()
        self.clients.active = False
        self.faults = Faults(0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        deadline = self.kernel.now_ms() + settle_ms
        while not self._settled():
            assert self.kernel.now_ms() < deadline, f"never settled: {self._leftovers()}"
            for _ in range(50):
                self.kernel.step()
        invariants.at_rest(self)

    def _settled(self) -> bool:
        engine = self.control.engine
        quiet = engine is not None and not engine.state.jobs and not self.control.commit_due
        return quiet and all(region.core is not None for region in self.regions.values())

    def _leftovers(self) -> list[str]:
        engine = self.control.engine
        if engine is None:
            return ["no control plane"]
        state = engine.state
        return [f"{job} waits for {job.waits_for}, live {job.live}" for job in list(state.jobs.values())[:10]]

    # --- what must hold, checked as it happens ----------------------------------------------------------------------

    def check_memory(self, engine: Engine) -> None:
        """After every turn: capacity, quotas, gangs, and that every pending job can say why."""
        invariants.allocations_fit(engine)
        invariants.planning_sees_what_is(engine)
        waiting = next(
            (job for job in engine.state.jobs.values() if job.state in (JobState.HELD, JobState.QUEUED)), None
        )
        if waiting is not None:
            explained = engine.explain(waiting.job_id)
            assert explained is not None
            assert explained.explanation.code != "NONE"
            assert explained.explanation.message

    def check_store(self) -> None:
        """After every commit: events step legally, ledger and allocations agree, what was acknowledged is there."""
        self.events_checked.step()
        self.ledger_checked.step()

    def check_live(self) -> None:
        """At every start of a process: at most one attempt of a job is live, and no node holds more than it has."""
        invariants.one_live_attempt(self.regions.values())
        invariants.processes_fit(self.regions.values())
