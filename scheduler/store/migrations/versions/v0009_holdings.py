"""Who holds what in the artifact store, and quotas on it.

What jobs have left there is entered for them at once, without sizes; the control plane measures it later. What their users
uploaded is named inside the jobs' specifications, which the control plane reads by itself, up to the newest job there is now.

Revision ID: 0009
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TYPES: dict[str, Any] = {"int": INT, "text": sa.Text()}
HOLDING = (
    "institution:text project:text kind:int item:text digest:text job_id:text user:text size_bytes:int since_ms:int"
)
STORED = "institution:text project:text items:int size_bytes:int"
# Kinds are numbers of HoldingKind; the columns stand in the table's order; -1 is a size that is not known.
LEFT_BY_JOBS = (
    """INSERT INTO holdings SELECT institution, project, 2, job_id, results, job_id, "user", -1,
    CASE WHEN end_ms > 0 THEN end_ms ELSE submit_ms END FROM jobs WHERE results <> ''""",
    """INSERT INTO holdings SELECT institution, project, 3, job_id, checkpoint, job_id, "user", -1,
    CASE WHEN end_ms > 0 THEN end_ms ELSE submit_ms END FROM jobs WHERE checkpoint <> ''""",
    """INSERT INTO holdings SELECT institution, project, 4, job_id || '/' || attempt, logs, job_id, "user", -1, end_ms
    FROM attempts WHERE logs <> ''""",
)


def _table(name: str, columns: str, *key: str, rowid: bool = True) -> None:
    pairs = (column.split(":") for column in columns.split())
    made = [sa.Column(column, TYPES[kind], nullable=False) for column, kind in pairs]
    op.create_table(name, *made, sa.PrimaryKeyConstraint(*key, name=f"{name}_pkey"), sqlite_with_rowid=rowid)


def _partial(name: str, condition: str, *columns: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "holdings", list(columns), sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    """Add the tables, and fill them with what jobs hold."""
    op.add_column("quotas", sa.Column("stored_mib", INT, nullable=False, server_default="-1"))
    _table("holdings", HOLDING, "institution", "project", "kind", "item", rowid=False)
    _table("stored", STORED, "institution", "project", rowid=False)
    _table("storage_marks", "name:text value:text", "name")
    for statement in LEFT_BY_JOBS:
        op.execute(statement)
    op.execute(
        "INSERT INTO stored (institution, project, items, size_bytes)"
        " SELECT institution, project, COUNT(*), 0 FROM holdings GROUP BY institution, project"
    )
    op.execute(
        "INSERT INTO storage_marks (name, value) SELECT 'adopt_until', CAST(job_no AS TEXT) FROM leader WHERE job_no > 0"
    )
    op.create_index("holdings_by_digest", "holdings", ["digest", "institution"])
    op.create_index("holdings_by_age", "holdings", ["institution", "since_ms"])
    op.create_index("holdings_by_size", "holdings", ["institution", "size_bytes"])
    _partial("holdings_by_job", "job_id <> ''", "job_id")
    _partial("holdings_unmeasured", "size_bytes < 0", "institution", "project", "kind", "item")
