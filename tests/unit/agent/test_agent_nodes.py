"""Requests to nodes: one call for all that has gathered, in order, and an answer whatever happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from artifacts import ArtifactError, ArtifactStore, Part
from workers.agent_isolation import NodeIsolation
from workers.agent_nodes import NodeLines, merge_manifests
from workers.agent_ray import RayTokens
from workers.core_types import (
    AllocatePort,
    Input,
    LaunchRefused,
    LaunchUnsure,
    MergeResults,
    PortAllocated,
    ResultsMerged,
    StartRank,
    StopRank,
)
from workers.executor import types as ex
from workers.executor.isolation import Isolations


class FakeGateway:
    """Notes the calls; a launch waits for ``gate``."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.refuse: tuple[ex.Refused, ...] = ()
        self.launches: tuple[ex.Launch, ...] = ()

    async def launch(self, node_id: str, launches: tuple[ex.Launch, ...]) -> tuple[ex.Refused, ...]:
        self.launches += launches
        self.calls.append(("launch", node_id, *(launch.job_id for launch in launches)))
        await self.gate.wait()
        if self.error:
            raise self.error
        return self.refuse

    async def stop(self, node_id: str, job_id: str, attempt: int, grace_ms: int, reason: str) -> None:
        self.calls.append(("stop", node_id, job_id, attempt, grace_ms))
        if self.error:
            raise self.error

    async def free_port(self, node_id: str) -> int:
        if self.error:
            raise self.error
        return 4321


class Rig:
    def __init__(self, url: str) -> None:
        self.gateway = FakeGateway()
        self.answers: asyncio.Queue[Input] = asyncio.Queue()
        isolation = NodeIsolation(Isolations(), ())
        self.lines = NodeLines(self.gateway, self.answers.put_nowait, url, isolation, RayTokens(b"secret"))  # type: ignore[arg-type]

    def start(self, job: str, node: str = "n1") -> None:
        self.lines.put(StartRank(node, ex.Launch(job, 1, ("true",))))

    def stop(self, job: str, rank: int = 0, grace_ms: int = 5) -> None:
        self.lines.put(StopRank("n1", ex.AttemptKey(job, 1, rank), grace_ms, "why"))

    async def answer(self) -> Input:
        async with asyncio.timeout(10):
            return await self.answers.get()

    async def called(self, count: int) -> list[tuple[object, ...]]:
        async with asyncio.timeout(10):
            while len(self.gateway.calls) < count:  # noqa: ASYNC110 - the next step of the loop may be the one
                await asyncio.sleep(0)
        return self.gateway.calls


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(str(tmp_path))


async def test_a_ray_job_gets_its_token_on_its_way_out(rig: Rig) -> None:
    ray = ex.Launch("ray", 2, ("true",), rank=1, ray=ex.RayCluster(512))
    for launch in (ray, ex.Launch("plain", 1, ("true",))):
        rig.lines.put(StartRank("n1", launch))
    await rig.called(1)
    equipped, plain = rig.gateway.launches
    assert equipped.ray == ex.RayCluster(512, RayTokens(b"secret").token("ray", 2))
    assert plain.ray is None


async def test_what_gathers_during_a_call_goes_in_the_next_one(rig: Rig) -> None:
    rig.gateway.gate.clear()
    rig.start("a")
    await rig.called(1)
    rig.start("b")
    rig.start("c")
    rig.start("x", node="n2")
    rig.gateway.gate.set()
    assert await rig.called(3) == [("launch", "n1", "a"), ("launch", "n2", "x"), ("launch", "n1", "b", "c")]


async def test_a_stop_never_overtakes_its_launch(rig: Rig) -> None:
    rig.start("a")
    rig.stop("a", rank=0, grace_ms=5)
    rig.stop("a", rank=1, grace_ms=3)
    rig.start("b")
    assert await rig.called(3) == [("launch", "n1", "a"), ("stop", "n1", "a", 1, 3), ("launch", "n1", "b")]


async def test_failures_are_answered_for_each_rank(rig: Rig) -> None:
    rig.gateway.error = RuntimeError("broken")
    rig.start("a")
    answer = await rig.answers.get()
    assert answer == LaunchUnsure(ex.AttemptKey("a", 1), "the node did not answer: broken")
    rig.stop("a")
    rig.lines.ask_port(AllocatePort("a", 1, "n1"))
    assert await rig.answers.get() == PortAllocated("a", 1, 0, "broken")
    rig.gateway.error = None
    rig.gateway.refuse = (ex.Refused(ex.AttemptKey("b", 1), "full"),)
    rig.start("b")
    assert await rig.answers.get() == LaunchRefused(ex.AttemptKey("b", 1), "full")
    rig.lines.ask_port(AllocatePort("a", 1, "n1"))
    assert await rig.answers.get() == PortAllocated("a", 1, 4321)


async def test_the_place_of_a_rank_is_remembered(rig: Rig) -> None:
    rig.start("a", node="n7")
    assert rig.lines.places.get(ex.AttemptKey("a", 1)) == "n7"
    assert rig.lines.places.get(ex.AttemptKey("b", 1)) is None
    await rig.called(1)
    await rig.lines.close()


async def test_manifests_are_merged_and_the_lower_rank_wins(rig: Rig, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    manifests = []
    for rank, names in enumerate((("a", "same"), ("b", "same"))):
        folder = tmp_path / f"rank{rank}"
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{name} of {rank}")
        ref = store.put_tree(Part(folder)).ref
        assert ref is not None
        manifests.append(ref)
    rig.lines.merge(MergeResults("j", 1, tuple(manifests)))
    answer = await rig.answer()
    assert isinstance(answer, ResultsMerged)
    store.fetch_tree(answer.results, tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {"a": "a of 0", "b": "b of 1", "same": "same of 0"}
    gone = "sha256:" + "0" * 64
    rig.lines.merge(MergeResults("j", 1, (manifests[0], gone), tuple(manifests)))
    failed = await rig.answer()
    assert isinstance(failed, ResultsMerged)
    assert (failed.results, failed.logs) == ("", answer.results), "one does not take the other with it"
    assert failed.error.startswith("results: ")
    assert gone in failed.error
    rig.lines.merge(MergeResults("j", 1, (), (gone,)))
    assert await rig.answer() == ResultsMerged("j", 1, "", gone)
    with pytest.raises(ArtifactError):
        merge_manifests(str(tmp_path), ("rubbish",))
