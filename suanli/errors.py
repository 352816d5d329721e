"""The one tree of errors that the SDK raises.

SuanliError
├── ConfigurationError     no address, no key, an unreadable profile or certificate
├── InvalidArgument        the request is wrong in itself; names the field
│   └── FolderError        a local file or folder cannot be used
├── Unauthenticated        no key, or a wrong one
├── PermissionDenied       the key's owner may not do this
├── NotFound               no such thing, or none you may see
├── AlreadyExists          a request_id reused with another body, a name taken
├── FailedPrecondition     right in itself, but not in the present state
├── ResourceExhausted      a bound, a quota or a rate is reached
├── Unavailable            the control plane cannot be reached, or asks to try again
│   └── DeadlineExceeded   it did not answer in time
├── Internal               a defect of the control plane
├── TransferError          a file arrived damaged, or is too large to be taken
├── WaitTimeout            what was waited for has not happened in the time given (also a TimeoutError)
└── JobError               a job ended otherwise than with success
    ├── JobFailed
    │   └── RemoteError    the function of ``client.run`` raised what cannot be raised here
    ├── JobCancelled
    └── JobTimedOut        its max runtime has passed
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY: Final = "grpc-status-details-bin"
_SERVER_DOMAIN: Final = "suanli"


class SuanliError(Exception):
    """Base of all errors of the SDK.

    ``message`` is a sentence for people, ``reason`` an UPPER_SNAKE_CASE constant for programs, ``field`` the path of
    the field at fault ("jobs[0].resources.cpu_milli") or empty; ``exit_code`` is what a command should end with;
    ``retry_s`` after how many seconds the control plane says that the same may work (0: it does not say).
    """

    default_reason: ClassVar[str] = "ERROR"
    exit_code: int = 1
    retry_s: float = 0.0

    def __init__(self, message: str, *, reason: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        # As BaseException does it, ``reason`` and ``field`` included: keyword arguments are not in ``args``.
        return (_rebuilt, (type(self), self.args, self.__dict__))


def _rebuilt(kind: type[SuanliError], args: tuple[object, ...], state: dict[str, object]) -> SuanliError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigurationError(SuanliError):
    """It is not clear, or not possible, whom to call with which key."""

    default_reason = "CONFIGURATION"
    exit_code = 2


class InvalidArgument(SuanliError):
    """The request is wrong whatever the state; ``field`` says where."""

    default_reason = "INVALID_ARGUMENT"
    exit_code = 2


class FolderError(InvalidArgument):
    """A local folder or file cannot be used."""

    default_reason = "FOLDER"


class TransferError(SuanliError):
    """A file did not arrive as it was sent, or is larger than what is taken."""

    default_reason = "TRANSFER"


class Unauthenticated(SuanliError):
    """No key, or one that is unknown, expired or revoked."""

    default_reason = "UNAUTHENTICATED"
    exit_code = 4


class PermissionDenied(SuanliError):
    """The key's owner is known and may not do this."""

    default_reason = "PERMISSION_DENIED"
    exit_code = 4


class NotFound(SuanliError):
    """There is no such thing, or none you may see."""

    default_reason = "NOT_FOUND"
    exit_code = 3


class AlreadyExists(SuanliError):
    """The name or the request_id is taken by something else."""

    default_reason = "ALREADY_EXISTS"
    exit_code = 6


class FailedPrecondition(SuanliError):
    """Right in itself, but not in the present state."""

    default_reason = "FAILED_PRECONDITION"
    exit_code = 6


class ResourceExhausted(SuanliError):
    """A bound, a quota or a rate is reached."""

    default_reason = "RESOURCE_EXHAUSTED"
    exit_code = 6


class Unavailable(SuanliError):
    """The control plane cannot be reached now; the same call may work later."""

    default_reason = "UNAVAILABLE"
    exit_code = 5


class DeadlineExceeded(Unavailable):
    """The control plane did not answer in time. Whether the call took effect is not known."""

    default_reason = "DEADLINE_EXCEEDED"


class Internal(SuanliError):
    """A defect of the control plane."""

    default_reason = "INTERNAL"


