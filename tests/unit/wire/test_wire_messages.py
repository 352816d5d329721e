"""Records and agent messages: what goes out and what comes in."""

from typing import get_type_hints

import pytest

from protos.suanli.v1 import admin_pb2, common_pb2, jobs_pb2, regions_pb2, usage_pb2
from scheduler.catalog.catalogue import Catalogue
from scheduler.domain.agent import (
    AttemptRef,
    AttemptUsage,
    Checkpointed,
    EventAck,
    Finished,
    Launch,
    Lease,
    ReplicaPlacement,
    Started,
    Stop,
    UsageReport,
    Welcome,
)
from scheduler.domain.errors import FailedPrecondition, InvalidArgument
from scheduler.domain.records import AttemptRecord, EventRecord, JobRecord, LedgerRecord
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PartitionPolicy, PriorityClass
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.metering.prices import PriceBook
from scheduler.metering.usage import Dimension
from scheduler.planning.types import NodeView
from scheduler.service.contract import NodeStatus
from scheduler.wire.admin import (
    institution_from_proto,
    node_to_proto,
    project_from_proto,
    quota_from_proto,
    user_from_proto,
)
from scheduler.wire.agent import command_to_proto, hello_from_proto, message_from_proto
from scheduler.wire.jobs import attempt_to_proto, event_to_proto, job_to_proto, query_from_proto
from scheduler.wire.spec import SpecCodec
from scheduler.wire.usage import ledger_to_proto

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def codec() -> SpecCodec:
    return SpecCodec(Catalogue())


def numbered(kind: type, **changes: object):
    """A record in which every field holds another value."""
    values = {}
    for index, (name, annotation) in enumerate(get_type_hints(kind).items(), start=1):
        values[name] = changes.get(name, index if annotation is int else f"{name}-{index}")
    return kind(**values)


def test_every_enumeration_has_the_wires_numbers() -> None:
    def numbers(enum: object, prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): number for name, number in enum.items() if number}  # type: ignore[attr-defined]

    pairs = [
        (JobState, common_pb2.JobState, "JOB_STATE_"),
        (AttemptOutcome, common_pb2.AttemptOutcome, "ATTEMPT_OUTCOME_"),
        (PriorityClass, common_pb2.PriorityClass, "PRIORITY_CLASS_"),
        (PartitionPolicy, jobs_pb2.PartitionPolicy, "PARTITION_POLICY_"),
        (Dimension, usage_pb2.UsageDimension, "USAGE_DIMENSION_"),
    ]
    for ours, theirs, prefix in pairs:
        assert {member.name: int(member) for member in ours} == numbers(theirs, prefix)


def test_no_field_of_a_job_is_lost(codec: SpecCodec) -> None:
    message = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=["a"]))
    spec = codec.read(message, field="jobs[0]", institution="uni-a")
    record = numbered(JobRecord, spec=spec.encoded, state=4, cancel_requested=1)
    record = record._replace(array_size=10, array_next=7, array_succeeded=3, array_failed=1, array_cancelled=1)
    job = job_to_proto(record, codec)
    unset = {f.name for f in job.DESCRIPTOR.fields} - {f.name for f, _ in job.ListFields()}
    assert unset == {"attempts"}
    assert (job.id, job.user, job.submit_time_ms, job.exit_signal) == (
        record.job_id,
        record.user,
        record.submit_ms,
        record.exit_signal,
    )
    array = job.array
    assert (array.size, array.pending, array.active, array.succeeded) == (10, 3, 2, 3)
    assert array.pending + array.active + array.succeeded + array.failed + array.cancelled == array.size
    cancelled = job_to_proto(record._replace(state=7, array_cancelled=6, array_next=4), codec).array
    assert (cancelled.pending, cancelled.active, cancelled.cancelled) == (0, 0, 6)


