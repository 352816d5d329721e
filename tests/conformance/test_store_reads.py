"""What the store answers: filters, pages and order, the same from each kind of store."""

from __future__ import annotations

import random
from typing import Any

from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.planning.runtimes import JobFeatures
from scheduler.service.ports import EventQuery, JobQuery, LedgerQuery, RuntimeSample, Store
from tests.conformance.conftest import Writer
from tests.support import rows

ARRAY = rows.job(5, array_size=9, spec=b"of the array", state=int(JobState.RUNNING))


def _task(number: int, index: int, **values: object) -> object:
    return rows.job(number, array_id=ARRAY.job_id, array_index=index, spec=b"", **values)


JOBS = [
    rows.job(1),
    rows.job(2, institution="fudan", user="wang", name="eval", state=int(JobState.RUNNING), region="east"),
    rows.job(3, project="nlp", state=int(JobState.SUCCEEDED), region="west"),
    rows.job(4, institution="fudan", project="nlp", user="wang", state=int(JobState.FAILED)),
    ARRAY,
    _task(6, 0, state=int(JobState.SUCCEEDED)),
    _task(7, 1, state=int(JobState.STARTING), region="east"),
    rows.job(8, state=int(JobState.HELD), name="eval"),
]
FILTERS = {
    "none": (JobQuery(), [8, 7, 6, 5, 4, 3, 2, 1]),
    "institution": (JobQuery(institution="fudan"), [4, 2]),
    "institution and project": (JobQuery(institution="tongji", project="nlp"), [3]),
    "project of any institution": (JobQuery(project="nlp"), [4, 3]),
    "user": (JobQuery(user="wang"), [4, 2]),
    "name": (JobQuery(name="eval"), [8, 2]),
    "region": (JobQuery(region="east"), [7, 2]),
    "live states": (JobQuery(states=(JobState.HELD, JobState.STARTING)), [8, 7]),
    "ended states": (JobQuery(states=(JobState.SUCCEEDED, JobState.FAILED)), [6, 4, 3]),
    "live and ended states": (JobQuery(states=(JobState.SUCCEEDED, JobState.RUNNING)), [6, 5, 3, 2]),
    "tasks of an array": (JobQuery(array_id=ARRAY.job_id), [7, 6]),
    "live tasks of an array": (JobQuery(array_id=ARRAY.job_id, states=(JobState.STARTING,)), [7]),
    "submitted from, included": (JobQuery(submitted_from_ms=rows.T0_MS + 7), [8, 7]),
    "submitted to, excluded": (JobQuery(submitted_to_ms=rows.T0_MS + 3), [2, 1]),
    "page": (JobQuery(limit=3), [8, 7, 6]),
    "next page": (JobQuery(limit=3, before_job_no=6), [5, 4, 3]),
    "page of a filter": (JobQuery(institution="tongji", before_job_no=6, limit=2), [5, 3]),
    "nothing": (JobQuery(institution="unknown"), []),
    "before the first": (JobQuery(before_job_no=1), []),
}


def test_jobs_are_listed_by_filter(store: Store, writer: Writer) -> None:
    writer.commit(new_jobs=JOBS)

    found = {case: [job.job_no for job in store.list_jobs(query)] for case, (query, _) in FILTERS.items()}

    assert found == {case: expected for case, (_, expected) in FILTERS.items()}


def test_a_task_is_read_with_its_arrays_spec(store: Store, writer: Writer) -> None:
    writer.commit(new_jobs=JOBS)
    task = _task(7, 1, state=int(JobState.STARTING), region="east")._replace(spec=b"of the array")

    assert store.get_jobs([task.job_id]) == [task]
    assert store.list_jobs(JobQuery(array_id=ARRAY.job_id, limit=1)) == [task]
    assert store.jobs_by_number(7, 1) == [task]
    assert store.load().jobs[-2].spec == b""


def test_unknown_and_repeated_ids_are_left_out(store: Store, writer: Writer) -> None:
    writer.commit(new_jobs=[rows.job(n) for n in range(1, 2502)])
    ids = [f"j{n:010d}" for n in range(2500, 0, -1)]

    found = store.get_jobs([*ids, "nobody", ids[0], ""])

    assert sorted(job.job_no for job in found) == list(range(1, 2501))
    assert store.get_jobs([]) == []


