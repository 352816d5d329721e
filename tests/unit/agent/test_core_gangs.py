"""Gangs: one port, one start, one end, one result."""

from __future__ import annotations

import pytest

from tests.unit.agent.harness import NODES, WALL, Rig, exited, info, launch, node_up, started, stop
from workers.core_types import (
    AllocatePort,
    MergeResults,
    NodesSettled,
    PortAllocated,
    ResultsMerged,
)
from workers.executor import types as ex

R = ex.ExitReason
SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, PREEMPTED, NODE_LOST, OUT_OF_MEMORY, SPAWN_FAILED, ENVIRONMENT_FAILED = range(
    1, 10
)


def test_a_gang_gets_a_port_and_torchruns_variables(rig: Rig) -> None:
    rig.say(launch=launch(nodes=["n2", "n1", "n2"]))
    assert [effect for effect in rig.effects if isinstance(effect, AllocatePort)] == [AllocatePort("j1", 1, "n2")]
    assert not rig.starts()
    rig.feed(PortAllocated("j1", 1, 29500))
    rig.feed(PortAllocated("j1", 1, 29501))
    found = [(o.rank, o.world_size, o.local_rank, o.local_world_size, o.node_rank) for o in rig.starts()]
    assert found == [(0, 3, 0, 2, 0), (1, 3, 0, 1, 1), (2, 3, 1, 2, 0)]
    assert {(one.master_addr, one.master_port) for one in rig.starts()} == {("10.0.0.2", 29500)}


def test_a_gang_has_started_when_all_have_and_ended_when_all_have(rig: Rig) -> None:
    rig.say(launch=launch(nodes=NODES))
    rig.feed(PortAllocated("j1", 1, 29500))
    for rank, node_id in enumerate(NODES):
        assert not rig.events()
        rig.executor(node_id, started(rank=rank, at_ms=WALL - 10 + rank))
    assert (rig.kinds(), rig.events()[0].at_ms) == (["started"], WALL - 8)
    for rank, node_id in enumerate(NODES):
        assert rig.kinds() == ["started"]
        usage = ex.Usage(cpu_ms=100 * (rank + 1), peak_memory_mib=10 - rank)
        rig.executor(node_id, exited(rank=rank, usage=usage))
    done = rig.finished()
    assert (done.outcome, done.cpu_used_ms, done.peak_memory_mib) == (SUCCEEDED, 600, 10)
    assert not rig.stops()


def test_the_first_rank_to_fail_ends_the_gang_and_names_itself(gang: Rig) -> None:
    gang.executor("n2", exited(rank=1, reason=R.SIGNALLED, signal="SIGSEGV"))
    assert sorted(gang.stops()) == [("n1", 0, 3000), ("n3", 2, 3000)]
    gang.executor("n1", exited(rank=0, code=1))
    gang.executor("n3", exited(rank=2, reason=R.STOPPED))
    done = gang.finished()
    assert (done.outcome, done.exit_signal, done.message) == (FAILED, 11, "rank 1: killed by SIGSEGV")


def test_running_out_of_memory_outweighs_the_failures_it_causes(gang: Rig) -> None:
    gang.executor("n1", exited(rank=0, code=1))
    gang.executor("n3", exited(rank=2, reason=R.OUT_OF_MEMORY, message="used 9 of 8 MiB"))
    gang.executor("n2", exited(rank=1, reason=R.STOPPED))
    assert (gang.finished().outcome, gang.finished().message) == (OUT_OF_MEMORY, "rank 2: used 9 of 8 MiB")


def test_a_lost_node_stops_the_rest_and_is_named_even_if_its_victims_fail_first(gang: Rig) -> None:
    gang.executor("n1", exited(rank=0, code=1))
    gang.feed(ex.NodeDown("n2", "the node died"))
    gang.executor("n3", exited(rank=2, reason=R.STOPPED))
    done = gang.finished()
    assert (done.outcome, done.lost_node_id, done.message) == (NODE_LOST, "n2", "rank 1: the node died")


