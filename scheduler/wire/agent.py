"""The agent protocol: its messages as domain values and back."""

from __future__ import annotations

from collections.abc import Iterable

from protos.suanli.v1 import common_pb2, jobs_pb2, regions_pb2
from scheduler.domain.agent import (
    AgentCommand,
    AgentMessage,
    AttemptEvent,
    AttemptEvents,
    AttemptRef,
    AttemptUsage,
    Checkpointed,
    EventAck,
    Finished,
    Hello,
    Launch,
    Lease,
    NodeReport,
    Started,
    StateReport,
    Stop,
    UsageReport,
    Welcome,
)
from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.resources import Resources
from scheduler.domain.states import AttemptOutcome
from scheduler.wire import check
from scheduler.wire.spec import SpecCodec

PROTOCOL_VERSION = 1
MAX_NODES = 10_000
MAX_MESSAGE_TEXT = 2048
_MAX_AMOUNT = 1 << 50


def hello_from_proto(message: regions_pb2.Hello) -> Hello:
    """An agent's first message. ``FailedPrecondition`` when it speaks another version of the protocol."""
    if message.protocol_version != PROTOCOL_VERSION:
        raise FailedPrecondition(
            f"the agent speaks version {message.protocol_version} of the agent protocol and this control plane version "
            f"{PROTOCOL_VERSION}; upgrade the older of the two.",
            reason="PROTOCOL_VERSION",
            field="hello.protocol_version",
        )
    check.slug(message.region, "hello.region", "a region's id")
    for part in ("boot_id", "spool_id", "software_version"):
        check.text(getattr(message, part), 128, f"hello.{part}")
    if not message.boot_id or not message.spool_id:
        check.invalid("hello", "boot_id and spool_id name this start of the agent and its spool; give both.")
    return Hello(message.region, message.boot_id, message.spool_id, message.software_version)


def message_from_proto(message: regions_pb2.ConnectRequest) -> AgentMessage | None:
    """What the agent says; None for a log chunk, which is no business of the service, and for an unknown message."""
    kind = message.WhichOneof("message")
    if kind == "events":
        return AttemptEvents(tuple(_event(event, message.sent_at_ms) for event in message.events.events))
    if kind == "state":
        return _state(message.state)
    if kind == "usage":
        return UsageReport(tuple(_usage(one) for one in message.usage.attempts))
    if kind == "hello":
        return hello_from_proto(message.hello)
    return None


def _state(message: regions_pb2.StateReport) -> StateReport:
    check.count(len(message.nodes), MAX_NODES, "state.nodes", "nodes")
    return StateReport(
        message.report_seq,
        message.event_seq,
        tuple(_node(node, f"state.nodes[{index}]") for index, node in enumerate(message.nodes)),
        tuple(_ref(attempt) for attempt in message.attempts),
    )


def _node(node: regions_pb2.Node, field: str) -> NodeReport:
    check.slug(node.pool, f"{field}.pool", "a pool's id")
    if not node.id:
        check.invalid(f"{field}.id", "it is empty; every node needs an id of its own.")
    for part in ("id", "name", "accelerator"):
        check.text(getattr(node, part), 253, f"{field}.{part}")
    capacity = node.capacity
    for part in ("cpu_milli", "memory_mib", "gpu_milli"):
        check.integer(getattr(capacity, part), 0, _MAX_AMOUNT, f"{field}.capacity.{part}")
    if capacity.gpu_milli % 1000:
        check.invalid(f"{field}.capacity.gpu_milli", "a node has whole GPUs; give a multiple of 1,000.")
    check.count(len(node.labels), 256, f"{field}.labels", "labels")
    for key, value in node.labels.items():
        check.text(key, 253, f"{field}.labels")
        check.text(value, 256, f"{field}.labels")
    return NodeReport(
        node.id,
        node.name or node.id,
        node.pool,
        node.accelerator,
        Resources(capacity.cpu_milli, capacity.memory_mib, capacity.gpu_milli),
        tuple(sorted(node.labels.items())),
    )


def _ref(message: regions_pb2.AttemptRef | regions_pb2.AttemptEvent | regions_pb2.AttemptUsage) -> AttemptRef:
    return AttemptRef(message.job_id, message.attempt, message.lease_epoch)


def _usage(message: regions_pb2.AttemptUsage) -> AttemptUsage:
    return AttemptUsage(
        _ref(message),
        max(0, message.cpu_used_ms),
        max(0, message.peak_memory_mib),
        max(0, message.gpu_used_milli_ms),
        max(0, message.gpu_peak_memory_mib),
    )


