"""UsageService: corrections of the ledger, accounting months, budgets and their notices."""

from __future__ import annotations

from collections.abc import Iterable

from protos.suanli.v1 import budgets_pb2, usage_pb2
from scheduler.api.paging import decode_number, decode_token, encode_token, page_of, page_size, question
from scheduler.api.permissions import Role, Scope
from scheduler.api.visibility import Caller, institution_scope, require_led
from scheduler.domain.errors import PermissionDenied
from scheduler.metering.budgets import Budget
from scheduler.service.contract import Service
from scheduler.service.ids import WallClock
from scheduler.service.ports import Clock, UsageQuery
from scheduler.wire import accounting as wire
from scheduler.wire import check
from scheduler.wire.statements import month
from scheduler.wire.usage import ledger_to_proto


class AccountingApi:
    """The methods of UsageService that correct, close and limit."""

    def __init__(self, service: Service, clock: Clock | None = None) -> None:
        self._service = service
        self._clock = clock or WallClock()

    # --- corrections and months ---------------------------------------------------------------------------------------

    async def correct_ledger(
        self, request: usage_pb2.CorrectLedgerRequest, caller: Caller
    ) -> usage_pb2.CorrectLedgerResponse:
        """Take a record back, or its cost, and put another in its place; the new records."""
        asked = wire.correction_from_proto(request)
        institution = institution_scope(caller, "", "sequence")
        records = await self._service.correct_ledger(asked, institution, caller.user)
        prices = self._service.price_book()
        return usage_pb2.CorrectLedgerResponse(records=[ledger_to_proto(record, prices) for record in records])

    async def close_month(self, request: usage_pb2.CloseMonthRequest, caller: Caller) -> usage_pb2.CloseMonthResponse:
        """Close an accounting month for good."""
        record = await self._service.close_month(month(request.month, "month"), caller.user)
        return usage_pb2.CloseMonthResponse(month=wire.month_to_proto(record))

    async def list_months(self, request: usage_pb2.ListMonthsRequest, caller: Caller) -> usage_pb2.ListMonthsResponse:
        """Those that are closed, and those that are open and have records; newest first."""
        del caller
        asked, size = question("ListMonths"), page_size(request.page_size)
        before = decode_token(request.page_token, asked)
        usage = await self._service.usage(UsageQuery(group_by=("period",)))
        found = {row.key.period: usage_pb2.AccountingMonth(month=row.key.period) for row in usage.sums}
        found |= {record.month: wire.month_to_proto(record) for record in await self._service.list_months()}
        names = sorted((name for name in found if not before or name < before), reverse=True)
        token = encode_token(names[size - 1], asked) if len(names) > size else ""
        return usage_pb2.ListMonthsResponse(months=[found[name] for name in names[:size]], next_page_token=token)

    # --- budgets ------------------------------------------------------------------------------------------------------

    async def put_budget(self, request: budgets_pb2.PutBudgetRequest, caller: Caller) -> budgets_pb2.PutBudgetResponse:
        """Create a budget or change its terms. An institution's officers limit its projects, and lift no limit of the platform's."""
        given = budgets_pb2.Budget()
        given.CopyFrom(request.budget)
        given.institution = institution_scope(caller, given.institution, "budget.institution")
        budget = wire.budget_from_proto(given)
        require_led(caller, budget.projects, "budget.projects")
        if caller.scope is not Scope.ANY:
            await self._refuse_platforms(budget, caller)
        status = await self._service.put_budget(budget, caller.user, request.validate_only)
        return budgets_pb2.PutBudgetResponse(status=wire.status_to_proto(status))

    async def _refuse_platforms(self, budget: Budget, caller: Caller) -> None:
        """``PermissionDenied`` for what only those above the caller may put."""
        if not budget.projects:
            raise _of_platform(
                "budget.projects",
                "only the platform limits an institution as a whole; name the projects that are meant.",
            )
        people = {
            record.user
            for record in await self._service.list_users(caller.institution)
            # To a lead, what any other officer of the institution has put is as fixed as the platform's.
            if caller.scope is not Scope.PROJECT or (record.role == Role.PROJECT_LEAD and record.leads & caller.leads)
        }
        terms = await self._service.budget_terms("")
        before = next((each for each in terms if each.budget == budget.budget), None)
        if before is not None and before.institution != caller.institution:
            # Ids are unique on the platform: one that is taken elsewhere is refused without saying by whom.
            raise PermissionDenied(
                f"budget.id: {budget.budget!r} cannot be used in your institution; choose another id.",
                reason="BUDGET_ID_TAKEN",
                field="budget.id",
            )
        if before is not None:
            require_led(caller, before.projects, "budget.id")
        if before is not None and before.author not in people:
            raise _of_platform("budget.id", f"{before.author}, who is above you in this, has put it; ask there.")
        self._refuse_longer(budget, before, [each for each in terms if each.author not in people])

    def _refuse_longer(self, budget: Budget, before: Budget | None, platforms: Iterable[Budget]) -> None:
        """Budgets of the same projects cover one another's time, and the platform's end of it is a limit, too."""
        from_ms = budget.from_ms or (before.from_ms if before else self._clock.now_ms())
        same = [
            each
            for each in platforms
            if (each.institution, each.projects) == (budget.institution, budget.projects)
            and each.hard
            and not each.closed
        ]
        if (
            same
            and budget.hard
            and not budget.closed
            and not any(each.from_ms <= from_ms and budget.to_ms <= each.to_ms for each in same)
        ):
            raise _of_platform(
                "budget.to_ms",
                f'budget "{same[0].budget}" of those above you limits the same projects in time; stay within it, or ask there.',
            )

    async def list_budgets(
        self, request: budgets_pb2.ListBudgetsRequest, caller: Caller
    ) -> budgets_pb2.ListBudgetsResponse:
        """By id, with how they stand."""
        institution = institution_scope(caller, request.institution, "institution")
        check.optional_slug(institution, "institution", "an institution's id")
        project = check.optional_slug(request.project, "project", "a project's id")
        statuses = await self._service.list_budgets(institution, request.include_past)
        if project:
            statuses = [each for each in statuses if each.budget.is_for(each.budget.institution, project)]
        page, token = page_of(
            statuses,
            lambda status: (status.budget.budget,),
            page_size(request.page_size),
            request.page_token,
            question("ListBudgets", institution, project, request.include_past),
        )
        return budgets_pb2.ListBudgetsResponse(
            budgets=[wire.status_to_proto(status) for status in page], next_page_token=token
        )

    async def list_budget_notices(
        self, request: budgets_pb2.ListBudgetNoticesRequest, caller: Caller
    ) -> budgets_pb2.ListBudgetNoticesResponse:
        """Newest first."""
        institution = institution_scope(caller, request.institution, "institution")
        check.optional_slug(institution, "institution", "an institution's id")
        budget = check.optional_slug(request.budget, "budget", "a budget's id")
        asked, size = question("ListBudgetNotices", institution, budget), page_size(request.page_size)
        before = decode_number(request.page_token, asked)
        records = await self._service.list_budget_notices(institution, budget, before, size + 1)
        token = encode_token(str(records[size - 1].number), asked) if len(records) > size else ""
        return budgets_pb2.ListBudgetNoticesResponse(
            notices=[wire.notice_to_proto(record) for record in records[:size]], next_page_token=token
        )


def _of_platform(field: str, sentence: str) -> PermissionDenied:
    return PermissionDenied(f"{field}: {sentence}", reason="BUDGET_OF_PLATFORM", field=field)