def test_no_field_of_an_attempt_event_or_ledger_record_is_lost() -> None:
    attempt = attempt_to_proto(
        numbered(AttemptRecord, outcome=2, placement='[["n1",[0,3]],["n2",[]]]'), {("region-9", "n1"): "one"}
    )
    event = event_to_proto(numbered(EventRecord, state=2))
    ledger = ledger_to_proto(numbered(LedgerRecord, outcome=1)._replace(kind=4, hash=b"h"), PriceBook())
    for message in (attempt, event, ledger):
        assert {f.name for f, _ in message.ListFields()} == {f.name for f in message.DESCRIPTOR.fields}
    assert [(r.rank, r.node_id, r.node_name, list(r.gpu_indexes)) for r in attempt.replicas] == [
        (0, "n1", "one", [0, 3]),
        (1, "n2", "", []),
    ]


def test_a_launch_carries_all_that_the_agent_needs(codec: SpecCodec) -> None:
    message = jobs_pb2.JobSpec(python=jobs_pb2.PythonEntryPoint(module="m", args=["x"]), working_folder=DIGEST)
    message.environment["A"] = "1"
    spec = codec.read(message, field="jobs[0]", institution="uni-a")
    launch = Launch(
        AttemptRef("j1", 2, 3),
        4,
        spec,
        "ada",
        "gpu",
        "A100",
        (ReplicaPlacement("n1", (1,)), ReplicaPlacement("n2")),
        "ck",
        5,
        6,
        isolated=True,
    )
    wire = command_to_proto(launch, codec).launch
    assert {f.name for f in wire.DESCRIPTOR.fields} - {f.name for f, _ in wire.ListFields()} == {"parameters_json"}
    assert list(wire.argv) == ["python", "-m", "m", "x"]
    assert (wire.job_id, wire.attempt, wire.lease_epoch, wire.launch_seq) == ("j1", 2, 3, 4)
    assert [(r.rank, r.node_id, list(r.gpu_indexes)) for r in wire.replicas] == [(0, "n1", [1]), (1, "n2", [])]
    assert wire.spec.environment["A"] == "1"


def test_other_commands(codec: SpecCodec) -> None:
    assert command_to_proto(EventAck(7), codec).ack.seq == 7
    lease = command_to_proto(Lease(1, 2, 3), codec).lease
    assert (lease.report_seq, lease.ttl_ms, lease.launch_floor) == (1, 2, 3)
    stop = command_to_proto(Stop(AttemptRef("j", 1, 2), 5, AttemptOutcome.PREEMPTED, "why"), codec).stop
    assert (stop.job_id, stop.grace_ms, stop.outcome, stop.message) == (
        "j",
        5,
        common_pb2.ATTEMPT_OUTCOME_PREEMPTED,
        "why",
    )
    welcome = command_to_proto(Welcome(1, 2, 3), codec, "file:///a").welcome
    assert (welcome.leader_epoch, welcome.heartbeat_interval_ms, welcome.acked_event_seq) == (1, 2, 3)
    assert welcome.artifacts_url == "file:///a"


def events(sent_at_ms: int, *each: regions_pb2.AttemptEvent):
    request = regions_pb2.ConnectRequest(sent_at_ms=sent_at_ms, events=regions_pb2.AttemptEvents(events=each))
    return message_from_proto(request).events


def test_events_carry_their_age_whatever_the_agents_clock_says() -> None:
    started = regions_pb2.AttemptStarted()

    def at(ms: int) -> regions_pb2.AttemptEvent:
        return regions_pb2.AttemptEvent(seq=ms, job_id="j", attempt=1, lease_epoch=2, at_ms=ms, started=started)

    got = events(1000, at(400), at(1000), at(5000))
    assert [event.age_ms for event in got] == [600, 0, 0]
    assert got[0].ref == AttemptRef("j", 1, 2)
    assert got[0].event == Started()


def test_an_end_is_read_whole_and_its_text_bounded() -> None:
    other = DIGEST.replace("0", "1")
    finished = regions_pb2.AttemptFinished(outcome=2, exit_code=3, exit_signal=9, message="x" * 5000, cpu_used_ms=-1)
    finished.MergeFrom(regions_pb2.AttemptFinished(peak_memory_mib=7, results=DIGEST, logs=other))
    (event,) = events(0, regions_pb2.AttemptEvent(seq=1, finished=finished))
    assert event.event == Finished(AttemptOutcome.FAILED, 3, 9, "x" * 2048, 0, 7, DIGEST, "", other)
    checkpoint = regions_pb2.AttemptCheckpointed(checkpoint=DIGEST)
    (event,) = events(0, regions_pb2.AttemptEvent(seq=1, checkpointed=checkpoint))
    assert event.event == Checkpointed(DIGEST)


