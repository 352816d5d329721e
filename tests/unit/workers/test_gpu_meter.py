"""How much of its GPUs an attempt used, from declared readings: exact sums, sharing, and what the driver does not tell."""

import pytest

from workers.executor.gpu_meter import GpuTotals, Holding, Share, share_of
from workers.executor.gpu_probe import GpuReading

HERE = range(1, 1000)
"""Process ids of the machine."""


def shared(*pids: int) -> Holding:
    return Holding((0,), False, pids)


def whole(*pids: int, gpus: tuple[int, ...] = (0,)) -> Holding:
    return Holding(gpus, True, pids)


def test_jobs_that_share_a_gpu_are_each_charged_with_their_own() -> None:
    reading = GpuReading(900, {10: 250, 11: 50, 20: 600, 999: 70}, {10: 100, 11: 20, 20: 4000, 999: 5})
    readings = {0: reading}
    assert share_of(shared(10, 11, 12), readings, HERE) == Share(300, 120)
    assert share_of(shared(20), readings, HERE) == Share(600, 4000)
    assert share_of(shared(30), readings, HERE) == Share(0, 0)


def test_the_gpus_of_a_rank_are_summed_and_none_counts_for_more_than_one() -> None:
    readings = {
        0: GpuReading(1000, {10: 800, 11: 700}, {10: 1000}),
        1: GpuReading(400, {10: 400}, {10: 500, 11: 1}),
        2: GpuReading(1000, {10: 1000}, {10: 9000}),
    }
    assert share_of(whole(10, 11, gpus=(0, 1)), readings, HERE) == Share(1400, 1501)


@pytest.mark.parametrize(
    ("reading", "alone", "sharing"),
    [
        # No utilisation by process: the GPU's own is that of whoever holds it whole, and nobody's else.
        (GpuReading(420, None, {10: 64}), Share(420, 64), Share(0, 64)),
        # An executor in a container: the driver counts processes in another namespace.
        (GpuReading(420, {70_001: 420}, {70_001: 64}), Share(420, 64), Share(0, 0)),
        # MIG mode: no utilisation at all.
        (GpuReading(None, None, {10: 64}), Share(0, 64), Share(0, 64)),
        # Nothing ran on it.
        (GpuReading(0, {}, {}), Share(0, 0), Share(0, 0)),
        # Somebody else's process keeps busy a GPU that was given to this job.
        (GpuReading(500, {77: 500}, {77: 64, 10: 8}), Share(0, 8), Share(0, 8)),
        (None, Share(0, 0), Share(0, 0)),
    ],
)
def test_what_the_driver_does_not_tell(reading: GpuReading | None, alone: Share, sharing: Share) -> None:
    assert share_of(whole(10), {0: reading}, HERE) == alone
    assert share_of(shared(10), {0: reading}, HERE) == sharing


def test_the_integral_is_exact() -> None:
    totals = GpuTotals(1_000)
    seen = []
    for at_ms, busy_milli, memory_mib in [(1_300, 500, 10), (1_601, 1000, 70), (1_601, 1000, 5), (2_601, 0, 40)]:
        totals.add(Share(busy_milli, memory_mib), at_ms)
        seen.append((totals.used_milli_ms, totals.peak_memory_mib))
    assert seen == [(150_000, 10), (451_000, 70), (451_000, 70), (451_000, 70)]


def test_time_without_a_sample_is_not_charged_to_the_next_one_and_nothing_goes_back() -> None:
    totals = GpuTotals(0)
    totals.add(None, 10_000)
    totals.add(Share(1000, 1), 10_100)
    totals.add(Share(1000, 1), 10_050)
    totals.add(Share(1000, 1), 10_200)
    assert totals == GpuTotals(10_200, 200_000, 1)