def test_jobs_by_number(store: Store, writer: Writer) -> None:
    writer.commit(new_jobs=[rows.job(n) for n in (3, 4, 5, 9)])

    assert [job.job_no for job in store.jobs_by_number(4, 3)] == [4, 5]
    assert store.jobs_by_number(10, 5) == []


def test_the_newest_attempts_oldest_first(store: Store, writer: Writer) -> None:
    attempts = [rows.attempt(1, n) for n in range(1, 13)]
    writer.commit(new_jobs=[rows.job(1), rows.job(2)], new_attempts=[*attempts, rows.attempt(2)])

    assert store.attempts_of("j0000000001", 3) == attempts[-3:]
    assert store.attempts_of("j0000000001", 100) == attempts
    assert store.attempts_of("nobody", 100) == []


def test_the_newest_runtimes_oldest_first(store: Store, writer: Writer) -> None:
    ended = {"state": 3, "start_ms": rows.T0_MS, "gpu_milli": 500}
    jobs, attempts = [], []

    def ran(number: int, state: JobState, outcome: AttemptOutcome, ms: int, last: int = 1, **values: Any) -> None:
        jobs.append(rows.job(number, state=int(state), attempt=last, **values))
        attempts.append(rows.attempt(number, **ended | {"outcome": int(outcome), "end_ms": rows.T0_MS + ms}))

    ran(1, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, 10)
    ran(2, JobState.FAILED, AttemptOutcome.FAILED, 20, last=2, done_ms=1_000, name="eval")
    attempts.append(
        rows.attempt(2, 2, **ended | {"outcome": int(AttemptOutcome.OUT_OF_MEMORY), "end_ms": rows.T0_MS + 21})
    )
    ran(3, JobState.TIMED_OUT, AttemptOutcome.TIMED_OUT, 30)
    ran(4, JobState.CANCELLED, AttemptOutcome.FAILED, 40)
    ran(5, JobState.FAILED, AttemptOutcome.NODE_LOST, 50)
    ran(6, JobState.FAILED, AttemptOutcome.SPAWN_FAILED, 60)
    ran(7, JobState.QUEUED, AttemptOutcome.FAILED, 70)
    jobs.append(rows.job(8))
    # A live attempt, and one that ended before its start was told.
    jobs += [rows.job(9, state=int(JobState.RUNNING), attempt=1), rows.job(10, state=int(JobState.FAILED), attempt=1)]
    attempts += [rows.attempt(9), rows.attempt(10, state=3, outcome=int(AttemptOutcome.FAILED), end_ms=rows.T0_MS)]
    writer.commit(new_jobs=jobs, new_attempts=attempts)
    tongji = JobFeatures("tongji", "default", "li", "train", 500)
    expected = [
        RuntimeSample(tongji, 10),
        RuntimeSample(tongji._replace(name="eval"), 1_021),
        RuntimeSample(tongji, 30),
    ]

    assert store.recent_runtimes(100) == store.load().runtimes == expected
    assert store.recent_runtimes(2) == expected[1:]


EVENTS = [
    rows.event(1, 1),
    rows.event(2, 2, institution="fudan"),
    rows.event(3, 5),
    rows.event(4, 6, array_id=ARRAY.job_id),
    rows.event(5, 3, project="nlp"),
    rows.event(6, 7, array_id=ARRAY.job_id),
    rows.event(7, 1),
    rows.event(9, 5),
]
EVENT_QUERIES = {
    "all": (EventQuery(after=0, limit=100), [1, 2, 3, 4, 5, 6, 7, 9]),
    "a page": (EventQuery(after=2, limit=3), [3, 4, 5]),
    "none yet": (EventQuery(after=9, limit=3), []),
    "of a job": (EventQuery(after=0, limit=100, job_ids=("j0000000001",)), [1, 7]),
    "of an array": (EventQuery(after=0, limit=100, job_ids=(ARRAY.job_id,)), [3, 4, 6, 9]),
    "of an array, a page": (EventQuery(after=3, limit=2, job_ids=(ARRAY.job_id,)), [4, 6]),
    "of an array, its task and a job": (
        EventQuery(after=0, limit=100, job_ids=(ARRAY.job_id, "j0000000006", "j0000000001", "nobody")),
        [1, 3, 4, 6, 7, 9],
    ),
    "of an institution": (EventQuery(after=0, limit=100, institution="fudan"), [2]),
    "of a project": (EventQuery(after=0, limit=100, institution="tongji", project="nlp"), [5]),
    "of another's job": (EventQuery(after=0, limit=9, institution="fudan", job_ids=("j0000000001",)), []),
    "of no id": (EventQuery(after=0, limit=9, job_ids=("",)), []),
}


