"""Store and record together: what is measured, entered, kept, and removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scheduler.domain.holdings import HoldingKind, HoldingRecord
from scheduler.service.marking import Marked
from scheduler.service.storage_ports import HoldingQuery
from tests.support.api import digest_of
from tests.support.artifacts import HOUR_MS, Rig, running_rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_rig(tmp_path) as found:
        yield found


async def held(rig: Rig, institution: str = "uni-a") -> dict[str, HoldingRecord]:
    return {row.item: row for row in await rig.api.control_plane.list_holdings(HoldingQuery(institution))}


def stored(rig: Rig, institution: str = "uni-a") -> tuple[int, int]:
    found = [each for each in rig.api.control_plane.storage_of(institution) if not each.project]
    return (found[0].items, found[0].size_bytes) if found else (0, 0)


async def ended_job(rig: Rig, **left: str) -> str:
    agent = await rig.agent()
    job_id = await rig.api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    await agent.finished(launch, **left)
    return job_id


async def test_what_jobs_left_is_measured_once(rig: Rig) -> None:
    results, logs = rig.put(a=b"x" * 1000, b=b"y" * 24), rig.put(log=b"z" * 10)
    job_id = await ended_job(rig, results=results, logs=logs, checkpoint=results)
    assert {row.size_bytes for row in (await held(rig)).values()} == {-1}
    assert stored(rig) == (3, 0)
    sizes = {ref: rig.files.blob_size(ref) for ref in (results, logs)}
    for _ in range(2):
        await rig.keeper.measure()
        rows = await held(rig)
        assert rows[job_id].size_bytes == sizes[results] + 1024
        assert rows[f"{job_id}/1"].size_bytes == sizes[logs] + 10
        # In full for each of the two that name it.
        assert stored(rig) == (3, 2 * (sizes[results] + 1024) + sizes[logs] + 10)


async def test_a_newer_checkpoint_takes_the_place_of_the_older(rig: Rig) -> None:
    agent = await rig.agent()
    job_id = await rig.api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    first, second = rig.put(a=b"1" * 100), rig.put(a=b"2" * 5000)
    await agent.event(launch, checkpointed={"checkpoint": first})
    unmeasured = await rig.api.control_plane.unmeasured(None, 9)
    await rig.keeper.measure()
    await agent.event(launch, checkpointed={"checkpoint": second})
    # A size that comes too late is of no account.
    await rig.api.control_plane.note_sizes([(unmeasured[0], 123)])
    assert stored(rig) == (1, 0)
    await rig.keeper.measure()
    assert (await held(rig))[job_id].digest == second
    assert stored(rig) == (1, rig.files.blob_size(second) + 5000)


async def test_what_is_not_there_counts_nothing_and_a_store_that_is_away_is_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await ended_job(rig, results=rig.put(a=b"1"), logs="sha256:" + "0" * 64)

    def away(digest: str) -> int:
        raise ConnectionError("away")

    with monkeypatch.context() as patched:
        patched.setattr(rig.files, "blob_size", away)
        await rig.keeper.measure()
    assert (await held(rig))[job_id].size_bytes == -1
    await rig.keeper.measure()
    rows = await held(rig)
    assert (rows[job_id].size_bytes > 0, rows[f"{job_id}/1"].size_bytes) == (True, 0)


@pytest.mark.parametrize("url", ["", "memory://keeper"])
async def test_what_nobody_holds_is_removed_and_nothing_else(tmp_path: Path, url: str) -> None:
    async with running_rig(tmp_path, url and f"{url}-{tmp_path.name}") as rig:
        job_id = await ended_job(rig, results=rig.put(a=b"result", b=b"shared"), logs=rig.put(log=b"log"))
        upload = await rig.upload_folder(rig.api["bob"], {"a": b"upload", "b": b"shared"})
        rig.own = [rig.put(main=b"catalogue")]
        orphan = rig.put(a=b"orphan", b=b"shared")
        job = (await rig.api.control_plane.get_jobs([job_id]))[0]
        row = (await held(rig))[f"{job_id}/1"]
        needed = rig.files_of(job.results, row.digest, upload, *rig.own)
        garbage = rig.files_of(orphan) - needed
        assert rig.blobs() == needed | garbage

        # Young, it may be of somebody who is about to say so.
        found = await rig.keeper.collect()
        assert found is not None
        assert (found.removed, rig.blobs()) == (0, needed | garbage)
        rig.clock.ahead_ms = 48 * HOUR_MS
        rig.api.control_plane.engine.state._clock = rig.clock
        found = await rig.keeper.collect()
        assert found is not None
        assert (found.removed, found.blobs) == (len(garbage), len(needed | garbage))
        assert rig.sweeps.removed_bytes == found.removed_bytes > 0
        assert rig.blobs() == needed
        assert rig.files.read_manifest(upload)


async def test_deleting_frees_what_nobody_else_holds(rig: Rig) -> None:
    results = rig.put(a=b"only here", b=b"shared")
    job_id = await ended_job(rig, results=results)
    await rig.api["bob"].upload(b"shared")
    await rig.keeper.measure()
    rig.age()
    query = HoldingQuery("uni-a", job_ids=(job_id,))
    tried = await rig.api.control_plane.delete_holdings(query, (), "", True)
    assert (tried.items, tried.size_bytes > 0, stored(rig)[0]) == (1, True, 1)
    done = await rig.api.control_plane.delete_holdings(query, (), "", False)
    assert done == tried
    assert stored(rig) == (0, 0)
    assert (await rig.api.control_plane.delete_holdings(query, (), "", False)).items == 0
    assert await rig.keeper.collect() is not None
    assert rig.blobs() == {digest_of(b"shared")}


async def test_what_unfinished_jobs_need_stays_although_nobody_holds_it(rig: Rig) -> None:
    folder = await rig.upload_folder(rig.api["ada"], {"a": b"1", "b": b"2"})
    job_id = await rig.api["ada"].submit(working_folder=folder)
    rig.age()
    query = HoldingQuery("uni-a", kinds=(int(HoldingKind.UPLOAD),))
    kept = await rig.api.control_plane.delete_holdings(query, rig.files_of(folder), "", False)
    assert (kept.items, kept.kept) == (0, 3)
    # Files that a deletion did not know to be needed go from the record, and stay in the store.
    assert (await rig.api.control_plane.delete_holdings(query, (), "", False)).items == 2
    await rig.keeper.collect()
    assert rig.blobs() == rig.files_of(folder)
    await rig.api.control_plane.cancel([job_id], "ada", "")
    await rig.api.control_plane.delete_holdings(query, (), "", False)
    await rig.keeper.collect()
    assert rig.blobs() == set()


async def test_a_silent_region_may_have_stored_what_it_could_not_say(rig: Rig) -> None:
    agent = await rig.agent()
    await rig.api["ada"].submit()
    launch = await agent.launch()
    await agent.started(launch)
    agent.call.cancel()
    plane = rig.api.control_plane
    while plane.engine.state.regions["east"].online:
        await plane.list_regions()
    results = rig.put(a=b"result")
    rig.clock.ahead_ms = 1000 * HOUR_MS
    plane.engine.state._clock = rig.clock
    await rig.keeper.collect()
    assert rig.blobs() == rig.files_of(results)
    # What lay there long before is nobody's all the same.
    rig.age(hours=1000)
    await rig.keeper.collect()
    assert rig.blobs() == set()


async def test_nothing_is_removed_when_something_cannot_be_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await ended_job(rig, results=rig.put(a=b"result"))
    rig.put(a=b"orphan")
    rig.age()
    before = rig.blobs()

    def away(digest: str) -> object:
        raise ConnectionError("away")

    with monkeypatch.context() as patched:
        patched.setattr(rig.files, "read_manifest", away)
        with pytest.raises(ConnectionError):
            await rig.keeper.collect()
    assert rig.blobs() == before
    await rig.keeper.collect()
    assert len(rig.blobs()) == 2


async def test_a_store_of_another_platform_is_left_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.put(a=b"orphan")
    rig.age()
    rig.files.owner("somebody else")
    assert await rig.keeper.collect() is None
    assert len(rig.blobs()) == 2
    assert "belongs to another platform" in caplog.text


async def test_a_job_that_is_accepted_during_a_sweep_keeps_its_folder(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await rig.upload_folder(rig.api["ada"], {"a": b"1"})
    plane = rig.api.control_plane
    rig.age()
    real, calls = rig.keeper._mark_held, []

    async def mark_held(marked: Marked) -> None:
        calls.append(await plane.delete_holdings(HoldingQuery("uni-a", kinds=(1,)), (), "", False))
        await real(marked)
        # Accepted by the record as it was before the deletion.
        plane.engine.state.storage.named[folder] = 1

    monkeypatch.setattr(rig.keeper, "_mark_held", mark_held)
    await rig.keeper.collect()
    assert calls[0].items == 2
    assert rig.blobs() == rig.files_of(folder)


async def test_what_is_kept_long_enough_is_deleted(rig: Rig) -> None:
    job_id = await ended_job(rig, results=rig.put(a=b"1"), logs=rig.put(log=b"2"))
    await rig.upload_folder(rig.api["ada"], {"a": b"1"})
    rig.clock.ahead_ms = 30 * 24 * HOUR_MS
    for kept_days, left in ((31, 4), (29, 2)):
        keeper = rig.new_keeper(outputs_kept_ms=kept_days * 24 * HOUR_MS)
        await keeper.expire()
        keeper.close()
        assert len(await held(rig)) == left
    keeper = rig.new_keeper(uploads_kept_ms=24 * HOUR_MS)
    await keeper.expire()
    keeper.close()
    assert stored(rig) == (0, 0)
    assert job_id not in await held(rig)


async def test_what_jobs_named_before_there_was_a_record_is_entered(rig: Rig) -> None:
    plane, storage = rig.api.control_plane, rig.api.control_plane.engine.state.storage
    folder = await rig.upload_folder(rig.api["ada"], {"a": b"1", "b": b"22"})
    for _ in range(3):
        await rig.api["ada"].submit(working_folder=folder)
    before = await held(rig)
    query = HoldingQuery("uni-a", kinds=(1,))
    storage.named.clear()
    await plane.delete_holdings(query, (), "", False)
    await plane.set_storage_mark("adopt_until", "3")
    assert (stored(rig), rig.keeper.adopted, await rig.keeper.collect()) == ((0, 0), False, None)
    for _ in range(2):
        await rig.keeper.adopt()
        after = await held(rig)
        assert {item: row.size_bytes for item, row in after.items()} == {
            item: row.size_bytes for item, row in before.items()
        }
        assert {row.user for row in after.values()} == {"ada"}
        assert rig.keeper.adopted


def test_what_is_marked_is_always_found_and_most_else_is_not() -> None:
    for sweep in (1, 5):
        marked = Marked(sweep, bits=16)
        inside = [digest_of(str(number).encode()) for number in range(1000)]
        for digest in inside:
            marked.add(digest)
        assert all(digest in marked for digest in inside)
        others = sum(digest_of(f"x{number}".encode()) in marked for number in range(10_000))
        assert 50 < others < 300
    one, other = Marked(1, bits=16), Marked(2, bits=16)
    for digest in inside:
        one.add(digest)
        other.add(digest)
    seen = [digest_of(f"x{number}".encode()) for number in range(10_000)]
    assert sum(digest in one and digest in other for digest in seen) < 20
