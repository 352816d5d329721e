"""The figures of each variant, what they are against the baseline, and how far the baseline is from what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.simulation.outcome import JobOutcome, Outcome, percentile
from scheduler.simulation.series import Series, Steps, capacity_steps, held_steps
from scheduler.simulation.tables import History, PastJob
from scheduler.simulation.trial import Variant, ran

HOUR_MS = 3_600_000
MAX_REFUSALS_LISTED = 100
Figures = dict[str, float | int | None]
COMPARED = (
    "wait_average_ms",
    "wait_median_ms",
    "wait_p99_ms",
    "completion_average_ms",
    "completion_median_ms",
    "completion_p99_ms",
    "gpu_utilisation",
    "cpu_utilisation",
    "evictions",
    "lost_hours",
    "jain_average",
)
"""The figures that are compared, in the order they are shown."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was found of a variant. ``origins``: for each job of the outcome the past job it stands for, None for added load."""

    variant: Variant
    outcome: Outcome
    origins: Sequence[PastJob | None]
    series: Series


def times(waits: Iterable[int], completions: Iterable[int]) -> Figures:
    """Average, median and 99th percentile, in milliseconds; None where there is no job."""
    figures: Figures = {}
    for name, values in (("wait", sorted(waits)), ("completion", sorted(completions))):
        figures[f"{name}_average_ms"] = sum(values) // len(values) if values else None
        figures[f"{name}_median_ms"] = percentile(values, 500) if values else None
        figures[f"{name}_p99_ms"] = percentile(values, 990) if values else None
    return figures


def counted(history: History, result: Result) -> list[JobOutcome]:
    """The jobs whose waits count: all but those of before the window, which are there to hold what they held."""
    pairs = zip(result.outcome.jobs, result.origins, strict=True)
    return [job for job, past in pairs if past is None or past.submit_ms >= history.from_ms]


def figures_of(history: History, result: Result) -> Figures:
    """The figures of a variant as a whole. Utilisation is that of the window; waits are those of the jobs that ended."""
    jobs = counted(history, result)
    ended = [each for each in jobs if each.ended]
    utilisation = _utilisation(history, result.outcome)
    jain = [value for value in result.series.jain if value is not None]
    lost_ms = sum(max(0, each.held_ms - each.job.runtime_ms) for each in ended if each.evictions)
    return {
        "jobs": len(jobs),
        "ended": len(ended),
        "refused": sum(bool(each.refused) for each in jobs),
        "unfinished": sum(not each.ended and not each.refused for each in jobs),
        **times([each.wait_ms for each in ended], [each.completion_ms for each in ended]),
        "gpu_utilisation": utilisation[2],
        "cpu_utilisation": utilisation[0],
        "evictions": sum(each.evictions for each in result.outcome.jobs),
        "lost_hours": lost_ms / HOUR_MS,
        "jain_average": sum(jain) / len(jain) if jain else None,
        "last_end_ms": max((each.end_ms for each in ended), default=None),
        "rounds": result.outcome.rounds,
        "events": result.outcome.events,
    }


def institutions_of(history: History, result: Result) -> dict[str, Figures]:
    """The figures of each institution; hours are those held in the window."""
    found: dict[str, Figures] = {}
    by_name: dict[str, list[JobOutcome]] = {}
    for each in counted(history, result):
        by_name.setdefault(each.job.institution, []).append(each)
    held = held_steps(result.outcome.ledger).of_institution
    for name in sorted({*by_name, *(institution for institution, _ in held)}):
        jobs = by_name.get(name, [])
        ended = [each for each in jobs if each.ended]
        hours = [
            held[name, index].integral(history.from_ms, history.to_ms) / (1000 * HOUR_MS)
            if (name, index) in held
            else 0.0
            for index in (0, 2)
        ]
        found[name] = {
            "jobs": len(jobs),
            "ended": len(ended),
            **times([each.wait_ms for each in ended], [each.completion_ms for each in ended]),
            "evictions": sum(each.evictions for each in jobs),
            "cpu_hours": hours[0],
            "gpu_hours": hours[1],
        }
    return found


def _utilisation(history: History, outcome: Outcome) -> list[float | None]:
    """The part of the window's whole capacity of each resource that was held; None where there is none."""
    whole, used = [0, 0, 0], [0, 0, 0]
    for (_, index), steps in capacity_steps(outcome.capacity, history.from_ms).items():
        whole[index] += steps.integral(history.from_ms, history.to_ms)
    for (_, index), steps in held_steps(outcome.ledger).of_pool.items():
        used[index] += steps.integral(history.from_ms, history.to_ms)
    return [part / all_ if all_ else None for part, all_ in zip(used, whole, strict=True)]


