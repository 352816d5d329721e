"""The control plane's side of the agent protocol (docs/explanation/agent-protocol.md)."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.agent import (
    AgentMessage,
    AttemptEvent,
    AttemptEvents,
    AttemptRef,
    Checkpointed,
    EventAck,
    Finished,
    Hello,
    Lease,
    Started,
    StateReport,
    Stop,
    UsageReport,
    Welcome,
)
from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.holdings import HoldingKind
from scheduler.domain.spec import PartitionPolicy
from scheduler.domain.states import AttemptOutcome, AttemptState, JobState
from scheduler.service.ending import end_attempt
from scheduler.service.model import Attempt, Node, Region
from scheduler.service.rounds import send_launch
from scheduler.service.state import State


def receive(state: State, region_id: str, session: int, message: AgentMessage) -> None:
    """Handle one message of an agent's session. A superseded session is not listened to."""
    region = state.regions[region_id]
    if isinstance(message, Hello):
        # Not from a stream that a newer one has replaced: the region would be spoken to on neither.
        if session >= region.session:
            _hello(state, region, session, message)
        return
    if region.session != session:
        return
    _heard(state, region)
    if isinstance(message, StateReport):
        _report(state, region, message)
    elif isinstance(message, UsageReport):
        _usage(state, region, message)
    else:
        _events(state, region, message)


def close_session(state: State, region_id: str, session: int) -> None:
    """The session's stream has ended; nothing of its jobs is touched."""
    region = state.regions.get(region_id)
    if region is not None and region.session == session:
        region.session = 0
        region.reported = False
        state.touch_region(region)


def is_listened_to(state: State, region_id: str, session: int) -> bool:
    """Whether this session is the region's present one; not after a newer Hello, nor after a silence longer than a lease."""
    region = state.regions.get(region_id)
    return region is not None and region.session == session


def _heard(state: State, region: Region) -> None:
    region.heard_ms = region.last_seen_ms = state.now()


def _hello(state: State, region: Region, session: int, hello: Hello) -> None:
    if hello.region != region.region:
        raise FailedPrecondition(
            f'This agent is enrolled for region "{region.region}", not "{hello.region}"; enrol it anew.',
            reason="WRONG_REGION",
            field="hello.region",
        )
    region.session = session
    region.reported = False
    region.report_seq = 0
    region.agent_version = hello.software_version
    _heard(state, region)
    if region.spool_id != hello.spool_id:
        region.spool_id = hello.spool_id
        region.event_seq = 0
    state.touch_region(region)
    for attempt in region.attempts.values():
        attempt.told_ms = 0
    state.send(region, Welcome(state.epoch, state.settings.heartbeat_interval_ms, region.event_seq))


# --- state reports ------------------------------------------------------------------------------------------------------


def _report(state: State, region: Region, report: StateReport) -> None:
    if report.report_seq <= region.report_seq:
        return
    region.report_seq = report.report_seq
    # What has been started is never launched again, so only launches nobody has answered keep the floor down. It is taken
    # before anything is launched again below.
    unanswered = (seq for seq, attempt in region.attempts.items() if attempt.state is AttemptState.STARTING)
    floor = next(unanswered, state.counters.launch_seq + 1)
    if report.event_seq >= region.event_seq:
        _take_nodes(state, region, report)
        _reconcile(state, region, report)
    if not region.reported:
        region.reported = True
        state.round_needed = True
        state.touch_region(region)
    state.send(region, Lease(report.report_seq, state.settings.lease_ttl_ms, floor))


def _take_nodes(state: State, region: Region, report: StateReport) -> None:
    reported = {node.node_id for node in report.nodes}
    for node_report in report.nodes:
        before = state.nodes.get((region.region, node_report.node_id))
        if before is not None and before.is_as(node_report):
            continue
        node = Node.from_report(region.region, node_report, before)
        if before is None:
            _stay_drained(state, node, reported)
        elif before.view.isolated and not node.view.isolated:
            state.governance.again = True
        # From the attempts, not from what seemed free: a GPU that went away may have come back with its attempt on it.
        for launch_seq in node.attempts:
            attempt = state.attempts[launch_seq]
            for replica in attempt.replicas:
                if replica.node_id == node_report.node_id:
                    node.take(attempt.job.spec.shape, replica.gpu_indexes, 1)
        if before is not None and before.pool != node.pool:
            state.hide_node(before)
        state.show_node(node)
        state.touch_node(node)
        state.round_needed = True
    for (region_id, node_id), node in list(state.nodes.items()):
        if region_id == region.region and node_id not in reported:
            _node_gone(state, node)


def _node_gone(state: State, node: Node) -> None:
    """A node the agent no longer sees takes no work; it is forgotten when nothing is held on it any more.

    One that is drained is remembered, so that it stays so over a restart of its Ray node, which gives it another id.
    """
    if not node.attempts and not node.view.draining:
        state.drop_node(node)
    elif node.view.up:
        node.view = replace(node.view, up=False)
        state.show_node(node)
        state.touch_node(node)


