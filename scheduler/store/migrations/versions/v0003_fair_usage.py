"""What tenants held on average, and what checkpoints save.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the table of averages, and two columns that are 0 for what is there already."""
    op.create_table(
        "fair_usage",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("institution", "project", "user")),
        *(
            sa.Column(name, INT, nullable=False)
            for name in ("cpu_average", "memory_average", "gpu_average", "as_of_ms")
        ),
        sa.PrimaryKeyConstraint("institution", "project", "user", name="fair_usage_pkey"),
        sqlite_with_rowid=False,
    )
    op.add_column("jobs", sa.Column("done_ms", INT, nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("saved_ms", INT, nullable=False, server_default="0"))
