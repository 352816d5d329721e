"""The part of ``Service`` that knows users and their keys."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from scheduler.domain.records import ApiKeyRecord, UserRecord


class KeyLimits(NamedTuple):
    """What a key is limited to beside what its user may: a role (0: none), a project (empty: none), reading."""

    role: int = 0
    project: str = ""
    read_only: bool = False


NO_LIMITS = KeyLimits()


class People(Protocol):
    """Users and keys. Changes are durable when the call returns."""

    def find_user(self, user: str) -> UserRecord | None:
        """A user as they are now, from memory."""
        ...

    async def provision_user(self, record: UserRecord, actor: str) -> UserRecord:
        """Create a user; one who is there already stays as they are. ``NotFound`` when the institution is not there."""
        ...

    async def create_api_key(
        self, user: str, title: str, expire_ms: int, actor: str, limits: KeyLimits = NO_LIMITS
    ) -> tuple[ApiKeyRecord, str]:
        """A new key for an existing user, with its secret in the form "suanli_<prefix>_<secret>".

        ``NotFound`` when the user's institution has no such project.
        """
        ...

    async def adopt_api_key(self, user: str, title: str, key: str) -> ApiKeyRecord:
        """Make a key that was drawn elsewhere one of an existing user's; ``InvalidArgument`` when it is not the text of one."""
        ...

    async def list_api_keys(self, institution: str, user: str) -> list[ApiKeyRecord]:
        """By prefix; empty fields do not filter."""
        ...

    async def revoke_api_key(self, prefix: str, actor: str) -> ApiKeyRecord:
        """Idempotent; ``NotFound`` for an unknown prefix."""
        ...

    def authenticate(self, key: str) -> ApiKeyRecord:
        """The record of a full key "suanli_<prefix>_<secret>" that is live now; raises ``Unauthenticated``. From memory, so it
        costs microseconds. The user's present role and institution are in the record."""
        ...

    def led_by(self, user: str) -> frozenset[str]:
        """The projects of the own institution that a user leads; none for an unknown one. From memory, too."""
        ...
