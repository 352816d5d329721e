"""Whether budgets can ever cover a job, and amounts of budgets in words."""

from __future__ import annotations

from scheduler.domain.errors import FailedPrecondition
from scheduler.domain.spec import JobSpec, PriorityClass, Shape
from scheduler.metering.budgets import Budget, BudgetUnit
from scheduler.metering.money import money_text
from scheduler.metering.prices import Place
from scheduler.planning.feasible import places_for
from scheduler.service.state import State

_UNITS = {
    BudgetUnit.SERVICE_UNITS: "service units",
    BudgetUnit.CPU_CORE_HOURS: "core-hours",
    BudgetUnit.GPU_HOURS: "GPU-hours",
}

Wants = tuple[Shape, PriorityClass, bool]
"""What decides where a job could run, and at what price."""


def check_covered(state: State, spec: JobSpec, field: str, known: dict[Wants, list[Place]]) -> None:
    """Refuse what a hard budget can never cover: more, where it is cheapest, than is not spent. ``known``: places found before.

    ``FailedPrecondition`` (BUDGET_EXCEEDED).
    """
    budgets = state.metering.budgets
    hard = [each for each in budgets.charged(spec.institution, spec.project) if each.budget.hard] if budgets else []
    if not hard:
        return
    now = state.now()
    end_ms = now + spec.max_runtime_ms + spec.grace_ms
    wants = (spec.shape, spec.priority, spec.preemptible)
    if wants not in known:
        known[wants] = places(state, spec)
    for account in hard:
        left = account.budget.exact_amount - account.spent
        needed = min((budgets.most(account.budget, spec, place, now, end_ms) for place in known[wants]), default=0)
        if needed > left:
            raise FailedPrecondition(
                f"The job may cost {cost_text(state, account.budget, needed)} where it is cheapest, and "
                f"{name_of(account.budget)} has {left_text(state, account.budget, left)} left; ask for less time or "
                "fewer resources, or ask who keeps the budget for more.",
                reason="BUDGET_EXCEEDED",
                field=f"{field}.max_runtime_ms",
                metadata={"budget": account.budget.budget},
            )


def places(state: State, spec: JobSpec) -> list[Place]:
    """Where the job could run."""
    found = places_for(state.pools, spec.shape, state.policy, spec.preemptible)
    return [Place(*pool, accelerator, spec.priority, spec.preemptible) for pool, accelerator in found]


def name_of(budget: Budget) -> str:
    """A budget in a sentence."""
    return f'budget "{budget.budget}"'


def cost_text(state: State, budget: Budget, exact: int) -> str:
    """What something costs, in words, rounded up."""
    return _text(state, budget, budget.up(exact))


def left_text(state: State, budget: Budget, exact: int) -> str:
    """What there is left, in words, rounded down; not below 0."""
    return _text(state, budget, budget.down(exact))


def _text(state: State, budget: Budget, amount: int) -> str:
    if budget.unit is BudgetUnit.MONEY:
        newest = state.metering.prices.newest
        return f"{money_text(amount, newest.digits)} {newest.currency}" if newest else str(amount)
    return f"{money_text(amount, 3)} {_UNITS[budget.unit]}"
