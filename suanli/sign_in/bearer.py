"""What goes into each call: the key, or a token that is renewed before it ends."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from suanli.errors import ConfigurationError, SuanliError, Unauthenticated
from suanli.sign_in.issuer import Provider
from suanli.sign_in.logins import Login, find_login, renewing, replace_login

_RENEW_BEFORE_MS: Final = 30_000


class Bearer:
    """A fixed key, or the login in a file. For one event loop."""

    def __init__(self, api_key: str, login: Login | None, path: Path) -> None:
        self._key = api_key
        self._login = login
        self._path = path
        self._lock = asyncio.Lock()
        shown = api_key or (login.access_token if login else "")
        if not shown.isprintable() or not shown.isascii():
            raise ConfigurationError("The API key holds characters that no key has.", reason="BAD_KEY", field="api_key")

    @property
    def renews(self) -> bool:
        """Whether a token that has ended is followed by another."""
        return not self._key and self._login is not None and bool(self._login.refresh_token)

    async def value(self) -> str:
        """The credential as it is now; empty when there is none. ``Unauthenticated`` when it has ended for good."""
        if self._key or self._login is None:
            return self._key
        if _ends_soon(self._login):
            async with self._lock:
                if _ends_soon(self._login):
                    self._login = await asyncio.to_thread(_renewed, self._path, self._login)
        return self._login.access_token


def _ends_soon(login: Login) -> bool:
    return bool(login.expire_ms) and login.expire_ms - time.time_ns() // 1_000_000 < _RENEW_BEFORE_MS


def _renewed(path: Path, login: Login) -> Login:
    """The login with tokens that last. One process renews for all: many issuers take a refresh token once only."""
    with renewing(path):
        found = find_login(path, login.address)
        if found is None or not found.access_token:
            raise Unauthenticated("You have logged out; run 'suanli login'.", reason="NOT_LOGGED_IN")
        if not _ends_soon(found):
            return found
        if not found.refresh_token:
            if found.expire_ms > time.time_ns() // 1_000_000:
                return found
            raise Unauthenticated("Your login has ended; run 'suanli login'.", reason="TOKEN_EXPIRED")
        try:
            tokens = Provider(found.issuer, found.client_id).refresh(found.refresh_token)
        except Unauthenticated:
            raise
        except SuanliError:
            if found.expire_ms > time.time_ns() // 1_000_000:
                return found
            raise
        login = replace(
            found, access_token=tokens.access_token, refresh_token=tokens.refresh_token, expire_ms=tokens.expire_ms
        )
        replace_login(path, login)
        return login