def _stay_drained(state: State, node: Node, reported: set[str]) -> None:
    """A node that is new by its id, but has the name of a drained one that went, is that one."""
    for earlier in list(state.nodes.values()):
        view = earlier.view
        same = (view.region, view.name) == (node.view.region, node.view.name) and view.node_id not in reported
        if same and view.draining:
            node.view = replace(node.view, draining=True)
            if not earlier.attempts:
                state.drop_node(earlier)


def _reconcile(state: State, region: Region, report: StateReport) -> None:
    """Make what the agent holds and what it should hold agree."""
    now = state.now()
    known = {attempt.ref: attempt for attempt in region.attempts.values()}
    held = set(report.attempts)
    # A launch or stop sent a moment ago may have crossed this report on its way.
    recent_ms = now - state.settings.heartbeat_interval_ms
    for attempt in list(region.attempts.values()):
        if attempt.told_ms > recent_ms:
            continue
        if attempt.stop_outcome is not None:
            attempt.told_ms = now
            outcome = attempt.stop_outcome
            state.send(region, Stop(attempt.ref, attempt.stop_grace_ms, outcome, attempt.job.message))
        elif attempt.ref in held:
            continue
        elif attempt.state is AttemptState.STARTING:
            send_launch(state, attempt)
        else:
            lost = Finished(AttemptOutcome.NODE_LOST, message=f"The agent of region {region.region} lost the attempt.")
            end_attempt(state, attempt, lost, now)
    for ref in report.attempts:
        if ref not in known:
            state.send(region, Stop(ref, 0, AttemptOutcome.CANCELLED, "This attempt is no longer wanted."))


# --- events -------------------------------------------------------------------------------------------------------------


def _events(state: State, region: Region, message: AttemptEvents) -> None:
    """Take events strictly in order; a gap means that some were lost on the way, and the agent sends them again."""
    for event in message.events:
        if event.seq == region.event_seq + 1:
            region.event_seq = event.seq
            _event(state, region, event)
        elif event.seq > region.event_seq:
            break
    state.touch_region(region)
    state.send(region, EventAck(region.event_seq))


def _event(state: State, region: Region, event: AttemptEvent) -> None:
    attempt = find_attempt(state, region, event.ref)
    if attempt is None:
        return
    at_ms = state.now() - event.age_ms
    if isinstance(event.event, Started):
        _started(state, attempt, at_ms)
    elif isinstance(event.event, Finished):
        end_attempt(state, attempt, event.event, at_ms)
    elif isinstance(event.event, Checkpointed):
        attempt.job.checkpoint = event.event.checkpoint
        state.storage.hold_output(attempt.job, HoldingKind.CHECKPOINT, event.event.checkpoint, state.now())
        attempt.saved_ms = max(attempt.grant_ms, min(at_ms, state.now()))
        state.touch_attempt(attempt)
        state.show_running(attempt)
        state.emit(attempt.job, "CHECKPOINTED")


def _usage(state: State, region: Region, message: UsageReport) -> None:
    """Keep what live attempts have used so far. In memory only: it is said again, and the end says it for good."""
    for used in message.attempts:
        attempt = find_attempt(state, region, used.ref)
        if attempt is not None:
            attempt.has_used(used)


def find_attempt(state: State, region: Region, ref: AttemptRef) -> Attempt | None:
    """The live attempt of exactly this name in this region; a report of any other is stale and is ignored."""
    job = state.jobs.get(ref.job_id)
    attempt = job.live if job else None
    if attempt is None or attempt.ref != ref or attempt.region != region.region:
        return None
    return attempt


def _started(state: State, attempt: Attempt, at_ms: int) -> None:
    if attempt.state is not AttemptState.STARTING:
        return
    job = attempt.job
    attempt.state = AttemptState.RUNNING
    attempt.start_ms = max(attempt.grant_ms, min(at_ms, state.now()))
    state.metering.budgets.keep(attempt, state.now())
    state.touch_attempt(attempt)
    state.show_running(attempt)
    if not job.start_ms:
        job.start_ms = attempt.start_ms
        state.observer.wait_ms(job.spec.institution, attempt.start_ms - job.submit_ms)
    state.set_state(job, JobState.RUNNING, job.reason, job.message)


# --- silence ------------------------------------------------------------------------------------------------------------


def check_silence(state: State) -> None:
    """Regions not heard for a lease are offline; after it, their jobs that may move are queued again."""
    ttl_ms = state.settings.lease_ttl_ms
    now = state.now()
    for region in state.regions.values():
        # This process must itself have been up for a lease: before, an agent could not have reached it.
        silent_ms = now - max(region.heard_ms, state.started_ms)
        if region.session and silent_ms > ttl_ms:
            region.session = 0
            region.reported = False
            state.touch_region(region)
        if silent_ms <= ttl_ms + ttl_ms // 10:
            continue
        for attempt in list(region.attempts.values()):
            spec = attempt.job.spec
            if spec.partition_policy is PartitionPolicy.MOVE and silent_ms > ttl_ms + ttl_ms // 10 + spec.grace_ms:
                message = f"Region {region.region} has not been heard of for {silent_ms // 1000} s."
                end_attempt(state, attempt, Finished(AttemptOutcome.NODE_LOST, message=message), now)
