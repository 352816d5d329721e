"""A job's static place in line."""

from __future__ import annotations

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.policy import OrderPolicy

CPU_PER_GPU_MILLI = 8000
MEMORY_PER_GPU_MIB = 65_536
"""What stands beside one GPU on usual machines: so much CPU or memory counts as one GPU."""
SIZE_EXPONENT = 0.85
_WEIGHED = tuple(round(GPU_UNIT * 2 ** (SIZE_EXPONENT * power)) for power in range(32))


def gpu_equivalents_milli(total: Resources) -> int:
    """How large a job is, in thousandths of a GPU with its usual share of CPU and memory; at least 1."""
    return max(
        1,
        total.gpu_milli,
        total.cpu_milli * GPU_UNIT // CPU_PER_GPU_MILLI,
        total.memory_mib * GPU_UNIT // MEMORY_PER_GPU_MIB,
    )


def weighed_size_milli(total: Resources) -> int:
    """The size to the power of 0.85, in thousandths; up to one GPU it is the size itself.

    Service that grows in proportion to the size (SRSF) lets large gangs wait for the sake of many small jobs longer than pays: a
    little less than in proportion lowered the average completion on both traces of ``docs/explanation/queueing.md``. Between powers
    of two it is interpolated, so that it is the same integer on every machine.
    """
    size = gpu_equivalents_milli(total)
    if size <= GPU_UNIT:
        return size
    power = min((size // GPU_UNIT).bit_length() - 1, len(_WEIGHED) - 2)
    low, high, base = _WEIGHED[power], _WEIGHED[power + 1], GPU_UNIT << power
    return low + (high - low) * (size - base) // base


def service_ms(total: Resources, expected_ms: int) -> int:
    """The expected service: weighed size times milliseconds."""
    return weighed_size_milli(total) * expected_ms // GPU_UNIT


def rank_of(order: OrderPolicy, submit_ms: int, priority: PriorityClass, total: Resources, expected_ms: int) -> int:
    """The rank by the formula of ``OrderPolicy``; smaller goes first."""
    above = priority - PriorityClass.NORMAL
    rank = submit_ms - order.class_head_start_ms * above
    if order.shortness_milli:
        term = service_ms(total, expected_ms) * order.shortness_milli
        factor = order.class_factor ** abs(above)
        rank += (term // factor if above > 0 else term * factor) // 1000
    return rank
