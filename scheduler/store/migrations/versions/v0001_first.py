"""The first tables.

Revision ID: 0001
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TYPES: dict[str, Any] = {"int": INT, "text": sa.Text(), "bytes": sa.LargeBinary()}


def _table(name: str, columns: str, key: str, *parts: Any, rowid: bool = True) -> None:
    """Create a table; ``columns`` is "name:type ..." and none is nullable."""
    pairs = (column.split(":") for column in columns.split())
    op.create_table(
        name,
        *(sa.Column(column, TYPES[kind], nullable=False) for column, kind in pairs),
        sa.PrimaryKeyConstraint(*key.split(), name=f"{name}_pkey"),
        *parts,
        sqlite_with_rowid=rowid,
    )


def _index(name: str, table: str, columns: str, where: str = "") -> None:
    condition = sa.text(where) if where else None
    op.create_index(name, table, columns.split(), sqlite_where=condition, postgresql_where=condition)


def _create_jobs() -> None:
    _table(
        "jobs",
        "job_no:int job_id:text institution:text project:text user:text name:text state:int reason:text "
        "message:text priority:int spec:bytes submit_ms:int start_ms:int end_ms:int eligible_ms:int "
        "attempt:int failures:int losses:int cancel_requested:int region:text pool:text exit_code:int "
        "exit_signal:int results:text checkpoint:text array_id:text array_index:int array_size:int "
        "array_next:int array_succeeded:int array_failed:int array_cancelled:int sequence:int",
        "job_no",
        sa.UniqueConstraint("job_id", name="jobs_by_id"),
    )
    _index("jobs_by_array", "jobs", "array_id job_no", "array_id <> ''")
    _index("jobs_by_institution", "jobs", "institution job_no")
    _index("jobs_by_project", "jobs", "institution project job_no")
    _index("jobs_live", "jobs", "job_no", "state < 5")
    _table(
        "attempts",
        "job_no:int attempt:int job_id:text lease_epoch:int launch_seq:int institution:text project:text "
        "user:text region:text pool:text accelerator:text placement:text cpu_milli:int memory_mib:int "
        "gpu_milli:int state:int grant_ms:int start_ms:int end_ms:int outcome:int exit_code:int "
        "exit_signal:int message:text cpu_used_ms:int peak_memory_mib:int stop_outcome:int logs:text",
        "job_no attempt",
        rowid=False,
    )
    _index("attempts_live", "attempts", "job_no attempt", "state < 3")
    _table(
        "events",
        "sequence:int job_no:int job_id:text array_id:text institution:text project:text time_ms:int "
        "kind:text state:int attempt:int region:text pool:text reason:text message:text",
        "sequence",
    )
    _index("events_by_array", "events", "array_id sequence", "array_id <> ''")
    _index("events_by_institution", "events", "institution sequence")
    _index("events_by_job", "events", "job_no sequence")
    _table(
        "requests",
        "user:text request_id:text fingerprint:bytes first_job_no:int job_count:int time_ms:int",
        "user request_id",
        rowid=False,
    )
    _index("requests_by_age", "requests", "first_job_no")


def _create_ledger() -> None:
    _table(
        "ledger",
        "sequence:int institution:text project:text user:text job_id:text attempt:int segment:int region:text "
        "pool:text accelerator:text start_ms:int end_ms:int cpu_milli:int memory_mib:int gpu_milli:int "
        "outcome:int",
        "sequence",
        sa.UniqueConstraint("job_id", "attempt", "segment", name="ledger_once"),
    )
    _index("ledger_by_institution", "ledger", "institution sequence")
    _table(
        "usage_by_month",
        "institution:text project:text user:text region:text pool:text accelerator:text month:text "
        "cpu_milli_ms_high:int cpu_milli_ms_low:int memory_mib_ms_high:int memory_mib_ms_low:int "
        "gpu_milli_ms_high:int gpu_milli_ms_low:int segments:int attempts:int",
        "institution project user region pool accelerator month",
        rowid=False,
    )


def _create_tenants() -> None:
    _table(
        "institutions",
        "institution:text title:text weight:int home_region:text create_ms:int",
        "institution",
    )
    _table(
        "projects",
        "institution:text project:text title:text weight:int create_ms:int",
        "institution project",
        sa.ForeignKeyConstraint(["institution"], ["institutions.institution"], name="projects_institution"),
    )
    _table(
        "quotas",
        "institution:text project:text cpu_milli:int memory_mib:int gpu_milli:int pending_jobs:int",
        "institution project",
        sa.ForeignKeyConstraint(["institution"], ["institutions.institution"], name="quotas_institution"),
    )
    _table(
        "users",
        "user:text institution:text title:text role:int disabled:int create_ms:int",
        "user",
    )
    _table(
        "api_keys",
        "prefix:text secret_hash:bytes user:text institution:text role:int region:text title:text "
        "create_ms:int expire_ms:int revoked:int",
        "prefix",
    )


def _create_regions() -> None:
    _table(
        "regions",
        "region:text spool_id:text acked_event_seq:int agent_version:text last_seen_ms:int create_ms:int",
        "region",
    )
    _table(
        "enrolments",
        "token_hash:bytes region:text create_ms:int expire_ms:int used_ms:int",
        "token_hash",
        sa.ForeignKeyConstraint(["region"], ["regions.region"], name="enrolments_region"),
    )
    _table(
        "nodes",
        "region:text node_id:text name:text pool:text accelerator:text cpu_milli:int memory_mib:int "
        "gpu_milli:int labels:text up:int draining:int",
        "region node_id",
        sa.ForeignKeyConstraint(["region"], ["regions.region"], name="nodes_region"),
    )


def _create_leader() -> None:
    _table(
        "leader",
        "id:int epoch:int holder:text expire_ms:int commit_no:int job_no:int event_seq:int ledger_seq:int "
        "launch_seq:int time_ms:int",
        "id",
        sa.CheckConstraint("id = 1", name="leader_is_one_row"),
    )
    op.execute("INSERT INTO leader VALUES (1, 0, '', 0, 0, 0, 0, 0, 0, 0)")


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
    """Build everything."""
    _create_jobs()
    _create_ledger()
    _create_tenants()
    _create_regions()
    _create_leader()
    _make_append_only("ledger")
