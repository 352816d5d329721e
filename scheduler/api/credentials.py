"""API keys and tokens: who shows one, and whether it still is good."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from scheduler.api.limits import API_KEY, TOKEN, Credential
from scheduler.domain.errors import NotFound, Unauthenticated
from scheduler.domain.records import UserRecord
from scheduler.identity.issuers import ROLES, Issuer
from scheduler.identity.tokens import Known, Tokens
from scheduler.service.auditing import ACTING
from scheduler.service.people import People

KEY_START = "suanli_"


class Admission(NamedTuple):
    """Who was let in. ``renew`` says who that is now, from memory; it raises ``Unauthenticated`` when the credential has ended."""

    credential: Credential
    renew: Callable[[], Credential]


class Credentials:
    """Lets callers in by API key, or by the token of a trusted issuer. A key, and a token seen before, cost microseconds."""

    def __init__(self, people: People, tokens: Tokens) -> None:
        self._people = people
        self._tokens = tokens

    async def admit(self, text: str) -> Admission:
        """Who shows this. Raises ``Unauthenticated``; ``Unavailable`` when an issuer's keys cannot be had."""
        if text.startswith(KEY_START) or not self._tokens.any:
            renew = partial(self._by_key, text)
            return Admission(renew(), renew)
        known = await self._tokens.identify(text)
        if known.identity.issuer.provision and self._people.find_user(known.identity.user) is None:
            await self._provision(known)
        renew = partial(self._by_token, known)
        return Admission(renew(), renew)

    def _by_key(self, key: str) -> Credential:
        record = self._people.authenticate(key)
        return Credential(
            record.user,
            record.institution,
            record.role,
            record.region,
            API_KEY,
            record.prefix,
            record.expire_ms,
            (record.limit_role,) if record.limit_role else None,
            record.project,
            bool(record.read_only),
        )

    def _by_token(self, known: Known) -> Credential:
        self._tokens.check(known)
        said = known.identity
        user = self._people.find_user(said.user)
        if user is None or not _speaks_for(said.issuer, user, said.institution):
            raise Unauthenticated(
                f"The platform has no user {said.user!r} for whom the token's issuer may speak; ask an administrator.",
                reason="USER_UNKNOWN",
            )
        if user.disabled:
            raise Unauthenticated("The token's user is disabled; ask an administrator.", reason="USER_DISABLED")
        return Credential(
            user.user,
            user.institution,
            user.role,
            "",
            TOKEN,
            said.issuer.issuer,
            said.expire_ms,
            said.roles,
            said.project,
        )

    async def _provision(self, known: Known) -> None:
        """Make the user of a token, a researcher whatever the token says: more is an administrator's to give."""
        said = known.identity
        record = UserRecord(said.user, said.institution, said.title, ROLES["researcher"], 0, 0)
        if not said.institution:
            return
        acting = ACTING.get()
        if acting is not None:
            # Nobody else can have made the user: the log says which issuer did.
            acting.actor = said.issuer.issuer
        try:
            await self._people.provision_user(record, said.issuer.issuer)
        except NotFound as error:
            raise Unauthenticated(error.message, reason=error.reason) from None


def _speaks_for(issuer: Issuer, user: UserRecord, institution: str) -> bool:
    """Whether an issuer may say that somebody is this user. ``institution``: of which, in the words of the token."""
    if not user.institution:
        return issuer.platform_users and not institution
    return user.institution in issuer.institutions and institution in ("", user.institution)
