"""AuditService: reading the audit log, and checking that it is whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from protos.suanli.v1 import audit_pb2
from scheduler.api.paging import decode_number, encode_token, page_size, question
from scheduler.api.permissions import Scope
from scheduler.api.visibility import Caller, institution_scope
from scheduler.domain.errors import ResourceExhausted
from scheduler.service.audit_contract import AuditService
from scheduler.service.ports import AuditQuery
from scheduler.wire import audit as wire
from scheduler.wire import check

MAX_SEQUENCE = (1 << 63) - 1
STREAM_PAGE = 1000
_HASH_BYTES = 32


class AuditApi:
    """All methods of AuditService."""

    def __init__(self, service: AuditService) -> None:
        self._service = service
        self._running = False

    async def list_audit(self, request: audit_pb2.ListAuditRequest, caller: Caller) -> audit_pb2.ListAuditResponse:
        """Newest first."""
        query = wire.query_from_proto(request, institution_scope(caller, request.institution, "institution"))
        asked, size = question("ListAudit", query), page_size(request.page_size)
        before = decode_number(request.page_token, asked)
        query = replace(query, before=before, newest_first=True, limit=size + 1)
        records = await self._service.list_audit(query)
        token = encode_token(str(records[size - 1].sequence), asked) if len(records) > size else ""
        return audit_pb2.ListAuditResponse(
            records=[wire.record_to_proto(record) for record in records[:size]], next_page_token=token
        )

    async def stream_audit(
        self, request: audit_pb2.StreamAuditRequest, caller: Caller
    ) -> AsyncIterator[audit_pb2.StreamAuditResponse]:
        """A page at a time, of which only one is held here; those there were when it began, and maybe some after."""
        after = check.integer(request.after_sequence, 0, MAX_SEQUENCE, "after_sequence")
        query = wire.query_from_proto(request, institution_scope(caller, request.institution, "institution"))
        whole = query == AuditQuery() and caller.scope is Scope.ANY
        heads_after = after
        query = replace(query, after=after, limit=STREAM_PAGE)
        while True:
            # Heads first: the records that they are about were there before them. Where one is gone, the head tells of it.
            heads = await self._service.audit_heads(heads_after, STREAM_PAGE) if whole else []
            records = await self._service.list_audit(query)
            more = len(records) == STREAM_PAGE
            heads = [head for head in heads if not more or head.sequence <= records[-1].sequence]
            if records or heads:
                yield audit_pb2.StreamAuditResponse(
                    records=[wire.record_to_proto(record) for record in records],
                    heads=[wire.head_to_proto(head) for head in heads],
                )
            if not more:
                return
            query = replace(query, after=records[-1].sequence)
            heads_after = records[-1].sequence

    async def verify_audit(
        self, request: audit_pb2.VerifyAuditRequest, caller: Caller
    ) -> AsyncIterator[audit_pb2.VerifyAuditResponse]:
        """How far it is, now and then; at the end what was found."""
        del caller
        check.integer(request.from_sequence, 0, MAX_SEQUENCE, "from_sequence")
        check.integer(request.head_sequence, 0, MAX_SEQUENCE, "head_sequence")
        if len(request.head_hash) != (_HASH_BYTES if request.head_sequence else 0):
            check.invalid("head_hash", "a record's number and its hash of 32 bytes go together; give both or neither.")
        if 0 < request.head_sequence < request.from_sequence:
            check.invalid("head_sequence", "it lies before from_sequence, so it would not be looked at; begin earlier.")
        if self._running:
            # It reads every record there is: once at a time is enough.
            raise ResourceExhausted(
                "The audit log is being verified already; wait for that to end.", reason="VERIFICATION_RUNNING"
            )
        self._running = True
        try:
            expected = (request.head_sequence, request.head_hash) if request.head_sequence else None
            async for progress in self._service.verify_audit(request.from_sequence, expected):
                yield audit_pb2.VerifyAuditResponse(
                    checked=progress.checked,
                    total=progress.total,
                    done=progress.done,
                    faults=[wire.fault_to_proto(each) for each in progress.faults] if progress.done else [],
                    head_sequence=progress.head_sequence,
                    head_hash=progress.head,
                    heads=progress.heads,
                )
        finally:
            self._running = False

    async def get_audit_key(
        self, request: audit_pb2.GetAuditKeyRequest, caller: Caller
    ) -> audit_pb2.GetAuditKeyResponse:
        """The public key, and the newest head that was signed."""
        del request, caller
        key = await self._service.audit_key()
        return audit_pb2.GetAuditKeyResponse(
            public_key=key.public_key,
            earlier_public_keys=key.earlier,
            newest_head=wire.head_to_proto(key.newest) if key.newest else None,
        )