def test_what_was_used_is_read_whole_and_never_below_nothing() -> None:
    finished = regions_pb2.AttemptFinished(
        outcome=1, cpu_used_ms=4, peak_memory_mib=5, gpu_used_milli_ms=1 << 40, gpu_peak_memory_mib=7
    )
    (event,) = events(0, regions_pb2.AttemptEvent(seq=1, finished=finished))
    assert event.event == Finished(
        AttemptOutcome.SUCCEEDED,
        cpu_used_ms=4,
        peak_memory_mib=5,
        gpu_used_milli_ms=1 << 40,
        gpu_peak_memory_mib=7,
    )
    finished = regions_pb2.AttemptFinished(outcome=1, gpu_used_milli_ms=-1, gpu_peak_memory_mib=-1)
    (event,) = events(0, regions_pb2.AttemptEvent(seq=1, finished=finished))
    assert event.event == Finished(AttemptOutcome.SUCCEEDED)

    def usage(*figures: int) -> regions_pb2.AttemptUsage:
        names = ("cpu_used_ms", "peak_memory_mib", "gpu_used_milli_ms", "gpu_peak_memory_mib")
        return regions_pb2.AttemptUsage(job_id="j", attempt=1, lease_epoch=2, **dict(zip(names, figures, strict=True)))

    report = regions_pb2.UsageReport(attempts=[usage(1, 2, 1 << 41, 4), usage(-1, -2, -3, -4)])
    ref = AttemptRef("j", 1, 2)
    sent = regions_pb2.ConnectRequest(usage=report).SerializeToString()
    got = message_from_proto(regions_pb2.ConnectRequest.FromString(sent))
    assert got == UsageReport((AttemptUsage(ref, 1, 2, 1 << 41, 4), AttemptUsage(ref)))


def test_a_message_that_came_after_this_release_is_passed_over() -> None:
    # Field 99 of the message, with a body: as a control plane of an earlier release sees a report of usage.
    assert message_from_proto(regions_pb2.ConnectRequest.FromString(b"\x9a\x06\x02\x08\x01")) is None


def node(**changes: object) -> regions_pb2.Node:
    values: dict[str, object] = {"id": "n1", "pool": "cpu", "capacity": common_pb2.Resources(cpu_milli=1)}
    return regions_pb2.Node(**values | changes)


def state(*nodes: regions_pb2.Node) -> regions_pb2.ConnectRequest:
    attempts = [regions_pb2.AttemptRef(job_id="j", attempt=1, lease_epoch=2)]
    return regions_pb2.ConnectRequest(
        state=regions_pb2.StateReport(report_seq=3, event_seq=4, nodes=nodes, attempts=attempts)
    )


def test_a_report_is_read_whole() -> None:
    got = message_from_proto(state(node(labels={"b": "2", "a": "1"}, accelerator="A100")))
    assert (got.report_seq, got.event_seq, got.attempts) == (3, 4, (AttemptRef("j", 1, 2),))
    (one,) = got.nodes
    assert (one.name, one.accelerator, one.capacity) == ("n1", "A100", Resources(1, 0, 0))
    assert one.labels == (("a", "1"), ("b", "2"))


HELLO = {"region": "east", "boot_id": "b", "spool_id": "s", "protocol_version": 1}
BAD_MESSAGES = [
    state(node(pool="A b")),
    state(node(id="")),
    state(node(name="a\nb")),
    state(node(capacity=common_pb2.Resources(cpu_milli=-1))),
    state(node(capacity=common_pb2.Resources(gpu_milli=1500))),
    state(node(labels={"k": "v" * 300})),
    regions_pb2.ConnectRequest(events=regions_pb2.AttemptEvents(events=[regions_pb2.AttemptEvent(seq=1)])),
    regions_pb2.ConnectRequest(
        events=regions_pb2.AttemptEvents(events=[regions_pb2.AttemptEvent(finished=regions_pb2.AttemptFinished())])
    ),
    regions_pb2.ConnectRequest(
        events=regions_pb2.AttemptEvents(
            events=[regions_pb2.AttemptEvent(finished=regions_pb2.AttemptFinished(outcome=1, results="x"))]
        )
    ),
    regions_pb2.ConnectRequest(hello=regions_pb2.Hello(**HELLO | {"region": "E"})),
    regions_pb2.ConnectRequest(hello=regions_pb2.Hello(**HELLO | {"spool_id": ""})),
]