def test_a_lost_node_ends_what_ran_there(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    rig.feed(ex.NodeDown("n1", "the node died"))
    assert (rig.finished().outcome, rig.finished().lost_node_id) == (NODE_LOST, "n1")
    rig.feed(node_up("n1", "e2"))
    rig.executor("n1", exited())
    assert len(rig.events()) == 2


def test_cancelling_outweighs_a_node_lost_after_it(gang: Rig) -> None:
    gang.say(stop=stop())
    for node_id in NODES:
        gang.feed(ex.NodeDown(node_id, "died"))
    assert gang.finished().outcome == CANCELLED


@pytest.mark.parametrize("event", [PortAllocated("j1", 1, 0, "none free"), ex.NodeDown("n1", "none free")])
def test_a_gang_without_a_port_is_lost_whole(rig: Rig, event: PortAllocated | ex.NodeDown) -> None:
    rig.say(launch=launch(nodes=NODES))
    rig.feed(event)
    assert rig.finished().outcome == NODE_LOST
    assert "none free" in rig.finished().message
    assert not rig.starts()
    assert rig.core.live_attempts == 0


def test_a_gang_does_not_wait_for_its_port_for_ever(rig: Rig) -> None:
    rig.say(launch=launch(nodes=NODES))
    rig.later(30_000)
    assert rig.finished().outcome == NODE_LOST


def test_a_gang_stopped_before_it_has_a_port_ends_at_once(rig: Rig) -> None:
    rig.say(launch=launch(nodes=NODES))
    rig.say(stop=stop())
    assert rig.finished().outcome == CANCELLED
    rig.feed(PortAllocated("j1", 1, 29500))
    assert not rig.starts()


def test_the_results_of_several_ranks_become_one(gang: Rig) -> None:
    gang.executor("n1", exited(rank=0, results_manifest="sha256:a"))
    gang.executor("n2", exited(rank=1))
    gang.executor("n3", exited(rank=2, results_manifest="sha256:b"))
    assert MergeResults("j1", 1, ("sha256:a", "sha256:b")) in gang.effects
    assert gang.kinds() == ["started"]
    gang.feed(ResultsMerged("j1", 1, "sha256:ab"))
    assert gang.finished().results == "sha256:ab"


def test_results_that_cannot_be_merged_do_not_hold_the_end_up(gang: Rig) -> None:
    for rank, node_id in enumerate(NODES):
        gang.executor(node_id, exited(rank=rank, results_manifest=f"sha256:{rank}"))
    gang.feed(ResultsMerged("j1", 1, "", error="the store is away"))
    assert gang.finished().results == "sha256:0"
    assert "the store is away" in gang.finished().message


def test_the_logs_of_several_ranks_become_one_also_without_results(gang: Rig) -> None:
    gang.executor("n1", exited(rank=0, logs_manifest="sha256:l0"))
    gang.executor("n2", exited(rank=1, logs_manifest="sha256:l1", results_manifest="sha256:r"))
    gang.start()
    gang.feed(node_up("n1"), node_up("n2"), node_up("n3", attempts=[info(2)]), NodesSettled())
    gang.connect()
    gang.executor("n3", exited(rank=2))
    assert MergeResults("j1", 1, ("sha256:r",), ("sha256:l0", "sha256:l1")) in gang.effects
    gang.feed(ResultsMerged("j1", 1, "sha256:r", "", "the store is away"))
    done = gang.finished()
    assert (done.outcome, done.results, done.logs) == (SUCCEEDED, "sha256:r", "sha256:l0")
    assert "the store is away" in done.message


@pytest.mark.parametrize("ranks", [0, 1])
def test_the_log_of_a_rank_that_failed_is_reported_with_the_end(gang: Rig, ranks: int) -> None:
    gang.executor("n1", exited(rank=0, code=3, logs_manifest="sha256:l0" if ranks else None))
    gang.feed(ex.NodeDown("n2", "gone"), ex.NodeDown("n3", "gone"))
    assert gang.finished().logs == ("sha256:l0" if ranks else "")
