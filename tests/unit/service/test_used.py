"""What live attempts have used is kept with them: fenced, never going back, without a write, and there when they are lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protos.suanli.v1 import jobs_pb2
from scheduler.domain.agent import AttemptRef, AttemptUsage, Finished, UsageReport
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.service.model import Attempt
from tests.unit.service.harness import SETTINGS, Agent, Site, node

O = AttemptOutcome  # noqa: E741


def live(site: Site, job_id: str) -> Attempt:
    attempt = site.engine.state.jobs[job_id].live
    assert attempt is not None
    return attempt


def figures(attempt: Attempt) -> tuple[int, int, int, int]:
    return (attempt.cpu_used_ms, attempt.peak_memory_mib, attempt.gpu_used_milli_ms, attempt.gpu_peak_memory_mib)


def used(agent: Agent, ref: AttemptRef, *numbers: int) -> None:
    agent.say(UsageReport((AttemptUsage(ref, *numbers),)))
    agent.site.turn()


def test_it_is_kept_with_the_live_attempt_and_writes_nothing(site: Site) -> None:
    job_id = site.running()
    commits = site.commits
    used(site.east, site.east.held[job_id], 10, 20, 30, 40)
    assert figures(live(site, job_id)) == (10, 20, 30, 40)
    assert site.commits == commits


def test_no_figure_goes_back(site: Site) -> None:
    job_id = site.running()
    ref = site.east.held[job_id]
    used(site.east, ref, 10, 20, 30, 40)
    used(site.east, ref, 11, 19, 31, 39)
    assert figures(live(site, job_id)) == (11, 20, 31, 40)
    attempt = live(site, job_id)
    site.east.finished(job_id, cpu_used_ms=12, peak_memory_mib=18, gpu_used_milli_ms=29, gpu_peak_memory_mib=41)
    assert figures(attempt) == (12, 20, 31, 41)


@pytest.mark.parametrize(
    "stale",
    [
        lambda ref: replace(ref, attempt=ref.attempt + 1),
        lambda ref: replace(ref, lease_epoch=ref.lease_epoch - 1),
        lambda ref: replace(ref, lease_epoch=ref.lease_epoch + 1),
        lambda ref: replace(ref, job_id="jnone"),
    ],
)
def test_a_report_of_any_other_attempt_changes_nothing(site: Site, stale: Callable[[AttemptRef], AttemptRef]) -> None:
    job_id = site.running()
    good, other = site.east.held[job_id], stale(site.east.held[job_id])
    # The others of the same report count all the same.
    site.east.say(UsageReport((AttemptUsage(other, 99, 99, 99, 99), AttemptUsage(good, 1, 2, 3, 4))))
    assert figures(live(site, job_id)) == (1, 2, 3, 4)


def test_one_that_has_ended_is_not_changed_any_more_and_the_next_begins_at_nothing(site: Site) -> None:
    job_id = site.running(max_retries=1)
    ref, first = site.east.held[job_id], live(site, job_id)
    site.east.finished(job_id, O.FAILED, cpu_used_ms=5)
    used(site.east, ref, 99, 99, 99, 99)
    assert figures(first) == (5, 0, 0, 0)
    assert live(site, job_id) is not first
    assert figures(live(site, job_id)) == (0, 0, 0, 0)


def test_another_regions_agent_and_an_old_session_cannot_report_it(site: Site) -> None:
    west = site.add_region("west", [node("w1")])
    job_id = site.running(required_regions=["east"])
    ref, old = site.east.held[job_id], site.east.session
    used(west, ref, 1, 1, 1, 1)
    site.east.connect()
    site.engine.receive("east", old, UsageReport((AttemptUsage(ref, 1, 1, 1, 1),)))
    assert figures(live(site, job_id)) == (0, 0, 0, 0)


def test_what_was_heard_last_is_what_a_lost_attempt_has_used(site: Site) -> None:
    job_id = site.running(partition_policy=jobs_pb2.PARTITION_POLICY_MOVE, grace_period_ms=1_000)
    attempt = live(site, job_id)
    used(site.east, site.east.held[job_id], 10, 20, 30, 40)
    site.clock.at_ms += SETTINGS.lease_ttl_ms * 2 + 1_000
    site.engine.tick()
    site.turn()
    assert (attempt.outcome, site.state(job_id)) == (O.NODE_LOST, JobState.QUEUED)
    assert figures(attempt) == (10, 20, 30, 40)
    assert attempt.record().cpu_used_ms == 10


def test_an_agent_of_an_earlier_release_reports_the_end_alone(site: Site) -> None:
    job_id = site.running()
    attempt = live(site, job_id)
    site.east.event(site.east.held[job_id], Finished(O.SUCCEEDED, cpu_used_ms=7, peak_memory_mib=8))
    assert figures(attempt) == (7, 8, 0, 0)
