"""Statements as protocol messages."""

from __future__ import annotations

import re

from protos.suanli.v1 import statements_pb2
from scheduler.metering.digest import digest_of, line_fields
from scheduler.metering.money import COST_UNITS_PER_MINOR, decimal_of
from scheduler.metering.statement import ProjectUse, Statement
from scheduler.wire import check

_MONTH = re.compile(r"(19[7-9]|[2-9]\d\d)\d-(0[1-9]|1[0-2])", re.ASCII)
_UJ_PER_WH = 3_600_000_000
_UG_PER_G = 1_000_000
_PLACES = 3


def month(value: str, field: str) -> str:
    """An accounting month, "2026-10"."""
    if _MONTH.fullmatch(value) is None:
        check.invalid(field, f"{check.shown(value)} is no month; write it as in 2026-10.")
    return value


def statement_to_proto(statement: Statement) -> statements_pb2.GetStatementResponse:
    """The whole statement, with its digest."""
    heading = statement.heading
    response = statements_pb2.GetStatementResponse(
        number=heading.number,
        institution=heading.institution,
        institution_title=heading.title,
        month=heading.month,
        final=heading.final,
        currency=statement.currency,
        currency_digits=statement.digits,
        lines=[statements_pb2.StatementLine(**line_fields(line)) for line in statement.lines],
        projects=[_project(project) for project in statement.projects],
        total_minor=statement.total_minor,
        list_total_minor=statement.list_total_minor,
        cpu_milli_ms_by_day=map(str, statement.cpu_by_day),
        gpu_milli_ms_by_day=map(str, statement.gpu_by_day),
        ledger_sequence=heading.head.sequence,
        head_hash=heading.head.hash,
        digest=digest_of(statement),
        issue_time_ms=heading.issue_ms,
        cost_units_per_minor=str(COST_UNITS_PER_MINOR),
    )
    if statement.energy is not None:
        response.energy_wh = f"{decimal_of(statement.energy.energy_uj, _UJ_PER_WH, _PLACES):f}"
        response.carbon_g = f"{decimal_of(statement.energy.carbon_ug, _UG_PER_G, _PLACES):f}"
    return response


def _project(project: ProjectUse) -> statements_pb2.StatementProject:
    return statements_pb2.StatementProject(
        project=project.project,
        title=project.title,
        amount_minor=project.amount_minor,
        cpu_milli_ms=str(project.held.cpu_milli_ms),
        memory_mib_ms=str(project.held.memory_mib_ms),
        gpu_milli_ms=str(project.held.gpu_milli_ms),
        cpu_used_milli_ms=str(project.used.cpu_milli_ms),
        memory_peak_mib_ms=str(project.used.memory_mib_ms),
        gpu_used_milli_ms=str(project.used.gpu_milli_ms),
        attempts=project.attempts,
    )
