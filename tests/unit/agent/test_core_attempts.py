"""Launches, stops, losses and restarts."""

from __future__ import annotations

import pytest

from protos.suanli.v1 import jobs_pb2
from protos.suanli.v1 import regions_pb2 as pb
from tests.unit.agent.harness import NODES, WALL, Rig, exited, info, launch, node_up, started, stop
from workers.core_tombstones import ORPHAN_LIFE_MS
from workers.core_types import (
    LaunchRefused,
    LaunchUnsure,
    LinkDown,
    MergeResults,
    NodesSettled,
    PortAllocated,
    StartRank,
    StopAll,
)
from workers.executor import types as ex

R = ex.ExitReason
SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, PREEMPTED, NODE_LOST, OUT_OF_MEMORY, SPAWN_FAILED, ENVIRONMENT_FAILED = range(
    1, 10
)


def test_a_job_starts_runs_and_ends(rig: Rig) -> None:
    rig.say(launch=launch())
    (started_on,) = (effect for effect in rig.effects if isinstance(effect, StartRank))
    assert started_on.node_id == "n1"
    one = started_on.launch
    assert (one.argv, one.env, one.rank, one.world_size, one.master_port) == (("true",), {"A": "1"}, 0, 1, 0)
    assert (one.keep.user, one.keep.institution, one.keep.region, one.keep.array_index) == ("ann", "uni", "east", None)
    rig.executor("n1", started(at_ms=WALL - 5))
    left = {"results_manifest": "sha256:r", "checkpoint_manifest": "sha256:c", "logs_manifest": "sha256:l"}
    rig.executor("n1", exited(ended_ms=WALL - 1, **left))
    first, last = rig.events()
    assert (first.WhichOneof("event"), first.at_ms, first.lease_epoch) == ("started", WALL - 5, 7)
    assert last.at_ms == WALL - 1
    done = last.finished
    assert (done.outcome, done.cpu_used_ms, done.peak_memory_mib) == (SUCCEEDED, 10, 5)
    assert (done.results, done.checkpoint, done.logs) == ("sha256:r", "sha256:c", "sha256:l")


def test_a_clock_ahead_does_not_make_events_of_the_future(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started(at_ms=WALL + 10_000), exited(ended_ms=WALL + 20_000))
    assert [event.at_ms for event in rig.events()] == [WALL, WALL]


def test_a_launch_runs_once_however_often_it_comes(rig: Rig) -> None:
    for _ in range(3):
        rig.say(launch=launch())
    rig.executor("n1", started(), exited())
    rig.say(launch=launch())
    rig.ack_all()
    rig.say(launch=launch())
    rig.start()
    rig.ready()
    rig.effects.clear()
    rig.say(launch=launch())
    assert not rig.starts()


def test_a_launch_below_the_floor_is_ignored_and_its_tombstone_goes(rig: Rig) -> None:
    rig.say(launch=launch(seq=5))
    rig.executor("n1", started(), exited())
    rig.later(1000)
    rig.lease(floor=6)
    assert [record.finished for record in rig.spool.load().attempts] == [True], "kept: its end is not acknowledged"
    rig.ack_all()
    rig.later(1000)
    rig.lease(floor=7)
    assert rig.spool.load().attempts == ()
    rig.effects.clear()
    rig.say(launch=launch(seq=5))
    rig.start()
    rig.join().connect()
    rig.say(launch=launch(seq=5))
    assert not rig.starts()
    assert not rig.events()


def test_a_settled_tombstone_goes_with_the_next_lease_even_if_the_floor_stands(rig: Rig) -> None:
    rig.say(launch=launch(seq=5))
    rig.executor("n1", started(), exited())
    rig.later(1000)
    rig.lease(floor=6)
    rig.ack_all()
    rig.later(1000)
    rig.lease(floor=6)
    assert rig.spool.load().attempts == ()


