"""Versions of the policy, which nobody changes or deletes: they are the audit trail.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the table and have the database itself keep it append-only."""
    op.create_table(
        "policies",
        sa.Column("version", INT, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("effective", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("create_ms", INT, nullable=False),
        sa.PrimaryKeyConstraint("version", name="policies_pkey"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER policies_no_{change.lower()} BEFORE {change} ON policies"
                " BEGIN SELECT RAISE(ABORT, 'policies is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION policies_is_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'policies is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER policies_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON policies"
        " FOR EACH STATEMENT EXECUTE FUNCTION policies_is_append_only()"
    )
