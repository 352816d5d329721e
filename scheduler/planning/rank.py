"""A job's static place in line."""

from __future__ import annotations

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import PriorityClass
from scheduler.planning.policy import OrderPolicy

CPU_PER_GPU_MILLI = 8000
MEMORY_PER_GPU_MIB = 65_536
"""What stands beside one GPU on usual machines: so much CPU or memory counts as one GPU."""


def gpu_equivalents_milli(total: Resources) -> int:
    """How large a job is, in thousandths of a GPU with its usual share of CPU and memory; at least 1."""
    return max(
        1,
        total.gpu_milli,
        total.cpu_milli * GPU_UNIT // CPU_PER_GPU_MILLI,
        total.memory_mib * GPU_UNIT // MEMORY_PER_GPU_MIB,
    )


def service_ms(total: Resources, expected_ms: int) -> int:
    """The expected service: GPU-equivalents times milliseconds."""
    return gpu_equivalents_milli(total) * expected_ms // GPU_UNIT


def rank_of(order: OrderPolicy, submit_ms: int, priority: PriorityClass, total: Resources, expected_ms: int) -> int:
    """The rank by the formula of ``OrderPolicy``; smaller goes first."""
    above = priority - PriorityClass.NORMAL
    rank = submit_ms - order.class_head_start_ms * above
    if order.shortness_milli:
        term = service_ms(total, expected_ms) * order.shortness_milli
        factor = order.class_factor ** abs(above)
        rank += (term // factor if above > 0 else term * factor) // 1000
    return rank
