"""Data sets and grants.

Revision ID: 0006
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TYPES: dict[str, Any] = {"int": INT, "text": sa.Text()}
DATA_SET = (
    "data_set:text version:text institution:text steward:text classification:int title:text personal:int minors:int "
    "deidentification:int home_region:text allowed_regions:text purposes:text size_mib:int content_hash:text replicas:text "
    "schema_json:text retention_until_ms:int on_revoke:int listed:int withdrawn_ms:int withdrawn_reason:text author:text create_ms:int"
)
GRANT = (
    "grant_id:text institution:text project:text data_set:text version:text purpose:text actions:text status:int "
    "deidentification:int from_ms:int to_ms:int requester:text request_reason:text request_ms:int decider:text "
    "decision_reason:text decide_ms:int revoker:text revoke_reason:text revoke_ms:int"
)


def _table(name: str, columns: str, *key: str) -> None:
    pairs = (column.split(":") for column in columns.split())
    op.create_table(
        name,
        *(sa.Column(column, TYPES[kind], nullable=False) for column, kind in pairs),
        sa.PrimaryKeyConstraint(*key, name=f"{name}_pkey"),
        sa.ForeignKeyConstraint(["institution"], ["institutions.institution"], name=f"{name}_institution"),
    )


def upgrade() -> None:
    """Add the two tables."""
    _table("data_sets", DATA_SET, "data_set", "version")
    _table("grants", GRANT, "grant_id")
