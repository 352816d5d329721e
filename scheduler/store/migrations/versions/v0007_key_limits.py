"""What API keys are limited to, and when they were used last.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns; the keys that are there are limited to nothing."""
    for name in ("limit_role", "read_only", "last_used_ms"):
        op.add_column("api_keys", sa.Column(name, INT, nullable=False, server_default="0"))
    op.add_column("api_keys", sa.Column("project", sa.Text(), nullable=False, server_default=""))
