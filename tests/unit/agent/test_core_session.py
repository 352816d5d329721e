"""Hello, Welcome, reports, events and acknowledgements, leases and leaders."""

from __future__ import annotations

from protos.suanli.v1 import regions_pb2 as pb
from tests.unit.agent.harness import NODES, Rig, exited, launch, node_up, started, stop
from workers.core_types import LinkDown, LinkUp, NodesSettled, PoolRule
from workers.executor import types as ex


def run_job(rig: Rig, job: str, seq: int) -> None:
    """A whole life in two turns: two events."""
    rig.say(launch=launch(job, seq=seq))
    rig.executor("n1", started(job), exited(job))


def test_hello_first_then_state_then_unacknowledged_events() -> None:
    rig = Rig().join().connect()
    rig.lease()
    run_job(rig, "j1", 1)
    rig.feed(LinkDown())
    rig.effects.clear()
    rig.feed(LinkUp())
    (hello,) = rig.sent("hello")
    assert (hello.region, hello.boot_id, hello.spool_id, hello.protocol_version) == ("east", "b1", "spool-1", 1)
    assert len(rig.effects) == 1
    rig.say(welcome=pb.Welcome(leader_epoch=1, heartbeat_interval_ms=1000, acked_event_seq=1))
    kinds = [effect.message.WhichOneof("message") for effect in rig.effects]
    assert kinds == ["hello", "state", "events"]
    assert [event.seq for event in rig.events()] == [2]
    report = rig.reports()[0]
    assert report.event_seq == 2
    assert [node.id for node in report.nodes] == list(NODES)
    assert [(ref.job_id, ref.attempt, ref.lease_epoch) for ref in report.attempts] == [("j1", 1, 7)]


def test_nothing_but_hello_before_the_nodes_are_known() -> None:
    rig = Rig()
    rig.connect()
    rig.say(launch=launch())
    assert not rig.reports()
    assert not rig.events()
    rig.feed(*(node_up(node_id) for node_id in NODES), NodesSettled())
    (report,) = rig.reports()
    assert len(report.nodes) == 3
    assert not report.attempts


def test_report_at_every_heartbeat_and_on_change_of_nodes() -> None:
    rig = Rig().ready()
    rig.later(999)
    assert not rig.reports()
    rig.later(1)
    assert [report.report_seq for report in rig.reports()] == [2]
    rig.feed(ex.NodeDown("n2", "gone"))
    assert [node.id for node in rig.reports()[-1].nodes] == ["n1", "n3"]
    assert len(rig.reports()) == 2


def test_an_attempt_is_reported_until_its_end_is_acknowledged() -> None:
    rig = Rig().ready()
    rig.say(launch=launch())
    rig.later(1000)
    rig.executor("n1", started(), exited())
    rig.later(1000)
    assert [len(report.attempts) for report in rig.reports()] == [1, 1]
    rig.ack_all()
    rig.later(1000)
    assert not rig.reports()[-1].attempts


def test_events_are_spooled_in_the_turn_that_sends_them() -> None:
    rig = Rig().ready()
    rig.say(launch=launch())
    rig.executor("n1", started())
    (kept,) = rig.spool.load().events
    (sent,) = rig.events()
    assert pb.AttemptEvent.FromString(kept.payload) == sent
    rig.ack_all()
    assert rig.spool.load().events == ()
    assert rig.spool.load().acked_seq == 1


def test_unacknowledged_events_are_sent_again_from_the_first_one() -> None:
    rig = Rig(resend_after_ms=5000).ready()
    run_job(rig, "j1", 1)
    run_job(rig, "j2", 2)
    rig.effects.clear()
    rig.later(4000)
    assert not rig.events()
    rig.say(ack=pb.EventAck(seq=1))
    rig.later(4900)
    assert not rig.events()
    rig.later(100)
    assert [event.seq for event in rig.events()] == [2, 3, 4]


def test_an_acknowledgement_of_what_was_never_written_is_ignored() -> None:
    rig = Rig().ready()
    run_job(rig, "j1", 1)
    rig.say(ack=pb.EventAck(seq=99))
    assert rig.core.unacknowledged_events == 2


def test_numbers_go_on_after_a_restart() -> None:
    rig = Rig().ready()
    run_job(rig, "j1", 1)
    rig.ack_all()
    rig.start()
    rig.ready()
    run_job(rig, "j2", 2)
    assert [event.seq for event in rig.events()] == [3, 4]


def test_a_spool_that_was_set_back_gives_its_events_numbers_the_control_plane_waits_for() -> None:
    rig = Rig().ready()
    run_job(rig, "j1", 1)
    rig.effects.clear()
    rig.connect(acked=50)
    assert [event.seq for event in rig.events()] == [51, 52]
    assert [event.seq for event in rig.spool.load().events] == [51, 52]


def test_a_control_plane_that_was_set_back_gets_the_numbers_it_waits_for() -> None:
    rig = Rig().ready()
    run_job(rig, "j1", 1)
    rig.ack_all()
    run_job(rig, "j2", 2)
    rig.effects.clear()
    rig.connect(acked=1)
    assert [(event.seq, event.job_id) for event in rig.events()] == [(2, "j2"), (3, "j2")]


