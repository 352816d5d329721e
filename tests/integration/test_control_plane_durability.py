"""Acknowledged is durable; commits are shared; a store that goes away and a leader that is deposed lose and double nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler.domain.agent import Lease, Started
from scheduler.domain.errors import AlreadyExists, Deposed, Internal, NotFound, Unavailable
from scheduler.domain.states import AttemptOutcome, JobState
from scheduler.service import committing
from scheduler.service import control_plane as module
from scheduler.service.ids import WallClock
from scheduler.service.ports import EventQuery, JobQuery, Store
from scheduler.store.memory import MemoryStore
from scheduler.store.sql import SqlStore
from tests.integration.control_plane_tools import (
    DEADLINE_S,
    LiveAgent,
    ProbedStore,
    control_plane,
    kill,
    leading,
    make,
    until,
)
from tests.unit.service.harness import ManualClock, spec

LEASE_MS = module.LEADER_TTL_MS
Reopen = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    """Opens the same store again, as a new process would; the leases of dead processes have ended by then."""
    if request.param == "sqlite":
        return lambda: SqlStore(f"sqlite:///{tmp_path}/state.db")
    clock = ManualClock()
    disk = MemoryStore(clock)

    def again() -> Store:
        clock.at_ms += LEASE_MS + 1
        return disk

    return again


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "RETRY_S", 0.01)
    monkeypatch.setattr(module, "STOP_S", 0.2)


async def test_what_was_acknowledged_survives_a_kill(reopen: Reopen) -> None:
    store = reopen()
    async with leading(store) as plane:
        submitted = await plane.submit(make(spec(), spec(size=3), spec(after={0: 1}), request_id="r1"))
        await plane.cancel([submitted.job_ids[0]], "ada", "")
        before = await plane.get_jobs(submitted.job_ids)
        await kill(plane, store)
    store = reopen()
    async with leading(store) as plane:
        assert await plane.get_jobs(submitted.job_ids) == before
        assert [JobState(record.state).name for record in before] == ["CANCELLED", "QUEUED", "CANCELLED"]
        again = await plane.submit(make(spec(), spec(size=3), spec(after={0: 1}), request_id="r1"))
        assert (again.job_ids, again.duplicate) == (submitted.job_ids, True)
        with pytest.raises(AlreadyExists):
            await plane.submit(make(spec(), request_id="r1"))
        fresh = await plane.submit(make(spec()))
        assert (await plane.get_jobs(fresh.job_ids))[0].job_no == before[-1].job_no + 1


async def test_a_job_runs_on_over_a_kill(reopen: Reopen) -> None:
    store = reopen()
    async with leading(store) as plane:
        agent = LiveAgent(plane)
        await agent.connect()
        (job_id,) = (await plane.submit(make(spec()))).job_ids
        await until(lambda: job_id in agent.held)
        await agent.say(agent.held[job_id], Started())
        await until(lambda: agent.heard and getattr(agent.heard[-1], "seq", 0) == 1)
        held = agent.held
        await kill(plane, store)
        agent.listening.cancel()
    async with leading(reopen()) as plane:
        agent = LiveAgent(plane)
        agent.held, agent.events = held, 1
        await agent.connect()
        await agent.finish(job_id)
        await until(lambda: job_id not in plane.engine.state.jobs)
        (record,) = await plane.get_jobs([job_id])
        assert (JobState(record.state), record.attempt) == (JobState.SUCCEEDED, 1)
        assert len(await plane.attempts_of(job_id)) == 1


async def test_nothing_is_acknowledged_or_said_before_it_is_written() -> None:
    store = ProbedStore()
    async with leading(store) as plane:
        agent = LiveAgent(plane)
        await agent.connect()
        await until(lambda: agent.heard_of(Lease))
        store.gate.clear()
        submitting = asyncio.create_task(plane.submit(make(spec())))
        await until(lambda: plane.engine.state.attempts)
        # Reads answer from durable state, so they wait behind the same commit.
        reading = asyncio.create_task(plane.list_jobs(JobQuery()))
        done, _ = await asyncio.wait([submitting, reading], timeout=0.1)
        assert not done
        assert not agent.held
        store.gate.set()
        (job_id,) = (await submitting).job_ids
        assert [record.job_id for record in await reading] == [job_id]
        await until(lambda: job_id in agent.held)


async def test_a_thousand_submissions_at_once_share_few_commits() -> None:
    store = ProbedStore()
    async with leading(store) as plane:
        store.commits.clear()
        all_ids = await asyncio.gather(*(plane.submit(make(spec())) for _ in range(1_000)))
        assert len({each.job_ids[0] for each in all_ids}) == 1_000
        assert sum(store.commits) == 1_000
        assert len(store.commits) <= 3


async def test_what_was_just_acknowledged_is_read(reopen: Reopen) -> None:
    async with leading(reopen()) as plane:

        async def one(number: int) -> None:
            (job_id,) = (await plane.submit(make(spec(name=f"n{number}")))).job_ids
            assert [r.job_id for r in await plane.list_jobs(JobQuery(name=f"n{number}"))] == [job_id]
            await plane.cancel([job_id], "ada", "")
            assert JobState((await plane.get_jobs([job_id]))[0].state) is JobState.CANCELLED

        await asyncio.gather(*(one(number) for number in range(30)))


class TestStoreAway:
    async def test_calls_wait_until_it_is_back_and_nothing_is_lost(self) -> None:
        store = ProbedStore()
        async with leading(store) as plane:
            store.set_away(True)
            waiting = [asyncio.create_task(plane.submit(make(spec(), request_id=f"r{i}"))) for i in range(20)]
            done, _ = await asyncio.wait(waiting, timeout=0.1)
            assert not done
            store.set_away(False)
            ids = [(await task).job_ids[0] for task in waiting]
            assert {record.job_id for record in await plane.list_jobs(JobQuery())} == set(ids)

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_commit_of_unknown_fate_is_made_once(self, when: str) -> None:
        store = ProbedStore()
        async with leading(store) as plane:
            store.fail_next_commit(when)  # type: ignore[arg-type]
            ids = (await plane.submit(make(spec(), spec()))).job_ids
            assert [record.job_id for record in store.list_jobs(JobQuery())] == ids[::-1]
            events = store.events(EventQuery(0, 100))
            assert [event.job_id for event in events] == ids

    async def test_stopping_does_not_wait_for_it(self) -> None:
        store = ProbedStore()
        async with leading(store) as plane:
            store.set_away(True)
            waiting = asyncio.create_task(plane.submit(make(spec())))
            await until(lambda: plane.engine.state.jobs)
            await asyncio.wait_for(plane.stop(), DEADLINE_S)
            with pytest.raises(Unavailable):
                await waiting
        store.set_away(False)
        assert not store.list_jobs(JobQuery())


class TestLeadership:
    async def test_a_deposed_leader_fails_its_waiters_and_says_so(self) -> None:
        clock = ManualClock()
        store = ProbedStore(clock)
        async with leading(store) as first:
            agent = LiveAgent(first)
            watching = asyncio.create_task(_drain(first))
            clock.at_ms += LEASE_MS + 1
            async with leading(store) as second:
                with pytest.raises(Deposed):
                    await first.submit(make(spec()))
                assert isinstance(await asyncio.wait_for(first.failure, DEADLINE_S), Deposed)
                assert not first.is_leader
                with pytest.raises(Unavailable) as caught:
                    await first.submit(make(spec()))
                assert caught.value.reason == "NOT_LEADER"
                # Its streams have ended.
                await asyncio.wait_for(agent.listening, DEADLINE_S)
                await asyncio.wait_for(watching, DEADLINE_S)
                assert not store.list_jobs(JobQuery())
                ids = (await second.submit(make(spec()))).job_ids
                await asyncio.wait_for(first.stop(), DEADLINE_S)
                # The end of the first takes nothing from the second.
                ids += (await second.submit(make(spec()))).job_ids
                assert [record.job_id for record in await second.list_jobs(JobQuery())] == ids[::-1]

    async def test_a_leader_that_may_have_been_deposed_gives_no_lease(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = ManualClock()
        store = ProbedStore(clock)
        async with leading(store) as first:
            agent = LiveAgent(first)
            await agent.connect()
            await until(lambda: agent.heard_of(Lease))
            # Its own clock says that its lease may be over. As long as nobody else leads, it may go on.
            monkeypatch.setattr(first, "_leads_until_s", 0.0)
            await agent.report()
            await until(lambda: len(agent.heard_of(Lease)) == 2)
            clock.at_ms += LEASE_MS + 1
            assert store.acquire_leadership("another", LEASE_MS)
            await agent.report()
            assert isinstance(await asyncio.wait_for(first.failure, DEADLINE_S), Deposed)
            await asyncio.wait_for(agent.listening, DEADLINE_S)
            assert len(agent.heard_of(Lease)) == 2

    async def test_a_stop_gives_the_leadership_back_and_refuses_calls(self, reopen: Reopen) -> None:
        store = reopen()
        async with leading(store) as plane:
            ids = (await plane.submit(make(spec()))).job_ids
            await plane.stop()
            for call in (plane.submit(make(spec())), plane.get_jobs(ids), plane.list_regions()):
                with pytest.raises(Unavailable) as caught:
                    await call
                assert caught.value.reason == "NOT_LEADER"
        second = control_plane(store)
        await asyncio.wait_for(second.start(), 1.0)
        assert [record.job_id for record in await second.get_jobs(ids)] == ids
        await second.stop()

    @pytest.mark.parametrize("loop", ["tick", "renew"])
    async def test_a_broken_loop_fails_the_process(self, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
        error = Internal("broken on purpose")

        def broken(*_: object) -> None:
            raise error

        monkeypatch.setattr(module, "TICK_S", 0.01)
        monkeypatch.setattr(module, "LEADER_TTL_MS", 60)
        store = ProbedStore(ManualClock())
        async with leading(store) as plane:
            if loop == "tick":
                monkeypatch.setattr(plane.engine, "tick", broken)
            else:
                monkeypatch.setattr(store, "renew_leadership", broken)
            assert await asyncio.wait_for(plane.failure, DEADLINE_S) is error
            assert not plane.is_leader


async def _drain(plane: module.ControlPlane) -> None:
    async for _ in plane.watch(EventQuery(-1, 100)):
        pass


class TestRequestIds:
    async def test_the_same_one_many_times_at_once_is_one_submission(self) -> None:
        async with leading(ProbedStore()) as plane:
            results = await asyncio.gather(*(plane.submit(make(spec(), request_id="r")) for _ in range(50)))
            assert len({tuple(result.job_ids) for result in results}) == 1
            assert sum(not result.duplicate for result in results) == 1
            assert len(await plane.list_jobs(JobQuery())) == 1

    async def test_it_is_looked_up_in_the_store_beyond_what_memory_remembers(self, reopen: Reopen) -> None:
        async with leading(reopen(), remembered_requests=2) as plane:
            first = await plane.submit(make(spec(), request_id="r0"))
            for number in range(1, 4):
                await plane.submit(make(spec(), request_id=f"r{number}"))
            again = await plane.submit(make(spec(), request_id="r0"))
            assert (again.job_ids, again.duplicate) == (first.job_ids, True)
            with pytest.raises(AlreadyExists):
                await plane.submit(make(spec(cpu=2_000), request_id="r0"))


async def test_a_dependency_may_end_while_the_store_is_asked_for_another() -> None:
    store = ProbedStore()
    async with leading(store) as plane:
        agent = LiveAgent(plane)
        await agent.connect()
        ended, live = (await plane.submit(make(spec(), spec()))).job_ids
        await agent.finish(ended)
        await until(lambda: ended not in plane.engine.state.jobs)
        await until(lambda: live in agent.held)
        store.reading.clear()
        store.read_gate.clear()
        submitting = asyncio.create_task(plane.submit(make(spec(after={ended: 1, live: 1}))))
        await until(store.reading.is_set)
        await agent.finish(live)
        await until(lambda: live not in plane.engine.state.jobs)
        store.read_gate.set()
        (job_id,) = (await submitting).job_ids
        await until(lambda: job_id in agent.held)


class TestTasksNotStarted:
    async def test_they_are_shown_as_their_array_stands(self) -> None:
        async with leading(ProbedStore()) as plane:
            array, plain = (await plane.submit(make(spec(size=3), spec()))).job_ids
            (task,) = await plane.get_jobs([f"{array}.2"])
            assert (JobState(task.state), task.array_id, task.array_index) == (JobState.QUEUED, array, 2)
            for wrong in (f"{array}.3", f"{array}.01", f"{array}.x", f"{array}.", f"{plain}.0", "jnone", "jnone.0"):
                with pytest.raises(NotFound) as caught:
                    await plane.get_jobs([array, wrong, "jlater"])
                assert caught.value.reason == "JOB_NOT_FOUND"
                assert wrong.partition(".")[0] in caught.value.message
            with pytest.raises(NotFound) as caught:
                await plane.cancel([plain, f"{array}.1"], "ada", "")
            assert caught.value.reason == "TASK_NOT_STARTED"
            assert JobState((await plane.get_jobs([plain]))[0].state) is JobState.QUEUED
            await plane.cancel([array], "ada", "")
            assert JobState((await plane.get_jobs([f"{array}.2"]))[0].state) is JobState.CANCELLED

    async def test_one_that_starts_between_two_looks_is_not_shown_as_cancelled(self) -> None:
        store = ProbedStore()
        async with leading(store) as plane:
            (array,) = (await plane.submit(make(spec(size=1)))).job_ids
            store.reading.clear()
            store.read_gate.clear()
            reading = asyncio.create_task(plane.get_jobs([f"{array}.0"]))
            await until(store.reading.is_set)
            agent = LiveAgent(plane)
            await agent.connect()
            await until(lambda: f"{array}.0" in agent.held)
            store.read_gate.set()
            (record,) = await reading
            assert JobState(record.state) is JobState.STARTING


async def test_usage_is_exact_while_jobs_end() -> None:
    store = ProbedStore(WallClock())
    async with leading(store) as plane:
        agent = LiveAgent(plane)
        await agent.connect()
        ids: list[str] = []
        for _ in range(40):
            ids += (await plane.submit(make(*(spec(cpu=cpu) for cpu in (250, 500, 1_000))))).job_ids
        usages = []

        async def ask() -> None:
            while plane.engine.state.jobs:
                usages.append(await plane.usage(module.UsageQuery("north"), True))

        asking = asyncio.create_task(ask())
        while plane.engine.state.jobs:
            await until(lambda: agent.held or not plane.engine.state.jobs)
            for job_id in list(agent.held):
                await agent.finish(job_id, AttemptOutcome.SUCCEEDED)
                await asyncio.sleep(0)
        await asyncio.wait_for(asking, DEADLINE_S)
        final = await plane.usage(module.UsageQuery("north"), True)
        assert not final.running
        ledger = store.ledger(module.LedgerQuery(limit=10_000))
        attempts = [attempt for job_id in ids for attempt in store.attempts_of(job_id, 10)]
        assert len(attempts) == len(ids)
        assert len(usages) > 10
        for usage in usages:
            closed = {(r.job_id, r.attempt) for r in ledger if r.sequence <= usage.ledger_sequence}
            expected = sum(r.cpu_milli * (r.end_ms - r.start_ms) for r in ledger if r.sequence <= usage.ledger_sequence)
            assert sum(row.cpu_milli_ms for row in usage.sums) == expected
            running = {(r.job_id, r.attempt): (r.start_ms, r.end_ms) for r in usage.running}
            assert not running.keys() & closed
            # What was granted in the very millisecond may have been granted before or after the figures were taken.
            assert running == {
                name: (attempt.grant_ms, usage.as_of_ms)
                for attempt in attempts
                if (name := (attempt.job_id, attempt.attempt)) in running
                or (name not in closed and attempt.grant_ms < usage.as_of_ms and attempt.grant_ms < attempt.end_ms)
            }
        assert sum(row.cpu_milli_ms for row in final.sums) == sum(
            attempt.cpu_milli * (attempt.end_ms - attempt.grant_ms) for attempt in attempts
        )