class WaitTimeout(SuanliError, TimeoutError):
    """What was waited for has not happened in the time given; it goes on."""

    default_reason = "WAIT_TIMEOUT"
    exit_code = 124


class JobError(SuanliError):
    """The job ``job_id`` has ended otherwise than with success; ``reason`` and ``message`` are the job's own."""

    default_reason = "JOB_FAILED"

    def __init__(
        self, message: str, *, reason: str = "", field: str = "", job_id: str = "", exit_code: int = 1
    ) -> None:
        super().__init__(message, reason=reason, field=field)
        self.job_id = job_id
        self.exit_code = exit_code


class JobFailed(JobError):
    """The job has FAILED."""


class RemoteError(JobFailed):
    """The function raised an exception of type ``kind``; ``traceback_text`` is its traceback as the job saw it.

    It is raised itself when the exception cannot be raised here, and is the exception's ``__cause__`` otherwise.
    """

    default_reason = "REMOTE_EXCEPTION"

    def __init__(self, message: str, *, kind: str = "", traceback_text: str = "", job_id: str = "") -> None:
        super().__init__(message, job_id=job_id)
        self.kind = kind
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.message}\n\n{self.traceback_text}" if self.traceback_text else self.message


class JobCancelled(JobError):
    """The job was CANCELLED."""

    default_reason = "JOB_CANCELLED"


class JobTimedOut(JobError):
    """The job's max runtime has passed."""

    default_reason = "JOB_TIMED_OUT"


_OF_STATUS: Final[dict[grpc.StatusCode, type[SuanliError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> SuanliError:
    """The error of a failed call to the control plane at ``address``."""
    kind = _OF_STATUS.get(error.code(), Internal)
    details = error.details() or ""
    info, retry_s = _info(error.trailing_metadata() or ())
    if info is not None:
        made = kind(details, reason=info.reason, field=info.metadata.get("field", ""))
        if retry_s > 0:
            made.retry_s = retry_s
        return made
    # No ErrorInfo: it is gRPC's own failure, or the other side is no Suanli.
    if kind is Unavailable:
        return Unavailable(f"The control plane at {address} cannot be reached: {_cause(details)}", reason="UNREACHABLE")
    if kind is DeadlineExceeded:
        return DeadlineExceeded(f"The control plane at {address} did not answer in time.")
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return Internal(
            f"What answers at {address} does not know this call; is it Suanli's control plane, and not older than this "
            "client?",
            reason="UNIMPLEMENTED",
        )
    return kind(f"{details or 'The call failed'} (gRPC: {error.code().name}, from {address})")


def _info(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[error_details_pb2.ErrorInfo | None, float]:
    """What the control plane says of its refusal, and after how many seconds it wants to be asked again."""
    packed = dict(metadata).get(_DETAILS_KEY)
    found: error_details_pb2.ErrorInfo | None = None
    retry = error_details_pb2.RetryInfo()
    if not isinstance(packed, bytes):
        return None, 0.0
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == _SERVER_DOMAIN:
                found = found or info
            elif detail.Is(retry.DESCRIPTOR):
                detail.Unpack(retry)
    except DecodeError:
        return None, 0.0
    return found, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9


def _cause(details: str) -> str:
    """The useful end of what gRPC says of a failed connection."""
    lower = details.lower()
    if "connection refused" in lower:
        return "nothing listens there. Is it running ('suanli up' starts one on this machine)?"
    if "certificate_verify_failed" in lower or "unable to get local issuer" in lower:
        return "its certificate is not one to trust; give the certificates of your authority with ca (SUANLI_CA)."
    if "wrong_version_number" in lower or "ssl_error" in lower or "handshake" in lower:
        return "the TLS handshake failed; is the address right, and is the server behind it using TLS?"
    if "socket closed" in lower or "connection reset" in lower:
        return "it hangs up at once; if it speaks TLS, give the certificates of its authority with ca (SUANLI_CA)."
    if "name resolution" in lower or "dns" in lower or "domain name not found" in lower:
        return "its name is not known; is it written right?"
    return f"{details[-300:]}."
