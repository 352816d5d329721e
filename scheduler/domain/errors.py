"""The one tree of errors.

SuanliError
├── InvalidArgument        the request is wrong in itself; names the field
├── Unauthenticated        no, or a wrong, credential
├── PermissionDenied       the caller may not do this
├── NotFound               no such thing, or none the caller may know of
│   └── Hidden             there is one
├── AlreadyExists          a request_id reused with another body, a name taken
├── FailedPrecondition     right in itself, but not in the present state
├── ResourceExhausted      a bound, a quota or a rate is reached
├── DeadlineExceeded       it took longer than the server lets a call take
├── Unavailable            try again: not the leader, the store is away
│   └── Deposed            another process has become the leader
└── Internal               a defect of ours

Each carries a ``reason`` (UPPER_SNAKE_CASE, for programs), a sentence that says what to do next (for people) and, where
one is at fault, the path of the request's ``field``. Callers never match on the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping


class SuanliError(Exception):
    """Base of all errors this project raises on purpose.

    ``reason`` is the constant programs match on; ``field`` is the path of the offending field or empty; ``metadata``
    holds further facts as strings; ``retry_ms`` says after how long the same may succeed (0: not known).
    """

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_ms: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_ms = retry_ms


class InvalidArgument(SuanliError):
    """The request is wrong whatever the state; ``field`` says where."""

    default_reason = "INVALID_ARGUMENT"


class Unauthenticated(SuanliError):
    """No credential, or one that is unknown, expired or revoked."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(SuanliError):
    """The caller is known and may not do this."""

    default_reason = "PERMISSION_DENIED"


class NotFound(SuanliError):
    """There is no such thing, or none the caller may know of."""

    default_reason = "NOT_FOUND"


class Hidden(NotFound):
    """There is such a thing, and the caller may not know of it: says what ``NotFound`` says, and is audited."""


class AlreadyExists(SuanliError):
    """The name or the request_id is taken by something else."""

    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(SuanliError):
    """Right in itself, but not in the present state."""

    default_reason = "FAILED_PRECONDITION"


class ResourceExhausted(SuanliError):
    """A bound, a quota or a rate is reached."""

    default_reason = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(SuanliError):
    """The call brought no deadline, and the server's own has passed."""

    default_reason = "DEADLINE_EXCEEDED"


class Unavailable(SuanliError):
    """Not now; the same call may work later."""

    default_reason = "UNAVAILABLE"


class Deposed(Unavailable):
    """Another process holds the leadership; this one may not write any more."""

    default_reason = "DEPOSED"


class Internal(SuanliError):
    """A defect of ours."""

    default_reason = "INTERNAL"
