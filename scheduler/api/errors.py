"""Our errors as gRPC statuses: a code, a sentence, a ``google.rpc.ErrorInfo`` for programs, and a ``RetryInfo`` where it helps to wait."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from scheduler.domain import errors

DOMAIN = "suanli"
MAX_MESSAGE = 1200
MAX_METADATA_VALUE = 200
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[type[errors.SuanliError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Hidden: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Deposed: grpc.StatusCode.UNAVAILABLE,
    errors.Internal: grpc.StatusCode.INTERNAL,
}


class WireStatus(NamedTuple):
    """What goes back to the caller."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, bytes], ...]


def code_of(error: errors.SuanliError) -> grpc.StatusCode:
    """The status code of an error, by the nearest class that has one."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)


def status_of(error: errors.SuanliError) -> WireStatus:
    """The status of an error. Bounded, because a client refuses metadata of more than a few KiB."""
    code = code_of(error)
    message = _clean(error.message, MAX_MESSAGE)
    metadata = {key: _clean(value, MAX_METADATA_VALUE) for key, value in list(error.metadata.items())[:8]}
    if error.field:
        metadata["field"] = _clean(error.field, MAX_METADATA_VALUE)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details = [_packed(info)]
    if error.retry_ms:
        details.append(
            _packed(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(**_duration(error.retry_ms))))
        )
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=details)
    return WireStatus(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _duration(ms: int) -> dict[str, int]:
    return {"seconds": ms // 1000, "nanos": ms % 1000 * 1_000_000}


def _clean(text: str, limit: int) -> str:
    """Text that UTF-8 can hold, of bounded length."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text.encode("utf-8", "replace").decode()