def test_events_by_query(store: Store, writer: Writer) -> None:
    writer.commit(new_jobs=JOBS, events=EVENTS)

    found = {case: [event.sequence for event in store.events(query)] for case, (query, _) in EVENT_QUERIES.items()}

    assert found == {case: expected for case, (_, expected) in EVENT_QUERIES.items()}


HOUR_MS = 3_600_000
LEDGER = [
    rows.segment(hour, start_ms=rows.T0_MS + hour * HOUR_MS, end_ms=rows.T0_MS + (hour + 1) * HOUR_MS, **values)
    for hour, values in enumerate(
        [{}, {"institution": "fudan"}, {"project": "nlp"}, {"job_id": "x", "period": "2026-11"}, {}], start=1
    )
]
LEDGER_QUERIES = {
    "all": (LedgerQuery(), [1, 2, 3, 4, 5]),
    "page": (LedgerQuery(after=2, limit=2), [3, 4]),
    "institution": (LedgerQuery(institution="fudan"), [2]),
    "project": (LedgerQuery(institution="tongji", project="nlp"), [3]),
    "job": (LedgerQuery(job_id="x"), [4]),
    "another's job": (LedgerQuery(institution="fudan", job_id="x"), []),
    "a job's next page": (LedgerQuery(job_id="x", after=4), []),
    "a job's first record": (LedgerQuery(institution="tongji", job_id="x", after=3, limit=1), [4]),
    "a job at another time": (LedgerQuery(job_id="x", to_ms=rows.T0_MS + 4 * HOUR_MS), []),
    "accounting month": (LedgerQuery(period="2026-11"), [4]),
    "an institution's accounting month": (
        LedgerQuery(institution="tongji", period="2026-10", after=1, limit=2),
        [3, 5],
    ),
    "overlapping, bounds half open": (
        LedgerQuery(from_ms=rows.T0_MS + 3 * HOUR_MS, to_ms=rows.T0_MS + 5 * HOUR_MS),
        [3, 4],
    ),
    "partly overlapping": (
        LedgerQuery(from_ms=rows.T0_MS + 3 * HOUR_MS - 1, to_ms=rows.T0_MS + 3 * HOUR_MS + 1),
        [2, 3],
    ),
}


def test_ledger_by_query(store: Store, writer: Writer) -> None:
    writer.commit(ledger=LEDGER)

    found = {case: [record.sequence for record in store.ledger(query)] for case, (query, _) in LEDGER_QUERIES.items()}

    assert found == {case: expected for case, (_, expected) in LEDGER_QUERIES.items()}


def test_pages_in_turn_are_the_whole(store: Store, writer: Writer) -> None:
    chance = random.Random(7)
    states = [chance.choice(list(JobState)) for _ in range(400)]
    tenants = [chance.choice(["tongji", "fudan"]) for _ in states]
    pairs = zip(states, tenants, strict=True)
    jobs = [rows.job(n, state=int(state), institution=tenant) for n, (state, tenant) in enumerate(pairs, 1)]
    writer.commit(new_jobs=jobs)

    pages, before = [], 0
    while page := store.list_jobs(JobQuery(institution="fudan", states=(2, 4, 6), before_job_no=before, limit=7)):
        assert len(page) <= 7
        pages += page
        before = page[-1].job_no

    assert pages == [job for job in reversed(jobs) if job.institution == "fudan" and job.state in (2, 4, 6)]


def test_the_newest_policy_is_loaded_and_the_old_ones_stay(store: Store, writer: Writer) -> None:
    assert store.load().policy is None
    assert store.list_policies(0, 10) == []
    versions = [
        rows.policy(1),
        rows.policy(2, document="# 复旦大学\nname: 'a'\n" * 9_000, comment=""),
        rows.policy(3, author="li"),
    ]
    for version in versions:
        writer.commit(policies=[version])

    assert store.load().policy == versions[2]
    assert [store.find_policy(number) for number in (1, 2, 3)] == versions
    assert [store.find_policy(number) for number in (0, 4, -1)] == [None] * 3
    bare = [version._replace(document="", effective="") for version in reversed(versions)]
    assert store.list_policies(0, 10) == bare
    assert store.list_policies(0, 2) == bare[:2]
    assert store.list_policies(2, 2) == bare[2:]
    assert store.list_policies(1, 2) == []
