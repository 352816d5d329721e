"""Events by cursor: nothing is lost or repeated that was not acknowledged, whoever asks."""

import asyncio

from workers.executor.events import EventLog
from workers.executor.types import Cursor, Started


def event(number: int) -> Started:
    return Started(f"job{number}", 1, 0, number, 0)


async def test_events_come_again_until_they_are_acknowledged() -> None:
    log = EventLog("boot")
    log.add(event(1))
    log.add(event(2))
    first = await log.poll(None, 0)
    assert [one.job_id for one in first.events] == ["job1", "job2"]
    assert await log.poll(None, 0) == first
    log.add(event(3))
    second = await log.poll(first.cursor, 0)
    assert [one.job_id for one in second.events] == ["job3"]
    assert (await log.poll(second.cursor, 0)).events == ()
    assert len(log) == 0


async def test_a_cursor_of_another_boot_acknowledges_nothing() -> None:
    log = EventLog("boot")
    log.add(event(1))
    polled = await log.poll(Cursor("earlier boot", 100), 0)
    assert len(polled.events) == 1


async def test_a_cursor_from_the_future_acknowledges_only_what_was_there() -> None:
    log = EventLog("boot")
    await log.poll(Cursor("boot", 100), 0)
    log.add(event(1))
    assert len((await log.poll(None, 0)).events) == 1


async def test_a_poll_waits_for_the_first_event() -> None:
    log = EventLog("boot")
    waiting = asyncio.create_task(log.poll(None, 20))
    await asyncio.sleep(0)
    log.add(event(1))
    assert len((await waiting).events) == 1
