"""What live attempts have used, on its way through the core: summed, never going back, seldom said, lost without harm."""

from __future__ import annotations

import pickle

import pytest

from protos.suanli.v1 import regions_pb2 as pb
from tests.unit.agent.harness import WALL, Rig, exited, launch, node_up, started
from workers.core_usage import MAX_ATTEMPTS_PER_MESSAGE, Used, usage_reports, used_of
from workers.executor import types as ex

INTERVAL_MS = 30_000
SUCCEEDED, NODE_LOST = 1, 6


@pytest.fixture
def gang(gang: Rig) -> Rig:
    """The gang of three, with its start behind it."""
    gang.effects.clear()
    return gang


def used(rig: Rig, node_id: str, cpu_ms: int, *more: int, job: str = "j1", rank: int = 0) -> None:
    """An executor says what a rank has used: CPU time, memory peak, GPU time, GPU memory peak."""
    peak, gpu, gpu_peak = (*more, 0, 0, 0)[:3]
    usage = ex.Usage(cpu_ms, peak, 1, gpu, gpu_peak)
    rig.feed(ex.NodeUsed(node_id, (ex.Used(job, 1, rank, usage),)))


def told(rig: Rig) -> list[pb.AttemptUsage]:
    reports: list[pb.UsageReport] = rig.sent("usage")  # type: ignore[assignment]
    return [one for report in reports for one in report.attempts]


def figures(one: pb.AttemptUsage | pb.AttemptFinished) -> tuple[int, int, int, int]:
    return (one.cpu_used_ms, one.peak_memory_mib, one.gpu_used_milli_ms, one.gpu_peak_memory_mib)


def test_a_live_attempt_is_told_of_by_its_exact_name_and_nothing_is_spooled(rig: Rig) -> None:
    rig.say(launch=launch(epoch=9))
    rig.executor("n1", started())
    kept = len(rig.spool.load().events)
    used(rig, "n1", 1200, 34, 5600, 78)
    (one,) = told(rig)
    assert (one.job_id, one.attempt, one.lease_epoch) == ("j1", 1, 9)
    assert figures(one) == (1200, 34, 5600, 78)
    assert len(rig.spool.load().events) == kept


def test_it_is_told_twice_a_minute_at_most_and_only_when_there_is_more_to_say(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    used(rig, "n1", 10)
    used(rig, "n1", 20)
    rig.later(INTERVAL_MS - 1)
    assert [one.cpu_used_ms for one in told(rig)] == [10]
    rig.later(1)
    assert [one.cpu_used_ms for one in told(rig)] == [10, 20]
    rig.later(10 * INTERVAL_MS)
    used(rig, "n1", 20)
    assert [one.cpu_used_ms for one in told(rig)] == [10, 20]
    used(rig, "n1", 21)
    assert [one.cpu_used_ms for one in told(rig)] == [10, 20, 21]


def test_of_a_gang_times_are_summed_and_peaks_are_the_largest_ranks(gang: Rig) -> None:
    used(gang, "n1", 100, 7, 1000, 50)
    used(gang, "n2", 20, 9, 200, 60, rank=1)
    used(gang, "n3", 3, 8, 30, 40, rank=2)
    gang.later(INTERVAL_MS)
    assert figures(told(gang)[-1]) == (123, 9, 1230, 60)
    # A rank that is over counts on with what it used in all.
    gang.executor("n1", exited(rank=0, usage=ex.Usage(500, 7, 0, 5000, 55)))
    used(gang, "n2", 21, 9, 200, 60, rank=1)
    gang.later(INTERVAL_MS)
    assert figures(told(gang)[-1]) == (524, 9, 5230, 60)
    gang.executor("n2", exited(rank=1, usage=ex.Usage(30, 9, 0, 300, 61)))
    gang.executor("n3", exited(rank=2, usage=ex.Usage(4, 8, 0, 40, 41)))
    assert gang.finished().outcome == SUCCEEDED
    assert figures(gang.finished()) == (534, 9, 5340, 61)


def test_no_figure_goes_back(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    used(rig, "n1", 100, 10, 1000, 50)
    used(rig, "n1", 90, 20, 900, 40)
    rig.later(INTERVAL_MS)
    assert figures(told(rig)[-1]) == (100, 20, 1000, 50)
    rig.executor("n1", exited(usage=ex.Usage(95, 15, 0, 950, 45)))
    assert figures(rig.finished()) == (100, 20, 1000, 50)


def test_an_attempt_whose_node_is_lost_has_used_what_was_last_heard_of_it(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    used(rig, "n1", 100, 10, 1000, 50)
    rig.feed(ex.NodeDown("n1", "gone"))
    assert rig.finished().outcome == NODE_LOST
    assert figures(rig.finished()) == (100, 10, 1000, 50)


def test_a_new_session_is_told_all_again(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    used(rig, "n1", 100)
    rig.effects.clear()
    rig.connect()
    rig.later(INTERVAL_MS)
    assert [one.cpu_used_ms for one in told(rig)] == [100]


def test_nothing_is_said_of_what_is_not_here_or_is_over(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    used(rig, "n2", 100)
    used(rig, "n1", 100, rank=3)
    used(rig, "n1", 100, job="other")
    rig.executor("n1", exited())
    used(rig, "n1", 100)
    rig.later(INTERVAL_MS)
    assert told(rig) == []


def test_what_waits_for_the_next_report_is_dropped_with_the_end(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.say(launch=launch("j2", seq=2))
    rig.executor("n1", started(), started("j2"))
    used(rig, "n1", 1, job="j2")
    used(rig, "n1", 100)
    rig.executor("n1", exited())
    rig.effects.clear()
    rig.later(INTERVAL_MS)
    assert told(rig) == []


def test_a_restarted_agent_goes_on_from_what_the_executor_says(rig: Rig) -> None:
    rig.say(launch=launch())
    rig.executor("n1", started())
    used(rig, "n1", 100)
    rig.start()
    info = ex.AttemptInfo("j1", 1, 0, ex.AttemptState.RUNNING, 100, WALL, ex.Usage())
    rig.feed(node_up("n1", attempts=[info]))
    rig.join(["n2", "n3"]).connect()
    used(rig, "n1", 130)
    assert [one.cpu_used_ms for one in told(rig)] == [130]


def test_the_words_of_an_executor_of_an_earlier_release_are_understood() -> None:
    # What such a one pickles lacks the fields that came since.
    class Earlier:
        def __reduce__(self) -> tuple[object, ...]:
            return (object.__new__, (ex.Usage,), [70, 8, 1])

    assert used_of(pickle.loads(pickle.dumps(Earlier()))) == Used(70, 8, 0, 0)


def test_many_are_told_in_several_messages() -> None:
    many = [pb.AttemptUsage(job_id=f"{number}") for number in range(MAX_ATTEMPTS_PER_MESSAGE + 1)]
    reports = usage_reports(many)
    assert [len(report.attempts) for report in reports] == [MAX_ATTEMPTS_PER_MESSAGE, 1]
    assert reports[1].attempts[0].job_id == str(MAX_ATTEMPTS_PER_MESSAGE)
