"""How long jobs will run, learned from those that have ended.

Users' limits say little: most jobs end long before them (Tsafrir, Etsion and Feitelson, *Backfilling Using System-Generated
Predictions Rather than User Runtime Estimates*, IEEE TPDS 18(6), 2007, who predict from a user's last jobs). Here each key that a job
belongs to, from everything over its institution and the size of its request to its user and name, keeps a histogram of runtimes
in which older ones fade; a specific key is mixed with the more general ones as if it had seen a few of theirs, so that a first job
of a name is predicted like its user's others, and the hundredth like the ninety-nine before it.

What is left of a job that has run for a while follows from the part of the histogram beyond that time. With the heavy tails that
runtimes have it grows as a job runs on, so that one which has run long makes way for one that has not (least attained service falls
out of this; Aalto, Ayesta and Righter, *On the Gittins index in the M/G/1 queue*, 2009).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from math import log2
from typing import NamedTuple

STEPS_PER_OCTAVE = 4
OCTAVES = 36
"""From a second to a few thousand years."""
BUCKETS = STEPS_PER_OCTAVE * OCTAVES
FIRST_MS = 1000
EDGES_MS = tuple(round(FIRST_MS * 2 ** (step / STEPS_PER_OCTAVE)) for step in range(BUCKETS + 1))
MAX_KEYS = 50_000
"""So many histograms are kept; the one used longest ago goes first. Each takes some 2 KiB."""
MEMORY = 0.98
"""What an observation still counts after each further one of its key."""
STRENGTH = 4.0
"""So many observations of the more general keys count beside those of a key itself."""
_RANGE = (1000, 7 * 86_400_000)
"""Before anything is seen, all magnitudes from a second to a week are as likely."""


class JobFeatures(NamedTuple):
    """What a job's runtime is predicted from."""

    institution: str
    project: str
    user: str
    name: str
    gpu_milli: int


@dataclass(frozen=True, slots=True)
class Predicted:
    """How long a job will go on: the mean, the median and the value that nine of ten do not exceed, each at least 1 and at most up to
    its limit. ``samples``: how many ended jobs of its most specific known key this stands on; 0: none."""

    expected_remaining_ms: int
    p50_ms: int
    p90_ms: int
    samples: int


class Accuracy(NamedTuple):
    """How good predictions were lately: the median of |log2(runtime / median predicted)|, in thousandths, and the part of jobs, in
    thousandths, that did not exceed their p90. ``samples``: over how many."""

    median_error_milli: int
    within_p90_milli: int
    samples: int


class _Histogram:
    """Counts of runtimes by magnitude, and their sums, that fade with each new one."""

    __slots__ = ("counts", "seen", "sums", "total")

    def __init__(self) -> None:
        self.counts = [0.0] * BUCKETS
        self.sums = [0.0] * BUCKETS
        self.total = 0.0
        self.seen = 0

    def add(self, runtime_ms: int) -> None:
        self.counts = [each * MEMORY for each in self.counts]
        self.sums = [each * MEMORY for each in self.sums]
        bucket = bucket_of(runtime_ms)
        self.counts[bucket] += 1.0
        self.sums[bucket] += runtime_ms
        self.total = self.total * MEMORY + 1.0
        self.seen += 1


def bucket_of(runtime_ms: int) -> int:
    """The bucket of a runtime; what is shorter or longer than all buckets is in the first or the last."""
    return min(BUCKETS - 1, max(0, bisect_right(EDGES_MS, runtime_ms) - 1))


def _beginning() -> tuple[list[float], list[float]]:
    """The mixture before anything was seen: parts, and mean runtimes, of the buckets."""
    first, last = bucket_of(_RANGE[0]), bucket_of(_RANGE[1])
    parts = [1.0 / (last - first) if first <= bucket < last else 0.0 for bucket in range(BUCKETS)]
    return parts, [part * (EDGES_MS[bucket] + EDGES_MS[bucket + 1]) / 2 for bucket, part in enumerate(parts)]