def against(figures: Mapping[str, float | int | None], base: Mapping[str, float | int | None]) -> dict[str, Figures]:
    """The difference of each figure that both have, and that in per cent of the baseline's (None where that is 0)."""
    found: dict[str, Figures] = {}
    for name, value in figures.items():
        before = base.get(name)
        if value is not None and before is not None:
            difference = value - before
            found[name] = {"difference": difference, "percent": 100 * difference / before if before else None}
    return found


def calibration(history: History, result: Result) -> dict[str, Figures]:
    """What really happened beside what the simulation of the same makes of it, for the jobs that ended in both.

    Past use is reckoned as ``runtime_ms`` up to the end of each job, which is exact for jobs of one attempt.
    """
    real: list[tuple[int, int]] = []
    simulated: list[tuple[int, int]] = []
    for job, past in zip(result.outcome.jobs, result.origins, strict=True):
        if past is not None and past.end_ms and past.submit_ms >= history.from_ms and job.ended:
            completion_ms = past.end_ms - past.eligible_ms
            real.append((max(0, completion_ms - past.runtime_ms), completion_ms))
            simulated.append((job.wait_ms, job.completion_ms))
    utilisation = _utilisation(history, result.outcome)
    actual_use = _actual_utilisation(history, result.outcome)
    off = sorted(abs(one[1] - two[1]) for one, two in zip(real, simulated, strict=True))
    actual: Figures = {
        "jobs": len(real),
        **times([wait for wait, _ in real], [completion for _, completion in real]),
        "gpu_utilisation": actual_use[2],
        "cpu_utilisation": actual_use[0],
        "evictions": sum(past.evictions for past in history.jobs),
    }
    model: Figures = {
        "jobs": len(simulated),
        **times([wait for wait, _ in simulated], [completion for _, completion in simulated]),
        "gpu_utilisation": utilisation[2],
        "cpu_utilisation": utilisation[0],
        "evictions": sum(each.evictions for each in result.outcome.jobs),
        "completion_off_median_ms": percentile(off, 500) if off else None,
        "completion_off_p99_ms": percentile(off, 990) if off else None,
    }
    return {"actual": actual, "simulated": model}


def _actual_utilisation(history: History, outcome: Outcome) -> list[float | None]:
    whole, used = [0, 0, 0], [Steps(), Steps(), Steps()]
    for (_, index), steps in capacity_steps(outcome.capacity, history.from_ms).items():
        whole[index] += steps.integral(history.from_ms, history.to_ms)
    for past in history.jobs:
        if ran(past):
            end_ms = past.end_ms or history.to_ms
            for steps, amount in zip(used, past.shape.total, strict=True):
                steps.span(end_ms - past.runtime_ms, end_ms, amount)
    held = [steps.integral(history.from_ms, history.to_ms) for steps in used]
    return [part / all_ if all_ else None for part, all_ in zip(held, whole, strict=True)]


def report(history: History, results: Sequence[Result]) -> dict[str, Any]:
    """All figures as data: what ``metrics.json`` holds."""
    base = figures_of(history, results[0])
    base_institutions = institutions_of(history, results[0])
    found = []
    for result in results:
        figures, institutions = figures_of(history, result), institutions_of(history, result)
        refused = [
            (past, job) for job, past in zip(result.outcome.jobs, result.origins, strict=True) if past and job.refused
        ]
        compared = {name: figures[name] for name in COMPARED}
        found.append(
            {
                "label": result.variant.label,
                "policy": result.variant.policy.name,
                "changes": str(result.variant.changes),
                "figures": figures,
                "against_baseline": against(compared, base),
                "institutions": {
                    name: {**of_one, "against_baseline": against(of_one, base_institutions.get(name, {}))}
                    for name, of_one in institutions.items()
                },
                "refused": [
                    {"job_id": past.job_id, "institution": past.institution, "name": past.name, "message": job.refused}
                    for past, job in refused[:MAX_REFUSALS_LISTED]
                ],
            }
        )
    return {
        "window": {"from_ms": history.from_ms, "to_ms": history.to_ms, "time_zone": "UTC"},
        "jobs": {
            "in_history": len(history.jobs),
            "simulated": sum(ran(job) for job in history.jobs),
            "never_ran": sum(not ran(job) for job in history.jobs),
            "from_before": sum(ran(job) and job.submit_ms < history.from_ms for job in history.jobs),
            "still_running": sum(ran(job) and not job.end_ms for job in history.jobs),
        },
        "variants": found,
        "calibration": calibration(history, results[0]),
    }
