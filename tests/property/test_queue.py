"""A line is always in the order of its places, whatever joins, leaves or is ranked anew; and a waiting job stays small."""

from __future__ import annotations

import tracemalloc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.domain.states import JobState
from scheduler.planning.types import GroupKey
from scheduler.service.job import Job
from scheduler.service.queue import Queue
from tests.unit.service.harness import Site, make, spec

SPECS = [spec(cpu=1_000), spec(cpu=1_000, name="other"), spec(cpu=2_000)]
ARRAY = spec(cpu=1_000, size=1_000)
RANKS = st.one_of(st.integers(0, 3), st.integers(-(10**13), 10**15))


class Lines(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = Queue()
        self.waiting: dict[int, tuple[tuple[int, int, int], Job]] = {}
        self.arrays: list[Job] = []
        self.left: list[Job] = []
        self.touched: set[GroupKey] = set()
        self.last_no = 0

    def stand(self, job: Job, rank: int) -> None:
        number, task = (job.job_no, job.array_size) if job.array is None else (job.array.job_no, job.array_index)
        job.stand_at(rank)
        assert job.rank == rank
        first = self.queue.add(job)
        self.waiting[job.job_no] = ((rank, number, task), job)
        self.touched.add(job.group)
        assert first == (self.line(job.group)[0] == job.job_no)

    def line(self, key: GroupKey) -> list[int]:
        return [job.job_no for _, job in sorted(self.waiting.values(), key=lambda each: each[0]) if job.group == key]

    def made(self, of, **values) -> Job:  # type: ignore[no-untyped-def]
        self.last_no += 1
        return Job(self.last_no, f"j{self.last_no}", of, "ada", JobState.QUEUED, 0, **values)

    @rule(of=st.sampled_from(SPECS), rank=RANKS)
    def join(self, of, rank: int) -> None:  # type: ignore[no-untyped-def]
        self.stand(self.made(of), rank)

    @rule(rank=RANKS)
    def join_an_array(self, rank: int) -> None:
        array = self.made(ARRAY)
        self.arrays.append(array)
        self.stand(array, rank)

    @precondition(lambda self: self.arrays)
    @rule(rank=RANKS, index=st.integers(0, 999), data=st.data())
    def join_a_task(self, rank: int, index: int, data: st.DataObject) -> None:
        array = data.draw(st.sampled_from(self.arrays))
        if not any(job.array is array and job.array_index == index for _, job in self.waiting.values()):
            self.stand(self.made(ARRAY, array=array, array_index=index), rank)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, job = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
        assert job in self.queue
        self.queue.remove(job)
        self.queue.remove(job)
        assert job not in self.queue
        self.touched.add(job.group)

    @rule(shift=st.sampled_from([-1, 1, 10**12]))
    def rank_anew(self, shift: int) -> None:
        self.queue.rank_anew(lambda job: job.stand_at(shift * job.rank))
        self.waiting = {number: ((shift * rank, *place), job) for number, ((rank, *place), job) in self.waiting.items()}

    @rule()
    def look(self) -> None:
        assert self.queue.take_changed() == self.touched
        self.touched = set()

    @invariant()
    def lines_are_in_order(self) -> None:
        keys = {job.group for _, job in self.waiting.values()}
        assert set(self.queue.groups()) == keys
        assert self.queue.size_total == len(self.waiting)
        for key in keys:
            expected = self.line(key)
            assert [place.job_no for place in self.queue.jobs(key)] == expected
            assert self.queue.head(key).job_no == expected[0]
            assert self.queue.size(key) == len(expected)


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)


def test_a_waiting_job_takes_less_than_600_bytes() -> None:
    site = Site(nodes=[])
    specs = [spec(cpu=1_000 * (number % 7 + 1)) for number in range(50)]
    site.engine.take_turn()

    def submit(count: int) -> None:
        for _ in range(count // 50):
            site.clock.at_ms += 1
            site.engine.submit(make(specs), {})
            site.engine.take_turn()

    submit(500)
    tracemalloc.start()
    submit(10_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(site.engine.state.jobs) == 10_500
    assert site.engine.state.queue.size_total == 10_500
    assert grown / 10_000 < 600
