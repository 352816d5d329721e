"""The region agent's mind: pure, synchronous, deterministic; inputs in, a turn of durable writes and effects out.

It has no clock, no tasks and no I/O. The live agent (``workers.agent``) and the simulator run this very class; see
``workers.core_types`` for what whoever runs it owes it, and ``docs/explanation/agent-protocol.md`` for the protocol.
"""

from __future__ import annotations

from collections.abc import Sequence

from protos.suanli.v1 import regions_pb2 as pb
from workers.core_attempts import AttemptTable
from workers.core_lease import LeaseWatch
from workers.core_outbox import Outbox
from workers.core_types import (
    CoreConfig,
    FromControl,
    HangUp,
    Input,
    LaunchRefused,
    LaunchUnsure,
    LinkDown,
    LinkUp,
    NodesSettled,
    Outcome,
    PortAllocated,
    PutMeta,
    ResultsMerged,
    Send,
    SpoolState,
    StopAll,
    Turn,
)
from workers.core_usage import usage_reports
from workers.executor import types as ex

PROTOCOL_VERSION = 1

_META_EPOCH = "leader_epoch"


class AgentCore:
    """Everything the agent knows and decides. Not safe for threads; feed it from one place."""

    def __init__(self, config: CoreConfig, state: SpoolState) -> None:
        self._config = config
        self._spool_id = state.spool_id
        self._outbox = Outbox(state)
        self._lease = LeaseWatch(state, config.machine)
        self._table = AttemptTable(config, self._outbox, self._lease, state)
        self._epoch = int(state.meta.get(_META_EPOCH, "0"))
        self._link_up = False
        self._welcomed = False
        self._welcome_by_mono_ms = 0
        self._heartbeat_ms = 0
        self._report_seq = 0
        self._report_due_mono_ms = 0
        self._usage_due_mono_ms = 0
        self._now_ms = 0
        self._mono_ms = 0
        self._turn = Turn()

    @property
    def live_attempts(self) -> int:
        """How many attempts have been accepted and have not ended."""
        return len(self._table)

    @property
    def unacknowledged_events(self) -> int:
        """How many events the control plane has not confirmed yet."""
        return self._outbox.unacknowledged

    @property
    def welcomed(self) -> bool:
        """Whether a session with the control plane is open."""
        return self._welcomed

    def node_of(self, job_id: str, attempt: int, rank: int) -> str | None:
        """The node on which a rank of a live attempt is; None for any other."""
        return self._table.node_of(job_id, attempt, rank)

    def handle(self, inputs: Sequence[Input], now_ms: int, mono_ms: int) -> Turn:
        """Take in what has happened, in order; what is to be done about it.

        ``now_ms`` is wall clock (it may jump), ``mono_ms`` a clock that never goes back.
        """
        self._now_ms, self._mono_ms, self._turn = now_ms, mono_ms, Turn()
        self._table.begin(now_ms, mono_ms, self._turn)
        for item in inputs:
            self._dispatch(item)
        self._table.close()
        self._talk()
        return self._turn

    def _dispatch(self, item: Input) -> None:
        table = self._table
        match item:
            case FromControl(message):
                self._on_control(message)
            case ex.NodeEvents(node_id, events):
                for event in events:
                    table.on_executor_event(node_id, event)
            case ex.NodeUsed(node_id, used):
                table.on_used(node_id, used)
            case PortAllocated():
                table.on_port(item)
            case ResultsMerged():
                table.on_merged(item)
            case LaunchRefused(key, text):
                table.on_rank_never_ran(key, Outcome.NODE_LOST, text)
            case LaunchUnsure(key, text):
                table.on_launch_unsure(key, text)
            case ex.NodeUp():
                table.on_node_up(item)
            case ex.NodeDown(node_id, text):
                table.on_node_down(node_id, text)
            case LinkUp():
                self._on_link_up()
            case LinkDown():
                self._link_up = self._welcomed = False
            case NodesSettled():
                table.on_settled()
            case StopAll(grace_ms, text):
                table.on_stop_all(text, grace_ms)

    def _on_link_up(self) -> None:
        self._link_up, self._welcomed = True, False
        self._welcome_by_mono_ms = self._mono_ms + self._config.welcome_timeout_ms
        hello = pb.Hello(
            region=self._config.region,
            boot_id=self._config.boot_id,
            spool_id=self._spool_id,
            protocol_version=PROTOCOL_VERSION,
            software_version=self._config.software_version,
        )
        self._send(pb.ConnectRequest(hello=hello))

    def _on_control(self, message: pb.ConnectResponse) -> None:
        if not self._link_up:
            return
        kind = message.WhichOneof("message")
        if kind == "welcome":
            self._on_welcome(message.welcome)
        elif not self._welcomed:
            # Only a Welcome tells whose words these are.
            return
        elif kind == "launch":
            self._table.on_launch(message.launch)
        elif kind == "ack":
            self._table.on_acked(self._outbox.acknowledge(message.ack.seq, self._mono_ms, self._turn.durable))
        elif kind == "lease":
            lease = message.lease
            self._lease.renew(lease.report_seq, lease.ttl_ms, lease.launch_floor, self._turn.durable)
            self._table.on_floor()
            self._table.on_lease()
        elif kind == "stop":
            self._table.on_stop(message.stop)

    def _on_welcome(self, welcome: pb.Welcome) -> None:
        if self._welcomed:
            # A second one on the same stream is a copy, and what it acknowledges is out of date.
            return
        if welcome.leader_epoch < self._epoch:
            self._hang_up(f"the control plane's leader of epoch {welcome.leader_epoch} has been deposed")
            return
        if welcome.leader_epoch > self._epoch:
            self._epoch = welcome.leader_epoch
            self._turn.durable.append(PutMeta(_META_EPOCH, str(self._epoch)))
        self._welcomed = True
        self._heartbeat_ms = max(1, welcome.heartbeat_interval_ms)
        self._report_due_mono_ms = self._mono_ms
        self._table.forget_usage_told()
        self._table.on_acked(self._outbox.welcome(welcome.acked_event_seq, self._mono_ms, self._turn.durable))

    def _hang_up(self, reason: str) -> None:
        self._link_up = self._welcomed = False
        self._turn.effects.append(HangUp(reason))

    def _talk(self) -> None:
        if not self._link_up:
            return
        if not self._welcomed:
            if self._mono_ms >= self._welcome_by_mono_ms:
                self._hang_up("the control plane did not answer Hello")
            return
        if not self._table.settled:
            # A report without all nodes would have the control plane give up what runs on the others.
            return
        if self._table.nodes_changed or self._mono_ms >= self._report_due_mono_ms:
            self._report()
        for events in self._outbox.to_send(self._mono_ms, self._config.resend_after_ms):
            self._send(pb.ConnectRequest(events=pb.AttemptEvents(events=events)))
        if self._mono_ms >= self._usage_due_mono_ms:
            self._report_usage()

    def _report(self) -> None:
        self._report_seq += 1
        self._report_due_mono_ms = self._mono_ms + self._heartbeat_ms
        self._table.nodes_changed = False
        report = pb.StateReport(
            report_seq=self._report_seq,
            event_seq=self._outbox.last_seq,
            nodes=self._table.node_messages,
            attempts=self._table.refs() + self._outbox.ending(),
        )
        self._lease.report_sent(self._report_seq, self._mono_ms)
        self._send(pb.ConnectRequest(state=report))

    def _report_usage(self) -> None:
        """Say what has been used so far. It is not spooled: the next report says all of it again, and more."""
        reports = usage_reports(self._table.usage_news())
        if reports:
            self._usage_due_mono_ms = self._mono_ms + self._config.usage_interval_ms
        for report in reports:
            self._send(pb.ConnectRequest(usage=report))

    def _send(self, message: pb.ConnectRequest) -> None:
        message.sent_at_ms = self._now_ms
        self._turn.effects.append(Send(message))
