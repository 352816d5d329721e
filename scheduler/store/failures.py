"""What a database's error means: try again (``Unavailable``), or a defect of ours (``Internal``)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc

from scheduler.domain.errors import Internal, SuanliError, Unavailable

# SQLite's primary result codes that may pass: NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, BUSY, LOCKED, PROTOCOL.
_SQLITE_PASSING = frozenset({5, 6, 7, 8, 9, 10, 13, 14, 15})
# PostgreSQL's, beyond what its driver calls operational: a standby takes no writes, a transaction was ended for idling.
_POSTGRES_PASSING = frozenset({"25006", "25P03"})
_OPERATIONAL = frozenset({"OperationalError", "InterfaceError"})
_SENTENCE_LENGTH = 500


def _is_drivers(error: BaseException | None) -> bool:
    """Whether an error comes from a driver (PostgreSQL's is an optional package: known by its name)."""
    return isinstance(error, sqlite3.Error) or type(error).__module__.partition(".")[0] == "psycopg"


def _may_pass(original: BaseException) -> bool:
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_PASSING
    names = {base.__name__ for base in type(original).__mro__}
    return bool(names & _OPERATIONAL) or getattr(original, "sqlstate", None) in _POSTGRES_PASSING


def _sentence(error: BaseException) -> str:
    """The driver's own words on one line, without the details that may quote a user's data."""
    return " ".join(str(error).split("\nDETAIL")[0].split("\nCONTEXT")[0].split())[:_SENTENCE_LENGTH]


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn whatever the database or its driver raises into an error of ours; ``doing`` says what was being done."""
    try:
        yield
    except SuanliError:
        raise
    except (exc.TimeoutError, OSError) as error:
        raise Unavailable(f"The database failed at {doing}: {error}", reason="DATABASE_UNAVAILABLE") from error
    except Exception as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        if original is not None and _is_drivers(original):
            if _may_pass(original):
                text = f"The database failed at {doing}: {_sentence(original)}"
                raise Unavailable(text, reason="DATABASE_UNAVAILABLE") from error
            raise Internal(f"The database refused {doing}: {_sentence(original)}", reason="DATABASE_REFUSED") from error
        if isinstance(error, (exc.SQLAlchemyError, OverflowError, TypeError, ValueError)):
            text = f"The database cannot hold what {doing} gave it: {_sentence(error)}"
            raise Internal(text, reason="DATABASE_REFUSED") from error
        raise