@pytest.mark.parametrize("message", BAD_MESSAGES, ids=range(len(BAD_MESSAGES)))
def test_an_agent_that_talks_nonsense_is_refused(message: regions_pb2.ConnectRequest) -> None:
    with pytest.raises(InvalidArgument) as caught:
        message_from_proto(message)
    assert caught.value.field


def test_another_protocol_is_refused() -> None:
    assert hello_from_proto(regions_pb2.Hello(**HELLO)).region == "east"
    with pytest.raises(FailedPrecondition, match="version 2"):
        hello_from_proto(regions_pb2.Hello(**HELLO | {"protocol_version": 2}))


def test_a_log_chunk_is_no_business_of_the_service() -> None:
    assert message_from_proto(regions_pb2.ConnectRequest(log=regions_pb2.LogChunk())) is None
    assert message_from_proto(regions_pb2.ConnectRequest()) is None


def test_administrative_bounds() -> None:
    institution = institution_from_proto(admin_pb2.Institution(id="uni-a"))
    assert institution.weight == 1000
    wrong = [
        (institution_from_proto, admin_pb2.Institution(), "institution.id"),
        (institution_from_proto, admin_pb2.Institution(id="a", weight=1_000_001), "institution.weight"),
        (institution_from_proto, admin_pb2.Institution(id="a", weight=-1), "institution.weight"),
        (institution_from_proto, admin_pb2.Institution(id="a", title="t" * 257), "institution.title"),
        (institution_from_proto, admin_pb2.Institution(id="a", home_region="E"), "institution.home_region"),
        (project_from_proto, admin_pb2.Project(id="p"), "project.institution"),
        (project_from_proto, admin_pb2.Project(institution="a", id="P"), "project.id"),
        (user_from_proto, admin_pb2.User(id="u"), "user.role"),
        (user_from_proto, admin_pb2.User(id="u", role=5), "user.role"),
        (user_from_proto, admin_pb2.User(id="u", role=1), "user.institution"),
        (user_from_proto, admin_pb2.User(id="u", institution="a", role=4), "user.institution"),
        (quota_from_proto, admin_pb2.Quota(institution="a", cpu_milli=-2), "quota.cpu_milli"),
        (quota_from_proto, admin_pb2.Quota(institution="a", pending_jobs=10_000_001), "quota.pending_jobs"),
    ]
    for function, message, field in wrong:
        with pytest.raises(InvalidArgument) as caught:
            function(message)
        assert caught.value.field == field


def test_a_node_shows_what_is_held() -> None:
    view = NodeView(
        "east",
        "n1",
        "one",
        "gpu",
        "A100",
        (("zone", "b"),),
        Resources(8000, 100, 2000),
        Resources(3000, 40, 1500),
        (1000, 500),
    )
    shown = node_to_proto(NodeStatus(view, 2))
    assert shown.allocated == common_pb2.Resources(cpu_milli=5000, memory_mib=60, gpu_milli=500)
    assert list(shown.gpu_allocated_milli) == [0, 500]
    assert shown.node.labels["zone"] == "b"
    assert (shown.up, shown.draining, shown.active_attempts) == (True, False, 2)


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"institution": "A"}, "filter.institution"),
        ({"states": [9]}, "filter.states[0]"),
        ({"states": [1] * 17}, "filter.states"),
        ({"array_id": "a b"}, "filter.array_id"),
        ({"name": "a\nb"}, "filter.name"),
        ({"submitted_from_ms": -1}, "filter.submitted_from_ms"),
        ({"labels": {f"k{i}": "v" for i in range(65)}}, "filter.labels"),
    ],
)
def test_a_faulty_filter_names_its_field(filters: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        query_from_proto(jobs_pb2.JobFilter(**filters))
    assert caught.value.field == field