class RuntimeModel:
    """Implements ``scheduler.service.ports.RuntimePredictor``. Deterministic: it depends on what it was told, in that order.

    Its arithmetic is in floating point, in a fixed order; what it answers is whole milliseconds.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, ...], _Histogram] = OrderedDict()
        self._mixed: dict[tuple[str, ...], tuple[int, list[float], list[float], int]] = {}
        self._version = 0
        self._errors: list[tuple[int, bool]] = []

    def observe(self, features: JobFeatures, runtime_ms: int) -> None:
        """A job of these features has ended by itself or at its limit, after running this long in all."""
        runtime_ms = max(1, runtime_ms)
        self._judge(features, runtime_ms)
        self._version += 1
        for key in _keys(features):
            histogram = self._kept.get(key)
            if histogram is None:
                histogram = self._kept[key] = _Histogram()
                if len(self._kept) > MAX_KEYS:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
            histogram.add(runtime_ms)

    def predict(self, features: JobFeatures, limit_ms: int, elapsed_ms: int) -> Predicted:
        """How long a job goes on that has run for ``elapsed_ms`` and is ended at ``limit_ms``."""
        most = max(1, limit_ms - elapsed_ms)
        parts, sums, samples = self._mixture(features)
        left = _beyond(parts, sums, elapsed_ms)
        if not left:
            # It has outlived all that was ever seen: as long again is as good a guess as any.
            again = min(most, max(1, elapsed_ms))
            return Predicted(again, again, most, samples)
        whole = sum(part for part, _, _ in left)
        mean = sum(part * min(rest, most) for part, rest, _ in left) / whole
        return Predicted(
            min(most, max(1, round(mean))),
            min(most, max(1, round(_bucket_at(left, whole * 0.5)[1]))),
            min(most, max(1, round(_bucket_at(left, whole * 0.9)[2]))),
            samples,
        )

    def accuracy(self) -> Accuracy:
        """How good the predictions at their start were for the last thousand jobs."""
        if not self._errors:
            return Accuracy(0, 0, 0)
        errors = sorted(error for error, _ in self._errors)
        within = sum(inside for _, inside in self._errors)
        return Accuracy(errors[len(errors) // 2], within * 1000 // len(errors), len(errors))

    def _judge(self, features: JobFeatures, runtime_ms: int) -> None:
        if not self._kept:
            return
        told = self.predict(features, 1 << 50, 0)
        error_milli = round(abs(log2(runtime_ms / told.p50_ms)) * 1000)
        self._errors.append((error_milli, runtime_ms <= told.p90_ms))
        del self._errors[:-1000]

    def _mixture(self, features: JobFeatures) -> tuple[list[float], list[float], int]:
        """Parts and mean runtimes by bucket, from the general to the specific."""
        keys = _keys(features)
        known = self._mixed.get(keys[-1])
        if known is not None and known[0] == self._version:
            return known[1], known[2], known[3]
        parts, sums = _beginning()
        samples = 0
        for key in keys:
            histogram = self._kept.get(key)
            if histogram is None:
                continue
            samples = histogram.seen
            total = STRENGTH + histogram.total
            old, new = STRENGTH / total, 1 / total
            parts = [part * old + count * new for part, count in zip(parts, histogram.counts, strict=True)]
            sums = [each * old + more * new for each, more in zip(sums, histogram.sums, strict=True)]
        # Forecasts ask from another thread: nothing here takes more than one step on anything that is shared.
        if len(self._mixed) > MAX_KEYS // 10:
            self._mixed = {}
        self._mixed[keys[-1]] = (self._version, parts, sums, samples)
        return parts, sums, samples


def _keys(features: JobFeatures) -> tuple[tuple[str, ...], ...]:
    """What a job belongs to, from the general to the specific."""
    institution, _, user, name, gpu_milli = features
    return (
        ("",),
        ("institution", institution),
        ("gpus", institution, str(gpu_milli)),
        ("user", institution, user, str(gpu_milli)),
        ("name", institution, user, name, str(gpu_milli)),
    )


def _beyond(parts: list[float], sums: list[float], elapsed_ms: int) -> list[tuple[float, float, float]]:
    """What is left of the runtimes that exceed ``elapsed_ms``, ascending: (part, time left on average, time left at most)."""
    first = bucket_of(elapsed_ms) if elapsed_ms >= FIRST_MS else 0
    left: list[tuple[float, float, float]] = []
    for bucket in range(first, BUCKETS):
        part = parts[bucket]
        if part < 1e-9:
            continue
        runtime = sums[bucket] / part
        if bucket == first and elapsed_ms >= FIRST_MS:
            # Of the bucket it is in, the part that is not over yet.
            low, high = EDGES_MS[bucket], EDGES_MS[bucket + 1]
            part *= max(0.0, (high - elapsed_ms) / (high - low))
            runtime = (elapsed_ms + high) / 2
        if part >= 1e-9 and runtime > elapsed_ms:
            # The last bucket has no upper edge, and a mean in floating point may lie a little beyond it.
            left.append((part, runtime - elapsed_ms, max(runtime, EDGES_MS[bucket + 1]) - elapsed_ms))
    return left


def _bucket_at(left: list[tuple[float, float, float]], part: float) -> tuple[float, float, float]:
    """The first that brings the sum of the parts to this."""
    total = 0.0
    for each in left:
        total += each[0]
        if total >= part:
            return each
    return left[-1]
