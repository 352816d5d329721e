"""What is tried on a history: policies, changes of the fleet, more load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.domain.agent import NodeReport
from scheduler.domain.errors import InvalidArgument
from scheduler.domain.resources import Resources
from scheduler.domain.spec import PriorityClass, Shape
from scheduler.planning.policy import PRESETS
from scheduler.simulation.tables import History, PastJob
from scheduler.simulation.trial import Changes, Variant, fleet, policy_named, scenario, variants

DAY = 86_400_000
FROM = 100 * DAY


def past(name: str, submit_ms: int = FROM, runtime_ms: int = 1000, **changes: object) -> PastJob:
    job = PastJob(
        name,
        "a",
        "default",
        "u",
        "train",
        "SUCCEEDED",
        submit_ms,
        submit_ms,
        submit_ms + 5,
        submit_ms + 5 + runtime_ms,
        runtime_ms,
        1,
        0,
        Shape(Resources(1000, 1024, 0), 1),
        PriorityClass.NORMAL,
        False,
        3_600_000,
        0,
        False,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def node(name: str, pool: str = "cpu", cpu: int = 4000) -> NodeReport:
    return NodeReport(name, name, pool, "", Resources(cpu, 8192, 0))


def history(*jobs: PastJob, days: int = 10) -> History:
    return History(FROM, FROM + days * DAY, jobs, {"east": (node("e1"), node("e2"), node("g1", "gpu", 8000))}, ())


def baseline(changes: Changes | None = None) -> Variant:
    return Variant("x", PRESETS["fifo"], changes or Changes())


def test_the_first_policy_on_what_was_is_the_baseline() -> None:
    assert [each.label for each in variants([], Changes())] == ["suanli"]
    assert [each.label for each in variants(["fair", "fifo", "fair"], Changes())] == ["fair", "fifo"]
    changes = Changes(add=(("east", "cpu", 2),), load_milli=1200)
    found = variants(["fair", "fifo"], changes)
    assert [each.label for each in found] == [
        "fair",
        "fair: +2 east/cpu, load × 1.2",
        "fifo: +2 east/cpu, load × 1.2",
    ]
    assert [bool(each.changes) for each in found] == [False, True, True]
    many = replace(changes, regions=(("north", "east"), ("south", "east")))
    assert [each.label for each in variants(["fair"], many)] == ["fair", "fair, changed"]
    assert str(many) == "+2 east/cpu, region north like east, region south like east, load × 1.2"


def test_a_policy_is_a_preset_or_a_file(tmp_path: Path) -> None:
    assert policy_named("fair") is PRESETS["fair"]
    file = tmp_path / "mine.yaml"
    file.write_text("preset: fair\nbackfill:\n  reservations: 3\n")
    assert policy_named(str(file)).backfill.reservations == 3
    assert variants([str(file)], Changes())[0].label == "mine"
    file.write_text("backfill: [1\n")
    with pytest.raises(InvalidArgument, match="is no YAML document"):
        policy_named(str(file))
    file.write_text("no mapping")
    with pytest.raises(InvalidArgument, match="is no YAML mapping"):
        policy_named(str(file))
    file.write_text("backfill:\n  reservation: 3\n")
    with pytest.raises(InvalidArgument, match="reservation"):
        policy_named(str(file))
    with pytest.raises(InvalidArgument, match="neither a preset"):
        policy_named("moon")


def test_the_policy_in_force_is_the_baseline_where_it_is_known(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("preset: fair\nbackfill:\n  reservations: 3\n")
    (first,) = variants([], Changes(), file)
    assert (first.label, first.policy.backfill.reservations) == ("current", 3)
    assert [each.label for each in variants(["fifo", "current"], Changes(), file)] == ["fifo", "current"]
    with pytest.raises(InvalidArgument, match="does not say which policy"):
        variants(["current"], Changes())


def test_nodes_are_added_like_those_there_are() -> None:
    changed = fleet(history(), Changes(add=(("east", "cpu", 3), ("east", "cpu", 1))))["east"]
    added = [each for each in changed if "added" in each.node_id]
    assert [each.node_id for each in added] == [f"cpu-added-{number}" for number in (1, 2, 3, 4)]
    assert {each.capacity for each in added} == {Resources(4000, 8192, 0)}


def test_nodes_are_removed_and_regions_copied() -> None:
    changed = fleet(history(), Changes(remove=(("east", "cpu", 1),), regions=(("north", "east"),)))
    assert [each.node_id for each in changed["east"]] == ["e1", "g1"]
    assert [each.node_id for each in changed["north"]] == ["e1", "e2", "g1"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (Changes(add=(("east", "tpu", 1),)), "no node of a pool east/tpu"),
        (Changes(add=(("west", "cpu", 1),)), "no node of a pool west/cpu"),
        (Changes(remove=(("east", "cpu", 3),)), "has 2 nodes, not 3"),
        (Changes(regions=(("north", "south"),)), "no region 'south'"),
        (Changes(regions=(("east", "east"),)), "a region 'east' already"),
        (Changes(remove=(("east", "cpu", 2), ("east", "gpu", 1))), "No node is left"),
    ],
)
def test_changes_that_cannot_be_made(changes: Changes, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        fleet(history(), changes)


def test_jobs_that_never_ran_are_left_out_and_earlier_ones_hold_from_the_beginning() -> None:
    earlier = past("j1", FROM - 5000, 9000)
    given, origins = scenario(history(earlier, past("j2", runtime_ms=0, start_ms=0), past("j3")), baseline())
    assert [each and each.job_id for each in origins] == ["j1", "j3"]
    assert [(each.submit_ms, each.runtime_ms) for each in given.jobs] == [(FROM, 9000), (FROM, 1000)]


def test_work_counts_as_lost_unless_it_was_saved() -> None:
    given, _ = scenario(history(past("j1"), past("j2", checkpoints=True)), baseline())
    assert [each.restart_cost_ms for each in given.jobs] == [1000, 0]


def test_attempts_taken_together_are_not_cut_at_the_limit_of_one() -> None:
    given, _ = scenario(history(past("j1", runtime_ms=9000, attempts=3, limit_ms=4000)), baseline())
    assert given.jobs[0].limit_ms == 9000
    given, _ = scenario(history(past("j1", runtime_ms=4100, limit_ms=4000, state="TIMED_OUT")), baseline())
    assert (given.jobs[0].limit_ms, given.jobs[0].succeeds) == (4000, False)


def test_runtimes_are_stated_for_the_speed_of_what_a_job_ran_on() -> None:
    policy = replace(PRESETS["fifo"], speed_milli={"H100": 2000})
    given, _ = scenario(history(past("j1", ran_on="H100"), past("j2", ran_on="T4")), Variant("x", policy))
    assert [each.runtime_ms for each in given.jobs] == [2000, 1000]


def test_more_load_is_the_same_jobs_again_on_other_days() -> None:
    jobs = [past(f"j{number}", FROM + number * 3_600_000) for number in range(10)]
    given, origins = scenario(history(*jobs), baseline(Changes(load_milli=1200)))
    assert len(given.jobs) == 12
    copies = [job for job, origin in zip(given.jobs, origins, strict=True) if origin is None]
    assert [job.submit_ms for job in copies] == [FROM + DAY + 4 * 3_600_000, FROM + DAY + 9 * 3_600_000]
    assert [job.submit_ms for job in given.jobs] == sorted(job.submit_ms for job in given.jobs)


def test_less_load_leaves_jobs_out_evenly() -> None:
    jobs = [past(f"j{number}", FROM + number) for number in range(10)]
    _, origins = scenario(history(*jobs), baseline(Changes(load_milli=500)))
    assert [each and each.job_id for each in origins] == ["j1", "j3", "j5", "j7", "j9"]


def test_copies_stay_within_the_window() -> None:
    job = past("j1", FROM + 9 * DAY + 5)
    given, _ = scenario(history(job), baseline(Changes(load_milli=3000)))
    assert [each.submit_ms for each in given.jobs] == [FROM + 5, FROM + DAY + 5, FROM + 9 * DAY + 5]