def test_a_floor_that_stands_still_does_not_fill_the_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.core_tombstones.TOMBSTONES_MAX", 5)
    rig.say(launch=launch("long", seq=1))
    for seq in range(2, 22):
        rig.say(launch=launch(f"j{seq}", seq=seq))
        rig.executor("n1", started(f"j{seq}"), exited(f"j{seq}"))
    rig.ack_all()
    rig.later(1000)
    rig.lease(floor=1)
    assert [record.job_id for record in rig.spool.load().attempts if record.finished] == sorted(
        f"j{n}" for n in range(17, 22)
    )


def test_one_attempt_of_a_job_at_a_time(rig: Rig) -> None:
    rig.say(launch=launch(attempt=1))
    rig.executor("n1", started())
    rig.say(launch=launch(attempt=2, nodes=["n2"], seq=2))
    assert len(rig.starts()) == 1
    assert rig.stops() == [("n1", 0, 0)]
    rig.executor("n1", exited(reason=R.STOPPED))
    rig.say(launch=launch(attempt=2, nodes=["n2"], seq=2))
    assert [one.attempt for one in rig.starts()] == [1, 2]


def test_an_older_attempt_does_not_disturb_a_newer_one(rig: Rig) -> None:
    rig.say(launch=launch(attempt=2, seq=2))
    rig.say(launch=launch(attempt=1, seq=1))
    assert [one.attempt for one in rig.starts()] == [2]
    assert not rig.stops()


@pytest.mark.parametrize("nodes", [["n9"], ["n1", "n9"]])
def test_a_launch_on_an_unknown_node_is_lost_at_once(rig: Rig, nodes: list[str]) -> None:
    rig.say(launch=launch(nodes=nodes))
    assert (rig.finished().outcome, rig.finished().lost_node_id) == (NODE_LOST, "n9")
    rig.feed(node_up("n9"))
    rig.say(launch=launch(nodes=nodes))
    assert not rig.starts()


def test_a_launch_without_sense_or_without_its_data_is_refused_in_a_sentence(rig: Rig) -> None:
    bad = launch("bad")
    bad.replicas[0].rank = 3
    rig.say(launch=bad)
    assert (rig.finished().outcome, rig.finished().message[:10]) == (SPAWN_FAILED, "the launch")
    rig.effects.clear()
    data = launch("data", seq=2)
    data.spec.data_sets.append("star98")
    rig.say(launch=data)
    assert rig.finished().outcome == ENVIRONMENT_FAILED
    assert "star98" in rig.finished().message


def test_gpus_are_named_by_the_drivers_numbers() -> None:
    rig = Rig()
    rig.feed(node_up("n1", gpus=2), NodesSettled())
    rig.connect()
    one = launch()
    one.replicas[0].gpu_indexes.append(1)
    rig.say(launch=one)
    assert rig.starts()[0].gpu_indices == (5,)


