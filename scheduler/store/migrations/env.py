"""How Alembic runs here: on the connection, and in the transaction, that ``scheduler.store.migrate`` hands it."""

from __future__ import annotations

from alembic import context

from scheduler.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    transaction_per_migration=False,
)
# No transaction of Alembic's own: all revisions, or none, are committed with the caller's.
context.run_migrations()
