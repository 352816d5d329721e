"""UsageService: verifying the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.suanli.v1 import usage_pb2
from scheduler.api.visibility import Caller
from scheduler.domain.errors import ResourceExhausted
from scheduler.service.contract import Service, VerifyProgress
from scheduler.wire import check

MAX_SEQUENCE = (1 << 63) - 1
_HASH_BYTES = 32


class VerificationApi:
    """The method of UsageService that checks the ledger."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._running = False

    async def verify_ledger(
        self, request: usage_pb2.VerifyLedgerRequest, caller: Caller
    ) -> AsyncIterator[usage_pb2.VerifyLedgerResponse]:
        """How far it is, now and then; at the end what was found."""
        del caller
        check.integer(request.from_sequence, 0, MAX_SEQUENCE, "from_sequence")
        check.integer(request.head_sequence, 0, MAX_SEQUENCE, "head_sequence")
        if bool(request.head_sequence) != (len(request.head_hash) == _HASH_BYTES):
            check.invalid("head_hash", "a record's number and its hash of 32 bytes go together; give both or neither.")
        if 0 < request.head_sequence < request.from_sequence:
            check.invalid("head_sequence", "it lies before from_sequence, so it would not be looked at; begin earlier.")
        if self._running:
            # It reads every record there is: once at a time is enough.
            raise ResourceExhausted(
                "The ledger is being verified already; wait for that to end.", reason="VERIFICATION_RUNNING"
            )
        self._running = True
        try:
            expected = (request.head_sequence, request.head_hash) if request.head_sequence else None
            async for progress in self._service.verify_ledger(request.from_sequence, expected):
                yield _to_proto(progress)
        finally:
            self._running = False


def _to_proto(progress: VerifyProgress) -> usage_pb2.VerifyLedgerResponse:
    return usage_pb2.VerifyLedgerResponse(
        checked=progress.checked,
        total=progress.total,
        done=progress.done,
        faults=[
            usage_pb2.LedgerFault(sequence=each.sequence, code=each.code, message=each.message)
            for each in progress.faults
        ],
        head_sequence=progress.head_sequence,
        head_hash=progress.head,
        attempts=progress.attempts,
        sums=progress.sums,
    )