def test_stop_ends_with_the_outcome_that_was_asked_for(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.say(stop=stop(outcome=PREEMPTED))
    assert rig.stops() == [("n1", 0, 2000)]
    rig.executor("n1", exited(reason=R.STOPPED))
    assert (rig.finished().outcome, rig.finished().message) == (PREEMPTED, "asked for")


def test_a_repeated_stop_only_makes_it_sooner_and_the_newest_outcome_counts(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.say(stop=stop(outcome=PREEMPTED, grace_ms=5000))
    rig.say(stop=stop(outcome=PREEMPTED, grace_ms=5000))
    rig.say(stop=stop(outcome=CANCELLED, grace_ms=9000))
    rig.say(stop=stop(outcome=CANCELLED, grace_ms=100))
    assert [grace for _, _, grace in rig.stops()] == [5000, 100]
    rig.executor("n1", exited(reason=R.STOPPED))
    assert rig.finished().outcome == CANCELLED


def test_a_stop_of_another_epoch_is_ignored(rig: Rig) -> None:
    rig.say(launch=launch(epoch=7))
    rig.say(stop=stop(epoch=6))
    assert not rig.stops()


def test_a_stop_that_comes_too_late_does_not_hide_success_or_failure(rig: Rig) -> None:
    rig.say(launch=launch("good"))
    rig.say(stop=stop("good"))
    rig.executor("n1", started("good"), exited("good"))
    assert rig.finished().outcome == SUCCEEDED
    rig.effects.clear()
    rig.say(launch=launch("bad", nodes=("n1", "n2"), seq=2))
    rig.feed(PortAllocated("bad", 1, 1234))
    rig.executor("n1", started("bad"), exited("bad", code=3))
    rig.say(stop=stop("bad"))
    rig.executor("n2", started("bad", rank=1), exited("bad", rank=1, reason=R.STOPPED))
    assert (rig.finished().outcome, rig.finished().exit_code) == (FAILED, 3)


def test_a_stop_of_an_unknown_attempt_is_confirmed_at_once_and_it_never_runs(rig: Rig) -> None:
    rig.say(stop=stop())
    assert (rig.finished().outcome, rig.finished().message) == (CANCELLED, "asked for")
    rig.say(stop=stop())
    rig.say(launch=launch())
    assert not rig.starts()
    assert len(rig.events()) == 1
    rig.ack_all()
    rig.later(1000)
    rig.lease(floor=9)
    assert rig.spool.load().attempts == (), "the late launch told its number, so the floor settles it"


def test_a_tombstone_whose_launch_never_came_goes_by_age(rig: Rig) -> None:
    rig.say(stop=stop())
    rig.ack_all()
    rig.later(1000)
    rig.lease(floor=100)
    assert len(rig.spool.load().attempts) == 1
    rig.later(ORPHAN_LIFE_MS)
    assert rig.spool.load().attempts == ()


def test_a_stop_of_a_finished_attempt_adds_nothing(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started(), exited())
    rig.say(stop=stop())
    rig.ack_all()
    rig.say(stop=stop())
    assert rig.kinds() == ["started", "finished"]


def test_a_stop_that_nobody_answers_is_repeated(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.say(stop=stop(grace_ms=2000))
    rig.later(11_000)
    assert len(rig.stops()) == 1
    rig.later(1_000)
    assert rig.stops()[1:] == [("n1", 0, 0)]


# Executors.


def test_each_reason_has_its_outcome(rig: Rig) -> None:
    expected = {
        R.SIGNALLED: FAILED,
        R.OUT_OF_MEMORY: OUT_OF_MEMORY,
        R.OUT_OF_DISK: FAILED,
        R.TIMED_OUT: TIMED_OUT,
        R.STOPPED: NODE_LOST,
        R.SPAWN_FAILED: SPAWN_FAILED,
        R.ENVIRONMENT_FAILED: ENVIRONMENT_FAILED,
        R.LOST: NODE_LOST,
        R.EXITED: FAILED,
    }
    assert set(expected) == set(R)
    for number, (reason, outcome) in enumerate(expected.items(), 1):
        rig.effects.clear()
        rig.say(launch=launch(f"j{number}", seq=number))
        rig.executor("n1", exited(f"j{number}", reason=reason, code=2, message="why"))
        assert rig.finished().outcome == outcome, reason


def test_a_refused_launch_is_tried_elsewhere(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.feed(LaunchRefused(ex.AttemptKey("j1", 1), "too much to do"))
    assert (rig.finished().outcome, rig.finished().message) == (NODE_LOST, "too much to do")


def test_a_launch_that_may_or_may_not_have_arrived_is_made_sure_not_to_run(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.feed(LaunchUnsure(ex.AttemptKey("j1", 1), "the call failed"))
    assert rig.stops() == [("n1", 0, 0)]
    assert rig.finished().outcome == NODE_LOST
    rig.effects.clear()
    rig.executor("n1", started())
    assert rig.stops() == [("n1", 0, 0)]


def test_what_nobody_asked_for_is_killed(rig: Rig) -> None:
    rig.executor("n1", started("stranger"))
    assert rig.stops() == [("n1", 0, 0)]
    assert not rig.events()
    rig.effects.clear()
    infos = [
        ex.AttemptInfo("s1", 1, 0, ex.AttemptState.PREPARING, None, 0, ex.Usage()),
        ex.AttemptInfo("s2", 1, 0, ex.AttemptState.RUNNING, 8, WALL, ex.Usage()),
        ex.AttemptInfo("s3", 1, 0, ex.AttemptState.ENDED, 9, WALL, ex.Usage(), exited("s3")),
    ]
    rig.feed(node_up("n4", attempts=infos))
    assert [effect.key.job_id for effect in rig.effects if hasattr(effect, "key")] == ["s1", "s2"]


def test_an_executor_started_anew_has_lost_what_ran_under_the_old_one(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.feed(node_up("n1", "e2"))
    assert rig.finished().outcome == NODE_LOST


def test_the_same_executor_heard_of_again_has_lost_nothing(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.feed(node_up("n1", "e1"))
    rig.executor("n1", started(), exited())
    assert rig.finished().outcome == SUCCEEDED


def test_only_the_newest_checkpoint_waits_while_one_is_not_acknowledged(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.feed(LinkDown())
    for number in range(50):
        rig.executor("n1", ex.Checkpointed("j1", 1, 0, f"sha256:{number}", WALL))
    assert len(rig.spool.load().events) == 2
    rig.connect()
    rig.ack_all()
    told = [event.checkpointed.checkpoint for event in rig.events() if event.HasField("checkpointed")]
    assert told == ["sha256:0", "sha256:49"]
    rig.feed(ex.NodeDown("n1", "died"))
    assert rig.finished().checkpoint == "sha256:49"


# Restarts of the agent.


def test_a_checkpoint_event_on_its_way_is_remembered(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started(), ex.Checkpointed("j1", 1, 0, "sha256:a", WALL))
    rig.start()
    rig.feed(node_up("n1", attempts=[info()]), NodesSettled())
    rig.connect()
    rig.executor("n1", ex.Checkpointed("j1", 1, 0, "sha256:b", WALL))
    assert rig.kinds() == ["started", "checkpointed"]
    rig.ack_all()
    assert rig.kinds() == ["started", "checkpointed", "checkpointed"]


def test_a_stop_due_before_the_node_is_found_again_is_sent_when_it_is(rig: Rig) -> None:
    rig.say(launch=launch(move=True))
    rig.executor("n1", started())
    rig.mono_ms += 20_000
    rig.start()
    rig.later(100)
    assert not rig.stops()
    rig.feed(node_up("n1", attempts=[info()]), NodesSettled())
    assert rig.stops() == [("n1", 0, 0)]


def test_a_running_attempt_is_found_again(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.start()
    rig.feed(node_up("n1", attempts=[info()]), NodesSettled())
    rig.connect()
    assert [ref.job_id for ref in rig.reports()[0].attempts] == ["j1"]
    assert rig.kinds() == ["started"]
    rig.executor("n1", exited())
    assert rig.kinds() == ["started", "finished"]
    assert not rig.starts()
    assert not rig.stops()


def test_what_started_and_ended_while_the_agent_was_dead_is_reported(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.start()
    rig.feed(node_up("n1", attempts=[info(0, ex.AttemptState.ENDED, exited(code=4))]), NodesSettled())
    rig.executor("n1", started(), exited(code=4))
    rig.connect()
    assert rig.kinds() == ["started", "finished"]
    assert rig.finished().exit_code == 4


def test_what_no_executor_knows_any_more_is_lost(rig: Rig) -> None:
    rig.say(launch=launch("here"))
    rig.say(launch=launch("gone", nodes=["n2"], seq=2))
    rig.start()
    rig.feed(node_up("n1"), NodesSettled())
    rig.connect()
    ended = {event.job_id: event.finished for event in rig.events()}
    assert {job: done.outcome for job, done in ended.items()} == {"here": NODE_LOST, "gone": NODE_LOST}
    assert (ended["here"].lost_node_id, ended["gone"].lost_node_id) == ("", "n2")
    assert rig.stops() == [("n1", 0, 0)], "the launch may still be on its way"


def test_ranks_that_ended_before_the_restart_are_remembered(gang: Rig) -> None:
    gang.executor("n1", exited(rank=0, results_manifest="sha256:a", usage=ex.Usage(cpu_ms=70)))
    gang.start()
    gang.feed(node_up("n1"), *(node_up(f"n{r + 1}", attempts=[info(r)]) for r in (1, 2)), NodesSettled())
    gang.connect()
    gang.executor("n2", exited(rank=1))
    gang.executor("n3", exited(rank=2))
    assert (gang.finished().outcome, gang.finished().cpu_used_ms) == (SUCCEEDED, 90)
    assert gang.finished().results == "sha256:a"


def test_a_merge_that_the_restart_interrupted_is_done_again(gang: Rig) -> None:
    for rank, node_id in enumerate(NODES):
        gang.executor(node_id, exited(rank=rank, results_manifest=f"sha256:{rank}"))
    gang.start()
    gang.join()
    assert MergeResults("j1", 1, ("sha256:0", "sha256:1", "sha256:2")) in gang.effects


def test_a_stop_outlives_the_restart_with_its_outcome_and_its_grace(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.say(stop=stop(outcome=PREEMPTED, grace_ms=2000))
    rig.start()
    rig.later(50)
    rig.feed(node_up("n1", attempts=[info(0, ex.AttemptState.STOPPING)]), NodesSettled())
    assert [(node, rank) for node, rank, _ in rig.stops()] == [("n1", 0)]
    assert 1900 < rig.stops()[0][2] <= 2000
    rig.executor("n1", exited(reason=R.STOPPED))
    rig.connect()
    assert rig.finished().outcome == PREEMPTED


def test_shutting_the_region_down_queues_its_jobs_again(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.feed(StopAll(1500, "the region is shut down"))
    assert rig.stops() == [("n1", 0, 1500)]
    rig.say(launch=launch("j2", seq=2))
    assert len(rig.starts()) == 1
    rig.executor("n1", exited(reason=R.STOPPED))
    assert rig.finished().outcome == NODE_LOST


def test_the_launch_carries_what_the_job_needs(rig: Rig) -> None:
    one = launch()
    one.checkpoint, one.working_folder, one.parameters_json = "sha256:c", "sha256:w", "{}"
    one.array_index, one.array_size = 3, 10
    one.spec.packages.append("numpy")
    one.spec.max_runtime_ms = 5000
    one.spec.resources.memory_mib = 77
    rig.say(launch=one)
    (got,) = rig.starts()
    assert (got.checkpoint_artifact, got.workdir_artifact, got.parameters_json) == ("sha256:c", "sha256:w", "{}")
    assert (got.keep.array_index, got.keep.array_size, got.packages) == (3, 10, ("numpy",))
    assert (got.max_runtime_ms, got.grace_ms, got.memory_mib) == (5000, 3000, 77)
    rig.executor("n1", started(), exited())
    assert rig.finished().checkpoint == "sha256:c", "the checkpoint it was given is the newest there is"


def test_a_spec_without_a_grace_gets_the_default() -> None:
    rig = Rig().ready()
    one = pb.Launch(job_id="j", attempt=1, launch_seq=1, argv=["true"])
    one.replicas.append(jobs_pb2.ReplicaPlacement(rank=0, node_id="n1"))
    rig.say(launch=one)
    assert rig.starts()[0].grace_ms == 30_000
