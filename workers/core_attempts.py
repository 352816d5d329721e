"""The attempts and nodes of a region: every rule about launches, stops, ranks, losses and leases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from protos.suanli.v1 import regions_pb2 as pb
from workers.core_attempt import (
    MESSAGE_LIMIT,
    STOP_NOT_TIMED,
    Asked,
    Attempt,
    RankEnd,
    RankState,
    Verdict,
    attempt_from_record,
    end_of_exit,
    verdict,
)
from workers.core_launch import attempt_of, executor_launches, finished_event, node_message, usage_message
from workers.core_lease import LeaseWatch
from workers.core_outbox import Outbox
from workers.core_tombstones import Tombstones
from workers.core_types import (
    AllocatePort,
    AttemptName,
    CoreConfig,
    MergeResults,
    Outcome,
    PortAllocated,
    PutAttempt,
    RenewNode,
    ResultsMerged,
    SpoolState,
    StartRank,
    StopRank,
    Turn,
)
from workers.core_usage import NOTHING_USED, used_of
from workers.executor import types as ex

STOP_REPEAT_MS = 10_000
"""An executor that has not reported a rank's end this long after its grace is told again."""

_LEASE_MESSAGE = "the region could not renew its lease, and the job may be moved to another one"


class AttemptTable:
    """The attempts that live here, the tombstones of those that are over, and the nodes they are on.

    ``begin`` opens a turn, the ``on_…`` methods take in what happened, ``close`` adds what follows from the time and writes
    down every attempt that changed.
    """

    def __init__(self, config: CoreConfig, outbox: Outbox, lease: LeaseWatch, state: SpoolState) -> None:
        self._config = config
        self._outbox = outbox
        self._lease = lease
        self._tombs = Tombstones()
        self._live: dict[AttemptName, Attempt] = {}
        self._live_of_job: dict[str, Attempt] = {}
        self._usage_news: dict[AttemptName, Attempt] = {}
        self._move: dict[AttemptName, Attempt] = {}
        self._attention: dict[AttemptName, Attempt] = {}
        self._nodes: dict[str, ex.NodeUp] = {}
        self._closing = False
        self._now_ms = 0
        self._mono_ms = 0
        self._turn = Turn()
        self._dirty: dict[AttemptName, Attempt] = {}
        self.settled = False
        self.nodes_changed = False
        self.node_messages: list[pb.Node] = []
        for record in state.attempts:
            if record.finished:
                self._tombs.load(record)
            else:
                self._add_live(attempt_from_record(record))
        for name, seq in outbox.checkpoints().items():
            if name in self._live:
                self._live[name].checkpoint_seq = seq

    def __len__(self) -> int:
        return len(self._live)

    def refs(self) -> list[pb.AttemptRef]:
        """Those that live, for a report."""
        return [
            pb.AttemptRef(job_id=attempt.job_id, attempt=attempt.attempt, lease_epoch=attempt.lease_epoch)
            for attempt in self._live.values()
        ]

    def node_of(self, job_id: str, attempt: int, rank: int) -> str | None:
        """The node on which a rank of a live attempt is; None for any other."""
        live = self._live.get((job_id, attempt))
        return live.ranks[rank].node_id if live is not None and 0 <= rank < len(live.ranks) else None

    def begin(self, now_ms: int, mono_ms: int, turn: Turn) -> None:
        """Open a turn."""
        self._now_ms, self._mono_ms, self._turn = now_ms, mono_ms, turn

    def close(self) -> None:
        """End a turn: what is due by now, and the records of what changed."""
        self._watch_lease()
        self._watch_ranks()
        for attempt in self._dirty.values():
            if attempt.name in self._live:
                self._turn.durable.append(PutAttempt(attempt.record()))
        self._dirty.clear()
        self._tombs.expire(self._now_ms, self._turn.durable)

    def on_acked(self, events: Sequence[pb.AttemptEvent]) -> None:
        """The control plane holds these events: a checkpoint that waited behind one of them may go."""
        for event in events:
            attempt = self._live.get((event.job_id, event.attempt))
            if attempt is not None and attempt.checkpoint_seq == event.seq:
                attempt.checkpoint_seq = 0
                self._tell_checkpoint(attempt)

    def on_floor(self) -> None:
        """A lease has come: the floor may have risen, or an end below it may have been acknowledged since."""
        self._tombs.settle(self._lease.floor, self._outbox.ending_names(), self._turn.durable)

    def on_stop_all(self, message: str, grace_ms: int) -> None:
        """The region is being shut down: take on nothing new, end everything."""
        self._closing = True
        for attempt in list(self._live.values()):
            self._ask_stop(attempt, Asked(Outcome.NODE_LOST, message), grace_ms)

    # Launches and stops.

    def on_launch(self, launch: pb.Launch) -> None:
        """Take a launch on, once; what is late, double or cannot be taken on now is passed over."""
        name = (launch.job_id, launch.attempt)
        if name in self._tombs:
            self._tombs.launch_seen(name, launch.launch_seq, self._turn.durable)
            return
        if launch.launch_seq < self._lease.floor:
            return
        if self._closing or not self.settled or len(self._live) >= self._config.max_attempts:
            # Not now. The next report lacks it, so it is sent again.
            return
        other = self._live_of_job.get(launch.job_id)
        if other is not None:
            # A copy; or one of the two is out of date: the older one ends first, then the newer one's launch comes again.
            if other.attempt < launch.attempt:
                self._ask_stop(other, Asked(Outcome.NODE_LOST, "a newer attempt was launched"), 0)
            return
        try:
            attempt = attempt_of(launch, self._now_ms)
        except ValueError as error:
            self._refuse(launch, Verdict(Outcome.SPAWN_FAILED, self._now_ms, str(error)))
            return
        if attempt.move and self._lease.grace_left(attempt.grace_ms, self._mono_ms) is not None:
            # No lease to run it under. The next report lacks it, so it is sent again.
            return
        self._accept(attempt, launch)

    def _accept(self, attempt: Attempt, launch: pb.Launch) -> None:
        unknown = next((rank.node_id for rank in attempt.ranks if rank.node_id not in self._nodes), None)
        if unknown is not None:
            text = f"node {unknown} is not in region {self._config.region} any more"
            self._refuse(launch, Verdict(Outcome.NODE_LOST, self._now_ms, text, lost_node_id=unknown))
            return
        try:
            launches = executor_launches(launch, self._config.region, self._nodes, self._config.data_dirs)
        except ValueError as error:
            self._refuse(launch, Verdict(Outcome.ENVIRONMENT_FAILED, self._now_ms, str(error)))
            return
        self._add_live(attempt)
        self._dirty[attempt.name] = attempt
        if len(launches) == 1:
            self._start(attempt, launches)
        else:
            attempt.launches = launches
            attempt.port_by_mono_ms = self._mono_ms + self._config.port_timeout_ms
            self._attention[attempt.name] = attempt
            self._turn.effects.append(AllocatePort(*attempt.name, attempt.ranks[0].node_id))

    def _refuse(self, launch: pb.Launch, found: Verdict) -> None:
        """Report the end of an attempt that never began."""
        name = (launch.job_id, launch.attempt)
        self._tombs.add(name, launch.lease_epoch, launch.launch_seq, self._now_ms, self._turn.durable)
        self._append(name, launch.lease_epoch, found.at_ms, pb.AttemptEvent(finished=finished_event(found)))

    def _add_live(self, attempt: Attempt) -> None:
        self._live[attempt.name] = attempt
        self._live_of_job[attempt.job_id] = attempt
        if attempt.move:
            self._move[attempt.name] = attempt
        if attempt.stopping:
            self._attention[attempt.name] = attempt

    def _start(self, attempt: Attempt, launches: Sequence[ex.Launch]) -> None:
        lease_ms = max(1, self._lease.left_ms(self._mono_ms)) if attempt.move else 0
        for rank, launch in zip(attempt.ranks, launches, strict=True):
            rank.state = RankState.LAUNCHED
            leased = dataclasses.replace(launch, lease_ms=lease_ms) if lease_ms else launch
            self._turn.effects.append(StartRank(rank.node_id, leased))
        self._dirty[attempt.name] = attempt

    def on_port(self, answer: PortAllocated) -> None:
        """A gang has its port: start its ranks."""
        attempt = self._live.get((answer.job_id, answer.attempt))
        if attempt is None or not attempt.launches:
            return
        launches, attempt.launches = attempt.launches, []
        self._attention.pop(attempt.name, None)
        if not answer.port:
            self._lose_waiting(attempt, f"no port for the gang's rendezvous: {answer.error}")
            return
        self._start(attempt, [_with_port(launch, answer.port) for launch in launches])

    def _lose_waiting(self, attempt: Attempt, text: str) -> None:
        # The end of the first rank ends the others, which wait as it did.
        self._end(attempt, 0, self._bare_end(attempt, Outcome.NODE_LOST, text))

    def on_stop(self, stop: pb.Stop) -> None:
        """Stop an attempt. One never heard of is reported as stopped at once, and can never start."""
        name = (stop.job_id, stop.attempt)
        asked = Asked(int(stop.outcome) or int(Outcome.CANCELLED), stop.message[:MESSAGE_LIMIT])
        attempt = self._live.get(name)
        if attempt is not None:
            if attempt.lease_epoch == stop.lease_epoch:
                self._ask_stop(attempt, asked, stop.grace_ms)
        elif name not in self._tombs and self.settled:
            found = Verdict(Outcome(asked.outcome), self._now_ms, asked.message)
            self._tombs.add(name, stop.lease_epoch, 0, self._now_ms, self._turn.durable)
            self._append(name, stop.lease_epoch, found.at_ms, pb.AttemptEvent(finished=finished_event(found)))

    def _ask_stop(self, attempt: Attempt, asked: Asked, grace_ms: int) -> None:
        """Stop from outside the attempt: unless it was failing already, it ends as ``asked`` says; the newest ask counts."""
        if attempt.asked is not None or not attempt.stopping:
            if attempt.asked != asked:
                self._dirty[attempt.name] = attempt
            attempt.asked = asked
        self._stop_ranks(attempt, asked.message, grace_ms)

    def _stop_ranks(self, attempt: Attempt, message: str, grace_ms: int) -> None:
        """Have every rank that is not over end within ``grace_ms``; asked again only to make it sooner."""
        stop_by = self._mono_ms + grace_ms
        if attempt.stopping and stop_by >= attempt.stop_by_mono_ms:
            return
        attempt.stopping, attempt.stop_message = True, message
        attempt.stop_by_mono_ms, attempt.stop_grace_ms = stop_by, grace_ms
        self._dirty[attempt.name] = self._attention[attempt.name] = attempt
        attempt.launches = []
        for number, rank in enumerate(attempt.ranks):
            if rank.state is RankState.WAITING:
                self._end(attempt, number, self._bare_end(attempt, Outcome.UNSPECIFIED, message))
            elif rank.end is None:
                self._stop_rank(attempt, number)

    def _stop_rank(self, attempt: Attempt, number: int) -> None:
        rank = attempt.ranks[number]
        if rank.node_id not in self._nodes:
            # Told when the node is found again, or over when it is lost.
            rank.stop_again_mono_ms = self._mono_ms
            return
        grace_ms = max(0, attempt.stop_by_mono_ms - self._mono_ms)
        rank.stop_again_mono_ms = self._mono_ms + grace_ms + STOP_REPEAT_MS
        self._turn.effects.append(StopRank(rank.node_id, attempt.key(number), grace_ms, attempt.stop_message))

    def _kill(self, node_id: str, key: ex.AttemptKey, message: str) -> None:
        self._turn.effects.append(StopRank(node_id, key, 0, message))

    # What nodes and executors say.

    def on_node_up(self, node: ex.NodeUp) -> None:
        """A node has joined or was found again: hold what it runs against the table."""
        known = self._nodes.get(node.node_id)
        if known is not None and known.boot_id != node.boot_id:
            self.on_node_down(node.node_id, f"the executor on node {node.name} was started anew")
            known = None
        self._nodes[node.node_id] = node
        self._renew_nodes()
        there = {(info.job_id, info.attempt, info.rank): info for info in node.attempts}
        for info in there.values():
            self._on_attempt_info(node.node_id, info)
        if known is not None:
            # The same executor, heard of again: a launch may have been on its way to it when it made this list.
            return
        for attempt in list(self._live.values()):
            for number, rank in enumerate(attempt.ranks):
                if rank.node_id == node.node_id and rank.end is None and (*attempt.name, number) not in there:
                    # The copy of the launch that an earlier start of the agent sent may still be on its way.
                    self._kill(node.node_id, attempt.key(number), "taken for lost")
                    text = f"node {node.name} does not know it any more"
                    self._end(attempt, number, self._bare_end(attempt, Outcome.NODE_LOST, text))

    def _on_attempt_info(self, node_id: str, info: ex.AttemptInfo) -> None:
        if info.exited is not None:
            self.on_executor_event(node_id, info.exited)
        elif info.started_ms:
            started = ex.Started(info.job_id, info.attempt, info.rank, info.pid or 0, info.started_ms)
            self.on_executor_event(node_id, started)
        elif self._rank_at(node_id, info.job_id, info.attempt, info.rank) is None:
            self._kill(node_id, ex.AttemptKey(info.job_id, info.attempt, info.rank), "not known to the agent")

    def on_node_down(self, node_id: str, message: str) -> None:
        """A node is gone, and all that ran there."""
        if self._nodes.pop(node_id, None) is None:
            return
        self._renew_nodes()
        self._lose_node(node_id, message)

    def _lose_node(self, node_id: str, message: str) -> None:
        for attempt in list(self._live.values()):
            for number, rank in enumerate(attempt.ranks):
                if rank.node_id == node_id and rank.end is None:
                    self._end(attempt, number, self._bare_end(attempt, Outcome.NODE_LOST, message, node_id))

    def _renew_nodes(self) -> None:
        self.nodes_changed = True
        self.node_messages = [node_message(self._nodes[node_id], self._config.pools) for node_id in sorted(self._nodes)]

    def on_settled(self) -> None:
        """All nodes that live are known: what was on others is lost."""
        if self.settled:
            return
        self.settled = self.nodes_changed = True
        named = {rank.node_id for attempt in self._live.values() for rank in attempt.ranks}
        for node_id in sorted(named - self._nodes.keys()):
            self._lose_node(node_id, f"node {node_id} is not there any more")
        # An earlier start of the agent may have died between the last rank's end and the report of it.
        for attempt in list(self._live.values()):
            self._finish_if_over(attempt)

    def _rank_at(self, node_id: str, job_id: str, number: int, rank: int) -> Attempt | None:
        attempt = self._live.get((job_id, number))
        if attempt is None or not 0 <= rank < len(attempt.ranks) or attempt.ranks[rank].node_id != node_id:
            return None
        return attempt

    def on_executor_event(self, node_id: str, event: ex.Event) -> None:
        """A rank started, saved a checkpoint or ended. What is not known here and runs is killed."""
        attempt = self._rank_at(node_id, event.job_id, event.attempt, event.rank)
        rank = attempt.ranks[event.rank] if attempt is not None else None
        if attempt is None or rank is None or rank.end is not None:
            if isinstance(event, ex.Started):
                self._kill(node_id, ex.AttemptKey(event.job_id, event.attempt, event.rank), "not known to the agent")
            return
        match event:
            case ex.Started(at_ms=at_ms):
                self._rank_started(attempt, event.rank, at_ms)
            case ex.Checkpointed(manifest=manifest) if event.rank == 0:
                attempt.checkpoint = manifest
                self._dirty[attempt.name] = attempt
                self._tell_checkpoint(attempt)
            case ex.Exited():
                if event.started_ms:
                    self._rank_started(attempt, event.rank, event.started_ms)
                self._end(attempt, event.rank, end_of_exit(event, attempt.ended_count, self._now_ms))

    def on_used(self, node_id: str, used: Sequence[ex.Used]) -> None:
        """What ranks on a node have used so far; of those not known here, or over, nothing is taken."""
        for one in used:
            attempt = self._rank_at(node_id, one.job_id, one.attempt, one.rank)
            if attempt is not None:
                rank = attempt.ranks[one.rank]
                so_far = rank.used.at_least(used_of(one.usage))
                if so_far != rank.used:
                    rank.used = so_far
                    self._usage_news[attempt.name] = attempt

    def usage_news(self) -> list[pb.AttemptUsage]:
        """What live attempts have used, of those of which there is more to say than at the last call."""
        news = [usage_message(attempt) for attempt in self._usage_news.values()]
        self._usage_news.clear()
        return news

    def forget_usage_told(self) -> None:
        """A new session begins: whoever listens now may know nothing."""
        self._usage_news = {name: attempt for name, attempt in self._live.items() if attempt.used() != NOTHING_USED}

    def _rank_started(self, attempt: Attempt, number: int, at_ms: int) -> None:
        if not attempt.start_rank(number, min(at_ms, self._now_ms) or self._now_ms):
            return
        self._dirty[attempt.name] = attempt
        if attempt.all_started:
            at_ms = max(rank.started_ms for rank in attempt.ranks)
            self._append(attempt.name, attempt.lease_epoch, at_ms, pb.AttemptEvent(started=pb.AttemptStarted()))

    def _tell_checkpoint(self, attempt: Attempt) -> None:
        """One checkpoint event of an attempt at a time: while the link is down, only the newest is worth keeping."""
        if attempt.checkpoint_seq or attempt.checkpoint == attempt.checkpoint_told:
            return
        attempt.checkpoint_told = attempt.checkpoint
        self._dirty[attempt.name] = attempt
        event = pb.AttemptEvent(checkpointed=pb.AttemptCheckpointed(checkpoint=attempt.checkpoint))
        attempt.checkpoint_seq = self._append(attempt.name, attempt.lease_epoch, self._now_ms, event)

    def on_rank_never_ran(self, key: ex.AttemptKey, outcome: Outcome, text: str) -> None:
        """A rank was not taken on by its executor."""
        attempt = self._live.get((key.job_id, key.attempt))
        if attempt is not None and key.rank < len(attempt.ranks) and attempt.ranks[key.rank].end is None:
            self._end(attempt, key.rank, self._bare_end(attempt, outcome, text[:MESSAGE_LIMIT]))

    def on_launch_unsure(self, key: ex.AttemptKey, text: str) -> None:
        """A rank may run or not: see to it that it does not, and give it up."""
        attempt = self._live.get((key.job_id, key.attempt))
        if (
            attempt is not None
            and key.rank < len(attempt.ranks)
            and attempt.ranks[key.rank].state is RankState.LAUNCHED
        ):
            self._kill(attempt.ranks[key.rank].node_id, key, "the launch may have failed")
            self.on_rank_never_ran(key, Outcome.NODE_LOST, text)

    def _bare_end(self, attempt: Attempt, outcome: Outcome, text: str, lost_node: str = "") -> RankEnd:
        return RankEnd(
            int(outcome), attempt.ended_count, self._now_ms, message=text[:MESSAGE_LIMIT], lost_node=lost_node
        )

    def _end(self, attempt: Attempt, number: int, end: RankEnd) -> None:
        self._dirty[attempt.name] = attempt
        if attempt.end_rank(number, end) and not attempt.stopping:
            self._stop_ranks(
                attempt, f"rank {number} of the gang has ended: {end.message}"[:MESSAGE_LIMIT], attempt.grace_ms
            )
        self._finish_if_over(attempt)

    def _finish_if_over(self, attempt: Attempt) -> None:
        if not attempt.all_ended or attempt.merging or attempt.name not in self._live:
            return
        results, logs = attempt.result_manifests(), attempt.log_manifests()
        if len(results) > 1 or len(logs) > 1:
            attempt.merging = True
            self._turn.effects.append(MergeResults(*attempt.name, results, logs))
            return
        self._finish(attempt, verdict(attempt))

    def on_merged(self, answer: ResultsMerged) -> None:
        """What a gang left is one manifest each now, or could not be made one."""
        attempt = self._live.get((answer.job_id, answer.attempt))
        if attempt is not None and attempt.merging:
            note = f"kept of the first rank only: {answer.error}" if answer.error else ""
            self._finish(attempt, verdict(attempt, answer.results, answer.logs, note))

    def _finish(self, attempt: Attempt, found: Verdict) -> None:
        name = attempt.name
        del self._live[name]
        del self._live_of_job[attempt.job_id]
        self._usage_news.pop(name, None)
        self._move.pop(name, None)
        self._attention.pop(name, None)
        self._tombs.add(name, attempt.lease_epoch, attempt.launch_seq, self._now_ms, self._turn.durable)
        self._append(name, attempt.lease_epoch, found.at_ms, pb.AttemptEvent(finished=finished_event(found)))

    def _append(self, name: AttemptName, lease_epoch: int, at_ms: int, event: pb.AttemptEvent) -> int:
        event.job_id, event.attempt, event.lease_epoch, event.at_ms = *name, lease_epoch, at_ms
        return self._outbox.append(event, self._turn.durable)

    # Time.

    def on_lease(self) -> None:
        """Hand the lease on to the nodes of attempts that may be moved: the agent itself may die."""
        nodes = sorted({rank.node_id for attempt in self._move.values() for rank in attempt.ranks if rank.end is None})
        left_ms = self._lease.left_ms(self._mono_ms)
        self._turn.effects.extend(RenewNode(node_id, left_ms) for node_id in nodes)

    def _watch_lease(self) -> None:
        for attempt in list(self._move.values()):
            grace_ms = self._lease.grace_left(attempt.grace_ms, self._mono_ms)
            if grace_ms is not None:
                self._ask_stop(attempt, attempt.asked or Asked(Outcome.NODE_LOST, _LEASE_MESSAGE), grace_ms)

    def _watch_ranks(self) -> None:
        for attempt in list(self._attention.values()):
            if attempt.launches and self._mono_ms >= attempt.port_by_mono_ms:
                attempt.launches = []
                self._lose_waiting(attempt, "no port for the gang's rendezvous: the node did not answer")
                continue
            if not attempt.stopping:
                continue
            if attempt.stop_by_mono_ms == STOP_NOT_TIMED:
                # Told by an earlier start of the agent, nobody knows when: it is given its grace anew.
                attempt.stop_by_mono_ms = self._mono_ms + attempt.stop_grace_ms
            for number, rank in enumerate(attempt.ranks):
                if rank.end is None and self._mono_ms >= rank.stop_again_mono_ms:
                    self._stop_rank(attempt, number)


def _with_port(launch: ex.Launch, port: int) -> ex.Launch:
    return dataclasses.replace(launch, master_port=port)
