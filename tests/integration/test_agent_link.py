"""The agent's stream over real gRPC, without nodes: enrolment, refusals, deposed leaders, where artifacts are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.agent_tools import (
    KEY,
    TOKEN,
    FakeControl,
    Running,
    eventually,
    write_config,
)
from workers.agent_link import SetupError
from workers.spool import MemorySpool


@pytest.fixture
async def control() -> AsyncIterator[FakeControl]:
    control = FakeControl()
    await control.start()
    yield control
    await control.stop()


async def test_it_enrols_once_and_comes_back_with_its_key(control: FakeControl, tmp_path: Path) -> None:
    config = write_config(tmp_path, control)
    spool = MemorySpool("s")
    for _ in range(2):
        control.report = None
        running = Running(config, spool)
        await control.until(lambda: control.report)
        await eventually((tmp_path / "ready").exists)
        await running.stop()
        (tmp_path / "ready").unlink()
    assert control.tokens_used == [TOKEN]
    assert (tmp_path / "state/credential").read_text().strip() == KEY


async def test_a_refused_token_ends_it_with_a_sentence(control: FakeControl, tmp_path: Path) -> None:
    config = write_config(tmp_path, control)
    control.tokens_used.append("by somebody else")
    with pytest.raises(SetupError, match="refused the enrolment token"):
        await Running(config, MemorySpool("s")).task


async def test_it_waits_for_a_control_plane_that_is_not_there_yet(control: FakeControl, tmp_path: Path) -> None:
    config = write_config(tmp_path, control)
    await control.stop()
    running = Running(config, MemorySpool("s"))
    done, _ = await asyncio.wait([running.task], timeout=0.5)
    assert not done
    await control.start()
    await control.until(lambda: control.report)
    await running.stop()


async def test_a_revoked_key_is_replaced_when_there_is_a_new_token(control: FakeControl, tmp_path: Path) -> None:
    config = write_config(tmp_path, control)
    running = Running(config, MemorySpool("s"))
    await control.until(lambda: control.report)
    control.key = "suanli_another"
    control.tokens_used.clear()
    await control.stop()
    control.report = None
    await control.start()
    await control.until(lambda: control.report)
    assert (tmp_path / "state/credential").read_text().strip() == "suanli_another"
    await running.stop()


async def test_a_deposed_leader_is_not_served(control: FakeControl, tmp_path: Path) -> None:
    config = write_config(tmp_path, control)
    control.epoch = 5
    running = Running(config, MemorySpool("s"))
    await control.until(lambda: control.report)
    await control.stop()
    control.epoch, control.report = 4, None
    seen = len(control.hellos)
    await control.start()
    await control.until(lambda: len(control.hellos) >= seen + 2)
    assert control.report is None
    control.epoch = 6
    await control.until(lambda: control.report)
    await running.stop()


async def test_artifacts_are_kept_where_the_control_plane_says(control: FakeControl, tmp_path: Path) -> None:
    config = write_config(tmp_path, control, artifacts_url=None)
    control.artifacts_url = "s3://bucket/prefix"
    running = Running(config, MemorySpool("s"))
    await control.until(lambda: control.report)
    assert running.nodes.url == "s3://bucket/prefix"
    await running.stop()
    await control.stop()
    again = Running(config, MemorySpool("s"))
    await eventually(lambda: again.nodes.url == "s3://bucket/prefix")
    await again.stop()


async def test_a_spool_that_cannot_be_written_ends_it(control: FakeControl, tmp_path: Path) -> None:
    spool = MemorySpool("s")
    spool.fail_next_commit = True
    running = Running(write_config(tmp_path, control), spool)
    with pytest.raises(Exception, match="spool"):
        await running.task
