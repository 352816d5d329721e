"""What the launcher asks the control plane that it has started itself: blocking calls over the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from protos.suanli.v1 import admin_pb2, admin_pb2_grpc, usage_pb2_grpc
from suanli.local.state import INSTITUTION, LocalError

CALL_TIMEOUT_S = 20.0


class Control:
    """A connection with the local admin's key. ``admin`` and ``usage`` are stubs for ``call``, which raises LocalError.

    ``ca`` is the file with the authority to trust; empty: no TLS.
    """

    def __init__(self, address: str, key_file: Path, ca: str) -> None:
        try:
            key = key_file.read_text().strip()
        except OSError as error:
            raise LocalError(
                f"The local admin's key {key_file} cannot be read ({error.strerror}). It is written once, with the "
                "database; without it, remove the whole state folder to begin anew."
            ) from error
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._channel = _channel(address, ca)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)
        self.usage: Any = usage_pb2_grpc.UsageServiceStub(self._channel)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def make_local_institution(self) -> None:
        """Make the institution of whoever sits at this machine, so that a job needs no set-up."""
        institution = admin_pb2.Institution(id=INSTITUTION, title="This machine")
        self.call(self.admin.PutInstitution, admin_pb2.PutInstitutionRequest(institution=institution))

    def enrolment_token(self, region: str) -> str:
        """A token with which one agent may enrol for the region."""
        request = admin_pb2.CreateEnrolmentTokenRequest(region=region)
        return str(self.call(self.admin.CreateEnrolmentToken, request).token)

    def regions(self) -> Sequence[admin_pb2.Region]:
        """Every region, as far as one page goes: a local deployment has few."""
        found: Sequence[admin_pb2.Region] = self.call(
            self.admin.ListRegions, admin_pb2.ListRegionsRequest(page_size=1000)
        ).regions
        return found

    def call(self, method: Any, request: Any) -> Any:
        """Call a method of a stub and return its response."""
        with _told():
            return method(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)

    def last(self, method: Any, request: Any) -> Any:
        """Call a streaming method of a stub and return the last of its responses."""
        with _told():
            *_, response = method(request, metadata=self._metadata, timeout=CALL_TIMEOUT_S)
            return response


def _channel(address: str, ca: str) -> grpc.Channel:
    # A proxy of the environment is never the way to this machine itself.
    options = [("grpc.enable_http_proxy", 0)]
    if not ca:
        return grpc.insecure_channel(address, options=options)
    try:
        authority = Path(ca).read_bytes()
    except OSError as error:
        raise LocalError(
            f"The certificates in {ca} cannot be read ({error.strerror}); `suanli down` and `suanli up` make them anew."
        ) from error
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority), options=options)


@contextmanager
def _told() -> Iterator[None]:
    """Say what a call that failed means here."""
    try:
        yield
    except grpc.RpcError as error:
        # Every error of a call is also one.
        code = error.code() if isinstance(error, grpc.Call) else None
        text = error.details() if isinstance(error, grpc.Call) else str(error)
        if code is grpc.StatusCode.UNAUTHENTICATED:
            raise LocalError(
                "The control plane refuses the key in admin.key: it is of another database or was revoked."
            ) from error
        raise LocalError(f"The control plane does not answer as it should: {text}") from error