def test_a_copy_of_the_welcome_changes_nothing() -> None:
    rig = Rig().ready()
    run_job(rig, "j1", 1)
    rig.ack_all()
    run_job(rig, "j2", 2)
    rig.effects.clear()
    rig.say(welcome=pb.Welcome(leader_epoch=1, heartbeat_interval_ms=1000, acked_event_seq=0))
    assert not rig.effects
    assert [event.seq for event in rig.spool.load().events] == [3, 4]


def test_a_deposed_leader_is_hung_up_on_even_after_a_restart() -> None:
    rig = Rig().join().connect(epoch=5)
    rig.start()
    rig.join().connect(epoch=4)
    assert "deposed" in rig.hang_ups()[0]
    assert not rig.core.welcomed
    rig.say(launch=launch())
    assert not rig.starts()
    rig.connect(epoch=5)
    assert rig.core.welcomed


def test_no_word_counts_before_the_welcome() -> None:
    rig = Rig().join()
    rig.feed(LinkUp())
    rig.say(launch=launch())
    rig.say(stop=stop("j9"))
    assert not rig.starts()
    assert rig.core.unacknowledged_events == 0


def test_a_silent_control_plane_is_hung_up_on() -> None:
    rig = Rig(welcome_timeout_ms=2000).join()
    rig.feed(LinkUp())
    rig.later(1999)
    assert not rig.hang_ups()
    rig.later(1)
    assert rig.hang_ups() == ["the control plane did not answer Hello"]


def test_many_events_go_in_few_messages() -> None:
    rig = Rig().ready()
    rig.feed(LinkDown())
    rig.connect()
    rig.effects.clear()
    for number in range(300):
        rig.say(launch=launch(f"j{number}", seq=number + 1))
    assert not rig.events()
    every = [event for number in range(300) for event in (started(f"j{number}"), exited(f"j{number}"))]
    rig.executor("n1", *every)
    assert len(rig.sent("events")) == 3
    assert [event.seq for event in rig.events()] == list(range(1, 601))


def test_move_attempts_are_dead_before_the_lease_ends_and_wait_attempts_go_on() -> None:
    rig = Rig().ready()
    sent_at = rig.mono_ms
    rig.say(launch=launch("moves", move=True, grace_ms=2000))
    rig.say(launch=launch("waits", seq=2))
    rig.executor("n1", started("moves"), started("waits"))
    rig.feed(LinkDown())
    rig.effects.clear()
    while not rig.stops():
        rig.later(100)
        assert rig.mono_ms < sent_at + 10_000
    ((node, _, grace_ms),) = rig.stops()
    assert node == "n1"
    assert 0 < grace_ms <= 2000
    assert rig.mono_ms + grace_ms < sent_at + 10_000
    rig.later(60_000)
    assert {effect.key.job_id for effect in rig.effects if hasattr(effect, "key")} == {"moves"}
    rig.executor("n1", exited("moves", reason=ex.ExitReason.STOPPED))
    rig.connect()
    assert rig.finished().outcome == 6
    assert "lease" in rig.finished().message


def test_a_lease_counts_from_the_sending_of_its_report() -> None:
    rig = Rig().ready()
    rig.say(launch=launch(move=True, grace_ms=0))
    rig.later(1000)
    seq = rig.reports()[-1].report_seq
    sent_at = rig.mono_ms
    rig.later(500)
    rig.say(lease=pb.Lease(report_seq=seq, ttl_ms=20_000))
    rig.later(17_400)
    assert not rig.stops()
    rig.later(sent_at + 18_000 - rig.mono_ms)
    assert rig.stops()


def test_a_long_grace_does_not_keep_a_job_from_running_on_a_short_lease() -> None:
    rig = Rig().ready()
    rig.say(launch=launch(move=True, grace_ms=600_000))
    rig.executor("n1", started())
    for _ in range(20):
        rig.later(1000)
        rig.lease()
    assert not rig.stops()


def test_a_move_attempt_is_not_started_without_a_lease() -> None:
    rig = Rig().join().connect()
    rig.say(launch=launch(move=True))
    assert not rig.starts()
    rig.lease()
    rig.say(launch=launch(move=True))
    assert len(rig.starts()) == 1


def test_the_lease_outlives_the_agent_on_its_machine_only() -> None:
    for machine, goes_on in (("m1", True), ("m2", False)):
        rig = Rig().ready()
        rig.say(launch=launch(move=True))
        rig.executor("n1", started())
        rig.machine = machine
        rig.start()
        info = ex.AttemptInfo("j1", 1, 0, ex.AttemptState.RUNNING, 9, rig.wall_ms, ex.Usage())
        rig.feed(node_up("n1", attempts=[info]), NodesSettled())
        assert bool(rig.stops()) is not goes_on
        rig.later(11_000)
        assert rig.stops()


def test_a_node_is_in_the_pool_of_the_first_rule_or_of_its_label_or_of_its_kind() -> None:
    rig = Rig(pools=(PoolRule("big", {"size": "l"}),))
    rig.feed(
        node_up("n1", size="l"),
        node_up("n2", **{"suanli.io/pool": "mine"}),
        node_up("n3", gpus=2),
        node_up("n4", **{"suanli.io/pool": "Not A Slug"}),
        NodesSettled(),
    )
    rig.connect()
    nodes = rig.reports()[0].nodes
    assert [node.pool for node in nodes] == ["big", "mine", "gpu", "cpu"]
    assert nodes[2].capacity.gpu_milli == 2000
    assert (nodes[2].accelerator, nodes[3].accelerator) == ("A100", "")
