"""Which projects a user leads.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that is empty for everyone there is: nobody led a project."""
    op.add_column("users", sa.Column("projects", sa.Text(), nullable=False, server_default=""))
