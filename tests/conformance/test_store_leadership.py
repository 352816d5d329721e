"""Who may write: one at a time, by the database's clock."""

from __future__ import annotations

import threading
import time

import pytest

from scheduler.domain.errors import Deposed
from scheduler.service.ports import CommitBatch, Leadership, Store
from tests.conformance.conftest import Disk, WallClock
from tests.support import rows

DEADLINE_S = 20


def _acquire_when_free(disk: Disk, store: Store, ttl_ms: int) -> Leadership:
    """Wait out the present lease: at once on the memory store's clock, in fact on a database's."""
    if disk.kind == "memory":
        clock: WallClock = store._clock  # type: ignore[attr-defined]
        clock.ms += ttl_ms
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if lease := store.acquire_leadership("next", 60_000):
            return lease
        threading.Event().wait(0.01)
    raise AssertionError("the lease never ended")


def test_one_leader_at_a_time(disk: Disk) -> None:
    one, other = disk.open(), disk.open()

    lease = one.acquire_leadership("one", 60_000)

    assert lease == Leadership(1, 60_000)
    assert other.acquire_leadership("other", 60_000) is None
    assert one.acquire_leadership("one", 60_000) is None


def test_a_released_lease_is_free_at_once(disk: Disk) -> None:
    one, other = disk.open(), disk.open()
    first = one.acquire_leadership("one", 60_000)
    assert first is not None

    one.release_leadership(first.epoch)

    with pytest.raises(Deposed):
        one.renew_leadership(first.epoch, 60_000)
    assert other.acquire_leadership("other", 60_000) == Leadership(2, 60_000)
    with pytest.raises(Deposed):
        one.renew_leadership(first.epoch, 60_000)
    one.release_leadership(first.epoch)
    assert one.acquire_leadership("one", 60_000) is None, "a deposed leader released another's lease"


def test_a_lease_that_ran_out_is_taken_and_its_holder_fenced(disk: Disk) -> None:
    store = disk.open()
    first = store.acquire_leadership("one", 200)
    assert first is not None

    second = _acquire_when_free(disk, store, 200)

    assert second.epoch == first.epoch + 1
    with pytest.raises(Deposed):
        store.renew_leadership(first.epoch, 60_000)
    with pytest.raises(Deposed):
        store.commit(first.epoch, 1, CommitBatch(new_jobs=[rows.job(1)]))
    store.release_leadership(first.epoch)
    store.renew_leadership(second.epoch, 60_000)
    assert disk.open().acquire_leadership("third", 60_000) is None


def test_renewal_keeps_the_lease(disk: Disk) -> None:
    store = disk.open()
    lease = store.acquire_leadership("one", 300)
    assert lease is not None

    store.renew_leadership(lease.epoch, 3_600_000)

    if disk.kind == "memory":
        store._clock.ms += 1000  # type: ignore[attr-defined]
    else:
        threading.Event().wait(0.4)
    assert store.acquire_leadership("other", 60_000) is None


def test_a_late_leader_that_nobody_replaced_goes_on(disk: Disk) -> None:
    store = disk.open()
    lease = store.acquire_leadership("one", 0)
    assert lease is not None

    store.commit(lease.epoch, 1, CommitBatch(new_jobs=[rows.job(1)]))
    store.renew_leadership(lease.epoch, 60_000)

    assert store.acquire_leadership("other", 60_000) is None


def test_of_many_candidates_one_wins(disk: Disk) -> None:
    stores = [disk.open() for _ in range(4)]
    ready = threading.Barrier(len(stores))
    won: list[Leadership] = []

    def stand(store: Store) -> None:
        ready.wait(DEADLINE_S)
        if lease := store.acquire_leadership("candidate", 60_000):
            won.append(lease)

    threads = [threading.Thread(target=stand, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert won == [Leadership(1, 60_000)]
