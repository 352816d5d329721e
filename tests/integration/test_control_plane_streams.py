"""Streams of the live control plane: watchers that miss and repeat nothing, and agents' sessions that end when they must."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from scheduler.domain.agent import EventAck, Launch, Lease, Welcome
from scheduler.domain.records import EventRecord
from scheduler.domain.states import JobState
from scheduler.service import sessions, watching
from scheduler.service.control_plane import ControlPlane
from scheduler.service.ports import EventQuery
from scheduler.service.watching import EventHub
from tests.integration.control_plane_tools import DEADLINE_S, LiveAgent, ProbedStore, leading, make, until
from tests.unit.service.harness import spec


async def watch(plane: ControlPlane, query: EventQuery, upto: int) -> list[EventRecord]:
    """The events a watcher is shown until the stream is complete up to a number."""
    shown: list[EventRecord] = []
    position = query.after
    async with asyncio.timeout(DEADLINE_S):
        async for page, complete in plane.watch(query):
            assert complete >= position, "the stream went back"
            assert all(event.sequence <= complete for event in page)
            position = complete
            shown += page
            if complete >= upto:
                break
    return shown


class TestWatching:
    @pytest.mark.parametrize("institution", ["", "south"])
    async def test_from_any_number_on_there_is_no_gap_and_no_repeat(
        self, institution: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "KEEP_EVENTS", 20)
        monkeypatch.setattr(watching, "PAGE", 7)
        store = ProbedStore()
        async with leading(store) as plane:
            total = 120

            async def submit() -> None:
                for number in range(total // 3):
                    await plane.submit(make(spec(), spec("south"), spec()))
                    if number % 5 == 0:
                        await asyncio.sleep(0)

            begin = [asyncio.create_task(submit())]
            await until(lambda: store.events(EventQuery(0, 1)))
            watchers = [
                asyncio.create_task(watch(plane, EventQuery(after, 100, institution=institution), total))
                for after in range(0, total, 9)
            ]
            await asyncio.gather(*begin)
            late = [
                asyncio.create_task(watch(plane, EventQuery(after, 100, institution=institution), total))
                for after in range(0, total, 9)
            ]
            for group in (watchers, late):
                for after, watcher in zip(range(0, total, 9), group, strict=True):
                    assert await watcher == store.events(EventQuery(after, 1_000, institution=institution))

    async def test_from_now_on_shows_nothing_old(self) -> None:
        async with leading(ProbedStore()) as plane:
            await plane.submit(make(spec()))
            stream = plane.watch(EventQuery(-1, 100))
            page, position = await anext(stream)
            assert page == []
            (new,) = (await plane.submit(make(spec()))).job_ids
            shown = await asyncio.wait_for(anext(stream), DEADLINE_S)
            assert [event.job_id for event in shown[0]] == [new]
            assert shown[1] == position + 1

    async def test_one_array_is_watched_with_its_tasks(self) -> None:
        async with leading(ProbedStore()) as plane:
            array, _ = (await plane.submit(make(spec(size=2), spec()))).job_ids
            agent = LiveAgent(plane)
            await agent.connect()
            await agent.finish(f"{array}.0")
            await agent.finish(f"{array}.1")
            await until(lambda: array not in plane.engine.state.jobs)
            shown = await watch(plane, EventQuery(0, 100, job_ids=(array,)), plane.engine.state.counters.event_seq)
            assert {event.job_id for event in shown} == {array, f"{array}.0", f"{array}.1"}
            assert JobState(shown[-1].state) is JobState.SUCCEEDED

    async def test_an_event_the_store_shows_before_it_is_published_is_not_shown_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "IDLE_S", 0.01)
        stored = [_event(1), _event(2), _event(3)]

        async def read(query: EventQuery) -> list[EventRecord]:
            return [event for event in stored if event.sequence > query.after]

        hub = EventHub(read, 2)
        stream = hub.watch(EventQuery(0, 100))
        shown = list((await anext(stream))[0])
        # Nothing is published yet: pages of the idle stream are empty and do not go back.
        assert await anext(stream) == ([], 3)
        hub.publish(stored[2:])
        for _ in range(3):
            page, position = await anext(stream)
            shown += page
            assert position == 3
        assert shown == stored


def _event(sequence: int) -> EventRecord:
    return EventRecord(sequence, 1, "j1", "", "north", "default", 0, "STATE", 2, 0, "", "", "", "")


class TestSessions:
    async def test_the_story_of_a_job(self) -> None:
        async with leading(ProbedStore()) as plane:
            agent = LiveAgent(plane)
            await agent.hello()
            await until(lambda: agent.heard)
            (job_id,) = (await plane.submit(make(spec()))).job_ids
            await agent.report()
            await agent.finish(job_id)
            await until(lambda: agent.heard_of(EventAck))
            assert _kinds(agent.heard) == ["Welcome", "Lease", "Launch", "EventAck"]
            assert JobState((await plane.get_jobs([job_id]))[0].state) is JobState.SUCCEEDED
            await agent.close()
            assert not (await plane.list_regions())[0].online

    async def test_a_newer_session_ends_the_older(self) -> None:
        async with leading(ProbedStore()) as plane:
            old = LiveAgent(plane)
            await old.connect()
            await until(lambda: old.heard_of(Lease))
            new = LiveAgent(plane)
            await asyncio.wait_for(old.listening, DEADLINE_S)
            await new.connect()
            await old.hello()
            await old.session.close()
            await until(lambda: new.heard_of(Lease))
            (job_id,) = (await plane.submit(make(spec()))).job_ids
            await until(lambda: job_id in new.held)
            assert len(old.heard_of(Welcome)) == 1

    async def test_one_that_was_silent_too_long_is_ended_when_it_speaks_again(self) -> None:
        async with leading(ProbedStore(), lease_ttl_ms=50) as plane:
            agent = LiveAgent(plane)
            await agent.connect()
            await until(lambda: agent.heard_of(Lease))
            region = plane.engine.state.regions["east"]
            await until(lambda: plane.engine.tick() or not region.session)  # type: ignore[func-returns-value]
            await agent.report()
            await asyncio.wait_for(agent.listening, DEADLINE_S)
            again = LiveAgent(plane)
            await again.connect()
            await until(lambda: again.heard_of(Lease))

    async def test_an_agent_that_does_not_read_is_cut_off_and_catches_up_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sessions, "MAX_PENDING_COMMANDS", 4)
        async with leading(ProbedStore()) as plane:
            slow = LiveAgent(plane)
            slow.listening.cancel()
            await slow.connect()
            ids = (await plane.submit(make(*(spec(cpu=500) for _ in range(8))))).job_ids
            await until(lambda: not plane.engine.state.regions["east"].online)
            queued = [command async for command in slow.session.commands()]
            assert len(queued) == 4
            monkeypatch.setattr(sessions, "MAX_PENDING_COMMANDS", 1_000)
            again = LiveAgent(plane)
            again.held = {command.ref.job_id: command.ref for command in queued if isinstance(command, Launch)}
            await again.connect()
            await until(lambda: set(again.held) == set(ids))
            for job_id in ids:
                await again.finish(job_id)
            await until(lambda: not plane.engine.state.jobs)


def _kinds(commands: Sequence[object]) -> list[str]:
    return [type(command).__name__ for command in commands]
