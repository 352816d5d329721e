"""Budgets, accounting months and corrections: protocol messages and what they mean."""

from __future__ import annotations

from collections.abc import Sequence

from protos.suanli.v1 import budgets_pb2, usage_pb2
from scheduler.domain.records import BudgetNoticeRecord, MonthRecord
from scheduler.metering.budgets import DEFAULT_THRESHOLDS, Budget, BudgetUnit
from scheduler.service.contract import BudgetStatus, Correction, Replacement
from scheduler.wire import check
from scheduler.wire.admin import MAX_TIME_MS, MAX_TITLE

MAX_AMOUNT = 10**15
MAX_PROJECTS = 1_000
MAX_THRESHOLDS = 10
MAX_THRESHOLD = 1_000
MAX_REASON = 1_000
MAX_SEQUENCE = (1 << 63) - 1
MAX_HELD = 1 << 53
"""The most milli-cores, MiB or milli-GPUs that a record may hold."""
_UNITS = {int(unit): unit for unit in BudgetUnit}


def budget_from_proto(message: budgets_pb2.Budget) -> Budget:
    """A checked budget; ``from_ms`` 0 is the moment at which it is put. Whether its tenants exist is not checked.

    Author and time are the server's to set. ``InvalidArgument`` names the field.
    """
    name = check.slug(message.id, "budget.id", "a budget's id")
    institution = check.slug(message.institution, "budget.institution", "an institution's id")
    if message.unit not in _UNITS:
        names = ", ".join(unit.name for unit in BudgetUnit)
        check.invalid("budget.unit", f"{message.unit} is no unit of budgets; give one of {names}.")
    from_ms = check.integer(message.from_ms, 0, MAX_TIME_MS, "budget.from_ms", "ms since 1970 (0: now)")
    to_ms = check.integer(message.to_ms, 1, MAX_TIME_MS, "budget.to_ms", "ms since 1970")
    if to_ms <= from_ms:
        check.invalid("budget.to_ms", "the budget ends before it begins; give a later instant.")
    return Budget(
        budget=name,
        institution=institution,
        projects=_projects(message.projects),
        unit=_UNITS[message.unit],
        amount=check.integer(message.amount, 1, MAX_AMOUNT, "budget.amount", "of the unit"),
        from_ms=from_ms,
        to_ms=to_ms,
        hard=message.hard,
        thresholds=_thresholds(message.thresholds),
        title=check.text(message.title, MAX_TITLE, "budget.title"),
        closed=message.closed,
    )


def _projects(names: Sequence[str]) -> frozenset[str]:
    check.count(len(names), MAX_PROJECTS, "budget.projects", "projects")
    seen: set[str] = set()
    for number, name in enumerate(names):
        field = f"budget.projects[{number}]"
        check.slug(name, field, "a project's id")
        if name in seen:
            check.invalid(field, f"{check.shown(name)} is named twice; name each project once.")
        seen.add(name)
    return frozenset(seen)


def _thresholds(given: Sequence[int]) -> tuple[int, ...]:
    check.count(len(given), MAX_THRESHOLDS, "budget.thresholds", "thresholds")
    least = 1
    for number, threshold in enumerate(given):
        field = f"budget.thresholds[{number}]"
        check.integer(threshold, 1, MAX_THRESHOLD, field, "per cent")
        if threshold < least:
            check.invalid(field, f"{threshold} does not rise above the one before; give them from low to high.")
        least = threshold + 1
    return tuple(given) or DEFAULT_THRESHOLDS


def budget_to_proto(budget: Budget) -> budgets_pb2.Budget:
    """The terms of a budget; its projects by name."""
    return budgets_pb2.Budget(
        id=budget.budget,
        institution=budget.institution,
        projects=sorted(budget.projects),
        unit=int(budget.unit),  # type: ignore[arg-type]
        amount=budget.amount,
        from_ms=budget.from_ms,
        to_ms=budget.to_ms,
        hard=budget.hard,
        thresholds=budget.thresholds,
        title=budget.title,
        author=budget.author,
        create_time_ms=budget.create_ms,
        closed=budget.closed,
    )


def status_to_proto(status: BudgetStatus) -> budgets_pb2.BudgetStatus:
    """A budget and how it stands."""
    return budgets_pb2.BudgetStatus(
        budget=budget_to_proto(status.budget),
        spent=status.spent,
        running=status.running,
        committed=status.committed,
        available=status.available,
        threshold=status.threshold,
        held_jobs=status.held_jobs,
        exhausted_time_ms=status.exhausted_ms,
        currency=status.currency,
        currency_digits=status.digits,
    )


def notice_to_proto(record: BudgetNoticeRecord) -> budgets_pb2.BudgetNotice:
    """A threshold that was passed."""
    return budgets_pb2.BudgetNotice(
        budget=record.budget,
        institution=record.institution,
        threshold=record.threshold,
        time_ms=record.time_ms,
        spent=record.spent,
        amount=record.amount,
        unit=record.unit,  # type: ignore[arg-type]
    )


def month_to_proto(record: MonthRecord) -> usage_pb2.AccountingMonth:
    """A closed accounting month."""
    return usage_pb2.AccountingMonth(
        month=record.month,
        closed=True,
        close_time_ms=record.close_ms,
        author=record.author,
        ledger_sequence=record.ledger_sequence,
        head_hash=record.head_hash,
        digest=record.digest,
        records=record.records,
    )


def correction_from_proto(request: usage_pb2.CorrectLedgerRequest) -> Correction:
    """A checked correction; whether there is such a record, and what may stand in its place, is not checked."""
    reason = check.text(request.reason, MAX_REASON, "reason")
    if not reason.strip():
        check.invalid("reason", "it is empty; say in at most 1,000 characters why the record is wrong.")
    replacement = _replacement(request.replacement) if request.HasField("replacement") else None
    if request.credit and replacement is not None:
        check.invalid("credit", "a credit leaves the record as it is; give a replacement or a credit, not both.")
    sequence = check.integer(request.sequence, 1, MAX_SEQUENCE, "sequence")
    return Correction(sequence, reason, replacement, request.credit)


def _replacement(message: usage_pb2.LedgerReplacement) -> Replacement:
    def given(name: str, high: int, unit: str) -> int | None:
        if not message.HasField(name):  # type: ignore[arg-type]
            return None
        return check.integer(getattr(message, name), 0, high, f"replacement.{name}", unit)

    project = None
    if message.HasField("project"):
        project = check.slug(message.project, "replacement.project", "a project's id")
    replacement = Replacement(
        project=project,
        start_ms=given("start_ms", MAX_TIME_MS, "ms since 1970"),
        end_ms=given("end_ms", MAX_TIME_MS, "ms since 1970"),
        cpu_milli=given("cpu_milli", MAX_HELD, "milli-cores"),
        memory_mib=given("memory_mib", MAX_HELD, "MiB"),
        gpu_milli=given("gpu_milli", MAX_HELD, "milli-GPUs"),
    )
    if replacement == Replacement():
        check.invalid("replacement", "it sets nothing, so the record would stay as it is; set what is to be otherwise.")
    return replacement
