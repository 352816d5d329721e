"""Amounts and times as a person writes them, without rounding surprises: everything is computed in integers."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.domain.resources import GPU_UNIT, Resources
from scheduler.domain.spec import Shape
from scheduler.planning.policy import Policy

RESOURCE_NAMES = ("cpu", "memory", "gpu")


def cpu(milli: int) -> str:
    """'4 CPU cores', '0.5 CPU cores'."""
    return f"{_scaled(milli, 1000)} CPU {'core' if milli == 1000 else 'cores'}"


def memory(mib: int) -> str:
    """'16 GiB of memory', '512 MiB of memory'."""
    for unit, size in (("TiB", 1 << 20), ("GiB", 1 << 10)):
        if mib >= size:
            return f"{_scaled(mib, size)} {unit} of memory"
    return f"{mib} MiB of memory"


def gpu(milli: int) -> str:
    """'8 GPUs', '0.25 GPU'."""
    return f"{_scaled(milli, GPU_UNIT)} {'GPU' if 0 < milli <= GPU_UNIT else 'GPUs'}"


def amounts(resources: Resources) -> str:
    """'4 CPU cores, 16 GiB of memory and 1 GPU'; what is zero is left out."""
    words = [say(amount) for say, amount in zip((cpu, memory, gpu), resources, strict=True) if amount]
    return listing(words) or "nothing"


def amount(name: str, value: int) -> str:
    """The amount of one resource named as in ``RESOURCE_NAMES``."""
    return {"cpu": cpu, "memory": memory, "gpu": gpu}[name](value)


def free_amount(name: str, value: int) -> str:
    """'4 free CPU cores', '16 GiB of free memory', '2 free GPUs'."""
    number, _, rest = amount(name, value).partition(" ")
    return f"{number} {rest.replace('of', 'of free')}" if name == "memory" else f"{number} free {rest}"


def listing(words: Sequence[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def count(number: int, noun: str) -> str:
    """'1 node', '3 nodes'; 'replica' and the like take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def are(amounts_in_words: Sequence[str]) -> str:
    """'is' for a single core or GPU or an amount of memory, 'are' for all else."""
    alone = len(amounts_in_words) == 1 and not amounts_in_words[0].endswith(("cores", "GPUs"))
    return "is" if alone else "are"


def are_of(counted: str) -> str:
    """'is' after '1 job', 'are' after '3 jobs'."""
    return "is" if counted.startswith("1 ") else "are"


def duration(ms: int) -> str:
    """'45 seconds', '3 minutes', '2 hours', '4 days': whole units, rounded down."""
    for unit, size in (("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000)):
        if ms >= size:
            return count(ms // size, unit)
    return count(max(0, ms) // 1000, "second")


UNTRUSTED = "it is not trusted with data as closely kept as the job's"
UNISOLATED = "none of its nodes keeps jobs apart, as the job's data demands"


def residency(region: str, shape: Shape, policy: Policy) -> str:
    """'data set census may be processed in region west only'; of those that may not be processed in ``region``."""
    parts = []
    for name in shape.data_sets:
        data_set = policy.data_sets.get(name)
        if data_set is not None and data_set.allowed_regions and region not in data_set.allowed_regions:
            parts.append(f"data set {name} may be processed in region {listing(data_set.allowed_regions, 'or')} only")
    return listing(parts)


def replicas(number: int, request: Resources) -> str:
    """'1 replica with 8 GPUs, ...' or '4 replicas with ... each'."""
    each = " each" if number > 1 else ""
    return f"{count(number, 'replica')} with {amounts(request)}{each}"


def _scaled(value: int, unit: int) -> str:
    """``value / unit`` with at most three decimals, rounded down, no trailing zeros."""
    whole, rest = divmod(value, unit)
    decimals = f"{rest * 1000 // unit:03d}".rstrip("0")
    return f"{whole:,}.{decimals}" if decimals else f"{whole:,}"
