"""Whatever is doubled, delayed, reordered or cut, an attempt starts once, ends once, and its events come once and in order."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protos.suanli.v1 import regions_pb2 as pb
from tests.unit.agent.harness import Rig, exited, launch, node_up, started, stop
from workers.core_types import LinkDown, NodesSettled, PortAllocated, StartRank, StopRank
from workers.executor import types as ex

JOBS = ("j1", "j2", "j3")
NODES = ("n1", "n2")
Name = tuple[str, int]


class Region(RuleBasedStateMachine):
    """The core, two nodes whose executors outlive it, and a control plane that only counts events."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(resend_after_ms=500)
        self.started: Counter[ex.AttemptKey] = Counter()
        self.running: dict[ex.AttemptKey, str] = {}
        self.unacked: dict[str, list[ex.Event]] = {node: [] for node in NODES}
        self.boots = dict.fromkeys(NODES, 1)
        self.refused: set[Name] = set()
        self.accepted: list[pb.AttemptEvent] = []
        self.launches: dict[Name, pb.Launch] = {}
        self.seen = 0

    def carry_out(self) -> None:
        """What the node side and the control plane do with the effects so far."""
        while self.seen < len(self.rig.effects):
            effect = self.rig.effects[self.seen]
            self.seen += 1
            if isinstance(effect, StartRank):
                key = effect.launch.key
                if (key.job_id, key.attempt) not in self.refused:
                    self.started[key] += 1
                    self.running[key] = effect.node_id
                    self.unacked[effect.node_id].append(started(key.job_id, key.attempt, key.rank))
            elif isinstance(effect, StopRank):
                name = (effect.key.job_id, effect.key.attempt)
                ranks = [
                    k for k, node in self.running.items() if (k.job_id, k.attempt) == name and node == effect.node_id
                ]
                if not ranks:
                    self.refused.add(name)
                for key in ranks:
                    self.end(key, ex.ExitReason.STOPPED)
            elif hasattr(effect, "message") and effect.message.HasField("events"):
                for event in effect.message.events.events:
                    if event.seq == len(self.accepted) + 1:
                        self.accepted.append(event)

    def end(self, key: ex.AttemptKey, reason: ex.ExitReason) -> None:
        node = self.running.pop(key)
        self.unacked[node].append(exited(key.job_id, key.attempt, key.rank, reason=reason))

    def nodes_up(self) -> None:
        for node in NODES:
            infos = [
                ex.AttemptInfo(k.job_id, k.attempt, k.rank, ex.AttemptState.RUNNING, 1, 1, ex.Usage())
                for k, where in self.running.items()
                if where == node
            ] + [
                ex.AttemptInfo(e.job_id, e.attempt, e.rank, ex.AttemptState.ENDED, None, 1, ex.Usage(), e)
                for e in self.unacked[node]
                if isinstance(e, ex.Exited)
            ]
            self.rig.feed(node_up(node, f"{node}-{self.boots[node]}", attempts=infos))

    @initialize()
    def begin(self) -> None:
        self.nodes_up()
        self.rig.feed(NodesSettled())
        self.rig.connect(acked=0).lease()

    @rule(job=st.sampled_from(JOBS), attempt=st.integers(1, 2), gang=st.booleans(), move=st.booleans())
    def launch(self, job: str, attempt: int, gang: bool, move: bool) -> None:
        """The first one of a name decides; later ones are copies."""
        new = launch(job, attempt, NODES if gang else NODES[:1], len(self.launches) + 1, move=move, grace_ms=100)
        self.rig.say(launch=self.launches.setdefault((job, attempt), new))
        self.carry_out()

    @rule(job=st.sampled_from(JOBS), attempt=st.integers(1, 2))
    def stop(self, job: str, attempt: int) -> None:
        self.rig.say(stop=stop(job, attempt))
        self.carry_out()

    @rule(job=st.sampled_from(JOBS), attempt=st.integers(1, 2))
    def port(self, job: str, attempt: int) -> None:
        self.rig.feed(PortAllocated(job, attempt, 1234))
        self.carry_out()

    @rule(node=st.sampled_from(NODES), twice=st.booleans())
    def deliver(self, node: str, twice: bool) -> None:
        """The node's events arrive; acknowledged or not, so that they come again."""
        self.rig.executor(node, *self.unacked[node])
        if not twice:
            self.unacked[node].clear()
        self.carry_out()

    @rule(data=st.data())
    def process_ends(self, data: st.DataObject) -> None:
        if self.running:
            key = data.draw(st.sampled_from(sorted(self.running)))
            self.end(key, ex.ExitReason.EXITED)

    @rule(node=st.sampled_from(NODES))
    def node_dies(self, node: str) -> None:
        self.running = {key: where for key, where in self.running.items() if where != node}
        self.unacked[node].clear()
        self.boots[node] += 1
        self.rig.feed(ex.NodeDown(node, "died"), node_up(node, f"{node}-{self.boots[node]}"))
        self.carry_out()

    @rule(upto=st.integers(0, 30))
    def acknowledge(self, upto: int) -> None:
        """Also one that is late, or doubled."""
        self.rig.say(ack=pb.EventAck(seq=min(upto, len(self.accepted))))
        self.carry_out()

    @rule(ms=st.sampled_from([100, 600, 20_000]))
    def time_passes(self, ms: int) -> None:
        self.rig.later(ms)
        self.carry_out()

    @rule()
    def lease(self) -> None:
        if self.rig.reports() and self.rig.core.welcomed:
            self.rig.lease(floor=0)

    @rule(cut=st.booleans())
    def link_breaks(self, cut: bool) -> None:
        self.rig.feed(LinkDown())
        if not cut:
            self.rig.connect(acked=len(self.accepted))
        self.carry_out()

    @rule()
    def agent_dies(self) -> None:
        self.rig.start()
        self.seen = 0
        self.nodes_up()
        self.rig.feed(NodesSettled())
        self.rig.connect(acked=len(self.accepted))
        self.carry_out()

    @invariant()
    def each_rank_starts_at_most_once(self) -> None:
        assert all(count == 1 for count in self.started.values()), self.started

    @invariant()
    def each_attempt_ends_at_most_once_and_never_begins_after(self) -> None:
        ended: set[Name] = set()
        begun: set[Name] = set()
        for event in self.accepted:
            name = (event.job_id, event.attempt)
            assert name not in ended, f"{event} came after the end"
            if event.HasField("finished"):
                ended.add(name)
            if event.HasField("started"):
                assert name not in begun
                begun.add(name)

    def teardown(self) -> None:
        """With a working link and time, nothing stays unreported."""
        self.rig.connect(acked=len(self.accepted))
        for _ in range(3):
            self.carry_out()
            for key in list(self.running):
                self.end(key, ex.ExitReason.EXITED)
            for node in NODES:
                self.rig.executor(node, *self.unacked[node])
                self.unacked[node].clear()
            self.rig.later(60_000)
            self.carry_out()
            self.rig.say(ack=pb.EventAck(seq=len(self.accepted)))
        assert self.rig.core.live_attempts == 0
        assert self.rig.core.unacknowledged_events == 0
        reported = {(e.job_id, e.attempt) for e in self.accepted if e.HasField("finished")}
        assert {(key.job_id, key.attempt) for key in self.started} <= reported


TestAgentOnce = Region.TestCase
TestAgentOnce.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
