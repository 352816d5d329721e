"""The audit log and its signed heads, to which rows are only added.

Revision ID: 0005
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TYPES: dict[str, Any] = {"int": INT, "text": sa.Text(), "bytes": sa.LargeBinary()}

AUDIT = (
    "sequence:int time_ms:int actor:text role:int institution:text action:text target:text on_behalf_of:text outcome:int "
    "reason:text before:text after:text peer:text key_prefix:text calls:int hash:bytes"
)
HEADS = "sequence:int hash:bytes time_ms:int key:bytes signature:bytes"


def _table(name: str, columns: str) -> None:
    pairs = (column.split(":") for column in columns.split())
    made = [sa.Column(column, TYPES[kind], nullable=False) for column, kind in pairs]
    op.create_table(name, *made, sa.PrimaryKeyConstraint("sequence", name=f"{name}_pkey"))


def _make_append_only(table: str) -> None:
    """Have the database itself refuse to change or delete a row."""
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_is_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_append_only()"
    )


def upgrade() -> None:
    """Add the tables."""
    _table("audit", AUDIT)
    op.create_index("audit_by_actor", "audit", ["actor", "sequence"])
    op.create_index("audit_by_institution", "audit", ["institution", "sequence"])
    op.create_index("audit_by_beneficiary", "audit", ["on_behalf_of", "sequence"])
    _make_append_only("audit")
    _table("audit_heads", HEADS)
    _make_append_only("audit_heads")