def _event(message: regions_pb2.AttemptEvent, sent_at_ms: int) -> AttemptEvent:
    kind = message.WhichOneof("event")
    event: Started | Finished | Checkpointed
    if kind == "started":
        event = Started()
    elif kind == "finished":
        event = _finished(message.finished)
    elif kind == "checkpointed":
        event = Checkpointed(check.digest(message.checkpointed.checkpoint, "events.checkpointed.checkpoint"))
    else:
        check.invalid(
            "events", f"event {message.seq} is of no kind this control plane knows; upgrade the control plane."
        )
    return AttemptEvent(message.seq, _ref(message), max(0, sent_at_ms - message.at_ms), event)


def _finished(message: regions_pb2.AttemptFinished) -> Finished:
    if message.outcome not in _OUTCOMES:
        check.invalid("events.finished.outcome", f"{message.outcome} is not an outcome this control plane knows.")
    for part in ("results", "checkpoint", "logs"):
        value = getattr(message, part)
        if value:
            check.digest(value, f"events.finished.{part}")
    return Finished(
        _OUTCOMES[message.outcome],
        message.exit_code,
        message.exit_signal,
        message.message[:MAX_MESSAGE_TEXT],
        max(0, message.cpu_used_ms),
        max(0, message.peak_memory_mib),
        message.results,
        message.checkpoint,
        message.logs,
        max(0, message.gpu_used_milli_ms),
        max(0, message.gpu_peak_memory_mib),
    )


_OUTCOMES: dict[int, AttemptOutcome] = {int(outcome): outcome for outcome in AttemptOutcome}


def command_to_proto(command: AgentCommand, codec: SpecCodec, artifacts_url: str = "") -> regions_pb2.ConnectResponse:
    """What the agent is told. ``artifacts_url`` goes with the welcome."""
    response = regions_pb2.ConnectResponse()
    if isinstance(command, Launch):
        _fill_launch(response.launch, command, codec)
    elif isinstance(command, EventAck):
        response.ack.seq = command.seq
    elif isinstance(command, Lease):
        response.lease.CopyFrom(
            regions_pb2.Lease(report_seq=command.report_seq, ttl_ms=command.ttl_ms, launch_floor=command.launch_floor)
        )
    elif isinstance(command, Stop):
        _fill_stop(response.stop, command)
    else:
        _fill_welcome(response.welcome, command, artifacts_url)
    return response


def _fill_launch(message: regions_pb2.Launch, launch: Launch, codec: SpecCodec) -> None:
    workload = launch.spec.workload
    message.MergeFrom(
        regions_pb2.Launch(
            job_id=launch.ref.job_id,
            attempt=launch.ref.attempt,
            lease_epoch=launch.ref.lease_epoch,
            launch_seq=launch.launch_seq,
            user=launch.user,
            pool=launch.pool,
            accelerator=launch.accelerator,
            replicas=_replicas(launch),
            argv=workload.argv,
            working_folder=workload.working_folder,
            parameters_json=workload.parameters_json,
            checkpoint=launch.checkpoint,
            array_index=launch.array_index,
            array_size=launch.array_size,
            isolated=launch.isolated,
        )
    )
    message.spec.CopyFrom(codec.message(launch.spec.encoded))


def _replicas(launch: Launch) -> Iterable[jobs_pb2.ReplicaPlacement]:
    return [
        jobs_pb2.ReplicaPlacement(rank=rank, node_id=replica.node_id, gpu_indexes=replica.gpu_indexes)
        for rank, replica in enumerate(launch.replicas)
    ]


def _fill_stop(message: regions_pb2.Stop, stop: Stop) -> None:
    message.job_id = stop.ref.job_id
    message.attempt = stop.ref.attempt
    message.lease_epoch = stop.ref.lease_epoch
    message.grace_ms = stop.grace_ms
    message.outcome = common_pb2.AttemptOutcome.ValueType(int(stop.outcome))
    message.message = stop.message


def _fill_welcome(message: regions_pb2.Welcome, welcome: Welcome, artifacts_url: str) -> None:
    message.leader_epoch = welcome.leader_epoch
    message.heartbeat_interval_ms = welcome.heartbeat_interval_ms
    message.acked_event_seq = welcome.acked_event_seq
    message.artifacts_url = artifacts_url
